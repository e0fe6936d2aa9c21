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
use crate::node::pool::Lease;
use crate::session::brief::{Brief, Control, Inside};
use crate::session::client;
use crate::session::pipeline::Expect;
use crate::session::relay::{End, OUTPUT_BYTES_MAX, Session};
use crate::session::requests::Step;
use crate::session::state::Hold;
use crate::session::ways::Chosen;
use crate::sql::statement::Modes;
use crate::wire::frame::{Header, Scanner};
use crate::wire::message::backend::{self, Status};
use crate::wire::message::frontend;
use crate::wire::message::report::{self, field};
use crate::wire::message::rows;

/// What a client may send for one read; more goes to the writer.
const KEPT_BYTES_MAX: usize = 1 << 20;
/// An answer that is held longer is asked of the writer instead.
const GATE_LIMIT: Duration = Duration::from_millis(500);
/// How long a connection to a follower may take to be opened.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How often a read is begun anew before the writer has it.
const AGAIN_MAX: u32 = 3;
/// How long the read-only port waits for a follower that has everything.
const PATIENCE: Duration = Duration::from_millis(500);
/// The first OID of the user's own types; `record` and its array carry such OIDs inside.
const FIRST_FOREIGN: u32 = 16384;
const RECORDS: [u32; 2] = [2249, 2287];
/// What a `ReadyForQuery` outside of transactions looks like.
const READY: &[u8] = b"Z\0\0\0\x05I";

/// What is to be run next, and where it may run.
#[derive(Clone, Copy)]
pub enum Want<'a> {
    /// This text, or what was prepared of it.
    Text(&'a Arc<Brief>),
    /// Whatever connection there is.
    Any,
    /// The writer.
    Writer,
}

/// A read under way on a follower.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Reading {
    node: NodeId,
    load: Arc<Load>,
    sight: Arc<Sight>,
    consistency: Consistency,
    /// Cancelled when the node no longer serves.
    gone: CancellationToken,
    since: Instant,
    timed: bool,
    /// What the client has sent, until it has had a byte.
    kept: Option<BytesMut>,
    /// Where the answer begins in what goes to the client.
    mark: usize,
    /// Nothing more belongs to it.
    whole: bool,
    /// The answer that comes now may go out.
    open: bool,
    /// Several statements in one Query, each with a snapshot of its own.
    several: bool,
    /// All that it reads.
    tables: Tables,
    /// What was bound or asked last.
    brief: Arc<Brief>,
    /// It is a whole read-only transaction.
    block: Option<Block>,
    /// The writer must show everything up to here first.
    gate: Option<Lsn>,
    /// It has to be run again, and why.
    again: Option<Again>,
}

/// A read-only transaction that runs on a follower.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// It has one snapshot, which its first answer was held for.
    one_snapshot: bool,
    /// It has savepoints or settings of its own.
    rooted: bool,
    /// It may begin anew elsewhere: its BEGIN is at hand.
    movable: bool,
}

/// Whether what comes next belongs to a read that is under way.
enum Next {
    /// It does.
    Here,
    /// The node lacks something that must not be missed.
    Later,
    /// It does not.
    Elsewhere,
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
    /// Sees to it that there is a connection for the message at the front, on a node where it may run. `Some`: it has
    /// been answered, or has to wait.
    pub(super) async fn connected(
        &mut self,
        header: Header,
        want: Want<'_>,
    ) -> Result<Option<Step>, End> {
        if self.reading.is_some() {
            if Box::pin(self.goes_on(want)).await {
                return Ok(None);
            }
            if let Some(step) = Box::pin(self.leave_follower(header)).await? {
                return Ok(Some(step));
            }
        } else if self.lease.is_none()
            && let Want::Text(brief) = want
            && self.may_read(header, brief)
        {
            match Box::pin(self.begin_reading(header, brief)).await? {
                Begun::Here => return Ok(None),
                Begun::Not => {}
                Begun::Later(step) => return Ok(Some(step)),
            }
        }
        if self.at_writer(header).await? {
            Ok(None)
        } else {
            Ok(Some(Step::Next))
        }
    }

