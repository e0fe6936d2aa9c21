//! `synapsedb release`: takes off the nodes everything the proxy made there.
//!
//! Users' data stays as it is. Commits that wait are answered before anything else is touched, so it
//! works on nodes whose proxy is dead. It refuses while a proxy is at work on a node: that proxy would
//! find its feet gone in the middle of a write.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use tokio_postgres::Client;

use super::ConfigFile;
use super::check::connect;
use crate::config::{Config, Node};
use crate::node::schema;

/// How long a killed proxy's connections may take to vanish.
const DEPARTURE_LIMIT: Duration = Duration::from_secs(5);

/// The arguments of `release`.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// Which configuration.
    #[command(flatten)]
    pub file: ConfigFile,
    /// Only this node, by its name in the configuration.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// End the connections of a proxy that is at work there, instead of refusing.
    #[arg(long)]
    pub force: bool,
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
        match release(config, node, arguments.force).await {
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
async fn release(config: &Config, node: &Node, force: bool) -> Result<String, String> {
    let admin = connect(config, node, &config.admin.database).await?;
    if force {
        end_proxy(&admin).await?;
    }
    wait_for_proxy_gone(&admin, force).await?;
    // First of all the settings: from here on no commit waits, and those that do are answered.
    for setting in ["synchronous_standby_names", "synchronous_commit"] {
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

/// A proxy's connections on a node: streams, appliers, probes.
const OF_PROXY: &str = "(application_name in ('synapsedb', 'synapsedb slot', 'synapsedb applier', 'synapsedb control', 'synapsedb admin')
    or usename = 'synapsedb_applier') and pid <> pg_backend_pid()";

/// Ends them, and whoever reads a slot.
async fn end_proxy(admin: &Client) -> Result<(), String> {
    let sql = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where {OF_PROXY};
         select pg_terminate_backend(active_pid) from pg_replication_slots
          where slot_name ~ '^synapsedb_' and active_pid is not null"
    );
    execute(admin, &sql).await
}

/// A proxy that was killed just now still has connections here; one that is at work keeps them.
async fn wait_for_proxy_gone(admin: &Client, force: bool) -> Result<(), String> {
    let question = format!(
        "select pid::text from pg_stat_activity where {OF_PROXY}
         union all
         select slot_name::text from pg_replication_slots where slot_name ~ '^synapsedb_' and active"
    );
    let until = Instant::now() + DEPARTURE_LIMIT;
    while !column(admin, &question).await?.is_empty() {
        if Instant::now() > until {
            let advice = if force {
                "it opens its connections anew: stop it"
            } else {
                "stop that first; --force ends its connections, if it is one that hangs"
            };
            return Err(format!("a proxy is at work on it; {advice}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        if force {
            end_proxy(admin).await?;
        }
    }
    Ok(())
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
