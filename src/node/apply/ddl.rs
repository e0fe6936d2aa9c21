//! From a row of `ddl_log` to the one command a follower runs.
//!
//! The writer's event trigger logged the whole text of the query, the command's tag and its ordinal in
//! it; here the piece is found and, where the same text would not do the same on a follower, replaced
//! by what does (REPLICATION rules 17, 20 and 21; the kinds of `detail` are explained in `schema.sql`).
//! It doesn't run anything.

use serde_json::Value;

use super::facts::TableFacts;
use super::sql::{RowSql, Source};
use super::text::Text;
use crate::node::unit::{Change, Changes, Unit};
use crate::sql::aside::tolerant_drop;
use crate::sql::pieces;
use crate::wire::pgoutput::Relation;
use crate::wire::pgoutput::tuple::{Tuple, Value as Datum};

/// A row of `ddl_log` that can't be carried out.
#[derive(Debug, thiserror::Error)]
pub enum DdlError {
    /// The row lacks a column or it can't be read.
    #[error("a row of ddl_log has no usable {0}")]
    Column(&'static str),
    /// The command was not found in the logged text.
    #[error("the command {tag} was not found in the logged query: {why}")]
    Piece {
        /// Command tag.
        tag: String,
        /// The finder's own words.
        why: String,
    },
}

/// One row of `ddl_log`.
#[derive(Clone, Debug)]
pub struct DdlRow {
    /// Who ran it on the writer.
    pub role: String,
    /// Command tag.
    pub tag: String,
    /// Which DDL command of the text it is, from 1.
    pub ordinal: u32,
    /// Whether the text is that of a statement inside a function.
    pub nested: bool,
    /// The text it stands in; none where the unit's last such text holds it.
    pub query: Option<Text>,
    /// Settings that change its meaning, as a JSON object.
    pub settings: Text,
    /// The command itself, where it is already known.
    pub command: Option<Text>,
    /// What is special about it.
    pub detail: Option<Value>,
    /// The same as it came.
    detail_text: Text,
}

impl DdlRow {
    /// Reads the row by its columns' names.
    pub fn from_tuple(table: &Relation, row: &Tuple) -> Result<Self, DdlError> {
        let columns: Vec<Datum<'_>> = row.iter().collect();
        let bytes = |name: &'static str| -> Option<&[u8]> {
            let at = table.columns.iter().position(|c| c.name == name)?;
            match columns.get(at) {
                Some(Datum::Text(bytes)) => Some(*bytes),
                _ => None,
            }
        };
        let need = |name: &'static str| {
            let bytes = bytes(name).ok_or(DdlError::Column(name))?;
            String::from_utf8(bytes.to_vec()).map_err(|_| DdlError::Column(name))
        };
        // Without its detail a command would do something else.
        let detail_text = bytes("detail").map(Text::new);
        let detail = detail_text
            .as_ref()
            .map(|text| serde_json::from_str(text.as_str()))
            .transpose()
            .map_err(|_| DdlError::Column("detail"))?;
        Ok(Self {
            role: need("role")?,
            tag: need("tag")?,
            ordinal: need("ordinal")?
                .parse()
                .map_err(|_| DdlError::Column("ordinal"))?,
            nested: need("nested")? == "t",
            query: bytes("query").map(Text::new),
            settings: bytes("settings").map_or_else(|| Text::from("{}"), Text::new),
            command: bytes("command").map(Text::new),
            detail,
            detail_text: detail_text.unwrap_or_default(),
        })
    }

    fn detail(&self, key: &str) -> Option<&str> {
        self.detail.as_ref()?.get(key)?.as_str()
    }
}

/// The row whose command the follower must run at the place of this one: mostly the row itself; none where
/// another place has it, or where nothing came of it.
pub fn row_to_run(unit: &Unit, row: &DdlRow) -> Result<Option<DdlRow>, DdlError> {
    if row.detail("at").is_some() {
        return Ok(None);
    }
    if row.detail("kind") == Some("place") {
        return made_at(unit, row.detail("token").unwrap_or_default());
    }
    Ok(Some(row.clone()))
}

/// What the follower must run for this row. `text` is the last client text of the unit, for a row that
/// does not repeat it.
pub fn command(row: &DdlRow, text: Option<&Text>) -> Result<Vec<u8>, DdlError> {
    let whole = row.command.as_ref().or(row.query.as_ref()).or(text);
    let whole = whole.ok_or(DdlError::Column("query"))?;
    let command = logged_command(row, whole.as_str())?;
    let fills = row
        .detail
        .as_ref()
        .is_some_and(|d| d.get("contents").is_some());
    if fills && row.tag == "CREATE MATERIALIZED VIEW" {
        return Ok(whole.bytes_of(&pieces::without_data(&command, conforming(row))));
    }
    Ok(whole.bytes_of(&command))
}

fn conforming(row: &DdlRow) -> bool {
    let off = "\"standard_conforming_strings\": \"off\"";
    !row.settings.as_str().contains(off)
}

