//! A token ahead of what commits, and what became of a commit whose answer was lost.
//!
//! Guards that a client hears the truth about its commit wherever the stream shows it. The token goes in the same
//! packet as the COMMIT, or as the Sync that ends a batch outside of BEGIN, so it costs no round trip. It is sent only
//! where nothing that is still awaited can have failed: in a transaction that has failed it would be refused, where
//! the COMMIT itself is not. A simple Query that commits by itself goes without: its text is the client's own; and so does
//! a batch with more than statements about rows: behind a COPY, say, the node would take it for data.

use std::iter::once;
use std::time::Duration;

use crate::cluster::commits::{Fate, Ticket};
use crate::cluster::office::Office;
use crate::node::token::SEND;
use crate::session::brief::{Brief, Control};
use crate::session::pipeline::{Entry, Expect, Own, Risk, Seal};
use crate::session::relay::Session;
use crate::wire::message::backend::Status;
use crate::wire::message::frontend::{self, Target};

/// A COMMIT behind which no other transaction begins.
pub(super) const PLAIN_COMMIT: Control = Control::Commit { chain: false };
/// So often the writer is asked though it answers: its death may show a moment after that of a connection.
const TRIES: u32 = 15;
/// Before the writer is asked again.
const AGAIN: Duration = Duration::from_millis(50);
/// The OID of type `text`.
const TEXT: u32 = 25;

impl Session {
    /// Ahead of the Query at the front, which is a COMMIT.
    pub(super) fn seal_query(&mut self) -> Option<Seal> {
        let open = self.status == Status::Open && self.pipeline.is_empty() && !self.in_batch;
        if open { self.seal(true) } else { None }
    }

    /// Ahead of the Bind at the front, if it is a COMMIT's.
    pub(super) fn seal_bound(&mut self, brief: &Brief) -> Option<Seal> {
        self.batch_more |= !brief.plain;
        let open = self.status == Status::Open && !self.pipeline.may_fail_before();
        if open && brief.control == PLAIN_COMMIT {
            self.seal(true)
        } else {
            None
        }
    }

    /// Ahead of the Sync at the front, where that commits what the batch wrote.
    pub(super) fn seal_batch(&mut self) -> Option<Seal> {
        let alone = self.status == Status::Idle && !self.pipeline.may_fail_before();
        let more = std::mem::take(&mut self.batch_more);
        if alone && !more && self.bound_risk == Risk::Write && !self.pipeline.skipping() {
            self.seal(false)
        } else {
            None
        }
    }

    fn seal(&mut self, plain: bool) -> Option<Seal> {
        if !self.wrote || !self.replicated || self.reading.is_some() {
            return None;
        }
        let commits = self.shared.relay.service().commits()?;
        let id = self.id;
        let ticket = self.ticket.get_or_insert_with(|| commits.join(id));
        let token = ticket.next_token();
        let name = commits.name();
        let lease = self.lease.as_mut()?;
        let out = &mut self.to_server;
        // Texts of our own, which fit. Portals of the client's stay what they are.
        if !lease.carried.seals {
            let _ = frontend::close(out, Target::Statement, name);
            let _ = frontend::parse(out, name, SEND, &[TEXT]);
            for expect in [Expect::Close, Expect::Parse] {
                self.pipeline.push(Entry::own(expect, Own::Seal));
            }
        }
        let text = token.to_string();
        let value = once(Some(text.as_bytes()));
        let _ = frontend::bind(out, name, name, &[], value, &[]);
        let _ = frontend::execute(out, name, 0);
        let _ = frontend::close(out, Target::Portal, name);
        for expect in [Expect::Bind, Expect::Execute, Expect::Close] {
            self.pipeline.push(Entry::own(expect, Own::Seal));
        }
        let count = token.count;
        Some(Seal { count, plain })
    }

    /// Whether the connection has the statement, as the node has just said.
    pub(super) fn can_seal(&mut self, can: bool) {
        if let Some(lease) = &mut self.lease {
            lease.carried.seals = can;
        }
    }

    /// What became of the commit that is under way, where that can be known within the time that a COMMIT may take: the
    /// connection to the writer is lost. Dropping it is harmless.
    pub(super) async fn fate(&self) -> Option<Fate> {
        let count = self.pipeline.sole_seal()?.count;
        let ticket = self.ticket.as_ref()?;
        let limit = self.shared.config.limits.commit_wait();
        let other = ticket.fate(count, self.term, &self.database);
        tokio::select! {
            fate = other => Some(fate),
            fate = self.fate_at_same(ticket, count) => fate,
            () = tokio::time::sleep(limit) => None,
            () = self.shared.abort.cancelled() => None,
        }
    }

    /// The same where the writer goes on: what it has in its log is decoded once a majority has it, and what the
    /// stream has not shown by then may come yet.
    async fn fate_at_same(&self, ticket: &Ticket, count: u64) -> Option<Fate> {
        let service = self.shared.relay.service();
        let mut heard = self.heard.clone();
        let mut tries = 0;
        let goes_on = |office: &Office| office.serves() && office.term == self.term;
        loop {
            if heard.wait_for(goes_on).await.is_err() {
                return None;
            }
            let known = service.wait_quorum(self.pool.node()).await.is_ok();
            if known && ticket.is_shown(count) {
                return Some(Fate::Committed);
            }
            tries += u32::from(known);
            if tries > TRIES {
                return None;
            }
            // It may be about to be found dead.
            tokio::time::sleep(AGAIN).await;
        }
    }
}
