//! From decoded `pgoutput` messages to units.
//!
//! Keeps the tables' descriptions, the transaction that is being read, and those that the writer
//! streams while they still run, whose changes go to files (REPLICATION rule 3: interleaved, parts of
//! them rolled back). It promises that a unit holds what its transaction changed, in order, without
//! what was rolled back and without the proxy's own bookkeeping, and that a unit which the node repeated as
//! a follower has the name that its writer gave it (`cut.rs`). It doesn't know who takes the units.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::cut::{self, CutError, Filled, Here, Piece, Trace};
use super::spill::{Running, SpillWriter};
use super::token::Token;
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
    /// What an applier did can't be told apart.
    #[error(transparent)]
    Cut(#[from] CutError),
}

/// A transaction of more is a large one; larger still, and the writer streams it.
const BULK_BYTES: usize = 256 * 1024;

/// What became known by a message.
#[derive(Debug)]
pub enum Assembled {
    /// A transaction of the node's own that committed and changed rows.
    Unit(Unit),
    /// A transaction of an applier's: the units that it repeated.
    Repeated(Vec<Unit>),
    /// A transaction that ended here and changed nothing that is replicated, and what its session said of it.
    Nothing(Lsn, Option<Token>),
    /// A large transaction that the writer still runs, when its first changes are there.
    Running(Running),
    /// One that committed, with parts of which somebody must ask whether they did: [`Assembler::settle`] comes
    /// before anything else is taken.
    Doubtful(Box<Doubtful>),
}

/// A streamed transaction that has committed, with subtransactions of which that is not known.
#[derive(Debug)]
pub struct Doubtful {
    spill: SpillWriter,
    xid: u32,
    commit: Commit,
    /// Their numbers.
    pub parts: Vec<u32>,
}

#[derive(Debug, Default)]
struct Open {
    xid: u32,
    changes: Vec<Change>,
    bytes: usize,
    ddl: usize,
    trace: Trace,
}

impl Open {
    fn here(&self) -> Here {
        Here {
            at: self.changes.len() as u64,
            bytes: self.bytes,
            ddl: self.ddl,
        }
    }
}

/// One stream's assembler.
#[derive(Debug)]
pub struct Assembler {
    decoder: Decoder,
    /// Terms in which the node was the writer and where its log ended then, ascending.
    offices: Vec<(Epoch, Lsn)>,
    spill_directory: PathBuf,
    tables: BTreeMap<u32, Arc<Relation>>,
    open: Option<Open>,
    /// Transactions being streamed, by their top-level id.
    streamed: BTreeMap<u32, SpillWriter>,
    /// The streamed transaction whose block is being read.
    block: Option<u32>,
    /// The last unit.
    last: UnitId,
}

impl Assembler {
    /// For the log of a node that held these offices (term, and the end of its log when it took it; ascending);
    /// large transactions go to files in `spill_directory`.
    pub fn new(offices: Vec<(Epoch, Lsn)>, spill_directory: PathBuf) -> Self {
        debug_assert!(offices.is_sorted());
        Self {
            decoder: Decoder::new(),
            offices,
            spill_directory,
            tables: BTreeMap::new(),
            open: None,
            streamed: BTreeMap::new(),
            block: None,
            last: UnitId::NOTHING,
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
                return self.close(open, commit).map(Some);
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
                let parts = spill.standing(xid.0);
                if parts.is_empty() {
                    return self.close_streamed(spill, xid.0, commit).map(Some);
                }
                return Ok(Some(Assembled::Doubtful(Box::new(Doubtful {
                    spill,
                    xid: xid.0,
                    commit,
                    parts,
                }))));
            }
            Message::StreamAbort { xid, subxid } => self.abort(xid.0, subxid.0),
            Message::Change { xid, change } => match (xid, self.block) {
                (Some(xid), Some(top)) => self.streamed_change(top, xid.0, change, payload)?,
                _ => self.change(change, payload.len())?,
            },
            // Whose transaction it is shows by what it holds: a streamed one does not name its origin.
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
        let open = self.open.as_mut();
        if let pgoutput::Change::Emitted(emitted) = &message {
            // One that is no part of a transaction may stand outside of any.
            if let Some(open) = open {
                open.trace.message(emitted, open.here());
            }
            return Ok(());
        }
        let tables = &self.tables;
        let found = row_change(message, |oid| tables.get(&oid).cloned())?;
        let missing = AssembleError::Order("a row outside a transaction");
        match found {
            Found::Change(change) => {
                let open = open.ok_or(missing)?;
                open.ddl += usize::from(change.is_ddl());
                open.bytes += bytes + std::mem::size_of::<Change>();
                open.changes.push(change);
            }
            Found::Place(place) => open.ok_or(missing)?.trace.place(place),
            Found::Nothing => {}
        }
        Ok(())
    }

    fn close(&mut self, open: Open, commit: Commit) -> Result<Assembled, AssembleError> {
        let whole = open.here();
        if let Some(pieces) = open.trace.pieces(whole)? {
            let mut rest = open.changes.into_iter();
            let changes = |piece: &Piece| {
                let mut filled = Filled::default();
                let count = piece.range.end - piece.range.start;
                let mine = rest
                    .by_ref()
                    .take(usize::try_from(count).unwrap_or(usize::MAX));
                Changes::Memory(mine.filter(|change| filled.keeps(change)).collect())
            };
            return Ok(self.repeated(open.xid, commit, &pieces, changes));
        }
        if open.changes.is_empty() {
            return Ok(Assembled::Nothing(commit.end_lsn, open.trace.token()));
        }
        let changes = Changes::Memory(open.changes);
        Ok(self.own(open.xid, commit, whole, changes, open.trace.token()))
    }

