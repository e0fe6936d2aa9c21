//! `GET /metrics`: what the proxy counts, in Prometheus' text format.
//!
//! Counters and histograms are registered where they are counted, by handles that cost an atomic
//! addition; gauges are set here, from snapshots, when somebody asks. Every family is described in
//! [`FAMILIES`], and a test holds the code and docs/operating.md to it.

use std::time::Duration;

use metrics::Unit;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::status::Around;
use crate::cluster::view::{Status, View};

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// As it is now.
    Gauge,
    /// How values are distributed, over these bounds.
    Histogram(&'static [f64]),
}

/// One family.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// In what it counts.
    pub unit: Unit,
    /// One line for the one who reads it.
    pub help: &'static str,
}

/// Bounds for durations: from a tenth of a millisecond to a time at which somebody was called.
const SECONDS: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 30.0,
];
/// Bounds for how many units go into one transaction.
const UNITS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

const fn family(name: &'static str, kind: Kind, unit: Unit, help: &'static str) -> Family {
    Family {
        name,
        kind,
        unit,
        help,
    }
}

use Kind::{Counter, Gauge, Histogram};

/// All families.
#[rustfmt::skip]
pub const FAMILIES: &[Family] = &[
    family("synapsedb_info", Gauge, Unit::Count, "Always 1; the label says which version runs."),
    family("synapsedb_uptime_seconds", Gauge, Unit::Seconds, "Time since the proxy started."),
    family("synapsedb_resident_bytes", Gauge, Unit::Bytes, "Memory of the proxy's process."),
    // Clients.
    family("synapsedb_clients_connected", Gauge, Unit::Count, "Clients connected."),
    family("synapsedb_clients_limit", Gauge, Unit::Count, "The most clients there may be (limits.max_clients)."),
    family("synapsedb_logins_total", Counter, Unit::Count, "Clients let in."),
    family("synapsedb_logins_refused_total", Counter, Unit::Count, "Clients not let in, by the SQLSTATE they were told."),
    family("synapsedb_cancels_total", Counter, Unit::Count, "Cancel requests that named a session."),
    family("synapsedb_statements_total", Counter, Unit::Count, "Query and Bind messages relayed, or answered by the proxy itself."),
    family("synapsedb_transactions_total", Counter, Unit::Count, "Transactions that ended, implicit ones included."),
    family("synapsedb_client_received_bytes_total", Counter, Unit::Bytes, "Bytes received from clients."),
    family("synapsedb_client_sent_bytes_total", Counter, Unit::Bytes, "Bytes received from nodes for clients."),
    family("synapsedb_errors_total", Counter, Unit::Count, "Errors told to clients, by the class of their SQLSTATE (its first two characters)."),
    family("synapsedb_commit_seconds", Histogram(SECONDS), Unit::Seconds, "From a COMMIT sent to a node until its answer: the wait for the majority."),
    family("synapsedb_autocommit_seconds", Histogram(SECONDS), Unit::Seconds, "From a statement outside a transaction that may write until its answer."),
    family("synapsedb_relaxed_writes_total", Counter, Unit::Count, "Transactions that may have written under the user's own synchronous_commit of local or off: their commits waited for nobody."),
    // Reads.
    family("synapsedb_reads_total", Counter, Unit::Count, "Reads that any node could have answered, by the node that did."),
    family("synapsedb_read_wait_seconds", Histogram(SECONDS), Unit::Seconds, "How long a follower's answer was held until the writer showed what was in it; answers that were not held are not counted."),
    family("synapsedb_reruns_total", Counter, Unit::Count, "Reads begun on a follower and run again, by why: wrote (it writes), type (its values have types with other OIDs there), lost (the node), blocks (the node's applier waited for it), late (the writer did not show the same in time)."),
    family("synapsedb_sessions_at_change_total", Counter, Unit::Count, "Sessions that met a change or loss of the writer, or of their connection to it, by outcome: moved (nothing was under way), again (a read was run again), failed (40001), unknown (08007), ended (57P01)."),
    // Connections to nodes.
    family("synapsedb_pool_connections", Gauge, Unit::Count, "Connections to a node for clients' work, used and idle."),
    family("synapsedb_pool_waiting", Gauge, Unit::Count, "Sessions that wait for a connection to a node."),
    family("synapsedb_pool_waits_total", Counter, Unit::Count, "Times a session had to wait for a connection."),
    family("synapsedb_pool_timeouts_total", Counter, Unit::Count, "Times it waited in vain."),
    // The cluster.
    family("synapsedb_epoch", Gauge, Unit::Count, "Grows at each start of a proxy and each change of writer."),
    family("synapsedb_healthy", Gauge, Unit::Count, "1 where a write would be acknowledged now, as /healthz says."),
    family("synapsedb_quorum", Gauge, Unit::Count, "1 where enough nodes are at work for commits to complete."),
    family("synapsedb_nodes", Gauge, Unit::Count, "Nodes configured."),
    family("synapsedb_nodes_in_sync", Gauge, Unit::Count, "Nodes at work, the writer among them."),
    family("synapsedb_node_status", Gauge, Unit::Count, "1 for the status that a node has, 0 for the others."),
    family("synapsedb_node_in_sync", Gauge, Unit::Count, "1 where a node is in sync."),
    family("synapsedb_node_is_writer", Gauge, Unit::Count, "1 for the node that runs the writes."),
    family("synapsedb_node_latency_seconds", Gauge, Unit::Seconds, "Average of a node's probes' round trips."),
    family("synapsedb_probe_seconds", Histogram(SECONDS), Unit::Seconds, "Round trips of a node's probes."),
    family("synapsedb_probe_failures_total", Counter, Unit::Count, "Probes that a node did not answer."),
    family("synapsedb_node_lag_bytes", Gauge, Unit::Bytes, "Bytes of the writer's log that a node lacks."),
    family("synapsedb_node_lag_seconds", Gauge, Unit::Seconds, "How long a node has lacked any."),
    // Replication.
    family("synapsedb_units_total", Counter, Unit::Count, "Committed transactions read from the writer's log."),
    family("synapsedb_unit_bytes_total", Counter, Unit::Bytes, "Their rows in the proxy's memory."),
    family("synapsedb_catalog_loads_total", Counter, Unit::Count, "Times the names of a database were read again, after DDL."),
    family("synapsedb_databases_asleep", Gauge, Unit::Count, "Databases that are empty and idle, and whose log is not read until somebody comes."),
    family("synapsedb_pending_units", Gauge, Unit::Count, "Committed transactions that some node still lacks."),
    family("synapsedb_queue_units", Gauge, Unit::Count, "Transactions waiting in memory for a follower."),
    family("synapsedb_queue_bytes", Gauge, Unit::Bytes, "The same in bytes; at replication.queue_max_mib the follower is fenced."),
    family("synapsedb_node_indexes_owed", Gauge, Unit::Count, "Indexes that a node still has to build."),
    family("synapsedb_apply_seconds", Histogram(SECONDS), Unit::Seconds, "From units taken from a follower's queue until they are durable there."),
    family("synapsedb_apply_batch_units", Histogram(UNITS), Unit::Count, "Units merged into one transaction on a follower."),
    family("synapsedb_units_applied_ahead_total", Counter, Unit::Count, "Large transactions that a follower applied while the writer still ran them."),
    family("synapsedb_stream_breaks_total", Counter, Unit::Count, "Times a stream from the writer broke and was opened again."),
    family("synapsedb_failovers_total", Counter, Unit::Count, "Times the writer was lost, if only for a moment, and met anew or followed by another."),
    family("synapsedb_fenced_total", Counter, Unit::Count, "Nodes taken out because they could differ."),
    family("synapsedb_held", Gauge, Unit::Count, "1 where commits wait because no follower can apply a unit."),
    family("synapsedb_held_units_total", Counter, Unit::Count, "Units that no follower could apply."),
];

