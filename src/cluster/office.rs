//! Who writes now, and whether anybody may: told by the steward, watched by sessions.
//!
//! It guards promises 1 and 2 on the sessions' side: nothing begins at a writer that is to be replaced, and what was
//! under way there when it was lost is never taken for done. It decides nothing.

use tokio::sync::watch;

use crate::ids::{Epoch, NodeId};

/// The writer, and what may be asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Office {
    /// Who writes, or wrote last.
    pub writer: NodeId,
    /// When it took office: what was begun in one term does not go on in another.
    pub term: Epoch,
    /// What may be asked of it.
    pub state: State,
}

/// What may be asked of the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Everything.
    Open,
    /// A planned change is under way: what is open goes on to its end, and what would begin waits for the next term.
    Closing,
    /// It is lost, or has left office, and nobody follows yet: what would begin waits for the next term, and what was
    /// open is over.
    Vacant,
    /// It is lost, and so many others that nobody can follow: followers that have all that a majority had are read from,
    /// and writes are refused.
    Headless {
        /// So many are in sync.
        in_sync: usize,
        /// Of so many.
        nodes: usize,
    },
    /// Too few nodes are in sync for a commit: it is read from, and writes are refused.
    ReadOnly {
        /// So many are in sync, the writer among them.
        in_sync: usize,
        /// Of so many.
        nodes: usize,
    },
}

/// Where the steward tells it.
pub type Told = watch::Sender<Office>;
/// Where sessions hear it.
pub type Heard = watch::Receiver<Office>;

/// The first office, before anything is told.
pub fn first(writer: NodeId) -> Office {
    Office {
        writer,
        term: Epoch(1),
        state: State::Open,
    }
}

impl Office {
    /// Whether anything may begin at the writer.
    pub fn serves(&self) -> bool {
        matches!(self.state, State::Open | State::ReadOnly { .. })
    }

    /// Whether it is going to be another one soon, so that it is waited for.
    pub fn waits(&self) -> bool {
        matches!(self.state, State::Closing | State::Vacant)
    }

    /// Whether what was begun in a term has lost its writer.
    pub fn is_over(&self, term: Epoch) -> bool {
        self.term != term || self.state == State::Vacant || self.is_headless()
    }

    /// Whether somebody could be read from where nobody writes.
    pub fn is_headless(&self) -> bool {
        matches!(self.state, State::Headless { .. })
    }

    /// So many nodes in sync of so many, where that is no majority.
    pub fn lacks_majority(&self) -> Option<(usize, usize)> {
        match self.state {
            State::Headless { in_sync, nodes } | State::ReadOnly { in_sync, nodes } => {
                Some((in_sync, nodes))
            }
            State::Open | State::Closing | State::Vacant => None,
        }
    }
}
