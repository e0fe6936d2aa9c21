//! pgoutput, protocol versions 1 and 2 with `streaming 'on'`: a node's committed transactions as rows.
//!
//! Values are never copied and never interpreted: a [`Tuple`] is a part of the bytes that arrived,
//! checked once, here. The decoder keeps no relations and orders nothing; it only knows whether it
//! is inside a stream block, where each change carries the xid of its (sub)transaction.

pub mod outer;
pub mod tuple;

use crate::ids::{Lsn, Xid};
use crate::wire::error::WireError;
use crate::wire::read::Reader;
use bytes::Bytes;
use tuple::Tuple;

/// One message of a logical replication stream. Times are in microseconds since 2000-01-01 UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A transaction begins whose changes follow whole, in order.
    Begin {
        /// Where its commit record begins.
        commit_lsn: Lsn,
        /// When it committed.
        commit_time: i64,
        /// Its number.
        xid: Xid,
    },
    /// That transaction ends.
    Commit(Commit),
    /// The transaction begun came to this node under this replication origin.
    Origin {
        /// Its commit's place on the node it came from.
        lsn: Lsn,
        /// The origin's name.
        name: Bytes,
    },
    /// Part of a transaction.
    Change {
        /// Inside a stream block, the transaction or subtransaction it belongs to.
        xid: Option<Xid>,
        /// What it does.
        change: Change,
    },
    /// A block of changes of a transaction that has not committed yet begins.
    StreamStart {
        /// The transaction.
        xid: Xid,
        /// Whether it is the transaction's first block.
        first: bool,
    },
    /// That block ends.
    StreamStop,
    /// A streamed transaction committed.
    StreamCommit {
        /// The transaction.
        xid: Xid,
        /// When and where.
        commit: Commit,
    },
    /// A streamed transaction, or one of its subtransactions, was rolled back.
    StreamAbort {
        /// The transaction.
        xid: Xid,
        /// The part that is void: equal to `xid` if all of it is.
        subxid: Xid,
    },
}

/// A commit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Where the record begins.
    pub commit_lsn: Lsn,
    /// Where it ends: by this LSN the unit is named and confirmed.
    pub end_lsn: Lsn,
    /// When.
    pub commit_time: i64,
}

/// Part of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// What a relation looks like from here on; inside a stream block, to that transaction only.
    Relation(Relation),
    /// What a type that is not built in is called.
    Type(TypeName),
    /// A new row.
    Insert {
        /// The relation's OID.
        relation: u32,
        /// The row.
        new: Tuple,
    },
    /// A changed row.
    Update {
        /// The relation's OID.
        relation: u32,
        /// What it was, as far as the replica identity says.
        old: Old,
        /// What it is.
        new: Tuple,
    },
    /// A row gone.
    Delete {
        /// The relation's OID.
        relation: u32,
        /// What it was.
        old: Old,
    },
    /// Relations emptied by one command.
    Truncate {
        /// Their OIDs.
        relations: Vec<u32>,
        /// CASCADE was said.
        cascade: bool,
        /// RESTART IDENTITY was said.
        restart_identity: bool,
    },
    /// What `pg_logical_emit_message` said. Inside a stream block its xid is the whole
    /// transaction's even if a subtransaction said it, so that one rolled back later still stands.
    Emitted(Emitted),
}

/// The old row that comes with an update or delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Old {
    /// None: the key did not change.
    Absent,
    /// Its key; the other columns are null.
    Key(Tuple),
    /// All of it (REPLICA IDENTITY FULL).
    Row(Tuple),
}

/// A message in the WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Whether it belongs to its transaction, or was sent at once.
    pub transactional: bool,
    /// Its place.
    pub lsn: Lsn,
    /// Who it is for.
    pub prefix: Bytes,
    /// What it says.
    pub content: Bytes,
}

/// A relation as the stream describes it before its first change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Its OID on the node the stream comes from.
    pub oid: u32,
    /// Its schema.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What identifies a row of it.
    pub identity: Identity,
    /// Its columns, without generated and dropped ones.
    pub columns: Vec<Column>,
}

/// What identifies a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The primary key.
    Default,
    /// Nothing.
    Nothing,
    /// All columns.
    Full,
    /// A unique index.
    Index,
}

/// A column of a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Whether it is part of the replica identity.
    pub key: bool,
    /// Its name.
    pub name: String,
    /// Its type's OID on the node the stream comes from.
    pub type_oid: u32,
    /// The type's modifier, or -1.
    pub modifier: i32,
}

/// A type's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeName {
    /// Its OID on the node the stream comes from.
    pub oid: u32,
    /// Its schema; empty means `pg_catalog`.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Reads one stream, message by message, in order.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    /// Whether the stream is inside a block of a streamed transaction.
    in_block: bool,
}

