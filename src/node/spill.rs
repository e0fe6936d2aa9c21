//! A large transaction's changes in a file without a name, written while the writer still streams it.
//!
//! Whoever applies it may read what is there before the transaction has ended: [`SoFar`] says how far that is,
//! and what must be applied before. The file is gone when the last reader lets go of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::watch;

use super::cut::{Filled, Trace};
use super::unit::Change;
use crate::ids::UnitId;
use crate::wire::pgoutput::{self, Decoder, Message, Relation};

/// A transaction that the writer still runs, as far as it has been read. The sender is gone when the transaction
/// has ended or is read anew from its beginning.
pub type Running = watch::Receiver<SoFar>;

/// See [`Running`].
#[derive(Clone, Debug)]
pub struct SoFar {
    /// The changes that are there.
    pub spill: Spill,
    /// The last unit that was complete when they came: nothing of them may be applied before it.
    pub after: UnitId,
    /// Part of them has been rolled back since, or they turned out to be no single unit of the writer's own.
    pub undone: bool,
    /// They are all, and the transaction has committed.
    pub committed: bool,
}

/// Changes in a file without a name: records that [`SpillWriter`] wrote, read again in order.
#[derive(Clone, Debug)]
pub struct Spill {
    file: Arc<File>,
    start: u64,
    length: u64,
    /// An applier made them, so that rows of materialized views come twice.
    applied: bool,
    relations: Arc<[Arc<Relation>]>,
    aborted: Arc<BTreeSet<u32>>,
}

impl Spill {
    /// Where it ends in its file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// One of the units that an applier made of it, by its place in the file.
    #[must_use]
    pub fn piece(&self, range: Range<u64>) -> Self {
        Self {
            start: range.start,
            length: range.end,
            applied: true,
            ..self.clone()
        }
    }

    /// Whether it is the same transaction, perhaps at another time.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }

    /// Reads the changes from the beginning, independently of other readers.
    pub fn reader(&self) -> SpillReader<'_> {
        self.reader_from(self.start)
    }

    /// Reads on from a [`SpillReader::position`].
    pub fn reader_from(&self, at: u64) -> SpillReader<'_> {
        SpillReader {
            spill: self,
            at,
            buffer: BytesMut::new(),
            filled: self.applied.then(Filled::default),
        }
    }
}

/// Gathers the changes of a transaction that is still running on the writer.
///
/// Each record is a length, the subtransaction's id, the tables by their place in a list, and the
/// message as it stood in the stream, without the id that streamed messages carry.
#[derive(Debug)]
pub struct SpillWriter {
    file: BufWriter<Arc<File>>,
    length: u64,
    relations: Vec<Arc<Relation>>,
    /// What a relation's number means within this transaction, as a place in `relations`.
    known: BTreeMap<u32, usize>,
    aborted: BTreeSet<u32>,
    /// Which transactions and subtransactions its changes are of.
    parts: BTreeSet<u32>,
    /// How many rows of `ddl_log` are among the changes.
    pub ddl: usize,
    /// What there is of an applier in it.
    pub trace: Trace,
    told: Option<watch::Sender<SoFar>>,
}

