//! What opens the nodes' doors for a role: the key recovered from a client's own proof.
//!
//! Only the newest key of a role is kept, and only in memory. A key that a node refused is dropped:
//! after a password change an old key opens nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::wire::scram::Key;
use crate::wire::scram::verifier::Verifier;

/// A role's key, and the verifier it was proved against.
#[derive(Clone, PartialEq, Eq)]
pub struct RoleKey {
    /// The client's key.
    pub client_key: Key,
    /// What the nodes hold of the password.
    pub verifier: Verifier,
}

impl std::fmt::Debug for RoleKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RoleKey(..)")
    }
}

/// The newest key of each role that logged in.
#[derive(Debug, Default)]
pub struct KeyRing(Mutex<BTreeMap<String, Arc<RoleKey>>>);

impl KeyRing {
    /// Keeps a key that was just proved right, in place of an older one.
    pub fn learn(&self, user: &str, key: RoleKey) {
        let mut keys = self.lock();
        if keys.get(user).is_none_or(|known| **known != key) {
            keys.insert(user.to_owned(), Arc::new(key));
        }
    }

    /// The role's key.
    pub fn get(&self, user: &str) -> Option<Arc<RoleKey>> {
        self.lock().get(user).cloned()
    }

    /// Drops a key that a node refused, unless a newer one has taken its place.
    pub fn forget(&self, user: &str, refused: &Arc<RoleKey>) {
        let mut keys = self.lock();
        if keys.get(user).is_some_and(|key| Arc::ptr_eq(key, refused)) {
            keys.remove(user);
        }
    }

    /// Held for a few instructions; nothing inside can panic, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<RoleKey>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(password: &str) -> RoleKey {
        let verifier =
            Verifier::of_password(password.as_bytes(), b"0123456789abcdef", 1).expect("fits");
        RoleKey {
            client_key: [0; 32],
            verifier,
        }
    }

    #[test]
    fn a_refused_key_goes_and_a_newer_one_stays() {
        let ring = KeyRing::default();
        ring.learn("ann", key("old"));
        let old = ring.get("ann").expect("learned");
        ring.learn("ann", key("old"));
        assert!(Arc::ptr_eq(&old, &ring.get("ann").expect("the same")));
        ring.learn("ann", key("new"));
        ring.forget("ann", &old);
        let new = ring.get("ann").expect("newer");
        assert_eq!(*new, key("new"));
        ring.forget("ann", &new);
        assert!(ring.get("ann").is_none());
    }
}
