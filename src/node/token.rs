//! What a session says ahead of its COMMIT, so that the commit can be found again in the stream.
//!
//! A transaction that wrote carries a message with a token, sent in the same packet as its COMMIT
//! (`pg_logical_emit_message`; manual, "System Administration Functions"). It is part of the transaction: where the
//! stream has it, the transaction was committed. Guards that nobody else's message is taken for one: the key is known
//! to this process alone.

use std::fmt;

use crate::wire::pgoutput::Emitted;

/// The prefix of the messages.
const PREFIX: &[u8] = b"synapsedb commit";

/// Sends a token as `$1`, of type text, where the transaction has a number, so may have written: it gives none to one
/// that has not.
pub const SEND: &str = "select pg_catalog.pg_logical_emit_message(true, 'synapsedb commit', $1) \
    where pg_catalog.pg_current_xact_id_if_assigned() is not null";

/// One commit of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The proxy's run.
    pub key: u64,
    /// The session.
    pub session: u64,
    /// Which of its commits.
    pub count: u64,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x} {} {}", self.key, self.session, self.count)
    }
}

impl Token {
    /// The token in a message, if that is one.
    pub fn read(emitted: &Emitted) -> Option<Self> {
        if !emitted.transactional || emitted.prefix != PREFIX {
            return None;
        }
        let text = std::str::from_utf8(&emitted.content).ok()?;
        let mut parts = text.split(' ');
        let token = Self {
            key: u64::from_str_radix(parts.next()?, 16).ok()?,
            session: parts.next()?.parse().ok()?,
            count: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(token)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ids::Lsn;

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let token = Token {
            key: 0xfe,
            session: 12,
            count: 3,
        };
        let emitted = |transactional, prefix: &'static [u8], content: &str| Emitted {
            transactional,
            lsn: Lsn(1),
            prefix: Bytes::from_static(prefix),
            content: Bytes::copy_from_slice(content.as_bytes()),
        };
        let text = token.to_string();
        let read = |emitted: &Emitted| Token::read(emitted);
        assert_eq!(read(&emitted(true, PREFIX, &text)), Some(token));
        assert_eq!(read(&emitted(false, PREFIX, &text)), None);
        assert_eq!(read(&emitted(true, b"synapsedb unit", &text)), None);
        for odd in ["", "fe 12", "fe 12 3 4", "fe 12 x", "g 1 2"] {
            assert_eq!(read(&emitted(true, PREFIX, odd)), None, "{odd}");
        }
    }
}
