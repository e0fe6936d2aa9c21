//! Statements under their names on the connection at hand: prepared where they are missing, closed where
//! there are too many, and the client's messages renamed to them.
//!
//! What is put in between is in the queue of answers with what it takes to undo it, so the books are right
//! whichever message fails.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use crate::error::ClientError;
use crate::session::brief::Brief;
use crate::session::pipeline::{Entry, Expect, Own};
use crate::session::prepared::{PER_CONNECTION_MAX, Statement, Undo, UnnamedChange, put_parse};
use crate::session::relay::{End, Session};
use crate::session::requests::{UNPARSABLE, violation, words};
use crate::wire::frame::Header;
use crate::wire::message::backend::{self, Status};
use crate::wire::message::frontend::{self, Target};
use crate::wire::message::names;

/// An unnamed statement's text up to this length is kept, to be prepared again on another connection.
const UNNAMED_BYTES_MAX: usize = 1 << 20;
/// The count of an unnamed statement that is not kept at all; others count from 1.
pub(super) const LONG: u64 = 0;
/// The name under which the node is sent what it is to refuse: the client's own would lose its statement.
pub(super) const REFUSED_NAME: &str = "synapsedb_refused";

impl Session {
    /// Whether the message at the front names a statement of which it is not known yet what it is, since the batch
    /// that changes it may fail as a whole; then all that was sent must be answered first.
    pub(super) fn awaits_names(&mut self) -> Result<bool, End> {
        let drops = self.watch_drops && !self.pipeline.is_empty();
        if !drops && !self.pipeline.names_are_open() && !self.pipeline.unnamed_is_open() {
            return Ok(false);
        }
        let Some(name) = names::statement_range(&self.input).map_err(violation)? else {
            return Ok(false);
        };
        // A new unnamed statement takes the place of whatever there is.
        let waits = match (name.is_empty(), self.input.first()) {
            (true, Some(b'P')) => false,
            (true, _) => self.pipeline.unnamed_is_open(),
            (false, _) => drops || self.pipeline.names_are_open(),
        };
        if waits {
            self.await_answers();
        }
        Ok(waits)
    }

    /// The same of a text that drops a statement by its name. A Query does it in ways that depend on how the transaction
    /// stands, so it waits for whatever was sent.
    pub(super) fn awaits_dropped(&mut self, brief: &Brief, tag: u8) -> bool {
        let waits = brief.deallocates.is_some()
            && (self.pipeline.names_are_open() || tag == b'Q' && !self.pipeline.is_empty());
        if waits {
            self.await_answers();
        }
        waits
    }

    fn await_answers(&mut self) {
        frontend::flush(&mut self.to_server);
        self.barrier = true;
    }

    /// Has the node refuse a Parse under a name. Where that is taken, whatever else is wrong comes first, so the text is
    /// parsed; what is not allowed is not sent. What was parsed is closed ahead of the refusal: behind it the node would
    /// skip the Close, and a statement that is in no books would stay.
    pub(super) fn refuse_named(&mut self, tail: &[u8], error: &ClientError) {
        if !tail.is_empty() && matches!(error, ClientError::StatementExists { .. }) {
            put_parse(REFUSED_NAME, tail, &mut self.to_server);
            let _ = frontend::close(&mut self.to_server, Target::Statement, REFUSED_NAME);
            for expect in [Expect::Parse, Expect::Close] {
                self.pipeline.push(Entry::own(expect, Own::Statement));
            }
        }
        self.refuse_parse(false, error);
    }

    /// Has the node refuse a Parse of the client's, which gets these words.
    pub(super) fn refuse_parse(&mut self, unnamed: bool, error: &ClientError) {
        let mut entry = Entry::client(Expect::Parse);
        entry.words = Some(words(error));
        let name = if unnamed {
            // A Parse that fails ends it.
            let carried = self.lease.as_deref_mut().map(|pooled| &mut pooled.carried);
            entry.undo = Some(Box::new(self.prepared.end_unnamed(carried)));
            ""
        } else {
            REFUSED_NAME
        };
        self.pipeline.push(entry);
        let _ = frontend::parse(&mut self.to_server, name, UNPARSABLE, &[]);
    }