const WHAT: &str = "pgoutput";

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub const fn new() -> Self {
        Self { in_block: false }
    }

    /// Reads one whole message. After an error the stream cannot go on.
    pub fn decode(&mut self, message: &Bytes) -> Result<Message, WireError> {
        let mut reader = Reader::new(message, WHAT);
        let tag = reader.u8()?;
        let may_come = match tag {
            b'B' | b'C' | b'S' | b'c' | b'A' => !self.in_block,
            b'E' => self.in_block,
            _ => true,
        };
        if !may_come {
            return Err(WireError::Unexpected { tag, wanted: WHAT });
        }
        let decoded = match tag {
            b'B' => Message::Begin {
                commit_lsn: lsn(&mut reader)?,
                commit_time: reader.i64()?,
                xid: xid(&mut reader)?,
            },
            b'C' => Message::Commit(commit(&mut reader)?),
            b'O' => Message::Origin {
                lsn: lsn(&mut reader)?,
                name: message.slice_ref(reader.cstr()?),
            },
            b'S' => Message::StreamStart {
                xid: xid(&mut reader)?,
                first: reader.u8()? != 0,
            },
            b'E' => Message::StreamStop,
            b'c' => Message::StreamCommit {
                xid: xid(&mut reader)?,
                commit: commit(&mut reader)?,
            },
            b'A' => Message::StreamAbort {
                xid: xid(&mut reader)?,
                subxid: xid(&mut reader)?,
            },
            _ => Message::Change {
                xid: if self.in_block {
                    Some(xid(&mut reader)?)
                } else {
                    None
                },
                change: change(tag, &mut reader, message)?,
            },
        };
        reader.end()?;
        match decoded {
            Message::StreamStart { .. } => self.in_block = true,
            Message::StreamStop => self.in_block = false,
            _ => {}
        }
        Ok(decoded)
    }
}

fn lsn(reader: &mut Reader<'_>) -> Result<Lsn, WireError> {
    reader.u64().map(Lsn)
}

fn xid(reader: &mut Reader<'_>) -> Result<Xid, WireError> {
    reader.u32().map(Xid)
}

fn commit(reader: &mut Reader<'_>) -> Result<Commit, WireError> {
    let _unused_flags = reader.u8()?;
    Ok(Commit {
        commit_lsn: lsn(reader)?,
        end_lsn: lsn(reader)?,
        commit_time: reader.i64()?,
    })
}

fn change(tag: u8, reader: &mut Reader<'_>, message: &Bytes) -> Result<Change, WireError> {
    Ok(match tag {
        b'I' => {
            let relation = reader.u32()?;
            let new = new_row(reader, message)?;
            Change::Insert { relation, new }
        }
        b'U' => {
            let relation = reader.u32()?;
            let old = old_row(reader, message)?;
            let new = new_row(reader, message)?;
            Change::Update { relation, old, new }
        }
        b'D' => {
            let relation = reader.u32()?;
            match old_row(reader, message)? {
                Old::Absent => return Err(reader.fault()),
                old => Change::Delete { relation, old },
            }
        }
        b'T' => truncate(reader)?,
        b'R' => Change::Relation(relation(reader)?),
        b'Y' => Change::Type(TypeName {
            oid: reader.u32()?,
            namespace: reader.text()?.to_owned(),
            name: reader.text()?.to_owned(),
        }),
        b'M' => Change::Emitted(emitted(reader, message)?),
        tag => return Err(WireError::Unexpected { tag, wanted: WHAT }),
    })
}

fn new_row(reader: &mut Reader<'_>, message: &Bytes) -> Result<Tuple, WireError> {
    match reader.u8()? {
        b'N' => Tuple::read(reader, message),
        _ => Err(reader.fault()),
    }
}

/// The old row, if the next byte announces one.
fn old_row(reader: &mut Reader<'_>, message: &Bytes) -> Result<Old, WireError> {
    let kind = reader.rest().first().copied();
    if !matches!(kind, Some(b'K' | b'O')) {
        return Ok(Old::Absent);
    }
    reader.u8()?;
    let tuple = Tuple::read(reader, message)?;
    Ok(if kind == Some(b'K') {
        Old::Key(tuple)
    } else {
        Old::Row(tuple)
    })
}

fn truncate(reader: &mut Reader<'_>) -> Result<Change, WireError> {
    let count = reader.u32()? as usize;
    let flags = reader.u8()?;
    let bytes = count.checked_mul(4).ok_or(reader.fault())?;
    let (oids, _) = reader.take(bytes)?.as_chunks();
    Ok(Change::Truncate {
        relations: oids.iter().map(|oid| u32::from_be_bytes(*oid)).collect(),
        cascade: flags & 1 != 0,
        restart_identity: flags & 2 != 0,
    })
}

fn emitted(reader: &mut Reader<'_>, message: &Bytes) -> Result<Emitted, WireError> {
    let transactional = reader.u8()? & 1 != 0;
    let lsn = lsn(reader)?;
    let prefix = message.slice_ref(reader.cstr()?);
    let length = reader.u32()? as usize;
    let content = message.slice_ref(reader.take(length)?);
    Ok(Emitted {
        transactional,
        lsn,
        prefix,
        content,
    })
}

fn relation(reader: &mut Reader<'_>) -> Result<Relation, WireError> {
    Ok(Relation {
        oid: reader.u32()?,
        namespace: reader.text()?.to_owned(),
        name: reader.text()?.to_owned(),
        identity: match reader.u8()? {
            b'd' => Identity::Default,
            b'n' => Identity::Nothing,
            b'f' => Identity::Full,
            b'i' => Identity::Index,
            _ => return Err(reader.fault()),
        },
        columns: (0..reader.u16()?)
            .map(|_| column(reader))
            .collect::<Result<_, _>>()?,
    })
}

fn column(reader: &mut Reader<'_>) -> Result<Column, WireError> {
    Ok(Column {
        key: reader.u8()? & 1 != 0,
        name: reader.text()?.to_owned(),
        type_oid: reader.u32()?,
        modifier: reader.i32()?,
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
