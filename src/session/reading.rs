//! A read on a follower: begun where nothing is missed, given out when the writer shows what it shows, and run again
//! elsewhere where the client has had no byte of it.
//!
//! It lasts for one Query or one batch up to its Sync. What the client sent is kept until a byte of the answer has
//! gone out; until then the node may die, the statement turn out to write (25006) or to give values whose types have
//! another OID on the writer, and nobody knows of it. It guards the second half of promise 3: what a follower says
//! goes out only once the writer shows every unit that may be in it. The horizon is taken when the first bytes of a
//! statement's answer are there, and its snapshot was taken before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio_util::sync::CancellationToken;

use crate::cluster::loads::Load;
use crate::cluster::sight::Sight;
use crate::config::Consistency;
use crate::error::ClientError;
use crate::ids::{Lsn, NodeId, Tables};
use crate::session::brief::{Brief, Inside};
use crate::session::client;
use crate::session::losing::LEFT_BEHIND;
use crate::session::pipeline::Expect;
use crate::session::relay::{End, OUTPUT_BYTES_MAX, Session};
use crate::session::requests::Step;
use crate::wire::frame::{Header, Scanner};
use crate::wire::message::backend::{self, Status};
use crate::wire::message::report::{self, field};
use crate::wire::message::rows;

/// What a client may send for one read; more goes to the writer.
pub(super) const KEPT_BYTES_MAX: usize = 1 << 20;
/// An answer that is held longer is asked of the writer instead.
pub(super) const GATE_LIMIT: Duration = Duration::from_millis(500);
/// How long a connection to a follower may take to be opened.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How often a read is begun anew before the writer has it.
const AGAIN_MAX: u32 = 3;
/// The first OID of the user's own types; `record` and its array carry such OIDs inside.
const FIRST_FOREIGN: u32 = 16384;
const RECORDS: [u32; 2] = [2249, 2287];

/// A read under way on a follower.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Reading {
    pub(super) node: NodeId,
    pub(super) load: Arc<Load>,
    pub(super) sight: Arc<Sight>,
    pub(super) consistency: Consistency,
    /// Cancelled when the node no longer serves.
    pub(super) gone: CancellationToken,
    pub(super) since: Instant,
    pub(super) timed: bool,
    /// What the client has sent, until it has had a byte.
    pub(super) kept: Option<BytesMut>,
    /// Where the answer begins in what goes to the client.
    pub(super) mark: usize,
    /// Nothing more belongs to it.
    pub(super) whole: bool,
    /// The answer that comes now may go out.
    pub(super) open: bool,
    /// Several statements in one Query, each with a snapshot of its own.
    pub(super) several: bool,
    /// All that it reads, by the names as they were then.
    pub(super) tables: Tables,
    pub(super) names: u64,
    /// What was bound or asked last.
    pub(super) brief: Arc<Brief>,
    /// It is a whole read-only transaction.
    pub(super) block: Option<Block>,
    /// The writer must show everything up to here first.
    pub(super) gate: Option<Lsn>,
    /// It has to be run again, and why.
    pub(super) again: Option<Again>,
}

/// A read-only transaction that runs on a follower.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// It has one snapshot, which its first answer was held for.
    pub(super) one_snapshot: bool,
    /// It has savepoints or settings of its own.
    pub(super) rooted: bool,
    /// It may begin anew elsewhere: its BEGIN is at hand.
    pub(super) movable: bool,
}

/// Why a read is run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// It writes.
    Wrote,
    /// Its values are of types with another OID on the writer.
    Foreign,
    /// Its node is lost.
    Lost,
    /// The writer did not show in time what it saw.
    Late,
    /// It holds what the node's applier waits for.
    Blocks,
}

impl Reading {
    /// Whether nothing of it may go to the client yet.
    pub fn is_held(&self) -> bool {
        self.kept.is_some()
    }

