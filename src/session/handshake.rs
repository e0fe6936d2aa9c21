//! From the first byte of a connection to a client that may ask, or to a clear refusal.
//!
//! Promises: every wait has an end and every packet a bound; nothing sent in clear is ever taken for
//! something sent under TLS; a name that does not exist looks like a wrong password; and whoever is
//! told that it may ask has a node's own word that user, database and settings are good.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cluster::guests::Guest;
use crate::cluster::service::Answer;
use crate::config::{AuthMode, Consistency};
use crate::error::ClientError;
use crate::ids::NodeId;
use crate::node::admin::AdminError;
use crate::node::backend::Parameters;
use crate::node::identity::Epoch;
use crate::node::keys::RoleKey;
use crate::node::pool::{Lease, Pool};
use crate::node::pooled::{CONSISTENCY, node_error};
use crate::node::verifiers::RoleFacts;
use crate::session::cancel::CancelHandle;
use crate::session::client::Client;
use crate::session::offices::Desk;
use crate::session::scram;
use crate::session::shared::{Seat, Shared};
use crate::session::startup::Wish;
use crate::session::tls::{ALPN, ClientIo};
use crate::wire::error::WireError;
use crate::wire::message::backend::{self, Authentication, Status};
use crate::wire::startup::{self, SessionRequest, Startup};

/// The newest minor version of protocol 3 that is spoken.
const NEWEST_MINOR: u16 = 2;
/// Bytes read at a time before the session begins.
const CHUNK: usize = 4096;

/// Why a connection ends before its session begins.
#[derive(Debug)]
pub enum Ended {
    /// The client is told why.
    Refused(ClientError),
    /// The client left, or nothing it could read can be said.
    Silently,
}

impl From<ClientError> for Ended {
    fn from(error: ClientError) -> Self {
        Self::Refused(error)
    }
}

impl From<WireError> for Ended {
    fn from(error: WireError) -> Self {
        Self::Refused(match error {
            WireError::NotUtf8(_) => ClientError::Encoding,
            WireError::StartupLength(_) => {
                ClientError::protocol("invalid length of startup packet")
            }
            other => ClientError::Protocol(other.to_string().into()),
        })
    }
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        tracing::debug!(%error, "client left during the handshake");
        Self::Silently
    }
}

/// A connection on its way in.
pub struct Handshake {
    /// None only while TLS is being set up, and after that has failed.
    io: Option<ClientIo>,
    input: BytesMut,
    peer: SocketAddr,
    read_only: bool,
    shared: Arc<Shared>,
}

/// Who the client is: what of a [`Client`] is known once it has proved itself.
pub struct Identified {
    wish: Wish,
    minor: u16,
    facts: Option<(RoleFacts, Epoch)>,
    seat: Seat,
}

/// What of a [`Client`] is known before its socket is handed over.
pub struct Admitted {
    wish: Wish,
    told: Parameters,
    minor: u16,
    pool: Arc<Pool>,
    epoch: Epoch,
    cancel: CancelHandle,
    seat: Seat,
    guest: Option<Guest>,
}

impl Handshake {
    /// Begins on a connection just accepted.
    pub fn new(stream: TcpStream, peer: SocketAddr, read_only: bool, shared: Arc<Shared>) -> Self {
        Self {
            io: Some(ClientIo::Plain(stream)),
            input: BytesMut::new(),
            peer,
            read_only,
            shared,
        }
    }

    /// The connection, for last words.
    pub fn into_io(self) -> Option<ClientIo> {
        self.io
    }

    /// The client, once it is admitted.
    pub fn into_client(self, admitted: Admitted) -> Option<Client> {
        Some(Client {
            io: self.io?,
            input: self.input,
            peer: self.peer,
            user: admitted.wish.user,
            database: admitted.wish.database,
            settings: admitted.wish.settings,
            told: admitted.told,
            read_only: self.read_only,
            minor: admitted.minor,
            pool: admitted.pool,
            epoch: admitted.epoch,
            cancel: admitted.cancel,
            seat: admitted.seat,
            guest: admitted.guest,
        })
    }

