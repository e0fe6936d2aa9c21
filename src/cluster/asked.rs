//! What sessions ask of the steward, answered: the one implementation of [`Service`] with followers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::guests::Guest;
use super::service::{Answer, Order, Outcome, OwnNames, Service};
use super::steward::Steward;
use crate::error::ClientError;
use crate::ids::NodeId;
use crate::node::control::ControlError;
use crate::node::pool::Pools;
use crate::sql::catalog::Catalog;

/// For bringing the metadata up to date.
const REFRESH: Duration = Duration::from_secs(5);

/// The steward, as sessions know it.
pub struct Asked {
    /// The cluster.
    pub steward: Arc<Steward>,
    /// Connections for clients' work, to be counted.
    pub pools: Arc<Pools>,
}

impl Asked {
    fn in_flight(&self) -> BTreeMap<NodeId, usize> {
        let mut used = BTreeMap::new();
        for pool in self.pools.status() {
            *used.entry(pool.name.node).or_default() += pool.size.saturating_sub(pool.idle);
        }
        used
    }
}

impl Service for Asked {
    fn wait_quorum(&self, _: NodeId) -> Answer<'_, Result<(), ClientError>> {
        Box::pin(async {
            if self.steward.wait_quorum().await {
                return Ok(());
            }
            Err(ClientError::CommitUnknown)
        })
    }

    fn refresh_metadata<'a>(
        &'a self,
        database: &'a str,
    ) -> Answer<'a, Result<OwnNames, ClientError>> {
        Box::pin(async move {
            let in_flight = self.in_flight();
            let refreshed = self.steward.refresh_metadata(database, &in_flight);
            let refreshed = tokio::time::timeout(REFRESH, refreshed).await;
            refreshed
                .unwrap_or(Err(ControlError::Timeout))
                .map_err(|error| {
                    tracing::warn!(database, %error, "metadata could not be refreshed");
                    let view = self.steward.view();
                    ClientError::NodeUnreachable {
                        node: view.nodes[view.writer.0].name.clone(),
                    }
                })
        })
    }

    fn catalog_generation(&self) -> u64 {
        self.steward.catalogs().generation()
    }

    fn catalog(&self, database: &str) -> Arc<Catalog> {
        self.steward.catalogs().get(database)
    }

    fn replicates(&self, database: &str) -> bool {
        self.steward.replicates(database)
    }

    fn enter(&self, database: &str) -> Option<Guest> {
        Some(self.steward.enter(database))
    }

    fn log_secret(&self) -> Option<&str> {
        Some(&self.steward.arming.log_secret)
    }

    fn before_drop<'a>(&'a self, database: &'a str) -> Answer<'a, Result<(), ClientError>> {
        Box::pin(async move {
            self.steward
                .database_dropping(database)
                .await
                .map_err(|error| {
                    tracing::warn!(database, %error, "a database could not be let go");
                    let node = self.steward.view().nodes[self.steward.writer().0]
                        .name
                        .clone();
                    ClientError::NodeUnreachable { node }
                })
        })
    }

    fn after_failed_drop<'a>(&'a self, database: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            if let Err(error) = self.steward.database_kept(database).await {
                tracing::error!(database, %error, "a database that was not dropped is not replicated");
            }
        })
    }

    fn run_elsewhere<'a>(&'a self, order: &'a Order) -> Answer<'a, Outcome> {
        Box::pin(self.steward.run_elsewhere(order))
    }

    fn upkeep_elsewhere(&self, order: Order) {
        let steward = Arc::clone(&self.steward);
        let done = async move { steward.upkeep_elsewhere(&order).await };
        self.steward.tasks.spawn(done);
    }

    fn command_failed(&self, node: NodeId, database: &str, command: &str, why: &str) {
        self.steward.fence(
            node,
            &format!("{command} failed there alone, in database {database}: {why}"),
        );
    }
}
