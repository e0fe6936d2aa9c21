//! Whether somebody may be moving a sequence, as `setval` does: sessions say so before they run what may.
//!
//! The stream does not show it, and what a sequence hands out from then on is not bounded by the length of the log
//! (`engine::sequences`). Guards that while a transaction that may is open, and until the sequences have been read
//! after its end, commits are confirmed only up to where they have been read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// What a node may go on with after its connection is lost.
const LINGER: Duration = Duration::from_secs(10);

/// One for the proxy.
#[derive(Debug, Default)]
pub struct Jumps {
    open: AtomicUsize,
    changes: AtomicU64,
}

impl Jumps {
    /// From here until what is returned is dropped, a sequence may be moved.
    pub fn begin(self: &Arc<Self>) -> Jump {
        self.open.fetch_add(1, Ordering::SeqCst);
        self.changes.fetch_add(1, Ordering::SeqCst);
        Jump(Arc::clone(self))
    }

    /// To be taken before sequences are read, which then shows all that was moved so far; none while somebody may be
    /// about it.
    pub fn mark(&self) -> Option<u64> {
        // In this order: what begins behind the first look is another change.
        let changes = self.changes.load(Ordering::SeqCst);
        (self.open.load(Ordering::SeqCst) == 0).then_some(changes)
    }

    /// Whether nothing may have been moved since that mark.
    pub fn is_read(&self, mark: Option<u64>) -> bool {
        mark.is_some() && self.mark() == mark
    }
}

/// See [`Jumps::begin`].
#[derive(Debug)]
pub struct Jump(Arc<Jumps>);

impl Jump {
    /// The connection is lost, and its node may not know yet.
    pub fn linger(self) {
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            drop(self);
        });
    }
}

impl Drop for Jump {
    fn drop(&mut self) {
        self.0.changes.fetch_add(1, Ordering::SeqCst);
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_counts_that_began_after_all_jumps() {
        let jumps = Arc::new(Jumps::default());
        let first = jumps.mark();
        assert!(jumps.is_read(first) && !jumps.is_read(None));
        let jump = jumps.begin();
        assert!(!jumps.is_read(first) && jumps.mark().is_none());
        drop(jump);
        assert!(!jumps.is_read(first));
        let second = jumps.mark();
        assert!(jumps.is_read(second));
        drop(jumps.begin());
        assert!(!jumps.is_read(second));
    }
}
