//! Commits that wait for nobody (`synchronous_commit` off or local), while followers may lack them.
//!
//! Such a commit is acknowledged before the proxy has heard of it, so nobody can tell which read would miss it: from
//! before its text is sent until every follower has what the writer's log held after its answer, reads that must miss
//! nothing go to the writer. Guards promise 3.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// One for all sessions.
#[derive(Debug, Default)]
pub struct Relaxed {
    /// Transactions that may commit so.
    open: AtomicUsize,
    /// How many have ended, and how many of them every follower has.
    ended: AtomicU64,
    covered: AtomicU64,
    more: Notify,
}

impl Relaxed {
    /// A transaction that may commit so is about to be sent something, until what is returned is dropped.
    pub fn enter(self: &Arc<Self>) -> RelaxedWrite {
        self.open.fetch_add(1, Ordering::AcqRel);
        RelaxedWrite(Arc::clone(self))
    }

    /// Whether a follower may lack one.
    pub fn any(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
            || self.ended.load(Ordering::Acquire) > self.covered.load(Ordering::Acquire)
    }

    /// Waits until some have ended that are not covered; gives how many have ended. Cancel-safe.
    pub async fn uncovered(&self) -> u64 {
        loop {
            let ended = self.ended.load(Ordering::Acquire);
            if ended > self.covered.load(Ordering::Acquire) {
                return ended;
            }
            self.more.notified().await;
        }
    }

    /// Every follower has the first `ended` of them.
    pub fn cover(&self, ended: u64) {
        self.covered.fetch_max(ended, Ordering::AcqRel);
    }
}

/// A transaction that may commit without waiting.
#[derive(Debug)]
pub struct RelaxedWrite(Arc<Relaxed>);

impl Drop for RelaxedWrite {
    fn drop(&mut self) {
        // In this order, so that there is no moment at which there seems to be none.
        self.0.ended.fetch_add(1, Ordering::AcqRel);
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.more.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_relaxed_write_counts_until_it_is_covered() {
        let relaxed = Arc::new(Relaxed::default());
        assert!(!relaxed.any());
        let (one, two) = (relaxed.enter(), relaxed.enter());
        drop(one);
        let ended = relaxed.uncovered().await;
        relaxed.cover(ended);
        assert!(relaxed.any());
        drop(two);
        assert!(relaxed.any());
        relaxed.cover(relaxed.uncovered().await);
        assert!(!relaxed.any());
    }
}