/// Counters with labels are there once something has happened; these are there, at 0, from the start.
const FROM_ZERO: [&str; 14] = [
    "synapsedb_logins_total",
    "synapsedb_cancels_total",
    "synapsedb_statements_total",
    "synapsedb_transactions_total",
    "synapsedb_client_received_bytes_total",
    "synapsedb_client_sent_bytes_total",
    "synapsedb_relaxed_writes_total",
    "synapsedb_pool_waits_total",
    "synapsedb_pool_timeouts_total",
    "synapsedb_units_total",
    "synapsedb_stream_breaks_total",
    "synapsedb_failovers_total",
    "synapsedb_fenced_total",
    "synapsedb_held_units_total",
];

/// How often observations are gathered into their histograms, so that they take no memory.
pub const UPKEEP: Duration = Duration::from_secs(5);

/// Makes this process count, once, before anything registers a handle. `None` where another recorder is
/// at work already.
pub fn install() -> Option<PrometheusHandle> {
    let mut builder = PrometheusBuilder::new();
    for family in FAMILIES {
        if let Histogram(bounds) = family.kind {
            let name = Matcher::Full(family.name.to_owned());
            // Only an empty list is refused.
            builder = builder.set_buckets_for_metric(name, bounds).ok()?;
        }
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).ok()?;
    for family in FAMILIES {
        let (name, unit, help) = (family.name, family.unit, family.help);
        match family.kind {
            Counter => metrics::describe_counter!(name, unit, help),
            Gauge => metrics::describe_gauge!(name, unit, help),
            Histogram(_) => metrics::describe_histogram!(name, unit, help),
        }
    }
    for name in FROM_ZERO {
        metrics::counter!(name).increment(0);
    }
    // Descriptions take effect with it.
    handle.run_upkeep();
    Some(handle)
}

