//! The statements by which a follower repeats the writer's row changes, as text with parameters.
//!
//! Pure: facts of a table and the shape of a change in, SQL and the order of its parameters out.
//! Guards REPLICATION rule 13: unchanged TOAST values and identity columns stay out of SET, generated
//! columns are left out, keyless rows are found by their whole image and changed by `ctid`.

use super::facts::{ColumnFacts, TableFacts};
use crate::wire::pgoutput::tuple::{Tuple, Value};
use crate::wire::pgoutput::{Identity, Relation};

/// Which tuple a parameter's value comes from, and its column there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The new row.
    New(usize),
    /// The old key or old row; for an update whose key did not change, the new row stands in.
    Old(usize),
}

/// A statement ready to be prepared, and where its parameters come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowSql {
    /// With `$1` and so on; every parameter is text.
    pub text: String,
    /// In order of the parameters.
    pub parameters: Vec<Source>,
}

/// The stream and the follower's catalog do not agree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The follower's table has no such column.
    #[error("table {table} has no column {column} on this node")]
    NoColumn {
        /// Qualified name.
        table: String,
        /// As the writer calls it.
        column: String,
    },
    /// The old row that the statement must find was not sent.
    #[error("a change of {table} came without its old row or key")]
    NoOld {
        /// Qualified name.
        table: String,
    },
}

/// The columns of a change whose values are at hand, as bits from the tuple.
fn known(tuple: &Tuple) -> impl Iterator<Item = (usize, bool)> + '_ {
    let value = |column| !matches!(column, Value::Unchanged);
    tuple
        .iter()
        .enumerate()
        .map(move |(at, column)| (at, value(column)))
}

fn column<'a>(
    facts: &'a TableFacts,
    table: &Relation,
    at: usize,
) -> Result<&'a ColumnFacts, PlanError> {
    let name = table.columns.get(at).map_or("?", |c| c.name.as_str());
    facts.columns.get(name).ok_or_else(|| PlanError::NoColumn {
        table: facts.name.clone(),
        column: name.to_owned(),
    })
}

/// The columns that a new row is written with, quoted, and where their values come from: all but the
/// generated ones.
fn written<'a>(
    facts: &'a TableFacts,
    table: &Relation,
) -> Result<(Vec<&'a str>, Vec<Source>), PlanError> {
    let mut names = Vec::new();
    let mut parameters = Vec::new();
    for at in 0..table.columns.len() {
        let column = column(facts, table, at)?;
        if !column.generated {
            names.push(column.quoted.as_str());
            parameters.push(Source::New(at));
        }
    }
    Ok((names, parameters))
}

/// `INSERT` of one row.
pub fn insert(facts: &TableFacts, table: &Relation) -> Result<RowSql, PlanError> {
    let (names, parameters) = written(facts, table)?;
    let text = if names.is_empty() {
        format!("insert into {} default values", facts.name)
    } else {
        let values: Vec<String> = (1..=names.len()).map(|n| format!("${n}")).collect();
        let (names, values) = (names.join(", "), values.join(", "));
        format!(
            "insert into {} ({names}) overriding system value values ({values})",
            facts.name
        )
    };
    Ok(RowSql { text, parameters })
}

/// `COPY` of many rows, and the columns each line holds.
pub fn copy(facts: &TableFacts, table: &Relation) -> Result<RowSql, PlanError> {
    let (names, parameters) = written(facts, table)?;
    let text = format!("copy {} ({}) from stdin", facts.name, names.join(", "));
    Ok(RowSql { text, parameters })
}

/// `UPDATE` of one row. None where nothing is left to set.
pub fn update(
    facts: &TableFacts,
    table: &Relation,
    old: Option<&Tuple>,
    new: &Tuple,
) -> Result<Option<RowSql>, PlanError> {
    if identity_may_change(facts, table, old) {
        return replace(facts, table, old.unwrap_or(new), new).map(Some);
    }
    let mut set = Vec::new();
    let mut parameters = Vec::new();
    for (at, has_value) in known(new) {
        let column = column(facts, table, at)?;
        if !has_value || column.generated || column.identity_always {
            continue;
        }
        parameters.push(Source::New(at));
        set.push(format!("{} = ${}", column.quoted, parameters.len()));
    }
    if set.is_empty() {
        return Ok(None);
    }
    let found = find(facts, table, old.unwrap_or(new), &mut parameters)?;
    let text = format!(
        "update only {} set {} where {found}",
        facts.name,
        set.join(", ")
    );
    Ok(Some(RowSql { text, parameters }))
}

/// `SET id = DEFAULT` is the one way to change an identity column, and no statement can repeat it with
/// a given value. Where the key was not sent anew, an identity column within it is unchanged.
fn identity_may_change(facts: &TableFacts, table: &Relation, old: Option<&Tuple>) -> bool {
    table.columns.iter().any(|c| {
        let identity = facts
            .columns
            .get(&c.name)
            .is_some_and(|f| f.identity_always);
        identity && (old.is_some() || !c.key)
    })
}

