//! The client's messages on their way to a node: looked at, renamed, refused or simply passed on.
//!
//! Only Query and Parse are seen whole, and of Bind the names (`shapes.rs`); everything else passes as it arrives. What
//! the proxy must do before a message (take a connection, prepare a statement) is done here, ahead of it
//! in the same packet.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use crate::cluster::office;
use crate::error::{ClientError, Refusal};
use crate::session::brief::{Brief, Briefs, Control};
use crate::session::client;
use crate::session::deferred::Stage;
use crate::session::following::Want;
use crate::session::global_ddl;
use crate::session::naming::LONG;
use crate::session::pipeline::{Entry, Expect, Risk};
use crate::session::prepared::{PER_SESSION_MAX, Statement, Undo, UnnamedChange};
use crate::session::relay::{End, OUTPUT_BYTES_MAX, Session};
use crate::session::sealing::PLAIN_COMMIT;
use crate::wire::frame::{self, HEADER_BYTES, Header};
use crate::wire::message::backend::{self, Status};
use crate::wire::message::frontend;
use crate::wire::message::names;

/// Query and Parse up to this length are looked at; longer ones pass as texts of which nothing is known.
pub(super) const TEXT_BYTES_MAX: usize = 32 << 20;
/// The names at the front of a message must lie in so many bytes.
pub(super) const NAMES_BYTES_MAX: usize = 16 * 1024;
/// So many answers may be outstanding before the client has to wait.
const AWAITED_MAX: usize = 4096;
/// What a node refuses whatever state its transaction is in, so that a refusal of ours fails it as one of
/// the node's own would; the client gets other words.
pub(super) const UNPARSABLE: &str = "synapsedb refuses this";

/// The server's own functions that change large objects, by OID (`pg_proc.dat`, the same in all versions).
const LARGE_OBJECTS: [u32; 10] = [715, 764, 767, 955, 957, 964, 1004, 3172, 3457, 3460];

/// Whether the loop over the client's messages goes on.
pub(super) enum Step {
    /// The message is dealt with.
    Next,
    /// More of it must arrive first.
    More,
    /// Nothing more can be sent now.
    Wait,
    /// It is to be looked at once more: things have changed.
    Again,
}

impl Session {
    /// Works off the client's messages as far as they have arrived and may go on.
    pub(super) async fn requests(&mut self) -> Result<(), End> {
        while !self.input.is_empty() && !self.leaving {
            if self.to_server.len() >= OUTPUT_BYTES_MAX || self.to_client.len() >= OUTPUT_BYTES_MAX
            {
                return Ok(());
            }
            if self.passing > 0 {
                self.pass_rest();
                continue;
            }
            if self.pipeline.len() >= AWAITED_MAX {
                // The answers may sit in the server's buffer; nothing more may ever follow that moves them.
                frontend::flush(&mut self.to_server);
                return Ok(());
            }
            let limit = self
                .input
                .first()
                .map_or(Some(0), |tag| frame::client_limit(*tag));
            let Some(limit) = limit else {
                let tag = self.input[0];
                let text = format!("invalid frontend message type {tag}");
                return Err(ClientError::Protocol(text.into()).into());
            };
            let header = frame::peek_within(&self.input, limit).map_err(violation)?;
            let Some(header) = header else { return Ok(()) };
            self.wanted_bytes = 0;
            let step = if self.reading.is_some() {
                Box::pin(self.reading_message(header)).await?
            } else {
                let kept = self.keep(header);
                let step = self.message(header).await?;
                if kept && !matches!(step, Step::Next) {
                    self.repeat.take_back(header.len);
                }
                self.note_kept(header, &step, 0);
                step
            };
            match step {
                Step::Next | Step::Again => {}
                Step::More => {
                    self.wanted_bytes = header.len.min(TEXT_BYTES_MAX);
                    let missing = self.wanted_bytes.saturating_sub(self.input.len());
                    self.input.reserve(missing);
                    return Ok(());
                }
                Step::Wait => return Ok(()),
            }
        }
        if self.input.is_empty() {
            super::pump::shrink(&mut self.input);
        }
        Ok(())
    }

    /// Moves on what has arrived of a message that passes.
    fn pass_rest(&mut self) {
        let here = self.passing.min(self.input.len());
        if self.passing_on {
            self.to_server.extend_from_slice(&self.input[..here]);
        }
        self.input.advance(here);
        self.passing -= here;
    }

