//! How quick each node is, and whether it serves: told by whoever uses it, read without a lock.
//!
//! It decides nothing; `engine::balance` does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::engine::balance::{Candidate, average};
use crate::ids::NodeId;

/// Of a node of which nothing is known, milliseconds.
const LATENCY_AT_FIRST: f64 = 1.0;
/// How much the newest read counts in the average; and the newest probe, where nothing was read since the last one.
const READ_SHARE: f64 = 0.05;
const PROBE_SHARE: f64 = 0.5;
/// A probe that takes so many times as long as reads did says that the node is slow.
const SLOW_PROBE: f64 = 4.0;
/// What is left of a node's average with each probe while nothing is read from it.
const FORGIVENESS: f64 = 0.7;
/// The same for what a wait for the writer took.
const WAIT_SHARE: f64 = 0.1;

/// One node.
#[derive(Debug)]
pub struct Load {
    /// Milliseconds, as the bits of a float; 0 bits where nothing is known.
    latency: AtomicU64,
    /// It has answered a read since the last probe.
    read: AtomicBool,
    wait: AtomicU64,
    serves: AtomicBool,
    /// Cancelled when it stops serving.
    gone: Mutex<CancellationToken>,
    /// Somebody lost a connection to it.
    suspected: Notify,
}

impl Default for Load {
    fn default() -> Self {
        let gone = CancellationToken::new();
        gone.cancel();
        Self {
            latency: AtomicU64::new(0),
            read: AtomicBool::new(false),
            wait: AtomicU64::new(0),
            serves: AtomicBool::new(false),
            gone: Mutex::new(gone),
            suspected: Notify::new(),
        }
    }
}

impl Load {
    /// A read was answered.
    pub fn answered(&self, took: Duration) {
        learn(&self.latency, took, READ_SHARE);
        if !self.read.load(Ordering::Relaxed) {
            self.read.store(true, Ordering::Relaxed);
        }
    }

    /// A probe was answered. A node from which nothing was read since the last one would keep a bad name for ever: it
    /// gets better by itself until it is tried, unless the probe is slow too.
    pub fn probed(&self, took: Duration) {
        if self.read.swap(false, Ordering::Relaxed) {
            return;
        }
        let probe_ms = took.as_secs_f64() * 1000.0;
        match self.latency_ms() {
            Some(known) if probe_ms < known * SLOW_PROBE => {
                let better = known * FORGIVENESS;
                self.latency.store(better.to_bits(), Ordering::Relaxed);
            }
            _ => learn(&self.latency, took, PROBE_SHARE),
        }
    }

    /// An answer of its was held for so long.
    pub fn waited(&self, took: Duration) {
        learn(&self.wait, took, WAIT_SHARE);
    }

    /// Average time for an answer, milliseconds.
    pub fn latency_ms(&self) -> Option<f64> {
        known(&self.latency)
    }

    /// As one of those that could answer, where so many are at work; `waits`: its answer may have to be held.
    pub fn candidate(&self, in_flight: usize, waits: bool) -> Candidate {
        let wait_ms = if waits { known(&self.wait) } else { None };
        Candidate {
            in_flight,
            latency_ms: self.latency_ms().unwrap_or(LATENCY_AT_FIRST),
            wait_ms: wait_ms.unwrap_or_default(),
        }
    }

    /// Whether it is in sync.
    pub fn serves(&self) -> bool {
        self.serves.load(Ordering::Acquire)
    }

    /// It is in sync, or no longer.
    pub fn set_serves(&self, serves: bool) {
        if self.serves.swap(serves, Ordering::AcqRel) == serves {
            return;
        }
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if serves {
            *gone = CancellationToken::new();
        } else {
            gone.cancel();
        }
    }

    /// Whoever waits for it looks at it anew.
    pub fn disturb(&self) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.cancel();
        if self.serves() {
            *gone = CancellationToken::new();
        }
    }

    /// Cancelled when it no longer serves, or is to be looked at anew.
    pub fn gone(&self) -> CancellationToken {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.clone()
    }

    /// A connection to it was lost or could not be opened: it is probed at once.
    pub fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Until somebody suspects it. Cancel-safe.
    pub async fn suspected(&self) {
        self.suspected.notified().await;
    }
}

fn known(value: &AtomicU64) -> Option<f64> {
    match value.load(Ordering::Relaxed) {
        0 => None,
        bits => Some(f64::from_bits(bits)),
    }
}

/// Two who learn at once may lose one value, which an average can bear.
fn learn(value: &AtomicU64, took: Duration, share: f64) {
    let new = average(known(value), took.as_secs_f64() * 1000.0, share);
    value.store(new.to_bits(), Ordering::Relaxed);
}

/// All nodes.
#[derive(Debug)]
pub struct Loads(Vec<Arc<Load>>);

impl Loads {
    /// So many; none serves yet.
    pub fn new(nodes: usize) -> Self {
        Self((0..nodes).map(|_| Arc::default()).collect())
    }

    /// One of them.
    pub fn get(&self, node: NodeId) -> Option<&Arc<Load>> {
        self.0.get(node.0)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Arc<Load>)> {
        self.0
            .iter()
            .enumerate()
            .map(|(at, load)| (NodeId(at), load))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_gone_is_told_and_who_answers_is_timed() {
        let loads = Loads::new(1);
        let load = loads.get(NodeId(0)).expect("one");
        assert!(load.gone().is_cancelled() && !load.serves());
        load.set_serves(true);
        let gone = load.gone();
        load.set_serves(true);
        assert!(!gone.is_cancelled());
        load.set_serves(false);
        assert!(gone.is_cancelled());
        assert_eq!(load.latency_ms(), None);
        load.probed(Duration::from_micros(800));
        assert!(load.candidate(0, false).latency_ms > 0.7);
        load.probed(Duration::from_micros(1600));
        assert!(load.candidate(0, false).latency_ms < 0.7);
        load.probed(Duration::from_millis(80));
        let slow = load.candidate(0, false).latency_ms;
        assert!(slow > 1.2, "{slow}");
        load.answered(Duration::from_millis(40));
        load.probed(Duration::from_millis(1));
        assert!(load.candidate(0, false).latency_ms > slow);
    }
}
