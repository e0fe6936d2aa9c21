//! Keeps the followers' slots close behind what everybody has, so that any of them can be the writer.
//!
//! The I/O around `engine::slots` (REPLICATION rule 26). Guards promise 2 over a change of writer: a slot moves only past
//! what every node that is owed it has durable. That costs a follower the decoding of its own log once more, so it
//! is done now and then, and not where nothing was written.

use std::collections::BTreeMap;
use std::time::Duration;

use super::steward::Steward;
use super::view::Status;
use crate::engine::slots::Slots;
use crate::ids::{Lsn, NodeId, UnitId, slot_name};
use crate::node::control::{self, ControlError};
use crate::node::office;

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(2);
/// For everybody to have what a node's slots are to forget: so often, so far apart.
const TRIES: u32 = 50;
const LOOK: Duration = Duration::from_millis(10);
/// The first major version in which a server notes on demand which transactions run.
const MARKS_SINCE: u32 = 16;
/// For one node's part in a round.
const PATIENCE: Duration = Duration::from_secs(10);

impl Steward {
    /// Goes round until the steward's time is over.
    pub(super) async fn mind_slots(&self) {
        let mut slots: BTreeMap<NodeId, Slots> = BTreeMap::new();
        let round = async {
            loop {
                tokio::time::sleep(ROUND).await;
                for node in self.followers_in_sync() {
                    let slots = slots.entry(node).or_default();
                    let moved = tokio::time::timeout(PATIENCE, self.move_slots(node, slots)).await;
                    if let Ok(Err(error)) = moved {
                        tracing::debug!(node = node.0, %error, "a follower's slots could not be moved");
                    }
                }
            }
        };
        self.cancel.run_until_cancelled(round).await;
    }

    fn followers_in_sync(&self) -> Vec<NodeId> {
        let view = self.view();
        let follows =
            |node: &&super::view::NodeView| node.id != self.writer && node.status == Status::InSync;
        view.nodes.iter().filter(follows).map(|n| n.id).collect()
    }

    /// Moves a follower's slots to where an earlier round found its log's end, if everybody has what was handed to it by
    /// then; else, and afterwards, notes where it ends now.
    async fn move_slots(&self, node: NodeId, slots: &mut Slots) -> Result<bool, ControlError> {
        let unit = |lsn: Lsn| UnitId {
            term: self.term,
            lsn,
        };
        let local = slots.movable(node, unit(self.everywhere()));
        if let Some(local) = local {
            for (_, database) in self.replicator.streams() {
                let client = self.control.connect(node, &database).await?;
                control::advance_slot(&client, &slot_name(&database), local).await?;
            }
        }
        if slots.wants_sample(node) {
            let database = &self.control.database;
            let client = self.control.connect(node, database).await?;
            if self.version >= MARKS_SINCE {
                // Where a slot may be read from later: else all the log since the last one is read again, for nothing.
                control::log_running(&client).await?;
            }
            let local = office::end_of_log(&client).await?;
            // Read afterwards: whatever stands before that end had been handed out by now.
            slots.sampled(node, local, unit(self.replicator.handed()));
        }
        Ok(local.is_some())
    }

    /// Moves a node's slots as close as may be now: it is to be the writer, and its log is read from there.
    pub(super) async fn hasten_slots(&self, node: NodeId) {
        let mut slots = Slots::default();
        for _ in 0..TRIES {
            match self.move_slots(node, &mut slots).await {
                Ok(false) => tokio::time::sleep(LOOK).await,
                Ok(true) => return,
                Err(error) => {
                    tracing::debug!(node = node.0, %error, "a follower's slots could not be moved");
                    return;
                }
            }
        }
    }
}