    /// Passes the message at the front on, or drops it, as far as it is there and later the rest.
    pub(super) fn pass(&mut self, header: Header, on: bool) {
        self.passing = header.len;
        self.passing_on = on;
        self.pass_rest();
    }

    /// Deals with the message at the front by its type.
    pub(super) async fn message(&mut self, header: Header) -> Result<Step, End> {
        if self.deferred.stage() != Stage::None
            && let Some(step) = Box::pin(self.deferred_message(header)).await?
        {
            return Ok(step);
        }
        match header.tag {
            b'X' => {
                self.leaving = true;
                self.input.clear();
                if self.pipeline.copying() {
                    return Err(End::Client);
                }
                if self.in_batch {
                    // Without the Sync that won't come, nothing else moves the answers that are still due.
                    frontend::flush(&mut self.to_server);
                }
                return Ok(Step::Next);
            }
            b'd' => {
                self.pass(header, self.lease.is_some());
                return Ok(Step::Next);
            }
            b'c' | b'f' => {
                let on = self.lease.is_some();
                if on && !self.pipeline.is_empty() {
                    self.pipeline.push(Entry::client(Expect::CopyEnd));
                }
                self.pass(header, on);
                return Ok(Step::Next);
            }
            b'p' => return Err(ClientError::protocol("unexpected password message").into()),
            b'S' => return Ok(self.sync(header)),
            _ => {}
        }
        if self.pipeline.skipping() {
            // The server would ignore it.
            self.skipped_begin(header.tag);
            self.pass(header, false);
            return Ok(Step::Next);
        }
        if self.pipeline.copying() {
            let on = header.tag != b'H';
            self.pass(header, on);
            return Ok(Step::Next);
        }
        if self.must_wait() || self.awaits_names()? {
            return Ok(Step::Wait);
        }
        match header.tag {
            b'Q' => self.query(header).await,
            b'P' => self.parse(header).await,
            b'B' => self.bind(header).await,
            b'D' => self.describe(header).await,
            b'E' => self.execute(header).await,
            b'C' => self.close(header),
            b'H' => {
                self.pass(header, self.lease.is_some());
                Ok(Step::Next)
            }
            _ => self.function_call(header).await,
        }
    }

    /// Nothing runs between a text that may have changed settings and the moment those are put back to which
    /// RESET leads: what the startup packet asked for, and the read-only port's own.
    fn must_wait(&self) -> bool {
        let between = !self.in_batch && self.status == Status::Idle && !self.pipeline.is_empty();
        // Who has always sent the next thing already would never leave.
        between && self.lease.is_some() && self.office.state == office::State::Closing
            || self.barrier && !self.pipeline.is_empty()
            || self.state.puts_back()
                && !self.in_batch
                && self.status == Status::Idle
                && self.state.unsure()
                && !self.pipeline.is_empty()
    }

    fn sync(&mut self, header: Header) -> Step {
        if self.pipeline.copying() {
            self.pass(header, false);
        } else if self.lease.is_some() {
            let mut entry = Entry::client(Expect::Sync);
            entry.risk = self.bound_risk;
            entry.seal = self.seal_batch();
            self.pipeline.push(entry);
            self.in_batch = false;
            self.bound_risk = Risk::None;
            self.pass(header, true);
        } else {
            self.sync_here(header);
        }
        Step::Next
    }

    /// Takes note of a text that is about to run.
    pub(super) fn note(&mut self, brief: &Brief) {
        self.state.note(brief);
        if brief.risk > Risk::None {
            self.wrote |= !brief.commits;
            self.repeat.spoil();
        }
        if brief.jumps && self.jump.is_none() && self.reading.is_none() {
            self.jump = self.shared.relay.service().jump();
        }
        self.watch_drops |= brief.deallocates_all;
        if let Some(lease) = &mut self.lease {
            lease.carried.drawn |= brief.draws;
            // It may drop prepared statements.
            lease.carried.seals &= !(brief.taints || brief.deallocates.is_some());
        }
    }

    pub(super) fn brief(&self, briefs: &Briefs, text: &[u8]) -> Arc<Brief> {
        briefs.get(text, self.standard_strings())
    }

    /// Whether backslashes in plain literals are known to mean themselves.
    pub(super) fn standard_strings(&self) -> bool {
        let scs = self.state.wanted.get("standard_conforming_strings");
        scs.is_none_or(|value| value == "on") && !self.state.unsure()
    }

