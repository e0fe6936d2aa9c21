//! A client that is through the door, and the last words to one that is not let in or has to leave.
//!
//! The door makes it, the relay lives on it. It holds no connection to a node.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cluster::guests::Guest;
use crate::error::{self, ClientError};
use crate::node::backend::Parameters;
use crate::node::carried::Settings;
use crate::node::identity::Epoch;
use crate::node::pool::Pool;
use crate::session::cancel::CancelHandle;
use crate::session::counts;
use crate::session::shared::Seat;
use crate::session::tls::ClientIo;
use crate::wire::message::report::{Report, Severity, field};

/// How long a client has to take the last words.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// An authenticated client that has been told that it may ask.
pub struct Client {
    /// Its connection.
    pub io: ClientIo,
    /// What it sent behind the handshake.
    pub input: BytesMut,
    /// Where it came from.
    pub peer: SocketAddr,
    /// The role it proved to be.
    pub user: String,
    /// The database it asked for.
    pub database: String,
    /// What it asked for at startup, as the node accepted it; RESET goes back to these.
    pub settings: Settings,
    /// The parameters that it has been told so far.
    pub told: Parameters,
    /// Whether it came in by the read-only port.
    pub read_only: bool,
    /// The protocol's minor version: 0, or 2.
    pub minor: u16,
    /// Its pool on the node that was the writer at login.
    pub pool: Arc<Pool>,
    /// For whom its role's name stood when it logged in.
    pub epoch: Epoch,
    /// Where its cancels go.
    pub cancel: CancelHandle,
    /// Its place among `limits.max_clients`.
    pub seat: Seat,
    /// Its presence in the database.
    pub guest: Option<Guest>,
}

/// The report as it goes over the wire.
pub fn wire_report(report: &error::Report) -> Report {
    let severity = match report.severity {
        error::Severity::Error => Severity::Error,
        error::Severity::Fatal => Severity::Fatal,
    };
    let mut wire = Report::new(severity, &report.sqlstate, &*report.message);
    if let Some(detail) = &report.detail {
        wire = wire.with(field::DETAIL, &**detail);
    }
    if let Some(hint) = &report.hint {
        wire = wire.with(field::HINT, &**hint);
    }
    wire
}

/// Appends an error.
pub fn put_error(out: &mut BytesMut, report: &error::Report) {
    counts::error(report.sqlstate.as_bytes());
    wire_report(report).put_error(out);
}

/// Ends a connection with an error, fatal whatever its cause, and closes it in a way that lets the
/// client read it: unread bytes would turn the close into a reset. Takes a second at most.
pub async fn dismiss(mut io: ClientIo, error: &ClientError) {
    let mut out = BytesMut::new();
    put_error(&mut out, &error.report().ending_the_session());
    let _ = tokio::time::timeout(FAREWELL_LIMIT, say(&mut io, &out)).await;
}

async fn say(io: &mut ClientIo, bytes: &[u8]) -> io::Result<()> {
    io.write_all(bytes).await?;
    io.flush().await?;
    io.shutdown().await?;
    let mut ignored = [0; 4096];
    while io.read(&mut ignored).await? > 0 {}
    Ok(())
}
