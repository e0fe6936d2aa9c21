//! One logical slot's replication connection: what the writer commits, in order, and what is told back.
//!
//! The connection announces itself as the writer's synchronous standby, so what it reports releases
//! the writer's commits (manual, "Streaming Replication Protocol"); of several databases' streams one does,
//! since waiting goes by LSN alone, and the others keep their slots moving. It promises to report exactly
//! what it is given, again every interval even when nothing changed (REPLICATION rule 3), and to hand over
//! units in commit order. It doesn't decide what may be reported.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::apply::session::ENCODING;
use super::assemble::{AssembleError, Assembled, Assembler};
use super::backend::{Address, Backend, BackendError, Login, server_error};
use super::outcomes::rolled_back;
use super::spares::Spares;
use crate::engine::confirm::Report;
use crate::ids::{Epoch, Lsn, SYNAPSEDB};
use crate::wire::error::WireError;
use crate::wire::pgoutput::outer::{CLOCK_BASE_MICROS, Outer, StandbyStatus};

/// A report that releases nobody waits so long for one that does: each wakes a process on the writer.
const FLUSH_DELAY: Duration = Duration::from_millis(5);
/// The writer sends each row by itself, which costs it most where the row goes out at once and wakes whoever waits
/// for it, and little where it joins others that wait for room. So the rows of a large transaction are read in
/// pieces with a pause between them, as large as keeps up with a writer that never waits; measured on 2 cores,
/// COPY takes a third longer with a third of this at once, and with all at once.
const GATHER: Duration = Duration::from_millis(1);
const UNREAD_BYTES: usize = 256 * 1024;
const READ_BYTES: usize = 96 * 1024;
/// What a stream that releases nobody calls itself.
const SLOT_READER: &str = "synapsedb slot";
/// What a connection that asks for outcomes calls itself: one like any other of the proxy's that ask something.
const ASKS: &str = "synapsedb control";

/// What a stream's reports do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// They release commits and go out at once: the stream is the writer's synchronous standby.
    Releases,
    /// They move the slot and go out with the interval.
    MovesSlot,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection or the server failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The bytes make no sense.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// The outer replication message makes no sense.
    #[error("a replication message can't be read: {0}")]
    Wire(#[from] WireError),
}

/// What a stream needs to know once.
#[derive(Clone, Debug)]
pub struct StreamSettings {
    /// The writer.
    pub address: Address,
    /// The admin role and the database; `replication` is added here.
    pub login: Login,
    /// The slot's name.
    pub slot: String,
    /// Terms in which this node was the writer, and the end of its log when it took office; ascending. It is in the
    /// last one now.
    pub offices: Vec<(Epoch, Lsn)>,
    /// Major version of the server.
    pub version: u32,
    /// Where transactions too large for memory go.
    pub spill_directory: PathBuf,
    /// Reports are sent again this often.
    pub report_interval: Duration,
    /// The writer gives the connection up after this long without an answer.
    pub sender_timeout: Duration,
    /// For connecting.
    pub timeout: Duration,
    /// Where a connection may have been opened ahead.
    pub spares: Arc<Spares>,
}

impl StreamSettings {
    /// The term in which the node is the writer.
    pub fn term(&self) -> Epoch {
        self.offices.last().map_or(Epoch(0), |(term, _)| *term)
    }
}

/// Takes what a stream finds. Called in order, from the stream's own task; must not block.
pub trait Sink: Send {
    /// A unit that changed rows.
    fn unit(&mut self, unit: super::unit::Unit);
    /// A transaction that changed nothing for others was committed, of which its session had said this.
    fn shown(&mut self, token: super::token::Token);
    /// Everything before this place has been read.
    fn progress(&mut self, lsn: Lsn);
    /// The first changes of a large transaction are there, which the writer still runs.
    fn running(&mut self, running: super::spill::Running);
}

/// An open stream.
#[derive(Debug)]
pub struct Stream {
    backend: Backend,
    assembler: Assembler,
    report_interval: Duration,
    voice: Voice,
    /// Where and as whom what the stream does not say is asked.
    asks: (Address, Login),
    timeout: Duration,
    /// What was reported last.
    reported: Option<Report>,
    out: BytesMut,
}