    /// The brief of what is about to be bound, by what names stand for now.
    pub(super) fn brief_of(&mut self, statement: Option<&Arc<Statement>>) -> Arc<Brief> {
        // A statement that is not ours may be one that SQL's PREPARE made.
        let Some(statement) = statement else {
            return Arc::new(Brief::unknown());
        };
        let briefs = self.briefs();
        if statement.brief.names == briefs.generation() || statement.tail.is_empty() {
            return Arc::clone(&statement.brief);
        }
        self.brief(&briefs, text_of(&statement.tail))
    }

    /// Why a text is not sent, if so.
    pub(super) fn refusal(&mut self, brief: &Brief) -> Option<ClientError> {
        if let Some(stale) = self.metadata.stale.take() {
            return Some(stale);
        }
        if let Some(lost) = self.without_quorum(brief.risk, brief.commits) {
            return Some(lost);
        }
        if self.read_only && brief.read_write {
            let command = "SET TRANSACTION READ WRITE".into();
            return Some(ClientError::ReadOnlyPort { command });
        }
        if let Some(value) = brief.bad_consistency.clone() {
            return Some(ClientError::BadConsistency { value });
        }
        if !self.replicated && brief.writes {
            return Some(ClientError::Refused(Refusal::Template));
        }
        brief.refusal.map(ClientError::Refused)
    }

    async fn query(&mut self, header: Header) -> Result<Step, End> {
        let long = header.len > TEXT_BYTES_MAX;
        if !long && self.input.len() < header.len {
            return Ok(Step::More);
        }
        let briefs = self.briefs();
        let brief = if long {
            Arc::new(Brief::unknown())
        } else {
            self.brief(&briefs, text_of(&self.input[HEADER_BYTES..header.len]))
        };
        if brief.control != Control::None
            && let Some(step) = self.control(header, &brief)
        {
            return Ok(step);
        }
        if self.awaits_dropped(&brief, header.tag) {
            return Ok(Step::Wait);
        }
        if brief.special.is_some()
            && let Some(step) = Box::pin(self.special(header, &brief)).await?
        {
            return Ok(step);
        }
        if let Some(step) = self.connected(header, Want::Text(&brief)).await? {
            return Ok(step);
        }
        let carried = self.lease.as_deref_mut().map(|pooled| &mut pooled.carried);
        let undo = self.prepared.end_unnamed(carried);
        let mut entry = Entry::client(Expect::Query);
        // In a batch that fails it is skipped.
        entry.undo = self.in_batch.then(|| Box::new(undo));
        self.in_batch = false;
        self.bound_risk = Risk::None;
        entry.risk = brief.risk;
        entry.rolls_back = brief.control == Control::Rollback { chain: false };
        if let Some(error) = self.refusal(&brief) {
            entry.words = Some(words(&error));
            self.pipeline.push(entry);
            self.pass(header, false);
            let _ = frontend::query(&mut self.to_server, UNPARSABLE);
            return Ok(Step::Next);
        }
        self.note(&brief);
        self.count_text(&brief);
        if let Some(facts) = brief.special.as_ref().filter(|f| global_ddl::concerns(f)) {
            return Box::pin(self.unseen_query(header, facts, entry)).await;
        }
        if let Some(name) = brief
            .deallocates
            .as_ref()
            .filter(|_| self.status != Status::Failed)
            && let Some(sql) = self.deallocation(name, &mut entry)
        {
            self.pipeline.push(entry);
            self.pass(header, false);
            let _ = frontend::query(&mut self.to_server, &sql);
            return Ok(Step::Next);
        }
        if brief.control == PLAIN_COMMIT {
            entry.seal = self.seal_query();
        }
        self.pipeline.push(entry);
        self.pass(header, true);
        Ok(Step::Next)
    }

