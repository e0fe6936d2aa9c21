//! Repeats the writer's units on one follower, in their order, exactly once.
//!
//! Guards promise 2 with REPLICATION rules 7 to 13. Each transaction on the follower holds one or
//! more whole units, each with a mark behind it by which its log can later be cut at any unit, and makes the data
//! and the place in the writer's history durable together. After any error the applier is thrown away
//! with its connection. It doesn't decide what an error means for the node.

use std::sync::atomic::{AtomicU64, Ordering};
use std::{collections::HashMap, io, sync::Arc};

use super::aside;
use super::ddl::{self, DdlRow};
use super::error::ApplyError;
use super::facts::TableFacts;
use super::pipeline::{Pipeline, Value};
use super::roles::Lent;
use super::session::{COUNT, NOTE_BUILD, STATEMENTS, count};
use super::sql::{self, RowSql, Source};
use super::text::Text;
use super::views::Filling;
use crate::engine::care::Care;
use crate::ids::{Epoch, UnitId};
use crate::node::cut::Mark;
use crate::node::spill::SpillReader;
use crate::node::unit::{Change, Changes, Unit, is_ddl_log};
use crate::wire::pgoutput::{Relation, tuple::Tuple, tuple::Value as Datum};

/// From this many inserts into one table in a row, COPY is used (rule 10).
const COPY_RUN: usize = 4;
/// One `CopyData` frame holds about this much.
const COPY_CHUNK_BYTES: usize = 48 * 1024;
/// So much of a spilled unit is in memory at once. A run of inserts is one COPY within it, and a COPY
/// makes the server prepare for a thousand rows: short ones cost it a quarter more for each row.
const SPILL_CHUNK_BYTES: u64 = 1024 * 1024;
/// A transaction of no more changes counts the rows that it finds on the server, which saves a round trip and costs
/// each row a little.
const COUNTED: usize = 64;
/// Rows of `applied_places` are deleted when there are so many more.
pub(super) const PLACES_KEPT: u32 = 4096;

#[derive(Debug)]
struct Prepared {
    name: String,
    parameters: Vec<Source>,
    /// It counts the row that it finds.
    counted: bool,
}

#[derive(Debug)]
pub(super) struct Table {
    /// Kept so that the address, which is the key, stays taken.
    _relation: Arc<Relation>,
    facts: TableFacts,
    /// The transaction in which the facts were read.
    read_in: u64,
    insert: Option<Arc<Prepared>>,
    copy: Option<Arc<Prepared>>,
    /// By whether the row is counted.
    delete: [Option<Arc<Prepared>>; 2],
    /// By the columns that came with a value, whether an old key or row came, and whether the row is counted.
    updates: HashMap<(Vec<bool>, bool, bool), Option<Arc<Prepared>>>,
}

impl Table {
    /// The names of what was prepared for it.
    fn statements(&self) -> impl Iterator<Item = &str> {
        let updates = self.updates.values().flatten();
        let others = [&self.insert, &self.copy].into_iter().flatten();
        let others = others.chain(self.delete.iter().flatten());
        updates.chain(others).map(|prepared| prepared.name.as_str())
    }
}

/// One follower's applier for one database.
#[derive(Debug)]
pub struct Applier {
    pub(super) pipeline: Pipeline,
    pub(super) tables: HashMap<usize, Table>,
    /// Indexes are being built beside the stream, so that what is known of a table holds for one transaction.
    pub(super) building: bool,
    /// Counts the transactions.
    pub(super) transaction: u64,
    /// Counts the statements prepared, for their names.
    pub(super) names: u64,
    /// The unit's last logged client text, for rows that do not repeat it.
    pub(super) query: Option<Text>,
    /// By role: the quoted name of its runner.
    pub(super) runners: HashMap<String, String>,
    /// Rows that are found are counted on the server in this transaction; how many should be by now.
    pub(super) counted: Option<u32>,
    /// What holds for this transaction only.
    pub(super) lent: Lent,
    /// How carefully rows are written.
    pub(super) care: Care,
    /// Foreign code has run on this connection since its statements were prepared.
    pub(super) distrust: bool,
    /// Up to where it may have let units be seen.
    pub(super) horizon: Arc<AtomicU64>,
    /// Whose units it repeats.
    pub(super) term: Epoch,
    pub(super) origin: String,
    /// Of the marks of this transaction (`node/cut.rs`).
    pub(super) number: u64,
    /// Rows added to `applied_places` since the old ones were deleted.
    pub(super) places: u32,
    /// The materialized view whose rows come next.
    pub(super) filling: Option<Filling>,
    pub(super) superuser: String,
    pub(super) secret: String,
    pub(super) search_path: String,
    pub(super) encoding: String,
}

