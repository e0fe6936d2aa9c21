//! Index builds that a follower does beside the stream, so that no commit waits for them.
//!
//! The applier notes the build in `synapsedb.pending_indexes`, in the transaction of the unit that
//! brought it; a worker per follower and database does the builds in that order, CONCURRENTLY, and
//! crosses them off. A build that was cut short is begun anew. Guards promise 2: later DDL waits until
//! nothing is pending, so that names and definitions come out as on the writer.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::ddl::DdlRow;
use crate::ids::NodeId;
use crate::node::control::{Control, ControlError};
use crate::node::unit::{Change, Changes, Unit};
use crate::sql::aside::concurrent_form;
use crate::sql::pieces;

/// After a build failed, until it is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The settings that an index definition may depend on; others of the row do not matter here.
const SETTINGS: [&str; 8] = [
    "search_path",
    "TimeZone",
    "DateStyle",
    "IntervalStyle",
    "default_tablespace",
    "standard_conforming_strings",
    "lc_monetary",
    "transform_null_equals",
];

/// A unit that is one index build and nothing else: the command in its plain form, and its row.
pub fn build_of(unit: &Unit) -> Option<(String, DdlRow)> {
    let Changes::Memory(changes) = &unit.changes else {
        return None;
    };
    let [Change::Insert { table, new }] = changes.as_slice() else {
        return None;
    };
    if !unit.has_ddl {
        return None;
    }
    let row = DdlRow::from_tuple(table, new).ok()?;
    if row.tag != "CREATE INDEX" {
        return None;
    }
    let command = super::ddl::command(&row, row.query.as_deref()).ok()?;
    concurrent_form(&command)?;
    Some((command, row))
}

/// One follower's builds in one database.
#[derive(Debug)]
pub struct Aside {
    control: Control,
    node: NodeId,
    database: String,
    more: Notify,
    /// Builds that are pending; none until they have been counted.
    left: watch::Sender<Option<usize>>,
}

impl Aside {
    /// Counts nothing and builds nothing until [`Aside::run`].
    pub fn new(control: Control, node: NodeId, database: String) -> Arc<Self> {
        Arc::new(Self {
            control,
            node,
            database,
            more: Notify::new(),
            left: watch::Sender::new(None),
        })
    }

    /// A build has been noted durably.
    pub fn noted(&self) {
        self.left.send_replace(None);
        self.more.notify_one();
    }

    /// Until nothing is pending. Dropping it is harmless.
    pub async fn done(&self) {
        // The sender lives as long as `self`, so this can only end by success.
        let _ = self
            .left
            .subscribe()
            .wait_for(|left| *left == Some(0))
            .await;
    }

    /// Builds that are known to be pending.
    pub fn left(&self) -> usize {
        self.left.borrow().unwrap_or(0)
    }

    /// Works until dropped. A build under way is then ended by the server and begun anew next time.
    pub async fn run(&self) {
        loop {
            match self.work().await {
                Ok(()) => self.more.notified().await,
                Err(error) => {
                    tracing::warn!(node = self.node.0, database = %self.database, %error, "building an index failed; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Everything that is pending now.
    async fn work(&self) -> Result<(), ControlError> {
        let client = self.control.connect(self.node, &self.database).await?;
        loop {
            let rows = client
                .query(
                    "select id, command, settings from synapsedb.pending_indexes order by id",
                    &[],
                )
                .await?;
            self.left.send_replace(Some(rows.len()));
            let Some(row) = rows.first() else {
                return Ok(());
            };
            let (id, command, settings): (i64, String, Value) =
                (row.get(0), row.get(1), row.get(2));
            tracing::info!(node = self.node.0, database = %self.database, pending = rows.len(), "building an index beside the stream");
            drop_broken(&client).await?;
            self.build(&command, &settings).await?;
            client
                .execute(
                    "delete from synapsedb.pending_indexes where id = $1",
                    &[&id],
                )
                .await?;
        }
    }

    /// On a connection of its own, on which nothing else is said: under the row's search path any operator may
    /// be a user's, and this is a superuser.
    async fn build(&self, command: &str, settings: &Value) -> Result<(), ControlError> {
        let Some(concurrent) = concurrent_form(command) else {
            // Only index builds are noted here; what else stands there is not ours.
            tracing::error!(
                node = self.node.0,
                command,
                "a pending index build is none; it is left out"
            );
            return Ok(());
        };
        let client = self.control.connect(self.node, &self.database).await?;
        for name in SETTINGS {
            if let Some(value) = settings.get(name).and_then(Value::as_str) {
                client
                    .query_one(
                        "select pg_catalog.set_config($1, $2, false)",
                        &[&name, &value],
                    )
                    .await?;
            }
        }
        let built = match client.batch_execute(&concurrent).await {
            // A partitioned table, or an access method that can't.
            Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
                client.batch_execute(&pieces::plain_form(command)).await
            }
            built => built,
        };
        match built {
            // It was built before the proxy could cross it off.
            Err(error) if error.code() == Some(&SqlState::DUPLICATE_TABLE) => Ok(()),
            built => Ok(built?),
        }
    }
}

/// What a build that was cut short left behind, which nothing uses. The writer has no invalid index at
/// the place of a pending one, since a build that failed there is never logged.
async fn drop_broken(client: &Client) -> Result<(), ControlError> {
    let rows = client
        .query(
            "select i.indexrelid::regclass::text from pg_index i join pg_class c on c.oid = i.indexrelid
              where not i.indisvalid and c.relkind = 'i'
                and not exists (select from pg_stat_progress_create_index p where p.index_relid = i.indexrelid)
                and not exists (select from pg_inherits h where h.inhrelid = i.indexrelid)",
            &[],
        )
        .await?;
    for row in rows {
        let name: String = row.get(0);
        client.batch_execute(&format!("drop index {name}")).await?;
    }
    Ok(())
}
