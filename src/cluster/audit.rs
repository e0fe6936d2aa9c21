//! The check that goes round again and again: whether each node still has what the proxy put there, and the same
//! roles and memberships as the writer.
//!
//! Guards promise 2 where nobody tells: what someone drops straight on a node, and roles that a function made on
//! the writer, which no event trigger sees. Missing roles are given to the follower; all else is only said. A
//! difference counts when it was there twice, each time on a follower that had all the writer had before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::alike;
use super::steward::Steward;
use super::view::Status;
use crate::ids::{Lsn, NodeId};
use crate::node::control::{self, ControlError};
use crate::node::schema::ROLE_COMMANDS;

/// Between rounds; where one takes long, so many times as long as it took, within bounds: a role that only this
/// finds is wanted soon.
const PAUSE: Duration = Duration::from_secs(3);
const REST: u32 = 20;
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// For the followers to have what the writer has.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a database still has the triggers, switched on, and the publication of all tables.
const OWN_THINGS: &str = "select to_regnamespace('synapsedb') is not null \
    and (select count(*) from pg_event_trigger e join pg_proc p on p.oid = e.evtfoid \
          where e.evtname like '!synapsedb%' and e.evtenabled = case when e.evtname like '%replica' then 'A' else 'O' end) = 7 \
    and exists (select from pg_publication where pubname = 'synapsedb' and puballtables and pubinsert and pubupdate \
                   and pubdelete and pubtruncate)";

const UNLOGGED: &str = "set log_statement = none; set log_min_error_statement = panic; \
    set log_min_duration_statement = -1; set log_duration = off";

/// What a follower has otherwise than the writer: lines that only one of them has.
type Differences = BTreeSet<String>;

impl Steward {
    /// Goes round until the proxy stops.
    pub(super) async fn audit(&self) {
        let mut known = BTreeMap::new();
        loop {
            let began = Instant::now();
            let round = async {
                self.look_for_own_things().await;
                self.look_for_differences(&mut known).await;
            };
            if self.cancel.run_until_cancelled(round).await.is_none() {
                return;
            }
            let pause = (began.elapsed() * REST).clamp(PAUSE, PAUSE_MAX);
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Nodes that can be asked.
    fn present(&self) -> Vec<NodeId> {
        let view = self.view();
        let there = |status| !matches!(status, Status::Down | Status::Fenced);
        let nodes = view.nodes.iter().filter(|node| there(node.status));
        nodes.map(|node| node.id).collect()
    }

    async fn look_for_own_things(&self) {
        let mut missing = Vec::new();
        for database in &self.view().databases {
            for node in self.present() {
                // One that is being dropped, or a node that goes, says nothing.
                let Ok(client) = self.control.connect(node, database).await else {
                    continue;
                };
                if let Ok(row) = client.query_one(OWN_THINGS, &[]).await
                    && !row.get::<_, bool>(0)
                    && self.replicates(database)
                {
                    let name = &self.config.nodes[node.0].name;
                    missing.push(format!(
                        "{name} lacks SynapseDB's schema, publication or event triggers in database {database}"
                    ));
                }
            }
        }
        self.note_missing(missing.first());
    }

    async fn look_for_differences(&self, known: &mut BTreeMap<NodeId, Differences>) {
        let Ok((ours, commands, at)) = self.ask_writer().await else {
            return;
        };
        if !self.everyone_has(at).await {
            return;
        }
        for node in self.present().into_iter().filter(|n| *n != self.writer()) {
            let Ok(client) = self.control.connect(node, &self.control.database).await else {
                continue;
            };
            let Ok(theirs) = alike::lines(&client, alike::GLOBALS).await else {
                continue;
            };
            let now: Differences = ours.symmetric_difference(&theirs).cloned().collect();
            let before = known.insert(node, now.clone()).unwrap_or_default();
            let lasting: Vec<&String> = now.intersection(&before).collect();
            if lasting.is_empty() {
                continue;
            }
            self.mend_roles(node, &client, &lasting, &commands).await;
        }
    }

    /// Gives a follower the roles that it lacks, and says what differed.
    async fn mend_roles(
        &self,
        node: NodeId,
        client: &Client,
        lasting: &[&String],
        commands: &BTreeMap<String, (usize, String)>,
    ) {
        let name = &self.config.nodes[node.0].name;
        let mut due: Vec<_> = lasting
            .iter()
            .filter_map(|line| commands.get(*line))
            .collect();
        due.sort();
        let mut mended = 0;
        // The texts hold verifiers: neither here nor by the server are they logged.
        if client.batch_execute(UNLOGGED).await.is_err() {
            return;
        }
        for (_, command) in due {
            mended += usize::from(client.batch_execute(command).await.is_ok());
        }
        let what: BTreeSet<String> = lasting.iter().map(|line| subject(line)).collect();
        let what = what.into_iter().take(5).collect::<Vec<_>>().join(", ");
        tracing::warn!(
            node = %name, what, mended, differences = lasting.len(),
            "roles, databases or their settings differed from the writer's"
        );
    }

    /// Whether all that the writer had written there comes to every node soon.
    async fn everyone_has(&self, place: Lsn) -> bool {
        let there = async {
            while self.everywhere() < place {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(PATIENCE, there).await.is_ok()
    }

    /// The writer's lines, the commands that make some of them, and a place of its log that is behind both.
    async fn ask_writer(
        &self,
    ) -> Result<(BTreeSet<String>, BTreeMap<String, (usize, String)>, Lsn), ControlError> {
        let client = self
            .control
            .connect(self.writer(), &self.control.database)
            .await?;
        let lines = alike::lines(&client, alike::GLOBALS).await?;
        let mut commands = BTreeMap::new();
        let rows = control::rows(&client, ROLE_COMMANDS).await?;
        for (at, row) in rows.into_iter().enumerate() {
            if let [Some(kind), Some(identity), Some(command)] = row.as_slice() {
                // What follows is a JSON object.
                let begins = format!("{kind} {identity} {{");
                let line = lines.iter().find(|line| line.starts_with(&begins));
                line.map(|line| commands.insert(line.clone(), (at, command.clone())));
            }
        }
        let place = control::rows(&client, "select pg_current_wal_insert_lsn()").await?;
        let place = place.into_iter().flatten().flatten().next();
        let place = place.and_then(|text| text.parse().ok());
        Ok((lines, commands, place.unwrap_or(Lsn(u64::MAX))))
    }
}

/// The first words of a line, which hold no secret.
fn subject(line: &str) -> String {
    let words: Vec<_> = line.split_whitespace().take(2).collect();
    words.join(" ")
}
