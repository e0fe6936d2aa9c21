//! A BEGIN that has been answered and is sent later: together with what follows it, in one packet.
//!
//! A transaction costs a round trip less by this, and who says BEGIN and thinks holds no connection. It guards the
//! promise that a client can tell such a BEGIN from one that was sent at once by nothing but `now()`, which may be
//! a little later: the text goes out as it came, ahead of anything else of its transaction, and its answers go to
//! nobody. Where that can't be kept, for there is no connection or the node refuses it, the transaction has failed
//! (`aborted.rs`), and nothing of it runs by itself, outside of any.

use std::future::pending;
use std::pin::Pin;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::error::{ClientError, Severity};
use crate::session::brief::{Brief, Control};
use crate::session::pipeline::{Entry, Expect, Own};
use crate::session::relay::{End, Session};
use crate::session::requests::{Step, text_of};
use crate::wire::frame::{HEADER_BYTES, Header};
use crate::wire::message::backend::{self, Status};
use crate::wire::message::frontend::{self, Target};

/// How long a BEGIN waits for what follows. `now()` is the time at which the node sees it, and the node's limits for
/// idle transactions run from then; a client that goes on by itself, and does not ask somebody first, needs less.
const PATIENCE: Duration = Duration::from_millis(10);
/// How long until the next look, where no connection was free then. Who thinks takes no place in line from those
/// who work.
const AGAIN: Duration = Duration::from_millis(100);
/// Messages up to this length are kept; a longer one is sent at once.
const KEPT_BYTES_MAX: usize = 1024;
/// In `Carried::unnamed`, an unnamed statement that is no session's: ids of sessions begin at 1.
const NOBODYS: (u64, u64) = (0, 0);

/// How far a BEGIN has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// None is put off.
    #[default]
    None,
    /// The client has its answer, and no node has heard of it.
    Waiting,
    /// It is on its way, and not answered yet.
    Sent,
    /// It never ran and will not: the client's transaction has failed, and no node has any.
    Failed,
}

/// The BEGIN of the transaction in which the client is, while it is put off.
#[derive(Debug, Default)]
pub struct Deferred {
    stage: Stage,
    /// As the client wrote it, with its zero byte.
    text: Vec<u8>,
    /// The transaction is read-only, and its first statement says where it runs; whether it is above READ COMMITTED.
    reads: Option<bool>,
    /// Made for the first one and wound up again for each, which takes no lock while it has not gone off. A session
    /// without a BEGIN has none.
    timer: Option<Pin<Box<Sleep>>>,
    /// The timer has been wound up and not been heard.
    armed: bool,
    /// In a failed transaction, a portal of what ends it, and that.
    pub(super) end: Option<(Bytes, Control)>,
    /// A message of a batch was refused that would have begun a transaction; its Execute is yet to come.
    denied: bool,
    /// Why the transaction has failed, where its client has not been told.
    pub(super) why: Option<ClientError>,
}

impl Deferred {
    /// How far it has come.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether it is to be sent before anything else.
    pub fn waits(&self) -> bool {
        self.stage == Stage::Waiting
    }

    /// Whether [`Deferred::due`] has to be awaited.
    pub fn ticks(&self) -> bool {
        self.stage == Stage::Waiting && self.armed && self.reads.is_none()
    }

    /// Of a transaction that only reads, whether it is above READ COMMITTED.
    pub fn reads(&self) -> Option<bool> {
        self.reads
    }

    /// It is to be sent once more: where it ran before, nothing came of it.
    pub fn rewind(&mut self) {
        self.stage = Stage::Waiting;
        self.armed = false;
    }

    /// Whether it can be: it was put off.
    pub fn is_kept(&self) -> bool {
        self.reads.is_some() && !self.text.is_empty()
    }

    /// No node has the transaction any more, and its client is yet to end it.
    pub fn lose(&mut self, why: Option<ClientError>) {
        self.stage = Stage::Failed;
        self.end = None;
        self.why = why;
    }

    /// Its transaction is at its end, with its connection.
    pub fn end_lost(&mut self) {
        self.stage = Stage::None;
        self.end = None;
        self.why = None;
    }

    /// Until it is to be sent by itself. Cancel-safe.
    pub async fn due(&mut self) {
        match &mut self.timer {
            Some(timer) => timer.as_mut().await,
            None => pending().await,
        }
    }

