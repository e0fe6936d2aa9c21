//! The server's side: [`Server::first`], then [`Waiting::last`].

use super::verifier::Verifier;
use super::{
    BINDING_HEADER, Key, MAX_NONCE_BYTES, MECHANISM, MECHANISM_PLUS, attribute, check_nonce, hmac,
    key_from_base64, message_text, xor,
};
use crate::wire::error::ScramError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// An exchange that has not begun.
#[derive(Debug)]
pub struct Server {
    verifier: Verifier,
    binding: Option<Vec<u8>>,
}

/// An exchange that waits for the client's proof.
#[derive(Debug)]
pub struct Waiting {
    verifier: Verifier,
    /// What `c=` must say.
    binding: String,
    nonce: String,
    /// The first two parts of RFC 5802's `AuthMessage`, with the comma behind each.
    transcript: String,
}

/// A client whose proof was right.
pub struct Accepted {
    /// The client's key, with which the same user is let in by any server with the same verifier.
    pub client_key: Key,
    /// The last message, for `AuthenticationSASLFinal`.
    pub server_final: String,
}

/// Prints nothing of it.
impl std::fmt::Debug for Accepted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Accepted(..)")
    }
}

impl Server {
    /// `binding` is the hash of the certificate (`tls-server-end-point`), where TLS is in use.
    pub fn new(verifier: Verifier, binding: Option<Vec<u8>>) -> Self {
        Self { verifier, binding }
    }

    /// The mechanisms to offer, the best first.
    pub fn mechanisms(&self) -> &'static [&'static str] {
        if self.binding.is_some() {
            &[MECHANISM_PLUS, MECHANISM]
        } else {
            &[MECHANISM]
        }
    }

    /// Takes the client's choice and first message; gives the data for `AuthenticationSASLContinue`.
    /// `nonce` is fresh, random and printable (18 random bytes in base64 do).
    pub fn first(
        self,
        mechanism: &str,
        message: &[u8],
        nonce: &str,
    ) -> Result<(Waiting, String), ScramError> {
        let text = message_text(message)?;
        if !self.mechanisms().contains(&mechanism) {
            return Err(ScramError::Mechanism);
        }
        let (header, bare) = split_header(text)?;
        let binding = self.expected_binding(mechanism, header)?;
        let client_nonce = nonce_of(bare)?;
        check_nonce(nonce, MAX_NONCE_BYTES)?;
        let nonce = format!("{client_nonce}{nonce}");
        let salt = STANDARD.encode(&self.verifier.salt);
        let answer = format!("r={nonce},s={salt},i={}", self.verifier.iterations);
        let waiting = Waiting {
            verifier: self.verifier,
            binding,
            nonce,
            transcript: format!("{bare},{answer},"),
        };
        Ok((waiting, answer))
    }

    /// What the client's last message must repeat, after the checks against a downgrade.
    fn expected_binding(&self, mechanism: &str, header: &str) -> Result<String, ScramError> {
        let plus = mechanism == MECHANISM_PLUS;
        let data = match (header, &self.binding) {
            ("n,,", _) if !plus => &[][..],
            ("y,,", None) => &[][..],
            ("y,,", Some(_)) if !plus => {
                return Err(ScramError::ChannelBinding(
                    "the client was not shown the offer",
                ));
            }
            (BINDING_HEADER, Some(data)) if plus => data,
            _ => {
                return Err(ScramError::ChannelBinding(
                    "flag does not fit the mechanism",
                ));
            }
        };
        Ok(STANDARD.encode([header.as_bytes(), data].concat()))
    }
}

/// Splits the GS2 header (flag and empty authorization identity, commas included) off.
fn split_header(text: &str) -> Result<(&str, &str), ScramError> {
    let wanted = ScramError::Malformed("GS2 header");
    let flag = text.find(',').ok_or(wanted)?;
    let identity = text[flag + 1..].find(',').ok_or(wanted)?;
    if identity != 0 {
        return Err(ScramError::Malformed(
            "authorization identities are not supported",
        ));
    }
    Ok(text.split_at(flag + 2))
}

/// The client's nonce. Its user name is not used, as in `PostgreSQL`: the startup message counts.
fn nonce_of(bare: &str) -> Result<&str, ScramError> {
    let mut rest = Some(bare);
    attribute(&mut rest, 'n', "user name")?;
    let nonce = attribute(&mut rest, 'r', "client nonce")?;
    check_nonce(nonce, MAX_NONCE_BYTES)?;
    Ok(nonce)
}

impl Waiting {
    /// Takes the client's last message; right proofs give its key and the closing message.
    pub fn last(self, message: &[u8]) -> Result<Accepted, ScramError> {
        let text = message_text(message)?;
        let (without_proof, proof) = text
            .rsplit_once(",p=")
            .ok_or(ScramError::Malformed("proof"))?;
        let proof = key_from_base64(proof).ok_or(ScramError::Malformed("proof"))?;
        let mut rest = Some(without_proof);
        if attribute(&mut rest, 'c', "channel binding")? != self.binding {
            return Err(ScramError::ChannelBinding("data differ"));
        }
        if attribute(&mut rest, 'r', "nonce")? != self.nonce {
            return Err(ScramError::Nonce);
        }
        let transcript = [self.transcript.as_bytes(), without_proof.as_bytes()];
        let client_key = xor(&hmac(&self.verifier.stored_key, &transcript), &proof);
        if !self.verifier.accepts(&client_key) {
            return Err(ScramError::BadProof);
        }
        let signature = hmac(&self.verifier.server_key, &transcript);
        Ok(Accepted {
            client_key,
            server_final: format!("v={}", STANDARD.encode(signature)),
        })
    }
}
