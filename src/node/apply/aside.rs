//! Index builds that a follower does beside the stream, so that no commit waits for them.
//!
//! The applier notes the build in `synapsedb.pending_indexes`, in the transaction of the unit that
//! brought it; a worker per follower and database does the builds in that order, CONCURRENTLY, and
//! crosses them off. A build that was cut short is begun anew. Guards promise 2: later DDL waits until
//! nothing is pending, so that names and definitions come out as on the writer. One build may be begun while the
//! writer is at it (`early.rs`).
//!
//! CONCURRENTLY is refused inside of functions, so the session is a superuser's that took the role of whoever made the
//! index, and code of a user's could give that role back. It can't where it runs as the table's owner, as all does
//! but what the server evaluates while it reads the command. So only commands are noted that leave nothing to
//! evaluate then (`sql/aside.rs`); the others are run in their turn like all DDL, by their role's runner.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};

use super::ddl::DdlRow;
use super::early::{self, Early, Head, Task};
use super::error::ApplyError;
use crate::ids::NodeId;
use crate::node::control::{Control, ControlError, secret_hash};
use crate::node::unit::{Change, Changes, Unit};
use crate::sql::aside::concurrent_form;
use crate::sql::pieces;

/// After a build failed, until it is tried again.
/// Before it looks for what is pending, where nobody tells it to.
const AT_LEISURE: Duration = Duration::from_millis(400);
const RETRY: Duration = Duration::from_secs(5);

