//! Statements that name the proxy's metadata (`cluster_nodes`, `check_quorum()`): what is behind the names
//! is brought up to date first, and bare names get their schema spliced in.
//!
//! The client's text is only ever added to, error positions are led back, and a name that the user's own
//! relation or function has is left alone. Nothing here is on the way of other statements.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};

use crate::cluster::service::OwnNames;
use crate::error::ClientError;
use crate::session::brief::Brief;
use crate::session::relay::{End, Session};
use crate::session::requests::Step;
use crate::sql::catalog::{Catalog, CatalogRow};
use crate::sql::names::{METADATA_FUNCTIONS, METADATA_RELATIONS};
use crate::sql::rewrite::{self, Rewritten};
use crate::sql::statement::{Facts, Kind};
use crate::wire::frame::{HEADER_BYTES, Header};
use crate::wire::message::backend::Status;
use crate::wire::message::names;

/// Words behind which a DDL command names what it makes.
const MADE_BEHIND: [&str; 7] = [
    "table", "view", "exists", "function", "to", "into", "sequence",
];

/// What a session remembers for them.
#[derive(Debug, Default)]
pub struct Metadata {
    /// The message in hand has been seen to.
    seen: bool,
    /// Why what is behind the names could not be brought up to date for the message in hand.
    pub(super) stale: Option<ClientError>,
    /// Names that this session has given to things of its own in the transaction that is open: others, the
    /// proxy too, do not see them yet.
    made: BTreeSet<String>,
    /// Names that it has given to temporary things, which nobody else ever sees.
    temporary: BTreeSet<String>,
}

impl Session {
    /// Sees to the Query or Parse at the front, if it names the metadata and that was not done yet. `Some`:
    /// it has been dealt with in other words. Dropped midway, the session is at its end.
    pub(super) async fn metadata(
        &mut self,
        header: Header,
        brief: &Brief,
    ) -> Result<Option<Step>, End> {
        let facts = brief.special.as_ref().filter(|f| f.mentions_metadata());
        let Some(facts) = facts.filter(|_| !self.metadata.seen) else {
            return Ok(None);
        };
        let Some(text) = self.text_range(header) else {
            return Ok(None);
        };
        let service = self.shared.relay.service();
        let own = match service.refresh_metadata(&self.database).await {
            Ok(own) => own,
            Err(error) => {
                self.metadata.stale = Some(error);
                return Ok(None);
            }
        };
        let Ok(original) = std::str::from_utf8(&self.input[text.clone()]) else {
            return Ok(None);
        };
        if self.status == Status::Idle && self.pipeline.is_empty() {
            self.metadata.made.clear();
        }
        let made = made_names(original, facts);
        let known = &mut self.metadata;
        if contains_word(original, &["temp", "temporary", "pg_temp"]) {
            known.temporary.extend(made);
        } else {
            known.made.extend(made);
        }
        let catalog = catalog(&own, known.made.union(&known.temporary));
        let standard = self.standard_strings();
        let Some(new) = rewrite::metadata(original, standard, facts, &catalog) else {
            return Ok(None);
        };
        let len = header.len - text.len() + new.text.len();
        self.replace_front(header, text.start, text.end, &new);
        self.metadata.seen = true;
        let known = self.pipeline.len();
        let header = Header { len, ..header };
        let step = Box::pin(self.message(header)).await;
        self.metadata.seen = false;
        self.pipeline.splice_since(known, new.splices());
        step.map(Some)
    }

    /// Brings what is behind the names up to date for a statement that was prepared before. Where that
    /// fails the statement shows what was true last; its heartbeats say when.
    pub(super) async fn refresh_for(&self, brief: &Brief) {
        let names = |facts: &std::sync::Arc<Facts>| facts.mentions_metadata();
        if brief.special.as_ref().is_some_and(names) {
            let service = self.shared.relay.service();
            // It has been logged where it failed.
            let _ = service.refresh_metadata(&self.database).await;
        }
    }

