//! Pools of connections for clients' work: one for each node, user and database.
//!
//! Promises: a connection comes back only through [`Lease::release`], by a session that left it
//! clean; whatever else happens to a lease closes it. Pools and their queues are bounded, a wait has
//! an end, and who waits longest is served first. A connection of another generation (its node was
//! declared dead, the role's defaults changed, its name stands for another) is closed and not reused.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool::managed::{self, Object, QueueMode, TimeoutType, Timeouts};
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::backend::Address;
use super::canary::Canaries;
use super::identity::{Bearer, Epoch, Identity, SharedBearer};
use super::keys::{KeyRing, RoleKey};
use super::pooled::{Opener, PoolError, Pooled};
use crate::config::{AuthMode, Config};
use crate::ids::{Epoch as Term, NodeId};

/// A permit that is free now, or none.
const AT_ONCE: Timeouts = Timeouts {
    wait: Some(Duration::ZERO),
    create: None,
    recycle: None,
};

/// The connections of one user to one database of one node. A session keeps an `Arc` of its pool.
pub struct Pool {
    connections: managed::Pool<Opener>,
    node: NodeId,
    max_connections: usize,
    queue_max: usize,
    queue_timeout: Duration,
    waiting: AtomicUsize,
    /// Leases of this node, of all its pools.
    in_flight: Arc<AtomicUsize>,
    pressure: Notify,
    defaults: Mutex<Option<String>>,
    bearer: SharedBearer,
    /// The newest term in which it was asked for a connection to the writer.
    term: AtomicU64,
}

impl Pool {
    /// The node whose connections these are.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// For whom the role's name stands. A session looks at it once it has a connection: where it is not what it was
    /// at its login, the connection is not for it.
    pub fn epoch(&self) -> Epoch {
        self.bearer.epoch()
    }

    /// Its connections are the writer's in this term: what was opened in an earlier one is not used any more.
    pub fn begin_term(&self, term: Term) {
        if self.term.load(Ordering::Acquire) < term.0 {
            // First, so that whoever finds the term begun finds nothing older.
            self.renew();
            self.term.fetch_max(term.0, Ordering::AcqRel);
        }
    }

    /// The newest term that has begun.
    pub fn term(&self) -> Term {
        Term(self.term.load(Ordering::Acquire))
    }

    /// A connection of one's own until it is released: at once where one is free, else after waiting
    /// in line. Dropping the future gives the place in line back.
    pub async fn acquire(self: &Arc<Self>) -> Result<Lease, PoolError> {
        match self.acquire_free().await? {
            Some(lease) => Ok(lease),
            None => Box::pin(self.queue()).await,
        }
    }

    /// One that is free now or may be opened, else `None`: takes no place in line. Cancel-safe.
    pub async fn acquire_free(self: &Arc<Self>) -> Result<Option<Lease>, PoolError> {
        match self.connections.timeout_get(&AT_ONCE).await {
            Ok(object) => Ok(Some(self.lease(object))),
            Err(managed::PoolError::Timeout(TimeoutType::Wait)) => Ok(None),
            Err(error) => Err(self.error(error)),
        }
    }

    /// One that is idle now, else `None`. Waits for nothing and opens nothing: the short way, taken first.
    pub fn acquire_idle(self: &Arc<Self>) -> Option<Lease> {
        if self.connections.status().available == 0 {
            return None;
        }
        // An idle one is there at the first look. Whatever else is true by now, the long way finds out.
        let object = self
            .connections
            .timeout_get(&AT_ONCE)
            .now_or_never()?
            .ok()?;
        Some(self.lease(object))
    }

    async fn queue(self: &Arc<Self>) -> Result<Lease, PoolError> {
        let _place = Place::take(self).ok_or(PoolError::QueueFull {
            queue_max: self.queue_max,
        })?;
        metrics::counter!("synapsedb_pool_waits_total").increment(1);
        self.pressure.notify_waiters();
        let limits = Timeouts {
            wait: Some(self.queue_timeout),
            ..Timeouts::default()
        };
        let got = self.connections.timeout_get(&limits).await;
        if matches!(got, Err(managed::PoolError::Timeout(_))) {
            metrics::counter!("synapsedb_pool_timeouts_total").increment(1);
        }
        got.map(|object| self.lease(object))
            .map_err(|e| self.error(e))
    }

