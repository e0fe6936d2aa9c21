//! What may be read where, and when an answer may go out, so that nobody sees time run backwards.
//!
//! Guards promise 3. A follower shows a transaction before the writer does, and a writer that lost its waiters
//! shows one that no majority has. So a read begins only on a node that has everything acknowledged, and a
//! follower's answer goes out only when the writer shows all that the follower may have shown in it. Where the
//! writer's past is not yet on a majority (it took office, or restarted by itself, or the proxy has just met it)
//! nothing is read from it: that is *doubt*. Until the first doubt of a term is over, followers are *blind*.
//!
//! It lives for one writer's term and one database. It promises nothing about answers of another proxy or of one
//! that began anew from the nodes' facts: those are void. It knows no reads, only places.

use std::collections::{BTreeMap, VecDeque};

use crate::ids::{Epoch, Lsn, NodeId, UnitId};

/// What the writer must show before an answer goes out; the answer's own, taken when it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(UnitId);

impl Mark {
    /// The last unit that the answer may have shown.
    pub fn unit(self) -> UnitId {
        self.0
    }
}

/// See the module.
#[derive(Debug)]
pub struct Horizon {
    writer: NodeId,
    term: Epoch,
    /// The ends of units decoded that the writer does not show yet, as far as is known, in order.
    unshown: VecDeque<Lsn>,
    /// The ends of units decoded that no majority has, as far as is known, in order.
    unwritten: VecDeque<Lsn>,
    /// The end of the last unit decoded; at first where the term began.
    last: Lsn,
    decoded: Lsn,
    /// The last unit handed to each follower's applier: the most it may show.
    given: BTreeMap<NodeId, Lsn>,
    /// The last unit that each follower is known to show: the least it shows.
    applied: BTreeMap<NodeId, Lsn>,
    /// A majority has everything before this place; the writer was told, or is about to be.
    written: Lsn,
    /// The writer shows everything that ends no later than this, units or not.
    shown: Lsn,
    /// The last unit that may have been acknowledged, or shown to somebody.
    acknowledged: Lsn,
    /// Nothing is read from the writer until a majority has everything before this place and the writer shows it.
    doubt: Option<Lsn>,
    blind: bool,
    vacant: bool,
}

impl Horizon {
    /// A writer is met whose units are decoded from `start` on. Nothing is read before all that its log
    /// holds now, which ends at `end`, is on a majority and shown.
    pub fn begin(writer: NodeId, term: Epoch, start: Lsn, end: Lsn) -> Self {
        Self {
            writer,
            term,
            unshown: VecDeque::new(),
            unwritten: VecDeque::new(),
            last: start,
            decoded: start,
            given: BTreeMap::new(),
            applied: BTreeMap::new(),
            written: Lsn::default(),
            shown: Lsn::default(),
            acknowledged: start,
            doubt: Some(end.max(start)),
            blind: true,
            vacant: false,
        }
    }

    /// A unit was decoded. One that comes again, after the stream broke, is known already.
    pub fn decoded_unit(&mut self, end: Lsn) {
        if end > self.last {
            self.last = end;
            self.unshown.push_back(end);
            self.unwritten.push_back(end);
            self.acknowledge();
        }
        self.decoded_up_to(end);
    }

    /// Everything before `place` has been decoded.
    pub fn decoded_up_to(&mut self, place: Lsn) {
        self.decoded = self.decoded.max(place);
        self.settle();
    }

    /// Units up to this one are being handed to a follower's applier. To be told before they are.
    pub fn gave(&mut self, node: NodeId, unit: Lsn) {
        let given = self.given.entry(node).or_default();
        *given = (*given).max(unit);
    }

    /// A follower has and shows everything up to this unit. Of a node that has been a writer that is true only once
    /// the commits are ended that wait there for a report of an office that is over: an applier begins with it.
    pub fn applied(&mut self, node: NodeId, unit: Lsn) {
        let applied = self.applied.entry(node).or_default();
        *applied = (*applied).max(unit);
        self.gave(node, unit);
    }

    /// A follower is no longer read from; what it has must be told anew before it is.
    pub fn forget(&mut self, node: NodeId) {
        self.applied.remove(&node);
    }