    /// Where the text of the Query or Parse at the front lies.
    fn text_range(&self, header: Header) -> Option<std::ops::Range<usize>> {
        let start = match header.tag {
            b'Q' => HEADER_BYTES,
            _ => names::statement_range(&self.input).ok().flatten()?.end + 1,
        };
        let text = self.input.get(start..header.len)?;
        Some(start..start + memchr::memchr(0, text)?)
    }

    fn replace_front(&mut self, header: Header, start: usize, end: usize, new: &Rewritten) {
        let rest = self.input.split_off(header.len);
        let old: Bytes = self.input.split().freeze();
        let added = new.text.len() - (end - start);
        let mut frame = BytesMut::with_capacity(old.len() + added + rest.len());
        frame.put_u8(header.tag);
        // The text was bounded when its message was accepted, and what is added is a few words.
        frame.put_u32(u32::try_from(header.len - 1 + added).unwrap_or(u32::MAX));
        frame.put_slice(&old[HEADER_BYTES..start]);
        frame.put_slice(new.text.as_bytes());
        frame.put_slice(&old[end..]);
        frame.put_slice(&rest);
        self.input = frame;
    }
}

/// Names of the metadata that a DDL command of this text gives to something else.
fn made_names(text: &str, facts: &Facts) -> Vec<String> {
    let is_ddl = |kind: &Kind| matches!(kind, Kind::Ddl(_) | Kind::Query);
    if !facts.statements.iter().any(|one| is_ddl(&one.kind)) {
        return Vec::new();
    }
    let lower = text.to_lowercase();
    let words: Vec<&str> = words(&lower).collect();
    let names =
        |word: &str| METADATA_RELATIONS.contains(&word) || METADATA_FUNCTIONS.contains(&word);
    // TABLE alone is a query; CREATE must be there, or INTO and RENAME TO.
    let makes = words
        .iter()
        .any(|word| matches!(*word, "create" | "into" | "rename"));
    let made = words
        .windows(2)
        .filter(|pair| makes && MADE_BEHIND.contains(&pair[0]) && names(pair[1]));
    made.map(|pair| pair[1].to_owned()).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let cut = |c: char| !(c.is_alphanumeric() || c == '_');
    text.split(cut).filter(|word| !word.is_empty())
}

fn contains_word(text: &str, wanted: &[&str]) -> bool {
    words(&text.to_lowercase()).any(|word| wanted.contains(&word))
}

/// As much of a catalog as the splicing asks for.
fn catalog<'a>(own: &'a OwnNames, made: impl Iterator<Item = &'a String> + Clone) -> Catalog {
    let row = |kind: &str, name: &String| CatalogRow {
        kind: kind.to_owned(),
        schema: Some(String::new()),
        name: name.clone(),
        own: true,
        ..CatalogRow::default()
    };
    let relations = own.relations.iter().chain(made.clone());
    let functions = own.functions.iter().chain(made);
    let rows = relations
        .map(|name| row("relation", name))
        .chain(functions.map(|name| row("function", name)));
    Catalog::from_rows(u64::MAX, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_makes_itself_is_seen() {
        for (text, expected) in [
            (
                "create temp table cluster_nodes (a int)",
                vec!["cluster_nodes"],
            ),
            (
                "create table if not exists \"conflict_log\" ()",
                vec!["conflict_log"],
            ),
            (
                "alter table t rename to cluster_nodes",
                vec!["cluster_nodes"],
            ),
            ("select 1 as a into cluster_nodes", vec!["cluster_nodes"]),
            ("create view v as select * from cluster_nodes", vec![]),
            ("table cluster_nodes", vec![]),
            ("select * from cluster_nodes", vec![]),
        ] {
            let facts = Facts::of(text, true);
            assert_eq!(made_names(text, &facts), expected, "{text}");
        }
    }
}
