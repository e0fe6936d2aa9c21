//! The envelope of a replication stream: what `CopyData` holds after `START_REPLICATION`.

use crate::ids::Lsn;
use crate::wire::error::WireError;
use crate::wire::read::Reader;
use bytes::{BufMut, Bytes, BytesMut};

/// The stream's clocks count from 2000-01-01 UTC: this much later than Unix time.
pub const CLOCK_BASE_MICROS: i64 = 946_684_800_000_000;

/// What the server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outer {
    /// A message of the output plugin.
    Data {
        /// The place in the WAL that it is about; 0/0 before a Relation or Type.
        start: Lsn,
        /// The same again from pgoutput, 0/0 included: no measure of progress.
        end: Lsn,
        /// The server's clock in microseconds since 2000-01-01 UTC.
        clock: i64,
        /// The message.
        message: Bytes,
    },
    /// Nothing new; the server is alive.
    Keepalive {
        /// How far the server has read and sent: behind it no unit is missing.
        end: Lsn,
        /// The server's clock in microseconds since 2000-01-01 UTC.
        clock: i64,
        /// Whether it wants a status at once.
        reply: bool,
    },
}

impl Outer {
    /// Reads the content of one `CopyData`.
    pub fn read(content: &Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(content, "replication message");
        match reader.u8()? {
            b'w' => Ok(Self::Data {
                start: Lsn(reader.u64()?),
                end: Lsn(reader.u64()?),
                clock: reader.i64()?,
                message: content.slice_ref(reader.rest()),
            }),
            b'k' => {
                let keepalive = Self::Keepalive {
                    end: Lsn(reader.u64()?),
                    clock: reader.i64()?,
                    reply: reader.u8()? != 0,
                };
                reader.end()?;
                Ok(keepalive)
            }
            _ => Err(reader.fault()),
        }
    }
}

/// How far a standby is. Which of the places means what is REPLICATION's affair, not the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyStatus {
    /// Everything before it is received: releases commits that wait by `remote_write`.
    pub write: Lsn,
    /// Everything before it is durable: releases commits that wait by `on`; the slot forgets it.
    pub flush: Lsn,
    /// Everything before it is applied.
    pub apply: Lsn,
    /// The standby's clock in microseconds since 2000-01-01 UTC.
    pub clock: i64,
    /// Whether the server shall answer at once.
    pub reply: bool,
}

impl StandbyStatus {
    /// Appends it as a whole `CopyData` frame.
    pub fn put(&self, out: &mut BytesMut) {
        out.put_u8(b'd');
        out.put_u32(4 + 1 + 4 * 8 + 1);
        out.put_u8(b'r');
        out.put_u64(self.write.0);
        out.put_u64(self.flush.0);
        out.put_u64(self.apply.0);
        out.put_i64(self.clock);
        out.put_u8(u8::from(self.reply));
    }
}
