//! The tables behind `cluster_nodes` and `check_quorum()` on the writer: filled from the view, in SQL.
//!
//! They are UNLOGGED and never replicated; a statement that names them has them refreshed just before it
//! runs. Nothing of the cluster depends on them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use tokio_postgres::Client;

use super::service::OwnNames;
use super::view::{NodeView, View};
use crate::ids::NodeId;
use crate::node::control::{self, ControlError};
use crate::sql::names::{METADATA_FUNCTIONS, METADATA_RELATIONS};

/// Writes what is true now, as one transaction.
pub async fn refresh(
    client: &Client,
    view: &View,
    in_flight: &BTreeMap<NodeId, usize>,
) -> Result<(), ControlError> {
    let row = |node: &NodeView| row(node, in_flight.get(&node.id).copied().unwrap_or_default());
    let rows: Vec<String> = view.nodes.iter().map(row).collect();
    let sql = format!(
        "begin; set local lock_timeout = '2s'; \
         lock table synapsedb.cluster_nodes_data in share row exclusive mode; \
         delete from synapsedb.cluster_nodes_data; insert into synapsedb.cluster_nodes_data \
         (node_id, node_name, host, port, status, is_writer, last_heartbeat, latency_ms, in_flight, lag_bytes, lag_seconds) \
         values {}; insert into synapsedb.quorum_data (has_quorum) values ({}) \
         on conflict (only_row) do update set has_quorum = excluded.has_quorum, written_at = now(); commit",
        rows.join(", "),
        view.quorum
    );
    Ok(client.batch_execute(&sql).await?)
}

fn row(node: &NodeView, in_flight: usize) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let null = || "null".to_owned();
    let heartbeat = node
        .last_heartbeat
        .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
        .map_or_else(null, |at| format!("to_timestamp({})", at.as_secs_f64()));
    let latency = node.latency_ms.map_or_else(null, |ms| format!("{ms:.3}"));
    format!(
        "({}, {}, {}, {}, {}, {}, {heartbeat}::timestamptz, {latency}::float8, {in_flight}, {}, {:.3})",
        node.id.0 + 1,
        quote(&node.name),
        quote(&node.host),
        node.port,
        quote(node.status.name()),
        node.is_writer,
        node.lag_bytes,
        node.lag_seconds,
    )
}

/// Which of the metadata's names the user's own relations and functions have, those of other sessions'
/// temporary schemas apart.
pub async fn own_names(client: &Client) -> Result<OwnNames, ControlError> {
    let list = |names: &[&str]| {
        let quoted: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
        quoted.join(", ")
    };
    let sql = format!(
        "select 'relation', c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
          where c.relname in ({}) and n.nspname <> 'synapsedb' and n.nspname !~ '^pg_temp_'
         union all
         select 'function', p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace
          where p.proname in ({}) and n.nspname <> 'synapsedb' and n.nspname !~ '^pg_temp_'",
        list(&METADATA_RELATIONS),
        list(&METADATA_FUNCTIONS)
    );
    let mut own = OwnNames::default();
    for row in control::rows(client, &sql).await? {
        if let [Some(kind), Some(name)] = row.as_slice() {
            match kind.as_str() {
                "relation" => own.relations.push(name.clone()),
                _ => own.functions.push(name.clone()),
            }
        }
    }
    Ok(own)
}