    /// SQL's DEALLOCATE of a statement that the client prepared by the protocol: the node knows it by
    /// another name, if it has it at all.
    pub(super) fn deallocation(&mut self, name: &str, entry: &mut Entry) -> Option<String> {
        let statement = Arc::clone(&self.prepared.get(name.as_bytes())?.statement);
        self.ensure(&statement);
        frontend::sync(&mut self.to_server);
        self.pipeline.push(Entry::own(Expect::Sync, Own::Statement));
        let mut undo = self.prepared.name(name.as_bytes(), None);
        if let Some(lease) = &mut self.lease {
            lease.carried.statements.remove(statement.id);
            undo.on_connection = Some((statement.id, true));
        }
        undo.unnamed = entry.undo.take().and_then(|undo| undo.unnamed);
        entry.undo = Some(Box::new(undo));
        Some(format!("deallocate {}", statement.server_name()))
    }

    /// The same in the extended protocol: taken out of the session's books at once, and put back where the
    /// batch fails before it.
    pub(super) fn deallocation_in_batch(&mut self, brief: &Brief) -> Option<String> {
        let name = brief.deallocates.as_ref()?;
        let statement = Arc::clone(&self.prepared.get(name.as_bytes())?.statement);
        self.ensure(&statement);
        let mut undo = self.prepared.name(name.as_bytes(), None);
        if let Some(lease) = &mut self.lease {
            lease.carried.statements.remove(statement.id);
            undo.on_connection = Some((statement.id, true));
        }
        let mut entry = Entry::local(Bytes::new());
        entry.undo = Some(Box::new(undo));
        self.pipeline.push(entry);
        Some(format!("deallocate {}", statement.server_name()))
    }

    /// Prepares it as the unnamed statement.
    pub(super) fn parse_deallocation(&mut self, sql: &str, brief: Arc<Brief>) {
        let tail = [sql.as_bytes(), b"\0\0\0"].concat();
        let statement = Arc::new(Statement::new(0, Bytes::from(tail), brief));
        statement.put_parse("", &mut self.to_server);
        let mut entry = Entry::client(Expect::Parse);
        if let Some(lease) = &mut self.lease {
            let undo = self
                .prepared
                .set_unnamed(statement, self.id, &mut lease.carried);
            entry.undo = Some(Box::new(undo));
        }
        self.pipeline.push(entry);
    }

    pub(super) fn parse_unnamed(
        &mut self,
        header: Header,
        tail: Bytes,
        changed: bool,
        brief: Arc<Brief>,
    ) {
        let tail = if tail.len() <= UNNAMED_BYTES_MAX {
            tail
        } else {
            Bytes::new()
        };
        let statement = Arc::new(Statement::new(0, tail, brief));
        if changed {
            statement.put_parse("", &mut self.to_server);
        }
        let mut entry = Entry::client(Expect::Parse);
        if let Some(lease) = &mut self.lease {
            let undo = self
                .prepared
                .set_unnamed(statement, self.id, &mut lease.carried);
            entry.undo = Some(Box::new(undo));
        }
        self.pipeline.push(entry);
        self.pass(header, !changed);
    }

    /// Prepares a statement for the client on the connection, or says at once that it is there.
    pub(super) fn parse_named(&mut self, statement: &Arc<Statement>, mut undo: Undo) {
        let Some(lease) = &mut self.lease else { return };
        let mut there = lease.carried.statements.touch(statement.id);
        if there && self.status == Status::Failed {
            // The node says what becomes of it, as it would of a text that is new to it.
            self.close_on_node(statement.id);
            there = false;
        }
        let Some(lease) = &mut self.lease else { return };
        let mut entry = if there {
            let mut answer = BytesMut::new();
            backend::parse_complete(&mut answer);
            Entry::local(answer.freeze())
        } else {
            lease.carried.statements.insert(statement.id);
            undo.on_connection = Some((statement.id, false));
            statement.put_parse(&statement.server_name(), &mut self.to_server);
            let mut entry = Entry::client(Expect::Parse);
            entry.statement = Some(Arc::clone(statement));
            entry
        };
        entry.undo = Some(Box::new(undo));
        self.pipeline.push(entry);
        if !there {
            self.close_surplus();
        }
    }

