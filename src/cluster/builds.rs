//! Which indexes the writer is building at this moment, so that the followers begin theirs at the same time.
//!
//! REPLICATION rule 23: nobody should wait twice as long for an index because there are more nodes. What is seen here
//! is a hint and no more (`node/apply/early.rs`): builds of less than a second pass unseen, and what was built
//! counts only when the writer's command has come in the stream.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Row};

use super::steward::Steward;
use crate::node::apply::early::Early;
use crate::node::control::ControlError;
use crate::sql::aside::lone_build;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// From the end of a build on the writer until its command must have come.
const GRACE: Duration = Duration::from_secs(10);

/// A text that fills the view's column may have been cut off. A build that is not the first statement of its
/// transaction may stand behind DDL that no follower has yet.
const BUILDS: &str = "select p.pid::text || ' ' || a.query_start::text, p.datname::text, a.query, a.usename::text, p.relid
      from pg_stat_progress_create_index p join pg_stat_activity a on a.pid = p.pid
     where p.command in ('CREATE INDEX', 'CREATE INDEX CONCURRENTLY') and a.backend_type = 'client backend' and a.xact_start = a.query_start
       and octet_length(a.query) < pg_size_bytes(current_setting('track_activity_query_size')) - 4";

/// Only what others see too, else no follower has it.
const TABLE: &str = "select n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.oid = $1 and c.relkind in ('r', 'm') and c.relpersistence = 'p'";

/// A build, and for each follower whether it has taken it: one that is at another build may take it later.
struct Offered {
    early: Arc<Early>,
    taken: Vec<bool>,
}

/// Builds that were offered to the followers.
#[derive(Default)]
struct Known {
    /// By backend; none where it is no build that a follower could begin.
    running: BTreeMap<String, Option<Offered>>,
    over: Vec<(Instant, Arc<Early>)>,
}

impl Steward {
    /// Looks until the proxy stops.
    pub(super) async fn watch_builds(&self) {
        let mut known = Known::default();
        let mut client = None;
        loop {
            let look = async {
                if let Err(error) = self.look_at_builds(&mut client, &mut known).await {
                    tracing::debug!(%error, "the writer does not say what it builds");
                    client = None;
                }
                self.withdraw_late(&mut known);
                tokio::time::sleep(LOOK).await;
            };
            if self.cancel.run_until_cancelled(look).await.is_none() {
                return;
            }
        }
    }

    async fn look_at_builds(
        &self,
        client: &mut Option<Client>,
        known: &mut Known,
    ) -> Result<(), ControlError> {
        let client = self.on_writer(client).await?;
        let rows = client.query(BUILDS, &[]).await?;
        let now: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        let (still, over) = std::mem::take(&mut known.running)
            .into_iter()
            .partition(|(backend, _)| now.contains(backend));
        known.running = still;
        let over: BTreeMap<String, Option<Offered>> = over;
        let ended = Instant::now();
        let over = over.into_values().flatten();
        known
            .over
            .extend(over.map(|offered| (ended, offered.early)));
        for row in rows {
            let offered = match known.running.entry(row.get(0)) {
                Entry::Occupied(offered) => offered.into_mut(),
                Entry::Vacant(backend) => {
                    let early = self.early_of(&row).await?;
                    let new = early.map(|early| Offered {
                        early,
                        taken: Vec::new(),
                    });
                    backend.insert(new)
                }
            };
            if let Some(offered) = offered {
                self.offer(offered);
            }
        }
        Ok(())
    }

    /// What a follower needs to know of a build, if it is one that a follower can begin.
    async fn early_of(&self, row: &Row) -> Result<Option<Arc<Early>>, ControlError> {
        let (database, text): (String, &str) = (row.get(1), row.get(2));
        let Some((command, index)) = lone_build(text) else {
            return Ok(None);
        };
        let client = self.control.connect(self.writer(), &database).await?;
        let table: u32 = row.get(4);
        let found = client.query_opt(TABLE, &[&table]).await?;
        Ok(found.map(|found| {
            Arc::new(Early {
                writer: self.writer(),
                database,
                command,
                role: row.get(3),
                schema: found.get(0),
                table: found.get(1),
                index,
            })
        }))
    }

    fn offer(&self, build: &mut Offered) {
        let asides = self.replicator.asides(&build.early.database);
        build.taken.resize(asides.len(), false);
        for (aside, taken) in asides.iter().zip(&mut build.taken) {
            *taken = *taken || aside.head().offer(&build.early);
        }
    }

    /// What the writer ended a while ago and did not log has failed there.
    fn withdraw_late(&self, known: &mut Known) {
        known.over.retain(|(ended, early)| {
            let wait = ended.elapsed() < GRACE;
            if !wait {
                for aside in self.replicator.asides(&early.database) {
                    aside.withdraw(early);
                }
            }
            wait
        });
    }
}
