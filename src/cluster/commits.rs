//! Which commits the stream has shown, and which of them are part of the history that goes on.
//!
//! Guards that nobody is told that a transaction was committed, or was not, where that is not known. A commit that the
//! stream showed is part of the history that a new writer goes on with where that writer has the unit; one that the
//! stream never showed is on no follower, so it is lost with its writer for good. Where the same node goes on, what was
//! not shown may still be in its log. It knows no session but by a number.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::ids::{Epoch, Lsn, NodeId, UnitId};
use crate::node::token::Token;

/// So many terms are remembered: whoever asks does so within seconds.
const TERMS: usize = 16;

/// What became of a commit whose answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is part of the history.
    Committed,
    /// It never will be.
    Lost,
}

/// A term that has ended.
#[derive(Clone, Debug)]
pub struct Former {
    /// Which.
    pub term: Epoch,
    /// Who wrote then.
    pub writer: NodeId,
    /// The last of its units that the new writer has, by database; none where that says nothing, as of the new
    /// writer's own.
    pub last: Option<BTreeMap<String, Lsn>>,
}

/// What the history has of terms that have ended, by database: the last unit.
type Ended = BTreeMap<Epoch, Arc<BTreeMap<String, Lsn>>>;

/// The last commit of one session that the stream has shown.
type Seat = Mutex<Option<(u64, UnitId)>>;

/// One for the proxy.
#[derive(Debug)]
pub struct Commits {
    key: u64,
    /// What the statement that sends tokens, and its portal, are called on connections: nobody else's are.
    name: String,
    seats: Mutex<HashMap<u64, Arc<Seat>>>,
    ended: watch::Sender<Ended>,
}

impl Default for Commits {
    fn default() -> Self {
        Self {
            key: rand::random(),
            name: format!("synapsedb_commit_{:016x}", rand::random::<u64>()),
            seats: Mutex::default(),
            ended: watch::Sender::new(Ended::new()),
        }
    }
}

impl Commits {
    /// What the statement that sends tokens, and its portal, are called on connections.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A session's place. Its number must be its own as long as the ticket is there.
    pub fn join(self: &Arc<Self>, session: u64) -> Ticket {
        let seat = Arc::new(Seat::default());
        self.seats().insert(session, Arc::clone(&seat));
        Ticket {
            commits: Arc::clone(self),
            seat,
            session,
            count: 0,
        }
    }

    /// The stream has shown a commit, as this unit; as [`UnitId::NOTHING`] where it changed nothing that others have.
    pub fn shown(&self, token: Token, unit: UnitId) {
        if token.key != self.key {
            return;
        }
        let seat = self.seats().get(&token.session).map(Arc::clone);
        let Some(seat) = seat else { return };
        let mut seat = lock(&seat);
        // A log that is read again, or another writer's from a place long ago, shows older ones anew.
        if seat.is_none_or(|(newest, _)| newest <= token.count) {
            *seat = Some((token.count, unit));
        }
    }

    /// A term has ended, and another node writes: `last` is by database the last of the term's units that it has, and
    /// that a majority has with it.
    pub fn end(&self, term: Epoch, last: BTreeMap<String, Lsn>) {
        self.ended.send_modify(|ended| {
            ended.insert(term, Arc::new(last));
            while ended.len() > TERMS {
                ended.pop_first();
            }
        });
    }

    fn seats(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(seat: &Seat) -> std::sync::MutexGuard<'_, Option<(u64, UnitId)>> {
    seat.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session's place.
#[derive(Debug)]
pub struct Ticket {
    commits: Arc<Commits>,
    seat: Arc<Seat>,
    session: u64,
    count: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.commits.seats().remove(&self.session);
    }
}

impl Ticket {
    /// The token of the commit that comes next.
    pub fn next_token(&mut self) -> Token {
        self.count += 1;
        Token {
            key: self.commits.key,
            session: self.session,
            count: self.count,
        }
    }

    /// Whether the stream has shown the commit.
    pub fn is_shown(&self, count: u64) -> bool {
        self.shown(count).is_some()
    }

    fn shown(&self, count: u64) -> Option<UnitId> {
        lock(&self.seat)
            .filter(|(shown, _)| *shown == count)
            .map(|(_, unit)| unit)
    }

    /// Waits until the term has ended and another node writes, and tells what became of a commit of that term.
    /// Dropping it is harmless.
    pub async fn fate(&self, count: u64, term: Epoch, database: &str) -> Fate {
        let mut ended = self.commits.ended.subscribe();
        let last = match ended.wait_for(|ended| ended.contains_key(&term)).await {
            Ok(ended) => ended.get(&term).map(Arc::clone),
            // The sender lives as long as the ticket.
            Err(_) => None,
        };
        let Some(last) = last else {
            return std::future::pending().await;
        };
        let last = last.get(database).copied().unwrap_or_default();
        match self.shown(count) {
            Some(unit) if unit.in_log_of(term) <= last => Fate::Committed,
            _ => Fate::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_commit_is_part_of_the_history_where_the_next_writer_has_its_unit() {
        let commits = Arc::new(Commits::default());
        let mut ticket = commits.join(7);
        let (term, unit) = (Epoch(3), |lsn| UnitId {
            term: Epoch(3),
            lsn: Lsn(lsn),
        });
        let first = ticket.next_token();
        commits.shown(first, unit(100));
        commits.shown(
            Token {
                key: !first.key,
                count: 2,
                ..first
            },
            unit(50),
        );
        commits.shown(
            Token {
                session: 8,
                count: 2,
                ..first
            },
            unit(50),
        );
        commits.end(
            term,
            BTreeMap::from([("a".to_owned(), Lsn(100)), ("b".to_owned(), Lsn(99))]),
        );
        assert_eq!(ticket.fate(1, term, "a").await, Fate::Committed);
        assert_eq!(ticket.fate(1, term, "b").await, Fate::Lost);
        assert_eq!(ticket.fate(1, term, "c").await, Fate::Lost);
        assert_eq!(ticket.fate(2, term, "a").await, Fate::Lost);
        // It changed nothing that others have.
        let second = ticket.next_token();
        commits.shown(second, UnitId::NOTHING);
        assert_eq!(ticket.fate(2, term, "c").await, Fate::Committed);
        assert!(ticket.is_shown(2) && !ticket.is_shown(1));
    }

    #[tokio::test]
    async fn a_log_that_is_read_from_long_ago_takes_nothing_back() {
        let commits = Arc::new(Commits::default());
        let mut ticket = commits.join(7);
        let [old, new] = [1, 3].map(|term| UnitId {
            term: Epoch(term),
            lsn: Lsn(50),
        });
        let (first, second) = (ticket.next_token(), ticket.next_token());
        commits.shown(first, old);
        commits.shown(second, new);
        commits.shown(first, old);
        commits.end(Epoch(3), BTreeMap::from([("a".to_owned(), Lsn(50))]));
        assert_eq!(ticket.fate(2, Epoch(3), "a").await, Fate::Committed);
    }

    #[tokio::test]
    async fn nothing_is_told_before_a_term_has_ended() {
        let commits = Arc::new(Commits::default());
        let mut ticket = commits.join(1);
        commits.shown(ticket.next_token(), UnitId::NOTHING);
        let fate = ticket.fate(1, Epoch(1), "a");
        let early = tokio::time::timeout(std::time::Duration::from_millis(1), fate);
        assert!(early.await.is_err());
        drop(ticket);
        assert!(commits.seats().is_empty());
    }
}
