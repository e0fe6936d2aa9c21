//! Clients and what the proxy does for each of them: writes, reads anywhere, commits in flight when a node is lost.

use std::collections::BTreeSet;

use synapsedb::engine::council::words::{Part, Phase};
use synapsedb::engine::horizon::Mark;
use synapsedb::ids::NodeId;

use crate::orders::{Answer, Body};
use crate::proxy::{Link, Running};
use crate::server::Write;
use crate::world::{Net, Planted};

const CLIENTS: usize = 5;

/// What a client waits for.
#[derive(Clone, Debug)]
enum Waits {
    Nothing,
    /// Its COMMIT is with the writer.
    Commit {
        node: NodeId,
        write: Write,
    },
    /// Its COMMIT was with a writer that is lost.
    Truth {
        write: Write,
    },
    /// A node reads for it; what was certain when it asked.
    Rows {
        node: NodeId,
        must: BTreeSet<Write>,
        /// A planted fault: what might have been shown when it asked.
        early: Mark,
    },
    /// The rows are here, but may not go out yet.
    Horizon {
        node: NodeId,
        mark: Mark,
        must: BTreeSet<Write>,
        rows: BTreeSet<Write>,
    },
}

/// See the module.
pub struct Clients(Vec<Waits>);

impl Clients {
    pub fn new() -> Self {
        Self(vec![Waits::Nothing; CLIENTS])
    }

    /// Reads on a lost node begin again; whether a commit there is known will show.
    pub fn lost(&mut self, lost: NodeId) {
        for client in &mut self.0 {
            match *client {
                Waits::Commit { node, write } if node == lost => *client = Waits::Truth { write },
                Waits::Rows { node, .. } if node == lost => *client = Waits::Nothing,
                _ => {}
            }
        }
    }

    pub fn are_done(&self) -> bool {
        self.0.iter().all(|client| matches!(client, Waits::Nothing))
    }

    /// Whether nothing is under way on a node.
    pub fn are_done_with(&self, writer: NodeId) -> bool {
        self.0.iter().all(|client| match client {
            Waits::Commit { .. } | Waits::Truth { .. } => false,
            Waits::Rows { node, .. } => *node != writer,
            Waits::Nothing | Waits::Horizon { .. } => true,
        })
    }
}

impl Running {
    fn may_use_writer(&self, net: &Net) -> bool {
        let trusts = self.horizon.trusts_writer() || net.plants(Planted::NoDoubt);
        trusts && self.council.phase() == Phase::Serving && !self.held
    }

    /// One client does what it can.
    pub fn step_client(&mut self, begins: bool, link: &Link, net: &mut Net) {
        let at = net.chance.below(CLIENTS);
        match self.clients.0[at].clone() {
            Waits::Nothing if !begins => {}
            Waits::Nothing if net.chance.one_in(2) => self.begin_write(at, link, net),
            Waits::Nothing => self.begin_read(at, link, net),
            Waits::Truth { write } => {
                if self.may_use_writer(net) {
                    if self.decoded.contains(&write) {
                        net.acknowledge(write);
                    } else {
                        net.trace(&|| format!("  write {write} never happened"));
                        net.oracle.deny(write);
                    }
                    self.clients.0[at] = Waits::Nothing;
                }
            }
            Waits::Horizon {
                node,
                mark,
                must,
                rows,
            } => {
                let vacant = self.council.phase() == Phase::Vacant;
                let planted = net.plants(Planted::ShowAtOnce)
                    || vacant && net.plants(Planted::AnswerInVacancy);
                if self.horizon.may_go(mark) || planted {
                    net.trace(&|| format!("  a read of node {} goes out: {rows:?}", node.0));
                    net.oracle.answer(node, &must, &rows);
                    self.clients.0[at] = Waits::Nothing;
                }
            }
            Waits::Commit { .. } | Waits::Rows { .. } => {}
        }
    }

    fn begin_write(&mut self, at: usize, link: &Link, net: &mut Net) {
        let Some(writer) = self.council.writer() else {
            return;
        };
        if self.council.takes_writes() && self.may_use_writer(net) {
            let write = net.next_write();
            if link.send(net, writer, Body::Write(write), Some(at)) {
                net.trace(&|| format!("  client {at} writes {write} on node {}", writer.0));
                self.clients.0[at] = Waits::Commit {
                    node: writer,
                    write,
                };
            }
        }
    }

    fn begin_read(&mut self, at: usize, link: &Link, net: &mut Net) {
        let node = NodeId(net.chance.below(net.servers.len()));
        let writer = self.council.writer() == Some(node);
        let live = self.council.part(node) == Some(Part::Live);
        let may = if writer {
            self.may_use_writer(net)
        } else {
            live && (self.horizon.may_read(node) || net.plants(Planted::ReadBehind))
        };
        let must = net.oracle.certain();
        if may && link.send(net, node, Body::Read, Some(at)) {
            let early = self.horizon.answer(node);
            self.clients.0[at] = Waits::Rows { node, must, early };
        }
    }

    pub fn client_answered(&mut self, at: usize, from: NodeId, answer: Answer, net: &mut Net) {
        match (self.clients.0[at].clone(), answer) {
            (Waits::Commit { write, .. }, Answer::Done) => {
                net.acknowledge(write);
                self.clients.0[at] = Waits::Nothing;
            }
            (Waits::Rows { node, must, early }, Answer::Rows(rows)) => {
                debug_assert_eq!(node, from);
                let mark = if net.plants(Planted::MarkEarly) {
                    early
                } else {
                    self.horizon.answer(node)
                };
                self.clients.0[at] = Waits::Horizon {
                    node,
                    mark,
                    must,
                    rows,
                };
            }
            _ => {}
        }
    }
}
