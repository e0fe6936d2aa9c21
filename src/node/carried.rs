//! What a pooled connection carries from one session to the next: settings and prepared statements.
//!
//! The relay keeps it true; the pool only keeps it beside the socket. Its promise: a session that gets
//! the connection can tell exactly what to undo before its own first message runs.

use std::collections::{BTreeMap, VecDeque};

/// Settings that differ from what the server gave the connection at its start, by lower-case name, as
/// `set_config` takes them. `role` and `session_authorization` are among them.
pub type Settings = BTreeMap<String, String>;

/// The state of one pooled connection beyond its socket.
#[derive(Debug, Default)]
pub struct Carried {
    /// Settings in force.
    pub settings: Settings,
    /// Server-side statements `synapsedb_<n>` that exist on it.
    pub statements: Statements,
    /// Whose unnamed statement it holds: the session and that session's count of unnamed statements.
    pub unnamed: Option<(u64, u64)>,
    /// The session that used it last; 0 for none.
    pub last_session: u64,
    /// The last session ran code that may have left what no probe sees (settings of unknown names made in
    /// functions); another session must have them reset first.
    pub tainted: bool,
    /// The last session may have drawn values of sequences; another must not find them in `lastval`.
    pub drawn: bool,
}

/// The numbers of the prepared statements on a connection, least recently used first.
#[derive(Debug, Default)]
pub struct Statements {
    order: VecDeque<u64>,
}

impl Statements {
    /// Whether the statement is there; if so it is now the most recently used.
    pub fn touch(&mut self, id: u64) -> bool {
        // The newest is nearly always the one asked for, so the search runs from the back.
        let Some(at) = self.order.iter().rposition(|other| *other == id) else {
            return false;
        };
        if at + 1 != self.order.len() {
            self.order.remove(at);
            self.order.push_back(id);
        }
        true
    }

    /// Notes a new statement as the most recently used.
    pub fn insert(&mut self, id: u64) {
        if !self.touch(id) {
            self.order.push_back(id);
        }
    }

    /// Forgets a statement.
    pub fn remove(&mut self, id: u64) {
        self.order.retain(|other| *other != id);
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
