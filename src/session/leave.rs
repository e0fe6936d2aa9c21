//! How a session ends: what the client is told last, what a lost connection means, and how the connection to
//! the node is left.
//!
//! A connection goes back clean or is closed, and nothing goes on for a client that is gone, but for
//! commands that every node must run: these are seen through.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::ClientError;
use crate::session::client;
use crate::session::pipeline::Risk;
use crate::session::relay::{End, Session};
use crate::session::tls::ClientIo;
use crate::wire::message::backend::Status;

/// How long a client has to take what is left for it when its session ends.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);
/// How long a cancel for a client that is gone may take.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

/// Writes what is left for the client, and why it has to leave. Takes a second or two at most.
async fn farewell(mut io: ClientIo, answered: &[u8], error: Option<ClientError>) {
    let write = async {
        io.write_all(answered).await?;
        io.flush().await
    };
    let _ = tokio::time::timeout(FAREWELL_LIMIT, write).await;
    if let Some(error) = error {
        client::dismiss(io, &error).await;
    }
}

impl Session {
    /// The last words, and the end of the connection: given back where it is clean, else closed.
    pub(super) async fn finish(mut self, io: ClientIo, end: End) {
        let error = match end {
            End::Client => None,
            End::Error(error) => Some(error),
            End::Lost(why) | End::Nonsense(why) => {
                tracing::info!(
                    why,
                    node = self.pool.node().0,
                    "a session lost its connection to a node"
                );
                self.rest = None;
                drop(self.lease.take());
                let loss = self.loss();
                if matches!(loss, ClientError::CommitUnknown) {
                    self.hold_the_others();
                }
                (!self.told_end).then_some(loss)
            }
        };
        let answered = std::mem::take(&mut self.to_client);
        tokio::join!(self.leave_node(), farewell(io, &answered, error));
    }

    /// The server may show a commit now that no majority has.
    pub(super) fn hold_the_others(&self) {
        let (shared, writer) = (Arc::clone(&self.shared), self.pool.node());
        let doubt = shared.relay.doubts.enter();
        let left = self.left();
        tokio::spawn(async move {
            tokio::select! {
                // It says itself what it could not find out; the client is told 08007 in any case.
                _ = shared.relay.service().wait_quorum(writer) => {}
                // What it shows is of no account any more.
                () = left => {}
            }
            drop(doubt);
        });
    }

    /// What a lost connection means for the client.
    fn loss(&self) -> ClientError {
        let risk = self.pipeline.risk();
        match (self.status, risk) {
            (_, Risk::Commit) | (Status::Idle, Risk::Write) => ClientError::CommitUnknown,
            (Status::Open | Status::Failed, _) => ClientError::TransactionLost,
            (Status::Idle, Risk::None) => ClientError::NodeUnreachable {
                node: self.shared.node_name(self.pool.node()),
            },
        }
    }

    /// A command that other nodes must run too is seen through to its end, whether or not the client is
    /// still there to hear of it: else the writer alone would have a database, or alone have none.
    async fn see_through(&mut self) {
        loop {
            if let Some(after) = self.after.take() {
                self.follow_up(after).await;
            }
            self.to_client.clear();
            if self.answers().is_err() {
                break;
            }
            if self.after.is_some() {
                continue;
            }
            if self.uncertain || !self.pipeline.awaits_elsewhere() {
                break;
            }
            let Some(lease) = &mut self.lease else { break };
            let backend = &mut lease.backend;
            if backend.stream.write_all(&self.to_server).await.is_err() {
                break;
            }
            self.to_server.clear();
            if !matches!(backend.stream.read_buf(&mut backend.input).await, Ok(1..)) {
                break;
            }
        }
        if let Some(database) = self.kept.take() {
            let shared = Arc::clone(&self.shared);
            shared.relay.service().after_failed_drop(&database).await;
        }
    }

    async fn leave_node(&mut self) {
        if self.after.is_some() || self.pipeline.awaits_elsewhere() {
            self.see_through().await;
        }
        self.rest = None;
        let Some(lease) = self.lease.take() else {
            return;
        };
        let clean = self.pipeline.is_empty()
            && !self.in_batch
            && self.passing == 0
            && self.to_server.is_empty()
            && self.node_is_idle()
            && !self.state.doubt.probe
            && !self.state.pinned;
        if clean && self.cancel.detach() {
            lease.release();
        } else if self.pipeline.is_empty() {
            // Idle, in a transaction or with state of its own: closing ends all of it.
            lease.discard();
        } else {
            if let Some(jump) = self.jump.take() {
                jump.linger();
            }
            let cancel = self
                .shared
                .cancels
                .carry_out(self.cancel.key(), &self.shared.admins);
            let _ = tokio::time::timeout(CANCEL_LIMIT, cancel).await;
            lease.discard();
        }
    }
}
