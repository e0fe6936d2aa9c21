//! The cluster as everyone sees it: a snapshot, replaced whole, read without a lock.

use std::time::SystemTime;

use crate::ids::{Epoch, Lsn, NodeId};

/// A node's state (DESIGN.md, "Words").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Receives every unit and is close behind.
    InSync,
    /// Its applier is not connected, or it is far behind.
    CatchingUp,
    /// Found wrong; must be mended.
    Fenced,
    /// Can't be reached.
    Down,
}

impl Status {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::InSync, Self::CatchingUp, Self::Fenced, Self::Down];

    /// As `cluster_nodes` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::InSync => "in_sync",
            Self::CatchingUp => "catching_up",
            Self::Fenced => "fenced",
            Self::Down => "down",
        }
    }
}

/// One node.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Which.
    pub id: NodeId,
    /// Its configured name.
    pub name: String,
    /// Where it is.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Its state.
    pub status: Status,
    /// Whether it runs the writes.
    pub is_writer: bool,
    /// When it last answered a probe.
    pub last_heartbeat: Option<SystemTime>,
    /// Moving average of the probes' round trips, milliseconds.
    pub latency_ms: Option<f64>,
    /// WAL bytes of the writer that it lacks.
    pub lag_bytes: u64,
    /// How long it has lacked any, seconds.
    pub lag_seconds: f64,
    /// Indexes that it still has to build.
    pub indexes_owed: usize,
    /// Units waiting for it in memory.
    pub queue_units: usize,
    /// The same in bytes.
    pub queue_bytes: usize,
    /// Why it is fenced, or what it failed at.
    pub problem: Option<String>,
}

/// All nodes at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// In configured order.
    pub nodes: Vec<NodeView>,
    /// Runs the writes.
    pub writer: NodeId,
    /// This run of the proxy.
    pub epoch: Epoch,
    /// Whether commits can complete.
    pub quorum: bool,
    /// Nodes in sync, the writer among them.
    pub in_sync: usize,
    /// Everything before this place of the writer's log is on a majority.
    pub written: Lsn,
    /// Everything before this place is on every node that is owed it.
    pub everywhere: Lsn,
    /// Units that some node lacks.
    pub pending_units: usize,
    /// Databases replicated.
    pub databases: Vec<String>,
    /// Those of them whose stream sleeps.
    pub asleep: Vec<String>,
    /// Why commits wait, where no follower can apply a unit.
    pub held: Option<String>,
    /// A node that lacks something without which writes are not replicated.
    pub missing: Option<String>,
}

impl NodeView {
    /// Whether it answers and is owed what the writer makes.
    pub fn is_there(&self) -> bool {
        !matches!(self.status, Status::Down | Status::Fenced)
    }
}

impl View {
    /// How many nodes are there, the writer among them if it is.
    pub fn present(&self) -> usize {
        self.nodes.iter().filter(|node| node.is_there()).count()
    }

    /// Whether enough nodes are there for a majority.
    pub fn may_have_majority(&self) -> bool {
        self.present() > self.nodes.len() / 2
    }
}