    /// Whether a read that is under way takes what comes next along. In a transaction it waits for what the node
    /// lacks.
    async fn goes_on(&mut self, want: Want<'_>) -> bool {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.next(want) {
                Next::Here => return true,
                Next::Elsewhere => return false,
                Next::Later if self.reading.as_ref().is_none_or(|r| r.block.is_none()) => {
                    return false;
                }
                Next::Later if Instant::now() > until => return false,
                Next::Later => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    fn next(&mut self, want: Want<'_>) -> Next {
        let Some(reading) = &mut self.reading else {
            return Next::Elsewhere;
        };
        let brief = match want {
            Want::Any => return Next::Here,
            Want::Writer => return Next::Elsewhere,
            Want::Text(brief) => brief,
        };
        let Some(tables) = brief.reads() else {
            let Some(block) = &mut reading.block else {
                return Next::Elsewhere;
            };
            if self.status == Status::Failed {
                // The node says so, whatever it is.
                return Next::Here;
            }
            block.rooted |= brief.inside == Inside::Roots;
            return if brief.inside == Inside::Foreign {
                Next::Elsewhere
            } else {
                Next::Here
            };
        };
        let settled = reading.block.is_some_and(|block| block.one_snapshot) && !reading.is_held();
        if !settled && !self.ways.is_fit(reading.node, tables, reading.consistency) {
            return Next::Later;
        }
        if reading.tables != *tables {
            reading.tables = reading.tables.clone().and(tables.clone());
        }
        reading.brief = Arc::clone(brief);
        Next::Here
    }

    /// Whether the message at the front, which needs a connection, may go to a follower.
    fn may_read(&self, header: Header, brief: &Brief) -> bool {
        self.ways.are_open()
            && (brief.reads().is_some() || self.is_idle_talk(brief))
            && (self.status == Status::Idle || self.begins_block())
            && !self.in_batch
            && self.pipeline.is_empty()
            && header.len <= KEPT_BYTES_MAX
            && self.state.hold() == Hold::None
            && !self.state.unsure()
            && !self.state.doubt.probe
            && (self.state.may_read(header.tag == b'Q') || self.begins_block())
    }

    /// Whether a read-only transaction has been begun of which no node has heard yet.
    fn begins_block(&self) -> bool {
        self.deferred.waits() && self.deferred.reads().is_some() && !self.ways.no_blocks
    }

    /// What reads nothing and may run on any node: the read-only port does not trouble the writer with it.
    fn is_idle_talk(&self, brief: &Brief) -> bool {
        if !self.read_only || self.status != Status::Idle || brief.read_write {
            return false;
        }
        let begins = brief.begins.and_then(|modes| self.reads_only(modes));
        begins.is_some() && !self.ways.no_blocks
            || brief.inside != Inside::Foreign && brief.control == Control::None
    }

    /// See [`State::reads_only`](crate::session::state::State::reads_only).
    pub(super) fn reads_only(&self, modes: Modes) -> Option<bool> {
        self.ways.reads().and_then(|_| self.state.reads_only(modes))
    }

    /// Takes a connection to a follower, if one is chosen. Dropped midway, the session is at its end.
    async fn begin_reading(&mut self, header: Header, brief: &Arc<Brief>) -> Result<Begun, End> {
        let tables = brief.reads().cloned().unwrap_or_else(Tables::none);
        if self.input.len() < header.len {
            return Ok(Begun::Later(Step::More));
        }
        if self.to_client.ends_with(READY) {
            // An earlier answer that must not wait for this one.
            return Ok(Begun::Later(Step::Wait));
        }
        let Some(sight) = self.ways.sight(&self.database).map(Arc::clone) else {
            return Ok(Begun::Not);
        };
        let consistency = self.consistency();
        let Some((node, lease)) = self.follower(&tables, consistency).await? else {
            return Ok(Begun::Not);
        };
        let reads = self.ways.reads().map(Arc::clone);
        let Some((reads, load)) = reads.and_then(|reads| {
            let load = reads.loads.get(node).map(Arc::clone)?;
            Some((reads, load))
        }) else {
            return Ok(Begun::Not);
        };
        if let Some(counter) = reads.meters.reads.get(node.0) {
            counter.increment(1);
        }
        let begins = brief.begins.and_then(|modes| self.reads_only(modes));
        let deferred = self.deferred.reads().filter(|_| self.deferred.waits());
        let block = deferred.or(begins).map(|one_snapshot| Block {
            one_snapshot,
            rooted: false,
            movable: deferred.is_some(),
        });
        self.reading = Some(Box::new(Reading {
            block,
            node,
            gone: load.gone(),
            load,
            sight,
            consistency,
            since: Instant::now(),
            timed: false,
            kept: Some(BytesMut::from(&self.input[..header.len])),
            mark: 0,
            whole: false,
            open: false,
            several: brief.several,
            tables,
            brief: Arc::clone(brief),
            gate: None,
            again: None,
        }));
        self.pipeline.keep(true);
        let status = self.status;
        self.settle_in(lease);
        self.status = status;
        let mark = self.to_client.len();
        if let Some(reading) = &mut self.reading {
            reading.mark = mark;
        }
        if self.deferred.waits() {
            self.put_begin(header.tag);
        }
        Ok(Begun::Here)
    }

    /// A dressed connection to the follower that is chosen; `None`: it is the writer's turn.
    async fn follower(
        &mut self,
        tables: &Tables,
        consistency: Consistency,
    ) -> Result<Option<(NodeId, Lease)>, End> {
        let until = Instant::now() + PATIENCE;
        let mut without = Vec::new();
        loop {
            let writer = (self.shared.writer(), !self.read_only);
            let shared = Arc::clone(&self.shared);
            let chosen = self
                .ways
                .choose(&shared.pools, tables, consistency, writer, &without);
            let Chosen::Follower(node) = chosen else {
                if !self.read_only {
                    self.time_writer();
                    return Ok(None);
                }
                if Instant::now() > until || !without.is_empty() {
                    return Ok(None);
                }
                // The read-only port leaves the writer alone while a follower may soon have everything.
                tokio::time::sleep(Duration::from_millis(2)).await;
                continue;
            };
            match self.follower_connection(node).await? {
                Some(lease) => return Ok(Some((node, lease))),
                None => without.push(node),
            }
        }
    }

    /// A connection to this follower, in the session's settings; `None`: there is none to be had.
    async fn follower_connection(&mut self, node: NodeId) -> Result<Option<Lease>, End> {
        let shared = Arc::clone(&self.shared);
        let (user, database) = (self.user.clone(), self.database.clone());
        let pool = self.ways.pool(&shared.pools, node, &user, &database);
        let reads = self.ways.reads().map(Arc::clone);
        let load = reads.and_then(|reads| reads.loads.get(node).map(Arc::clone));
        let Some((pool, load)) = pool.zip(load) else {
            return Ok(None);
        };
        if let Some(lease) = self.idle_of(&pool) {
            return Ok(self.plain(lease));
        }
        let gone = load.gone();
        self.cancel.wait();
        let found = async {
            let Some(mut lease) = pool.acquire_free().await.ok()? else {
                return Some(None);
            };
            self.dress(&mut lease).await.ok()?;
            Some(Some(lease))
        };
        let found = tokio::select! {
            // A free connection is there at the first look, and then nothing else is looked at.
            biased;
            found = found => found,
            () = gone.cancelled() => None,
            () = tokio::time::sleep(CONNECT_LIMIT) => None,
            () = self.cancel.requested() => return Err(ClientError::Cancelled.into()),
            () = self.shared.abort.cancelled() => return Err(ClientError::ShuttingDown.into()),
        };
        let Some(lease) = found else {
            load.suspect();
            return Ok(None);
        };
        Ok(lease.and_then(|lease| self.plain(lease)))
    }

    /// The connection, unless its transactions are above READ COMMITTED by themselves.
    fn plain(&mut self, lease: Lease) -> Option<Lease> {
        if lease.plain {
            return Some(lease);
        }
        lease.release();
        self.ways.close();
        None
    }

    /// What this session's reads must not miss.
    fn consistency(&self) -> Consistency {
        let default = self.shared.config.reads.consistency;
        self.state.consistency().unwrap_or(default)
    }

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

    /// Where the text at hand may be parsed, with types that `tail` names behind it.
    pub(super) fn wish<'a>(brief: &'a Arc<Brief>, tail: &[u8]) -> Want<'a> {
        let types = memchr::memchr(0, tail).map_or(&[][..], |end| &tail[end + 1..]);
        let (oids, _) = types.get(2..).unwrap_or_default().as_chunks::<4>();
        let mut oids = oids.iter().map(|oid| u32::from_be_bytes(*oid));
        if oids.any(is_foreign) {
            Want::Writer
        } else {
            Want::Text(brief)
        }
    }

    /// Ends the read for the sake of what does not belong to it, once all is answered. `Some`: not yet.
    async fn leave_follower(&mut self, header: Header) -> Result<Option<Step>, End> {
        if !self.pipeline.is_empty() {
            if !self.barrier {
                frontend::flush(&mut self.to_server);
            }
            self.barrier = true;
            return Ok(Some(Step::Wait));
        }
        self.let_out();
        self.to_server.clear();
        let block = self.reading.as_ref().and_then(|reading| reading.block);
        if let Some(block) = block {
            if block.one_snapshot || block.rooted || !block.movable {
                return self.give_block_up(header).await.map(Some);
            }
            self.deferred.rewind();
        }
        let end = if block.is_some() { "rollback" } else { "" };
        // The implicit transaction ends with an empty query. Portals of it end too: they are not to be found at the
        // writer, which says so.
        let ended = match &mut self.lease {
            Some(lease) => lease.backend.query(end).await,
            None => Ok(Vec::new()),
        };
        if let Some(lease) = &mut self.lease {
            lease.carried.unnamed = None;
        }
        if ended.is_ok() {
            self.give_back().await;
        } else {
            self.drop_lease().await;
            self.end_reading();
        }
        self.ways.bar();
        Ok(None)
    }

    /// A transaction that needs the writer and can't begin anew there has failed; the next begins there.
    async fn give_block_up(&mut self, header: Header) -> Result<Step, End> {
        self.ways.no_blocks = true;
        self.drop_lease().await;
        self.end_reading();
        self.in_batch = false;
        self.deferred.lose(None);
        self.status = Status::Failed;
        Ok(self.refuse(header, &ClientError::NotHere))
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
    async fn drop_lease(&mut self) {
        while !self.cancel.detach() {
            self.cancel.settled().await;
        }
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
            && reading.is_held()
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
        if !reading.open && !matches!(tag, b'1' | b'2' | b'3' | b'n') {
            if !reading.sight.is_trusted(reading.node) {
                reading.again = Some(Again::Lost);
                return false;
            }
            let horizon = reading.sight.horizon(reading.node);
            match reading.consistency {
                Consistency::Eventual => {}
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
        if shown && reading.sight.is_trusted(reading.node) {
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
            return Box::pin(self.break_off(reading.block.is_some())).await;
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
        for undo in self.pipeline.abandon() {
            self.prepared.undo(undo, None);
        }
        self.pipeline.keep(false);
        self.to_client.truncate(reading.mark);
        self.to_server.clear();
        self.scanner = Scanner::new();
        self.in_batch = false;
        self.bound = None;
        self.barrier = false;
        self.idle = false;
        self.status = Status::Idle;
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

    /// The answer can't be finished, and the client has had a part of it.
    async fn break_off(&mut self, block: bool) -> Result<(), End> {
        let error = ClientError::ReadBroken;
        self.drop_lease().await;
        if self.scanner.left() > 0 {
            // In the middle of a row: there is no place for an error.
            return Err(End::Error(error));
        }
        let asked = !self.pipeline.is_empty() || self.in_batch;
        let synced = self.pipeline.awaits_ready();
        for undo in self.pipeline.abandon() {
            self.prepared.undo(undo, None);
        }
        self.to_server.clear();
        self.scanner = Scanner::new();
        self.in_batch = false;
        self.bound = None;
        self.barrier = false;
        self.idle = false;
        self.status = Status::Idle;
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

    /// A session that has read what the writer may not show yet waits until it does.
    pub(super) async fn catch_writer_up(&mut self) {
        let place = self.ways.caught_up();
        if let Some(sight) = self.ways.sight(&self.database) {
            let shown = sight.shown(&Tables::All, place);
            let _ = tokio::time::timeout(GATE_LIMIT, shown).await;
        }
    }

    /// The writer answers a read: it is timed like the others.
    fn time_writer(&mut self) {
        self.timing = Some(Instant::now());
    }

    /// The writer's answer is there.
    pub(super) fn timed(&mut self, since: Instant) {
        let writer = self.pool.node();
        let Some(reads) = self.ways.reads() else {
            return;
        };
        if let Some(load) = reads.loads.get(writer) {
            load.answered(since.elapsed());
        }
        if let Some(counter) = reads.meters.reads.get(writer.0) {
            counter.increment(1);
        }
    }
}

/// What became of the wish to read from a follower.
enum Begun {
    /// The connection is there.
    Here,
    /// It is the writer's turn.
    Not,
    /// It can't be told yet.
    Later(Step),
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

fn is_foreign(oid: u32) -> bool {
    oid >= FIRST_FOREIGN || RECORDS.contains(&oid)
}
