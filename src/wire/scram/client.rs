//! The client's side: [`Client::new`], [`Client::answer`], then [`Waiting::verify`].

use super::verifier::{Verifier, client_key, iterations_in, server_key};
use super::{
    BINDING_HEADER, Key, MAX_NONCE_BYTES, attribute, check_nonce, hash, hmac, key_from_base64,
    message_text, prepared, salted, xor,
};
use crate::wire::error::ScramError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

/// What the client knows.
#[derive(Clone)]
pub enum Secret {
    /// The password itself; answering costs the server's iteration count in hashes.
    Password(Vec<u8>),
    /// The key recovered from a proof (`server::Accepted`) and the verifier it satisfied.
    Key {
        /// The client's key.
        client_key: Key,
        /// The verifier it was proved against, by which the server is known in turn.
        verifier: Verifier,
    },
}

/// Prints nothing of it.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// How the client stands to channel binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Not able to.
    None,
    /// Able to, but the server offered only the mechanism without.
    NotOffered,
    /// Done, with this hash of the server's certificate (`tls-server-end-point`); the mechanism is
    /// then [`super::MECHANISM_PLUS`].
    Done(Vec<u8>),
}

impl Binding {
    fn header(&self) -> &'static str {
        match self {
            Self::None => "n,,",
            Self::NotOffered => "y,,",
            Self::Done(_) => BINDING_HEADER,
        }
    }

    fn data(&self) -> &[u8] {
        match self {
            Self::None | Self::NotOffered => &[],
            Self::Done(data) => data,
        }
    }
}

/// An exchange that waits for the server's first message.
#[derive(Debug)]
pub struct Client {
    secret: Secret,
    binding: Binding,
    nonce: String,
}

/// An exchange that waits for the server's signature.
pub struct Waiting {
    signature: Key,
}

impl Client {
    /// Begins; gives the data for `SASLInitialResponse`. `nonce` is fresh, random and printable.
    pub fn new(
        secret: Secret,
        binding: Binding,
        nonce: &str,
    ) -> Result<(Self, String), ScramError> {
        check_nonce(nonce, MAX_NONCE_BYTES)?;
        let first = format!("{}n=,r={nonce}", binding.header());
        let nonce = nonce.to_owned();
        Ok((
            Self {
                secret,
                binding,
                nonce,
            },
            first,
        ))
    }

    /// Takes the data of `AuthenticationSASLContinue`; gives those of `SASLResponse`.
    pub fn answer(self, message: &[u8]) -> Result<(Waiting, String), ScramError> {
        let text = message_text(message)?;
        let mut rest = Some(text);
        let nonce = attribute(&mut rest, 'r', "nonce")?;
        let salt = attribute(&mut rest, 's', "salt")?;
        let iterations = iterations_in(attribute(&mut rest, 'i', "iteration count")?)?;
        let salt = STANDARD.decode(salt);
        let salt = salt.map_err(|_| ScramError::Malformed("salt"))?;
        check_nonce(nonce, 2 * MAX_NONCE_BYTES)?;
        let fresh = nonce.strip_prefix(self.nonce.as_str());
        if fresh.is_none_or(str::is_empty) {
            return Err(ScramError::Nonce);
        }
        let (client_key, server_key) = self.secret.keys(&salt, iterations)?;
        let bound = [self.binding.header().as_bytes(), self.binding.data()].concat();
        let without_proof = format!("c={},r={nonce}", STANDARD.encode(bound));
        let transcript = format!("n=,r={},{text},{without_proof}", self.nonce);
        let stored_key = hash(&client_key);
        let proof = xor(&client_key, &hmac(&stored_key, &[transcript.as_bytes()]));
        let signature = hmac(&server_key, &[transcript.as_bytes()]);
        let last = format!("{without_proof},p={}", STANDARD.encode(proof));
        Ok((Waiting { signature }, last))
    }
}

impl Secret {
    /// The client's and the server's key for the salt and count that the server named.
    fn keys(&self, salt: &[u8], iterations: u32) -> Result<(Key, Key), ScramError> {
        match self {
            Self::Password(password) => {
                let salted = salted(&prepared(password), salt, iterations);
                Ok((client_key(&salted), server_key(&salted)))
            }
            Self::Key { verifier, .. }
                if verifier.salt != salt || verifier.iterations != iterations =>
            {
                Err(ScramError::OtherVerifier)
            }
            Self::Key {
                client_key,
                verifier,
            } => Ok((*client_key, verifier.server_key)),
        }
    }
}

/// Prints nothing of it.
impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiting(..)")
    }
}

impl Waiting {
    /// Takes the data of `AuthenticationSASLFinal`: whether the server knows the verifier.
    pub fn verify(self, message: &[u8]) -> Result<(), ScramError> {
        let text = message_text(message)?;
        if text.starts_with("e=") {
            return Err(ScramError::ServerRefused);
        }
        let signature = attribute(&mut Some(text), 'v', "server signature")?;
        let signature = key_from_base64(signature);
        let signature = signature.ok_or(ScramError::Malformed("server signature"))?;
        if bool::from(signature.ct_eq(&self.signature)) {
            Ok(())
        } else {
            Err(ScramError::BadServerSignature)
        }
    }
}
