//! `GET /status`: the cluster at this moment, as JSON and for the page.
//!
//! Made from snapshots only; asking for it costs the cluster nothing. The names of its fields are a
//! promise: they may be added to, not changed.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::health;
use crate::cluster::view::{NodeView, View};
use crate::ids::NodeId;
use crate::node::pool::PoolStatus;

/// Everything an operator may want to know first.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The program's.
    pub version: &'static str,
    /// Seconds since the program started.
    pub uptime_s: u64,
    /// Whether a write would be acknowledged now.
    pub healthy: bool,
    /// Why not, where it would not.
    pub reason: Option<String>,
    /// Grows at each start of a proxy and each change of writer.
    pub epoch: u64,
    /// The name of the node that runs the writes.
    pub writer: String,
    /// Whether enough nodes are at work for commits to complete.
    pub quorum: bool,
    /// How many nodes are, the writer among them.
    pub in_sync: usize,
    /// All nodes, as configured.
    pub nodes: Vec<Node>,
    /// The databases that are replicated.
    pub databases: Vec<String>,
    /// Those of them that are empty and idle, and whose log is not read until somebody comes.
    pub asleep: Vec<String>,
    /// Committed transactions that some node still lacks.
    pub pending_units: usize,
    /// The transaction that no follower can apply, in the followers' words; commits wait for it.
    pub held: Option<String>,
    /// Up to here the writer's log is on a majority.
    pub written_lsn: String,
    /// Up to here it is on every node that is owed it.
    pub everywhere_lsn: String,
    /// Clients of the proxy.
    pub clients: Clients,
    /// Connections to nodes for clients' work.
    pub pools: Vec<Pool>,
}

/// One node.
#[derive(Debug, Serialize)]
pub struct Node {
    /// Its place in the configuration, from 1.
    pub id: usize,
    /// Its name.
    pub name: String,
    /// Where it is.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `in_sync`, `catching_up`, `fenced`, `drained` or `down`.
    pub status: &'static str,
    /// Whether it runs the writes.
    pub is_writer: bool,
    /// Seconds since it last answered a probe.
    pub heartbeat_age_s: Option<f64>,
    /// Average of its probes' round trips.
    pub latency_ms: Option<f64>,
    /// Connections of clients' work on it that are in use.
    pub in_flight: usize,
    /// Bytes of the writer's log that it lacks.
    pub lag_bytes: u64,
    /// How long it has lacked any.
    pub lag_seconds: f64,
    /// Transactions waiting for it in the proxy's memory.
    pub queue_units: usize,
    /// The same in bytes.
    pub queue_bytes: usize,
    /// Indexes that it still has to build.
    pub indexes_owed: usize,
    /// Why it is fenced, or what it failed at last.
    pub problem: Option<String>,
}

/// Clients.
#[derive(Debug, Serialize)]
pub struct Clients {
    /// Connected now.
    pub connected: usize,
    /// The most there may be.
    pub limit: usize,
}

/// One pool.
#[derive(Debug, Serialize)]
pub struct Pool {
    /// The node's name.
    pub node: String,
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// Open connections.
    pub open: usize,
    /// Idle ones among them.
    pub idle: usize,
    /// Sessions that wait for one.
    pub waiting: usize,
}

/// What the report is made from, beside the view.
#[derive(Debug)]
pub struct Around {
    /// Since the program started.
    pub uptime: Duration,
    /// The wall clock.
    pub now: SystemTime,
    /// Connected now, and the most there may be.
    pub clients: (usize, usize),
    /// Every pool.
    pub pools: Vec<PoolStatus>,
}

impl Report {
    /// From snapshots taken at about the same time.
    pub fn of(view: &View, around: &Around) -> Self {
        let health = health::judge(view);
        let (connected, limit) = around.clients;
        let name = |node: NodeId| view.nodes[node.0].name.clone();
        let pool = |pool: &PoolStatus| Pool {
            node: name(pool.name.node),
            user: pool.name.user.clone(),
            database: pool.name.database.clone(),
            open: pool.size,
            idle: pool.idle,
            waiting: pool.waiting,
        };
        Self {
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: around.uptime.as_secs(),
            healthy: health.is_ok(),
            reason: health.err(),
            epoch: view.epoch.0,
            writer: name(view.writer),
            quorum: view.quorum,
            in_sync: view.in_sync,
            nodes: view.nodes.iter().map(|n| node(n, around)).collect(),
            databases: view.databases.clone(),
            asleep: view.asleep.clone(),
            pending_units: view.pending_units,
            held: view.held.clone(),
            written_lsn: view.written.to_string(),
            everywhere_lsn: view.everywhere.to_string(),
            clients: Clients { connected, limit },
            pools: around.pools.iter().map(pool).collect(),
        }
    }
}

fn node(view: &NodeView, around: &Around) -> Node {
    let age = view
        .last_heartbeat
        .and_then(|at| around.now.duration_since(at).ok());
    Node {
        id: view.id.0 + 1,
        name: view.name.clone(),
        host: view.host.clone(),
        port: view.port,
        status: view.status.name(),
        is_writer: view.is_writer,
        heartbeat_age_s: age.map(|age| age.as_secs_f64()),
        latency_ms: view.latency_ms,
        in_flight: in_flight(&around.pools, view.id),
        lag_bytes: view.lag_bytes,
        lag_seconds: view.lag_seconds,
        queue_units: view.queue_units,
        queue_bytes: view.queue_bytes,
        indexes_owed: view.indexes_owed,
        problem: view.problem.clone(),
    }
}

/// Connections of a node that are in sessions' hands.
pub fn in_flight(pools: &[PoolStatus], node: NodeId) -> usize {
    let of_node = pools.iter().filter(|pool| pool.name.node == node);
    of_node
        .map(|pool| pool.size.saturating_sub(pool.idle))
        .sum()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::node::pool::PoolName;

    /// One pool on the first node, two of its three connections at work.
    pub fn around() -> Around {
        let name = PoolName {
            node: NodeId(0),
            user: "ann".to_owned(),
            database: "app".to_owned(),
        };
        Around {
            uptime: Duration::from_secs(90),
            now: SystemTime::UNIX_EPOCH,
            clients: (4, 1000),
            pools: vec![PoolStatus {
                name,
                size: 3,
                idle: 1,
                waiting: 5,
            }],
        }
    }

    #[test]
    fn the_report_says_what_the_view_holds() {
        let mut view = health::tests::good();
        view.nodes[2].problem = Some("a row was missing".to_owned());
        let report = Report::of(&view, &around());
        let json = serde_json::to_value(&report).expect("plain data");
        assert_eq!(json["epoch"], 7);
        assert_eq!(json["writer"], "node1");
        assert_eq!(json["healthy"], true);
        assert_eq!(json["nodes"][0]["in_flight"], 2);
        assert_eq!(json["nodes"][1]["status"], "in_sync");
        assert_eq!(json["nodes"][2]["problem"], "a row was missing");
        assert_eq!(json["pools"][0]["waiting"], 5);
        assert_eq!(json["clients"]["connected"], 4);
    }
}
