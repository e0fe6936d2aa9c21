//! The proxy's own superuser connections to each node's admin database, for short questions.
//!
//! Cancels, verifiers and the like go this way: few connections, bounded waits, and settings in the
//! startup packet that no ALTER ROLE or ALTER DATABASE of a user's can bend. Nothing of a client's
//! is ever run here.

use std::time::Duration;

use deadpool_postgres::{Client, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio_postgres::NoTls;

use crate::config::Config;
use crate::ids::NodeId;

/// Connections to each node.
const CONNECTIONS: usize = 4;
/// How long a question waits for a connection, and a connection for its node.
const LIMIT: Duration = Duration::from_secs(5);

/// The startup `options` of every connection of the proxy's own: nothing a role or database has been
/// given by ALTER gets past them.
pub const OPTIONS: &str = "-c search_path=pg_catalog -c role=none -c row_security=on \
    -c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 -c timezone=UTC \
    -c lc_monetary=C -c xmloption=content -c standard_conforming_strings=on \
    -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed \
    -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 \
    -c idle_session_timeout=0 -c synchronous_commit=local -c session_replication_role=origin";

/// Why a question could not be asked or answered.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No connection in time, or none at all.
    #[error("no admin connection: {0}")]
    Pool(#[from] deadpool_postgres::PoolError),
    /// The node's answer is an error, or the connection broke.
    #[error("admin query: {0}")]
    Query(#[from] tokio_postgres::Error),
    /// No such node is configured.
    #[error("no node {}", .0.0)]
    NoNode(NodeId),
    /// The pool could not be set up.
    #[error("admin connections: {0}")]
    Setup(String),
}

/// The admin connections of all nodes.
#[derive(Clone)]
pub struct Admins {
    pools: Vec<Pool>,
}

impl Admins {
    /// Opens nothing yet.
    pub fn new(config: &Config) -> Result<Self, AdminError> {
        let pools = config
            .nodes
            .iter()
            .map(|node| pool(config, node))
            .collect::<Result<_, _>>()?;
        Ok(Self { pools })
    }

    /// A connection to a node. Dropping the future loses nothing; dropping the client in the middle of
    /// a query leaves the connection to finish it by itself.
    pub async fn get(&self, node: NodeId) -> Result<Client, AdminError> {
        let pool = self.pools.get(node.0).ok_or(AdminError::NoNode(node))?;
        Ok(pool.get().await?)
    }

    /// Closes the idle connections of a node that has been found dead.
    pub fn close_idle(&self, node: NodeId) {
        if let Some(pool) = self.pools.get(node.0) {
            pool.retain(|_, _| false);
        }
    }
}

fn pool(config: &Config, node: &crate::config::Node) -> Result<Pool, AdminError> {
    let mut login = tokio_postgres::Config::new();
    login
        .host(&node.host)
        .port(node.port)
        .user(&config.admin.user)
        .dbname(&config.admin.database)
        .application_name("synapsedb admin")
        .options(OPTIONS)
        .connect_timeout(LIMIT);
    if let Some(password) = &config.admin.password {
        login.password(password.expose());
    }
    let recycling = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let manager = Manager::from_config(login, NoTls, recycling);
    Pool::builder(manager)
        .max_size(CONNECTIONS)
        .wait_timeout(Some(LIMIT))
        .create_timeout(Some(LIMIT))
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|e| AdminError::Setup(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    #[test]
    fn options_are_taken_by_the_driver() {
        let text = format!("host=a options='{}'", OPTIONS.replace('\\', "\\\\"));
        assert!(tokio_postgres::Config::from_str(&text).is_ok());
    }
}
