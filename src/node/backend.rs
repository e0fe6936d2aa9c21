//! One connection to one node: opened, authenticated, and then raw bytes.
//!
//! Used by the relay's pools, by the replication streams and by the appliers. It promises that a
//! connection handed out is authenticated, that the server proved that it knows the user's verifier
//! (SCRAM), and that the connection has said `ReadyForQuery`. It knows nothing of sessions, of
//! transactions or of what the bytes mean.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wire::error::ScramError;
use crate::wire::message::report::Report;
use crate::wire::scram::Key;
use crate::wire::scram::client::{Binding, Client, Secret as ScramSecret};
use crate::wire::scram::verifier::Verifier;

/// Frames longer than this from a node while the proxy itself reads whole frames are a protocol error.
/// `PostgreSQL` allows no value over 1 GiB.
const MAX_FRAME: usize = 0x4000_0000 + 0x1_0000;

/// Room made for one read.
const READ_BYTES: usize = 32 * 1024;

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What opens a node's door for a user.
#[derive(Clone)]
pub enum Secret {
    /// The node trusts this host.
    None,
    /// A password in clear, from the environment or from the demo.
    Password(String),
    /// The key recovered from a client's own proof, and the verifier that the proof satisfied.
    Scram {
        /// The client's key.
        client_key: Key,
        /// The verifier it was proved against.
        verifier: Verifier,
    },
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Who connects to what, and with which startup parameters.
#[derive(Clone, Debug)]
pub struct Login {
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// What proves the role.
    pub secret: Secret,
    /// Further startup parameters, `options` or `replication` among them.
    pub parameters: Vec<(String, String)>,
}

/// Why a connection could not be opened, or broke.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The socket failed or was closed.
    #[error("connection to the node failed: {0}")]
    Io(#[from] io::Error),
    /// The node did not answer in time.
    #[error("the node did not answer within {0:?}")]
    Timeout(Duration),
    /// The node answered with an error of its own.
    #[error("{}", .0.message())]
    Server(Box<Report>),
    /// The node broke the protocol.
    #[error("the node broke the protocol: {0}")]
    Protocol(String),
    /// The node asked for what the secret at hand can't give, or could not prove itself.
    #[error("authentication at the node failed: {0}")]
    Authentication(String),
    /// The exchange of proofs failed; [`ScramError::OtherVerifier`] means that the password has changed.
    #[error("authentication at the node failed: {0}")]
    Scram(ScramError),
}

impl BackendError {
    /// The SQLSTATE of a server's error.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(report) => Some(report.code()),
            _ => None,
        }
    }
}

/// The settings that a server reports of itself, shared by all who were told the same.
pub type Parameters = Arc<BTreeMap<String, String>>;

/// An open connection that is authenticated and idle when handed out.
#[derive(Debug)]
pub struct Backend {
    /// The socket; its owner may read and write it directly.
    pub stream: TcpStream,
    /// Bytes read from the socket and not yet looked at.
    pub input: BytesMut,
    /// So much is read at once.
    read_bytes: usize,
    /// What the server said in `ParameterStatus` so far.
    pub parameters: Parameters,
    /// The server process behind the connection.
    pub process_id: u32,
    /// The secret of a `CancelRequest`.
    pub cancel_key: Bytes,
}

impl Backend {
    /// Opens and authenticates a connection. Dropping the future closes the socket.
    pub async fn connect(
        address: &Address,
        login: &Login,
        limit: Duration,
    ) -> Result<Self, BackendError> {
        tokio::time::timeout(limit, Self::open(address, login))
            .await
            .map_err(|_| BackendError::Timeout(limit))?
    }