    async fn parse(&mut self, header: Header) -> Result<Step, End> {
        let long = header.len > TEXT_BYTES_MAX;
        if !long && self.input.len() < header.len {
            return Ok(Step::More);
        }
        let Some(name) = names::statement_range(&self.input).map_err(violation)? else {
            return self.names_missing();
        };
        if long {
            return self.long_parse(header, name.is_empty()).await;
        }
        let tail = self.input[name.end + 1..header.len].to_vec();
        let briefs = self.briefs();
        let brief = self.brief(&briefs, text_of(&tail));
        if self.awaits_dropped(&brief, header.tag) {
            return Ok(Step::Wait);
        }
        if brief.special.is_some()
            && let Some(step) = Box::pin(self.special(header, &brief)).await?
        {
            return Ok(step);
        }
        let unseen = brief.special.as_ref().filter(|f| global_ddl::concerns(f));
        let hidden = unseen.map_or(Ok(None), |facts| self.hide_passwords(&tail, facts));
        let changed = matches!(hidden, Ok(Some(_)));
        let (tail, odd) = match hidden {
            Ok(hidden) => (Bytes::from(hidden.unwrap_or(tail)), None),
            Err(refusal) => (Bytes::new(), Some(ClientError::Refused(refusal))),
        };
        let name = Bytes::copy_from_slice(&self.input[name]);
        let error = self.parse_fault(&name).or_else(|| self.refusal(&brief));
        let error = error.or(odd);
        let statement = (error.is_none() && !name.is_empty()).then(|| {
            let digest = self.state.digest().filter(|_| !changed);
            let digest = digest.map(|digest| digest ^ self.scope);
            self.shared.relay.shelf.get(digest, &tail, &brief)
        });
        if self.lease.is_none()
            && let Some(known) = statement.as_ref().filter(|s| s.is_proven())
        {
            self.prepared.name(&name, Some(Arc::clone(known)));
            backend::parse_complete(&mut self.to_client);
            self.pass(header, false);
            return Ok(Step::Next);
        }
        if let Some(step) = self.connected(header, Self::wish(&brief, &tail)).await? {
            return Ok(step);
        }
        self.in_batch = true;
        if let Some(error) = error {
            if name.is_empty() {
                self.refuse_parse(true, &error);
            } else {
                self.refuse_named(&tail, &error);
            }
            self.pass(header, false);
        } else if let (true, Some(sql)) = (name.is_empty(), self.deallocation_in_batch(&brief)) {
            self.parse_deallocation(&sql, brief);
            self.pass(header, false);
        } else if let Some(statement) = statement {
            let undo = self.prepared.name(&name, Some(Arc::clone(&statement)));
            self.parse_named(&statement, undo);
            self.pass(header, false);
        } else {
            self.parse_unnamed(header, tail, changed, brief);
        }
        Ok(Step::Next)
    }

    /// What is special is never run on a follower; the metadata are what the writer has of it.
    async fn special(&mut self, header: Header, brief: &Brief) -> Result<Option<Step>, End> {
        if self.reading.is_some()
            && let Some(step) = self.connected(header, Want::Writer).await?
        {
            return Ok(Some(step));
        }
        self.metadata(header, brief).await
    }

    /// What is wrong with giving a statement this name.
    pub(super) fn parse_fault(&self, name: &[u8]) -> Option<ClientError> {
        if name.is_empty() {
            return None;
        }
        if self.prepared.get(name).is_some() {
            let name = String::from_utf8_lossy(name).into_owned();
            return Some(ClientError::StatementExists { name });
        }
        let what = "the number of prepared statements of one session";
        (self.prepared.len() >= PER_SESSION_MAX).then_some(ClientError::TooLarge { what })
    }

    /// A text too long to be seen: it cannot be named, since what is named must be remembered.
    async fn long_parse(&mut self, header: Header, unnamed: bool) -> Result<Step, End> {
        if let Some(step) = self.connected(header, Want::Writer).await? {
            return Ok(step);
        }
        self.in_batch = true;
        let what = "the text of a named statement";
        let fault = (!unnamed).then_some(ClientError::TooLarge { what });
        if let Some(fault) = fault.or_else(|| self.without_quorum(Risk::Commit, false)) {
            self.refuse_parse(unnamed, &fault);
            self.pass(header, false);
            return Ok(Step::Next);
        }
        self.note(&Brief::unknown());
        let before = self.prepared.unnamed.take();
        let mut entry = Entry::client(Expect::Parse);
        if let Some(lease) = &mut self.lease {
            let mine = Some((self.id, LONG));
            entry.undo = Some(Box::new(Undo::unnamed(UnnamedChange {
                before,
                theirs: std::mem::replace(&mut lease.carried.unnamed, mine),
                mine,
            })));
        }
        self.bound_risk = Risk::Commit;
        self.pipeline.push(entry);
        self.pass(header, true);
        Ok(Step::Next)
    }

