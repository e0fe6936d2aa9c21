//! Keeps the followers' sequences ahead of the writer's, before what used them is confirmed.
//!
//! The I/O around `engine::sequences` (REPLICATION rule 24). Guards promise 1 for values: whoever becomes the writer
//! hands out none again that an acknowledged commit may have used. Values are raised on so many followers that every
//! majority has one of them; whoever takes office takes the greatest that a majority knows (`level_sequences`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio_postgres::Client;

use super::bring_up::{BringUp, BringUpError, Reached};
use super::replicator::{Replicator, State};
use super::steward::Steward;
use super::view::NodeView;
use crate::engine::confirm::Report;
use crate::engine::sequences::Block;
use crate::ids::{Lsn, NodeId, origin_name};
use crate::node::control::{self, ControlError};
use crate::node::office;
use crate::node::sequences::{self, Sequence};

/// How much of the writer's log is confirmed between two readings, about.
const BYTES: u64 = 1 << 20;
/// After a reading that failed, or that found too few followers.
const AGAIN: Duration = Duration::from_millis(20);
/// How long a unit is waited for that confirms what holds none.
const SOON: Duration = Duration::from_millis(2);
/// What was moved straight on the writer is read so often, while its log grows.
const EVERY: Duration = Duration::from_secs(1);
/// For one reading with all that belongs to it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What followers' sequences have been raised to.
#[derive(Default)]
struct Raised {
    /// To which value, by database and name.
    values: BTreeMap<(String, String), i64>,
    /// Those that can't be read on the writer, by database.
    held: BTreeMap<String, Held>,
}

/// Sequences that a command holds.
struct Held {
    names: Vec<String>,
    /// The newest command that a majority had when they were raised.
    jump: Option<Lsn>,
    /// Up to where in the log that suffices.
    until: Lsn,
}

/// What a reading says.
struct Reading {
    /// Where the log ended before.
    end: Lsn,
    blocks: Vec<Block>,
    /// All sequences could be read.
    whole: bool,
}

impl Steward {
    /// Reads and raises whenever what is to be confirmed wants it.
    pub(super) async fn mind_sequences(&self) {
        let mut raised = Raised::default();
        let work = async {
            loop {
                self.replicator.reading_wanted().await;
                let mark = self.replicator.jumps.mark();
                let began = Instant::now();
                let reading =
                    tokio::time::timeout(PATIENCE, self.read_sequences(&mut raised)).await;
                tracing::debug!(took = ?began.elapsed(), "sequences are read");
                match reading.unwrap_or(Err(ControlError::Timeout)) {
                    Ok(Some(Reading { end, blocks, whole })) => {
                        let mark = mark.filter(|_| whole);
                        self.replicator.sequences_raised(end, blocks, mark);
                    }
                    Ok(None) => self.read_again().await,
                    Err(error) => {
                        tracing::debug!(%error, "sequences could not be read or raised");
                        self.read_again().await;
                    }
                }
            }
        };
        self.cancel.run_until_cancelled(work).await;
    }

    async fn read_again(&self) {
        tokio::time::sleep(AGAIN).await;
        self.replicator.want_reading();
    }

    /// Where the log ended before, and what is covered from there; none where too few followers could be raised.
    async fn read_sequences(&self, raised: &mut Raised) -> Result<Option<Reading>, ControlError> {
        let admin = &self.control.database;
        let client = self
            .keeper
            .client(&self.control, self.writer, admin)
            .await?;
        let (_, had) = self.replicator.confirmed();
        let end = office::end_of_log(&client).await?;
        let mut reading = Reading {
            end,
            blocks: Vec::new(),
            whole: true,
        };
        for (_, database) in self.replicator.streams() {
            let client = self
                .keeper
                .client(&self.control, self.writer, &database)
                .await?;
            let found = sequences::read(&client).await?;
            drop(client);
            if found.read.is_empty() && found.held.is_empty() {
                if database != *admin {
                    self.keeper.leave(&database);
                }
                continue;
            }
            if !self.raise(&database, &found.read, raised).await? {
                return Ok(None);
            }
            let block = |one: &Sequence| {
                let value = raised.values.get(&(database.clone(), one.name.clone()))?;
                Some(one.block(*value))
            };
            // One that is used up hands out nothing more.
            let used = found.read.iter().filter(|one| one.left > 0);
            reading.blocks.extend(used.filter_map(block));
            if !found.held.is_empty() {
                reading.whole = false;
                // What a command did that came later is not known.
                reading.end = end.min(had);
                let Some(block) = self
                    .raise_held(&database, found.held, (had, end), raised)
                    .await?
                else {
                    return Ok(None);
                };
                reading.blocks.push(block);
            }
        }
        Ok(Some(reading))
    }

