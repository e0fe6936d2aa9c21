//! Who is to write, once nodes have been reached: an epoch promised and recorded on a majority, an office taken.
//!
//! The I/O around `engine::recovery`. Guards promises 1 and 2 over the death of everything: facts are read only on nodes
//! that have promised this run's epoch and where whatever an older run left at work has ended, and no office is taken
//! before a majority, the new writer in it, has recorded who takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::{join_all, try_join, try_join_all};

use super::bring_up::{BringUp, BringUpError, Reached};
use super::meeting::{NEW, STRAYS, moved};
use crate::engine::council::words::Part;
use crate::engine::recovery::{Facts, Plan, Record, decide_together, next_epoch};
use crate::ids::{Epoch, Lsn, NodeId};
use crate::node::control::{self, State};
use crate::node::office::{self, Offices};

/// An office that has been taken, or goes on.
pub(super) struct Office {
    /// Recorded on a majority.
    pub(super) epoch: Epoch,
    /// When the writer took office.
    pub(super) term: Epoch,
    /// Who.
    pub(super) writer: NodeId,
    /// All terms in which it was the writer, with the end of its log at their begin.
    pub(super) starts: BTreeMap<Epoch, Lsn>,
    /// Nodes that differ, and why.
    pub(super) outcast: BTreeMap<NodeId, String>,
}

/// How often, and how far apart, it is looked whether what was ended is gone.
const ENDING_LOOKS: usize = 1000;
const LOOK: Duration = Duration::from_millis(5);
const RECORDED: &str = "it was found wrong before";