    /// Whether it is held and holds something: the proxy's own questions come ahead of what the client asks.
    fn has_asked(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| !kept.is_empty())
    }

    /// Whether each frame of the answer must be looked at.
    pub fn looks_at_all(&self) -> bool {
        self.kept.is_some() || !self.open
    }

    /// Whether it answers several statements in turn.
    pub fn is_several(&self) -> bool {
        self.several
    }

    /// Ends when its node no longer serves.
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// The answer to the next message, or statement, begins.
    pub fn shut(&mut self) {
        self.open = self.open && self.block.is_some_and(|block| block.one_snapshot);
    }

    /// All that was asked is answered, and the transaction goes on.
    pub fn next(&mut self) {
        self.whole &= self.block.is_none();
    }

    /// Whether it ends with what was asked, rather than with a transaction.
    pub fn is_single(&self) -> bool {
        self.block.is_none()
    }

    /// Whether the relay has to see to it before it goes on.
    pub fn is_stuck(&self) -> bool {
        self.gate.is_some() || self.again.is_some()
    }

    /// Keeps the message at the front. False: there is no room for it.
    fn keep(&mut self, message: &[u8]) -> bool {
        let Some(kept) = &mut self.kept else {
            return true;
        };
        if kept.len() + message.len() > KEPT_BYTES_MAX {
            return false;
        }
        kept.extend_from_slice(message);
        true
    }
}

impl Session {
    /// The message at the front, while a read is under way.
    pub(super) async fn reading_message(&mut self, header: Header) -> Result<Step, End> {
        let Some(reading) = &mut self.reading else {
            return self.message(header).await;
        };
        if header.tag == b'X' {
            return self.message(header).await;
        }
        if reading.whole {
            return Ok(Step::Wait);
        }
        let before = reading.kept.as_ref().map_or(0, BytesMut::len);
        if reading.kept.is_some() {
            let room = header.len <= KEPT_BYTES_MAX;
            if room && self.input.len() < header.len {
                return Ok(Step::More);
            }
            if !room || !reading.keep(&self.input[..header.len]) {
                self.ways.bar();
                return match Box::pin(self.leave_follower(header)).await? {
                    Some(step) => Ok(step),
                    None => self.message(header).await,
                };
            }
        }
        let step = self.message(header).await?;
        self.note_kept(header, &step, before);
        Ok(step)
    }

    /// A message was dealt with, of a read perhaps: it is kept, unless its turn is still to come, behind what was kept
    /// `before`. The last of a read is known by its type.
    pub(super) fn note_kept(&mut self, header: Header, step: &Step, before: usize) {
        let Some(reading) = &mut self.reading else {
            return;
        };
        if matches!(step, Step::Next) {
            reading.whole |= matches!(header.tag, b'Q' | b'S');
        } else if let Some(kept) = &mut reading.kept {
            kept.truncate(before);
        }
    }

    /// A follower's connection on which more may have been left than it could be: it is closed, and the session looks
    /// at itself anew on the writer's.
    pub(super) async fn end_follower(&mut self) {
        self.drop_lease().await;
        self.end_reading();
        self.state.suspect();
    }

    /// What the follower still works on for this session ends: it would not notice that nobody waits for it.
    async fn stop_follower(&mut self) {
        if !self.pipeline.is_empty() {
            let shared = Arc::clone(&self.shared);
            let cancel = shared.cancels.carry_out(self.cancel.key(), &shared.admins);
            let _ = tokio::time::timeout(CONNECT_LIMIT, cancel).await;
        }
    }

    /// The connection is closed, and no cancel goes to it any more.
    pub(super) async fn drop_lease(&mut self) {
        while !self.cancel.detach() {
            self.cancel.settled().await;
        }
        self.rest = None;
        drop(self.lease.take());
    }

    /// The read, if there was one, is over.
    pub(super) fn end_reading(&mut self) {
        if self.reading.take().is_some() {
            self.pipeline.keep(false);
            self.ways.again = 0;
        }
    }

    /// What has been answered may go to the client, and can't be run again any more.
    pub(super) fn let_out(&mut self) {
        if let Some(reading) = &mut self.reading
            && reading.kept.take().is_some()
        {
            self.pipeline.keep(false);
        }
    }

    /// What has arrived was worked off: it need not be held where nothing more is to come, or too much is there.
    pub(super) fn after_answers(&mut self) {
        if let Some(reading) = &self.reading
            && (reading.has_asked() || reading.is_held() && self.to_client.len() > reading.mark)
            && !reading.is_stuck()
            && (self.pipeline.is_empty() || self.to_client.len() >= OUTPUT_BYTES_MAX / 2)
        {
            self.let_out();
        }
    }