    /// Raises followers' sequences that can't be read on the writer, whose log ends at `end`, from where followers stand
    /// that have all up to `had`. Once is enough until another command has come there, or half of that is used up.
    async fn raise_held(
        &self,
        database: &str,
        held: Vec<String>,
        (had, end): (Lsn, Lsn),
        raised: &mut Raised,
    ) -> Result<Option<Block>, ControlError> {
        let (read, jump) = self.replicator.last_read(had);
        let block = |bytes: u64| Block::for_bytes(bytes, 1);
        for name in &held {
            // Where it stands is read once it can be.
            raised.values.remove(&(database.to_owned(), name.clone()));
        }
        if let Some(known) = raised.held.get(database)
            && known.names == held
            && known.jump == jump
            && known.until.0 > end.0 + BYTES / 2
        {
            return Ok(Some(block(known.until.0 - end.0)));
        }
        let bytes = BYTES + end.0.saturating_sub(read.0);
        let nodes = self.raisable().into_iter();
        let nodes = nodes.filter(|node| self.replicator.place(*node) >= had);
        let (held, origin) = (&held, &origin_name(self.term, database));
        let raised_for = self.on_enough(nodes, database, |client| async move {
            sequences::raise_for(&client, held, bytes, origin).await
        });
        let Some(raised_for) = raised_for.await else {
            return Ok(None);
        };
        let least = raised_for.into_iter().fold(bytes, u64::min);
        // What had been used up by now is not known.
        let left = least.saturating_sub(bytes - BYTES);
        let until = Lsn(end.0 + left);
        let names = held.clone();
        raised
            .held
            .insert(database.to_owned(), Held { names, jump, until });
        Ok(Some(block(left)))
    }

    /// Raises those that have used up half of what they had. False: on too few followers.
    async fn raise(
        &self,
        database: &str,
        found: &[Sequence],
        raised: &mut Raised,
    ) -> Result<bool, ControlError> {
        let mut wanted = Vec::new();
        for one in found.iter().filter(|one| !one.cycles) {
            let full = Block::for_bytes(BYTES, one.cache).ahead;
            let (value, steps) = one.ahead(full.saturating_add(32 + one.cache));
            let known = raised.values.get(&(database.to_owned(), one.name.clone()));
            let left = known.map_or(0, |known| one.block(*known).ahead);
            if known.is_none() || left < steps / 2 {
                wanted.push((one.name.clone(), value));
            }
        }
        if wanted.is_empty() {
            return Ok(true);
        }
        let (list, origin) = (&wanted, &origin_name(self.term, database));
        let raised_on =
            self.on_enough(self.raisable().into_iter(), database, |client| async move {
                let missing = sequences::raise(&client, list, Some(origin)).await?;
                // One that is not there comes with a unit that has not been applied yet.
                Ok((missing == Some(0)).then_some(()))
            });
        if raised_on.await.is_none() {
            return Ok(false);
        }
        for (name, value) in wanted {
            raised.values.insert((database.to_owned(), name), value);
        }
        Ok(true)
    }