    /// The state of the client's transaction, where the node says that its own is `node`.
    pub fn status(&self, node: Status) -> Status {
        match self.stage {
            Stage::None => node,
            Stage::Waiting | Stage::Sent => Status::Open,
            Stage::Failed => Status::Failed,
        }
    }

    fn wait(&mut self, how_long: Duration) {
        let due = Instant::now() + how_long;
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(due),
            None => self.timer = Some(Box::pin(sleep_until(due))),
        }
        self.stage = Stage::Waiting;
        self.armed = true;
    }
}

impl Session {
    /// Begins or ends a transaction without a node, where the Query at the front does that and nothing else. `None`:
    /// it has to be sent.
    pub(super) fn control(&mut self, header: Header, brief: &Brief) -> Option<Step> {
        let text = text_of(&self.input[HEADER_BYTES..header.len]);
        if HEADER_BYTES + text.len() + 1 != header.len {
            // More than a text: the node has words for that.
            return None;
        }
        match (brief.control, self.deferred.stage) {
            (Control::Begin | Control::Start, Stage::None) if self.may_defer(header, brief) => {
                let text = text_of(&self.input[HEADER_BYTES..header.len]);
                self.deferred.text.clear();
                self.deferred.text.extend_from_slice(text);
                self.deferred.text.push(0);
                self.deferred.reads = brief.begins.and_then(|modes| self.reads_only(modes));
                self.deferred.wait(PATIENCE);
                self.status = Status::Open;
                self.note(brief);
            }
            (
                Control::Commit { chain: false } | Control::Rollback { chain: false },
                Stage::Waiting,
            ) if self.pipeline.is_empty() => {
                self.deferred.stage = Stage::None;
                self.status = Status::Idle;
            }
            _ => return None,
        }
        self.end_unnamed();
        // The tags are our own, so they fit.
        let _ = backend::complete(&mut self.to_client, brief.control.tag());
        backend::ready(&mut self.to_client, self.status);
        self.count_local();
        self.pass(header, false);
        Some(Step::Next)
    }

    /// Whether a BEGIN may wait: it is alone, and what it would find on the node is known.
    fn may_defer(&mut self, header: Header, brief: &Brief) -> bool {
        self.status == Status::Idle
            && self.pipeline.is_empty()
            && !self.in_batch
            && !self.state.doubt.probe
            && !self.state.unsure()
            // What has come with it goes out with it in any case.
            && self.input.len() == header.len
            && header.len <= KEPT_BYTES_MAX
            && self.refusal(brief).is_none()
    }

    /// The client's unnamed statement is gone, as after every simple query, though the node has heard of none.
    pub(super) fn end_unnamed(&mut self) {
        self.prepared.unnamed = None;
        if let Some(lease) = &mut self.lease
            && lease.carried.unnamed.is_some()
        {
            lease.carried.unnamed = Some(NOBODYS);
        }
    }

    /// What becomes of a message while a BEGIN is put off. `None`: what becomes of any.
    pub(super) async fn deferred_message(&mut self, header: Header) -> Result<Option<Step>, End> {
        match (self.deferred.stage, header.tag) {
            (_, b'X' | b'p') => Ok(None),
            // Until it is known to have begun, no more than one message goes behind it (or one batch, which fails as
            // a whole): the next would run outside of any transaction.
            (Stage::Sent, _) if !self.in_batch => Ok(Some(Step::Wait)),
            (Stage::Waiting, b'S') => {
                self.sync_here(header);
                Ok(Some(Step::Next))
            }
            (Stage::Failed, _) if !self.pipeline.is_empty() => Ok(Some(Step::Wait)),
            (Stage::Failed, _) if !self.pipeline.skipping() => self.aborted(header).await.map(Some),
            _ => Ok(None),
        }
    }

    /// Answers a Sync where nothing is to be synchronised.
    pub(super) fn sync_here(&mut self, header: Header) {
        self.pipeline.unskip();
        self.deferred.denied = false;
        self.pass(header, false);
        backend::ready(&mut self.to_client, self.status);
    }

