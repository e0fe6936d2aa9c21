//! One committed transaction of the writer, as the stream hands it to the appliers.
//!
//! A unit is immutable and shared by all followers' queues. Small ones hold their changes in
//! memory as slices of the bytes that came from the writer; ones too large for that (streamed by
//! the writer while still running) lie in a file that is gone when the last applier lets go of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use crate::ids::{Lsn, SYNAPSEDB, UnitId};
use crate::wire::pgoutput::tuple::Tuple;
use crate::wire::pgoutput::{self, Decoder, Message, Old, Relation};

/// A row change or a marker, in the order in which the writer made it.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new row.
    Insert {
        /// Where.
        table: Arc<Relation>,
        /// The row.
        new: Tuple,
    },
    /// A changed row.
    Update {
        /// Where.
        table: Arc<Relation>,
        /// The old key (`K`) or the whole old row (`O`), where the writer logged one.
        old: Option<Tuple>,
        /// The new row; columns left out are unchanged TOAST values.
        new: Tuple,
    },
    /// A row that is gone.
    Delete {
        /// Where.
        table: Arc<Relation>,
        /// Its key or the whole row.
        old: Tuple,
    },
    /// Tables emptied together.
    Truncate {
        /// All of them, the ones reached by CASCADE included.
        tables: Vec<Arc<Relation>>,
    },
}

impl Change {
    /// A change of one row of `table`, from its message; none for messages about anything else.
    pub fn of_row(message: pgoutput::Change, table: Arc<Relation>) -> Option<Self> {
        let kept = |old: Old| match old {
            Old::Absent => None,
            Old::Key(row) | Old::Row(row) => Some(row),
        };
        match message {
            pgoutput::Change::Insert { new, .. } => Some(Self::Insert { table, new }),
            pgoutput::Change::Update { old, new, .. } => Some(Self::Update {
                table,
                old: kept(old),
                new,
            }),
            pgoutput::Change::Delete { old, .. } => Some(Self::Delete {
                table,
                old: kept(old)?,
            }),
            _ => None,
        }
    }

    /// The tables it is about.
    pub fn tables(&self) -> &[Arc<Relation>] {
        match self {
            Self::Insert { table, .. }
            | Self::Update { table, .. }
            | Self::Delete { table, .. } => std::slice::from_ref(table),
            Self::Truncate { tables } => tables,
        }
    }

    /// Whether it is a DDL command: a new row of `ddl_log`.
    pub fn is_ddl(&self) -> bool {
        matches!(self, Self::Insert { table, .. } if is_ddl_log(table))
    }

    /// Whether it carries rows of a materialized view: a new row of `view_rows`.
    pub fn is_contents(&self) -> bool {
        let carrier = |table: &Relation| table.namespace == SYNAPSEDB && table.name == "view_rows";
        matches!(self, Self::Insert { table, .. } if carrier(table))
    }
}

/// The table whose rows are DDL commands.
pub fn is_ddl_log(table: &Relation) -> bool {
    table.namespace == SYNAPSEDB && table.name == "ddl_log"
}

/// One committed transaction.
#[derive(Debug)]
pub struct Unit {
    /// (term, end of the commit record).
    pub id: UnitId,
    /// Begin of the commit record.
    pub commit: Lsn,
    /// The writer's transaction id.
    pub xid: u32,
    /// Microseconds since 2000-01-01 UTC.
    pub committed_at: i64,
    /// Whether a row of `ddl_log` is among the changes: such a unit is applied alone.
    pub has_ddl: bool,
    /// About how much memory it holds, in bytes.
    pub bytes: usize,
    /// What it did.
    pub changes: Changes,
}

/// Where the changes lie.
#[derive(Debug)]
pub enum Changes {
    /// In memory.
    Memory(Vec<Change>),
    /// In a file without a name.
    Spilled(Spill),
}

/// Changes in a file without a name: records that [`SpillWriter`] wrote, read again in order.
#[derive(Debug)]
pub struct Spill {
    file: File,
    length: u64,
    relations: Vec<Arc<Relation>>,
    aborted: BTreeSet<u32>,
}

impl Spill {
    /// Bytes on disk.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads the changes from the beginning, independently of other readers.
    pub fn reader(&self) -> SpillReader<'_> {
        SpillReader {
            spill: self,
            at: 0,
            buffer: BytesMut::new(),
        }
    }
}

/// Gathers the changes of a transaction that is still running on the writer.
///
/// Each record is a length, the subtransaction's id, the tables by their place in a list, and the
/// message as it stood in the stream, without the id that streamed messages carry.
#[derive(Debug)]
pub struct SpillWriter {
    file: BufWriter<File>,
    length: u64,
    relations: Vec<Arc<Relation>>,
    /// What a relation's number means within this transaction, as a place in `relations`.
    known: BTreeMap<u32, usize>,
    aborted: BTreeSet<u32>,
    /// Whether a row of `ddl_log` is among the changes.
    pub has_ddl: bool,
}

impl SpillWriter {
    /// A new file in `directory`, which has no name there.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let file = tempfile::tempfile_in(directory)?;
        Ok(Self {
            file: BufWriter::with_capacity(256 * 1024, file),
            length: 0,
            relations: Vec::new(),
            known: BTreeMap::new(),
            aborted: BTreeSet::new(),
            has_ddl: false,
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

    /// No more changes come.
    pub fn finish(self) -> io::Result<Spill> {
        let file = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        Ok(Spill {
            file,
            length: self.length,
            relations: self.relations,
            aborted: self.aborted,
        })
    }
}

/// Goes through a spilled unit's changes once.
#[derive(Debug)]
pub struct SpillReader<'a> {
    spill: &'a Spill,
    at: u64,
    buffer: BytesMut,
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
            if !self.spill.aborted.contains(&subxid) {
                return self.decode(&message, &tables).map(Some);
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

    /// Reads until `need` bytes are buffered; false at the end of the file.
    fn have(&mut self, need: usize) -> io::Result<bool> {
        while self.buffer.len() < need {
            let start = self.buffer.len();
            let want = READ_BYTES.max(need - start);
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
