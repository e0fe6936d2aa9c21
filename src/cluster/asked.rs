//! What sessions ask of the steward, answered: the one implementation of [`Service`] with followers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::commits::Commits;
use super::guests::Guest;
use super::jumps::Jump;
use super::reads::Reads;
use super::reigns::Cluster;
use super::service::{Answer, Order, Outcome, OwnNames, Service};
use crate::error::ClientError;
use crate::ids::NodeId;
use crate::node::control::ControlError;
use crate::node::pool::Pools;
use crate::sql::catalog::Catalog;

/// For bringing the metadata up to date.
const REFRESH: Duration = Duration::from_secs(5);

/// The cluster, as sessions know it.
pub struct Asked {
    /// Whoever writes.
    pub cluster: Arc<Cluster>,
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
            if self.cluster.steward().wait_quorum().await {
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
            let steward = self.cluster.steward();
            let refreshed = steward.refresh_metadata(database, &in_flight);
            let refreshed = tokio::time::timeout(REFRESH, refreshed).await;
            refreshed
                .unwrap_or(Err(ControlError::Timeout))
                .map_err(|error| {
                    tracing::warn!(database, %error, "metadata could not be refreshed");
                    let view = self.cluster.steward().view();
                    ClientError::NodeUnreachable {
                        node: view.nodes[view.writer.0].name.clone(),
                    }
                })
        })
    }

    fn catalog_generation(&self) -> u64 {
        self.cluster.catalogs().generation()
    }

    fn catalog(&self, database: &str) -> Arc<Catalog> {
        self.cluster.catalogs().get(database)
    }

    fn reads(&self) -> Option<&Arc<Reads>> {
        Some(self.cluster.reads())
    }

    fn commits(&self) -> Option<&Arc<Commits>> {
        Some(self.cluster.commits())
    }

    fn jump(&self) -> Option<Jump> {
        Some(self.cluster.jumps().begin())
    }

    fn replicates(&self, database: &str) -> bool {
        self.cluster.steward().replicates(database)
    }

    fn enter(&self, database: &str) -> Option<Guest> {
        Some(self.cluster.steward().enter(database))
    }

    fn log_secret(&self) -> Option<&str> {
        Some(self.cluster.log_secret())
    }

    fn before_drop<'a>(&'a self, database: &'a str) -> Answer<'a, Result<(), ClientError>> {
        Box::pin(async move {
            self.cluster
                .steward()
                .database_dropping(database)
                .await
                .map_err(|error| {
                    tracing::warn!(database, %error, "a database could not be let go");
                    let view = self.cluster.steward().view();
                    let node = view.nodes[view.writer.0].name.clone();
                    ClientError::NodeUnreachable { node }
                })
        })
    }

    fn after_failed_drop<'a>(&'a self, database: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            if let Err(error) = self.cluster.steward().database_kept(database).await {
                tracing::error!(database, %error, "a database that was not dropped is not replicated");
            }
        })
    }

    fn run_elsewhere<'a>(&'a self, order: &'a Order) -> Answer<'a, Outcome> {
        Box::pin(async move { self.cluster.steward().run_elsewhere(order).await })
    }

    fn upkeep_elsewhere(&self, order: Order) {
        let steward = self.cluster.steward();
        let tasks = steward.tasks.clone();
        tasks.spawn(async move { steward.upkeep_elsewhere(&order).await });
    }

    fn command_failed(&self, node: NodeId, database: &str, command: &str, why: &str) {
        self.cluster.steward().fence(
            node,
            &format!("{command} failed there alone, in database {database}: {why}"),
        );
    }
}