impl SpillWriter {
    /// A new file in `directory`, which has no name there.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let file = tempfile::tempfile_in(directory)?;
        Ok(Self {
            file: BufWriter::with_capacity(256 * 1024, Arc::new(file)),
            length: 0,
            relations: Vec::new(),
            known: BTreeMap::new(),
            aborted: BTreeSet::new(),
            parts: BTreeSet::new(),
            ddl: 0,
            trace: Trace::default(),
            told: None,
        })
    }

    /// From here on `id` means this table, within this transaction.
    pub fn define(&mut self, id: u32, table: Arc<Relation>) {
        self.relations.push(table);
        self.known.insert(id, self.relations.len() - 1);
    }

    /// What `id` means within this transaction, if that was said in it.
    pub fn defined(&self, id: u32) -> Option<&Arc<Relation>> {
        self.known.get(&id).and_then(|at| self.relations.get(*at))
    }

    /// The tables it defined, for everyone, once it has committed.
    pub fn definitions(&self) -> impl Iterator<Item = (u32, &Arc<Relation>)> {
        let table = |(id, at): (&u32, &usize)| self.relations.get(*at).map(|table| (*id, table));
        self.known.iter().filter_map(table)
    }

    /// Adds a message about the given tables: its tag, and what follows the transaction's number.
    pub fn write(
        &mut self,
        subxid: u32,
        tables: &[u32],
        tag: &[u8],
        rest: &[u8],
    ) -> io::Result<()> {
        let length = tag.len() + rest.len();
        self.parts.insert(subxid);
        #[expect(clippy::cast_possible_truncation, reason = "no message is over 1 GiB")]
        let words = [length as u32, subxid, tables.len() as u32];
        for word in words {
            self.file.write_all(&word.to_be_bytes())?;
        }
        for id in tables {
            let at = self.known.get(id).copied().unwrap_or(usize::MAX);
            self.file
                .write_all(&u32::try_from(at).unwrap_or(u32::MAX).to_be_bytes())?;
        }
        self.file.write_all(tag)?;
        self.file.write_all(rest)?;
        self.length += (12 + 4 * tables.len() + length) as u64;
        Ok(())
    }

    /// What this subtransaction did is undone.
    pub fn abort(&mut self, subxid: u32) {
        self.aborted.insert(subxid);
    }

    /// The subtransactions of `top` that changed something and were not said to be undone.
    pub fn standing(&self, top: u32) -> Vec<u32> {
        let standing = self.parts.difference(&self.aborted);
        standing.copied().filter(|part| *part != top).collect()
    }

    /// A block of changes is complete, as is every unit up to `after`. The first time, gives what tells of it.
    pub fn tell(&mut self, after: UnitId) -> io::Result<Option<Running>> {
        let so_far = SoFar {
            spill: self.so_far()?,
            after,
            undone: !self.aborted.is_empty(),
            committed: false,
        };
        if let Some(told) = &self.told {
            told.send_replace(so_far);
            return Ok(None);
        }
        let (told, running) = watch::channel(so_far);
        self.told = Some(told);
        Ok(Some(running))
    }

    /// Bytes written.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The transaction has committed: no more changes come. Where it was `applied`, its units have other names than
    /// its own, and nobody may commit what he has of it.
    pub fn finish(mut self, after: UnitId, applied: bool) -> io::Result<Spill> {
        let spill = self.so_far()?;
        if let Some(told) = &self.told {
            told.send_replace(SoFar {
                spill: spill.clone(),
                after,
                undone: applied || !self.aborted.is_empty(),
                committed: true,
            });
        }
        Ok(spill)
    }

    fn so_far(&mut self) -> io::Result<Spill> {
        self.file.flush()?;
        Ok(Spill {
            file: Arc::clone(self.file.get_ref()),
            start: 0,
            length: self.length,
            applied: false,
            relations: self.relations.as_slice().into(),
            aborted: Arc::new(self.aborted.clone()),
        })
    }
}

/// Goes through a spilled unit's changes once.
#[derive(Debug)]
pub struct SpillReader<'a> {
    spill: &'a Spill,
    at: u64,
    buffer: BytesMut,
    filled: Option<Filled>,
}

/// How much is read from the file at once.
const READ_BYTES: usize = 256 * 1024;

impl SpillReader<'_> {
    /// The next change that was not rolled back, or none at the end.
    pub fn next_change(&mut self) -> io::Result<Option<Change>> {
        loop {
            if !self.have(12)? {
                return Ok(None);
            }
            let (length, subxid, count) = (self.word(), self.word(), self.word());
            let need = length as usize + 4 * count as usize;
            if !self.have(need)? {
                return Err(damaged());
            }
            let tables: Vec<u32> = (0..count).map(|_| self.word()).collect();
            let message = self.buffer.split_to(length as usize).freeze();
            if self.spill.aborted.contains(&subxid) {
                continue;
            }
            let change = self.decode(&message, &tables)?;
            if self
                .filled
                .as_mut()
                .is_none_or(|filled| filled.keeps(&change))
            {
                return Ok(Some(change));
            }
        }
    }

    /// How many of the file's bytes have been given out as changes.
    pub fn position(&self) -> u64 {
        self.at - self.buffer.len() as u64
    }

    fn word(&mut self) -> u32 {
        self.buffer.get_u32()
    }

    /// Reads until `need` bytes are buffered; false at the end of what was told.
    fn have(&mut self, need: usize) -> io::Result<bool> {
        while self.buffer.len() < need {
            let start = self.buffer.len();
            let left = usize::try_from(self.spill.length - self.at).unwrap_or(usize::MAX);
            let want = READ_BYTES.max(need - start).min(left);
            self.buffer.resize(start + want, 0);
            let got = self
                .spill
                .file
                .read_at(&mut self.buffer[start..], self.at)?;
            self.buffer.truncate(start + got);
            self.at += got as u64;
            if got == 0 {
                return if start == 0 {
                    Ok(false)
                } else {
                    Err(damaged())
                };
            }
        }
        Ok(true)
    }

    fn decode(&self, message: &Bytes, tables: &[u32]) -> io::Result<Change> {
        let table = |at: &u32| {
            self.spill
                .relations
                .get(*at as usize)
                .cloned()
                .ok_or_else(damaged)
        };
        let first = || tables.first().ok_or_else(damaged).and_then(table);
        let message = Decoder::new().decode(message).map_err(|_| damaged())?;
        let Message::Change { change, .. } = message else {
            return Err(damaged());
        };
        match change {
            pgoutput::Change::Truncate { .. } => {
                let tables = tables.iter().map(table).collect::<io::Result<_>>()?;
                Ok(Change::Truncate { tables })
            }
            other => Change::of_row(other, first()?).ok_or_else(damaged),
        }
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a spilled change can't be read")
}