    async fn open(address: &Address, login: &Login) -> Result<Self, BackendError> {
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        stream.set_nodelay(true)?;
        keep_alive(&stream)?;
        let mut backend = Self {
            stream,
            input: BytesMut::with_capacity(16 * 1024),
            read_bytes: READ_BYTES,
            parameters: Arc::default(),
            process_id: 0,
            cancel_key: Bytes::new(),
        };
        let mut out = BytesMut::new();
        let own = [
            ("user", login.user.as_str()),
            ("database", login.database.as_str()),
        ];
        let further = login
            .parameters
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()));
        frontend::startup_message(own.into_iter().chain(further), &mut out)?;
        backend.send(&out).await?;
        backend.authenticate(login).await?;
        backend.until_ready().await?;
        Ok(backend)
    }

    async fn authenticate(&mut self, login: &Login) -> Result<(), BackendError> {
        loop {
            let (tag, frame) = self.frame().await?;
            let body = &frame[5..];
            match tag {
                b'E' => return Err(server_error(&frame)),
                b'N' => {}
                b'R' => match kind(body)? {
                    0 => return Ok(()),
                    3 => self.answer_password(password(login)?.as_bytes()).await?,
                    5 => {
                        let salt = body.get(4..8).and_then(|s| s.try_into().ok());
                        let salt = salt.ok_or_else(|| protocol("short md5 salt"))?;
                        let name = login.user.as_bytes();
                        let pass = password(login)?.as_bytes();
                        let hash = postgres_protocol::authentication::md5_hash(name, pass, salt);
                        self.answer_password(hash.as_bytes()).await?;
                    }
                    10 => self.scram(&login.secret, &body[4..]).await?,
                    other => {
                        let text = format!("the node asks for authentication method {other}");
                        return Err(BackendError::Authentication(text));
                    }
                },
                other => {
                    return Err(protocol(&format!(
                        "{:?} during authentication",
                        char::from(other)
                    )));
                }
            }
        }
    }

    async fn answer_password(&mut self, password: &[u8]) -> Result<(), BackendError> {
        let mut out = BytesMut::new();
        frontend::password_message(password, &mut out)?;
        self.send(&out).await
    }

    async fn scram(&mut self, secret: &Secret, mechanisms: &[u8]) -> Result<(), BackendError> {
        let offered = mechanisms.split(|b| *b == 0).any(|m| m == b"SCRAM-SHA-256");
        if !offered {
            let text = "the node offers no SCRAM-SHA-256".to_owned();
            return Err(BackendError::Authentication(text));
        }
        let credential = match secret {
            Secret::None => {
                let text = "the node asks for a password and none is known".to_owned();
                return Err(BackendError::Authentication(text));
            }
            Secret::Password(password) => ScramSecret::Password(password.clone().into_bytes()),
            Secret::Scram {
                client_key,
                verifier,
            } => ScramSecret::Key {
                client_key: *client_key,
                verifier: verifier.clone(),
            },
        };
        let (client, first) =
            Client::new(credential, Binding::None, &scram_nonce()).map_err(authentication)?;
        let mut out = BytesMut::new();
        frontend::sasl_initial_response("SCRAM-SHA-256", first.as_bytes(), &mut out)?;
        self.send(&out).await?;
        let server_first = self.sasl_data(11).await?;
        let (waiting, last) = client.answer(&server_first).map_err(authentication)?;
        out.clear();
        frontend::sasl_response(last.as_bytes(), &mut out)?;
        self.send(&out).await?;
        let server_final = self.sasl_data(12).await?;
        waiting.verify(&server_final).map_err(authentication)
    }

    async fn sasl_data(&mut self, expected: u32) -> Result<Bytes, BackendError> {
        let (tag, frame) = self.frame().await?;
        match tag {
            b'R' if kind(&frame[5..])? == expected => Ok(frame.slice(9..)),
            b'E' => Err(server_error(&frame)),
            _ => Err(protocol("unexpected answer during SCRAM")),
        }
    }

    async fn until_ready(&mut self) -> Result<(), BackendError> {
        loop {
            let (tag, frame) = self.frame().await?;
            match tag {
                b'Z' => return Ok(()),
                b'E' => return Err(server_error(&frame)),
                b'S' => self.note_parameter(&frame),
                b'K' => {
                    let mut body = frame.slice(5..);
                    if body.len() < 8 {
                        return Err(protocol("short BackendKeyData"));
                    }
                    self.process_id = body.get_u32();
                    self.cancel_key = body;
                }
                _ => {}
            }
        }
    }

    /// Remembers a `ParameterStatus` frame.
    pub fn note_parameter(&mut self, frame: &[u8]) {
        let mut parts = frame[5..].split(|b| *b == 0);
        if let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Arc::make_mut(&mut self.parameters).insert(text(name), text(value));
        }
    }

    /// Writes all of `bytes`. When dropped midway the connection is of no further use.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), BackendError> {
        self.stream.write_all(bytes).await?;
        Ok(())
    }

    /// Reads one whole frame (header included). Dropping the future loses nothing.
    pub async fn frame(&mut self) -> Result<(u8, Bytes), BackendError> {
        loop {
            if let Some(frame) = self.buffered_frame()? {
                return Ok(frame);
            }
            self.make_room();
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// A buffer that is nearly full would be read into in crumbs.
    fn make_room(&mut self) {
        if self.input.capacity() - self.input.len() < self.read_bytes / 4 {
            self.input.reserve(self.read_bytes);
        }
    }

    /// The next whole frame that has already been read, if there is one.
    pub fn buffered_frame(&mut self) -> Result<Option<(u8, Bytes)>, BackendError> {
        if self.input.len() < 5 {
            return Ok(None);
        }
        let tag = self.input[0];
        let length =
            u32::from_be_bytes([self.input[1], self.input[2], self.input[3], self.input[4]])
                as usize;
        if !(4..=MAX_FRAME).contains(&length) {
            return Err(protocol("impossible frame length"));
        }
        if self.input.len() < length + 1 {
            self.input.reserve(length + 1 - self.input.len());
            return Ok(None);
        }
        Ok(Some((tag, self.input.split_to(length + 1).freeze())))
    }

    /// Writes `out` while reading what the server sends meanwhile, so that neither side blocks on the other.
    pub async fn send_while_reading(&mut self, mut out: &[u8]) -> Result<(), BackendError> {
        while !out.is_empty() {
            self.make_room();
            let (mut read, mut write) = self.stream.split();
            tokio::select! {
                written = write.write(out) => out = &out[written?..],
                got = read.read_buf(&mut self.input) => {
                    if got? == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                }
            }
        }
        Ok(())
    }

    /// Bounds what the server may have sent that was not read yet, and how much of it is read at once.
    pub fn limit_receiving(&mut self, unread: usize, at_once: usize) -> io::Result<()> {
        self.read_bytes = at_once;
        socket2::SockRef::from(&self.stream).set_recv_buffer_size(unread)
    }

    /// Runs a simple query of the proxy's own and gives its rows as text. The first error is returned
    /// after the server is ready again, so the connection stays usable.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, BackendError> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.send(&out).await?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let (tag, frame) = self.frame().await?;
            match tag {
                b'T' => rows.clear(),
                b'D' => rows.push(data_row(&frame)?),
                b'E' => failed = failed.or(Some(server_error(&frame))),
                b'S' => self.note_parameter(&frame),
                b'Z' => return failed.map_or(Ok(rows), Err),
                b'W' | b'G' | b'H' => return Err(protocol("COPY answer to a plain query")),
                _ => {}
            }
        }
    }
}