impl BringUp<'_> {
    /// The first office of a cluster that has just been made.
    pub(super) async fn first_office(
        &self,
        reached: &[Reached],
        state: State,
    ) -> Result<Office, BringUpError> {
        let epoch = Epoch(state.epoch.0 + 1);
        let writer = self.node_called(&state.writer)?;
        let state = State { epoch, ..state };
        self.record(reached, &state, writer).await?;
        let offices = self.take(reached, writer, state.term).await?;
        Ok(Office {
            epoch,
            term: state.term,
            writer,
            starts: offices.starts,
            outcast: BTreeMap::new(),
        })
    }

    /// The office that goes on, or another that is taken.
    pub(super) async fn office(
        &self,
        reached: &[Reached],
        state: State,
    ) -> Result<Office, BringUpError> {
        let known: BTreeSet<NodeId> = reached
            .iter()
            .filter(|r| r.state.is_some())
            .map(|r| r.node)
            .collect();
        let epoch = self.promise(reached, &known).await?;
        let fenced: BTreeSet<NodeId> = (0..self.config.nodes.len())
            .map(NodeId)
            .filter(|node| state.fenced.contains(&self.name(*node)))
            .collect();
        let facts = self.facts(reached, &known, &state).await?;
        let nodes = self.config.nodes.len();
        let plan = decide_together(nodes, epoch, &facts, &fenced, self.how.wanted);
        let (record, parts, elected) = match plan {
            Plan::GoOn { record, parts, .. } => (record, parts, false),
            Plan::Elect { record, parts } => (record, parts, true),
            Plan::Wait => return Err(self.nobody(&facts)),
        };
        let differs = parts.iter().filter(|(_, part)| **part == Part::Fenced);
        let strangers = reached.iter().filter(|r| !known.contains(&r.node));
        let outcast: BTreeMap<NodeId, String> = differs
            .map(|(node, _)| {
                (
                    *node,
                    if fenced.contains(node) {
                        RECORDED
                    } else {
                        STRAYS
                    },
                )
            })
            .chain(strangers.map(|r| (r.node, NEW)))
            .map(|(node, why)| (node, why.to_owned()))
            .collect();
        let state = State {
            epoch,
            term: record.term,
            writer: self.name(record.writer),
            fenced: outcast.keys().map(|node| self.name(*node)).collect(),
            cluster: state.cluster,
        };
        let level = async {
            if elected {
                self.level_sequences(reached, record.writer).await?;
            }
            Ok(())
        };
        // Sequences only ever go ahead by it, so it does no harm where nobody takes office after all.
        try_join(self.record(reached, &state, record.writer), level).await?;
        let offices = self.take(reached, record.writer, record.term).await?;
        if elected {
            let (writer, term) = (&state.writer, record.term);
            if self.how.wanted == Some(record.writer) {
                tracing::info!(%writer, %term, "another node is the writer from now on, as was asked");
            } else {
                tracing::warn!(%writer, %term, "another node is the writer from now on");
            }
        }
        Ok(Office {
            epoch,
            term: record.term,
            writer: record.writer,
            starts: offices.starts,
            outcast,
        })
    }

    pub(super) fn node_called(&self, name: &str) -> Result<NodeId, BringUpError> {
        let at = self.config.nodes.iter().position(|node| node.name == name);
        at.map(NodeId).ok_or_else(|| BringUpError::Unfit {
            node: name.to_owned(),
            problem: "it is the cluster's writer but is not configured".to_owned(),
            mend: "Name it in the configuration again".to_owned(),
        })
    }

    /// A new epoch that every reached node has promised to, with nothing older at work there any more.
    async fn promise(
        &self,
        reached: &[Reached],
        known: &BTreeSet<NodeId>,
    ) -> Result<Epoch, BringUpError> {
        let members = || reached.iter().filter(|r| known.contains(&r.node));
        let heard = try_join_all(members().map(async |node| {
            let promised = office::promised(&node.client).await;
            promised.map_err(self.failed(node.node, "reading its promise"))
        }));
        let epoch = next_epoch(&heard.await?, Epoch(0));
        try_join_all(members().map(async |node| {
            let promised = office::promise(&node.client, epoch).await;
            if !promised.map_err(self.failed(node.node, "promising an epoch"))? {
                return Err(self.superseded(node.node));
            }
            self.end_older(node).await
        }))
        .await?;
        Ok(epoch)
    }

    fn superseded(&self, node: NodeId) -> BringUpError {
        BringUpError::Unfit {
            node: self.name(node),
            problem: "another proxy has taken it over in this moment".to_owned(),
            mend: "Only one proxy may run a cluster; stop the other one".to_owned(),
        }
    }

    async fn end_older(&self, node: &Reached) -> Result<(), BringUpError> {
        let mut left = 0;
        for _ in 0..ENDING_LOOKS {
            let own = self.how.spares.appliers_on(self.control.address(node.node));
            let older = office::end_older(&node.client, &own).await;
            left = older.map_err(self.failed(node.node, "ending what an older run left there"))?;
            if left == 0 {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(BringUpError::Unfit {
            node: self.name(node.node),
            problem: format!("{left} of an older run's processes there do not end"),
            mend: "Look at pg_stat_activity for what they wait for".to_owned(),
        })
    }

    /// What each node of the cluster has, for each database that all of them have.
    async fn facts(
        &self,
        reached: &[Reached],
        known: &BTreeSet<NodeId>,
        state: &State,
    ) -> Result<Vec<BTreeMap<NodeId, Facts>>, BringUpError> {
        let members = reached.iter().filter(|r| known.contains(&r.node));
        let found = try_join_all(members.map(|node| self.facts_of(node, state))).await?;
        let members = found.len();
        let mut by_database: BTreeMap<String, BTreeMap<NodeId, Facts>> = BTreeMap::new();
        for (node, database, facts) in found.into_iter().flatten() {
            by_database.entry(database).or_default().insert(node, facts);
        }
        // One that was made or dropped while a node was away is not everywhere yet.
        let everywhere = |facts: &BTreeMap<NodeId, Facts>| facts.len() == members;
        Ok(by_database.into_values().filter(everywhere).collect())
    }

    async fn facts_of(
        &self,
        node: &Reached,
        state: &State,
    ) -> Result<Vec<(NodeId, String, Facts)>, BringUpError> {
        let general = self.general_facts(node, state).await?;
        let databases = control::databases(&node.client).await;
        let mut found = Vec::new();
        for database in databases.map_err(self.failed(node.node, "listing databases"))? {
            let client = self.client(node.node, &database).await;
            let client = client.map_err(self.failed(node.node, "connecting"))?;
            let places = control::applied_places(&client, &database).await;
            let places = places.map_err(self.failed(node.node, "reading its place"))?;
            let facts = Facts {
                places: moved(places),
                ..general.clone()
            };
            found.push((node.node, database, facts));
        }
        Ok(found)
    }

    async fn general_facts(&self, node: &Reached, known: &State) -> Result<Facts, BringUpError> {
        let doing = "reading what it was";
        let mut offices = office::offices(&node.client)
            .await
            .map_err(self.failed(node.node, doing))?;
        let end = office::end_of_log(&node.client)
            .await
            .map_err(self.failed(node.node, doing))?;
        let state = node.state.as_ref().unwrap_or(known);
        if offices.starts.is_empty() && known.writer == self.name(node.node) {
            // Set up before offices were kept.
            offices.held.insert(known.term, Lsn::default());
        }
        Ok(Facts {
            promised: state.epoch,
            record: Record {
                epoch: state.epoch,
                term: state.term,
                writer: self.node_called(&state.writer)?,
            },
            offices: offices.held,
            places: BTreeMap::new(),
            end,
            copies: BTreeSet::new(),
        })
    }

    fn nobody(&self, facts: &[BTreeMap<NodeId, Facts>]) -> BringUpError {
        let reachable = facts.first().map_or(0, BTreeMap::len);
        for (database, facts) in facts.iter().enumerate() {
            for (node, facts) in facts {
                let history = facts.history();
                tracing::warn!(node = %self.name(*node), database, %history, "what it has");
            }
        }
        BringUpError::Nobody {
            reachable,
            nodes: self.config.nodes.len(),
        }
    }

    /// Who writes, on a majority with the writer in it, or nothing goes on.
    async fn record(
        &self,
        reached: &[Reached],
        state: &State,
        writer: NodeId,
    ) -> Result<(), BringUpError> {
        let mut written = BTreeSet::new();
        let writing = reached
            .iter()
            .map(|node| control::write_state(&node.client, state));
        let outcomes = join_all(writing).await;
        for (node, ok) in reached.iter().zip(outcomes) {
            if ok.map_err(self.failed(node.node, "recording the epoch"))? {
                written.insert(node.node);
            }
        }
        let nodes = self.config.nodes.len();
        if written.len() > nodes / 2 && written.contains(&writer) {
            return Ok(());
        }
        Err(BringUpError::NoMajority {
            reachable: written.len(),
            nodes,
        })
    }

    async fn take(
        &self,
        reached: &[Reached],
        writer: NodeId,
        term: Epoch,
    ) -> Result<Offices, BringUpError> {
        let Some(node) = reached.iter().find(|r| r.node == writer) else {
            return Err(self.unreachable(writer, control::ControlError::Timeout));
        };
        let doing = "taking office";
        let taken = office::take(&node.client, term).await;
        taken.map_err(self.failed(writer, doing))?;
        let offices = office::offices(&node.client).await;
        offices.map_err(self.failed(writer, doing))
    }
}
