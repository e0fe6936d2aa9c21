//! `synapsedb check`: what the nodes are like, what must be mended, and how. Changes nothing.
//!
//! What nodes say is gathered in `check/facts.rs` and judged in `check/judge.rs`, which is pure.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::{Client, NoTls};

use crate::cluster::alike;
use crate::cluster::bring_up::{BringUpError, Reached};
use crate::config::{Config, Node, Secret};
use crate::ids::NodeId;
use crate::node::control::{self, Control};
use crate::session::tls::Tls;

mod facts;
mod judge;

use facts::Facts;
use judge::Finding;

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a look at a node may take in all.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// How long comparing all rows may take before it is left to the first start.
const COMPARE_LIMIT: Duration = Duration::from_secs(120);
/// What the nodes know these connections by.
pub(super) const APPLICATION_NAME: &str = "synapsedb check";

/// Looks at everything and prints what it finds; fails where something must be mended.
pub async fn run(config: &Config) -> ExitCode {
    let mut findings = judge_files(config);
    say(&findings);
    let mut reached: Vec<(String, Facts)> = Vec::new();
    for node in &config.nodes {
        let place = format!("{} ({}:{})", node.name, node.host, node.port);
        let looked = tokio::time::timeout(LOOK_LIMIT, facts::gather(config, node)).await;
        let late = || format!("gave no answer within {} s", LOOK_LIMIT.as_secs());
        match looked.unwrap_or_else(|_| Err(late())) {
            Ok(facts) => {
                println!("{place}: {}", facts.summary());
                let found = judge::node(&facts, config);
                say(&found);
                findings.extend(found);
                reached.push((node.name.clone(), facts));
            }
            Err(text) => {
                println!("{place}: {text}");
                findings.push(Finding::Fault(text));
            }
        }
    }
    let mut together = judge::together(&reached);
    if reached.len() == config.nodes.len() && judge::may_meet(&reached, &findings, &together) {
        together.extend(differences(config).await);
    }
    if !together.is_empty() {
        println!("together:");
        say(&together);
        findings.extend(together);
    }
    let faults = findings.iter().filter(|f| f.is_fault()).count();
    if faults == 0 {
        println!("Nothing to mend.");
        return ExitCode::SUCCESS;
    }
    println!("{faults} to mend.");
    ExitCode::FAILURE
}

fn say(findings: &[Finding]) {
    for finding in findings {
        println!("  {finding}");
    }
}

/// What the configuration names on this machine.
fn judge_files(config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    if let (Some(certificate), Some(key)) = (&config.tls.certificate, &config.tls.key)
        && let Err(error) = Tls::load(certificate, key)
    {
        found.push(Finding::Fault(format!("tls: {error}")));
    }
    found
}

/// Before the first contact: whether the nodes hold the same, as `serve` will ask.
async fn differences(config: &Config) -> Option<Finding> {
    let compared = tokio::time::timeout(COMPARE_LIMIT, compare(config)).await;
    match compared {
        Ok(Ok(())) => {
            println!("together: the nodes hold the same data");
            None
        }
        Ok(Err(error)) => Some(Finding::Fault(error.to_string())),
        Err(_) => Some(Finding::Hint(
            "comparing all rows takes longer than the patience of this command; the first start compares them"
                .to_owned(),
        )),
    }
}

async fn compare(config: &Config) -> Result<(), BringUpError> {
    let control = Control::new(config);
    let mut reached = Vec::new();
    for (at, node) in config.nodes.iter().enumerate() {
        let failed = |error| BringUpError::Failed {
            node: node.name.clone(),
            doing: "comparing the nodes".to_owned(),
            error,
        };
        let node = NodeId(at);
        let client = control.connect(node, &control.database).await;
        let client = client.map_err(failed)?;
        let facts = control::server_facts(&client).await.map_err(failed)?;
        reached.push(Reached {
            node,
            client: Arc::new(client),
            facts,
            state: None,
        });
    }
    alike::check(config, &control, &reached).await
}

/// One connection as the proxy's superuser; a failure says what to do.
pub(super) async fn connect(
    config: &Config,
    node: &Node,
    database: &str,
) -> Result<Client, String> {
    let mut options = tokio_postgres::Config::new();
    options
        .host(&node.host)
        .port(node.port)
        .user(&config.admin.user)
        .dbname(database)
        .application_name(APPLICATION_NAME)
        .options("-c synchronous_commit=local -c statement_timeout=0 -c search_path=pg_catalog")
        .connect_timeout(PATIENCE);
    if let Some(password) = config.admin.password.as_ref().map(Secret::expose) {
        options.password(password);
    }
    let opened = tokio::time::timeout(PATIENCE, options.connect(NoTls)).await;
    let opened = opened.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?;
    let (client, connection) = opened.map_err(|error| advice(&error, config))?;
    tokio::spawn(connection);
    Ok(client)
}

/// The server's words, and what they usually mean.
fn advice(error: &tokio_postgres::Error, config: &Config) -> String {
    let user = &config.admin.user;
    let variable = &config.admin.password_env;
    let Some(database_error) = error.as_db_error() else {
        let cause = std::error::Error::source(error);
        let words = cause.map_or_else(|| error.to_string(), ToString::to_string);
        if config.admin.password.is_none() && words.contains("password missing") {
            return format!(
                "it asks for {user}'s password: put it into the environment as {variable}"
            );
        }
        return format!("cannot be reached: {words}. Is it up, and are host and port right?");
    };
    let hint = match database_error.code().code() {
        "28P01" => format!("is the password in {variable} right?"),
        "28000" => "pg_hba.conf must let the proxy's address in".to_owned(),
        "3D000" => "admin.database must exist on every node".to_owned(),
        "53300" => "raise max_connections".to_owned(),
        "57P03" => "it is starting or stopping: try again".to_owned(),
        _ => String::new(),
    };
    format!(
        "{} ({}); {hint}",
        database_error.message(),
        database_error.code().code()
    )
}