impl Stream {
    /// Connects and starts reading from the place the slot remembers. 55006 while another process,
    /// perhaps a killed proxy's, still holds the slot.
    pub async fn open(settings: &StreamSettings, voice: Voice) -> Result<Self, StreamError> {
        let name = match voice {
            Voice::Releases => SYNAPSEDB,
            Voice::MovesSlot => SLOT_READER,
        };
        let mut asks = settings.login.clone();
        asks.parameters.extend(startup_parameters(settings, ASKS));
        let database = &settings.login.database;
        let spare = settings.spares.stream(&settings.address, database);
        let named = match spare {
            Some(spare) => call(spare, name).await.ok(),
            None => None,
        };
        let mut backend = match named {
            Some(backend) => backend,
            None => call(connect(settings).await?, name).await?,
        };
        // What it repeated as a follower is part of the history too. Before 16 all is sent.
        let origin = if settings.version >= 16 {
            ", origin 'any'"
        } else {
            ""
        };
        let command = format!(
            "START_REPLICATION SLOT \"{}\" LOGICAL 0/0 (proto_version '2', streaming 'on', messages 'true', \
             publication_names 'synapsedb'{origin})",
            settings.slot
        );
        let mut out = BytesMut::new();
        frontend::query(&command, &mut out).map_err(BackendError::from)?;
        backend.send(&out).await?;
        loop {
            let (tag, frame) = backend.frame().await?;
            match tag {
                b'W' => break,
                b'E' => return Err(server_error(&frame).into()),
                _ => {}
            }
        }
        Ok(Self {
            backend,
            assembler: Assembler::new(settings.offices.clone(), settings.spill_directory.clone()),
            report_interval: settings.report_interval,
            voice,
            asks: (settings.address.clone(), asks),
            timeout: settings.timeout,
            reported: None,
            out,
        })
    }

    /// Reads until the connection ends, which is always an error. Dropping it closes the connection.
    pub async fn run(
        &mut self,
        sink: &mut impl Sink,
        reports: &mut watch::Receiver<Report>,
    ) -> Result<(), StreamError> {
        let mut again = interval(self.report_interval);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due = None;
        let mut gathered = None;
        loop {
            tokio::select! {
                biased;
                changed = reports.changed(), if self.voice == Voice::Releases => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let report = *reports.borrow_and_update();
                    if self.reported.is_none_or(|last| releases(last, report)) {
                        self.report(report).await?;
                        due = None;
                    } else if due.is_none() {
                        due = Some(Instant::now() + FLUSH_DELAY);
                    }
                }
                // Before the frames: a writer that sends without a pause must hear from us too.
                _ = again.tick() => {
                    let report = *reports.borrow();
                    self.report(report).await?;
                    due = None;
                }
                () = until(due) => {
                    let report = *reports.borrow();
                    self.report(report).await?;
                    due = None;
                }
                frame = frame_after(gathered, &mut self.backend) => {
                    let (tag, frame) = frame?;
                    self.take(tag, frame, sink, reports).await?;
                    // What came with the same read needs no further wait.
                    while let Some((tag, frame)) = self.backend.buffered_frame()? {
                        self.take(tag, frame, sink, reports).await?;
                    }
                    gathered = self.assembler.in_bulk().then(|| Instant::now() + GATHER);
                }
            }
        }
    }

    async fn take(
        &mut self,
        tag: u8,
        frame: Bytes,
        sink: &mut impl Sink,
        reports: &watch::Receiver<Report>,
    ) -> Result<(), StreamError> {
        match tag {
            b'd' => match Outer::read(&frame.slice(5..))? {
                Outer::Data { message, .. } => match self.assembled(&message).await? {
                    Some(Assembled::Unit(unit)) => sink.unit(unit),
                    Some(Assembled::Repeated(units)) => {
                        for unit in units {
                            sink.unit(unit);
                        }
                    }
                    Some(Assembled::Nothing(end, token)) => {
                        if let Some(token) = token {
                            sink.shown(token);
                        }
                        sink.progress(end);
                    }
                    Some(Assembled::Running(running)) => sink.running(running),
                    // Those are settled.
                    Some(Assembled::Doubtful(_)) | None => {}
                },
                Outer::Keepalive { end, reply, .. } => {
                    sink.progress(end);
                    if reply {
                        let report = *reports.borrow();
                        self.report(report).await?;
                    }
                }
            },
            b'E' => return Err(server_error(&frame).into()),
            b'c' => {
                let text = "the writer ended the stream".to_owned();
                return Err(BackendError::Protocol(text).into());
            }
            _ => {}
        }
        Ok(())
    }

    async fn assembled(&mut self, message: &Bytes) -> Result<Option<Assembled>, StreamError> {
        let assembled = self.assembler.take(message)?;
        let Some(Assembled::Doubtful(doubtful)) = assembled else {
            return Ok(assembled);
        };
        let (address, login) = &self.asks;
        let undone = rolled_back(address, login, self.timeout, &doubtful.parts).await?;
        if !undone.is_empty() {
            let parts = undone.len();
            tracing::info!(parts, "rolled back, which the writer's stream did not say");
        }
        Ok(Some(self.assembler.settle(*doubtful, &undone)?))
    }

    async fn report(&mut self, report: Report) -> Result<(), StreamError> {
        self.out.clear();
        let update = StandbyStatus {
            write: report.write,
            flush: report.flush,
            apply: report.flush,
            clock: microseconds_since_2000(),
            reply: false,
        };
        update.put(&mut self.out);
        self.backend.send(&self.out).await?;
        self.reported = Some(report);
        Ok(())
    }
}

