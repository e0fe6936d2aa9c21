//! A planned change of writer: what is open comes to its end, the next writer has everything, the old one leaves office.
//!
//! Guards promises 1 and 2, and that no client notices. It gives up, and the writer goes on, where transactions do not
//! end or the chosen node does not get level in time; once the old writer has left office there is no way back, and
//! whoever has everything follows it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join, try_join_all};

use super::office::State;
use super::probes::Standing;
use super::reigns::Cluster;
use super::sequences;
use super::steward::Steward;
use super::view::{Status, View};
use crate::ids::{Lsn, NodeId, UnitId};
use crate::node::canary::Canary;
use crate::node::control::{self, ControlError};
use crate::node::office;

/// For transactions under way to end.
const DRAIN: Duration = Duration::from_secs(10);
/// For the chosen node to have everything then.
const LEVEL: Duration = Duration::from_secs(5);
/// For the old writer to leave office, and for all to be told.
const LEAVE: Duration = Duration::from_secs(2);
/// For an earlier change to come to its end.
const READY: Duration = Duration::from_secs(2);
/// For the chosen node's slots to be moved ahead of it.
const HASTEN: Duration = Duration::from_secs(10);
/// For connections to be opened ahead of it, and those of so many databases at most.
const PREPARE: Duration = Duration::from_secs(2);
const PREPARED_MAX: usize = 8;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// Why a node did not become the writer.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The proxy stops.
    #[error("the proxy is stopping")]
    Stopping,
    /// It can't be.
    #[error("node {node} is {status}, and only a node that is in sync can become the writer")]
    Unfit {
        /// Its name.
        node: String,
        /// Its state.
        status: &'static str,
    },
    /// Transactions go on.
    #[error("transactions on the writer did not end within {DRAIN:?}; try again, or end them")]
    Busy,
    /// It did not get level.
    #[error("node {0} did not have everything within {LEVEL:?}; the writer goes on")]
    Behind(String),
    /// It does not answer any more.
    #[error("node {0} does not answer any more; the writer goes on")]
    Gone(String),
    /// There is none to hand over.
    #[error("the writer was lost in this moment; the log says who follows")]
    Lost,
    /// Something failed.
    #[error("{0}; the writer goes on")]
    Failed(#[from] ControlError),
    /// Somebody else became the writer.
    #[error("node {0} became the writer instead; the log says why")]
    Other(String),
}

fn is_in_sync(steward: &Steward, node: NodeId) -> bool {
    steward.view().nodes[node.0].status == Status::InSync
}

/// The chosen node answers still.
fn stays(steward: &Steward, node: NodeId) -> Result<(), HandoverError> {
    let view = steward.view();
    let entry = &view.nodes[node.0];
    if entry.is_there() {
        Ok(())
    } else {
        Err(HandoverError::Gone(entry.name.clone()))
    }
}

