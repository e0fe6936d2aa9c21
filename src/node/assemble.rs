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

use super::unit::{Change, Changes, SpillWriter, Unit};
use crate::ids::{Epoch, Lsn, SYNAPSEDB, UnitId};
use crate::wire::error::WireError;
use crate::wire::pgoutput::{self, Message, Relation};

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

/// What became known by a message.
#[derive(Debug)]
pub enum Assembled {
    /// A transaction that committed and changed rows.
    Unit(Unit),
    /// A transaction that ended here and changed nothing that is replicated.
    Nothing(Lsn),
}

#[derive(Debug, Default)]
struct Open {
    xid: u32,
    changes: Vec<Change>,
    bytes: usize,
    has_ddl: bool,
}

/// What one message does to rows, and to which tables.
struct Rows {
    change: Change,
}

/// One stream's assembler.
#[derive(Debug)]
pub struct Assembler {
    term: Epoch,
    spill_directory: PathBuf,
    tables: BTreeMap<u32, Arc<Relation>>,
    open: Option<Open>,
    /// Transactions being streamed, by their top-level id.
    streamed: BTreeMap<u32, SpillWriter>,
    /// The streamed transaction whose block is being read.
    block: Option<u32>,
}

impl Assembler {
    /// For units of `term`; large transactions go to files in `spill_directory`.
    pub fn new(term: Epoch, spill_directory: PathBuf) -> Self {
        Self {
            term,
            spill_directory,
            tables: BTreeMap::new(),
            open: None,
            streamed: BTreeMap::new(),
            block: None,
        }
    }

    /// How many transactions are being streamed now.
    pub fn streaming(&self) -> usize {
        self.streamed.len()
    }

    /// Takes the payload of one `XLogData` message.
    pub fn take(&mut self, payload: &Bytes) -> Result<Option<Assembled>, AssembleError> {
        if let Some(top) = self.block {
            return self.take_streamed(top, payload);
        }
        match pgoutput::decode(payload.clone())? {
            Message::Begin { xid, .. } => {
                let open = Open { xid: xid.0, ..Open::default() };
                if self.open.replace(open).is_some() {
                    return Err(AssembleError::Order("begin inside a transaction"));
                }
            }
            Message::Commit { commit, end, time } => {
                let open = self.open.take();
                let open = open.ok_or(AssembleError::Order("commit without begin"))?;
                return Ok(Some(self.close(open, commit, end, time)));
            }
            Message::Relation(relation) => self.define(relation),
            Message::StreamStart { xid, .. } => {
                if !self.streamed.contains_key(&xid.0) {
                    let spill = SpillWriter::create(&self.spill_directory)?;
                    self.streamed.insert(xid.0, spill);
                }
                self.block = Some(xid.0);
            }
            Message::StreamCommit { xid, commit, end, time } => {
                let spill = self.streamed.remove(&xid.0);
                let spill = spill.ok_or(AssembleError::Order("commit of an unknown stream"))?;
                return self.close_streamed(spill, xid.0, commit, end, time).map(Some);
            }
            Message::StreamAbort { xid, subxid } => self.abort(xid.0, subxid.0),
            Message::StreamStop => return Err(AssembleError::Order("stream stop outside a stream")),
            other => self.row(other)?,
        }
        Ok(None)
    }

    fn define(&mut self, relation: Relation) {
        let id = relation.id;
        // The same description keeps its address, by which the appliers know the table.
        if self.tables.get(&id).is_none_or(|known| **known != relation) {
            self.tables.insert(id, Arc::new(relation));
        }
    }

    fn abort(&mut self, xid: u32, subxid: u32) {
        if xid == subxid {
            self.streamed.remove(&xid);
        } else if let Some(spill) = self.streamed.get_mut(&xid) {
            spill.abort(subxid);
        }
    }

    fn row(&mut self, message: Message) -> Result<(), AssembleError> {
        let bytes = match &message {
            Message::Insert { new, .. } => new.raw().len(),
            Message::Update { old, new, .. } => new.raw().len() + old.as_ref().map_or(0, |o| o.raw().len()),
            Message::Delete { old, .. } => old.raw().len(),
            _ => 0,
        };
        let tables = &self.tables;
        let Some(Rows { change }) = rows(message, |id| tables.get(&id).cloned())? else {
            return Ok(());
        };
        let open = self.open.as_mut();
        let open = open.ok_or(AssembleError::Order("a row outside a transaction"))?;
        open.has_ddl |= is_ddl(&change);
        open.bytes += bytes + std::mem::size_of::<Change>();
        open.changes.push(change);
        Ok(())
    }