    fn lease(self: &Arc<Self>, object: Object<Opener>) -> Lease {
        // Counted before whoever has it looks at the office again (`session/offices.rs`).
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        Lease {
            object: Some(object),
            pool: Arc::clone(self),
        }
    }

    fn error(&self, error: managed::PoolError<PoolError>) -> PoolError {
        match error {
            managed::PoolError::Timeout(_) => PoolError::Timeout {
                waited: self.queue_timeout,
                max_connections: self.max_connections,
            },
            managed::PoolError::Backend(error) => error,
            managed::PoolError::Closed
            | managed::PoolError::NoRuntimeSpecified
            | managed::PoolError::PostCreateHook(_) => PoolError::Closed,
        }
    }

    /// Ends as soon as somebody waits for a connection: whoever holds one only to spare itself work
    /// gives it back then. Cancel-safe.
    pub async fn pressure(&self) {
        loop {
            let pressed = self.pressure.notified();
            if self.waiting() > 0 {
                return;
            }
            pressed.await;
        }
    }

    /// How many wait for a connection.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How many connections there are, and how many of them are idle.
    pub fn size(&self) -> (usize, usize) {
        let status = self.connections.status();
        (status.size, status.available)
    }

    /// From now on connections opened before are closed instead of reused; the idle ones at once.
    pub fn renew(&self) {
        self.connections
            .manager()
            .generation
            .fetch_add(1, Ordering::AcqRel);
        self.connections.retain(|_, _| false);
    }

    /// Takes note of the role's and database's own settings: when ALTER ROLE or ALTER DATABASE changed
    /// them, connections opened before no longer are what a new login would get.
    pub fn note_defaults(&self, defaults: &str) {
        let mut known = lock(&self.defaults);
        let changed = known.as_deref().is_some_and(|known| known != defaults);
        if known.as_deref() != Some(defaults) {
            *known = Some(defaults.to_owned());
        }
        drop(known);
        if changed {
            self.renew();
        }
    }

    /// Whether the role's and database's own settings name this one.
    pub fn defaults_name(&self, setting: &str) -> bool {
        let known = lock(&self.defaults);
        known
            .as_deref()
            .is_some_and(|known| known.contains(setting))
    }

    fn close_idle(&self, longer_than: Duration) {
        self.connections
            .retain(|_, metrics| metrics.last_used() < longer_than);
    }
}

/// A place in line, given back however the wait ends.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(pool: &'a Pool) -> Option<Self> {
        let place = Self(&pool.waiting);
        (place.0.fetch_add(1, Ordering::Relaxed) < pool.queue_max).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection in one session's hands. Dropping it closes the connection: only a session that knows
/// that it left nothing behind gives it back, by [`Lease::release`].
pub struct Lease {
    object: Option<Object<Opener>>,
    pool: Arc<Pool>,
}

impl Lease {
    /// Gives the connection back for reuse: no transaction is open, every answer has been read, and
    /// `carried` says what was left behind.
    pub fn release(mut self) {
        let Some(object) = self.object.take() else {
            return;
        };
        let generation = self
            .pool
            .connections
            .manager()
            .generation
            .load(Ordering::Acquire);
        if object.backend.input.is_empty() && object.generation == generation {
            drop(object);
        } else {
            drop(Object::take(object));
        }
    }

    /// Closes the connection, whatever state it is in.
    pub fn discard(self) {
        drop(self);
    }

    /// The pool that it came from.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The node at the other end.
    pub fn node(&self) -> NodeId {
        self.pool.node
    }
}

impl Deref for Lease {
    type Target = Pooled;

    fn deref(&self) -> &Pooled {
        // Only `release` and `drop` take the object out, and both end the lease.
        #[allow(clippy::expect_used)]
        self.object.as_ref().expect("held until the lease ends")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Pooled {
        // Only `release` and `drop` take the object out, and both end the lease.
        #[allow(clippy::expect_used)]
        self.object.as_mut().expect("held until the lease ends")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.in_flight.fetch_sub(1, Ordering::Relaxed);
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
        }
    }
}

/// What names a pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolName {
    /// The node.
    pub node: NodeId,
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// Nothing can be written on its connections.
    pub read_only: bool,
}

/// One pool's numbers, for operators.
#[derive(Clone, Debug)]
pub struct PoolStatus {
    /// Which pool.
    pub name: PoolName,
    /// Open connections.
    pub size: usize,
    /// Idle ones among them.
    pub idle: usize,
    /// Sessions in line.
    pub waiting: usize,
}

