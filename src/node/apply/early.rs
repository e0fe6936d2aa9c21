//! One index build that a follower begins while the writer is still at its own (REPLICATION rule 23).
//!
//! Nobody knows yet whether the writer's build will succeed, nor under which settings it was begun. So what is
//! built here counts for nothing until the command comes in the stream and the index proves to be defined as the
//! writer's is; else it is dropped, and all goes as if it had not been begun. Any other DDL in the stream, and any
//! unit that fails, has it dropped first. It is no business of this module who builds.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_postgres::Client;

use crate::ids::NodeId;
use crate::node::control::{Control, ControlError};

/// Drops what notes of early builds left, and the notes. What builds one of them now is ended first.
const CLEAR: &str = "do $$ declare e text[]; begin
    for e in select p.early from synapsedb.pending_indexes p where p.early is not null loop
      perform pg_terminate_backend(b.pid, 10000) from pg_stat_progress_create_index b
        where b.datname = current_database() and b.relid = to_regclass(format('%I.%I', e[1], e[2]));
      if exists (select from pg_index i where i.indexrelid = to_regclass(format('%I.%I', e[1], e[3]))
                    and i.indrelid = to_regclass(format('%I.%I', e[1], e[2])))
         and not exists (select from pg_constraint k where k.conindid = to_regclass(format('%I.%I', e[1], e[3]))) then
        execute format('drop index %I.%I', e[1], e[3]);
      end if;
    end loop;
    delete from synapsedb.pending_indexes where early is not null; end $$";

/// What an index is, as far as two nodes can be compared.
const DEFINITION: &str = "select pg_get_indexdef(i.indexrelid) || ' ' || coalesce(t.spcname, '') || ' ' || pg_get_userbyid(c.relowner)
      from pg_index i join pg_class c on c.oid = i.indexrelid left join pg_tablespace t on t.oid = c.reltablespace
     where i.indexrelid = to_regclass(format('%I.%I', $1::text, $2::text)) and i.indisvalid";

/// What the writer was seen to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Early {
    /// The node that builds it.
    pub writer: NodeId,
    /// In which database.
    pub database: String,
    /// The whole text.
    pub command: String,
    /// Who runs it there.
    pub role: String,
    /// Of the table, and so of the index.
    pub schema: String,
    /// The table.
    pub table: String,
    /// The index.
    pub index: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// The applier does not know of it yet.
    Offered,
    /// It is to be built, or being built.
    Accepted,
    /// The index is there.
    Built,
}

#[derive(Clone, Debug)]
struct Standing {
    early: Arc<Early>,
    stage: Stage,
    /// The command has come in the stream and is noted as any other.
    confirmed: bool,
    /// It must go.
    leaving: bool,
}

/// What the worker has to do.
#[derive(Clone, Debug)]
pub(super) enum Task {
    /// Nothing of this kind.
    Nothing,
    /// To build it.
    Build(Arc<Early>),
    /// To drop what was made.
    Drop,
}

/// The one build of that kind that a follower may have.
#[derive(Debug)]
pub struct Head {
    standing: watch::Sender<Option<Standing>>,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            standing: watch::Sender::new(None),
        }
    }
}

impl Head {
    /// A build to be begun early. False where there is another.
    pub fn offer(&self, early: &Arc<Early>) -> bool {
        self.standing.send_if_modified(|standing| {
            let free = standing.is_none();
            if free {
                *standing = Some(Standing {
                    early: Arc::clone(early),
                    stage: Stage::Offered,
                    confirmed: false,
                    leaving: false,
                });
            }
            free
        })
    }

    /// The build that the applier must be told of.
    pub fn offered(&self) -> Option<Arc<Early>> {
        let standing = self.standing.borrow();
        let offered = standing
            .as_ref()
            .filter(|s| s.stage == Stage::Offered && !s.leaving);
        offered.map(|s| Arc::clone(&s.early))
    }

    /// Until there is one.
    pub async fn some_offered(&self) {
        let offered = |standing: &Option<Standing>| {
            standing
                .as_ref()
                .is_some_and(|s| s.stage == Stage::Offered && !s.leaving)
        };
        // The sender lives as long as `self`.
        let _ = self.standing.subscribe().wait_for(offered).await;
    }