fn kind(body: &[u8]) -> Result<u32, BackendError> {
    let four = body.get(..4).and_then(|b| b.try_into().ok());
    four.map(u32::from_be_bytes)
        .ok_or_else(|| protocol("short authentication message"))
}

fn password(login: &Login) -> Result<&str, BackendError> {
    if let Secret::Password(password) = &login.secret {
        return Ok(password);
    }
    let text = "the node asks for a password in a way that only a password answers".to_owned();
    Err(BackendError::Authentication(text))
}

fn protocol(text: &str) -> BackendError {
    BackendError::Protocol(text.to_owned())
}

fn authentication(error: ScramError) -> BackendError {
    BackendError::Scram(error)
}

/// The server's error, from its whole frame.
pub fn server_error(frame: &[u8]) -> BackendError {
    match Report::read(frame) {
        Ok(report) => BackendError::Server(Box::new(report)),
        Err(_) => protocol("an error message that can't be read"),
    }
}

/// The values of a `DataRow` frame, as text.
pub fn data_row(frame: &Bytes) -> Result<Vec<Option<String>>, BackendError> {
    let mut body = frame.slice(5..);
    let short = || protocol("short DataRow");
    if body.len() < 2 {
        return Err(short());
    }
    let columns = body.get_u16();
    let mut row = Vec::with_capacity(usize::from(columns));
    for _ in 0..columns {
        if body.len() < 4 {
            return Err(short());
        }
        let Ok(length) = usize::try_from(body.get_i32()) else {
            row.push(None);
            continue;
        };
        if body.len() < length {
            return Err(short());
        }
        row.push(Some(
            String::from_utf8_lossy(&body.split_to(length)).into_owned(),
        ));
    }
    Ok(row)
}

fn scram_nonce() -> String {
    use base64::Engine;
    let bytes: [u8; 18] = rand::random();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(30)))
}
