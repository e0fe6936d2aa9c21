//! Messages inside frames: builders that append to a buffer, parsers that borrow from a whole frame.
//!
//! Every parser takes the frame with its header, checks type and length, and validates what it will
//! later iterate. Text stays bytes where a client's encoding may differ from UTF-8. pgwire's own
//! decoders are not used here: they are not bounded to their frame and read text lossily.

pub mod backend;
pub mod frontend;
pub mod names;
pub mod report;
pub mod rows;
pub mod shape;

use crate::wire::error::WireError;
use crate::wire::frame;
use crate::wire::read::Reader;
use bytes::{BufMut, BytesMut};

/// A reader over the body of the whole frame `frame`, which must be of type `tag`.
fn open<'a>(frame: &'a [u8], tag: u8, wanted: &'static str) -> Result<Reader<'a>, WireError> {
    match frame::peek(frame)? {
        Some(header) if header.tag != tag => Err(WireError::Unexpected {
            tag: header.tag,
            wanted,
        }),
        Some(header) if header.len == frame.len() => {
            Ok(Reader::new(&frame[frame::HEADER_BYTES..], wanted))
        }
        _ => Err(WireError::Malformed(wanted)),
    }
}

/// Appends a frame whose body `fill` writes; on any error `out` is left as it was.
fn build(
    out: &mut BytesMut,
    tag: u8,
    fill: impl FnOnce(&mut BytesMut) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let start = out.len();
    out.put_u8(tag);
    out.put_u32(0);
    let length = fill(out).and_then(|()| {
        u32::try_from(out.len() - start - 1)
            .ok()
            .filter(|length| *length <= frame::MAX_LENGTH)
            .ok_or(WireError::Unsendable("message too long"))
    });
    match length {
        Ok(length) => {
            out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// Appends a frame of at most one byte of content, which always fits.
fn fixed(out: &mut BytesMut, tag: u8, body: Option<u8>) {
    out.put_u8(tag);
    out.put_u32(if body.is_some() { 5 } else { 4 });
    out.extend(body);
}

fn put_cstr(out: &mut BytesMut, text: &[u8]) -> Result<(), WireError> {
    if memchr::memchr(0, text).is_some() {
        return Err(WireError::Unsendable("text with a zero byte"));
    }
    out.put_slice(text);
    out.put_u8(0);
    Ok(())
}

fn put_count(out: &mut BytesMut, count: usize) -> Result<(), WireError> {
    let count = u16::try_from(count).map_err(|_| WireError::Unsendable("over 65535 items"))?;
    out.put_u16(count);
    Ok(())
}

/// Appends a value with its length before it, or -1 for null.
fn put_value(out: &mut BytesMut, value: Option<&[u8]>) -> Result<(), WireError> {
    match value {
        None => out.put_i32(-1),
        Some(bytes) => {
            let length = i32::try_from(bytes.len());
            out.put_i32(length.map_err(|_| WireError::Unsendable("value too long"))?);
            out.put_slice(bytes);
        }
    }
    Ok(())
}

/// Values led by their lengths, checked when their message was parsed.
#[derive(Clone, Debug)]
pub struct Values<'a> {
    reader: Reader<'a>,
    left: u16,
}

impl<'a> Values<'a> {
    /// Checks `count` values at the reader's place and moves it behind them.
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let left = reader.u16()?;
        let values = Self {
            reader: *reader,
            left,
        };
        for _ in 0..left {
            reader.value()?;
        }
        Ok(values)
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        self.reader.value().ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Values<'_> {}

/// Two-byte format codes (0 text, 1 binary) as a message carries them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats<'a>(&'a [[u8; 2]]);

impl<'a> Formats<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = usize::from(reader.u16()?);
        let (codes, _) = reader.take(count * 2)?.as_chunks();
        Ok(Self(codes))
    }

    /// The format of item `index`: none given means text for all, one given stands for all.
    pub fn of(&self, index: usize) -> i16 {
        let code = match self.0 {
            [] => return 0,
            [one] => one,
            codes => codes.get(index).unwrap_or(&[0, 0]),
        };
        i16::from_be_bytes(*code)
    }

    /// The codes as sent.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = i16> + 'a {
        self.0.iter().map(|code| i16::from_be_bytes(*code))
    }
}

/// Type numbers as a message carries them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oids<'a>(&'a [[u8; 4]]);

impl<'a> Oids<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = usize::from(reader.u16()?);
        let (oids, _) = reader.take(count * 4)?.as_chunks();
        Ok(Self(oids))
    }

    /// The numbers as sent; 0 where the server is to find out.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u32> + 'a {
        self.0.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