    /// A majority has everything before `place`. To be told before the writer is.
    pub fn written(&mut self, place: Lsn) {
        self.written = self.written.max(place);
        self.acknowledge();
        self.settle();
    }

    fn acknowledge(&mut self) {
        while let Some(end) = self
            .unwritten
            .front()
            .copied()
            .filter(|end| *end <= self.written)
        {
            self.unwritten.pop_front();
            self.acknowledged = self.acknowledged.max(end);
        }
    }

    /// The writer shows every transaction of its own that ends no later than `place`: those of an earlier term, too,
    /// which may have waited there since.
    pub fn shown(&mut self, place: Lsn) {
        self.shown = self.shown.max(place);
        while self.unshown.front().is_some_and(|end| *end <= place) {
            self.unshown.pop_front();
        }
        self.settle();
    }

    fn settle(&mut self) {
        let Some(place) = self.doubt else { return };
        let known = self.decoded >= place && self.written >= place && self.shown >= place;
        if !self.vacant && known {
            self.doubt = None;
            self.blind = false;
        }
    }

    /// The writer may show more than a majority has, everything up to `end`: it restarted, or a wait was broken off.
    pub fn doubt(&mut self, end: Lsn) {
        self.doubt = self.doubt.max(Some(end));
    }

    /// The writer is lost; it may return.
    pub fn vacate(&mut self) {
        self.vacant = true;
    }

    /// The same writer goes on; its log ends at `end`. What was given out meanwhile is shown before it is read from.
    pub fn resume(&mut self, end: Lsn) {
        self.vacant = false;
        self.doubt(end.max(self.acknowledged));
        self.settle();
    }

    /// Whether a strict read may begin on this node now.
    pub fn may_read(&self, node: NodeId) -> bool {
        if node == self.writer {
            return !self.vacant && self.doubt.is_none();
        }
        let applied = self.applied.get(&node);
        !self.blind && applied.is_some_and(|unit| *unit >= self.acknowledged)
    }

    /// What must hold before an answer goes out that has just come from this node: asked when its last byte is
    /// there, since the node may have shown what was handed to it while it answered. A node that has become the
    /// writer meanwhile is one: its answer waits for the end of the doubt.
    pub fn answer(&self, node: NodeId) -> Mark {
        let given = self.given.get(&node).copied().unwrap_or_default();
        let lsn = if node == self.writer {
            Lsn::default()
        } else {
            given
        };
        Mark(UnitId {
            term: self.term,
            lsn,
        })
    }

    /// Whether the answer may go out. Where it says yes, `mark` counts as seen from then on.
    pub fn may_go(&mut self, mark: Mark) -> bool {
        let UnitId { term, lsn } = mark.0;
        if self.blind || term > self.term {
            return false;
        }
        if term < self.term || lsn == Lsn::default() {
            // All of an earlier term is in this one's past. (A writer's answer has no place.)
            return !self.vacant && self.doubt.is_none();
        }
        // A writer that restarted shows what no majority has.
        let safe = lsn <= self.written;
        if self.vacant {
            // It can't show anything; a majority's word is enough, since it shows as much before it is used again.
            if safe {
                self.acknowledged = self.acknowledged.max(lsn);
            }
            return safe;
        }
        // A node that has just joined may be ahead of the live stream.
        safe && lsn <= self.decoded && self.unshown.front().is_none_or(|end| *end > lsn)
    }

    /// Up to where the writer should be asked what it shows: none where that is known to be everything.
    pub fn to_ask(&self) -> Option<Lsn> {
        let doubt = self.doubt.filter(|place| *place > self.shown);
        self.unshown.back().copied().max(doubt)
    }

    /// Whether the writer may be used by sessions.
    pub fn trusts_writer(&self) -> bool {
        !self.vacant && self.doubt.is_none()
    }

    /// The end of the last unit decoded, or where the term began.
    pub fn last(&self) -> UnitId {
        UnitId {
            term: self.term,
            lsn: self.last,
        }
    }

    /// The last unit that somebody may know of.
    pub fn acknowledged(&self) -> UnitId {
        UnitId {
            term: self.term,
            lsn: self.acknowledged,
        }
    }

    /// The writer's term.
    pub fn term(&self) -> Epoch {
        self.term
    }
}

#[cfg(test)]
#[path = "horizon_tests.rs"]
mod tests;
