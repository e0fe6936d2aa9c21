//! Commits that are to be seen on the writer though no majority may have them, and who must not see them yet.
//!
//! Where a wait for the majority is broken off (REPLICATION rule 4), the writer shows the commit to everyone. From
//! when the proxy learns of it until a majority has it, or nobody can say any more, all other sessions' answers are
//! held too. What an answer showed before the proxy learned of it can't be taken back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::session::relay::{End, Session};

/// One for all sessions.
#[derive(Debug, Default)]
pub struct Doubts {
    count: AtomicUsize,
    over: Notify,
}

impl Doubts {
    /// One more commit is in doubt, until what is returned is dropped.
    pub fn enter(self: &Arc<Self>) -> Doubt {
        self.count.fetch_add(1, Ordering::AcqRel);
        Doubt(Arc::clone(self))
    }

    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Until there is none. Dropping the future is harmless.
    pub async fn over(&self) {
        while self.any() {
            let over = self.over.notified();
            if !self.any() {
                return;
            }
            over.await;
        }
    }
}

/// A commit in doubt.
#[derive(Debug)]
pub struct Doubt(Arc<Doubts>);

impl Drop for Doubt {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.over.notify_waiters();
        }
    }
}

impl Session {
    /// Waits until the majority has what the writer has: an answer is held that may speak of a commit
    /// whose wait was broken off (rule 4). The client's own cancel does not end it.
    pub(super) async fn make_certain(&mut self) -> Result<(), End> {
        let writer = self.pool.node();
        // Where the client had the server say nothing of it, it may have happened.
        let doubts = &self.shared.relay.doubts;
        self.doubt.get_or_insert_with(|| doubts.enter());
        tokio::select! {
            biased;
            known = self.shared.relay.service().wait_quorum(writer) => known?,
            () = self.left() => return Err(End::Lost("the writer has left".to_owned())),
        }
        self.doubt = None;
        self.uncertain = false;
        self.certain = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_waits_goes_on_when_the_last_is_over() {
        let doubts = Arc::new(Doubts::default());
        doubts.over().await;
        let (one, two) = (doubts.enter(), doubts.enter());
        let waiting = Arc::clone(&doubts);
        let waiting = tokio::spawn(async move { waiting.over().await });
        drop(one);
        tokio::task::yield_now().await;
        assert!(doubts.any() && !waiting.is_finished());
        drop(two);
        waiting.await.expect("no panic");
        assert!(!doubts.any());
    }
}
