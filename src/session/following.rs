//! Which node a message goes to: whether a follower may answer it, which one, and when a read that is under way has
//! to be left for the writer.
//!
//! It guards the first half of promise 3, and that all messages of one implicit transaction have one node, or two at
//! most: the second is the writer, and comes last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::cluster::loads::Load;
use crate::config::Consistency;
use crate::error::ClientError;
use crate::ids::{NodeId, Tables};
use crate::node::pool::Lease;
use crate::session::brief::{Brief, Control, Inside};
use crate::session::reading::{
    Block, CONNECT_LIMIT, GATE_LIMIT, KEPT_BYTES_MAX, Reading, is_foreign,
};
use crate::session::relay::{End, Session};
use crate::session::requests::Step;
use crate::session::state::Hold;
use crate::session::ways::Chosen;
use crate::sql::statement::Modes;
use crate::wire::frame::Header;
use crate::wire::message::backend::Status;
use crate::wire::message::frontend;

/// How long the read-only port waits for a follower that has everything.
const PATIENCE: Duration = Duration::from_millis(500);
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

/// Whether what comes next belongs to a read that is under way.
enum Next {
    /// It does.
    Here,
    /// The node lacks something that must not be missed.
    Later,
    /// It does not.
    Elsewhere,
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
            match self.next(want) {
                Next::Here => return Ok(None),
                Next::Later if Box::pin(self.soon(want)).await => return Ok(None),
                Next::Later | Next::Elsewhere => {}
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
        let opens = matches!(want, Want::Text(brief) if brief.opens);
        self.hear();
        if self.lease.is_none() {
            if let Want::Text(brief) = want
                && let Some(lost) = self.without_quorum(brief.risk, brief.commits)
            {
                self.denied(header, opens, &lost)?;
                return Ok(Some(Step::Next));
            }
            if self.office.waits() {
                if let Err(error) = Box::pin(self.wait_for_word()).await {
                    self.denied(header, opens, &error)?;
                    return Ok(Some(Step::Next));
                }
                if self.office.is_headless() {
                    // A follower may answer it after all, or it is refused.
                    return Ok(Some(Step::Again));
                }
            }
        }
        if self.at_writer(header, opens).await? {
            Ok(None)
        } else {
            Ok(Some(Step::Next))
        }
    }

    /// Waits in a transaction for what its node lacks. False: in vain, or it is none.
    async fn soon(&mut self, want: Want<'_>) -> bool {
        if self
            .reading
            .as_ref()
            .is_none_or(|reading| reading.is_single())
        {
            return false;
        }
        let mut until = Instant::now() + PATIENCE;
        let limit = Instant::now() + self.shared.config.pool.queue_timeout();
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if self.hear().waits() {
                // Another writer comes, and what its followers have is known a moment later.
                until = limit.min(Instant::now() + PATIENCE);
            }
            match self.next(want) {
                Next::Here => return true,
                Next::Elsewhere => return false,
                Next::Later => {}
            }
        }
        false
    }

    /// Whether a read that is under way takes what comes next along.
    fn next(&mut self, want: Want<'_>) -> Next {
        let refused = |brief: &Brief| self.without_quorum(brief.risk, brief.commits).is_some();
        let refused = matches!(want, Want::Text(brief) if refused(brief));
        let office = self.hear();
        // By the newest that is known.
        self.ways.sight(&self.database);
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
            if brief.read_write {
                // Ahead of its first query the node would allow it.
                return Next::Elsewhere;
            }
            if refused {
                // Its transaction fails where it is.
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
        // The transaction's node may have become the writer, in order.
        let writes = reading.node == office.writer && office.serves();
        if !settled && !writes && !self.ways.is_fit(reading.node, tables, reading.consistency) {
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

    /// Whether the writer is to be left alone while a follower can answer: by the read-only port, and where there is none.
    fn spares_writer(&self) -> bool {
        self.read_only || self.office.is_headless()
    }

    /// What reads nothing and may run on any node: the writer that is to be left alone is not troubled with it.
    fn is_idle_talk(&self, brief: &Brief) -> bool {
        if !self.spares_writer() || self.status != Status::Idle || brief.read_write {
            return false;
        }
        let begins = brief.begins.and_then(|modes| self.reads_only(modes));
        // There is no transaction to be ended.
        let ends_none = matches!(
            brief.control,
            Control::None | Control::Commit { chain: false } | Control::Rollback { chain: false }
        );
        begins.is_some() && !self.ways.no_blocks || brief.inside != Inside::Foreign && ends_none
    }

    /// See [`State::reads_only`](crate::session::state::State::reads_only).
    pub(super) fn reads_only(&self, modes: Modes) -> Option<bool> {
        let reads = self.ways.reads().filter(|_| !self.ways.are_closed());
        // Where nobody writes, a transaction that does not insist on writing reads.
        let read_only = modes
            .read_only
            .or(self.office.is_headless().then_some(true));
        let modes = Modes { read_only, ..modes };
        reads.and_then(|_| self.state.reads_only(modes))
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
        // What it was let in for: the office may be another one in a moment.
        let begins = brief.begins.and_then(|modes| self.reads_only(modes));
        let Some((node, load, lease)) = self.follower(&tables, consistency).await? else {
            return Ok(Begun::Not);
        };
        self.count_read(node);
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
            names: self.names(),
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
    ) -> Result<Option<(NodeId, Arc<Load>, Lease)>, End> {
        let until = Instant::now() + PATIENCE;
        let mut without = Vec::new();
        loop {
            let office = self.hear();
            let writer = (office.writer, !self.spares_writer() && office.serves());
            let pools = &self.shared.pools;
            let chosen = self
                .ways
                .choose(pools, tables, consistency, writer, &without);
            let Chosen::Follower(node) = chosen else {
                if !self.spares_writer() {
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
                Some((load, lease)) => return Ok(Some((node, load, lease))),
                None => without.push(node),
            }
        }
    }

    /// A connection to this follower, in the session's settings; `None`: there is none to be had.
    async fn follower_connection(
        &mut self,
        node: NodeId,
    ) -> Result<Option<(Arc<Load>, Lease)>, End> {
        let pools = &self.shared.pools;
        let pool = self.ways.pool(pools, node, &self.user, &self.database);
        let reads = self.ways.reads();
        let load = reads.and_then(|reads| reads.loads.get(node).map(Arc::clone));
        let Some((pool, load)) = pool.zip(load) else {
            return Ok(None);
        };
        if !self.is_same_role() {
            // The writer's turn, where the session ends.
            return Err(self.other_role().into());
        }
        if let Some(lease) = self.idle_of(&pool) {
            return Ok(self.plain(lease).map(|lease| (load, lease)));
        }
        let gone = load.gone();
        self.cancel.wait();
        let found = async {
            let Some(mut lease) = pool.acquire_free().await.ok()? else {
                return Some(None);
            };
            if !self.is_same_role() {
                lease.release();
                return Some(None);
            }
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
        let lease = lease.and_then(|lease| self.plain(lease));
        Ok(lease.map(|lease| (load, lease)))
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
    pub(super) async fn leave_follower(&mut self, header: Header) -> Result<Option<Step>, End> {
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
        self.count_read(writer);
    }

    fn count_read(&self, node: NodeId) {
        let reads = self.ways.reads();
        if let Some(counter) = reads.and_then(|reads| reads.meters.reads.get(node.0)) {
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
