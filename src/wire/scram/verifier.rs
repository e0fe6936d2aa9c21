//! What a server keeps of a password: `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`.

use super::{Key, MAX_ITERATIONS, hash, hmac, key_from_base64, prepared, salted};
use crate::wire::error::ScramError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use subtle::ConstantTimeEq;

/// The iteration count of `PostgreSQL`'s own verifiers unless told otherwise.
pub const DEFAULT_ITERATIONS: u32 = 4096;
/// Salts of verifiers are 16 bytes; much longer ones would not fit a message.
const MAX_SALT_BYTES: usize = 256;

/// A verifier as it stands in `pg_authid.rolpassword`.
#[derive(Clone)]
pub struct Verifier {
    pub(super) iterations: u32,
    pub(super) salt: Vec<u8>,
    pub(super) stored_key: Key,
    pub(super) server_key: Key,
    /// Made up for a user who does not exist: no proof is ever accepted.
    pub(super) doomed: bool,
}

impl Verifier {
    /// Reads the text in `pg_authid`.
    pub fn parse(text: &str) -> Result<Self, ScramError> {
        Self::parts(text).ok_or(ScramError::BadVerifier)?
    }

    fn parts(text: &str) -> Option<Result<Self, ScramError>> {
        let (numbers, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = numbers.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let salt = STANDARD.decode(salt).ok()?;
        let fits = (1..=MAX_SALT_BYTES).contains(&salt.len());
        Some(match iterations_in(iterations) {
            Ok(iterations) => Ok(Self {
                iterations,
                salt: fits.then_some(salt)?,
                stored_key: key_from_base64(stored_key)?,
                server_key: key_from_base64(server_key)?,
                doomed: false,
            }),
            Err(error) => Err(error),
        })
    }

    /// The verifier of a password.
    pub fn of_password(password: &[u8], salt: &[u8], iterations: u32) -> Result<Self, ScramError> {
        if iterations == 0 || iterations > MAX_ITERATIONS {
            return Err(ScramError::Iterations);
        }
        if !(1..=MAX_SALT_BYTES).contains(&salt.len()) {
            return Err(ScramError::BadVerifier);
        }
        let salted = salted(&prepared(password), salt, iterations);
        Ok(Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: hash(&client_key(&salted)),
            server_key: server_key(&salted),
            doomed: false,
        })
    }

    /// A verifier for a user who has none, so that the exchange looks like any other: always the
    /// same for the same `secret` (random, one per process) and user, and never satisfied.
    pub fn mock(secret: &Key, user: &str, iterations: u32) -> Self {
        let derive = |purpose: &[u8]| hmac(secret, &[purpose, b"\0", user.as_bytes()]);
        Self {
            iterations,
            salt: derive(b"salt")[..16].to_vec(),
            stored_key: derive(b"stored key"),
            server_key: derive(b"server key"),
            doomed: true,
        }
    }

    /// Whether `client_key` is the key this verifier is of.
    pub fn accepts(&self, client_key: &Key) -> bool {
        let equal = hash(client_key).ct_eq(&self.stored_key);
        bool::from(equal) && !self.doomed
    }
}

impl PartialEq for Verifier {
    fn eq(&self, other: &Self) -> bool {
        let keys =
            self.stored_key.ct_eq(&other.stored_key) & self.server_key.ct_eq(&other.server_key);
        bool::from(keys)
            && self.iterations == other.iterations
            && self.salt == other.salt
            && self.doomed == other.doomed
    }
}

impl Eq for Verifier {}

/// Prints nothing of it.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}

/// The text for `pg_authid`, made on purpose by this name and not by `Display`.
impl Verifier {
    /// The text in the form of `pg_authid`.
    pub fn reveal(&self) -> String {
        format!(
            "SCRAM-SHA-256${}:{}${}:{}",
            self.iterations,
            STANDARD.encode(&self.salt),
            STANDARD.encode(self.stored_key),
            STANDARD.encode(self.server_key),
        )
    }
}

/// The verifier's text for a password, as `ALTER ROLE ... PASSWORD` takes it.
pub fn make_verifier(password: &[u8], salt: &[u8], iterations: u32) -> Result<String, ScramError> {
    Ok(Verifier::of_password(password, salt, iterations)?.reveal())
}

/// An iteration count in decimal, within the limit.
pub(super) fn iterations_in(text: &str) -> Result<u32, ScramError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let count = if digits { text.parse().ok() } else { None };
    count
        .filter(|count| (1..=MAX_ITERATIONS).contains(count))
        .ok_or(ScramError::Iterations)
}

pub(super) fn client_key(salted: &Key) -> Key {
    hmac(salted, &[b"Client Key"])
}

pub(super) fn server_key(salted: &Key) -> Key {
    hmac(salted, &[b"Server Key"])
}
