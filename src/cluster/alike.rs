//! Whether nodes that meet for the first time are copies of each other.
//!
//! Guards promise 2 at its beginning: nodes that differ are refused, with what differs. Compares
//! databases, roles, what each database defines, and every table's rows as a sum of hashes. Nobody
//! else writes meanwhile: that is the operator's to see to, and the README says so.

use std::collections::BTreeSet;

use super::bring_up::{BringUpError, Reached};
use crate::config::Config;
use crate::ids::NodeId;
use crate::node::control::{self, Control, ControlError};
use crate::node::schema::{CLUSTER_FINGERPRINT, FINGERPRINT, TABLES_TO_COMPARE, table_hash};
use tokio_postgres::Client;

/// Compares every reached node with the first one.
pub async fn check(
    config: &Config,
    control: &Control,
    reached: &[Reached],
) -> Result<(), BringUpError> {
    let Some((first, others)) = reached.split_first() else {
        return Ok(());
    };
    let name = |node: NodeId| config.nodes[node.0].name.clone();
    let failed = |node: NodeId| {
        move |error: ControlError| BringUpError::Failed {
            node: name(node),
            doing: "comparing the nodes".to_owned(),
            error,
        }
    };
    let ours = globals(&first.client).await.map_err(failed(first.node))?;
    for other in others {
        let theirs = globals(&other.client).await.map_err(failed(other.node))?;
        same(&name(first.node), &ours, &name(other.node), &theirs, "")?;
    }
    let databases = control::databases(&first.client)
        .await
        .map_err(failed(first.node))?;
    for database in databases {
        let ours = contents(control, first.node, &database)
            .await
            .map_err(failed(first.node))?;
        for other in others {
            let theirs = contents(control, other.node, &database)
                .await
                .map_err(failed(other.node))?;
            let place = format!(" in database {database}");
            same(&name(first.node), &ours, &name(other.node), &theirs, &place)?;
        }
    }
    Ok(())
}

/// Roles, databases and what belongs to them. Passwords are left out: a verifier's salt differs from node
/// to node, and they are made the same afterwards.
async fn globals(client: &Client) -> Result<BTreeSet<String>, ControlError> {
    let mut lines = lines(client, CLUSTER_FINGERPRINT).await?;
    let roles: Vec<String> = lines
        .iter()
        .filter(|l| l.starts_with("role "))
        .cloned()
        .collect();
    for role in roles {
        lines.remove(&role);
        let plain = role
            .rsplit_once(' ')
            .map_or(role.as_str(), |(plain, _)| plain);
        lines.insert(plain.to_owned());
    }
    Ok(lines)
}

/// The question for what belongs to a whole server.
pub(super) const GLOBALS: &str = CLUSTER_FINGERPRINT;

/// One line for each row of a question.
pub(super) async fn lines(client: &Client, sql: &str) -> Result<BTreeSet<String>, ControlError> {
    let rows = control::rows(client, sql).await?;
    let line = |row: Vec<Option<String>>| row.into_iter().flatten().collect::<Vec<_>>().join(" ");
    Ok(rows.into_iter().map(line).collect())
}

/// What a database defines, and each table's rows as one line.
async fn contents(
    control: &Control,
    node: NodeId,
    database: &str,
) -> Result<BTreeSet<String>, ControlError> {
    let client = control.connect(node, database).await?;
    let mut all = lines(&client, FINGERPRINT).await?;
    for table in lines(&client, TABLES_TO_COMPARE).await? {
        for line in lines(&client, &table_hash(&table)).await? {
            all.insert(format!("table {table} with rows and their hash {line}"));
        }
    }
    Ok(all)
}

/// The first few lines that only one of the two has.
fn same(
    one: &str,
    ours: &BTreeSet<String>,
    other: &str,
    theirs: &BTreeSet<String>,
    place: &str,
) -> Result<(), BringUpError> {
    let only = |name: &str, set: BTreeSet<&String>| -> Vec<String> {
        set.into_iter()
            .take(3)
            .map(|line| format!("only {name} has {}", short(line)))
            .collect()
    };
    let mut differences = only(one, ours.difference(theirs).collect());
    differences.extend(only(other, theirs.difference(ours).collect()));
    if differences.is_empty() {
        return Ok(());
    }
    Err(BringUpError::Different(format!(
        "{}{place}",
        differences.join("; ")
    )))
}

/// A definition on one line, cut where it gets long.
fn short(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(200) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line,
    }
}
