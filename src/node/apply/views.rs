//! Materialized views on a follower: filled with the rows that the writer's query gave, never by the query.
//!
//! The command's row in `ddl_log` names the view; the lines of `synapsedb.view_rows` behind it hold its rows, and
//! a line without any ends it (`schema/views.sql` says why and how). Rows are written as the view's owner, whose
//! code its indexes may call.

use serde_json::Value;

use super::applier::Applier;
use super::ddl::{DdlRow, push_literal};
use super::error::ApplyError;
use super::session::quote_literal;
use crate::node::unit::Change;
use crate::wire::pgoutput::Relation;
use crate::wire::pgoutput::tuple::{Tuple, Value as Datum};

/// The view that is being filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filling {
    schema: String,
    name: String,
    /// Qualified and quoted.
    quoted: String,
    owner: String,
    /// What lends the owner the rights that he lacks on his own view, and what takes them back.
    lend: Option<(String, String)>,
}

impl Filling {
    /// From the key "contents" of a row's detail; none where its command fills no view.
    pub fn of(row: &DdlRow) -> Option<Self> {
        let parts = row.detail.as_ref()?.get("contents")?.as_array()?;
        let [schema, name, quoted, owner] = parts.as_slice() else {
            return None;
        };
        let text = |part: &Value| part.as_str().map(str::to_owned);
        Some(Self {
            schema: text(schema)?,
            name: text(name)?,
            quoted: text(quoted)?,
            owner: text(owner)?,
            lend: None,
        })
    }

    /// What the superuser's runner must run: `open_view` before the first line, `seal_view` behind the last.
    fn call(&self, function: &str) -> Vec<u8> {
        let (schema, name) = (quote_literal(&self.schema), quote_literal(&self.name));
        format!("select synapsedb.{function}({schema}, {name})").into_bytes()
    }

    /// Writes one line's rows. They are a literal without a type, which only the view's own row type reads: a cast
    /// from text could be a user's.
    fn insert(&self, lines: &[u8]) -> Vec<u8> {
        let view = &self.quoted;
        let mut command =
            format!("insert into {view} select r.* from pg_catalog.unnest(").into_bytes();
        push_literal(&mut command, lines);
        command.extend_from_slice(format!("::{view}[]) r").as_bytes());
        command
    }
}

/// The lines of a change that carries some: none inside where it is the end.
pub fn lines(table: &Relation, new: &Tuple) -> Option<Vec<u8>> {
    let at = table.columns.iter().position(|c| c.name == "lines")?;
    match new.iter().nth(at) {
        Some(Datum::Text(bytes)) => Some(bytes.to_vec()),
        _ => None,
    }
}

impl Applier {
    /// Behind the command that left the view empty.
    pub(super) async fn open_view(&mut self, mut view: Filling) -> Result<(), ApplyError> {
        self.as_superuser(&view.call("open_view")).await?;
        view.lend = self.facts(&view.schema, &view.name).await?.lend;
        if let Some((lend, _)) = &view.lend {
            self.as_superuser(lend.as_bytes()).await?;
        }
        self.filling = Some(view);
        Ok(())
    }

    /// One line of `view_rows`. It goes into this node's log too, from which others may be levelled, ahead of the rows
    /// that it holds.
    pub(super) async fn fill_view(&mut self, change: &Change) -> Result<(), ApplyError> {
        let Change::Insert { table, new } = change else {
            return Ok(());
        };
        self.pass_on(table, new).await?;
        let Some(view) = self.filling.take() else {
            return Ok(());
        };
        let Some(lines) = lines(table, new) else {
            if let Some((_, take_back)) = &view.lend {
                self.as_superuser(take_back.as_bytes()).await?;
            }
            return self.as_superuser(&view.call("seal_view")).await;
        };
        if self.care.unchecked() {
            self.lift_checks(&view.schema, &view.name).await?;
        }
        let settings = serde_json::json!({ "search_path": self.search_path }).to_string();
        self.as_role(&view.owner, &view.insert(&lines), settings.as_bytes())
            .await?;
        self.filling = Some(view);
        Ok(())
    }
}