impl Applier {
    /// Applies whole units of the applier's term as one transaction and returns when it is durable. A unit with DDL,
    /// or one that was spilled, must come alone. Not cancel safe: after a drop or an error, start anew.
    pub async fn apply(&mut self, units: &[Arc<Unit>]) -> Result<(), ApplyError> {
        debug_assert!(units.len() == 1 || units.iter().all(|unit| !unit.has_ddl));
        debug_assert!(units.iter().all(|unit| unit.id.term == self.term));
        self.transaction += 1;
        let changes = |unit: &Arc<Unit>| match &unit.changes {
            Changes::Memory(changes) => changes.len(),
            Changes::Spilled(_) => COUNTED + 1,
        };
        // Without the count it shows which row it is that is not found.
        let counts = !self.care.single() && units.iter().map(changes).sum::<usize>() <= COUNTED;
        self.counted = counts.then_some(0);
        self.number = rand::random();
        for (at, unit) in units.iter().enumerate() {
            self.begin_unit(unit.id);
            match &unit.changes {
                Changes::Memory(changes) => self.changes(Some(unit), changes).await?,
                Changes::Spilled(spill) => {
                    let mut reader = spill.reader();
                    while let Some(chunk) = Self::next_chunk(&mut reader)? {
                        self.changes(Some(unit), &chunk).await?;
                        // The stream must be heard meanwhile, and it may have the same thread.
                        tokio::task::yield_now().await;
                    }
                }
            }
            // The mark of the last one goes with the place.
            if at + 1 < units.len() {
                let mark = self.mark(unit.id);
                self.own("mark", [Some(mark.as_bytes())].into_iter());
            }
        }
        if let Some(last) = units.last() {
            self.end(last).await?;
        }
        Ok(())
    }

