//! Where frames begin and end in a stream of bytes, without copying and without holding them whole.
//!
//! A relay forwards bytes as they came; this file tells it where it must stop and look. No byte of a
//! frame whose type is not yet known is ever reported as passed, so nothing slips by unclassified.

use crate::wire::error::WireError;

/// The longest length word taken for true: `PostgreSQL` itself allocates no message beyond 1 GB.
pub const MAX_LENGTH: u32 = 0x3FFF_FFFF;

/// Bytes of type and length that lead each frame.
pub const HEADER_BYTES: usize = 5;

/// What leads a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The message's type.
    pub tag: u8,
    /// The whole frame in bytes, type and length word included.
    pub len: usize,
}

/// The header at the front of `buf`, or None while fewer than 5 bytes are there.
#[inline]
pub fn peek(buf: &[u8]) -> Result<Option<Header>, WireError> {
    peek_within(buf, MAX_LENGTH)
}

/// [`peek`] with a smaller limit on the length word.
#[inline]
pub fn peek_within(buf: &[u8], limit: u32) -> Result<Option<Header>, WireError> {
    let Some(&[tag, a, b, c, d]) = buf.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]);
    if !(4..=limit).contains(&length) {
        return Err(WireError::FrameLength { tag, length });
    }
    let len = length as usize + 1;
    Ok(Some(Header { tag, len }))
}

/// The first whole frame of `buf`, if it is all there.
#[inline]
pub fn whole(buf: &[u8]) -> Result<Option<&[u8]>, WireError> {
    Ok(peek(buf)?.and_then(|header| buf.get(..header.len)))
}

/// The longest length word `PostgreSQL` takes from a client in a message of this type;
/// None for a type that no client may send.
pub fn client_limit(tag: u8) -> Option<u32> {
    match tag {
        b'Q' | b'F' | b'P' | b'B' | b'd' => Some(MAX_LENGTH),
        b'C' | b'D' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f' => Some(10_004),
        b'p' => Some(65_539),
        _ => None,
    }
}

/// A set of message types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagSet([u64; 4]);

impl TagSet {
    /// The set of the given types.
    pub const fn of(tags: &[u8]) -> Self {
        let mut bits = [0; 4];
        let mut at = 0;
        while at < tags.len() {
            let tag = tags[at];
            bits[(tag >> 6) as usize] |= 1 << (tag & 63);
            at += 1;
        }
        Self(bits)
    }

    /// Every type but the given ones.
    pub const fn all_but(tags: &[u8]) -> Self {
        let Self([a, b, c, d]) = Self::of(tags);
        Self([!a, !b, !c, !d])
    }

    /// Whether `tag` is in the set.
    #[inline]
    pub const fn has(&self, tag: u8) -> bool {
        self.0[(tag >> 6) as usize] >> (tag & 63) & 1 == 1
    }
}

/// What lies at the front of a slice given to [`Scanner::next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A frame begins; `here` of its bytes lie in the slice and are passed.
    Start {
        /// The frame's header.
        header: Header,
        /// How many bytes of the slice belong to it.
        here: usize,
    },
    /// A frame that began earlier goes on; `here` bytes are passed.
    More {
        /// How many bytes of the slice belong to it.
        here: usize,
        /// Whether the frame ends with them.
        done: bool,
    },
    /// Too few bytes to tell: keep them, and present them again with more behind them.
    Starved,
}

/// Why [`Scanner::run`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The slice is used up.
    End,
    /// The slice ends inside a header, which is not passed: present it again with more behind it.
    Starved,
    /// A frame of a type to look at begins here and is not passed: handle it whole and go on behind
    /// it, or pass it with [`Scanner::next`].
    Look(Header),
}

/// How far a slice was passed, and why no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes of the slice that may be forwarded.
    pub passed: usize,
    /// Why not more.
    pub stop: Stop,
}

/// A place in a stream of frames, carried from one read to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scanner {
    /// Bytes of the current frame that have not arrived yet.
    left: usize,
}

impl Scanner {
    /// A scanner at the border between two frames.
    pub const fn new() -> Self {
        Self { left: 0 }
    }

    /// Bytes still missing from a frame of which the beginning was passed; 0 at a border.
    #[inline]
    pub const fn left(&self) -> usize {
        self.left
    }

    /// Passes what the front of `buf` holds of one frame. `buf` begins where the last step ended.
    #[inline]
    pub fn next(&mut self, buf: &[u8]) -> Result<Step, WireError> {
        if self.left > 0 {
            let here = self.left.min(buf.len());
            self.left -= here;
            let done = self.left == 0;
            return Ok(Step::More { here, done });
        }
        let Some(header) = peek(buf)? else {
            return Ok(Step::Starved);
        };
        let here = header.len.min(buf.len());
        self.left = header.len - here;
        Ok(Step::Start { header, here })
    }

    /// Passes as many frames as it can, stopping before the first whose type is in `look`.
    #[inline]
    pub fn run(&mut self, buf: &[u8], look: &TagSet) -> Result<Run, WireError> {
        let mut passed = self.left.min(buf.len());
        self.left -= passed;
        let stop = loop {
            let rest = &buf[passed..];
            match peek(rest)? {
                None if rest.is_empty() => break Stop::End,
                None => break Stop::Starved,
                Some(header) if look.has(header.tag) => break Stop::Look(header),
                Some(header) if header.len > rest.len() => {
                    self.left = header.len - rest.len();
                    passed = buf.len();
                    break Stop::End;
                }
                Some(header) => passed += header.len,
            }
        };
        Ok(Run { passed, stop })
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
