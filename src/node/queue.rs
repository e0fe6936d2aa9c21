//! A follower's queue of units in one database: ordered, bounded, kept until durable.
//!
//! Units stay until the follower has them, so an applier that starts anew goes on where the last one
//! ended. A unit that the stream brings a second time (after a broken connection) is not taken twice.
//! The bound is in bytes of memory (REPLICATION rule 15). It never blocks the stream: a full queue says so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::spill::Running;
use super::unit::{Changes, Unit};
use crate::ids::Lsn;

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
    last: Lsn,
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
    place: watch::Sender<Lsn>,
    max_bytes: usize,
}

impl Queue {
    /// Empty, for at most about `max_bytes` of units (one unit always fits).
    pub fn new(max_bytes: usize) -> Self {
        Self {
            state: Mutex::default(),
            arrived: Notify::new(),
            offered: Notify::new(),
            place: watch::Sender::new(Lsn(0)),
            max_bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a unit, unless it is there already or the node is no longer owed anything.
    pub fn push(&self, unit: &Arc<Unit>) -> Result<(), Full> {
        let mut state = self.lock();
        if state.abandoned || unit.id.lsn <= state.last {
            return Ok(());
        }
        if !state.units.is_empty() && state.bytes + unit.bytes > self.max_bytes {
            return Err(Full);
        }
        state.last = unit.id.lsn;
        state.bytes += unit.bytes;
        state.units.push_back(Arc::clone(unit));
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Drops what is there and takes nothing more: the node has been fenced.
    pub fn abandon(&self) {
        let mut state = self.lock();
        *state = State {
            abandoned: true,
            ..State::default()
        };
    }

    /// The units that come next and may go into one transaction, at least one. Removes nothing, so
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
            if alone && !batch.is_empty() {
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

    /// Everything up to and including `lsn` is durable on the follower: it is dropped, and not taken
    /// when the stream brings it again. A proxy that starts anew reads from where the slowest follower
    /// is, and the faster ones must not repeat what they have.
    pub fn done(&self, lsn: Lsn) {
        self.place.send_replace(lsn);
        let mut state = self.lock();
        state.last = state.last.max(lsn);
        while state.units.front().is_some_and(|unit| unit.id.lsn <= lsn) {
            let bytes = state.units.pop_front().map_or(0, |unit| unit.bytes);
            state.bytes -= bytes;
        }
    }

    /// The place that was [`Queue::done`] last, and what comes after it.
    pub fn place(&self) -> watch::Receiver<Lsn> {
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
    use crate::ids::{Epoch, UnitId};

    fn unit(lsn: u64, has_ddl: bool) -> Arc<Unit> {
        Arc::new(Unit {
            id: UnitId {
                term: Epoch(1),
                lsn: Lsn(lsn),
            },
            commit: Lsn(lsn - 1),
            xid: 0,
            committed_at: 0,
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
        queue.done(Lsn(20));
        for lsn in [10, 20, 30] {
            queue.push(&unit(lsn, false)).expect("room");
        }
        assert_eq!(waiting(&queue), [30]);
        // The stream broke and brings it again.
        queue.push(&unit(30, false)).expect("room");
        queue.push(&unit(40, false)).expect("room");
        assert_eq!(waiting(&queue), [30, 40]);
        queue.done(Lsn(40));
        assert_eq!(queue.depth(), (0, 0));
        queue.push(&unit(30, false)).expect("room");
        assert_eq!(waiting(&queue), [] as [u64; 0]);
    }

    #[test]
    fn ddl_comes_alone_and_the_bound_holds() {
        let queue = Queue::new(35);
        for (lsn, has_ddl) in [(1, false), (2, true), (3, false)] {
            queue.push(&unit(lsn, has_ddl)).expect("room");
        }
        assert_eq!(queue.push(&unit(4, false)), Err(Full));
        assert_eq!(waiting(&queue), [1]);
        queue.done(Lsn(1));
        assert_eq!(waiting(&queue), [2]);
        queue.done(Lsn(2));
        assert_eq!(waiting(&queue), [3]);
        queue.abandon();
        assert_eq!(queue.push(&unit(4, false)), Ok(()));
        assert_eq!(waiting(&queue), [] as [u64; 0]);
    }
}