    /// Asks these nodes at the same time and gives the answers as soon as there are enough, so that one that stands
    /// still holds nobody up; none where too few did what they were asked. A question that is not waited for may still
    /// be carried out.
    async fn on_enough<T, F>(
        &self,
        nodes: impl Iterator<Item = NodeId>,
        database: &str,
        ask: impl Fn(Arc<Client>) -> F,
    ) -> Option<Vec<T>>
    where
        F: Future<Output = Result<Option<T>, ControlError>>,
    {
        let ask = &ask;
        let asked = nodes.map(async |node| {
            let client = self.keeper.client(&self.control, node, database).await;
            let answer = match client {
                Ok(client) => ask(client).await,
                Err(error) => Err(error),
            };
            (node, answer)
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        // The writer is one of the majority.
        let enough = self.config.nodes.len() / 2;
        let mut done = Vec::with_capacity(enough);
        while done.len() < enough {
            match asked.next().await? {
                (_, Ok(answer)) => done.extend(answer),
                (node, Err(error)) => {
                    tracing::debug!(node = node.0, database, %error, "sequences could not be raised there");
                }
            }
        }
        Some(done)
    }

    fn raisable(&self) -> Vec<NodeId> {
        let view = self.view();
        let may = |node: &&NodeView| node.id != self.writer && node.is_there();
        view.nodes.iter().filter(may).map(|node| node.id).collect()
    }
}

impl Replicator {
    /// What may be reported, as far as followers' sequences allow it.
    pub(super) fn covered(&self, state: &mut State) -> Report {
        let report = state.confirmer.report();
        let suspect = !self.jumps.is_read(state.jumps_read);
        state.sequences.suspect(suspect);
        let sequences = &state.sequences;
        let write = sequences.confirmable(report.write, report.unit);
        if write == report.write {
            if sequences.is_half_used(write) {
                self.reading.notify_one();
            }
            return report;
        }
        if sequences.is_in_the_way(report.unit) {
            self.reading.notify_one();
        } else {
            self.tail.notify_one();
        }
        let told = *self.reports.borrow();
        Report {
            write: write.max(told.write),
            flush: report.flush.min(write).max(told.flush),
            unit: report.unit.min(write).max(told.unit),
            // Another one follows as soon as they have been raised.
            bounded: true,
        }
    }

    /// Waits until the writer's sequences are to be read. Dropping it loses no wish.
    pub(super) async fn reading_wanted(&self) {
        loop {
            tokio::select! {
                () = self.reading.notified() => return,
                () = self.tail.notified() => {
                    let (_, wanted) = self.confirmed();
                    tokio::time::sleep(SOON).await;
                    // Mostly another unit has come, and does as well.
                    if self.confirmed().0 < wanted {
                        return;
                    }
                }
                () = tokio::time::sleep(EVERY) => if self.has_more() {
                    return;
                }
            }
        }
    }

    /// Up to where sequences allow to confirm, and up to where the followers do.
    fn confirmed(&self) -> (Lsn, Lsn) {
        let mut state = self.lock();
        let report = state.confirmer.report();
        let allowed = state.sequences.confirmable(report.write, report.unit);
        (allowed, report.write)
    }

    /// They are to be read.
    pub(super) fn want_reading(&self) {
        self.reading.notify_one();
    }

    /// Where the log ended when sequences were last read, and the newest place from there to `had` at which one may
    /// have jumped.
    fn last_read(&self, had: Lsn) -> (Lsn, Option<Lsn>) {
        let state = self.lock();
        (state.sequences.read(), state.sequences.newest_jump(had))
    }

    /// Whether anything was confirmed since the last reading.
    fn has_more(&self) -> bool {
        let (written, _) = self.confirmed();
        !self.lock().sequences.has_read(written)
    }

    /// The writer's log ended at `end`, then its sequences were read and followers raised; `mark` was taken before.
    pub(super) fn sequences_raised(&self, end: Lsn, blocks: Vec<Block>, mark: Option<u64>) {
        let mut state = self.lock();
        state.jumps_read = mark;
        state.sequences.raised(end, blocks);
        self.announce(&mut state);
    }
}

impl BringUp<'_> {
    /// Before a node takes office: in every database its sequences come as far as those of anybody who was reached.
    pub(super) async fn level_sequences(
        &self,
        reached: &[Reached],
        writer: NodeId,
    ) -> Result<(), BringUpError> {
        let doing = "levelling sequences";
        let Some(ours) = reached.iter().find(|node| node.node == writer) else {
            return Err(self.unreachable(writer, ControlError::Timeout));
        };
        let databases = control::databases(&ours.client).await;
        let databases = databases.map_err(self.failed(writer, doing))?;
        let levelled = databases.iter().map(async |database| {
            let read = reached.iter().map(async |node| {
                // A node that lacks the database has nothing to say of it.
                let Ok(client) = self.client(node.node, database).await else {
                    return Ok(Vec::new());
                };
                // Nobody is at work there.
                let found = sequences::read(&client).await;
                Ok(found.map_err(self.failed(node.node, doing))?.read)
            });
            let wanted = greatest(try_join_all(read).await?.into_iter().flatten());
            if wanted.is_empty() {
                return Ok(());
            }
            let client = self.client(writer, database).await;
            let client = client.map_err(self.failed(writer, doing))?;
            let raised = sequences::raise(&client, &wanted, None).await;
            raised.map(drop).map_err(self.failed(writer, doing))
        });
        try_join_all(levelled).await.map(drop)
    }
}

/// Where the one stands that has come farthest, for each name that has been called.
fn greatest(found: impl Iterator<Item = Sequence>) -> Vec<(String, i64)> {
    let mut greatest: BTreeMap<String, Sequence> = BTreeMap::new();
    for one in found {
        match greatest.get(&one.name) {
            Some(known) if !known.is_behind(one.last) => {}
            _ => drop(greatest.insert(one.name.clone(), one)),
        }
    }
    let called = greatest
        .into_values()
        .filter(|one| one.called && !one.cycles);
    called.map(|one| (one.name, one.last)).collect()
}

/// Makes the sequences of all followers stand exactly where those of a writer stand that hands out no more.
pub(super) async fn copy_all(steward: &Steward) -> Result<(), ControlError> {
    let (keeper, control) = (&steward.keeper, &steward.control);
    let streams = steward.replicator.streams().into_iter();
    let copying = streams.map(async |(_, database)| {
        let client = keeper.client(control, steward.writer, &database).await?;
        let found = sequences::read(&client).await?.read;
        let nodes = steward.raisable().into_iter().map(async |node| {
            let client = keeper.client(control, node, &database).await?;
            sequences::copy(&client, &found, steward.term).await
        });
        try_join_all(nodes).await
    });
    try_join_all(copying).await.map(drop)
}
