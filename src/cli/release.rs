//! `synapsedb release`: takes off the nodes everything the proxy made there.
//!
//! Users' data stays as it is. It refuses while a proxy reads a node's slots: that proxy would find
//! its feet gone in the middle of a write.

use std::process::ExitCode;

use clap::Args;
use tokio_postgres::Client;

use super::ConfigFile;
use super::check::connect;
use crate::config::{Config, Node};
use crate::node::schema;

/// The arguments of `release`.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// Which configuration.
    #[command(flatten)]
    pub file: ConfigFile,
    /// Only this node, by its name in the configuration.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
}

/// Why nothing was released.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// There is no such node.
    #[error("no node is called {0:?} in the configuration; there are {1}")]
    NoSuchNode(String, String),
}

/// Releases the nodes one after the other, and says what it did.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode, ReleaseError> {
    let wanted = |node: &&Node| {
        arguments
            .node
            .as_ref()
            .is_none_or(|name| *name == node.name)
    };
    let nodes: Vec<&Node> = config.nodes.iter().filter(wanted).collect();
    if nodes.is_empty() {
        let names: Vec<&str> = config.nodes.iter().map(|node| node.name.as_str()).collect();
        let name = arguments.node.clone().unwrap_or_default();
        return Err(ReleaseError::NoSuchNode(name, names.join(", ")));
    }
    let mut code = ExitCode::SUCCESS;
    for node in nodes {
        match release(config, node).await {
            Ok(done) => println!("{}: {done}", node.name),
            Err(error) => {
                println!("{}: not released: {error}", node.name);
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// One node. What is gone already is passed over, so it may be run again after a failure.
async fn release(config: &Config, node: &Node) -> Result<String, String> {
    let admin = connect(config, node, &config.admin.database).await?;
    let readers = column(
        &admin,
        "select slot_name::text from pg_replication_slots where slot_name ~ '^synapsedb_' and active",
    )
    .await?;
    if !readers.is_empty() {
        return Err("a proxy is at work on it; stop that first".to_owned());
    }
    // First of all the setting: from here on no commit waits.
    for setting in [
        "synchronous_standby_names",
        "synchronous_commit",
        "client_min_messages",
    ] {
        execute(&admin, &format!("alter system reset {setting}")).await?;
    }
    execute(&admin, "select pg_reload_conf()").await?;
    let databases = column(
        &admin,
        "select datname::text from pg_database where datallowconn and not datistemplate order by 1",
    )
    .await?;
    for database in &databases {
        let client = connect(config, node, database).await?;
        execute(&client, schema::TEARDOWN)
            .await
            .map_err(|error| format!("{database}: {error}"))?;
    }
    execute(
        &admin,
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name ~ '^synapsedb_'",
    )
    .await?;
    execute(
        &admin,
        "select pg_replication_origin_drop(roname) from pg_replication_origin where roname ~ '^synapsedb_'",
    )
    .await?;
    execute(&admin, schema::TEARDOWN_ROLE).await?;
    Ok(format!("released ({} databases)", databases.len()))
}

async fn execute(client: &Client, sql: &str) -> Result<(), String> {
    client
        .batch_execute(sql)
        .await
        .map_err(|error| words(&error))
}

async fn column(client: &Client, sql: &str) -> Result<Vec<String>, String> {
    let rows = client
        .query(sql, &[])
        .await
        .map_err(|error| words(&error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn words(error: &tokio_postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), |e| e.message().to_owned())
}
