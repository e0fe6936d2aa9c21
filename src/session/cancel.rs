//! Cancel requests: from a key to the session that holds it, to the server process that works for it.
//!
//! A cancel is carried out by SQL on the admin connection, and only where the process does not wait
//! for the quorum (breaking that wait off would show a commit that no majority has). It must never
//! hit the connection's next user: while a cancel is on its way the session can't give its
//! connection back ([`Cancel::detach`] says so), and a process that has gone idle ignores it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngCore;
use subtle::ConstantTimeEq;
use tokio::sync::Notify;

use crate::ids::NodeId;
use crate::node::admin::Admins;
use crate::wire::startup::CancelKey;

/// How long one cancel may take; a session that wants to give its connection back waits as long at most.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

/// Does not signal a process that waits for the quorum. CASE keeps the order: the wait is looked at first.
const CANCEL_SQL: &str = "select case when a.wait_event is distinct from 'SyncRep' \
    then pg_catalog.pg_cancel_backend(a.pid) end \
    from pg_catalog.pg_stat_activity a where a.pid = $1";

/// Locks for a few instructions at a time; nothing inside can panic, so a poisoned lock is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every session that can be cancelled.
#[derive(Debug, Default)]
pub struct Cancels {
    sessions: Mutex<HashMap<u32, Arc<Cancel>>>,
}

impl Cancels {
    /// Gives a new session its key: 4 bytes for protocol 3.0, 32 since 3.2.
    pub fn register(self: &Arc<Self>, minor: u16) -> CancelHandle {
        let mut secret = vec![0; if minor >= 2 { 32 } else { 4 }];
        let mut random = rand::rng();
        random.fill_bytes(&mut secret);
        let mut sessions = lock(&self.sessions);
        let pid = loop {
            // Positive as a signed number too, since drivers show it as one.
            let pid = random.next_u32() >> 1;
            if pid != 0 && !sessions.contains_key(&pid) {
                break pid;
            }
        };
        let cancel = Arc::new(Cancel {
            key: CancelKey { pid, secret },
            state: Mutex::new(State::Idle),
            settled: Notify::new(),
            requested: Notify::new(),
        });
        sessions.insert(pid, Arc::clone(&cancel));
        CancelHandle {
            cancels: Arc::clone(self),
            cancel,
        }
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        lock(&self.sessions).len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The session that `key` names; compared in constant time, so that nothing is learned byte by byte.
    fn find(&self, key: &CancelKey) -> Option<Arc<Cancel>> {
        let cancel = Arc::clone(lock(&self.sessions).get(&key.pid)?);
        let same = bool::from(cancel.key.secret.ct_eq(&key.secret));
        same.then_some(cancel)
    }

    /// Carries a cancel request out, and says nothing about whether there was something to cancel.
    /// Dropped midway, the session is free again; the server may have been asked or not.
    pub async fn carry_out(&self, key: &CancelKey, admins: &Admins) {
        let Some(cancel) = self.find(key) else {
            tracing::debug!("cancel request with an unknown key");
            return;
        };
        metrics::counter!("synapsedb_cancels_total").increment(1);
        let Some((node, pid)) = cancel.begin() else {
            return;
        };
        let _ending = Ending(&cancel);
        match tokio::time::timeout(CANCEL_LIMIT, signal(admins, node, pid)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(node = node.0, %error, "a cancel could not be carried out");
            }
            Err(_) => tracing::warn!(node = node.0, "a cancel could not be carried out in time"),
        }
    }
}

async fn signal(
    admins: &Admins,
    node: NodeId,
    pid: u32,
) -> Result<(), crate::node::admin::AdminError> {
    let client = admins.get(node).await?;
    let pid = pid.cast_signed();
    client.query(CANCEL_SQL, &[&pid]).await?;
    Ok(())
}

/// What a cancel of this session would have to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing of the client's is running.
    Idle,
    /// The session waits for the proxy itself.
    Waiting,
    /// It was asked to stop waiting.
    WaitCancelled,
    /// The client's statement runs in this process.
    Running(NodeId, u32),
    /// The same, and a cancel is on its way there.
    Cancelling(NodeId, u32),
}

/// One session's target for cancels.
#[derive(Debug)]
pub struct Cancel {
    key: CancelKey,
    state: Mutex<State>,
    settled: Notify,
    requested: Notify,
}