/// All pools, and the keys that open new connections.
pub struct Pools {
    nodes: Vec<(String, Address)>,
    limits: crate::config::Pool,
    /// Leases, by node.
    in_flight: Vec<Arc<AtomicUsize>>,
    trust: bool,
    consistency: &'static str,
    keys: Arc<KeyRing>,
    canaries: Arc<Canaries>,
    /// Of each role that logged in.
    bearers: Mutex<BTreeMap<String, SharedBearer>>,
    /// Held while the writer is asked who a role has become, so that its answers are noted in their order.
    asking: tokio::sync::Mutex<()>,
    open: Mutex<BTreeMap<PoolName, Arc<Pool>>>,
}

impl Pools {
    /// Pools for the configured nodes; nothing is opened yet.
    pub fn new(config: &Config) -> Self {
        let node = |node: &crate::config::Node| {
            let address = Address {
                host: node.host.clone(),
                port: node.port,
            };
            (node.name.clone(), address)
        };
        Self {
            nodes: config.nodes.iter().map(node).collect(),
            limits: config.pool.clone(),
            in_flight: config.nodes.iter().map(|_| Arc::default()).collect(),
            consistency: config.reads.consistency.name(),
            trust: config.auth.mode == AuthMode::Trust,
            keys: Arc::default(),
            canaries: Arc::default(),
            bearers: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            open: Mutex::default(),
        }
    }

    /// By which connections to the writer's next run are known.
    pub fn canaries(&self) -> &Arc<Canaries> {
        &self.canaries
    }

    /// The key that a login has just proved: from now on it opens the nodes for this role.
    pub fn learn_key(&self, user: &str, key: RoleKey) {
        self.keys.learn(user, key);
    }

    /// For whom a role's name stands, where that is what a login has just been told.
    pub fn recognise(&self, user: &str, identity: &Identity) -> Option<Epoch> {
        self.bearer(user).recognise(identity)
    }

    /// Whoever is about to ask the writer again and note the answer holds this meanwhile.
    pub async fn asking(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.asking.lock().await
    }

    /// Takes note of whom a role's name stands for. Connections opened as another, or with other rights, are closed:
    /// the idle ones now, the others when they come back.
    pub fn note_identity(&self, user: &str, identity: Identity) -> Epoch {
        self.bearer(user).note(identity, || {
            for (_, pool) in self.matching(|name| name.user == user) {
                pool.renew();
            }
        })
    }

    fn bearer(&self, user: &str) -> SharedBearer {
        let mut bearers = lock(&self.bearers);
        if let Some(bearer) = bearers.get(user) {
            return Arc::clone(bearer);
        }
        let bearer = Arc::new(Bearer::default());
        bearers.insert(user.to_owned(), Arc::clone(&bearer));
        bearer
    }

    /// The pool of a node, user and database, made when first asked for. Sessions ask once and keep it.
    pub fn pool(&self, node: NodeId, user: &str, database: &str) -> Result<Arc<Pool>, PoolError> {
        self.find(node, user, database, false)
    }

    /// The same for connections on which nothing can be written.
    pub fn read_pool(
        &self,
        node: NodeId,
        user: &str,
        database: &str,
    ) -> Result<Arc<Pool>, PoolError> {
        self.find(node, user, database, true)
    }

    fn find(
        &self,
        node: NodeId,
        user: &str,
        database: &str,
        read_only: bool,
    ) -> Result<Arc<Pool>, PoolError> {
        let name = PoolName {
            node,
            user: user.to_owned(),
            database: database.to_owned(),
            read_only,
        };
        let mut pools = lock(&self.open);
        if let Some(pool) = pools.get(&name) {
            return Ok(Arc::clone(pool));
        }
        let pool = Arc::new(self.make(&name)?);
        // What is known of the role's settings holds on every node.
        let alike = |other: &&PoolName| other.user == name.user && other.database == name.database;
        if let Some(other) = pools.keys().find(alike).and_then(|other| pools.get(other)) {
            lock(&pool.defaults).clone_from(&lock(&other.defaults));
        }
        pools.insert(name, Arc::clone(&pool));
        Ok(pool)
    }

    /// [`Pool::note_defaults`] for the role's pools on all nodes.
    pub fn note_defaults(&self, user: &str, database: &str, defaults: &str) {
        for (_, pool) in self.matching(|name| name.user == user && name.database == database) {
            pool.note_defaults(defaults);
        }
    }

