//! What sessions ask of the cluster, as one trait: certainty about commits, fresh metadata, and a place to
//! report what went wrong on a follower.
//!
//! Sessions are given an implementation at start; [`Alone`] stands for a single node without followers.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::commits::Commits;
use super::guests::Guest;
use super::jumps::Jump;
use super::reads::Reads;
use crate::error::ClientError;
use crate::ids::NodeId;
use crate::sql::catalog::Catalog;

/// A boxed future, since the trait is used as an object.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A command for other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// In which database.
    pub database: String,
    /// As whom.
    pub role: String,
    /// Under which `search_path`, if not the role's own.
    pub search_path: Option<String>,
    /// What.
    pub command: String,
    /// The database that it makes.
    pub makes: Option<String>,
    /// The database that it drops.
    pub drops: Option<String>,
}

/// What became of an [`Order`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Each other node's name, with its error if it had one.
    pub nodes: Vec<(String, Option<String>)>,
    /// All other nodes failed, none is fenced, and the writer has taken the command back.
    pub undone: bool,
}

/// Names of the metadata that the user's own things have in one database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnNames {
    /// Tables, views and the like.
    pub relations: Vec<String>,
    /// Functions.
    pub functions: Vec<String>,
}

/// What the cluster does for a session. Dropping a future gives the question up and harms nothing.
pub trait Service: Send + Sync {
    /// Ends when all that `writer` has in its WAL now is on a majority; else says why that is not known.
    fn wait_quorum(&self, writer: NodeId) -> Answer<'_, Result<(), ClientError>>;

    /// Brings the tables behind the metadata views of `database` on the writer up to date, and says which
    /// of the metadata's names belong to something of the user's there.
    fn refresh_metadata<'a>(
        &'a self,
        database: &'a str,
    ) -> Answer<'a, Result<OwnNames, ClientError>>;

    /// Differs after any database's snapshot of names has been replaced.
    fn catalog_generation(&self) -> u64;

    /// What the database's names stand for, by the newest snapshot.
    fn catalog(&self, database: &str) -> Arc<Catalog>;

    /// What is to be known to read from any node; none where there is but one.
    fn reads(&self) -> Option<&Arc<Reads>>;

    /// What became of commits whose answers were lost; none where there is but one node.
    fn commits(&self) -> Option<&Arc<Commits>>;

    /// From here until what is returned is dropped, the writer's sequences may be moved; none where that is nobody's
    /// affair.
    fn jump(&self) -> Option<Jump>;

    /// Whether the database is replicated; a template is not.
    fn replicates(&self, database: &str) -> bool;

    /// A client has come to work in the database. It is there until the guest is dropped; none where that does
    /// not matter.
    fn enter(&self, database: &str) -> Option<Guest>;

    /// What opens `synapsedb.log_command`; none where there are no followers.
    fn log_secret(&self) -> Option<&str>;

    /// The database is about to be dropped: what holds it lets go, on all nodes.
    fn before_drop<'a>(&'a self, database: &'a str) -> Answer<'a, Result<(), ClientError>>;

    /// The database that was about to be dropped is still there.
    fn after_failed_drop<'a>(&'a self, database: &'a str) -> Answer<'a, ()>;

    /// Runs a command that no transaction may hold, and that the writer has run, on every other node, and
    /// sees to what it means for the cluster. A node that fails is fenced, unless all do and it was undone.
    fn run_elsewhere<'a>(&'a self, order: &'a Order) -> Answer<'a, Outcome>;

    /// Has every other node do work on its own storage, some time soon.
    fn upkeep_elsewhere(&self, order: Order);

    /// A command that all nodes must run failed on `node` alone: it is to be fenced.
    fn command_failed(&self, node: NodeId, database: &str, command: &str, why: &str);
}

/// One node and no cluster: everything is certain, and nothing needs refreshing.
#[derive(Debug, Default)]
pub struct Alone;

impl Service for Alone {
    fn wait_quorum(&self, _: NodeId) -> Answer<'_, Result<(), ClientError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn refresh_metadata<'a>(&'a self, _: &'a str) -> Answer<'a, Result<OwnNames, ClientError>> {
        Box::pin(std::future::ready(Ok(OwnNames::default())))
    }

    fn catalog_generation(&self) -> u64 {
        0
    }

    fn catalog(&self, _: &str) -> Arc<Catalog> {
        Arc::new(Catalog::unknown())
    }

    fn reads(&self) -> Option<&Arc<Reads>> {
        None
    }

    fn commits(&self) -> Option<&Arc<Commits>> {
        None
    }

    fn jump(&self) -> Option<Jump> {
        None
    }

    fn replicates(&self, _: &str) -> bool {
        true
    }

    fn enter(&self, _: &str) -> Option<Guest> {
        None
    }

    fn log_secret(&self) -> Option<&str> {
        None
    }

    fn before_drop<'a>(&'a self, _: &'a str) -> Answer<'a, Result<(), ClientError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn after_failed_drop<'a>(&'a self, _: &'a str) -> Answer<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn run_elsewhere<'a>(&'a self, _: &'a Order) -> Answer<'a, Outcome> {
        Box::pin(std::future::ready(Outcome::default()))
    }

    fn upkeep_elsewhere(&self, _: Order) {}

    fn command_failed(&self, node: NodeId, database: &str, command: &str, why: &str) {
        tracing::error!(
            node = node.0,
            database,
            command,
            why,
            "a command failed on one node"
        );
    }
}
