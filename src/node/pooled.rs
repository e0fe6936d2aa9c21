//! One pooled connection: how it is opened with a role's key, what is looked at before it is used
//! again, and how failing is told.
//!
//! Promises that a key which a node refused is never tried again, and that a connection on which the
//! server has said something unexpected is not reused. It decides nothing about how many there are.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, RecycleError, RecycleResult};

use super::backend::{Address, Backend, BackendError, Login, Secret};
use super::canary::Canaries;
use super::carried::{Carried, Settings};
use super::identity::SharedBearer;
use super::keys::{KeyRing, RoleKey};
use super::settings;
use crate::error::{ClientError, NodeWords};
use crate::ids::NodeId;
use crate::wire::error::ScramError;
use crate::wire::message::report::{Report, field};

/// How long opening one connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// By this the event triggers know a connection on which clients' commands come (`replica.sql`).
const RELAYED: &str = "synapsedb.relayed";

/// The setting by which a session says what its reads may miss.
pub const CONSISTENCY: &str = "synapsedb.read_consistency";

/// A connection as the pools keep it.
#[derive(Debug)]
pub struct Pooled {
    /// The connection itself, idle and authenticated when leased.
    pub backend: Backend,
    /// What earlier sessions left on it, known exactly.
    pub carried: Carried,
    /// On a read-only one: the role's or the server's own transactions are at READ COMMITTED.
    pub plain: bool,
    pub(super) generation: u64,
}

impl Pooled {
    /// Whether a session that wants these settings finds nothing to undo or to set; `stranger`: it is not the one
    /// that used the connection last.
    pub fn suits(&self, wanted: &Settings, stranger: bool) -> bool {
        !(stranger && self.carried.tainted) && self.carried.settings == *wanted
    }

    /// Brings the connection's settings to what a session wants. An error of the node's (an unknown
    /// name, a bad value) leaves them as they were. When dropped midway the lease must be discarded.
    pub async fn adopt(&mut self, wanted: &Settings) -> Result<(), BackendError> {
        if let Some(sql) = settings::difference(&self.carried.settings, wanted) {
            // A simple query is the end of the unnamed statement.
            self.carried.unnamed = None;
            self.backend.query(&sql).await?;
            self.carried.settings.clone_from(wanted);
        }
        Ok(())
    }

    /// Undoes what code of another session may have left where no probe sees it. When dropped midway
    /// the lease must be discarded.
    pub async fn cleanse(&mut self) -> Result<(), BackendError> {
        if self.carried.tainted {
            self.carried.unnamed = None;
            let sql = "reset session authorization; reset role; reset all";
            self.backend.query(sql).await?;
            self.carried.settings.clear();
            self.carried.tainted = false;
        }
        Ok(())
    }

    /// Whether the server has said nothing since the last session, or only what does no harm. Costs no
    /// system call while nothing arrives.
    fn quiet(&mut self) -> bool {
        if !self.backend.input.is_empty() {
            return false;
        }
        match self.backend.stream.try_read_buf(&mut self.backend.input) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => true,
            Err(_) | Ok(0) => false,
            Ok(_) => self.absorb(),
        }
    }

    /// A reload of the server's configuration sends new `ParameterStatus` to idle connections.
    fn absorb(&mut self) -> bool {
        loop {
            match self.backend.buffered_frame() {
                Ok(Some((b'S', frame))) => self.backend.note_parameter(&frame),
                Ok(Some((b'N', _))) => {}
                Ok(None) => return self.backend.input.is_empty(),
                Ok(Some(_)) | Err(_) => return false,
            }
        }
    }
}

impl Drop for Pooled {
    /// Says goodbye if that is possible at once, so that the node's log stays clean.
    fn drop(&mut self) {
        let _ = self.backend.stream.try_write(b"X\0\0\0\x04");
    }
}

/// Why no connection could be had.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// None became free in time.
    #[error("no connection became free within {waited:?}")]
    Timeout {
        /// `pool.queue_timeout_ms`.
        waited: Duration,
        /// `pool.max_connections`.
        max_connections: usize,
    },
    /// Too many wait already.
    #[error("{queue_max} wait already")]
    QueueFull {
        /// `pool.queue_max`.
        queue_max: usize,
    },
    /// Nobody's key opens the node.
    #[error("no key of role {user} opens the node")]
    NoKey {
        /// The role.
        user: String,
    },
    /// The node can't be reached, or refuses.
    #[error("node {node}: {error}")]
    Node {
        /// Its name.
        node: String,
        /// Why.
        error: BackendError,
    },
    /// The pools are closed: the proxy is stopping.
    #[error("closed")]
    Closed,
}

impl From<PoolError> for ClientError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Timeout {
                waited,
                max_connections,
            } => Self::PoolTimeout {
                waited,
                max_connections,
            },
            PoolError::QueueFull { queue_max } => Self::QueueFull { queue_max },
            PoolError::NoKey { user } => Self::NoKey { user },
            PoolError::Node { node, error } => node_error(node, error),
            PoolError::Closed => Self::ShuttingDown,
        }
    }
}