    fn close(&self, open: Open, commit: Lsn, end: Lsn, time: i64) -> Assembled {
        if open.changes.is_empty() {
            return Assembled::Nothing(end);
        }
        Assembled::Unit(Unit {
            id: UnitId { epoch: self.term, lsn: end },
            commit,
            xid: open.xid,
            committed_at: time,
            has_ddl: open.has_ddl,
            bytes: open.bytes,
            changes: Changes::Memory(open.changes),
        })
    }

    fn take_streamed(&mut self, top: u32, payload: &Bytes) -> Result<Option<Assembled>, AssembleError> {
        let (subxid, message) = pgoutput::split_streamed(payload)?;
        let spill = self.streamed.get_mut(&top);
        let spill = spill.ok_or(AssembleError::Order("a block of an unknown stream"))?;
        match message.first() {
            Some(b'E') => {
                self.block = None;
                return Ok(None);
            }
            Some(b'R') => {
                if let Message::Relation(relation) = pgoutput::decode(message)? {
                    let known = self.tables.get(&relation.id).filter(|known| ***known == relation);
                    let table = known.cloned().unwrap_or_else(|| Arc::new(relation));
                    spill.define(table.id, table);
                }
                return Ok(None);
            }
            _ => {}
        }
        let kept = |id: u32| spill.defined(id).or_else(|| self.tables.get(&id)).cloned();
        let Some(Rows { change }) = rows(pgoutput::decode(message.clone())?, kept)? else {
            return Ok(None);
        };
        let tables: Vec<Arc<Relation>> = match &change {
            Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => {
                vec![Arc::clone(table)]
            }
            Change::Truncate { tables } => tables.clone(),
        };
        for table in &tables {
            if spill.defined(table.id).is_none() {
                spill.define(table.id, Arc::clone(table));
            }
        }
        spill.has_ddl |= is_ddl(&change);
        let ids: Vec<u32> = tables.iter().map(|table| table.id).collect();
        spill.write(subxid.0, &ids, &message)?;
        Ok(None)
    }

    fn close_streamed(
        &mut self,
        spill: SpillWriter,
        xid: u32,
        commit: Lsn,
        end: Lsn,
        time: i64,
    ) -> Result<Assembled, AssembleError> {
        for (id, table) in spill.definitions() {
            self.tables.insert(id, Arc::clone(table));
        }
        let has_ddl = spill.has_ddl;
        let spill = spill.finish()?;
        if spill.length() == 0 {
            return Ok(Assembled::Nothing(end));
        }
        Ok(Assembled::Unit(Unit {
            id: UnitId { epoch: self.term, lsn: end },
            commit,
            xid,
            committed_at: time,
            has_ddl,
            // It is on disk; what an applier reads of it at once is small.
            bytes: 1024,
            changes: Changes::Spilled(spill),
        }))
    }
}

/// The row change in a message; none for messages that change no replicated row.
fn rows(
    message: Message,
    table: impl Fn(u32) -> Option<Arc<Relation>>,
) -> Result<Option<Rows>, AssembleError> {
    let known = |id: u32| table(id).ok_or(AssembleError::Order("a row of an unknown table"));
    let change = match message {
        Message::Insert { relation, new } => Change::Insert { table: known(relation)?, new },
        Message::Update { relation, old, new } => Change::Update { table: known(relation)?, old, new },
        Message::Delete { relation, old } => Change::Delete { table: known(relation)?, old },
        Message::Truncate { relations, .. } => {
            let tables: Result<Vec<_>, _> = relations.into_iter().map(known).collect();
            let mut tables = tables?;
            tables.retain(|table| !is_bookkeeping(table));
            if tables.is_empty() {
                return Ok(None);
            }
            Change::Truncate { tables }
        }
        _ => return Ok(None),
    };
    let hidden = match &change {
        Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => {
            is_bookkeeping(table)
        }
        Change::Truncate { .. } => false,
    };
    Ok((!hidden).then_some(Rows { change }))
}

/// The proxy's own tables, but for those that are every node's.
fn is_bookkeeping(table: &Relation) -> bool {
    table.namespace == SYNAPSEDB && !matches!(table.name.as_str(), "ddl_log" | "conflict_log")
}

fn is_ddl(change: &Change) -> bool {
    matches!(change, Change::Insert { table, .. } if table.namespace == SYNAPSEDB && table.name == "ddl_log")
}
