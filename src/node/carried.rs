//! What a pooled connection carries from one session to the next: settings and prepared statements.
//!
//! The relay keeps it true; the pool only keeps it beside the socket. Its promise: a session that gets
//! the connection can tell exactly what to undo before its own first message runs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::wire::message::shape::Shape;

/// Settings that differ from what the server gave the connection at its start, by lower-case name, as
/// `set_config` takes them. `role` and `session_authorization` are among them.
pub type Settings = BTreeMap<String, String>;

/// What is known of a statement's description, filled in when an answer tells it.
#[derive(Debug, Default)]
pub struct Noted(Mutex<Shape>);

impl Noted {
    /// What is known now.
    pub fn get(&self) -> Shape {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a frame of a description; `portal`: of a portal's.
    pub fn learn(&self, frame: &[u8], portal: bool) {
        let mut shape = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shape.learn(frame, portal);
    }
}

/// The state of one pooled connection beyond its socket.
#[derive(Debug, Default)]
pub struct Carried {
    /// Settings in force.
    pub settings: Settings,
    /// Server-side statements `synapsedb_<n>` that exist on it.
    pub statements: Statements,
    /// Whose unnamed statement it holds: the session and that session's count of unnamed statements.
    pub unnamed: Option<(u64, u64)>,
    /// What is known of that one's description.
    pub unnamed_shape: Arc<Noted>,
    /// The session that used it last; 0 for none.
    pub last_session: u64,
    /// The last session ran code that may have left what no probe sees (settings of unknown names made in
    /// functions); another session must have them reset first.
    pub tainted: bool,
    /// The statement that sends a token ahead of a COMMIT is prepared on it.
    pub seals: bool,
    /// The last session may have drawn values of sequences; another must not find them in `lastval`.
    pub drawn: bool,
}

/// The numbers of the prepared statements on a connection, least recently used first, each with what is known
/// of its description there: the server keeps that as it was when it was prepared, or refuses.
#[derive(Debug, Default)]
pub struct Statements {
    order: VecDeque<(u64, Arc<Noted>)>,
}

impl Statements {
    /// Whether the statement is there; if so it is now the most recently used.
    pub fn touch(&mut self, id: u64) -> bool {
        // The newest is nearly always the one asked for, so the search runs from the back.
        let Some(at) = self.order.iter().rposition(|(other, _)| *other == id) else {
            return false;
        };
        if at + 1 != self.order.len()
            && let Some(used) = self.order.remove(at)
        {
            self.order.push_back(used);
        }
        true
    }

    /// Notes a new statement as the most recently used.
    pub fn insert(&mut self, id: u64) {
        if !self.touch(id) {
            self.order.push_back((id, Arc::default()));
        }
    }

    /// What is known of the statement's description, if it is there.
    pub fn shape(&self, id: u64) -> Option<Arc<Noted>> {
        let mut newest_first = self.order.iter().rev();
        let found = newest_first.find(|(other, _)| *other == id);
        found.map(|(_, shape)| Arc::clone(shape))
    }

    /// Forgets a statement.
    pub fn remove(&mut self, id: u64) {
        self.order.retain(|(other, _)| *other != id);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.order.clear();
    }

    /// The least recently used, taken out, once there are more than `limit`.
    pub fn overflow(&mut self, limit: usize) -> Option<u64> {
        (self.order.len() > limit)
            .then(|| self.order.pop_front())
            .flatten()
            .map(|(id, _)| id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut statements = Statements::default();
        for id in 1..=3 {
            statements.insert(id);
        }
        assert!(statements.touch(1));
        assert_eq!(statements.overflow(2), Some(2));
        assert_eq!(statements.overflow(2), None);
        assert!(!statements.touch(2));
        statements.remove(3);
        assert_eq!(statements.len(), 1);
    }
}