/// Whether a report is worth a message of its own. What releases no unit and stands right before one is not: the
/// commits in between, which wrote nothing that is replicated, are released together with that one.
fn releases(last: Report, report: Report) -> bool {
    report.unit > last.unit || report.write > last.write && !report.bounded
}

/// A connection over which a slot can be read; it bears no name that matters.
pub(super) async fn connect(settings: &StreamSettings) -> Result<Backend, BackendError> {
    let mut login = settings.login.clone();
    let parameters = startup_parameters(settings, SLOT_READER);
    login.parameters.extend(parameters);
    let replication = ("replication".to_owned(), "database".to_owned());
    login.parameters.push(replication);
    let mut backend = Backend::connect(&settings.address, &login, settings.timeout).await?;
    backend.limit_receiving(UNREAD_BYTES, READ_BYTES)?;
    backend.query(ENCODING).await?;
    Ok(backend)
}

/// Gives the connection the name by which the writer knows whether it is its standby.
async fn call(mut backend: Backend, name: &str) -> Result<Backend, BackendError> {
    if name != SLOT_READER {
        let sql = format!("set application_name = '{name}'");
        backend.query(&sql).await?;
    }
    Ok(backend)
}

/// Settings that decide how values become text, given where no ALTER ROLE or ALTER DATABASE can
/// override them (rule 12), and how the writer treats this connection.
fn startup_parameters(settings: &StreamSettings, name: &str) -> Vec<(String, String)> {
    let sender_timeout = settings.sender_timeout.as_millis();
    let options = format!(
        "-c wal_sender_timeout={sender_timeout} -c logical_decoding_work_mem=8MB -c synchronous_commit=local \
         -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 \
         -c idle_session_timeout=0 -c row_security=on -c lc_monetary=C -c xmloption=content \
         -c intervalstyle=postgres -c extra_float_digits=3 -c bytea_output=hex \
         -c default_transaction_read_only=off -c search_path=pg_catalog"
    );
    let pairs = [
        ("application_name", name),
        ("datestyle", "ISO"),
        ("timezone", "UTC"),
        ("options", options.as_str()),
    ];
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

async fn frame_after(
    gathered: Option<Instant>,
    backend: &mut Backend,
) -> Result<(u8, Bytes), BackendError> {
    if let Some(gathered) = gathered {
        sleep_until(gathered).await;
    }
    backend.frame().await
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The clock of a status update (manual, "Standby status update").
fn microseconds_since_2000() -> i64 {
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX) - CLOCK_BASE_MICROS
}