/// Sets the gauges to what is true now.
#[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
pub fn refresh(view: &View, around: &Around, healthy: bool) {
    let set = |name: &'static str, value: f64| metrics::gauge!(name).set(value);
    metrics::gauge!("synapsedb_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    set("synapsedb_uptime_seconds", around.uptime.as_secs_f64());
    if let Some(bytes) = resident_bytes() {
        set("synapsedb_resident_bytes", bytes);
    }
    set("synapsedb_clients_connected", around.clients.0 as f64);
    set("synapsedb_clients_limit", around.clients.1 as f64);
    set("synapsedb_epoch", view.epoch.0 as f64);
    set("synapsedb_healthy", flag(healthy));
    set("synapsedb_quorum", flag(view.quorum));
    set("synapsedb_nodes", view.nodes.len() as f64);
    set("synapsedb_nodes_in_sync", view.in_sync as f64);
    set("synapsedb_pending_units", view.pending_units as f64);
    set("synapsedb_databases_asleep", view.asleep.len() as f64);
    set("synapsedb_held", flag(view.held.is_some()));
    nodes(view);
    pools(view, around);
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
fn nodes(view: &View) {
    for node in &view.nodes {
        let set = |name: &'static str, value: f64| {
            metrics::gauge!(name, "node" => node.name.clone()).set(value);
        };
        set(
            "synapsedb_node_in_sync",
            flag(node.status == Status::InSync),
        );
        set("synapsedb_node_is_writer", flag(node.is_writer));
        let latency = node.latency_ms.map_or(f64::NAN, |ms| ms / 1000.0);
        set("synapsedb_node_latency_seconds", latency);
        set("synapsedb_node_lag_bytes", node.lag_bytes as f64);
        set("synapsedb_node_lag_seconds", node.lag_seconds);
        set("synapsedb_node_indexes_owed", node.indexes_owed as f64);
        set("synapsedb_queue_units", node.queue_units as f64);
        set("synapsedb_queue_bytes", node.queue_bytes as f64);
        for status in Status::ALL {
            let name = node.name.clone();
            metrics::gauge!("synapsedb_node_status", "node" => name, "status" => status.name())
                .set(flag(node.status == status));
        }
    }
}

/// Summed up by node: users and databases may be many.
#[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
fn pools(view: &View, around: &Around) {
    for node in &view.nodes {
        let (mut used, mut idle, mut waiting) = (0, 0, 0);
        for pool in around.pools.iter().filter(|p| p.name.node == node.id) {
            used += pool.size.saturating_sub(pool.idle);
            idle += pool.idle;
            waiting += pool.waiting;
        }
        for (state, count) in [("used", used), ("idle", idle)] {
            let name = node.name.clone();
            metrics::gauge!("synapsedb_pool_connections", "node" => name, "state" => state)
                .set(count as f64);
        }
        metrics::gauge!("synapsedb_pool_waiting", "node" => node.name.clone()).set(waiting as f64);
    }
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// What the system says this process takes.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::http::{health, status};

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("our own folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }

    /// Every name that the code counts under.
    fn counted() -> BTreeSet<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        sources(&root.join("src"), &mut files);
        let mut names = BTreeSet::new();
        for file in files
            .iter()
            .filter(|file| !file.ends_with("http/metrics.rs"))
        {
            let text = std::fs::read_to_string(file).expect("readable");
            for macro_name in ["counter!(", "gauge!(", "histogram!("] {
                for rest in text.split(macro_name).skip(1) {
                    let name = rest.trim_start().strip_prefix('"').unwrap_or_default();
                    if let Some((name, _)) = name.split_once('"') {
                        names.insert(name.to_owned());
                    }
                }
            }
        }
        names
    }

    #[test]
    fn every_family_is_described_once_and_in_the_documents() {
        let names: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        let unique: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(unique.len(), names.len());
        for name in counted() {
            assert!(unique.contains(name.as_str()), "{name} has no description");
        }
        let page = include_str!("../../docs/operating.md");
        for family in FAMILIES {
            let name = family.name;
            assert!(
                page.contains(&format!("`{name}`")),
                "docs/operating.md lacks {name}"
            );
            assert!(family.help.ends_with('.'), "{name}");
            assert_eq!(family.kind == Counter, name.ends_with("_total"), "{name}");
        }
    }

    #[test]
    fn what_is_rendered_names_every_gauge_with_its_help() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            refresh(&health::tests::good(), &status::tests::around(), true);
        });
        let text = handle.render();
        for family in FAMILIES.iter().filter(|family| family.kind == Gauge) {
            assert!(
                text.contains(&format!("# TYPE {} gauge", family.name)),
                "{text}"
            );
        }
        assert!(
            text.contains("synapsedb_pool_connections{node=\"node1\",state=\"used\"} 2"),
            "{text}"
        );
        assert!(
            text.contains("synapsedb_node_status{node=\"node2\",status=\"in_sync\"} 1"),
            "{text}"
        );
    }
}