/// `whole` is the command itself where the row has it, else the text that it stands in.
fn logged_command(row: &DdlRow, whole: &str) -> Result<String, DdlError> {
    if row.command.is_some() {
        return Ok(for_follower(whole));
    }
    let query = whole;
    let conforming = conforming(row);
    let piece = if row.detail("kind") == Some("sql_function") {
        pieces::statement(query, row.ordinal, conforming)
    } else {
        pieces::piece(query, row.ordinal, &row.tag, row.nested, conforming)
    };
    let piece = piece.map_err(|why| DdlError::Piece {
        tag: row.tag.clone(),
        why: why.to_string(),
    })?;
    Ok(for_follower(piece))
}

fn for_follower(command: &str) -> String {
    let plain = pieces::plain_form(command);
    tolerant_drop(&plain).into_owned()
}

/// What the superuser's runner must run right after the command, where the row asks for anything.
pub fn follow_up(row: &DdlRow) -> Option<Vec<u8>> {
    let detail = row.detail.as_ref()?;
    let asked = ["missing", "extension"];
    if asked.iter().all(|key| detail.get(key).is_none()) {
        return None;
    }
    let literal = detail.to_string().replace('\'', "''").replace('\\', "\\\\");
    let call = format!("select synapsedb.follow_up(E'{literal}')");
    Some(row.detail_text.bytes_of(&call))
}

/// Finds, later in the unit, the row that was logged when the command which began here had ended.
fn made_at(unit: &Unit, token: &str) -> Result<Option<DdlRow>, DdlError> {
    let look = |change: &Change| -> Result<Option<DdlRow>, DdlError> {
        let Change::Insert { table, new } = change else {
            return Ok(None);
        };
        if table.namespace != crate::ids::SYNAPSEDB || table.name != "ddl_log" {
            return Ok(None);
        }
        let row = DdlRow::from_tuple(table, new)?;
        let found = row.detail("at") == Some(token);
        Ok(found.then_some(row))
    };
    match &unit.changes {
        Changes::Memory(changes) => {
            for change in changes {
                if let Some(row) = look(change)? {
                    return Ok(Some(row));
                }
            }
        }
        Changes::Spilled(spill) => {
            let unreadable = |_: std::io::Error| DdlError::Column("spill file");
            let mut reader = spill.reader();
            while let Some(change) = reader.next_change().map_err(unreadable)? {
                if let Some(row) = look(&change)? {
                    return Ok(Some(row));
                }
            }
        }
    }
    Ok(None)
}

/// A row's statement with its values written into the text, for the runner, which takes no parameters.
pub fn with_literals(row: &RowSql, old: &Tuple, new: &Tuple) -> Vec<u8> {
    let old: Vec<Datum<'_>> = old.iter().collect();
    let new: Vec<Datum<'_>> = new.iter().collect();
    let mut text = Vec::with_capacity(row.text.len() + 64);
    let mut rest = row.text.as_str();
    // Names are quoted, so a dollar sign followed by a digit outside quotes is always a parameter.
    let mut quoted = false;
    while let Some(at) = rest.find(['$', '"']) {
        text.extend_from_slice(&rest.as_bytes()[..at]);
        let digits = rest[at + 1..]
            .bytes()
            .take_while(u8::is_ascii_digit)
            .count();
        if rest.as_bytes()[at] == b'"' || quoted || digits == 0 {
            quoted ^= rest.as_bytes()[at] == b'"';
            text.push(rest.as_bytes()[at]);
            rest = &rest[at + 1..];
            continue;
        }
        let number: usize = rest[at + 1..at + 1 + digits].parse().unwrap_or(0);
        let column = match row.parameters.get(number.wrapping_sub(1)) {
            Some(Source::New(at)) => new.get(*at),
            Some(Source::Old(at)) => old.get(*at),
            None => None,
        };
        match column {
            Some(Datum::Text(value)) => push_literal(&mut text, value),
            _ => text.extend_from_slice(b"null"),
        }
        rest = &rest[at + 1 + digits..];
    }
    text.extend_from_slice(rest.as_bytes());
    text
}

/// A literal, with `standard_conforming_strings` on; the bytes stay what they are.
pub fn push_literal(text: &mut Vec<u8>, value: &[u8]) {
    text.push(b'\'');
    for &byte in value {
        if byte == b'\'' {
            text.push(byte);
        }
        text.push(byte);
    }
    text.push(b'\'');
}

/// The runner's settings for a command that writes one row.
pub fn one_row(search_path: &str) -> String {
    serde_json::json!({ "search_path": search_path, "synapsedb.rows": "1" }).to_string()
}

/// How to lift a table's forced row security, which would hide rows from their own owner, and how to put it
/// back. Both in one transaction, which holds the table's strongest lock: nobody else sees it lifted.
pub fn forced_security(facts: &TableFacts) -> Option<(String, String)> {
    let set = |how: &str| {
        let name = &facts.name;
        format!("alter table only {name} {how} row level security")
    };
    facts
        .forced_security
        .then(|| (set("no force"), set("force")))
}

/// For a log line: the beginning of a command, without its literals' length getting in the way.
pub fn first_line(command: &[u8]) -> String {
    String::from_utf8_lossy(command)
        .trim()
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(120)
        .collect()
}