    /// Whether a frame of a follower's answer may be dealt with now.
    pub(super) fn may_pass(&mut self, tag: u8, frame: &[u8]) -> bool {
        let expect = self.pipeline.head().map(|head| head.expect);
        let Some(reading) = &mut self.reading else {
            return true;
        };
        if matches!(tag, b'S' | b'Z' | b'A') {
            return true;
        }
        let why = why_again(tag, frame);
        // On the read-only port, and in a read-only transaction, a write is refused wherever it was tried.
        let refused = self.read_only || reading.block.is_some();
        if let Some(why) = why.filter(|why| *why != Again::Wrote || !refused) {
            if matches!(why, Again::Wrote | Again::Foreign) {
                reading.brief.bar();
            }
            reading.again = Some(why);
            return false;
        }
        if !reading.timed {
            reading.timed = true;
            reading.load.answered(reading.since.elapsed());
        }
        if reading.names != self.shared.relay.service().catalog_generation() {
            // What the names stand for may have changed under it.
            reading.tables = Tables::All;
        }
        if !reading.open && !matches!(tag, b'1' | b'2' | b'3' | b'n') {
            // Over a planned change a transaction goes on, and this answer may show what was written since.
            if reading.sight.is_past()
                && let Some(sight) = self.ways.sight(&self.database)
            {
                reading.sight = Arc::clone(sight);
            }
            if !reading.sight.stands_by(reading.node) {
                reading.again = Some(Again::Lost);
                return false;
            }
            let horizon = reading.sight.horizon(reading.node);
            match reading.consistency {
                Consistency::Eventual => {}
                Consistency::Session if reading.sight.is_past() => {}
                Consistency::Session => self.ways.saw(horizon),
                Consistency::Strict => {
                    if reading.sight.hides(&reading.tables, horizon) {
                        reading.gate = Some(horizon);
                        return false;
                    }
                }
            }
            reading.open = true;
        }
        if reading.kept.is_some()
            && matches!(expect, Some(Expect::Query | Expect::Execute))
            && !matches!(tag, b'T' | b'N')
        {
            self.let_out();
        }
        true
    }

    /// Waits for the writer, or begins anew, where an answer may not go out as it is. Dropped midway, the session is
    /// at its end.
    pub(super) async fn unstick(&mut self) -> Result<(), End> {
        let Some(reading) = &mut self.reading else {
            return Ok(());
        };
        if let Some(why) = reading.again {
            return self.run_again(why).await;
        }
        let Some(horizon) = reading.gate.take() else {
            return Ok(());
        };
        let since = Instant::now();
        let shown = reading.sight.shown(&reading.tables, horizon);
        let shown = tokio::select! {
            biased;
            () = shown => true,
            () = reading.gone.cancelled() => false,
            () = tokio::time::sleep(GATE_LIMIT) => false,
        };
        let waited = since.elapsed();
        reading.load.waited(waited);
        if let Some(reads) = self.ways.reads() {
            reads.meters.waits.record(waited);
        }
        if shown && reading.sight.stands_by(reading.node) {
            reading.open = true;
            return Ok(());
        }
        let lost = !reading.load.serves();
        self.run_again(if lost { Again::Lost } else { Again::Late })
            .await
    }

    /// Something has become of the node: it no longer serves, or somebody holds up its applier.
    pub(super) async fn disturbed(&mut self) -> Result<(), End> {
        let pid = self.lease.as_ref().map(|lease| lease.backend.process_id);
        let Some(reading) = &mut self.reading else {
            return Ok(());
        };
        if !reading.load.serves() {
            return self.run_again(Again::Lost).await;
        }
        if pid.is_some_and(|pid| reading.sight.is_blocked_by(reading.node, pid)) {
            return self.run_again(Again::Blocks).await;
        }
        reading.gone = reading.load.gone();
        Ok(())
    }

