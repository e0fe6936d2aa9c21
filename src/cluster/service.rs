//! What sessions ask of the cluster, as one trait: certainty about commits, fresh metadata, and a place to
//! report what went wrong on a follower.
//!
//! Sessions are given an implementation at start; [`Alone`] stands for a single node without followers.

use std::future::Future;
use std::pin::Pin;

use crate::error::ClientError;
use crate::ids::NodeId;

/// A boxed future, since the trait is used as an object.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the cluster does for a session. Dropping a future gives the question up and harms nothing.
pub trait Service: Send + Sync {
    /// Ends when all that `writer` has in its WAL now is on a majority; else says why that is not known.
    fn wait_quorum(&self, writer: NodeId) -> Answer<'_, Result<(), ClientError>>;

    /// Brings the tables behind the metadata views of `database` on the writer up to date.
    fn refresh_metadata<'a>(&'a self, database: &'a str) -> Answer<'a, Result<(), ClientError>>;

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

    fn refresh_metadata<'a>(&'a self, _: &'a str) -> Answer<'a, Result<(), ClientError>> {
        Box::pin(std::future::ready(Ok(())))
    }

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
