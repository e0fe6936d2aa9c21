//! What can be wrong with bytes: one enum for the floor.
//!
//! It does not say who is to blame (the same parser reads clients and nodes) and never carries
//! the bytes themselves, which may hold a user's data.

/// Why bytes were refused, or a message could not be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A length word under 4 or over the limit: the stream is out of step and cannot go on.
    #[error("invalid length {length} in message of type {:?}", char::from(*tag))]
    FrameLength {
        /// The message's type byte.
        tag: u8,
        /// The length word as sent.
        length: u32,
    },
    /// A startup packet under 8 or over 10,004 bytes.
    #[error("invalid length {0} of startup packet")]
    StartupLength(u32),
    /// Another message than the one asked for.
    #[error("unexpected message of type {:?}, {wanted} was expected", char::from(*tag))]
    Unexpected {
        /// The message's type byte.
        tag: u8,
        /// The name of the message that was expected.
        wanted: &'static str,
    },
    /// A message whose inside does not fit its length or its own counts.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// Text that has to be UTF-8 and is not.
    #[error("not UTF-8: {0}")]
    NotUtf8(&'static str),
    /// A message that has no form on the wire: text with a zero byte in it, too many or too long values.
    #[error("cannot be sent: {0}")]
    Unsendable(&'static str),
    /// The SCRAM exchange failed.
    #[error(transparent)]
    Scram(#[from] ScramError),
}

/// Why a SCRAM exchange failed; who may be told what is the session's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// Not a SCRAM message, or one over the limits.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The text is not a `SCRAM-SHA-256$...` verifier.
    #[error("not a SCRAM-SHA-256 verifier")]
    BadVerifier,
    /// The mechanism asked for was not offered.
    #[error("SASL mechanism was not offered")]
    Mechanism,
    /// The channel binding flag contradicts the mechanism or what was offered, or its data differ.
    #[error("SCRAM channel binding: {0}")]
    ChannelBinding(&'static str),
    /// The iteration count is zero or over the limit.
    #[error("SCRAM iteration count out of range")]
    Iterations,
    /// The nonce is empty, too long, not printable or not the one of this exchange.
    #[error("invalid SCRAM nonce")]
    Nonce,
    /// The client's proof is wrong: wrong password, or no such user.
    #[error("SCRAM proof does not match")]
    BadProof,
    /// The server's signature is wrong: it does not know the verifier.
    #[error("SCRAM server signature does not match")]
    BadServerSignature,
    /// The server answered `e=...`.
    #[error("the server ended the SCRAM exchange with an error")]
    ServerRefused,
    /// The server's salt or iteration count is not that of the verifier the key belongs to:
    /// the password was changed since.
    #[error("the server holds another SCRAM verifier than the key's")]
    OtherVerifier,
}