    /// Sees to it that the connection has the statement.
    pub(super) fn ensure(&mut self, statement: &Arc<Statement>) {
        let Some(lease) = &mut self.lease else { return };
        if lease.carried.statements.touch(statement.id) {
            return;
        }
        lease.carried.statements.insert(statement.id);
        statement.put_parse(&statement.server_name(), &mut self.to_server);
        let mut entry = Entry::own(Expect::Parse, Own::Statement);
        entry.undo = Some(Box::new(Undo {
            on_connection: Some((statement.id, false)),
            ..Undo::default()
        }));
        self.pipeline.push(entry);
        self.close_surplus();
    }

    /// Closes the statement that was not used for longest, where there are too many.
    pub(super) fn close_surplus(&mut self) {
        let Some(lease) = &mut self.lease else { return };
        let Some(id) = lease.carried.statements.overflow(PER_CONNECTION_MAX) else {
            return;
        };
        self.close_on_node(id);
    }

    /// Closes a statement that is on the connection.
    fn close_on_node(&mut self, id: u64) {
        if let Some(lease) = &mut self.lease {
            lease.carried.statements.remove(id);
        }
        let name = format!("synapsedb_{id}");
        let _ = frontend::close(&mut self.to_server, Target::Statement, &name);
        let mut entry = Entry::own(Expect::Close, Own::Statement);
        entry.undo = Some(Box::new(Undo {
            on_connection: Some((id, true)),
            ..Undo::default()
        }));
        self.pipeline.push(entry);
    }

    /// Sees to it that the connection's unnamed statement is the session's, and never another session's.
    pub(super) fn ensure_unnamed(&mut self) {
        let Some(lease) = &mut self.lease else { return };
        let unnamed = self.prepared.unnamed.as_ref();
        let mine = (self.id, unnamed.map_or(LONG, |unnamed| unnamed.count));
        if lease.carried.unnamed == Some(mine) {
            return;
        }
        let kept = unnamed.filter(|unnamed| !unnamed.meaning.statement.tail.is_empty());
        if let Some(unnamed) = kept {
            let statement = &unnamed.meaning.statement;
            statement.put_parse("", &mut self.to_server);
            lease.carried.unnamed_shape = Arc::default();
            let theirs = lease.carried.unnamed.replace(mine);
            let mut entry = Entry::own(Expect::Parse, Own::Statement);
            entry.undo = Some(Box::new(Undo::unnamed(UnnamedChange {
                before: Some(unnamed.clone()),
                theirs,
                mine: Some(mine),
            })));
            self.pipeline.push(entry);
        } else if let Some(theirs) = lease.carried.unnamed.take() {
            let _ = frontend::close(&mut self.to_server, Target::Statement, "");
            let mut entry = Entry::own(Expect::Close, Own::Statement);
            entry.undo = Some(Box::new(Undo::unnamed(UnnamedChange {
                before: self.prepared.unnamed.clone(),
                theirs: Some(theirs),
                mine: None,
            })));
            self.pipeline.push(entry);
        }
    }

    /// Passes the message at the front on with another name for its statement.
    pub(super) fn pass_renamed(&mut self, header: Header, name: &str) -> Result<(), End> {
        let here = header.len.min(self.input.len());
        names::rename_statement(&self.input[..here], name, &mut self.to_server)
            .map_err(violation)?;
        self.input.advance(here);
        self.passing = header.len - here;
        self.passing_on = true;
        Ok(())
    }
}