/// So often the writer is asked for an index whose command has come, and so far apart: its commit is about to show.
const LOOKS: u32 = 50;
const LOOK: Duration = Duration::from_millis(200);

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
pub fn build_of(unit: &Unit) -> Option<(Vec<u8>, DdlRow)> {
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
    let command = super::ddl::command(&row, row.query.as_ref()).ok()?;
    // What can't be read as text here could not be read back by the worker either.
    concurrent_form(std::str::from_utf8(&command).ok()?)?;
    std::str::from_utf8(&row.settings.bytes()).ok()?;
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
    /// Why the first of them can't be built.
    failing: watch::Sender<Option<String>>,
    /// What the writer is still building.
    head: Head,
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
            failing: watch::Sender::new(None),
            head: Head::default(),
        })
    }

    /// The build of a unit has been noted durably.
    pub fn noted(&self, command: &str) {
        self.left.send_replace(None);
        self.head.confirm(command);
        self.more.notify_one();
    }

    /// A build that the writer has begun, which may be begun here too once the applier knows of it.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Notes the offered build durably. From here on the applier must take all tables for such as may get an
    /// index at any time; it says so by [`Aside::begin_early`]. False: it can't be begun.
    pub async fn note_early(&self, early: &Early) -> Result<bool, ControlError> {
        let client = self.control.connect(self.node, &self.database).await?;
        early::note(&client, early).await
    }

    /// The applier knows of the build.
    pub fn begin_early(&self) {
        self.head.accept();
        self.more.notify_one();
    }

    /// Nothing that was begun early stays, but what is `command`'s own. Ends when it is gone.
    pub async fn without_early(&self, command: Option<&str>) {
        if !command.is_some_and(|command| self.head.is_of(command)) {
            self.head.leave();
            self.more.notify_one();
            self.head.none().await;
        }
    }

    /// The writer no longer builds it, and its command has not come.
    pub fn withdraw(&self, early: &Early) {
        self.head.withdraw(early);
        self.more.notify_one();
    }

    /// Until nothing is pending, or the next build can't be done: then why. Dropping it is harmless.
    pub async fn done(&self) -> Result<(), ApplyError> {
        let mut left = self.left.subscribe();
        let mut failing = self.failing.subscribe();
        // The senders live as long as `self`.
        tokio::select! {
            biased;
            _ = left.wait_for(|left| *left == Some(0)) => Ok(()),
            why = failing.wait_for(Option::is_some) => {
                let why = why.ok().and_then(|why| why.clone());
                Err(ApplyError::Index(why.unwrap_or_default()))
            }
        }
    }

    /// Builds that are known to be pending.
    pub fn left(&self) -> usize {
        self.left.borrow().unwrap_or(0)
    }

    /// Works until dropped. A build under way is then ended by the server and begun anew next time.
    pub async fn run(&self) {
        // Commits may have waited for this connection's appliers, and they come first.
        tokio::select! {
            () = self.more.notified() => {}
            () = tokio::time::sleep(AT_LEISURE) => {}
        }
        // What an earlier process began may be anything by now.
        let mut clear = true;
        loop {
            match self.work(&mut clear).await {
                Ok(()) => self.more.notified().await,
                Err(error) => {
                    tracing::warn!(node = self.node.0, database = %self.database, %error, "building an index failed; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Everything that is pending now.
    async fn work(&self, clear: &mut bool) -> Result<(), ControlError> {
        let client = self.control.connect(self.node, &self.database).await?;
        if *clear {
            self.drop_early(&client).await?;
            *clear = false;
        }
        loop {
            match self.head.task() {
                Task::Drop => self.drop_early(&client).await?,
                Task::Build(early) => self.build_early(&early).await,
                Task::Nothing => {}
            }
            let rows = client
                .query(
                    "select id, command, settings, role::text from synapsedb.pending_indexes \
                      where early is null order by id",
                    &[],
                )
                .await?;
            self.left.send_replace(Some(rows.len()));
            let Some(row) = rows.first() else {
                match self.head.task() {
                    Task::Nothing => return Ok(()),
                    _ => continue,
                }
            };
            let (id, build): (i64, _) = (row.get(0), Build::of(row));
            if !self.stands_already(&client, &build.command).await? {
                tracing::info!(node = self.node.0, database = %self.database, pending = rows.len(), "building an index beside the stream");
                drop_broken(&client).await?;
                let outcome = self.build(&build, true).await;
                let why = outcome.as_ref().err().map(ToString::to_string);
                self.failing.send_replace(why);
                outcome?;
            }
            let delete = "delete from synapsedb.pending_indexes where id = $1";
            client.execute(delete, &[&id]).await?;
        }
    }

    async fn drop_early(&self, client: &Client) -> Result<(), ControlError> {
        early::clear(client).await?;
        self.head.gone();
        Ok(())
    }

    /// What fails here is no harm: it is built when its command has come.
    async fn build_early(&self, early: &Early) {
        let path = format!("{}, \"$user\", public", quote_ident(&early.schema));
        let build = Build {
            command: early.command.clone(),
            settings: serde_json::json!({ "search_path": path }),
            role: Some(early.role.clone()),
        };
        tracing::info!(node = self.node.0, database = %self.database, index = %early.index, "beginning an index while the writer builds it");
        tokio::select! {
            () = self.head.must_leave() => {}
            outcome = self.build(&build, false) => match outcome {
                Ok(()) => self.head.built(),
                Err(error) => {
                    tracing::info!(node = self.node.0, %error, "the index can't be built before its command has come");
                    self.head.leave();
                }
            }
        }
    }

    /// Whether a build has proved to be what was begun early; where it has not, that is dropped.
    async fn stands_already(&self, client: &Client, command: &str) -> Result<bool, ControlError> {
        let mut same = false;
        if let Some(early) = self.head.proved(command) {
            for _ in 0..LOOKS {
                same = early::is_the_writers(client, &self.control, &self.database, &early).await?;
                if same {
                    break;
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        if same {
            let forget = "delete from synapsedb.pending_indexes where early is not null";
            client.execute(forget, &[]).await?;
            self.head.gone();
            tracing::info!(
                node = self.node.0,
                command,
                "an index begun early is the writer's"
            );
        } else {
            self.drop_early(client).await?;
        }
        Ok(same)
    }

    /// As the role that ran the command on the writer; `anyhow`: also where it can't be done CONCURRENTLY. Where that
    /// one lacks a right here, as the superuser: the writer has the index, so this node needs it too, and what it
    /// evaluates is evaluated as the table's owner whoever asks for it.
    async fn build(&self, order: &Build, anyhow: bool) -> Result<(), ControlError> {
        let Some(concurrent) = concurrent_form(&order.command) else {
            // An older version noted it.
            return self.build_in_runner(order).await;
        };
        let built = self
            .build_as(order, &concurrent, order.role.as_deref(), anyhow)
            .await;
        match built {
            Err(error)
                if anyhow
                    && order.role.is_some()
                    && error.sqlstate() == Some(SqlState::INSUFFICIENT_PRIVILEGE.code()) =>
            {
                self.build_as(order, &concurrent, None, anyhow).await
            }
            built => built,
        }
    }

    /// On a connection of its own, on which nothing else is said: under the row's search path any operator may
    /// be a user's, and this is a superuser.
    async fn build_as(
        &self,
        order: &Build,
        concurrent: &str,
        role: Option<&str>,
        anyhow: bool,
    ) -> Result<(), ControlError> {
        let client = self.control.connect(self.node, &self.database).await?;
        let settings = SETTINGS.into_iter().filter_map(|name| {
            let value = order.settings.get(name).and_then(Value::as_str)?;
            Some((name, value))
        });
        // The role last, and by its setting: what comes before may be asked by a superuser only.
        for (name, value) in settings.chain(role.map(|role| ("role", role))) {
            let set = "select pg_catalog.set_config($1, $2, false)";
            client.query_one(set, &[&name, &value]).await?;
        }
        // Not as a Query, which could hold more than one command.
        let built = match client.execute(concurrent, &[]).await {
            // A partitioned table, or an access method that can't.
            Err(error) if anyhow && error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
                let plain = pieces::plain_form(&order.command);
                client.execute(&*plain, &[]).await
            }
            built => built,
        };
        match built {
            // It was built before the proxy could cross it off.
            Err(error) if anyhow && error.code() == Some(&SqlState::DUPLICATE_TABLE) => Ok(()),
            built => Ok(built.map(|_| ())?),
        }
    }

    /// In its plain form, inside a function that its role owns and that lives as long as the transaction: there no
    /// code can become the superuser again.
    async fn build_in_runner(&self, order: &Build) -> Result<(), ControlError> {
        let mut client = self.control.connect(self.node, &self.database).await?;
        let transaction = client.transaction().await?;
        let secret = format!("{:032x}", rand::random::<u128>());
        let hash = secret_hash(&secret);
        // One that was noted without its role has none to be built as: that fails, and is shown.
        let make = "select synapsedb.make_runner($1::text::name, $2)";
        let row = transaction.query_one(make, &[&order.role, &hash]).await?;
        let runner: String = row.get(0);
        let call = format!(
            "select {runner}($1::pg_catalog.text, $2::pg_catalog.text, $3::pg_catalog.jsonb)"
        );
        let command = pieces::plain_form(&order.command);
        let built = transaction
            .execute(&call, &[&secret, &&*command, &order.settings])
            .await;
        match built {
            Err(error) if error.code() == Some(&SqlState::DUPLICATE_TABLE) => return Ok(()),
            built => built?,
        };
        let drop = "select synapsedb.drop_runners($1::pg_catalog.text::pg_catalog.name)";
        transaction.execute(drop, &[&order.role]).await?;
        Ok(transaction.commit().await?)
    }
}

/// One row of `pending_indexes`.
struct Build {
    command: String,
    settings: Value,
    /// None where it was noted by an older version.
    role: Option<String>,
}

impl Build {
    fn of(row: &Row) -> Self {
        Self {
            command: row.get(1),
            settings: row.get(2),
            role: row.get(3),
        }
    }
}

fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
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