    async fn execute(&mut self, header: Header) -> Result<Step, End> {
        if let Some(step) = self.connected(header, Want::Any).await? {
            return Ok(step);
        }
        self.in_batch = true;
        let mut entry = Entry::client(Expect::Execute);
        entry.risk = self.bound_risk;
        entry.seal = self.bound_seal.take();
        if !self.portals.is_empty() {
            if self.input.len() < header.len {
                return Ok(Step::More);
            }
            let name = names::portal_range(&self.input).map_err(violation)?;
            let name = name.map(|name| Bytes::copy_from_slice(&self.input[name]));
            if let Some(statement) = name.and_then(|name| self.portals.remove(&name)) {
                Box::pin(self.unseen_execute(&statement, &mut entry)).await;
            }
        }
        self.pipeline.push(entry);
        self.pass(header, true);
        Ok(Step::Next)
    }

    /// Close never fails, so without a connection it is answered here. A statement of the session's is
    /// the session's own affair: the connection keeps it for others.
    fn close(&mut self, header: Header) -> Result<Step, End> {
        if self.input.len() < header.len {
            return Ok(Step::More);
        }
        if self.deferred.waits() && self.lease.is_some() {
            self.put_begin(header.tag);
        }
        let name = names::statement_range(&self.input).map_err(violation)?;
        let mut undo = None;
        let mut ended = None;
        if let Some(name) = &name {
            if self.prepared.get(&self.input[name.clone()]).is_some() {
                let name = self.input[name.clone()].to_vec();
                undo = Some(Box::new(self.prepared.name(&name, None)));
            } else if name.is_empty() {
                let carried = self.lease.as_deref_mut().map(|pooled| &mut pooled.carried);
                ended = Some(Box::new(self.prepared.end_unnamed(carried)));
            }
        }
        if undo.is_some() || self.lease.is_none() {
            let mut answer = BytesMut::new();
            backend::close_complete(&mut answer);
            let mut entry = Entry::local(answer.freeze());
            entry.undo = undo;
            self.pipeline.push(entry);
            self.pipeline.settle(&mut self.to_client);
            self.in_batch |= self.lease.is_some();
            self.pass(header, false);
        } else {
            self.in_batch = true;
            let mut entry = Entry::client(Expect::Close);
            entry.undo = ended;
            self.pipeline.push(entry);
            self.pass(header, true);
        }
        Ok(Step::Next)
    }

    async fn function_call(&mut self, header: Header) -> Result<Step, End> {
        let Some(oid) = self.input.get(HEADER_BYTES..HEADER_BYTES + 4) else {
            return Ok(Step::More);
        };
        let oid = u32::from_be_bytes([oid[0], oid[1], oid[2], oid[3]]);
        let brief = Brief::unknown();
        if let Some(step) = self.connected(header, Want::Writer).await? {
            return Ok(step);
        }
        let mut entry = Entry::client(Expect::Function);
        entry.risk = Risk::Commit;
        let large = LARGE_OBJECTS.contains(&oid);
        let fault = large.then_some(ClientError::Refused(Refusal::LargeObjects));
        if let Some(fault) = fault.or_else(|| self.without_quorum(Risk::Commit, false)) {
            let mut entry = Entry::client(Expect::Query);
            entry.words = Some(words(&fault));
            self.pipeline.push(entry);
            self.pass(header, false);
            let _ = frontend::query(&mut self.to_server, UNPARSABLE);
            return Ok(Step::Next);
        }
        self.note(&brief);
        self.in_batch = false;
        self.pipeline.push(entry);
        self.pass(header, true);
        Ok(Step::Next)
    }
}

pub(super) fn is_unseen(statement: &Arc<Statement>) -> bool {
    let facts = statement.brief.special.as_ref();
    facts.is_some_and(|facts| global_ddl::concerns(facts))
}

/// The text at the front, which ends with a zero byte.
pub(super) fn text_of(bytes: &[u8]) -> &[u8] {
    let end = memchr::memchr(0, bytes).unwrap_or(bytes.len());
    &bytes[..end]
}

/// An error of ours as a frame.
pub(super) fn words(error: &ClientError) -> Bytes {
    let mut out = BytesMut::new();
    client::put_error(&mut out, &error.report());
    out.freeze()
}

pub(super) fn violation(error: crate::wire::error::WireError) -> End {
    End::Error(ClientError::Protocol(error.to_string().into()))
}