    /// Runs until the client has proved who it is, or its connection ends; None after a cancel request.
    /// The caller limits the time. Dropped midway, the place it took is given back.
    pub async fn identify(&mut self) -> Result<Option<Identified>, Ended> {
        let Some(request) = self.open().await? else {
            return Ok(None);
        };
        let SessionRequest { major, minor, .. } = request;
        if major != 3 {
            return Err(ClientError::UnsupportedProtocol { major, minor }.into());
        }
        let mut out = BytesMut::new();
        let minor = negotiate(&request, &mut out)?;
        let mut wish = Wish::read(&request)?;
        if self.read_only {
            let name = "default_transaction_read_only".to_owned();
            wish.settings.insert(name, "on".to_owned());
        }
        if let Some(value) = wish.settings.get(CONSISTENCY)
            && Consistency::named(value).is_none()
        {
            let value = value.clone();
            return Err(ClientError::BadConsistency { value }.into());
        }
        let seat = self.shared.seats.take();
        let seat = seat.ok_or(ClientError::TooManyClients)?;
        self.send(&mut out).await?;
        let facts = self.authenticate(&wish).await?;
        Ok(Some(Identified {
            wish,
            minor,
            facts,
            seat,
        }))
    }

    /// Runs until the client has been told that it may ask. Takes as long as the pool lets it wait for a
    /// connection. Dropped midway, whatever was taken (place, connection, key) is given back.
    pub async fn admit(&mut self, client: Identified) -> Result<Admitted, Ended> {
        let Identified {
            wish,
            minor,
            facts,
            seat,
        } = client;
        // Whatever has to be woken for it is woken while it is let in.
        let guest = self.shared.relay.service().enter(&wish.database);
        let shared = &self.shared;
        let (wished, facts) = (&wish, facts.as_ref());
        let ask = |desk| -> Answer<'_, _> { Box::pin(ask_node(shared, desk, wished, facts)) };
        let asked = shared.offices.ask(&shared.config, || reader(shared), ask);
        let (pool, epoch, told) = asked.await?;
        let cancel = self.shared.cancels.register(minor);
        let mut out = BytesMut::new();
        for (name, value) in told.iter() {
            backend::parameter_status(&mut out, name.as_bytes(), value.as_bytes())?;
        }
        backend::key(&mut out, cancel.key())?;
        backend::ready(&mut out, Status::Idle);
        self.send(&mut out).await?;
        Ok(Admitted {
            wish,
            told,
            minor,
            pool,
            epoch,
            cancel,
            seat,
            guest,
        })
    }

    /// Everything up to the startup packet: TLS, refusals of what is not spoken, cancels.
    async fn open(&mut self) -> Result<Option<SessionRequest>, Ended> {
        if self.first_byte().await? == 0x16 {
            self.direct_tls().await?;
        }
        let (mut asked_tls, mut asked_gss) = (self.io()?.is_tls(), false);
        loop {
            match self.packet().await? {
                Startup::Session(request) => return Ok(Some(request)),
                Startup::Cancel(key) => {
                    self.shared
                        .cancels
                        .carry_out(&key, &self.shared.admins)
                        .await;
                    return Ok(None);
                }
                Startup::Ssl if !asked_tls => {
                    asked_tls = true;
                    self.nothing_behind("received unencrypted data after SSL request")?;
                    self.answer_ssl().await?;
                }
                Startup::Gss if !asked_gss && !self.io()?.is_tls() => {
                    asked_gss = true;
                    self.nothing_behind(
                        "received unencrypted data after GSSAPI encryption request",
                    )?;
                    self.send(&mut BytesMut::from(&b"N"[..])).await?;
                }
                Startup::Ssl | Startup::Gss | Startup::DirectTls => {
                    return Err(
                        ClientError::protocol("encryption was asked for out of turn").into(),
                    );
                }
            }
        }
    }

    /// Waits for the first byte and leaves it in the socket, where TLS will want it.
    async fn first_byte(&mut self) -> Result<u8, Ended> {
        let mut byte = [0];
        match self.io()?.socket().peek(&mut byte).await? {
            0 => Err(Ended::Silently),
            _ => Ok(byte[0]),
        }
    }

    /// One packet without a type byte, bounded before it is read.
    async fn packet(&mut self) -> Result<Startup, Ended> {
        let longest = self.shared.config.limits.startup_max_bytes;
        loop {
            let length = self
                .input
                .first_chunk::<4>()
                .map(|word| u32::from_be_bytes(*word));
            if length.is_some_and(|length| length > longest) {
                return Err(ClientError::protocol("invalid length of startup packet").into());
            }
            if let Some((packet, length)) = startup::peek(&self.input)? {
                self.input.advance(length);
                return Ok(packet);
            }
            self.fill().await?;
        }
    }