/// The old row taken out and the new one put in, by one statement; values that were not sent are carried over.
fn replace(
    facts: &TableFacts,
    table: &Relation,
    old: &Tuple,
    new: &Tuple,
) -> Result<RowSql, PlanError> {
    let (mut names, mut values, mut parameters) = (Vec::new(), Vec::new(), Vec::new());
    for (at, has_value) in known(new) {
        let column = column(facts, table, at)?;
        if column.generated {
            continue;
        }
        names.push(column.quoted.as_str());
        if has_value {
            parameters.push(Source::New(at));
            values.push(format!("${}::{}", parameters.len(), column.type_name));
        } else {
            values.push(format!("gone.{}", column.quoted));
        }
    }
    let found = find(facts, table, old, &mut parameters)?;
    let (name, names, values) = (&facts.name, names.join(", "), values.join(", "));
    let text = format!(
        "with gone as (delete from only {name} where {found} returning *) \
         insert into {name} ({names}) overriding system value select {values} from gone"
    );
    Ok(RowSql { text, parameters })
}

/// `DELETE` of one row.
pub fn delete(facts: &TableFacts, table: &Relation, old: &Tuple) -> Result<RowSql, PlanError> {
    let mut parameters = Vec::new();
    let found = find(facts, table, old, &mut parameters)?;
    let text = format!("delete from only {} where {found}", facts.name);
    Ok(RowSql { text, parameters })
}

/// The condition that finds exactly the changed row.
fn find(
    facts: &TableFacts,
    table: &Relation,
    old: &Tuple,
    parameters: &mut Vec<Source>,
) -> Result<String, PlanError> {
    if table.identity == Identity::Full {
        return find_by_image(facts, table, old, parameters);
    }
    let mut conditions = Vec::new();
    for (at, has_value) in known(old) {
        if !table.columns.get(at).is_some_and(|c| c.key) {
            continue;
        }
        let column = column(facts, table, at)?;
        let (true, Some(equals)) = (has_value, &column.equals) else {
            return Err(PlanError::NoOld {
                table: facts.name.clone(),
            });
        };
        parameters.push(Source::Old(at));
        let (name, type_name, n) = (&column.quoted, &column.type_name, parameters.len());
        conditions.push(format!("{name} operator({equals}) ${n}::{type_name}"));
    }
    if conditions.is_empty() {
        return Err(PlanError::NoOld {
            table: facts.name.clone(),
        });
    }
    Ok(conditions.join(" and "))
}

/// Without a key, one of the rows with this very image: equal rows are interchangeable.
fn find_by_image(
    facts: &TableFacts,
    table: &Relation,
    old: &Tuple,
    parameters: &mut Vec<Source>,
) -> Result<String, PlanError> {
    let mut have = Vec::new();
    let mut want = Vec::new();
    for (at, has_value) in known(old) {
        let column = column(facts, table, at)?;
        if column.generated {
            continue;
        }
        if !has_value {
            return Err(PlanError::NoOld {
                table: facts.name.clone(),
            });
        }
        parameters.push(Source::Old(at));
        let (name, type_name, n) = (&column.quoted, &column.type_name, parameters.len());
        if type_name.starts_with("pg_catalog.") {
            have.push(format!("t.{name}"));
            want.push(format!("${n}::{type_name}"));
        } else {
            // A composite written before its type got another attribute is stored otherwise than the same value
            // now. By format and not by a cast, which could be a user's function.
            have.push(format!("pg_catalog.format('%L', t.{name})"));
            want.push(format!("pg_catalog.format('%L', ${n}::{type_name})"));
        }
    }
    if have.is_empty() {
        return Ok(format!(
            "ctid = (select t.ctid from only {} t limit 1)",
            facts.name
        ));
    }
    let (name, have, want) = (&facts.name, have.join(", "), want.join(", "));
    // The casts keep the parser from comparing column by column, which types without an equality refuse.
    Ok(format!(
        "ctid = (select t.ctid from only {name} t where row({have})::pg_catalog.record operator(pg_catalog.*=) row({want})::pg_catalog.record limit 1)"
    ))
}

/// Appends one line of `COPY ... FROM STDIN` in text format (manual, "COPY", File Formats).
pub fn copy_line(new: &Tuple, columns: &[Source], out: &mut Vec<u8>) {
    let values: Vec<Value<'_>> = new.iter().collect();
    for (place, source) in columns.iter().enumerate() {
        if place > 0 {
            out.push(b'\t');
        }
        let (Source::New(at) | Source::Old(at)) = *source;
        match values.get(at) {
            Some(Value::Text(text)) => escape(text, out),
            _ => out.extend_from_slice(b"\\N"),
        }
    }
    out.push(b'\n');
}

fn escape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = rest
        .iter()
        .position(|b| matches!(b, b'\\' | b'\n' | b'\r' | b'\t'))
    {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(match rest[at] {
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            _ => b"\\t",
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}
