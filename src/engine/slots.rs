//! How far the slots of nodes that are not the writer may forget, and when a node's own copies are needed no more.
//!
//! Guards promise 2 across a change of writer (REPLICATION rules 1, 26, 27): whoever becomes writer must still hold
//! what some node that is owed it lacks. A follower's slot stands in its own log, whose places nobody else
//! knows; so a place there is *sampled*, together with the last unit that had been handed to that follower by the
//! time the answer came, and the slot moves there once every node that is owed has that unit.
//!
//! It does not know which nodes are owed; the council does, and says also whether copies allow a slot to move.

use std::collections::BTreeMap;

use crate::ids::{Lsn, NodeId, UnitId};

/// A place in a follower's log, and the last unit that may stand before it.
#[derive(Clone, Copy, Debug)]
struct Sample {
    local: Lsn,
    unit: UnitId,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Slots {
    samples: BTreeMap<NodeId, Sample>,
    /// The last unit that each follower's slot may have forgotten.
    forgotten: BTreeMap<NodeId, UnitId>,
}

impl Slots {
    /// A follower is met that has everything up to `place`: its slot stands nowhere behind that.
    pub fn met(&mut self, node: NodeId, place: UnitId) {
        let forgotten = self.forgotten.entry(node).or_default();
        *forgotten = (*forgotten).max(place);
        self.samples.remove(&node);
    }

    /// A follower's log ended at `local`; since then units up to `unit` have been handed to it, and no others before.
    pub fn sampled(&mut self, node: NodeId, local: Lsn, unit: UnitId) {
        self.samples.entry(node).or_insert(Sample { local, unit });
    }

    /// Whether a new sample of the node is wanted.
    pub fn wants_sample(&self, node: NodeId) -> bool {
        !self.samples.contains_key(&node)
    }

    /// Where the follower's slot is to move, if every node that is owed has everything up to `least`. From then on
    /// it counts as moved.
    pub fn movable(&mut self, node: NodeId, least: UnitId) -> Option<Lsn> {
        let sample = *self.samples.get(&node)?;
        if sample.unit > least {
            return None;
        }
        self.samples.remove(&node);
        let forgotten = self.forgotten.entry(node).or_default();
        *forgotten = (*forgotten).max(sample.unit);
        Some(sample.local)
    }

    /// Whether a node that has everything up to `place` durable lacks nothing that some slot has forgotten; the
    /// writer's has forgotten what comes before `flush`. Its copies may go then.
    pub fn settled(&self, place: UnitId, flush: UnitId) -> bool {
        place >= flush && self.forgotten.values().all(|unit| place >= *unit)
    }

    /// Another writer: samples that were taken before say nothing any more.
    pub fn new_term(&mut self) {
        self.samples.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    fn unit(lsn: u64) -> UnitId {
        UnitId {
            term: Epoch(1),
            lsn: Lsn(lsn),
        }
    }

    #[test]
    fn a_slot_moves_only_where_all_have_what_it_forgets() {
        let mut slots = Slots::default();
        let node = NodeId(1);
        slots.met(node, unit(5));
        assert!(slots.wants_sample(node));
        slots.sampled(node, Lsn(900), unit(20));
        slots.sampled(node, Lsn(950), unit(30));
        assert_eq!(slots.movable(node, unit(19)), None);
        assert!(slots.settled(unit(5), unit(5)));
        assert_eq!(slots.movable(node, unit(20)), Some(Lsn(900)));
        assert!(!slots.settled(unit(19), unit(5)));
        assert!(slots.settled(unit(20), unit(20)));
        assert!(!slots.settled(unit(20), unit(21)));
        assert_eq!(slots.movable(node, unit(99)), None);
    }
}