    /// What is already there was sent before encryption was agreed on, by whoever was in between.
    fn nothing_behind(&self, otherwise: &'static str) -> Result<(), Ended> {
        if self.input.is_empty() {
            Ok(())
        } else {
            Err(ClientError::protocol(otherwise).into())
        }
    }

    async fn answer_ssl(&mut self) -> Result<(), Ended> {
        if self.shared.tls.is_none() {
            return self.send(&mut BytesMut::from(&b"N"[..])).await;
        }
        self.send(&mut BytesMut::from(&b"S"[..])).await?;
        self.begin_tls().await
    }

    async fn direct_tls(&mut self) -> Result<(), Ended> {
        self.begin_tls().await?;
        match self.io()? {
            ClientIo::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(ALPN) => Ok(()),
            _ => Err(ClientError::protocol(
                "direct TLS connections have to name the protocol \"postgresql\" (ALPN)",
            )
            .into()),
        }
    }

    /// Without a certificate there is nothing that a TLS client could read.
    async fn begin_tls(&mut self) -> Result<(), Ended> {
        let tls = self.shared.tls.clone().ok_or(Ended::Silently)?;
        match self.io.take() {
            Some(ClientIo::Plain(stream)) => {
                self.io = Some(ClientIo::Tls(Box::new(tls.accept(stream).await?)));
                Ok(())
            }
            _ => Err(Ended::Silently),
        }
    }

    /// Who the client is, proved or (in trust mode) believed.
    async fn authenticate(&mut self, wish: &Wish) -> Result<Option<(RoleFacts, Epoch)>, Ended> {
        let shared = Arc::clone(&self.shared);
        let ask = |desk: Desk| -> Answer<'_, _> {
            let facts = shared
                .verifiers
                .facts(desk.node, &wish.user, &wish.database);
            let shared = &shared;
            Box::pin(async move {
                facts
                    .await
                    .map_err(|error| unreachable(shared, desk.node, &error))
            })
        };
        let asked = shared.offices.ask(&shared.config, || reader(&shared), ask);
        let facts = asked.await?;
        let mut key = None;
        if shared.config.auth.mode == AuthMode::Scram {
            let verifier = facts.as_ref().and_then(|facts| facts.verifier.clone());
            key = Some(self.scram(&wish.user, verifier).await?);
        }
        let facts = match facts {
            Some(facts) => settle(&shared, wish, facts, key.is_some()).await?,
            None => None,
        };
        // Only now: whoever logged in as another of this name must not open anything by it.
        if let Some(key) = key {
            shared.pools.learn_key(&wish.user, key);
        }
        let mut out = BytesMut::new();
        Authentication::Ok.put(&mut out)?;
        self.send(&mut out).await?;
        Ok(facts)
    }

    async fn scram(
        &mut self,
        user: &str,
        verifier: Option<scram::Verifier>,
    ) -> Result<RoleKey, Ended> {
        let tls = self
            .shared
            .tls
            .as_ref()
            .filter(|_| self.io.as_ref().is_some_and(ClientIo::is_tls));
        let endpoint = tls.and_then(|tls| tls.endpoint.clone());
        let secret = self.shared.mock_secret;
        let input = &mut self.input;
        let io = self.io.as_mut().ok_or(Ended::Silently)?;
        scram::Exchange { io, input, user }
            .run(verifier, &secret, endpoint.as_deref())
            .await
    }

    fn io(&self) -> Result<&ClientIo, Ended> {
        self.io.as_ref().ok_or(Ended::Silently)
    }

    async fn fill(&mut self) -> Result<(), Ended> {
        fill(self.io.as_mut().ok_or(Ended::Silently)?, &mut self.input).await
    }

    async fn send(&mut self, out: &mut BytesMut) -> Result<(), Ended> {
        send(self.io.as_mut().ok_or(Ended::Silently)?, out).await
    }
}

