//! A row as it came, and its values in place.

use crate::wire::error::WireError;
use crate::wire::read::Reader;
use bytes::{BufMut, Bytes, BytesMut};
use std::fmt;

/// A row: bytes that were checked to hold exactly `columns` values.
#[derive(Clone, PartialEq, Eq)]
pub struct Tuple {
    raw: Bytes,
    columns: u16,
}

/// One value of a row.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Value<'a> {
    /// Null; in the old key of a row, also a column that is not part of the key.
    Null,
    /// A large value (TOAST) that the update left alone and the stream left out.
    Unchanged,
    /// The type's text form.
    Text(&'a [u8]),
    /// The type's binary form (only where `binary` was asked for).
    Binary(&'a [u8]),
}

impl Tuple {
    /// Checks a row at the reader's place in `message` and moves the reader behind it.
    pub(super) fn read(reader: &mut Reader<'_>, message: &Bytes) -> Result<Self, WireError> {
        let columns = reader.u16()?;
        let rest = reader.rest();
        for _ in 0..columns {
            read_value(reader)?;
        }
        let length = rest.len() - reader.rest().len();
        let raw = message.slice_ref(&rest[..length]);
        Ok(Self { raw, columns })
    }

    /// A row of the given values; None where they have no form on the wire.
    pub fn of(values: &[Value<'_>]) -> Option<Self> {
        let columns = u16::try_from(values.len()).ok()?;
        let mut raw = BytesMut::new();
        for value in values {
            let (kind, bytes) = match value {
                Value::Null => (b'n', None),
                Value::Unchanged => (b'u', None),
                Value::Text(bytes) => (b't', Some(bytes)),
                Value::Binary(bytes) => (b'b', Some(bytes)),
            };
            raw.put_u8(kind);
            if let Some(bytes) = bytes {
                raw.put_i32(i32::try_from(bytes.len()).ok()?);
                raw.put_slice(bytes);
            }
        }
        let raw = raw.freeze();
        Some(Self { raw, columns })
    }

    /// The values in the relation's order.
    pub fn iter(&self) -> Values<'_> {
        Values {
            reader: Reader::new(&self.raw, "row"),
            left: self.columns,
        }
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// Whether the row has no values: a table may have no columns.
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The bytes of all values with their kinds and lengths.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }
}

impl<'a> IntoIterator for &'a Tuple {
    type Item = Value<'a>;
    type IntoIter = Values<'a>;

    fn into_iter(self) -> Values<'a> {
        self.iter()
    }
}

/// Prints no values: they are the user's.
impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Tuple({} columns, {} bytes)",
            self.columns,
            self.raw.len()
        )
    }
}

/// Prints no values: they are the user's.
impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Unchanged => f.write_str("Unchanged"),
            Self::Text(bytes) => write!(f, "Text({} bytes)", bytes.len()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

#[inline]
fn read_value<'a>(reader: &mut Reader<'a>) -> Result<Value<'a>, WireError> {
    let kind = reader.u8()?;
    match kind {
        b'n' => Ok(Value::Null),
        b'u' => Ok(Value::Unchanged),
        b't' | b'b' => {
            let length = reader.u32()? as usize;
            let bytes = reader.take(length)?;
            Ok(if kind == b't' {
                Value::Text(bytes)
            } else {
                Value::Binary(bytes)
            })
        }
        _ => Err(reader.fault()),
    }
}

/// The values of a row in order.
#[derive(Clone, Debug)]
pub struct Values<'a> {
    reader: Reader<'a>,
    left: u16,
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        let value = read_value(&mut self.reader);
        debug_assert!(value.is_ok(), "checked when the row was read");
        value.ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Values<'_> {}
