//! What a text does to things that all databases share, or to the proxy's own, where only its words show it.
//!
//! Pure. No event trigger sees a role that DO makes, and the proxy sees no command of its own there, so such
//! a text is refused. Its words are read wherever they stand, in strings that are executed too: rather one
//! text too many is refused than one let through.

use crate::sql::statement::{Kind, StatementFacts};

/// What the server's databases share, and event triggers.
const SHARED: [&str; 6] = ["role", "user", "group", "database", "tablespace", "event"];

/// Whether a DO changes something that no event trigger sees.
pub fn changes_what_is_shared(text: &str) -> bool {
    let lower = text.to_lowercase();
    let word = |c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$'));
    let words: Vec<&str> = lower.split(word).filter(|word| !word.is_empty()).collect();
    (0..words.len()).any(|at| changes_shared(&words[at..]))
}

fn changes_shared(words: &[&str]) -> bool {
    let word = |at: usize| words.get(at).copied().unwrap_or_default();
    let shared = |at: usize| {
        SHARED.contains(&word(at))
            && (word(at) != "user" || word(at + 1) != "mapping")
            && (word(at) != "event" || word(at + 1) == "trigger")
    };
    match word(0) {
        "create" | "alter" | "drop" => shared(1),
        "comment" => word(1) == "on" && shared(2),
        "reassign" => word(1) == "owned",
        "grant" | "revoke" => grants_shared(&words[1..]),
        _ => false,
    }
}

/// Of a role, or on something that is shared: what comes first, ON or who gets it.
fn grants_shared(words: &[&str]) -> bool {
    let first = words
        .iter()
        .position(|word| matches!(*word, "on" | "to" | "from"));
    let Some(at) = first else { return false };
    let kind = words.get(at + 1).copied().unwrap_or_default();
    words[at] != "on" || matches!(kind, "database" | "tablespace" | "parameter")
}

/// Whether a command would take off what the proxy needs, and which its event triggers could not stop: with
/// the schema they are gone themselves, and of event triggers none is told.
pub fn concerns_own(statement: &StatementFacts) -> bool {
    let words = &statement.names.words;
    match &statement.kind {
        Kind::Ddl(tag) if matches!(tag.as_str(), "DROP SCHEMA" | "DROP PUBLICATION") => {
            words.iter().any(|word| word == "synapsedb")
        }
        // Appliers mark units by it, and commits are found by it.
        Kind::Ddl(tag) if tag == "REVOKE" => {
            words.iter().any(|word| word == "pg_logical_emit_message")
        }
        Kind::GlobalDdl => words.iter().any(|word| word.starts_with("!synapsedb")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_found_wherever_they_stand() {
        for text in [
            "do $$ begin create role r; end $$",
            "do 'begin CREATE  USER r; end'",
            "do $$ begin execute format('alter group %I add user x', r); end $$",
            "do $$ begin execute 'grant ' || a || ' to ' || b; end $$",
            "do $$ begin revoke admin option for a from b; end $$",
            "do $$ begin grant connect on database d to a; end $$",
            "do $$ begin reassign owned by a to b; end $$",
            "do $$ begin comment on role a is 'x'; end $$",
            "do $$ begin drop event trigger x; end $$",
        ] {
            assert!(changes_what_is_shared(text), "{text}");
        }
        for text in [
            "do $$ begin create user mapping for a server s; end $$",
            "do $$ begin grant select on t to a; revoke grant option for select on t from a; end $$",
            "do $$ begin create table role (a int); comment on table t is 'x'; end $$",
        ] {
            assert!(!changes_what_is_shared(text), "{text}");
        }
    }
}
