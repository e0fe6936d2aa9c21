//! A follower's queue of units in one database: ordered, bounded, kept until durable.
//!
//! Units stay until the follower has them, so an applier that starts anew goes on where the last one
//! ended. A unit that the stream brings a second time (after a broken connection) is not taken twice, nor one that the
//! follower had from another writer's stream: units are known by name, which no change of writer changes. What is
//! confirmed goes by places in the log that is read now, so the queue says which place a name stands for.
//! The bound is in bytes of memory (REPLICATION rule 15). It never blocks the stream: a full queue says so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::spill::Running;
use super::unit::{Changes, Unit};
use crate::ids::{Lsn, UnitId};

/// A transaction on a follower holds at most so many units.
const BATCH_UNITS: usize = 256;
/// It ends once it holds this much, in bytes.
const BATCH_BYTES: usize = 1 << 20;

/// The queue is at its bound.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Debug, Default)]
struct State {
    units: VecDeque<Arc<Unit>>,
    bytes: usize,
    /// The newest unit that was taken, or that the follower had before.
    last: UnitId,
    /// The follower has this one durable, and all before.
    durable: UnitId,
    abandoned: bool,
    /// The newest large transaction that the writer still runs.
    running: Option<Running>,
}

/// See the module.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    arrived: Notify,
    offered: Notify,
    /// Up to where the follower has everything durable.
    place: watch::Sender<UnitId>,
    max_bytes: usize,
}

