//! What all sessions share: pools, cancels, the way to the nodes, and the places for clients.
//!
//! Everything here is called synchronously or awaited without a lock. It knows no session's state.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;

use crate::cluster::office::Told;
use crate::config::Config;
use crate::ids::NodeId;
use crate::node::admin::{AdminError, Admins};
use crate::node::pool::Pools;
use crate::node::verifiers::Verifiers;
use crate::session::cancel::Cancels;
use crate::session::offices::Offices;
use crate::session::relay::Common;
use crate::session::tls::{Tls, TlsError};
use crate::wire::scram::Key;

/// One for the whole proxy.
pub struct Shared {
    /// What the operator set.
    pub config: Arc<Config>,
    /// Connections for clients' work.
    pub pools: Arc<Pools>,
    /// Sessions that can be cancelled.
    pub cancels: Arc<Cancels>,
    /// The proxy's own connections for short questions.
    pub admins: Admins,
    /// Roles that want to log in.
    pub verifiers: Verifiers,
    /// The certificate, if there is one.
    pub tls: Option<Tls>,
    /// Places for clients.
    pub seats: Arc<Seats>,
    /// Makes up verifiers for roles that do not exist, the same for the same name.
    pub mock_secret: Key,
    /// Cancelled when the proxy begins to stop: sessions end with 57P01 where they are idle.
    pub stop: CancellationToken,
    /// Cancelled when the time for that is over: sessions end wherever they are.
    pub abort: CancellationToken,
    /// What the relays share among themselves.
    pub relay: Common,
    /// Who writes.
    pub offices: Offices,
}

/// Why the shared parts could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The certificate or its key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The admin connections.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

impl Shared {
    /// Sets everything up; opens no connection yet. The first node is the writer until
    /// [`Shared::office`] is told otherwise.
    pub fn new(config: Arc<Config>) -> Result<Self, SetupError> {
        let admins = Admins::new(&config)?;
        let tls = match (&config.tls.certificate, &config.tls.key) {
            (Some(certificate), Some(key)) => Some(Tls::load(certificate, key)?),
            _ => None,
        };
        Ok(Self {
            pools: Arc::new(Pools::new(&config)),
            cancels: Arc::default(),
            verifiers: Verifiers::new(admins.clone()),
            admins,
            tls,
            seats: Arc::new(Seats::new(config.limits.max_clients)),
            mock_secret: rand::random(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            relay: Common::default(),
            offices: Offices::default(),
            config,
        })
    }

    /// Where the steward tells who writes, and what may be asked of the writer: by `send_replace`, as often as it likes.
    pub fn office(&self) -> Told {
        self.offices.told().clone()
    }

    /// How many sessions, and logins, have something under way at the writer. Once it is 0 after `Closing` was told,
    /// it stays so until another word. Sessions that only keep something there (a temporary table, say) do not count.
    pub fn under_way(&self) -> usize {
        self.offices.under_way(|node| self.pools.in_flight(node))
    }

    /// The node that runs the cluster's writes now, or did last.
    pub fn writer(&self) -> NodeId {
        self.offices.now().writer
    }

    /// Another node writes, in the same term: before the first client.
    pub fn set_writer(&self, node: NodeId) {
        self.offices
            .told()
            .send_modify(|office| office.writer = node);
    }

    /// What a node is called.
    pub fn node_name(&self, node: NodeId) -> String {
        let named = self.config.nodes.get(node.0);
        named.map_or_else(|| node.0.to_string(), |node| node.name.clone())
    }
}

/// A bounded number of places.
#[derive(Debug)]
pub struct Seats {
    taken: AtomicUsize,
    limit: usize,
}

impl Seats {
    /// So many.
    pub fn new(limit: usize) -> Self {
        Self {
            taken: AtomicUsize::new(0),
            limit,
        }
    }

    /// A place, if one is free.
    pub fn take(self: &Arc<Self>) -> Option<Seat> {
        let seat = Seat(Arc::clone(self));
        (self.taken.fetch_add(1, Ordering::Relaxed) < self.limit).then_some(seat)
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

/// A place, free again when dropped.
#[derive(Debug)]
pub struct Seat(Arc<Seats>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let seats = Arc::new(Seats::new(1));
        let first = seats.take();
        assert!(first.is_some());
        assert!(seats.take().is_none());
        assert_eq!(seats.taken(), 1);
        drop(first);
        assert!(seats.take().is_some());
    }
}
