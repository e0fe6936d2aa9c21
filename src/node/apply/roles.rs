//! What an applier does not run as its own role: DDL, and rows whose tables run code of users (rules 11 and 18).
//!
//! Each such command goes through a runner, a function that runs it as its role (`schema/roles.sql`). What that
//! takes (the runner, rights that an owner lacks on his own table, constraints out of force) holds until the next
//! DDL or the end of the transaction, whatever comes first, and is seen by nobody else. It doesn't know what the
//! commands are for.

use std::collections::HashSet;
use std::sync::Arc;

use super::applier::Applier;
use super::ddl;
use super::error::ApplyError;
use super::pipeline::Value;
use super::session::{CHECKS, FOUND, HIDE_PARAMETERS, RUNNER_NAME, count, quote_literal, restore};
use super::sql::RowSql;
use crate::engine::care::Care;
use crate::node::control::secret_hash;
use crate::wire::pgoutput::Relation;
use crate::wire::pgoutput::tuple::Tuple;

/// What must be undone before the transaction ends.
#[derive(Debug, Default)]
pub(super) struct Lent {
    /// Roles that have a runner.
    runners: HashSet<String>,
    /// Tables whose owners have all rights on them, qualified and quoted.
    open: HashSet<String>,
    /// Tables that were looked at for constraints: schema and name.
    unchecked: HashSet<(String, String)>,
    /// The commands that undo what was done, in the order in which it was done.
    take_back: Vec<String>,
}

impl Applier {
    /// How carefully the units that come next are applied. Not to be changed within a transaction.
    pub fn take_care(&mut self, care: Care) {
        self.care = care;
    }

    /// Writes one row as the table's owner, so that code in its constraints has no more rights than there.
    pub(super) async fn as_owner(
        &mut self,
        relation: &Arc<Relation>,
        row: &RowSql,
        old: Option<&Tuple>,
        new: &Tuple,
    ) -> Result<(), ApplyError> {
        let facts = self.known(relation).await?;
        let (owner, name) = (facts.owner.clone(), facts.name.clone());
        let ways = [facts.lend.clone(), ddl::forced_security(facts)];
        if self.lent.open.insert(name) {
            for (lend, take_back) in ways.into_iter().flatten() {
                self.lend(&lend, take_back).await?;
            }
        }
        let command = ddl::with_literals(row, old.unwrap_or(new), new);
        let settings = ddl::one_row(&self.search_path);
        self.as_role(&owner, &command, settings.as_bytes()).await?;
        self.forget_statements();
        Ok(())
    }

    /// Takes a table's checks, and those of its columns' domains, out of force: they held for this row on the
    /// writer, and may depend on the time, on who writes, or on what no constraint may know (manual, "CREATE
    /// TABLE", CHECK; "CREATE DOMAIN", Notes on NULL).
    pub(super) async fn lift_checks(&mut self, schema: &str, name: &str) -> Result<(), ApplyError> {
        let key = (schema.to_owned(), name.to_owned());
        if !self.lent.unchecked.insert(key) {
            return Ok(());
        }
        let names: [Value<'_>; 2] = [Some(schema.as_bytes()), Some(name.as_bytes())];
        self.pipeline.prepare("", CHECKS);
        let rows = self.pipeline.query("", names.into_iter()).await?;
        let mut columns = rows.into_iter().flatten();
        if let (Some(Some(lift)), Some(Some(put_back))) = (columns.next(), columns.next()) {
            self.lend(&lift, put_back).await?;
        }
        Ok(())
    }

    async fn lend(&mut self, lend: &str, take_back: String) -> Result<(), ApplyError> {
        self.lent.take_back.push(take_back);
        self.as_superuser(lend.as_bytes()).await
    }

    /// Undoes all that was made and lent for commands of this transaction.
    pub(super) async fn give_back(&mut self) -> Result<(), ApplyError> {
        let lent = std::mem::take(&mut self.lent);
        let mut commands: Vec<String> = lent.take_back.into_iter().rev().collect();
        let drop = |role: &String| {
            let role = quote_literal(role);
            format!("select synapsedb.drop_runners({role})")
        };
        commands.extend(lent.runners.iter().map(drop));
        if commands.is_empty() {
            return Ok(());
        }
        self.as_superuser(commands.join("; ").as_bytes()).await
    }

    /// Runs a command inside a SECURITY DEFINER function owned by `role`. The function is made by the
    /// superuser's own and exists no longer than the transaction, so that nothing keeps the role from being
    /// dropped.
    pub(super) async fn as_role(
        &mut self,
        role: &str,
        command: &[u8],
        settings: &[u8],
    ) -> Result<(), ApplyError> {
        if role != self.superuser && self.lent.runners.insert(role.to_owned()) {
            let hash = secret_hash(&self.secret);
            let quoted = quote_literal(role);
            let make = format!("select synapsedb.make_runner({quoted}, '{hash}')");
            self.as_superuser(make.as_bytes()).await?;
        }
        self.run_by(role, command, settings).await
    }

    pub(super) async fn as_superuser(&mut self, command: &[u8]) -> Result<(), ApplyError> {
        let superuser = self.superuser.clone();
        self.run_by(&superuser, command, b"{}").await
    }

    /// Calls a runner. Parsed anew each time: code that a row or a command set off could have replaced
    /// any named statement by one that reads the secret (the contract stands in `schema/roles.sql`).
    async fn run_by(
        &mut self,
        role: &str,
        command: &[u8],
        settings: &[u8],
    ) -> Result<(), ApplyError> {
        if let Some(found) = self.counted.take().filter(|found| *found > 0) {
            let found = count(found);
            self.pipeline.prepare("", FOUND);
            let values = [Some(found.as_bytes())];
            self.pipeline.execute("", values.into_iter(), false);
        }
        self.distrust = true;
        let runner = self.runner(role).await?;
        self.pipeline.prepare("", HIDE_PARAMETERS);
        self.pipeline.execute("", std::iter::empty(), false);
        let call = format!(
            "select {runner}($1::pg_catalog.text, $2::pg_catalog.text, $3::pg_catalog.jsonb)"
        );
        self.pipeline.prepare("", &call);
        let values: [Value<'_>; 3] = [Some(self.secret.as_bytes()), Some(command), Some(settings)];
        self.pipeline.execute("", values.into_iter(), false);
        // Settings that the command or code behind it made would hold for every row that follows.
        self.pipeline.prepare("", &restore());
        let values = [&self.search_path, &self.encoding].map(|value| Some(value.as_bytes()));
        self.pipeline.execute("", values.into_iter(), false);
        Ok(())
    }

    /// The quoted name of a role's runner.
    async fn runner(&mut self, role: &str) -> Result<String, ApplyError> {
        if let Some(name) = self.runners.get(role) {
            return Ok(name.clone());
        }
        self.pipeline.prepare("", RUNNER_NAME);
        let values: [Value<'_>; 1] = [Some(role.as_bytes())];
        let rows = self.pipeline.query("", values.into_iter()).await?;
        let name = rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten());
        let name = name.unwrap_or_default();
        self.runners.insert(role.to_owned(), name.clone());
        Ok(name)
    }
}
