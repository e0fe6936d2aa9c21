//! What sessions ask of the steward, answered: the one implementation of [`Service`] with followers.

use std::sync::Arc;

use super::service::{Answer, Order, Service};
use super::steward::Steward;
use crate::error::ClientError;
use crate::ids::NodeId;
use crate::sql::catalog::Catalog;

/// The steward, as sessions know it.
pub struct Asked(pub Arc<Steward>);

impl Service for Asked {
    fn wait_quorum(&self, _: NodeId) -> Answer<'_, Result<(), ClientError>> {
        Box::pin(async {
            if self.0.wait_quorum().await {
                return Ok(());
            }
            Err(ClientError::CommitUnknown)
        })
    }

    fn refresh_metadata<'a>(&'a self, database: &'a str) -> Answer<'a, Result<(), ClientError>> {
        Box::pin(async move {
            self.0.refresh_metadata(database).await.map_err(|error| {
                tracing::warn!(database, %error, "metadata could not be refreshed");
                ClientError::NodeUnreachable {
                    node: self.0.view().nodes[self.0.writer().0].name.clone(),
                }
            })
        })
    }

    fn catalog_generation(&self) -> u64 {
        self.0.catalogs().generation()
    }

    fn catalog(&self, database: &str) -> Arc<Catalog> {
        self.0.catalogs().get(database)
    }

    fn log_secret(&self) -> Option<&str> {
        Some(&self.0.arming.log_secret)
    }

    fn before_drop<'a>(&'a self, database: &'a str) -> Answer<'a, Result<(), ClientError>> {
        Box::pin(async move {
            self.0.database_dropping(database).await.map_err(|error| {
                tracing::warn!(database, %error, "a database could not be let go");
                let node = self.0.view().nodes[self.0.writer().0].name.clone();
                ClientError::NodeUnreachable { node }
            })
        })
    }

    fn after_failed_drop<'a>(&'a self, database: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            if let Err(error) = self.0.database_kept(database).await {
                tracing::error!(database, %error, "a database that was not dropped is not replicated");
            }
        })
    }

    fn run_elsewhere<'a>(&'a self, order: &'a Order) -> Answer<'a, Vec<(String, Option<String>)>> {
        Box::pin(self.0.run_elsewhere(order))
    }

    fn upkeep_elsewhere(&self, order: Order) {
        let steward = Arc::clone(&self.0);
        let done = async move { steward.upkeep_elsewhere(&order).await };
        self.0.tasks.spawn(done);
    }

    fn command_failed(&self, node: NodeId, database: &str, command: &str, why: &str) {
        self.0.fence(
            node,
            &format!("{command} failed there alone, in database {database}: {why}"),
        );
    }
}