    /// A transaction of the node's own is named by the office that it held then.
    fn own(
        &mut self,
        xid: u32,
        commit: Commit,
        whole: Here,
        changes: Changes,
        token: Option<Token>,
    ) -> Assembled {
        let end = commit.end_lsn;
        let mut offices = self.offices.iter().rev();
        let Some((term, _)) = offices.find(|(_, start)| *start < end) else {
            // It was no writer's, so no place in the history is its own.
            tracing::warn!(%end, xid, "left out: the node changed rows before it was a writer");
            return Assembled::Nothing(end, None);
        };
        self.last = UnitId {
            term: *term,
            lsn: end,
        };
        Assembled::Unit(Unit {
            id: self.last,
            commit: commit.commit_lsn,
            end,
            closes: true,
            xid,
            committed_at: commit.commit_time,
            token,
            has_ddl: whole.ddl > 0,
            bytes: whole.bytes,
            changes,
        })
    }

    fn repeated(
        &mut self,
        xid: u32,
        commit: Commit,
        pieces: &[Piece],
        mut changes: impl FnMut(&Piece) -> Changes,
    ) -> Assembled {
        let Some(last) = pieces.last() else {
            return Assembled::Nothing(commit.end_lsn, None);
        };
        self.last = last.unit;
        let unit = |piece: &Piece| Unit {
            id: piece.unit,
            commit: commit.commit_lsn,
            end: commit.end_lsn,
            closes: piece.unit == last.unit,
            xid,
            committed_at: commit.commit_time,
            token: None,
            has_ddl: piece.has_ddl,
            bytes: piece.bytes,
            changes: changes(piece),
        };
        Assembled::Repeated(pieces.iter().map(unit).collect())
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
        if let pgoutput::Change::Emitted(emitted) = &message {
            let here = here(spill);
            spill.trace.message(emitted, here);
            return Ok(());
        }
        let known = |oid: u32| {
            spill
                .defined(oid)
                .or_else(|| self.tables.get(&oid))
                .cloned()
        };
        let change = match row_change(message, known)? {
            Found::Change(change) => change,
            Found::Place(place) => {
                spill.trace.place(place);
                return Ok(());
            }
            Found::Nothing => return Ok(()),
        };
        for table in change.tables() {
            if spill.defined(table.oid).is_none() {
                spill.define(table.oid, Arc::clone(table));
            }
        }
        spill.ddl += usize::from(change.is_ddl());
        let oids: Vec<u32> = change.tables().iter().map(|table| table.oid).collect();
        // The tag, then what follows the transaction's number.
        let (tag, rest) = (payload.slice(..1), payload.slice(5..));
        spill.write(xid, &oids, &tag, &rest)?;
        Ok(())
    }

    /// What became of a transaction, now that it is known which of its parts were rolled back.
    pub fn settle(
        &mut self,
        doubtful: Doubtful,
        rolled_back: &BTreeSet<u32>,
    ) -> Result<Assembled, AssembleError> {
        let Doubtful {
            mut spill,
            xid,
            commit,
            ..
        } = doubtful;
        for part in rolled_back {
            spill.abort(*part);
        }
        self.close_streamed(spill, xid, commit)
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
        let whole = here(&spill);
        let pieces = spill.trace.pieces(whole)?;
        let token = spill.trace.token();
        let spill = spill.finish(self.last, pieces.is_some())?;
        if let Some(pieces) = pieces {
            let changes = |piece: &Piece| Changes::Spilled(spill.piece(piece.range.clone()));
            return Ok(self.repeated(xid, commit, &pieces, changes));
        }
        if spill.length() == 0 {
            return Ok(Assembled::Nothing(commit.end_lsn, token));
        }
        Ok(self.own(xid, commit, whole, Changes::Spilled(spill), token))
    }
}

/// So much memory counts for a unit on disk: what an applier holds of it at once is small.
const SPILLED_BYTES: usize = 1024;

fn here(spill: &SpillWriter) -> Here {
    Here {
        at: spill.length(),
        bytes: SPILLED_BYTES,
        ddl: spill.ddl,
    }
}

/// The same description keeps its address, by which the appliers know the table.
fn same_or_new(known: Option<&Arc<Relation>>, relation: Relation) -> Arc<Relation> {
    match known {
        Some(known) if **known == relation => Arc::clone(known),
        _ => Arc::new(relation),
    }
}

/// What a message about rows says.
enum Found {
    /// Rows that are replicated have changed.
    Change(Change),
    /// An applier has come to here.
    Place(UnitId),
    /// Nothing that matters elsewhere.
    Nothing,
}

fn row_change(
    message: pgoutput::Change,
    table: impl Fn(u32) -> Option<Arc<Relation>>,
) -> Result<Found, AssembleError> {
    let known = |oid: u32| table(oid).ok_or(AssembleError::Order("a row of an unknown table"));
    let change = match message {
        pgoutput::Change::Truncate { relations, .. } => {
            let tables: Result<Vec<_>, _> = relations.into_iter().map(known).collect();
            let mut tables = tables?;
            tables.retain(|table| !is_bookkeeping(table));
            (!tables.is_empty()).then_some(Change::Truncate { tables })
        }
        pgoutput::Change::Insert { relation, .. }
        | pgoutput::Change::Update { relation, .. }
        | pgoutput::Change::Delete { relation, .. } => {
            let table = known(relation)?;
            Change::of_row(message, table)
        }
        _ => None,
    };
    Ok(match change {
        Some(change) if is_replicated(&change) => Found::Change(change),
        Some(Change::Insert { table, new }) => {
            cut::place_of(&table, &new).map_or(Found::Nothing, Found::Place)
        }
        _ => Found::Nothing,
    })
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
