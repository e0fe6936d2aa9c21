//! Keeps the followers' sequences ahead of the writer's, before what used them is confirmed.
//!
//! The I/O around `engine::sequences` (REPLICATION rule 24). Guards promise 1 for values: whoever becomes the writer
//! hands out none again that an acknowledged commit may have used. Values are raised on so many followers that every
//! majority has one of them; whoever takes office takes the greatest that a majority knows (`level_sequences`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::bring_up::{BringUp, BringUpError, Reached};
use super::replicator::{Replicator, State};
use super::steward::Steward;
use super::view::NodeView;
use crate::engine::confirm::Report;
use crate::engine::sequences::Block;
use crate::ids::{Lsn, NodeId};
use crate::node::control::{self, ControlError};
use crate::node::office;
use crate::node::sequences::{self, Sequence};

/// How much of the writer's log is confirmed between two readings, about.
const BYTES: u64 = 1 << 20;
/// After a reading that failed, or that found too few followers.
const AGAIN: Duration = Duration::from_millis(20);
/// For one reading with all that belongs to it.
const PATIENCE: Duration = Duration::from_secs(5);

/// To which value each sequence has been raised, by database and name.
type Raised = BTreeMap<(String, String), i64>;

impl Steward {
    /// Reads and raises whenever what is to be confirmed wants it.
    pub(super) async fn mind_sequences(&self) {
        let mut raised = Raised::new();
        let work = async {
            loop {
                self.replicator.reading_wanted().await;
                let reading =
                    tokio::time::timeout(PATIENCE, self.read_sequences(&mut raised)).await;
                match reading.unwrap_or(Err(ControlError::Timeout)) {
                    Ok(Some((end, blocks))) => self.replicator.sequences_raised(end, blocks),
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
    async fn read_sequences(
        &self,
        raised: &mut Raised,
    ) -> Result<Option<(Lsn, Vec<Block>)>, ControlError> {
        let admin = &self.control.database;
        let client = self
            .keeper
            .client(&self.control, self.writer, admin)
            .await?;
        let end = office::end_of_log(&client).await?;
        let mut blocks = Vec::new();
        for (_, database) in self.replicator.streams() {
            let client = self
                .keeper
                .client(&self.control, self.writer, &database)
                .await?;
            let found = sequences::read(&client).await?;
            drop(client);
            if found.is_empty() && database != *admin {
                self.keeper.leave(&database);
                continue;
            }
            if !self.raise(&database, &found, raised).await? {
                return Ok(None);
            }
            let block = |one: &Sequence| {
                let value = raised.get(&(database.clone(), one.name.clone()))?;
                Some(one.block(*value))
            };
            blocks.extend(found.iter().filter_map(block));
        }
        Ok(Some((end, blocks)))
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
            let known = raised.get(&(database.to_owned(), one.name.clone()));
            let left = known.map_or(0, |known| one.block(*known).ahead);
            if known.is_none() || left < steps / 2 {
                wanted.push((one.name.clone(), value));
            }
        }
        if wanted.is_empty() {
            return Ok(true);
        }
        let mut followers = 0;
        for node in self.raisable() {
            match self.raise_on(node, database, &wanted).await {
                Ok(true) => followers += 1,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(node = node.0, database, %error, "sequences could not be raised there");
                }
            }
        }
        // The writer is one of the majority.
        if followers < self.config.nodes.len() / 2 {
            return Ok(false);
        }
        for (name, value) in wanted {
            raised.insert((database.to_owned(), name), value);
        }
        Ok(true)
    }

    async fn raise_on(
        &self,
        node: NodeId,
        database: &str,
        wanted: &[(String, i64)],
    ) -> Result<bool, ControlError> {
        let client = self.keeper.client(&self.control, node, database).await?;
        // One that is not there comes with a unit that has not been applied yet.
        Ok(sequences::raise(&client, wanted).await? == 0)
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
        let sequences = &state.sequences;
        let write = sequences.confirmable(report.write, report.unit);
        if write == report.write {
            if sequences.is_half_used(write) {
                self.reading.notify_one();
            }
            return report;
        }
        self.reading.notify_one();
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
        self.reading.notified().await;
    }

    /// They are to be read.
    pub(super) fn want_reading(&self) {
        self.reading.notify_one();
    }

    /// The writer's log ended at `end`, then its sequences were read and followers raised.
    pub(super) fn sequences_raised(&self, end: Lsn, blocks: Vec<Block>) {
        let mut state = self.lock();
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
        for database in databases.map_err(self.failed(writer, doing))? {
            let mut greatest: BTreeMap<String, Sequence> = BTreeMap::new();
            for node in reached {
                // A node that lacks the database has nothing to say of it.
                let Ok(client) = self.client(node.node, &database).await else {
                    continue;
                };
                let found = sequences::read(&client).await;
                for one in found.map_err(self.failed(node.node, doing))? {
                    let known = greatest
                        .entry(one.name.clone())
                        .or_insert_with(|| one.clone());
                    if known.is_behind(one.last) {
                        *known = one;
                    }
                }
            }
            let wanted: Vec<(String, i64)> = greatest
                .into_values()
                .filter(|one| one.called && !one.cycles)
                .map(|one| (one.name, one.last))
                .collect();
            let client = self.client(writer, &database).await;
            let client = client.map_err(self.failed(writer, doing))?;
            let raised = sequences::raise(&client, &wanted).await;
            raised.map_err(self.failed(writer, doing))?;
        }
        Ok(())
    }
}

/// Makes the sequences of all followers stand exactly where those of a writer stand that hands out no more.
pub(super) async fn copy_all(steward: &Steward) -> Result<(), ControlError> {
    for (_, database) in steward.replicator.streams() {
        let keeper = &steward.keeper;
        let control = &steward.control;
        let client = keeper.client(control, steward.writer, &database).await?;
        let found = sequences::read(&client).await?;
        for node in steward.raisable() {
            let client = keeper.client(control, node, &database).await?;
            sequences::copy(&client, &found).await?;
        }
    }
    Ok(())
}
