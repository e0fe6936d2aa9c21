//! Whom a role's name stands for: the same one as before, or another by now.
//!
//! Pools and keys go by names, and servers by what a name meant when a connection was opened. It guards the promise
//! that a login gets no connection that was opened as somebody else, or as a superuser that the role no longer is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ids::NodeId;

/// What a connection keeps of its role from the moment it is opened, as the writer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The writer that was asked: on each node a role has another OID.
    pub node: NodeId,
    /// The role's OID there.
    pub oid: u32,
    /// Whether it is a superuser.
    pub superuser: bool,
    /// Its password's verifier, or that it has none, as a number: the verifier is the same on every node.
    pub mark: u64,
}

impl Identity {
    /// Whether it is the role that it was then.
    fn is_role(&self, then: &Self) -> bool {
        if self.node == then.node {
            self.oid == then.oid
        } else {
            self.mark == then.mark
        }
    }

    /// Whether a connection opened then is what one opened now would be.
    fn opens_like(&self, then: &Self) -> bool {
        self.is_role(then) && self.superuser == then.superuser
    }

    /// Whether a session that logged in then may have what is opened now.
    fn continues(&self, then: &Self) -> bool {
        self.is_role(then) && (self.superuser || !then.superuser)
    }
}

/// Counts the different ones that a name has stood for. Sessions keep it from their login.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(u64);

/// A role's name.
#[derive(Debug, Default)]
pub struct Bearer {
    known: Mutex<Option<Identity>>,
    epoch: AtomicU64,
}

/// The name of a role, shared by its pools.
pub type SharedBearer = Arc<Bearer>;

impl Bearer {
    /// For whom the name stands now.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// Whether the name is known to stand for no superuser.
    pub fn is_plain(&self) -> bool {
        self.lock().is_some_and(|known| !known.superuser)
    }

    /// The epoch, if this is what is known.
    pub fn recognise(&self, identity: &Identity) -> Option<Epoch> {
        let known = self.lock();
        (*known == Some(*identity)).then(|| self.epoch())
    }

    /// Takes note of what the writer said last. `renew` closes the connections opened before; nobody recognises the
    /// new one until that is done, and nobody who logged in as the old one gets a connection from then on.
    pub fn note(&self, identity: Identity, renew: impl FnOnce()) -> Epoch {
        let mut known = self.lock();
        let before = *known;
        if before.is_some_and(|before| !identity.continues(&before)) {
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
        if before.is_none_or(|before| !identity.opens_like(&before)) {
            renew();
        }
        *known = Some(identity);
        self.epoch()
    }

    /// Nothing inside panics halfway, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, Option<Identity>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(node: usize, oid: u32, superuser: bool, mark: u64) -> Identity {
        Identity {
            node: NodeId(node),
            oid,
            superuser,
            mark,
        }
    }

    /// What each change of a role does to its connections and to its older sessions.
    #[test]
    fn only_another_role_or_a_lost_right_ends_sessions() {
        let changes = [
            (role(0, 1, false, 7), false, false),
            (role(0, 1, false, 8), false, false),
            (role(0, 1, true, 8), true, false),
            (role(0, 1, false, 8), true, true),
            (role(0, 2, false, 8), true, true),
            (role(1, 9, false, 8), false, false),
            (role(2, 9, false, 3), true, true),
        ];
        let bearer = Bearer::default();
        bearer.note(role(0, 1, false, 7), || {});
        for (now, renews, ends) in changes {
            let (before, mut renewed) = (bearer.epoch(), false);
            let after = bearer.note(now, || renewed = true);
            assert_eq!((renewed, after != before), (renews, ends), "{now:?}");
            assert_eq!(bearer.recognise(&now), Some(after));
        }
        assert_eq!(bearer.recognise(&role(0, 1, false, 7)), None);
        assert!(bearer.is_plain());
    }
}