    /// Begins anew what the client has had no byte of; else tells it to.
    pub(super) async fn run_again(&mut self, why: Again) -> Result<(), End> {
        let Some(reading) = self.reading.take() else {
            return Ok(());
        };
        if why == Again::Lost {
            reading.load.suspect();
        }
        if matches!(why, Again::Foreign | Again::Late | Again::Blocks) {
            self.stop_follower().await;
        }
        let Some(kept) = reading.kept else {
            let leaves = reading.block.is_some_and(|block| block.rooted)
                || reading.brief.inside == Inside::Roots;
            return Box::pin(self.break_off(reading.block.is_some(), leaves)).await;
        };
        tracing::debug!(node = reading.node.0, ?why, "a read is run again");
        if let Some(reads) = self.ways.reads() {
            let meters = &reads.meters;
            let counter = match why {
                Again::Wrote => &meters.wrote,
                Again::Foreign => &meters.foreign,
                Again::Lost => &meters.lost,
                Again::Late => &meters.late,
                Again::Blocks => &meters.blocks,
            };
            counter.increment(1);
        }
        self.drop_lease().await;
        self.forget_asked();
        self.pipeline.keep(false);
        self.to_client.truncate(reading.mark);
        if reading.block.is_some_and(|block| block.movable) {
            self.deferred.rewind();
            self.status = Status::Open;
        }
        self.wanted_bytes = 0;
        let rest = std::mem::replace(&mut self.input, kept);
        self.input.unsplit(rest);
        self.ways.again += 1;
        if why != Again::Lost || self.ways.again >= AGAIN_MAX {
            self.ways.bar();
        }
        Ok(())
    }

    /// No answer comes any more to what was sent to a node that is left.
    pub(super) fn forget_asked(&mut self) {
        for undo in self.pipeline.abandon() {
            self.prepared.undo(undo, None, None);
        }
        self.to_server.clear();
        self.scanner = Scanner::new();
        self.in_batch = false;
        self.bound = None;
        self.barrier = false;
        self.idle = false;
        self.status = Status::Idle;
    }

    /// The answer can't be finished, and the client has had a part of it. `leaves`: it may have changed settings.
    async fn break_off(&mut self, block: bool, leaves: bool) -> Result<(), End> {
        let error = ClientError::ReadBroken;
        self.drop_lease().await;
        let asked = self.in_batch || self.pipeline.awaits_for_client();
        if !asked && self.status == Status::Idle {
            // All was said; what is awaited is the session's look at itself, which it takes at the writer.
            if leaves && self.state.looking() {
                return Err(End::Error(ClientError::Held { what: LEFT_BEHIND }));
            }
            self.forget_asked();
            self.state.not_found();
            self.state.suspect();
            self.ways.again = 0;
            return Ok(());
        }
        if self.scanner.left() > 0 {
            // In the middle of a row: there is no place for an error.
            return Err(End::Error(error));
        }
        let synced = self.pipeline.awaits_ready();
        self.forget_asked();
        if block {
            self.deferred.lose((!asked).then(|| error.clone()));
            self.status = Status::Failed;
        }
        if !asked {
            return Ok(());
        }
        client::put_error(&mut self.to_client, &error.report());
        if synced {
            backend::ready(&mut self.to_client, self.status);
        } else {
            self.pipeline.skip();
        }
        Ok(())
    }
}

/// Why the answer with this frame in it can't be given out, if so.
fn why_again(tag: u8, frame: &[u8]) -> Option<Again> {
    match tag {
        b'E' => match report::get(frame, field::CODE) {
            Some(b"25006") => Some(Again::Wrote),
            Some(b"57P01" | b"57P02" | b"57P03") => Some(Again::Lost),
            _ => None,
        },
        b'T' | b't' => has_foreign_types(frame).then_some(Again::Foreign),
        _ => None,
    }
}

fn has_foreign_types(frame: &[u8]) -> bool {
    if frame.first() == Some(&b't') {
        return rows::read_parameters(frame).is_ok_and(|oids| oids.iter().any(is_foreign));
    }
    let columns = rows::read_description(frame);
    columns.is_ok_and(|columns| columns.iter().any(|column| is_foreign(column.type_oid)))
}

pub(super) fn is_foreign(oid: u32) -> bool {
    oid >= FIRST_FOREIGN || RECORDS.contains(&oid)
}