    /// Puts it ahead of the message at the front, which has type `tag`. No Sync and no Flush, so it costs the node no
    /// packet of its own.
    pub(super) fn put_begin(&mut self, tag: u8) {
        let Some(lease) = &mut self.lease else { return };
        let out = &mut self.to_server;
        let length = 4 + 1 + self.deferred.text.len() + 2;
        out.put_u8(b'P');
        // It was kept because it is short.
        out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        out.put_u8(0);
        out.put_slice(&self.deferred.text);
        out.put_u16(0);
        // Names and values that are empty fit.
        let _ = frontend::bind(out, "", "", &[], std::iter::empty(), &[]);
        let _ = frontend::execute(out, "", 0);
        for expect in [Expect::Parse, Expect::Bind, Expect::Execute] {
            self.pipeline.push(Entry::own(expect, Own::Begin));
        }
        if tag != b'Q' {
            // A simple query ends the unnamed portal and statement by itself. Before anything else the portal must be
            // closed, and the statement where it is asked for (`ensure_unnamed`), or the client would find them.
            let _ = frontend::close(out, Target::Portal, "");
            self.pipeline.push(Entry::own(Expect::Close, Own::Begin));
        }
        lease.carried.unnamed = Some(NOBODYS);
        self.deferred.stage = Stage::Sent;
        self.status = Status::Open;
    }

    /// Sends it by itself, for nothing has followed in time: as a simple query, so that the node takes its client for
    /// idle in a transaction. Dropped midway, the session is at its end.
    pub(super) async fn begin_alone(&mut self) -> Result<(), End> {
        self.deferred.armed = false;
        if !self.pipeline.is_empty() {
            // The proxy's own question, whose answer is gathered where this one's would be.
            self.deferred.wait(AGAIN);
            return Ok(());
        }
        if !self.resume() {
            self.deferred.wait(AGAIN);
            return Ok(());
        }
        if self.lease.is_none() {
            match self.acquire_free().await {
                Ok(true) => {}
                Ok(false) => {
                    self.deferred.wait(AGAIN);
                    return Ok(());
                }
                Err(error) if error.report().severity == Severity::Fatal => {
                    return Err(End::Error(error));
                }
                // Nobody is there to be told: what follows tries again, and says what it meets.
                Err(_) => return Ok(()),
            }
        }
        let text = std::mem::take(&mut self.deferred.text);
        if let Ok(sql) = std::str::from_utf8(text_of(&text)) {
            self.send_own_query(sql, Own::Begin);
        }
        self.deferred.text = text;
        self.deferred.stage = Stage::Sent;
        self.status = Status::Open;
        Ok(())
    }

    /// The node is in the client's transaction.
    pub(super) fn begun(&mut self) {
        if self.deferred.stage == Stage::Sent {
            self.deferred.stage = Stage::None;
        }
    }

    /// The node did not run it when it was sent by itself: nobody waits for it, so it waits again.
    pub(super) fn not_begun(&mut self) {
        self.deferred.wait(AGAIN);
    }

    /// The client has been told of an error instead of what followed: its transaction is at its end but for its word.
    pub(super) fn fail_deferred(&mut self) {
        if matches!(self.deferred.stage, Stage::Waiting | Stage::Sent) {
            self.deferred.stage = Stage::Failed;
            self.deferred.end = None;
            self.status = Status::Failed;
        }
    }

    /// The message at the front, of type `tag`, would have begun a transaction, and its client has been told that there
    /// is no connection. What it has sent behind it, or sends before it hears of that, belongs to that transaction.
    pub(super) fn deny_begin(&mut self, tag: u8) {
        if self.deferred.stage != Stage::None {
            return;
        }
        if tag == b'Q' {
            self.deferred.lose(None);
            self.status = Status::Failed;
        } else {
            // It may be prepared for later only.
            self.deferred.denied = true;
        }
    }

    /// A message of type `tag` is ignored, for one before it in its batch was refused.
    pub(super) fn skipped_begin(&mut self, tag: u8) {
        if tag == b'E' && std::mem::take(&mut self.deferred.denied) {
            self.deny_begin(b'Q');
        }
    }

    /// A failed transaction ends, and with AND CHAIN the next begins with the same BEGIN.
    pub(super) fn end_failed(&mut self, chain: bool) {
        self.deferred.end = None;
        self.deferred.why = None;
        if chain {
            self.deferred.wait(PATIENCE);
        } else {
            self.deferred.stage = Stage::None;
        }
        self.status = self.deferred.status(Status::Idle);
    }

    /// Whether the node's own transaction, where the session has a connection, is none.
    pub(super) fn node_is_idle(&self) -> bool {
        self.status == Status::Idle || matches!(self.deferred.stage, Stage::Waiting | Stage::Failed)
    }
}