impl Cancel {
    /// From now on a cancel goes to this process: the client's bytes are on their way to it.
    /// May be said again for the same process.
    pub fn attach(&self, node: NodeId, pid: u32) {
        let mut state = lock(&self.state);
        if *state != State::Cancelling(node, pid) {
            *state = State::Running(node, pid);
        }
    }

    /// The connection is about to be given back. True: no cancel can reach it any more. False: one is
    /// on its way; await [`Cancel::settled`] and call again (or close the connection instead).
    #[must_use]
    pub fn detach(&self) -> bool {
        let mut state = lock(&self.state);
        if matches!(*state, State::Cancelling(..)) {
            return false;
        }
        *state = State::Idle;
        true
    }

    /// Ends when no cancel is on its way. Cancel-safe.
    pub async fn settled(&self) {
        loop {
            let settled = self.settled.notified();
            if !matches!(*lock(&self.state), State::Cancelling(..)) {
                return;
            }
            settled.await;
        }
    }

    /// The client now waits for the proxy itself; a cancel ends [`Cancel::requested`].
    pub fn wait(&self) {
        let mut state = lock(&self.state);
        if !matches!(*state, State::Cancelling(..)) {
            *state = State::Waiting;
        }
    }

    /// Ends when the client asks to cancel while it waits for the proxy itself. Cancel-safe: a request
    /// between [`Cancel::wait`] and this call is not lost, and one from an earlier wait is not kept.
    pub async fn requested(&self) {
        loop {
            let requested = self.requested.notified();
            if *lock(&self.state) == State::WaitCancelled {
                return;
            }
            requested.await;
        }
    }

    fn begin(&self) -> Option<(NodeId, u32)> {
        let mut state = lock(&self.state);
        match *state {
            State::Idle | State::WaitCancelled | State::Cancelling(..) => None,
            State::Waiting => {
                *state = State::WaitCancelled;
                self.requested.notify_waiters();
                None
            }
            State::Running(node, pid) => {
                *state = State::Cancelling(node, pid);
                Some((node, pid))
            }
        }
    }
}

/// Ends a cancel, however it ends.
struct Ending<'a>(&'a Cancel);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        if let State::Cancelling(node, pid) = *state {
            *state = State::Running(node, pid);
        }
        drop(state);
        self.0.settled.notify_waiters();
    }
}

/// A session's own end of its [`Cancel`]; dropping it takes the key out of use.
#[derive(Debug)]
pub struct CancelHandle {
    cancels: Arc<Cancels>,
    cancel: Arc<Cancel>,
}

impl CancelHandle {
    /// What the client is told in `BackendKeyData`.
    pub fn key(&self) -> &CancelKey {
        &self.cancel.key
    }
}

impl std::ops::Deref for CancelHandle {
    type Target = Cancel;

    fn deref(&self) -> &Cancel {
        &self.cancel
    }
}

impl Drop for CancelHandle {
    fn drop(&mut self) {
        lock(&self.cancels.sessions).remove(&self.cancel.key.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_of_their_protocol_and_leave_with_the_session() {
        let cancels = Arc::new(Cancels::default());
        let old = cancels.register(0);
        let new = cancels.register(2);
        assert_eq!((old.key().secret.len(), new.key().secret.len()), (4, 32));
        assert!(cancels.find(new.key()).is_some());
        let mut wrong = new.key().clone();
        wrong.secret[31] ^= 1;
        assert!(cancels.find(&wrong).is_none());
        wrong.secret.truncate(4);
        assert!(cancels.find(&wrong).is_none());
        let key = old.key().clone();
        drop(old);
        assert!(cancels.find(&key).is_none());
        assert_eq!(cancels.len(), 1);
    }

    #[test]
    fn a_cancel_on_its_way_holds_the_connection() {
        let cancels = Arc::new(Cancels::default());
        let session = cancels.register(0);
        assert_eq!(session.begin(), None);
        session.attach(NodeId(1), 77);
        let target = session.begin();
        assert_eq!(target, Some((NodeId(1), 77)));
        assert_eq!(session.begin(), None, "one at a time");
        let ending = Ending(&session);
        assert!(!session.detach());
        drop(ending);
        assert!(session.detach());
        assert_eq!(session.begin(), None);
    }

    #[tokio::test]
    async fn a_wait_for_the_proxy_is_ended() {
        let cancels = Arc::new(Cancels::default());
        let session = cancels.register(0);
        session.wait();
        assert_eq!(session.begin(), None);
        tokio::time::timeout(Duration::from_secs(5), session.requested())
            .await
            .expect("the request is kept");
    }
}
