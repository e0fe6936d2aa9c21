//! What may be confirmed to a writer: the majority as *write*, everybody as *flush*.
//!
//! Guards promise 1 (an acknowledged write is on a majority) and REPLICATION rules 1 and 2. Several
//! databases have a stream each, while the writer's commits wait by LSN alone, so every stream
//! reports the minimum over all of them. A stream that sleeps is left out of it: nothing is committed in its
//! database until it is back in.
//!
//! It must never report a place past a unit without its majority as written, nor past a unit that
//! some node still owed its data lacks as flushed. A follower whose place in the stream is not known counts for
//! nothing and, where it is owed its data, holds the flush where it is. It lives for one writer's term. It knows nothing of payloads, sockets or time:
//! the shell tells it of decoded units, of how far a stream has read, and of what each follower has
//! made durable.

use std::collections::{BTreeMap, VecDeque};

use crate::ids::{Lsn, NodeId};

/// Names one database's stream; any dense number.
pub type StreamId = usize;

/// What is sent to the writer on every stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// A majority of all configured nodes has everything before this place durable.
    pub write: Lsn,
    /// Every node that is owed its data has everything before this place durable.
    pub flush: Lsn,
    /// Grows whenever `write` gets past the end of a unit; no greater than `write`.
    pub unit: Lsn,
    /// A unit that a majority lacks begins right at `write`, so that another report is about to follow.
    pub bounded: bool,
}

/// How a follower counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its applied units count for the majority, and it holds the flush back.
    InSync,
    /// Found wrong: it no longer counts for the majority, but still holds the flush back, until it is
    /// recorded where a restarted proxy finds it that it is owed nothing.
    Leaving,
    /// It counts for nothing but its place in the total, and holds nothing back.
    Out,
}

/// A unit known to the writer's stream and not yet with everybody.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// Where its commit record begins: a report up to here releases every commit before it.
    commit: Lsn,
    /// Where its commit record ends: a report up to here releases its own commit.
    end: Lsn,
}

#[derive(Debug, Default)]
struct Stream {
    /// Where it began: nobody lacks anything before.
    start: Lsn,
    /// Everything before this place has been decoded.
    decoded: Lsn,
    /// In commit order; the front is the oldest that somebody may lack.
    pending: VecDeque<Pending>,
    /// Each follower's last durable unit, by the end of its commit record.
    applied: BTreeMap<NodeId, Lsn>,
    /// The end of the last unit that a majority has.
    passed: Lsn,
    /// Whoever has said so sees to it that no unit comes to be until it is woken.
    asleep: bool,
}

impl Stream {
    /// The place before which a follower lacks nothing, by its last durable unit; none where that is not known.
    fn place(&self, node: NodeId) -> Option<Lsn> {
        self.applied.get(&node).map(|applied| self.has(*applied))
    }

    /// The place before which `applied` (the end of the last durable unit) leaves nothing missing.
    fn has(&self, applied: Lsn) -> Lsn {
        let missing = self.pending.partition_point(|unit| unit.end <= applied);
        self.pending
            .get(missing)
            .map_or(self.decoded, |unit| unit.commit)
    }

    /// The end of the last pending unit that ends no later than `place`.
    fn last_end(&self, place: Lsn) -> Lsn {
        let passed = self.pending.partition_point(|unit| unit.end <= place);
        let last = passed.checked_sub(1).and_then(|at| self.pending.get(at));
        last.map_or(Lsn::default(), |unit| unit.end)
    }

    /// Whether a pending unit's commit record begins at `place`.
    fn begins_at(&self, place: Lsn) -> bool {
        let found = self
            .pending
            .binary_search_by_key(&place, |unit| unit.commit);
        found.is_ok()
    }

    /// Forgets the units that everybody who is owed them has.
    fn prune(&mut self, everybody: Lsn) {
        while self
            .pending
            .front()
            .is_some_and(|unit| unit.end <= everybody)
        {
            self.pending.pop_front();
        }
    }
}

/// The writer's streams, the followers' places in them, and the report that follows.
#[derive(Debug)]
pub struct Confirmer {
    /// Configured nodes, the writer among them.
    nodes: usize,
    standing: BTreeMap<NodeId, Standing>,
    streams: BTreeMap<StreamId, Stream>,
    /// Reports only grow: a follower that falls out or a stream that is added takes nothing back.
    last: Report,
}

impl Confirmer {
    /// For a cluster of `nodes` configured nodes with these followers (every node but the writer).
    pub fn new(nodes: usize, followers: impl IntoIterator<Item = (NodeId, Standing)>) -> Self {
        let standing: BTreeMap<_, _> = followers.into_iter().collect();
        debug_assert!(standing.len() < nodes);
        Self {
            nodes,
            standing,
            streams: BTreeMap::new(),
            last: Report::default(),
        }
    }

    /// A stream that will decode everything after `start`, and the followers' places in it. A follower whose place
    /// is not known yet comes to count when it is told of by [`Confirmer::applied`].
    pub fn add_stream(&mut self, id: StreamId, start: Lsn, places: &BTreeMap<NodeId, Lsn>) {
        let stream = Stream {
            start,
            decoded: start,
            pending: VecDeque::new(),
            applied: places.clone(),
            passed: Lsn::default(),
            asleep: false,
        };
        let previous = self.streams.insert(id, stream);
        debug_assert!(previous.is_none());
    }

    /// A database that is gone no longer holds the others back.
    pub fn remove_stream(&mut self, id: StreamId) {
        self.streams.remove(&id);
    }