/// The node's own word on user, database and settings, and what it tells such a client.
async fn ask_node(
    shared: &Shared,
    desk: Desk,
    wish: &Wish,
    facts: Option<&(RoleFacts, Epoch)>,
) -> Result<(Arc<Pool>, Epoch, Parameters), ClientError> {
    let Wish {
        user,
        database,
        settings,
    } = wish;
    let Some((facts, epoch)) = facts.filter(|(facts, _)| facts.admitted) else {
        shared.pools.try_door(desk.node, user, database).await?;
        let text = "the node admitted a login that its catalog does not";
        return Err(ClientError::Internal(text.into()));
    };
    let pool = shared.pools.pool(desk.office.writer, user, database)?;
    shared.pools.note_defaults(user, database, &facts.defaults);
    let mut lease = if desk.is_follower() {
        let theirs = shared.pools.read_pool(desk.node, user, database)?;
        theirs.acquire().await?
    } else {
        pool.begin_term(desk.office.term);
        pool.acquire().await?
    };
    if pool.epoch() != *epoch {
        let user = user.clone();
        return Err(ClientError::OtherRole { user });
    }
    let adopted = match lease.cleanse().await {
        Ok(()) => lease.adopt(settings).await,
        Err(error) => Err(error),
    };
    let told = lease.backend.parameters.clone();
    let name = || shared.node_name(desk.node);
    match adopted {
        Ok(()) => lease.release(),
        Err(error) => {
            keep_if_ready(lease, &error);
            return Err(node_error(name(), error));
        }
    }
    Ok((pool, *epoch, told))
}

/// A follower that knows all that was acknowledged of roles, whatever database they were changed in.
fn reader(shared: &Shared) -> Option<NodeId> {
    shared.relay.service().reads()?.follower_with_all()
}

/// Whom the role's name stands for, noted for all. Where it is news, the writer is asked once more: the client took
/// its time since it was asked first.
async fn settle(
    shared: &Shared,
    wish: &Wish,
    facts: RoleFacts,
    proved: bool,
) -> Result<Option<(RoleFacts, Epoch)>, Ended> {
    let Wish { user, database, .. } = wish;
    if let Some(epoch) = shared.pools.recognise(user, &facts.identity) {
        return Ok(Some((facts, epoch)));
    }
    let asking = shared.pools.asking().await;
    let node = facts.identity.node;
    let now = shared.verifiers.facts(node, user, database).await;
    let now = now.map_err(|error| unreachable(shared, node, &error))?;
    let verifier = now.as_ref().and_then(|now| now.verifier.as_ref());
    if proved && verifier != facts.verifier.as_ref() {
        let user = user.clone();
        return Err(ClientError::AuthenticationFailed { user }.into());
    }
    let noted = now.map(|now| {
        let epoch = shared.pools.note_identity(user, now.identity);
        (now, epoch)
    });
    drop(asking);
    Ok(noted)
}

/// A node's own error leaves its connection as it was; any other breaks it.
fn keep_if_ready(lease: Lease, error: &crate::node::backend::BackendError) {
    if error
        .sqlstate()
        .is_some_and(|code| !code.starts_with("57P"))
    {
        lease.release();
    }
}

/// Reads what is there; the client's end of the stream ends the handshake.
pub async fn fill(io: &mut ClientIo, input: &mut BytesMut) -> Result<(), Ended> {
    input.reserve(CHUNK);
    match io.read_buf(input).await? {
        0 => Err(Ended::Silently),
        _ => Ok(()),
    }
}

/// Writes all of `out` and empties it.
pub async fn send(io: &mut ClientIo, out: &mut BytesMut) -> Result<(), Ended> {
    io.write_all(out).await?;
    io.flush().await?;
    out.clear();
    Ok(())
}

/// The minor version to speak, said to the client where it is not what it asked for.
fn negotiate(request: &SessionRequest, out: &mut BytesMut) -> Result<u16, Ended> {
    let minor = request.minor.min(NEWEST_MINOR);
    let unknown: Vec<&str> = request.protocol_options().collect();
    if minor != request.minor || !unknown.is_empty() {
        let version = u32::from(request.major) << 16 | u32::from(minor);
        backend::negotiate(out, version, unknown.into_iter())?;
    }
    Ok(minor)
}

/// A node can't be asked about roles: the client learns which, the log learns why.
fn unreachable(shared: &Shared, node: NodeId, error: &AdminError) -> ClientError {
    let node = shared.node_name(node);
    tracing::warn!(node, %error, "a login could not be looked up");
    match error {
        AdminError::Query(error) if error.as_db_error().is_some() => ClientError::NodeFault {
            node,
            fault: "the proxy could not look the login up".to_owned(),
        },
        _ => ClientError::NodeUnreachable { node },
    }
}
