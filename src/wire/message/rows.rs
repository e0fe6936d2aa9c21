//! Results: `RowDescription`, `ParameterDescription` and `DataRow`.

use super::{Oids, Values, build, open, put_count, put_cstr, put_value};
use crate::wire::error::WireError;
use crate::wire::frame::HEADER_BYTES;
use crate::wire::read::Reader;
use bytes::{BufMut, BytesMut};

/// One column of a `RowDescription`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The table it comes from, or 0.
    pub table: u32,
    /// Its number in that table, or 0.
    pub attribute: i16,
    /// Its type.
    pub type_oid: u32,
    /// The type's size; negative means variable.
    pub type_size: i16,
    /// The type's modifier, or -1.
    pub modifier: i32,
    /// 0 text, 1 binary.
    pub format: i16,
}

impl<'a> Column<'a> {
    /// A computed column of text format.
    pub fn computed(name: &'a str, type_oid: u32, type_size: i16) -> Self {
        Self {
            name: name.as_bytes(),
            table: 0,
            attribute: 0,
            type_oid,
            type_size,
            modifier: -1,
            format: 0,
        }
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(Self {
            name: reader.cstr()?,
            table: reader.u32()?,
            attribute: reader.i16()?,
            type_oid: reader.u32()?,
            type_size: reader.i16()?,
            modifier: reader.i32()?,
            format: reader.i16()?,
        })
    }
}

/// Reads a `RowDescription`.
pub fn read_description(frame: &[u8]) -> Result<Vec<Column<'_>>, WireError> {
    let mut reader = open(frame, b'T', "RowDescription")?;
    let count = reader.u16()?;
    let columns = (0..count)
        .map(|_| Column::read(&mut reader))
        .collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(columns)
}

/// Appends a `RowDescription`.
pub fn description(out: &mut BytesMut, columns: &[Column<'_>]) -> Result<(), WireError> {
    build(out, b'T', |out| {
        put_count(out, columns.len())?;
        for column in columns {
            put_cstr(out, column.name)?;
            out.put_u32(column.table);
            out.put_i16(column.attribute);
            out.put_u32(column.type_oid);
            out.put_i16(column.type_size);
            out.put_i32(column.modifier);
            out.put_i16(column.format);
        }
        Ok(())
    })
}

/// Takes out of a `RowDescription`, where it stands, which columns of which tables its columns are.
pub fn forget_tables(frame: &mut [u8]) {
    let mut at = HEADER_BYTES + 2;
    while let Some(rest) = frame.get(at..) {
        let Some(end) = memchr::memchr(0, rest) else {
            return;
        };
        let table = at + end + 1;
        let Some(place) = frame.get_mut(table..table + 6) else {
            return;
        };
        place.fill(0);
        at = table + 18;
    }
}

/// Reads a `ParameterDescription`.
pub fn read_parameters(frame: &[u8]) -> Result<Oids<'_>, WireError> {
    let mut reader = open(frame, b't', "ParameterDescription")?;
    let oids = Oids::read(&mut reader)?;
    reader.end()?;
    Ok(oids)
}

/// Appends a `ParameterDescription`.
pub fn parameters(out: &mut BytesMut, types: &[u32]) -> Result<(), WireError> {
    build(out, b't', |out| {
        put_count(out, types.len())?;
        for oid in types {
            out.put_u32(*oid);
        }
        Ok(())
    })
}

/// Reads a `DataRow`: its values in order.
pub fn read_row(frame: &[u8]) -> Result<Values<'_>, WireError> {
    let mut reader = open(frame, b'D', "DataRow")?;
    let values = Values::read(&mut reader)?;
    reader.end()?;
    Ok(values)
}

/// Appends a `DataRow`.
pub fn row<'a>(
    out: &mut BytesMut,
    values: impl ExactSizeIterator<Item = Option<&'a [u8]>>,
) -> Result<(), WireError> {
    build(out, b'D', |out| {
        put_count(out, values.len())?;
        for value in values {
            put_value(out, value)?;
        }
        Ok(())
    })
}