    /// So many of a spilled unit's next changes as are held in memory at once; none at its end.
    pub(super) fn next_chunk(reader: &mut SpillReader<'_>) -> io::Result<Option<Vec<Change>>> {
        let end = reader.position() + SPILL_CHUNK_BYTES;
        let mut chunk = Vec::new();
        while reader.position() < end {
            match reader.next_change()? {
                Some(change) => chunk.push(change),
                None => break,
            }
        }
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    /// Ends when the idle connection does, with what the server said last. Dropping it loses nothing.
    pub async fn broken(&mut self) -> ApplyError {
        self.pipeline.broken().await.into()
    }

    /// The server process behind its connection.
    pub fn process_id(&self) -> u32 {
        self.pipeline.process_id()
    }

    /// Whose units it can repeat.
    pub fn term(&self) -> Epoch {
        self.term
    }

    fn mark(&self, unit: UnitId) -> String {
        let number = self.number;
        Mark { unit, number }.to_string()
    }

    pub(super) fn begin_unit(&mut self, id: UnitId) {
        self.pipeline.note(|| format!("unit {id}"));
        self.query = None;
    }

    /// The place is a row, since the origin, once set up, moves with an abort as with a commit. It goes last and
    /// together with Sync, which commits whatever the statements before it answered.
    /// The last unit's mark goes along.
    pub(super) async fn end(&mut self, last: &Unit) -> Result<(), ApplyError> {
        self.give_back().await?;
        self.pipeline.settle().await?;
        let lsn = last.id.lsn.to_string();
        let time = last.committed_at.to_string();
        let origin = self.origin.clone();
        self.places += 1;
        if self.places >= PLACES_KEPT {
            self.places = 0;
            let values = [Some(origin.as_bytes()), Some(lsn.as_bytes())];
            self.own("forget", values.into_iter());
        }
        let found = count(self.counted.take().unwrap_or_default());
        let mark = self.mark(last.id);
        let values = [&origin, &lsn, &time, &found, &mark].map(|value| Some(value.as_bytes()));
        self.own("place", values.into_iter());
        // Ahead of the commit: whoever reads what it shows finds it here. By the log that the writer's reader knows.
        self.horizon.fetch_max(last.end.0, Ordering::AcqRel);
        self.pipeline.commit().await?;
        if self.distrust {
            for (name, text) in STATEMENTS {
                self.pipeline.close(name);
                self.pipeline.prepare(name, text);
            }
            self.forget_statements();
            self.distrust = false;
        }
        Ok(())
    }

    /// Changes in their order; DDL among them only where `unit`, which they belong to, is complete.
    pub(super) async fn changes(
        &mut self,
        unit: Option<&Unit>,
        changes: &[Change],
    ) -> Result<(), ApplyError> {
        let mut at = 0;
        while let Some(change) = changes.get(at) {
            match change {
                Change::Insert { table, new } if is_ddl_log(table) => {
                    self.insert(table, new).await?;
                    let row = DdlRow::from_tuple(table, new)?;
                    let unit = unit.ok_or(ApplyError::GivenUp("it holds DDL"))?;
                    self.ddl(unit, &row).await?;
                    at += 1;
                }
                change if change.is_contents() => {
                    self.fill_view(change).await?;
                    at += 1;
                }
                Change::Insert { table, .. } => {
                    let run = run_of_inserts(table, &changes[at..]);
                    if run >= COPY_RUN {
                        self.copy(table, &changes[at..at + run]).await?;
                        at += run;
                    } else {
                        self.change(change).await?;
                        at += 1;
                    }
                }
                _ => {
                    self.change(change).await?;
                    at += 1;
                }
            }
            self.pipeline.relieve().await?;
        }
        Ok(())
    }

    async fn change(&mut self, change: &Change) -> Result<(), ApplyError> {
        match change {
            Change::Insert { table, new } => self.insert(table, new).await,
            Change::Update { table, old, new } => self.update(table, old.as_ref(), new).await,
            Change::Delete { table, old } => self.delete(table, old).await,
            Change::Truncate { tables } => self.truncate(tables).await,
        }
    }

    pub(super) async fn known(
        &mut self,
        relation: &Arc<Relation>,
    ) -> Result<&TableFacts, ApplyError> {
        Ok(&self.table(relation).await?.facts)
    }

    /// Sends what has gathered, so that the server works on it.
    pub(super) async fn flush(&mut self) -> Result<(), ApplyError> {
        Ok(self.pipeline.send().await?)
    }

    /// The table's facts, read from the follower when first needed.
    async fn table(&mut self, relation: &Arc<Relation>) -> Result<&mut Table, ApplyError> {
        let key = Arc::as_ptr(relation) as usize;
        let (building, transaction) = (self.building, self.transaction);
        let known = |table: &Table| !building || table.read_in == transaction;
        if !self.tables.get(&key).is_some_and(known) {
            if building {
                self.hold_still(relation);
            }
            let facts = self.facts(&relation.namespace, &relation.name).await?;
            if building && !facts.building {
                // What was read of other tables while indexes were being built may be wrong by now.
                self.building = false;
                self.forget(|at, _| at == key);
            }
            match self.tables.get_mut(&key) {
                Some(table) if table.facts == facts => table.read_in = transaction,
                _ => {
                    let table = Table {
                        _relation: Arc::clone(relation),
                        facts,
                        read_in: transaction,
                        insert: None,
                        copy: None,
                        delete: [None, None],
                        updates: HashMap::new(),
                    };
                    self.tables.insert(key, table);
                }
            }
        }
        if self.care.unchecked() {
            self.lift_checks(&relation.namespace, &relation.name)
                .await?;
        }
        self.tables
            .get_mut(&key)
            .ok_or_else(|| ApplyError::NoTable(relation.name.clone()))
    }

    /// What is known of tables may be wrong from here on.
    fn forget_tables(&mut self) {
        self.forget(|_, _| false);
    }

    /// Code of a user's may have changed its own tables and put other texts under the statements' names. What is
    /// known of tables that are written as their owner may be wrong too, but harms nobody else.
    pub(super) fn forget_statements(&mut self) {
        self.forget(|_, table| table.facts.user_code);
    }

    fn forget(&mut self, keep: impl Fn(usize, &Table) -> bool) {
        let pipeline = &mut self.pipeline;
        self.tables.retain(|at, table| {
            let kept = keep(*at, table);
            if !kept {
                table.statements().for_each(|name| pipeline.close(name));
            }
            kept
        });
    }

    fn prepare(pipeline: &mut Pipeline, names: &mut u64, row: RowSql) -> Arc<Prepared> {
        *names += 1;
        let name = format!("r{names}");
        pipeline.prepare(&name, &row.text);
        Arc::new(Prepared {
            name,
            counted: row.text.ends_with(COUNT),
            parameters: row.parameters,
        })
    }

    async fn insert(&mut self, relation: &Arc<Relation>, new: &Tuple) -> Result<(), ApplyError> {
        let table = self.table(relation).await?;
        if table.facts.user_code {
            let row = sql::insert(&table.facts, relation)?;
            return self.as_owner(relation, &row, None, new).await;
        }
        let prepared = if let Some(prepared) = &table.insert {
            Arc::clone(prepared)
        } else {
            let row = sql::insert(&table.facts, relation)?;
            let prepared = Self::prepare(&mut self.pipeline, &mut self.names, row);
            self.table(relation).await?.insert = Some(Arc::clone(&prepared));
            prepared
        };
        self.row(&prepared, None, new);
        Ok(())
    }

    /// A row that nothing is to be left of but its trace in this node's log.
    pub(super) async fn pass_on(
        &mut self,
        relation: &Arc<Relation>,
        row: &Tuple,
    ) -> Result<(), ApplyError> {
        self.insert(relation, row).await?;
        self.delete(relation, row).await
    }

    async fn update(
        &mut self,
        relation: &Arc<Relation>,
        old: Option<&Tuple>,
        new: &Tuple,
    ) -> Result<(), ApplyError> {
        let counting = self.counted.is_some() && !self.distrust;
        let table = self.table(relation).await?;
        if table.facts.user_code {
            return match sql::update(&table.facts, relation, old, new)? {
                Some(row) => self.as_owner(relation, &row, old, new).await,
                None => Ok(()),
            };
        }
        let shape: Vec<bool> = new.iter().map(|c| !matches!(c, Datum::Unchanged)).collect();
        let key = (shape, old.is_some(), counting);
        let prepared = if let Some(prepared) = table.updates.get(&key) {
            prepared.clone()
        } else {
            let row = sql::update(&table.facts, relation, old, new)?;
            let row = row.map(|row| counted(row, counting));
            let prepared = row.map(|row| Self::prepare(&mut self.pipeline, &mut self.names, row));
            self.table(relation)
                .await?
                .updates
                .insert(key, prepared.clone());
            prepared
        };
        if let Some(prepared) = prepared {
            self.row(&prepared, old.or(Some(new)), new);
        }
        Ok(())
    }

    async fn delete(&mut self, relation: &Arc<Relation>, old: &Tuple) -> Result<(), ApplyError> {
        let counting = self.counted.is_some() && !self.distrust;
        let table = self.table(relation).await?;
        if table.facts.user_code {
            let row = sql::delete(&table.facts, relation, old)?;
            return self.as_owner(relation, &row, Some(old), old).await;
        }
        let prepared = if let Some(prepared) = &table.delete[usize::from(counting)] {
            Arc::clone(prepared)
        } else {
            let row = counted(sql::delete(&table.facts, relation, old)?, counting);
            let prepared = Self::prepare(&mut self.pipeline, &mut self.names, row);
            self.table(relation).await?.delete[usize::from(counting)] = Some(Arc::clone(&prepared));
            prepared
        };
        self.row(&prepared, Some(old), old);
        Ok(())
    }

    /// One execution of a prepared statement that changes exactly one row.
    fn row(&mut self, prepared: &Prepared, old: Option<&Tuple>, new: &Tuple) {
        // A plain INSERT adds its row or fails; the others may find none.
        let finds = old.is_some();
        if let Some(counted) = self.counted.as_mut().filter(|_| finds && prepared.counted) {
            *counted += 1;
        }
        let new: Vec<Datum<'_>> = new.iter().collect();
        let old: Vec<Datum<'_>> = old.map(|old| old.iter().collect()).unwrap_or_default();
        let values = prepared
            .parameters
            .iter()
            .map(|source| value(source, &old, &new));
        self.pipeline
            .execute(&prepared.name, values, finds && !prepared.counted);
    }

    async fn copy(&mut self, relation: &Arc<Relation>, run: &[Change]) -> Result<(), ApplyError> {
        let table = self.table(relation).await?;
        if table.facts.user_code || table.facts.columns.values().all(|c| c.generated) {
            for change in run {
                self.change(change).await?;
            }
            return Ok(());
        }
        let prepared = if let Some(prepared) = &table.copy {
            Arc::clone(prepared)
        } else {
            let row = sql::copy(&table.facts, relation)?;
            let prepared = Self::prepare(&mut self.pipeline, &mut self.names, row);
            self.table(relation).await?.copy = Some(Arc::clone(&prepared));
            prepared
        };
        self.pipeline
            .execute(&prepared.name, std::iter::empty(), false);
        let mut lines = Vec::with_capacity(COPY_CHUNK_BYTES + 1024);
        for change in run {
            if let Change::Insert { new, .. } = change {
                sql::copy_line(new, &prepared.parameters, &mut lines);
            }
            if lines.len() >= COPY_CHUNK_BYTES {
                self.pipeline.copy_data(&lines);
                lines.clear();
                self.pipeline.relieve().await?;
            }
        }
        self.pipeline.copy_data(&lines);
        self.pipeline.copy_done();
        Ok(())
    }

    /// TRUNCATE is no part of the right to write all data, and the tables may have several owners.
    async fn truncate(&mut self, tables: &[Arc<Relation>]) -> Result<(), ApplyError> {
        let mut names = Vec::with_capacity(tables.len());
        for relation in tables {
            names.push(self.table(relation).await?.facts.name.clone());
        }
        let command = format!("truncate only {}", names.join(", "));
        self.as_superuser(command.as_bytes()).await
    }

    async fn ddl(&mut self, unit: &Unit, row: &DdlRow) -> Result<(), ApplyError> {
        if let Some((command, row)) = aside::build_of(unit) {
            let values: [Value<'_>; 3] = [
                Some(&command),
                Some(&row.settings.bytes()),
                Some(row.role.as_bytes()),
            ];
            self.pipeline.prepare("", NOTE_BUILD);
            self.pipeline.execute("", values.into_iter(), true);
            self.building = true;
            return Ok(());
        }
        if row.query.is_some() && !row.nested {
            self.query.clone_from(&row.query);
        }
        let Some(row) = ddl::row_to_run(unit, row)? else {
            return Ok(());
        };
        let command = ddl::command(&row, self.query.as_ref())?;
        self.give_back().await?;
        self.pipeline
            .note(|| format!("unit {}: {}", unit.id, ddl::first_line(&command)));
        self.as_role(&row.role, &command, &row.settings.bytes())
            .await?;
        if let Some(more) = ddl::follow_up(&row) {
            self.as_superuser(&more).await?;
        }
        if let Some(view) = Filling::of(&row) {
            self.open_view(view).await?;
        }
        self.forget_tables();
        Ok(())
    }

    /// Executes one of [`STATEMENTS`], parsed anew where foreign code has run since they were prepared.
    fn own<'a>(&mut self, name: &str, parameters: impl ExactSizeIterator<Item = Value<'a>>) {
        let text = STATEMENTS
            .iter()
            .find(|(known, _)| *known == name)
            .map_or("", |(_, text)| text);
        if self.distrust {
            self.pipeline.prepare("", text);
            self.pipeline.execute("", parameters, false);
        } else {
            self.pipeline.execute(name, parameters, false);
        }
    }
}

fn counted(mut row: RowSql, counting: bool) -> RowSql {
    if counting {
        row.text.push_str(COUNT);
    }
    row
}

fn run_of_inserts(table: &Arc<Relation>, changes: &[Change]) -> usize {
    let same = |change: &&Change| matches!(change, Change::Insert { table: other, .. } if Arc::ptr_eq(table, other));
    changes.iter().take_while(same).count()
}

fn value<'a>(source: &Source, old: &[Datum<'a>], new: &[Datum<'a>]) -> Value<'a> {
    let column = match *source {
        Source::New(at) => new.get(at),
        Source::Old(at) => old.get(at),
    };
    match column {
        Some(Datum::Text(text)) => Some(text),
        _ => None,
    }
}