impl Cluster {
    /// Hands over to `node`.
    pub(super) async fn hand_over(
        &self,
        steward: &Arc<Steward>,
        node: NodeId,
    ) -> Result<(), HandoverError> {
        if node == steward.writer() {
            return Ok(());
        }
        let mut standing = steward.standing.subscribe();
        // Right behind another change everybody is a moment behind.
        let ready = async {
            while *standing.borrow_and_update() == Standing::Beginning || !is_in_sync(steward, node)
            {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(READY, ready).await;
        let view = steward.view();
        let entry = &view.nodes[node.0];
        if entry.status != Status::InSync {
            return Err(HandoverError::Unfit {
                node: entry.name.clone(),
                status: entry.status.name(),
            });
        }
        let ahead = async {
            // Either is of use, not of need.
            let _ = tokio::time::timeout(HASTEN, steward.hasten_slots(node)).await;
            self.prepare(steward, node).await;
        };
        tokio::select! {
            () = ahead => {}
            // The sender lives as long as the steward.
            _ = standing.wait_for(|standing| *standing == Standing::Lost) => {}
        }
        if *standing.borrow() != Standing::Serving {
            self.common.spares.clear();
            return Err(HandoverError::Lost);
        }
        self.tell(steward, State::Closing);
        let closed = tokio::select! {
            closed = self.close(steward, node) => closed,
            // The sender lives as long as the steward.
            _ = standing.wait_for(|standing| *standing == Standing::Lost) => Err(HandoverError::Lost),
        };
        let Err(error) = closed else {
            self.follow(steward, Some(node)).await;
            return self.became(node, &view);
        };
        if steward.cancel.is_cancelled() {
            // There is no way back: whoever has everything goes on, the old writer perhaps.
            tracing::warn!(%error, "the writer could not be changed in order");
            self.follow(steward, None).await;
            self.common.spares.clear();
            return self.became(node, &view);
        }
        let serves = *steward.standing.borrow() == Standing::Serving;
        self.tell(steward, if serves { State::Open } else { State::Vacant });
        self.common.spares.clear();
        Err(error)
    }

    /// Whether this node is the writer now.
    fn became(&self, node: NodeId, view: &View) -> Result<(), HandoverError> {
        let writer = self.steward().writer();
        if writer == node {
            return Ok(());
        }
        Err(HandoverError::Other(view.nodes[writer.0].name.clone()))
    }

    /// Opens what the change is going to need, while clients are still served.
    async fn prepare(&self, steward: &Arc<Steward>, next: NodeId) {
        let streams = steward.replicator.streams().into_iter();
        let databases: Vec<String> = streams.map(|(_, name)| name).take(PREPARED_MAX).collect();
        let nodes = (0..self.common.config.nodes.len()).map(NodeId);
        let places: Vec<(NodeId, &String)> = nodes
            .flat_map(|node| databases.iter().map(move |name| (node, name)))
            .collect();
        let (control, keeper) = (&self.common.control, &self.common.keeper);
        let clients = places
            .iter()
            .map(|(node, name)| keeper.client(control, *node, name));
        let (mut streams, mut appliers) = (Vec::new(), Vec::new());
        for (node, name) in &places {
            if *node == next {
                streams.push(steward.stream_settings(next, name));
            } else {
                appliers.push(steward.applier_settings(*node, name));
            }
        }
        let spares = &self.common.spares;
        let opened = async {
            // Who has none opens his own.
            drop(join_all(clients).await);
            spares.prepare(&streams, &appliers).await;
            if let Ok(canary) = Canary::open(control, next).await {
                spares.put_canary(control.address(next), canary);
            }
        };
        let _ = tokio::time::timeout(PREPARE, opened).await;
    }

    /// Until the old writer has left office.
    async fn close(&self, steward: &Arc<Steward>, node: NodeId) -> Result<(), HandoverError> {
        self.drain(steward, node).await?;
        tracing::debug!("handing over: nothing is under way");
        let end = steward
            .writers_end()
            .await
            .ok_or(ControlError::Answer("where its log ends"))?;
        let began = Instant::now();
        while steward.replicator.place(node) < end {
            stays(steward, node)?;
            if began.elapsed() > LEVEL {
                let name = steward.view().nodes[node.0].name.clone();
                return Err(HandoverError::Behind(name));
            }
            tokio::time::sleep(LOOK).await;
        }
        self.tell(steward, State::Vacant);
        tracing::debug!("handing over: the next writer has everything");
        steward.abdicate().await;
        tracing::debug!("handing over: streams and appliers have ended");
        let leave = try_join(sequences::copy_all(steward), self.leave(steward, node, end));
        // A node that stands still holds it up for a moment only: then whoever has everything follows.
        let left = tokio::time::timeout(LEAVE, leave).await;
        left.unwrap_or(Err(ControlError::Slow))?;
        tracing::debug!("handing over: sequences are copied, and the writer has left office");
        Ok(())
    }

    /// Until nothing is under way on the writer. Nothing new begins there by now.
    async fn drain(&self, steward: &Arc<Steward>, node: NodeId) -> Result<(), HandoverError> {
        let began = Instant::now();
        let (keeper, control) = (&self.common.keeper, &self.common.control);
        let client = keeper.client(control, steward.writer(), &control.database);
        let client = client.await?;
        // Whoever writes there past the proxy is let come to his end too.
        let sql = "select count(*) from pg_stat_activity
                    where backend_type = 'client backend' and backend_xid is not null and pid <> pg_backend_pid()";
        while began.elapsed() < DRAIN {
            stays(steward, node)?;
            if (self.under_way)() == 0 {
                let busy: i64 = client
                    .query_one(sql, &[])
                    .await
                    .map_err(ControlError::from)?
                    .get(0);
                if busy == 0 {
                    return Ok(());
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(HandoverError::Busy)
    }

    /// The old writer notes that it has left office, and that it has what the next one has of its term.
    async fn leave(
        &self,
        steward: &Arc<Steward>,
        next: NodeId,
        end: Lsn,
    ) -> Result<(), ControlError> {
        let (control, term, writer) = (&self.common.control, steward.term, steward.writer());
        let keeper = &self.common.keeper;
        let streams = steward.replicator.streams().into_iter();
        let noting = streams.map(async |(_, database)| {
            let theirs = keeper.client(control, next, &database).await?;
            let places = control::applied_places(&theirs, &database).await?;
            let Some(place) = places.0.get(&term).filter(|lsn| lsn.0 > 0) else {
                return Ok(());
            };
            let ours = keeper.client(control, writer, &database).await?;
            let place = UnitId { term, lsn: *place };
            control::set_place(&ours, &database, place).await
        });
        try_join_all(noting).await?;
        let client = keeper.client(control, writer, &control.database).await?;
        office::leave(&client, term, end).await
    }
}
