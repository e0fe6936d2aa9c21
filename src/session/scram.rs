//! The SASL exchange with a client: frames in and out around the pure exchange of `wire::scram`.
//!
//! A role that does not exist, has no password or an expired one gets the same exchange as any
//! other, with a verifier made up for it, and fails at its end like a wrong password.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};

use crate::error::ClientError;
use crate::node::keys::RoleKey;
use crate::session::handshake::{Ended, fill, send};
use crate::session::tls::ClientIo;
use crate::wire::error::ScramError;
use crate::wire::frame;
use crate::wire::message::{backend::Authentication, frontend};
use crate::wire::scram::server::Server;
use crate::wire::scram::verifier::DEFAULT_ITERATIONS;

pub use crate::wire::scram::Key;
pub use crate::wire::scram::verifier::Verifier;

/// The longest SASL frame that is read; `PostgreSQL` takes 1,024 bytes of SASL data.
const LONGEST_FRAME: u32 = 2048;

/// One exchange with one client.
pub struct Exchange<'a> {
    /// The client.
    pub io: &'a mut ClientIo,
    /// What it has sent.
    pub input: &'a mut BytesMut,
    /// The name it gave.
    pub user: &'a str,
}

impl Exchange<'_> {
    /// Runs the exchange and gives the key recovered from the client's proof. Dropped midway, the
    /// connection is of no further use.
    pub async fn run(
        mut self,
        verifier: Option<Verifier>,
        mock: &Key,
        endpoint: Option<&[u8]>,
    ) -> Result<RoleKey, Ended> {
        let verifier =
            verifier.unwrap_or_else(|| Verifier::mock(mock, self.user, DEFAULT_ITERATIONS));
        let server = Server::new(verifier.clone(), endpoint.map(<[u8]>::to_vec));
        let mechanisms = server.mechanisms().to_vec();
        self.say(&Authentication::Sasl(mechanisms)).await?;
        let initial = self.message().await?;
        let (mechanism, first) = frontend::read_sasl_initial(&initial)?;
        let nonce = STANDARD.encode(rand::random::<[u8; 18]>());
        let first = server.first(mechanism, first.unwrap_or_default(), &nonce);
        let (waiting, challenge) = first.map_err(|error| self.fault(error))?;
        self.say(&Authentication::SaslContinue(challenge.as_bytes()))
            .await?;
        let response = self.message().await?;
        let accepted = waiting.last(frontend::read_sasl_response(&response)?);
        let accepted = accepted.map_err(|error| self.fault(error))?;
        self.say(&Authentication::SaslFinal(accepted.server_final.as_bytes()))
            .await?;
        Ok(RoleKey {
            client_key: accepted.client_key,
            verifier,
        })
    }

    async fn say(&mut self, message: &Authentication<'_>) -> Result<(), Ended> {
        let mut out = BytesMut::new();
        message.put(&mut out)?;
        send(self.io, &mut out).await
    }

    async fn message(&mut self) -> Result<Bytes, Ended> {
        loop {
            if self.input.first().is_some_and(|tag| *tag != b'p') {
                return Err(ClientError::protocol("expected a SASL response").into());
            }
            if let Some(header) = frame::peek_within(self.input, LONGEST_FRAME)?
                && self.input.len() >= header.len
            {
                return Ok(self.input.split_to(header.len).freeze());
            }
            fill(self.io, self.input).await?;
        }
    }

    fn fault(&self, error: ScramError) -> Ended {
        Ended::Refused(match error {
            ScramError::BadProof => ClientError::AuthenticationFailed {
                user: self.user.to_owned(),
            },
            ScramError::ChannelBinding(_) => ClientError::ChannelBinding,
            other => ClientError::Protocol(other.to_string().into()),
        })
    }
}
