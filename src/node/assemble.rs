//! From decoded `pgoutput` messages to units.
//!
//! Keeps the tables' descriptions, the transaction that is being read, and those that the writer
//! streams while they still run, whose changes go to files (REPLICATION rule 3: interleaved, parts of
//! them rolled back). It promises that a unit holds what its transaction changed, in order, without
//! what was rolled back and without the proxy's own bookkeeping. It doesn't know who takes the units.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::spill::{Running, SpillWriter};
use super::unit::{Change, Changes, Unit};
use crate::ids::{Epoch, Lsn, SYNAPSEDB, UnitId};
use crate::wire::error::WireError;
use crate::wire::pgoutput::{self, Commit, Decoder, Message, Relation};

/// The stream can't be understood.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// A message that breaks the protocol.
    #[error("a message of the stream can't be read: {0}")]
    Wire(#[from] WireError),
    /// A message where it can't stand.
    #[error("unexpected message in the stream: {0}")]
    Order(&'static str),
    /// Writing to the spill file failed.
    #[error("writing a large transaction to disk failed: {0}")]
    Spill(#[from] io::Error),
}

/// A transaction of more is a large one; larger still, and the writer streams it.
const BULK_BYTES: usize = 256 * 1024;

/// What became known by a message.
#[derive(Debug)]
pub enum Assembled {
    /// A transaction that committed and changed rows.
    Unit(Unit),
    /// A transaction that ended here and changed nothing that is replicated.
    Nothing(Lsn),
    /// A large transaction that the writer still runs, when its first changes are there.
    Running(Running),
}

#[derive(Debug, Default)]
struct Open {
    xid: u32,
    changes: Vec<Change>,
    bytes: usize,
    has_ddl: bool,
}

/// One stream's assembler.
#[derive(Debug)]
pub struct Assembler {
    decoder: Decoder,
    term: Epoch,
    spill_directory: PathBuf,
    tables: BTreeMap<u32, Arc<Relation>>,
    open: Option<Open>,
    /// Transactions being streamed, by their top-level id.
    streamed: BTreeMap<u32, SpillWriter>,
    /// The streamed transaction whose block is being read.
    block: Option<u32>,
    /// The end of the last unit.
    last: Lsn,
}

impl Assembler {
    /// For units of `term`; large transactions go to files in `spill_directory`.
    pub fn new(term: Epoch, spill_directory: PathBuf) -> Self {
        Self {
            decoder: Decoder::new(),
            term,
            spill_directory,
            tables: BTreeMap::new(),
            open: None,
            streamed: BTreeMap::new(),
            block: None,
            last: Lsn(0),
        }
    }

    /// How many transactions are being streamed now.
    pub fn streaming(&self) -> usize {
        self.streamed.len()
    }

    /// Whether the rows of a large transaction are arriving, so that its end is not near.
    pub fn in_bulk(&self) -> bool {
        let large = |open: &Open| open.bytes > BULK_BYTES;
        self.block.is_some() || self.open.as_ref().is_some_and(large)
    }

    /// Takes the payload of one `XLogData` message.
    pub fn take(&mut self, payload: &Bytes) -> Result<Option<Assembled>, AssembleError> {
        match self.decoder.decode(payload)? {
            Message::Begin { xid, .. } => {
                let open = Open {
                    xid: xid.0,
                    ..Open::default()
                };
                if self.open.replace(open).is_some() {
                    return Err(AssembleError::Order("begin inside a transaction"));
                }
            }
            Message::Commit(commit) => {
                let open = self.open.take();
                let open = open.ok_or(AssembleError::Order("commit without begin"))?;
                return Ok(Some(self.close(open, commit)));
            }
            Message::StreamStart { xid, .. } => {
                if !self.streamed.contains_key(&xid.0) {
                    let spill = SpillWriter::create(&self.spill_directory)?;
                    self.streamed.insert(xid.0, spill);
                }
                self.block = Some(xid.0);
            }
            Message::StreamStop => {
                let spill = self
                    .block
                    .take()
                    .and_then(|xid| self.streamed.get_mut(&xid));
                let spill = spill.ok_or(AssembleError::Order("the end of no block"))?;
                return Ok(spill.tell(self.last)?.map(Assembled::Running));
            }
            Message::StreamCommit { xid, commit } => {
                let spill = self.streamed.remove(&xid.0);
                let spill = spill.ok_or(AssembleError::Order("commit of an unknown stream"))?;
                return self.close_streamed(spill, xid.0, commit).map(Some);
            }
            Message::StreamAbort { xid, subxid } => self.abort(xid.0, subxid.0),
            Message::Change { xid, change } => match (xid, self.block) {
                (Some(xid), Some(top)) => self.streamed_change(top, xid.0, change, payload)?,
                _ => self.change(change, payload.len())?,
            },
            // Transactions that came from elsewhere are not asked for (`origin 'none'`).
            Message::Origin { .. } => {}
        }
        Ok(None)
    }

    fn abort(&mut self, xid: u32, subxid: u32) {
        if xid == subxid {
            self.streamed.remove(&xid);
        } else if let Some(spill) = self.streamed.get_mut(&xid) {
            spill.abort(subxid);
        }
    }

    fn change(&mut self, message: pgoutput::Change, bytes: usize) -> Result<(), AssembleError> {
        if let pgoutput::Change::Relation(relation) = message {
            let table = same_or_new(self.tables.get(&relation.oid), relation);
            self.tables.insert(table.oid, table);
            return Ok(());
        }
        let tables = &self.tables;
        let Some(change) = row_change(message, |oid| tables.get(&oid).cloned())? else {
            return Ok(());
        };
        let open = self.open.as_mut();
        let open = open.ok_or(AssembleError::Order("a row outside a transaction"))?;
        open.has_ddl |= change.is_ddl();
        open.bytes += bytes + std::mem::size_of::<Change>();
        open.changes.push(change);
        Ok(())
    }

    fn close(&mut self, open: Open, commit: Commit) -> Assembled {
        if open.changes.is_empty() {
            return Assembled::Nothing(commit.end_lsn);
        }
        let changes = Changes::Memory(open.changes);
        Assembled::Unit(self.unit(open.xid, commit, open.has_ddl, open.bytes, changes))
    }

    fn unit(
        &mut self,
        xid: u32,
        commit: Commit,
        has_ddl: bool,
        bytes: usize,
        changes: Changes,
    ) -> Unit {
        self.last = commit.end_lsn;
        Unit {
            id: UnitId {
                term: self.term,
                lsn: commit.end_lsn,
            },
            commit: commit.commit_lsn,
            xid,
            committed_at: commit.commit_time,
            has_ddl,
            bytes,
            changes,
        }
    }

    /// A change of a transaction that still runs goes to its file, and so do the descriptions of its
    /// tables, which hold for it alone until it commits.
    fn streamed_change(
        &mut self,
        top: u32,
        xid: u32,
        message: pgoutput::Change,
        payload: &Bytes,
    ) -> Result<(), AssembleError> {
        let spill = self.streamed.get_mut(&top);
        let spill = spill.ok_or(AssembleError::Order("a block of an unknown stream"))?;
        if let pgoutput::Change::Relation(relation) = message {
            let known = spill
                .defined(relation.oid)
                .or_else(|| self.tables.get(&relation.oid));
            let table = same_or_new(known, relation);
            spill.define(table.oid, table);
            return Ok(());
        }
        let known = |oid: u32| {
            spill
                .defined(oid)
                .or_else(|| self.tables.get(&oid))
                .cloned()
        };
        let Some(change) = row_change(message, known)? else {
            return Ok(());
        };
        for table in change.tables() {
            if spill.defined(table.oid).is_none() {
                spill.define(table.oid, Arc::clone(table));
            }
        }
        spill.has_ddl |= change.is_ddl();
        let oids: Vec<u32> = change.tables().iter().map(|table| table.oid).collect();
        // The tag, then what follows the transaction's number.
        let (tag, rest) = (payload.slice(..1), payload.slice(5..));
        spill.write(xid, &oids, &tag, &rest)?;
        Ok(())
    }

    fn close_streamed(
        &mut self,
        spill: SpillWriter,
        xid: u32,
        commit: Commit,
    ) -> Result<Assembled, AssembleError> {
        for (oid, table) in spill.definitions() {
            self.tables.insert(oid, Arc::clone(table));
        }
        let has_ddl = spill.has_ddl;
        let spill = spill.finish(self.last)?;
        if spill.length() == 0 {
            return Ok(Assembled::Nothing(commit.end_lsn));
        }
        // It is on disk; what an applier holds of it at once is small.
        let changes = Changes::Spilled(spill);
        Ok(Assembled::Unit(
            self.unit(xid, commit, has_ddl, 1024, changes),
        ))
    }
}

/// The same description keeps its address, by which the appliers know the table.
fn same_or_new(known: Option<&Arc<Relation>>, relation: Relation) -> Arc<Relation> {
    match known {
        Some(known) if **known == relation => Arc::clone(known),
        _ => Arc::new(relation),
    }
}

/// The row change in a message; none for what changes no replicated row.
fn row_change(
    message: pgoutput::Change,
    table: impl Fn(u32) -> Option<Arc<Relation>>,
) -> Result<Option<Change>, AssembleError> {
    let known = |oid: u32| table(oid).ok_or(AssembleError::Order("a row of an unknown table"));
    match message {
        pgoutput::Change::Truncate { relations, .. } => {
            let tables: Result<Vec<_>, _> = relations.into_iter().map(known).collect();
            let mut tables = tables?;
            tables.retain(|table| !is_bookkeeping(table));
            Ok((!tables.is_empty()).then_some(Change::Truncate { tables }))
        }
        pgoutput::Change::Insert { relation, .. }
        | pgoutput::Change::Update { relation, .. }
        | pgoutput::Change::Delete { relation, .. } => {
            let table = known(relation)?;
            let change = Change::of_row(message, table);
            Ok(change.filter(is_replicated))
        }
        _ => Ok(None),
    }
}

/// The proxy's bookkeeping is each node's own, and of `ddl_log` and `view_rows` only new rows matter.
fn is_replicated(change: &Change) -> bool {
    change.is_ddl()
        || change.is_contents()
        || !change.tables().iter().any(|table| is_bookkeeping(table))
}

/// By name: whatever else lies in the schema is a user's, and his rows must reach every node.
fn is_bookkeeping(table: &Relation) -> bool {
    table.namespace == SYNAPSEDB
        && matches!(
            table.name.as_str(),
            "ddl_log"
                | "view_rows"
                | "cluster_state"
                | "offices"
                | "pending_indexes"
                | "applied_places"
                | "node_key"
        )
}