impl Queue {
    /// Empty, for at most about `max_bytes` of units (one unit always fits).
    pub fn new(max_bytes: usize) -> Self {
        Self {
            state: Mutex::default(),
            arrived: Notify::new(),
            offered: Notify::new(),
            place: watch::Sender::new(UnitId::NOTHING),
            max_bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a unit, unless it is there already or the node is no longer owed anything. Where the follower has it
    /// durable, tells up to which place in the log it has everything so.
    pub fn push(&self, unit: &Arc<Unit>) -> Result<Option<Lsn>, Full> {
        let mut state = self.lock();
        if state.abandoned {
            return Ok(None);
        }
        if unit.id <= state.durable {
            return Ok(unit.closes.then_some(unit.end));
        }
        if unit.id <= state.last {
            return Ok(None);
        }
        if !state.units.is_empty() && state.bytes + unit.bytes > self.max_bytes {
            return Err(Full);
        }
        state.last = unit.id;
        state.bytes += unit.bytes;
        state.units.push_back(Arc::clone(unit));
        drop(state);
        self.arrived.notify_one();
        Ok(None)
    }

    /// Drops what is there and takes nothing more: the node has been fenced.
    pub fn abandon(&self) {
        let mut state = self.lock();
        *state = State {
            abandoned: true,
            ..State::default()
        };
    }

    /// The units of one term that come next and may go into one transaction, at least one. Removes nothing, so
    /// dropping the future loses nothing.
    pub async fn next_batch(&self, single: bool) -> Vec<Arc<Unit>> {
        loop {
            let batch = self.batch(single);
            if !batch.is_empty() {
                return batch;
            }
            self.arrived.notified().await;
        }
    }

    fn batch(&self, single: bool) -> Vec<Arc<Unit>> {
        let state = self.lock();
        let mut batch = Vec::new();
        let mut bytes = 0;
        for unit in &state.units {
            let alone = unit.has_ddl || matches!(unit.changes, Changes::Spilled(_));
            let other_term = |first: &Arc<Unit>| first.id.term != unit.id.term;
            if batch
                .first()
                .is_some_and(|first| alone || other_term(first))
            {
                break;
            }
            batch.push(Arc::clone(unit));
            bytes += unit.bytes;
            if alone || single || batch.len() >= BATCH_UNITS || bytes >= BATCH_BYTES {
                break;
            }
        }
        batch
    }

    /// Everything up to and including `place` is durable on the follower: it is dropped, and not taken
    /// when the stream brings it again. A proxy that starts anew reads from where the slowest follower
    /// is, and the faster ones must not repeat what they have. Tells up to which place in the log the follower has
    /// everything, where that is further than before.
    pub fn done(&self, place: UnitId) -> Option<Lsn> {
        self.place.send_replace(place);
        let mut state = self.lock();
        state.last = state.last.max(place);
        state.durable = state.durable.max(place);
        let mut end = None;
        while state.units.front().is_some_and(|unit| unit.id <= place) {
            if let Some(unit) = state.units.pop_front() {
                state.bytes -= unit.bytes;
                end = unit.closes.then_some(unit.end).or(end);
            }
        }
        end
    }

    /// The place that was [`Queue::done`] last, and what comes after it.
    pub fn place(&self) -> watch::Receiver<UnitId> {
        self.place.subscribe()
    }

    /// A large transaction has begun to arrive, which may be applied while it does. The newest counts.
    pub fn offer(&self, running: Running) {
        let mut state = self.lock();
        if !state.abandoned {
            state.running = Some(running);
            self.offered.notify_one();
        }
    }

    /// The next transaction that was offered and has not ended: one that has may be applied already. Dropping the
    /// future loses nothing.
    pub async fn next_running(&self) -> Running {
        loop {
            let running = self.lock().running.take();
            if let Some(running) = running.filter(|running| running.has_changed().is_ok()) {
                return running;
            }
            self.offered.notified().await;
        }
    }

    /// Units and bytes waiting.
    pub fn depth(&self) -> (usize, usize) {
        let state = self.lock();
        (state.units.len(), state.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    fn id(term: u64, lsn: u64) -> UnitId {
        UnitId {
            term: Epoch(term),
            lsn: Lsn(lsn),
        }
    }

    fn unit(lsn: u64, has_ddl: bool) -> Arc<Unit> {
        piece(id(1, lsn), lsn, true, has_ddl)
    }

    fn piece(id: UnitId, end: u64, closes: bool, has_ddl: bool) -> Arc<Unit> {
        Arc::new(Unit {
            id,
            commit: Lsn(end - 1),
            end: Lsn(end),
            closes,
            xid: 0,
            committed_at: 0,
            token: None,
            has_ddl,
            bytes: 10,
            changes: Changes::Memory(Vec::new()),
        })
    }

    fn waiting(queue: &Queue) -> Vec<u64> {
        queue
            .batch(false)
            .iter()
            .map(|unit| unit.id.lsn.0)
            .collect()
    }

    #[test]
    fn what_is_durable_is_never_taken_again() {
        let queue = Queue::new(1000);
        assert_eq!(queue.done(id(1, 20)), None);
        for (lsn, has) in [(10, Some(Lsn(10))), (20, Some(Lsn(20))), (30, None)] {
            assert_eq!(queue.push(&unit(lsn, false)), Ok(has));
        }
        assert_eq!(waiting(&queue), [30]);
        // The stream broke and brings it again.
        assert_eq!(queue.push(&unit(30, false)), Ok(None));
        assert_eq!(queue.push(&unit(40, false)), Ok(None));
        assert_eq!(waiting(&queue), [30, 40]);
        assert_eq!(queue.done(id(1, 40)), Some(Lsn(40)));
        assert_eq!(queue.depth(), (0, 0));
        assert_eq!(queue.push(&unit(30, false)), Ok(Some(Lsn(30))));
        assert_eq!(waiting(&queue), [] as [u64; 0]);
    }

    #[test]
    fn names_outlive_a_writer_and_places_are_those_of_the_log_that_is_read() {
        let queue = Queue::new(1000);
        queue.done(id(1, 700));
        // Another node's log: two transactions of its applier's, then one of its own.
        let units = [
            (id(1, 600), 50, false),
            (id(1, 700), 50, false),
            (id(1, 800), 50, true),
            (id(1, 900), 60, true),
            (id(2, 70), 70, true),
        ];
        for (id, end, closes) in units {
            let pushed = queue.push(&piece(id, end, closes, false));
            assert_eq!(pushed, Ok(None), "not all of its transaction is there");
        }
        assert_eq!(waiting(&queue), [800, 900], "terms are not mixed");
        assert_eq!(queue.done(id(1, 800)), Some(Lsn(50)));
        assert_eq!(queue.done(id(1, 900)), Some(Lsn(60)));
        assert_eq!(waiting(&queue), [70]);
        assert_eq!(
            queue.push(&piece(id(1, 900), 60, true, false)),
            Ok(Some(Lsn(60)))
        );
        // Whoever has a unit of a later term has all of the one before.
        let next = Queue::new(1000);
        next.push(&piece(id(1, 900), 60, true, false))
            .expect("room");
        assert_eq!(next.done(id(2, 1)), Some(Lsn(60)));
    }

    #[test]
    fn ddl_comes_alone_and_the_bound_holds() {
        let queue = Queue::new(35);
        for (lsn, has_ddl) in [(1, false), (2, true), (3, false)] {
            queue.push(&unit(lsn, has_ddl)).expect("room");
        }
        assert_eq!(queue.push(&unit(4, false)), Err(Full));
        assert_eq!(waiting(&queue), [1]);
        queue.done(id(1, 1));
        assert_eq!(waiting(&queue), [2]);
        queue.done(id(1, 2));
        assert_eq!(waiting(&queue), [3]);
        queue.abandon();
        assert_eq!(queue.push(&unit(4, false)), Ok(None));
        assert_eq!(waiting(&queue), [] as [u64; 0]);
    }
}