/// What a client is told of a node that failed: the node's own words where it has any.
pub fn node_error(node: String, error: BackendError) -> ClientError {
    match error {
        BackendError::Io(_) | BackendError::Timeout(_) => ClientError::NodeUnreachable { node },
        BackendError::Server(report) => ClientError::Node(Box::new(words(&report))),
        other => ClientError::NodeFault {
            node,
            fault: other.to_string(),
        },
    }
}

fn words(report: &Report) -> NodeWords {
    NodeWords {
        sqlstate: report.code().to_owned(),
        message: report.message(),
        detail: report.text(field::DETAIL),
        hint: report.text(field::HINT),
    }
}

/// How connections of one pool are opened and looked at before reuse.
pub(super) struct Opener {
    pub(super) node_name: String,
    pub(super) address: Address,
    pub(super) user: String,
    pub(super) database: String,
    /// Nothing is to be written on them.
    pub(super) read_only: bool,
    /// What `synapsedb.read_consistency` is before anybody sets it.
    pub(super) consistency: &'static str,
    pub(super) trust: bool,
    pub(super) keys: Arc<KeyRing>,
    pub(super) node: NodeId,
    pub(super) canaries: Arc<Canaries>,
    pub(super) bearer: SharedBearer,
    pub(super) generation: AtomicU64,
}

impl Opener {
    fn login(&self, secret: Secret) -> Login {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut parameters = vec![pair(RELAYED, "on"), pair(CONSISTENCY, self.consistency)];
        if self.read_only {
            // Ahead of what ALTER ROLE and ALTER DATABASE say; RESET leads back here.
            parameters.push(pair("default_transaction_read_only", "on"));
        }
        Login {
            user: self.user.clone(),
            database: self.database.clone(),
            secret,
            parameters,
        }
    }

    pub(super) async fn open(&self) -> Result<Backend, PoolError> {
        if self.trust {
            return self.connect(Secret::None).await.map_err(|e| self.fault(e));
        }
        loop {
            let Some(key) = self.keys.get(&self.user) else {
                return Err(PoolError::NoKey {
                    user: self.user.clone(),
                });
            };
            match self.connect(secret(&key)).await {
                Err(error) if refused(&error) => {
                    // Each round drops a key, so this ends unless somebody logs in anew every time.
                    tracing::info!(
                        user = self.user,
                        node = self.node_name,
                        "a node refused a role's key"
                    );
                    self.keys.forget(&self.user, &key);
                }
                other => return other.map_err(|e| self.fault(e)),
            }
        }
    }

    async fn connect(&self, secret: Secret) -> Result<Backend, BackendError> {
        Backend::connect(&self.address, &self.login(secret), CONNECT_LIMIT).await
    }

    /// Whether the role's transactions are at READ COMMITTED where it does not say otherwise.
    async fn is_plain(&self, backend: &mut Backend) -> Result<bool, PoolError> {
        let sql = "select pg_catalog.current_setting('default_transaction_isolation')";
        let rows = backend.query(sql).await.map_err(|e| self.fault(e))?;
        let level = rows.first().and_then(|row| row.first()?.as_deref());
        Ok(level == Some("read committed"))
    }

    fn fault(&self, error: BackendError) -> PoolError {
        PoolError::Node {
            node: self.node_name.clone(),
            error,
        }
    }
}

fn secret(key: &RoleKey) -> Secret {
    Secret::Scram {
        client_key: key.client_key,
        verifier: key.verifier.clone(),
    }
}

/// Whether the node holds another password than the key's.
fn refused(error: &BackendError) -> bool {
    matches!(error, BackendError::Scram(ScramError::OtherVerifier))
        || error.sqlstate() == Some("28P01")
}

impl Manager for Opener {
    /// On the heap: it is moved from hand to hand with each transaction.
    type Type = Box<Pooled>;
    type Error = PoolError;

    /// Dropped midway, the socket is closed and the place in the pool is free again.
    async fn create(&self) -> Result<Box<Pooled>, PoolError> {
        let mut generation = self.generation.load(Ordering::Acquire);
        // Boxed like all that is rare on this way: what waits for a free connection is moved about with each query.
        let mut backend = Box::pin(self.open()).await?;
        let plain = self.read_only && self.is_plain(&mut backend).await?;
        if !self.canaries.vouches(self.node) {
            let again = io::Error::new(io::ErrorKind::ConnectionReset, "it was started again");
            return Err(self.fault(again.into()));
        }
        let superuser = backend.parameters.get("is_superuser");
        if self.read_only && self.bearer.is_plain() && superuser.is_some_and(|value| value == "on")
        {
            // A follower that has not heard of it yet: nobody uses the connection again.
            generation = generation.wrapping_sub(1);
        }
        Ok(Box::new(Pooled {
            backend,
            carried: Carried::default(),
            plain,
            generation,
        }))
    }

    async fn recycle(&self, pooled: &mut Box<Pooled>, _: &Metrics) -> RecycleResult<PoolError> {
        let current = pooled.generation == self.generation.load(Ordering::Acquire);
        if current && pooled.quiet() {
            Ok(())
        } else {
            Err(RecycleError::message(
                "closed, noisy or of another generation",
            ))
        }
    }
}
