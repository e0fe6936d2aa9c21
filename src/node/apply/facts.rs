//! What the applier must know of a follower's table that the stream does not say.
//!
//! Read through the applier's own connection, inside its own transaction, so that a table which
//! the same unit created is seen. All names are qualified and quoted by the server.

use std::collections::BTreeMap;

use super::applier::Applier;
use super::error::ApplyError;
use super::pipeline::Value;
use super::session::HOLD_STILL;
use crate::wire::pgoutput::Relation;

/// One column of a follower's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnFacts {
    /// The column's name, quoted where it must be.
    pub quoted: String,
    /// Its type, qualified with the schema, without modifiers.
    pub type_name: String,
    /// `GENERATED ALWAYS AS IDENTITY`: can't be SET, and INSERT must override.
    pub identity_always: bool,
    /// `GENERATED ALWAYS AS (...) STORED`: never written.
    pub generated: bool,
    /// The equality operator of the replica identity's index, where the column is part of it.
    pub equals: Option<String>,
}

/// One table of a follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// Qualified and quoted.
    pub name: String,
    /// The owner, unquoted.
    pub owner: String,
    /// Whether writing or finding a row may run code of a user's (`schema/facts.sql`): such rows are written
    /// as the table's owner (rule 11).
    pub user_code: bool,
    /// Whether row security holds for the owner too.
    pub forced_security: bool,
    /// Where the owner lacks rights on the table or a schema: what lends them, and what takes them back.
    pub lend: Option<(String, String)>,
    /// Whether this node still owes builds of indexes, which may bring code of a user's to any table.
    pub building: bool,
    /// By the column's plain name.
    pub columns: BTreeMap<String, ColumnFacts>,
}

/// Gives one row per column: what [`TableFacts`] and [`ColumnFacts`] hold. Parameters: schema, table (both text).
/// A function of the schema, since here any operator could be a user's.
pub const TABLE_FACTS: &str =
    "select * from synapsedb.table_facts($1::pg_catalog.text, $2::pg_catalog.text)";

impl TableFacts {
    /// From the rows of [`TABLE_FACTS`]; none where there is no such table.
    pub fn from_rows(rows: &[Vec<Option<String>>]) -> Option<Self> {
        let text = |row: &[Option<String>], at: usize| row.get(at).cloned().flatten();
        let truth = |row: &[Option<String>], at: usize| text(row, at).as_deref() == Some("t");
        let first = rows.first()?;
        let mut columns = BTreeMap::new();
        // A table may have no columns: its one row here then names none.
        for row in rows.iter().filter(|row| text(row, 3).is_some()) {
            let column = ColumnFacts {
                quoted: text(row, 4)?,
                type_name: text(row, 5)?,
                identity_always: truth(row, 6),
                generated: truth(row, 7),
                equals: text(row, 8),
            };
            columns.insert(text(row, 3)?, column);
        }
        Some(Self {
            name: text(first, 0)?,
            owner: text(first, 1)?,
            user_code: truth(first, 2),
            forced_security: truth(first, 9),
            lend: text(first, 10).zip(text(first, 11)),
            building: truth(first, 12),
            columns,
        })
    }
}

impl Applier {
    /// Tables may get indexes from here on that no DDL in the stream tells of.
    pub fn expect_indexes(&mut self) {
        self.building = true;
    }

    /// Until the transaction ends, no index of the table comes into use of which the catalog says nothing now.
    pub(super) fn hold_still(&mut self, relation: &Relation) {
        let names = [&relation.namespace, &relation.name].map(|name| Some(name.as_bytes()));
        self.pipeline.prepare("", HOLD_STILL);
        self.pipeline.execute("", names.into_iter(), false);
    }

    /// Has the server read ahead what it needs for the first question of this kind.
    pub(in crate::node) async fn warm_up(&mut self) -> Result<(), ApplyError> {
        self.facts("synapsedb", "applied_places").await?;
        Ok(self.pipeline.commit().await?)
    }

    /// What the follower says of a table at this moment.
    pub(super) async fn facts(
        &mut self,
        schema: &str,
        name: &str,
    ) -> Result<TableFacts, ApplyError> {
        let names: [Value<'_>; 2] = [Some(schema.as_bytes()), Some(name.as_bytes())];
        let rows = if self.distrust {
            self.pipeline.prepare("", TABLE_FACTS);
            self.pipeline.query("", names.into_iter()).await?
        } else {
            self.pipeline.query("facts", names.into_iter()).await?
        };
        TableFacts::from_rows(&rows).ok_or_else(|| ApplyError::NoTable(format!("{schema}.{name}")))
    }
}