    /// The stream broke and will be decoded again from the slot's place: what it had told stays true.
    pub fn restart_stream(&mut self, id: StreamId) {
        let floor = self.last.flush;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.pending.clear();
            stream.decoded = floor.max(stream.start);
        }
    }

    /// Leaves a stream out of all minima, if nothing in it is missing anywhere up to `past` and another one stays:
    /// somebody has to say how far the writer's log is safe. From `past` on it must have no unit.
    pub fn sleep(&mut self, id: StreamId, past: Lsn) -> bool {
        if !self.awake().any(|(other, _)| *other != id) {
            return false;
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return false;
        };
        stream.asleep = stream.asleep || stream.pending.is_empty() && stream.decoded >= past;
        stream.asleep
    }

    /// Takes a stream in again, before it may have units: all that was reported lies before any of them.
    pub fn wake(&mut self, id: StreamId) {
        let floor = self.last.write;
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.asleep
        {
            stream.asleep = false;
            stream.decoded = stream.decoded.max(floor);
        }
    }

    /// Whether a stream is left out.
    pub fn sleeps(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.asleep)
    }

    fn awake(&self) -> impl Iterator<Item = (&StreamId, &Stream)> {
        self.streams.iter().filter(|(_, stream)| !stream.asleep)
    }

    /// A unit was decoded whole. Units of one stream come in commit order.
    pub fn decoded_unit(&mut self, id: StreamId, commit: Lsn, end: Lsn) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        debug_assert!(commit < end);
        debug_assert!(stream.pending.back().is_none_or(|last| last.end <= commit));
        stream.pending.push_back(Pending { commit, end });
        stream.decoded = stream.decoded.max(end);
    }

    /// Everything before `lsn` has been decoded, whether it held units or not (keepalive, stream progress).
    pub fn decoded_up_to(&mut self, id: StreamId, lsn: Lsn) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.decoded = stream.decoded.max(lsn);
        }
    }

    /// A follower has every unit up to the one that ends at `lsn` durable.
    pub fn applied(&mut self, id: StreamId, node: NodeId, lsn: Lsn) {
        if let Some(stream) = self.streams.get_mut(&id) {
            let place = stream.applied.entry(node).or_default();
            *place = (*place).max(lsn);
        }
    }

    /// A follower comes to count, or no longer does.
    pub fn set_standing(&mut self, node: NodeId, standing: Standing) {
        if let Some(known) = self.standing.get_mut(&node) {
            *known = standing;
        }
    }

    /// How a follower counts now.
    pub fn standing(&self, node: NodeId) -> Option<Standing> {
        self.standing.get(&node).copied()
    }

    /// How many nodes count for the majority, the writer among them.
    pub fn in_sync(&self) -> usize {
        let followers = self.standing.values();
        1 + followers.filter(|s| **s == Standing::InSync).count()
    }

    /// Nodes that make a majority.
    pub fn majority(&self) -> usize {
        self.nodes / 2 + 1
    }

    /// Whether enough nodes count for commits to complete.
    pub fn has_quorum(&self) -> bool {
        self.in_sync() >= self.majority()
    }

    /// How far a follower has the writer's history, by the slowest stream; where that is not known, where it began.
    pub fn place(&self, node: NodeId) -> Lsn {
        let has = |stream: &Stream| stream.place(node).unwrap_or(stream.start);
        let places = self.awake().map(|(_, stream)| has(stream));
        places.min().unwrap_or_default()
    }

    /// How far the writer's log has been decoded, by the slowest stream.
    pub fn decoded(&self) -> Lsn {
        let decoded = self.awake().map(|(_, stream)| stream.decoded);
        decoded.min().unwrap_or_default()
    }

    /// How far the writer's log has been decoded, by the quickest stream: nobody has been handed anything behind it.
    pub fn handed(&self) -> Lsn {
        let decoded = self.streams.values().map(|stream| stream.decoded);
        decoded.max().unwrap_or_default()
    }

    /// Units decoded of a stream that somebody who is owed them lacks.
    pub fn pending_units(&self) -> usize {
        self.streams
            .values()
            .map(|stream| stream.pending.len())
            .sum()
    }

    /// What may be told to the writer now. It never shrinks.
    pub fn report(&mut self) -> Report {
        let majority = self.majority();
        let mut report: Option<(Lsn, Lsn)> = None;
        let mut passed = self.last.unit;
        for stream in self.streams.values_mut().filter(|stream| !stream.asleep) {
            let mut has = Vec::with_capacity(self.nodes);
            has.push(stream.decoded);
            let mut everybody = stream.decoded;
            let mut owed = Lsn(u64::MAX);
            for (node, standing) in &self.standing {
                if *standing != Standing::Out {
                    let applied = stream.applied.get(node).copied().unwrap_or_default();
                    let place = stream.place(*node).unwrap_or_default();
                    if *standing == Standing::InSync {
                        has.push(place);
                    }
                    everybody = everybody.min(place);
                    owed = owed.min(applied);
                }
            }
            has.sort_unstable_by(|a, b| b.cmp(a));
            let write = has.get(majority - 1).copied().unwrap_or_default();
            // Without a quorum the flush must not release what the write may not.
            let flush = everybody.min(write);
            stream.passed = stream.passed.max(stream.last_end(write));
            passed = passed.max(stream.passed);
            stream.prune(owed.min(write));
            report = Some(report.map_or((write, flush), |least| {
                (least.0.min(write), least.1.min(flush))
            }));
        }
        if let Some((write, flush)) = report {
            self.last.write = self.last.write.max(write);
            self.last.flush = self.last.flush.max(flush);
        }
        // One stream may be further than the report.
        self.last.unit = passed.min(self.last.write);
        let write = self.last.write;
        let bounded = self.awake().any(|(_, stream)| stream.begins_at(write));
        self.last.bounded = bounded;
        self.last
    }
}

#[cfg(test)]
#[path = "confirm_tests.rs"]
mod tests;