    /// How many sessions work on a node.
    pub fn in_flight(&self, node: NodeId) -> usize {
        let leases = self.in_flight.get(node.0);
        leases.map_or(0, |leases| leases.load(Ordering::SeqCst))
    }

    /// [`Pools::pool`] and [`Pool::acquire`] in one.
    pub async fn acquire(
        &self,
        node: NodeId,
        user: &str,
        database: &str,
    ) -> Result<Lease, PoolError> {
        self.pool(node, user, database)?.acquire().await
    }

    /// Opens a connection past the pools and drops it: how a node says in its own words why a login is
    /// not admitted. Makes no pool, so that made-up names cost no memory.
    pub async fn try_door(
        &self,
        node: NodeId,
        user: &str,
        database: &str,
    ) -> Result<(), PoolError> {
        let name = PoolName {
            node,
            user: user.to_owned(),
            database: database.to_owned(),
            read_only: false,
        };
        self.opener(&name, Arc::default())?.open().await.map(drop)
    }

    fn opener(&self, name: &PoolName, bearer: SharedBearer) -> Result<Opener, PoolError> {
        let (node_name, address) = self.nodes.get(name.node.0).ok_or(PoolError::Closed)?;
        Ok(Opener {
            node_name: node_name.clone(),
            address: address.clone(),
            user: name.user.clone(),
            database: name.database.clone(),
            read_only: name.read_only,
            consistency: self.consistency,
            trust: self.trust,
            keys: Arc::clone(&self.keys),
            node: name.node,
            canaries: Arc::clone(&self.canaries),
            bearer,
            generation: AtomicU64::new(0),
        })
    }

    fn make(&self, name: &PoolName) -> Result<Pool, PoolError> {
        let bearer = self.bearer(&name.user);
        let connections = managed::Pool::builder(self.opener(name, Arc::clone(&bearer))?)
            .max_size(self.limits.max_connections)
            .queue_mode(QueueMode::Lifo)
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .map_err(|_| PoolError::Closed)?;
        Ok(Pool {
            connections,
            node: name.node,
            max_connections: self.limits.max_connections,
            queue_max: self.limits.queue_max,
            queue_timeout: self.limits.queue_timeout(),
            waiting: AtomicUsize::new(0),
            in_flight: self.in_flight.get(name.node.0).cloned().unwrap_or_default(),
            pressure: Notify::new(),
            defaults: Mutex::default(),
            bearer,
            term: AtomicU64::new(0),
        })
    }

    /// Closes the idle connections of a node and has the others closed when they come back: the node
    /// was found dead, or another one writes now.
    pub fn close_node(&self, node: NodeId) {
        for (_, pool) in self.matching(|name| name.node == node) {
            pool.renew();
        }
    }

    /// Closes the idle connections to a database, on all nodes, so that it can be dropped or copied.
    pub fn close_database(&self, database: &str) {
        for (_, pool) in self.matching(|name| name.database == database) {
            pool.renew();
        }
    }

    /// Every pool's numbers.
    pub fn status(&self) -> Vec<PoolStatus> {
        let all = self.matching(|_| true);
        let status = |(name, pool): (PoolName, Arc<Pool>)| {
            let (size, idle) = pool.size();
            let waiting = pool.waiting();
            PoolStatus {
                name,
                size,
                idle,
                waiting,
            }
        };
        all.into_iter().map(status).collect()
    }

    /// Closes what has been idle too long, and forgets pools that nobody uses, until `stop`.
    pub async fn tend(self: Arc<Self>, stop: CancellationToken) {
        let idle = self.limits.idle_timeout();
        let period = (idle / 4).clamp(Duration::from_millis(100), Duration::from_secs(30));
        while stop
            .run_until_cancelled(tokio::time::sleep(period))
            .await
            .is_some()
        {
            for (_, pool) in self.matching(|_| true) {
                pool.close_idle(idle);
            }
            lock(&self.open).retain(|_, pool| Arc::strong_count(pool) > 1 || pool.size().0 > 0);
        }
    }

    fn matching(&self, wanted: impl Fn(&PoolName) -> bool) -> Vec<(PoolName, Arc<Pool>)> {
        let pools = lock(&self.open);
        let wanted = pools.iter().filter(|(name, _)| wanted(name));
        wanted
            .map(|(name, pool)| (name.clone(), Arc::clone(pool)))
            .collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Held for a few instructions, and nothing inside panics halfway: a poisoned lock is still good.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
