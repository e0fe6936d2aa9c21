//! Statements under their names on the connection at hand: prepared where they are missing, closed where
//! there are too many, and the client's messages renamed to them.
//!
//! What is put in between is in the queue of answers with what it takes to undo it, so the books are right
//! whichever message fails.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use crate::session::brief::Brief;
use crate::session::pipeline::{Entry, Expect, Own};
use crate::session::prepared::{PER_CONNECTION_MAX, Statement, Undo};
use crate::session::relay::{End, Session};
use crate::session::requests::violation;
use crate::wire::frame::Header;
use crate::wire::message::backend;
use crate::wire::message::frontend::{self, Target};
use crate::wire::message::names;

/// An unnamed statement's text up to this length is kept, to be prepared again on another connection.
const UNNAMED_BYTES_MAX: usize = 1 << 20;
/// The count of an unnamed statement that is not kept at all; others count from 1.
pub(super) const LONG: u64 = 0;

impl Session {
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
        let there = lease.carried.statements.touch(statement.id);
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
            entry.undo = Some(Box::new(Undo {
                unnamed: Some((Some(unnamed.clone()), theirs)),
                ..Undo::default()
            }));
            self.pipeline.push(entry);
        } else if lease.carried.unnamed.take().is_some() {
            let _ = frontend::close(&mut self.to_server, Target::Statement, "");
            self.pipeline
                .push(Entry::own(Expect::Close, Own::Statement));
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