    /// The applier knows; the build may begin.
    pub fn accept(&self) {
        self.change(|standing| standing.stage = Stage::Accepted);
    }

    pub(super) fn built(&self) {
        self.change(|standing| standing.stage = Stage::Built);
    }

    pub(super) fn gone(&self) {
        self.standing.send_replace(None);
    }

    /// The unit with this command is noted.
    pub(super) fn confirm(&self, command: &str) {
        let same = |s: &&mut Standing| s.early.command == command;
        self.standing.send_if_modified(|standing| {
            let known = standing.as_mut().filter(same);
            known.map(|s| s.confirmed = true).is_some()
        });
    }

    /// Whether the unit with this command may confirm it.
    pub fn is_of(&self, command: &str) -> bool {
        let standing = self.standing.borrow();
        standing
            .as_ref()
            .is_some_and(|s| s.early.command == command && s.stage > Stage::Offered && !s.leaving)
    }

    /// The confirmed one that stands, if it is this command's.
    pub(super) fn proved(&self, command: &str) -> Option<Arc<Early>> {
        let standing = self.standing.borrow();
        let proved = standing
            .as_ref()
            .filter(|s| s.confirmed && s.stage == Stage::Built && !s.leaving);
        proved
            .filter(|s| s.early.command == command)
            .map(|s| Arc::clone(&s.early))
    }

    /// The writer no longer builds it: it goes, unless the command has come.
    pub fn withdraw(&self, early: &Early) {
        self.change_if(|s| *s.early == *early && !s.confirmed, |s| s.leaving = true);
    }

    pub(super) fn leave(&self) {
        self.change(|s| s.leaving = true);
    }

    /// Until there is none. For who can't go on before.
    pub(super) async fn none(&self) {
        let _ = self.standing.subscribe().wait_for(Option::is_none).await;
    }

    /// Until it must go.
    pub(super) async fn must_leave(&self) {
        let leaving = |standing: &Option<Standing>| standing.as_ref().is_none_or(|s| s.leaving);
        let _ = self.standing.subscribe().wait_for(leaving).await;
    }

    pub(super) fn task(&self) -> Task {
        let standing = self.standing.borrow();
        match standing.as_ref() {
            Some(s) if s.leaving => Task::Drop,
            Some(s) if s.stage == Stage::Accepted => Task::Build(Arc::clone(&s.early)),
            _ => Task::Nothing,
        }
    }

    fn change(&self, change: impl FnOnce(&mut Standing)) {
        self.change_if(|_| true, change);
    }

    fn change_if(&self, when: impl FnOnce(&Standing) -> bool, change: impl FnOnce(&mut Standing)) {
        self.standing
            .send_if_modified(|standing| match standing.as_mut() {
                Some(standing) if when(standing) => {
                    change(standing);
                    true
                }
                _ => false,
            });
    }
}

/// Durably notes what is about to be built, so that it can be dropped by whoever comes after a crash. False where
/// the name is taken: what has it is not ours to drop.
pub(super) async fn note(client: &Client, early: &Early) -> Result<bool, ControlError> {
    let insert = "insert into synapsedb.pending_indexes (command, settings, role, early) select $1, '{}', $2::text::name, $3::text[]
         where to_regclass(format('%I.%I', ($3::text[])[1], ($3::text[])[3])) is null";
    let parts = vec![&early.schema, &early.table, &early.index];
    let noted = client
        .execute(insert, &[&early.command, &early.role, &parts])
        .await?;
    Ok(noted == 1)
}

/// Drops whatever was built early here, and the notes of it.
pub(super) async fn clear(client: &Client) -> Result<(), ControlError> {
    Ok(client.batch_execute(CLEAR).await?)
}

/// Whether the index is the writer's. False where the writer does not show one.
pub(super) async fn is_the_writers(
    client: &Client,
    control: &Control,
    database: &str,
    early: &Early,
) -> Result<bool, ControlError> {
    let ours = definition(client, early).await?;
    let writer = control.connect(early.writer, database).await?;
    let theirs = definition(&writer, early).await?;
    Ok(ours.is_some() && ours == theirs)
}

async fn definition(client: &Client, early: &Early) -> Result<Option<String>, ControlError> {
    let row = client
        .query_opt(DEFINITION, &[&early.schema, &early.index])
        .await?;
    Ok(row.map(|row| row.get(0)))
}
