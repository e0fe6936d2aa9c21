//! Where a session may read: what it must not miss, which nodes have that, and which of them it asks.
//!
//! It guards the first half of promise 3: a read begins only on a node that has every write acknowledged before, as
//! far as the session's `synapsedb.read_consistency` says so. A read that finds nobody wants nothing of a lock.

use std::sync::Arc;

use crate::cluster::reads::Reads;
use crate::cluster::sight::Sight;
use crate::config::Consistency;
use crate::engine::balance::{Candidate, choose};
use crate::ids::{Lsn, NodeId, Tables};
use crate::node::pool::{Pool, Pools};

/// More nodes are not looked at.
const NODES_MAX: usize = 16;

/// A session's ways to the nodes that it may read from.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Ways {
    reads: Option<Arc<Reads>>,
    sight: Option<Arc<Sight>>,
    pools: Vec<Option<Arc<Pool>>>,
    dice: u64,
    /// The node that answered last.
    last: Option<NodeId>,
    /// The batch in hand goes to the writer.
    barred: bool,
    /// Every read of the session's goes to the writer: its transactions are above READ COMMITTED by themselves, or the
    /// configuration says so.
    never: bool,
    /// Its read-only transactions begin at the writer: one had to be given up.
    pub(super) no_blocks: bool,
    /// Up to where the session has written or seen.
    place: Lsn,
    /// It has seen what the writer may not show yet.
    ahead: bool,
    /// How often what is in hand was begun anew.
    pub(super) again: u32,
}

/// A node that was chosen.
pub enum Chosen {
    /// A follower.
    Follower(NodeId),
    /// The writer, or nobody else.
    Writer,
}

impl Ways {
    /// A session's, by the number of the session.
    pub fn new(reads: Option<&Arc<Reads>>, database: &str, session: u64) -> Self {
        Self {
            sight: reads.and_then(|reads| reads.sight(database)),
            reads: reads.cloned(),
            pools: Vec::new(),
            // Never 0, which would stay so.
            dice: session.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            last: None,
            barred: false,
            never: false,
            no_blocks: false,
            place: Lsn::default(),
            ahead: false,
            again: 0,
        }
    }

    /// What there is to be known of nodes.
    pub fn reads(&self) -> Option<&Arc<Reads>> {
        self.reads.as_ref()
    }

    /// What is known of the database's units now.
    pub fn sight(&mut self, database: &str) -> Option<&Arc<Sight>> {
        if self.sight.as_ref().is_none_or(|sight| sight.is_closed()) {
            self.sight = self.reads.as_ref().and_then(|reads| reads.sight(database));
        }
        self.sight.as_ref()
    }

    /// Whether anything may be read elsewhere than from the writer now.
    pub fn are_open(&self) -> bool {
        self.reads.is_some() && !self.barred && !self.never
    }

    /// What is in hand goes to the writer.
    pub fn bar(&mut self) {
        self.barred = true;
    }

    /// All goes to the writer from now on.
    pub fn close(&mut self) {
        self.never = true;
    }

    /// Whether all goes to the writer.
    pub fn are_closed(&self) -> bool {
        self.never
    }

    /// The writer's connection is there, or can't be had.
    pub fn at_writer(&mut self) {
        self.barred = false;
        self.again = 0;
    }

    /// The session has had a transaction of its own acknowledged.
    pub fn wrote(&mut self) {
        if let Some(sight) = &self.sight {
            self.place = self.place.max(sight.written());
        }
    }

    /// The session has seen what a follower may have shown up to here.
    pub fn saw(&mut self, horizon: Lsn) {
        self.ahead |= horizon > self.place;
        self.place = self.place.max(horizon);
    }

    /// Whether the session may have seen what the writer does not show yet.
    pub fn is_ahead(&self) -> bool {
        self.ahead
    }

    /// It is no longer so; gives up to where it was.
    pub fn caught_up(&mut self) -> Lsn {
        self.ahead = false;
        self.place
    }

    /// Whether a follower has what must not be missed of these tables.
    pub fn is_fit(&self, node: NodeId, tables: &Tables, consistency: Consistency) -> bool {
        let (Some(reads), Some(sight)) = (&self.reads, &self.sight) else {
            return false;
        };
        match consistency {
            Consistency::Eventual => sight.is_trusted(node),
            Consistency::Session => {
                !reads.relaxed.any() && sight.is_fresh(node, tables, self.place)
            }
            Consistency::Strict => {
                !reads.relaxed.any() && sight.is_fresh(node, tables, sight.written())
            }
        }
    }

    /// The healthiest of two picked at random of the nodes that may answer. `writer` is one of them where it is given,
    /// `without` never is.
    pub fn choose(
        &mut self,
        pools: &Pools,
        tables: &Tables,
        consistency: Consistency,
        writer: (NodeId, bool),
        without: &[NodeId],
    ) -> Chosen {
        let Some(reads) = self.reads.clone() else {
            return Chosen::Writer;
        };
        let nobody = Candidate {
            in_flight: 0,
            latency_ms: 0.0,
            wait_ms: 0.0,
        };
        let mut found = [(NodeId(0), nobody); NODES_MAX];
        let mut count = 0;
        for (node, load) in reads.loads.iter() {
            let may = if node == writer.0 {
                writer.1 && load.serves()
            } else {
                load.serves() && !without.contains(&node) && self.is_fit(node, tables, consistency)
            };
            if may && count < NODES_MAX {
                let waits = node != writer.0
                    && consistency == Consistency::Strict
                    && self
                        .sight
                        .as_ref()
                        .is_some_and(|sight| sight.may_hide(node));
                found[count] = (node, load.candidate(pools.in_flight(node), waits));
                count += 1;
            }
        }
        let mut candidates = [nobody; NODES_MAX];
        for (candidate, (_, one)) in candidates.iter_mut().zip(&found[..count]) {
            *candidate = *one;
        }
        let dice = self.roll();
        let last = found[..count]
            .iter()
            .position(|(node, _)| Some(*node) == self.last);
        let chosen = choose(&candidates[..count], last, dice).map(|at| found[at].0);
        self.last = chosen;
        match chosen {
            Some(node) if node != writer.0 => Chosen::Follower(node),
            _ => Chosen::Writer,
        }
    }

    /// The session's pool of read-only connections to a node.
    pub fn pool(
        &mut self,
        pools: &Pools,
        node: NodeId,
        user: &str,
        database: &str,
    ) -> Option<Arc<Pool>> {
        if self.pools.len() <= node.0 {
            self.pools.resize(node.0 + 1, None);
        }
        let place = self.pools.get_mut(node.0)?;
        if place.is_none() {
            *place = pools.read_pool(node, user, database).ok();
        }
        place.clone()
    }

    /// Marsaglia's xorshift: even enough to share work out, and free.
    fn roll(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice >> 11
    }
}
