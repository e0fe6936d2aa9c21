//! Configuration: what `proxy.toml` may say, its defaults, and where each command looks for it.
//!
//! Reading it reports every fault at once, each with file, line and what is allowed
//! (`config/read.rs`, `config/validate.rs`). Secrets never stand in the file: they come from the
//! environment or from a file of their own. Every key has its default in one place, here.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub mod read;
mod validate;

/// Everything an operator can set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where clients and operators come in.
    pub listen: Listen,
    /// The certificate shown to clients; without it TLS is declined.
    pub tls: Tls,
    /// How clients prove who they are.
    pub auth: Auth,
    /// The superuser with which the proxy sets nodes up and watches them.
    pub admin: Admin,
    /// The servers, in order; the first is the writer on first contact.
    #[serde(rename = "node")]
    pub nodes: Vec<Node>,
    /// Connections to nodes.
    pub pool: Pool,
    /// Streams and appliers.
    pub replication: Replication,
    /// Reads from followers.
    pub reads: Reads,
    /// Bounds on what clients may ask for.
    pub limits: Limits,
    /// How nodes are probed.
    pub health: Health,
}

/// Addresses, each `host:port`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// For everything.
    pub read_write: String,
    /// For reads only: a write is refused here.
    pub read_only: String,
    /// For operators: status, health, metrics.
    pub http: String,
}

/// PEM files; both or neither.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The certificate chain.
    pub certificate: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
}

/// How clients prove who they are.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// See [`AuthMode`].
    pub mode: AuthMode,
}

/// The ways of authentication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// SCRAM-SHA-256 against the nodes' own verifiers.
    #[default]
    Scram,
    /// Nobody is asked; the nodes must trust the proxy's address.
    Trust,
}

/// The superuser's door to each node.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Its name on every node.
    pub user: String,
    /// The environment variable that holds its password.
    pub password_env: String,
    /// A file that holds its password, read where the variable is not set.
    pub password_file: Option<PathBuf>,
    /// The database to connect to first; all databases are replicated.
    pub database: String,
    /// Filled in when the configuration is read; no key of its own.
    #[serde(skip)]
    pub password: Option<Secret>,
}

/// One server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// What it is called in messages and in `cluster_nodes`.
    pub name: String,
    /// Its address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Connections to nodes, shared by transaction; one pool for each node, user and database.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// The most connections in one pool.
    pub max_connections: usize,
    /// The most clients that may wait for one; the next is refused with 53300.
    pub queue_max: usize,
    /// How long a client waits for one before 53300.
    pub queue_timeout_ms: u64,
    /// An unused connection is closed after this.
    pub idle_timeout_s: u64,
}

/// Streams and appliers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replication {
    /// How much one slow follower may leave waiting in memory before it is fenced.
    pub queue_max_mib: u64,
    /// How often each stream's place is reported to the writer again.
    pub report_interval_ms: u64,
    /// `wal_sender_timeout` of the streams' connections.
    pub wal_sender_timeout_ms: u64,
    /// Where large transactions are put while they are still open.
    pub spill_directory: PathBuf,
}

/// Reads from followers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reads {
    /// What reads may miss where the session does not say.
    pub consistency: Consistency,
    /// Who answers the reads that come by the port for everything.
    pub nodes: ReadNodes,
}

/// The nodes that answer reads of the port for everything. The port for reads leaves the writer alone in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadNodes {
    /// Every node in sync.
    #[default]
    All,
    /// The writer alone: where the others' machines have better things to do, or are the same machine.
    Writer,
}

/// What a read may miss of what others wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Nothing that was acknowledged before it began.
    #[default]
    Strict,
    /// Nothing that its own session wrote or saw.
    Session,
    /// Whatever the node has not got yet.
    Eventual,
}

impl Consistency {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Strict, Self::Session, Self::Eventual];

    /// As it is set.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Session => "session",
            Self::Eventual => "eventual",
        }
    }

    /// By its name, in any case.
    pub fn named(name: &str) -> Option<Self> {
        let same = |one: &Self| one.name().eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(same)
    }
}

/// Bounds on what clients may ask for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The most clients at once; the next is refused with 53300.
    pub max_clients: usize,
    /// From the first byte to the end of authentication.
    pub handshake_timeout_ms: u64,
    /// The largest startup packet.
    pub startup_max_bytes: u32,
    /// How long a COMMIT waits for a majority before the client is told 08007.
    pub commit_wait_ms: u64,
}

/// How nodes are probed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// The time between two probes of one node, and the time one may take.
    pub probe_interval_ms: u64,
    /// So many silent probes in a row make a node `down`.
    pub probe_failures: u32,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            read_write: "127.0.0.1:5000".to_owned(),
            read_only: "127.0.0.1:5001".to_owned(),
            http: "127.0.0.1:8080".to_owned(),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            user: "postgres".to_owned(),
            password_env: "SYNAPSEDB_ADMIN_PASSWORD".to_owned(),
            password_file: None,
            database: "postgres".to_owned(),
            password: None,
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            max_connections: 40,
            queue_max: 1000,
            queue_timeout_ms: 10_000,
            idle_timeout_s: 600,
        }
    }
}

impl Default for Replication {
    fn default() -> Self {
        Self {
            queue_max_mib: 256,
            report_interval_ms: 100,
            wal_sender_timeout_ms: 2000,
            spill_directory: PathBuf::from("/var/tmp"),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_clients: 1000,
            handshake_timeout_ms: 10_000,
            startup_max_bytes: 10_000,
            commit_wait_ms: 5000,
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            probe_interval_ms: 500,
            probe_failures: 3,
        }
    }
}

impl Pool {
    /// How long a client waits for a connection.
    pub fn queue_timeout(&self) -> Duration {
        Duration::from_millis(self.queue_timeout_ms)
    }

    /// How long an unused connection is kept.
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_s)
    }
}

impl Replication {
    /// The bound of one follower's queue.
    pub fn queue_max_bytes(&self) -> u64 {
        self.queue_max_mib << 20
    }

    /// The time between two reports.
    pub fn report_interval(&self) -> Duration {
        Duration::from_millis(self.report_interval_ms)
    }
}

impl Limits {
    /// The bound on startup and authentication together.
    pub fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }

    /// How long a COMMIT waits for a majority.
    pub fn commit_wait(&self) -> Duration {
        Duration::from_millis(self.commit_wait_ms)
    }
}

impl Health {
    /// The time between two probes.
    pub fn probe_interval(&self) -> Duration {
        Duration::from_millis(self.probe_interval_ms)
    }
}

/// A password that no log and no error shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a password.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The password itself, for the one who must send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}
