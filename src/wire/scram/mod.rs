//! SCRAM-SHA-256 (RFC 5802, RFC 7677) from both sides, without ever needing a stored password.
//!
//! As a server it proves a client against the node's own verifier and recovers the client's key; as
//! a client it opens a node's door with that key. Nonces are arguments. Secrets are compared in
//! constant time and never printed.

pub mod client;
pub mod server;
pub mod verifier;

use std::num::NonZeroU32;

use crate::wire::error::ScramError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac as mac, pbkdf2};

/// The mechanism without channel binding.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// A longer message is refused unread, as `PostgreSQL` does.
const MAX_MESSAGE_BYTES: usize = 1024;
/// A longer nonce, or half of one, is refused.
const MAX_NONCE_BYTES: usize = 256;
/// A higher count is refused: it would let a peer burn the other's processor.
pub const MAX_ITERATIONS: u32 = 10_000_000;
/// The channel binding spoken: a hash of the server's certificate.
const BINDING_HEADER: &str = "p=tls-server-end-point,,";

/// A hash, or a key of the same length.
pub type Key = [u8; 32];

fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut context = mac::Context::with_key(&mac::Key::new(mac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    as_key(context.sign().as_ref())
}

fn hash(bytes: &[u8]) -> Key {
    as_key(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Of a hash, which is as long as a key.
fn as_key(hash: &[u8]) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(hash);
    key
}

fn xor(left: &Key, right: &Key) -> Key {
    std::array::from_fn(|i| left[i] ^ right[i])
}

/// PBKDF2 with HMAC-SHA-256 and one block, RFC 5802's `Hi`.
fn salted(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let mut key = Key::default();
    // No count is below 1.
    let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
    pbkdf2::derive(algorithm, iterations, salt, password, &mut key);
    key
}

/// `SASLprep`; what it does not allow stays as it is, as `PostgreSQL` does.
fn prepared(password: &[u8]) -> Vec<u8> {
    let prepared = std::str::from_utf8(password).ok().map(stringprep::saslprep);
    match prepared {
        Some(Ok(text)) => text.into_owned().into_bytes(),
        _ => password.to_vec(),
    }
}

fn key_from_base64(text: &str) -> Option<Key> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// The text of a message within the limits.
fn message_text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(ScramError::Malformed("too long"));
    }
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))
}

/// Takes the attribute `name=` off the front of the list `rest` and gives its value.
fn attribute<'a>(
    rest: &mut Option<&'a str>,
    name: char,
    wanted: &'static str,
) -> Result<&'a str, ScramError> {
    let list = rest.ok_or(ScramError::Malformed(wanted))?;
    let (item, behind) = match list.split_once(',') {
        Some((item, behind)) => (item, Some(behind)),
        None => (list, None),
    };
    let value = item
        .strip_prefix(name)
        .and_then(|text| text.strip_prefix('='));
    *rest = behind;
    value.ok_or(ScramError::Malformed(wanted))
}

/// RFC 5802's printable characters, without the comma that ends an attribute.
fn check_nonce(nonce: &str, longest: usize) -> Result<(), ScramError> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x2B | 0x2D..=0x7E);
    if nonce.is_empty() || nonce.len() > longest || !nonce.bytes().all(printable) {
        return Err(ScramError::Nonce);
    }
    Ok(())
}

/// The answer to an MD5 password request, framed by the caller as a password.
pub fn md5_response(user: &str, password: &[u8], salt: [u8; 4]) -> String {
    postgres_protocol::authentication::md5_hash(user.as_bytes(), password, salt)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
