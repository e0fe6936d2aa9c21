//! Where a frame names its statement and portal, and putting another name in by position.
//!
//! The bytes around the name stay as the client sent them. Only the front of the frame is needed,
//! so that a large Bind is renamed before the rest of it has arrived.

use crate::wire::error::WireError;
use crate::wire::frame;
use bytes::{BufMut, BytesMut};
use std::ops::Range;

const WHAT: &str = "name in Parse, Bind, Describe, Close or Execute";

/// The zero-ended text that begins at `start`: its range without the zero. None while the zero has
/// not arrived; an error once it can no longer come.
fn text_at(front: &[u8], len: usize, start: usize) -> Result<Option<Range<usize>>, WireError> {
    let inside = &front[..len.min(front.len())];
    let Some(rest) = inside.get(start..) else {
        return if start < len {
            Ok(None)
        } else {
            Err(WireError::Malformed(WHAT))
        };
    };
    match memchr::memchr(0, rest) {
        Some(end) => Ok(Some(start..start + end)),
        None if inside.len() == len => Err(WireError::Malformed(WHAT)),
        None => Ok(None),
    }
}

/// The range of the statement's name in the frame that `front` begins, or None where the frame
/// names no statement (Describe or Close of a portal, other types) or the name is not all there.
pub fn statement_range(front: &[u8]) -> Result<Option<Range<usize>>, WireError> {
    let Some(header) = frame::peek(front)? else {
        return Ok(None);
    };
    match (header.tag, front.get(5)) {
        (b'P', _) => text_at(front, header.len, 5),
        (b'B', _) => match text_at(front, header.len, 5)? {
            Some(portal) => text_at(front, header.len, portal.end + 1),
            None => Ok(None),
        },
        (b'D' | b'C', Some(b'S')) => text_at(front, header.len, 6),
        _ => Ok(None),
    }
}

/// The same for the portal's name: in Bind, Execute, Describe and Close of a portal.
pub fn portal_range(front: &[u8]) -> Result<Option<Range<usize>>, WireError> {
    let Some(header) = frame::peek(front)? else {
        return Ok(None);
    };
    match (header.tag, front.get(5)) {
        (b'B' | b'E', _) => text_at(front, header.len, 5),
        (b'D' | b'C', Some(b'P')) => text_at(front, header.len, 6),
        _ => Ok(None),
    }
}

/// Appends `front`, the frame or as much of it as has arrived, with another statement name and the
/// length that goes with it. What arrives of the frame afterwards is to be forwarded as it is.
pub fn rename_statement(front: &[u8], name: &str, out: &mut BytesMut) -> Result<(), WireError> {
    let range = statement_range(front)?.ok_or(WireError::Malformed(WHAT))?;
    splice(front, range, name.as_bytes(), out)
}

/// The same for the portal's name.
pub fn rename_portal(front: &[u8], name: &str, out: &mut BytesMut) -> Result<(), WireError> {
    let range = portal_range(front)?.ok_or(WireError::Malformed(WHAT))?;
    splice(front, range, name.as_bytes(), out)
}

/// Appends `front` with `new` in the place of `range`, which lies behind the header, and the
/// frame's length corrected.
pub(super) fn splice(
    front: &[u8],
    range: Range<usize>,
    new: &[u8],
    out: &mut BytesMut,
) -> Result<(), WireError> {
    if memchr::memchr(0, new).is_some() {
        return Err(WireError::Unsendable("text with a zero byte"));
    }
    let header = frame::peek(front)?.ok_or(WireError::Malformed(WHAT))?;
    let length = u32::try_from(header.len - 1 - range.len() + new.len())
        .ok()
        .filter(|length| *length <= frame::MAX_LENGTH)
        .ok_or(WireError::Unsendable("message too long"))?;
    out.reserve(front.len() + new.len());
    out.put_u8(header.tag);
    out.put_u32(length);
    out.put_slice(&front[frame::HEADER_BYTES..range.start]);
    out.put_slice(new);
    out.put_slice(&front[range.end..]);
    Ok(())
}
