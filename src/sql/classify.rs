//! A statement's kind by its first words, as the server's grammar reads them.
//!
//! Exact where the kind decides what the relay keeps of it (transactions, settings, cursors), and
//! [`Kind::Unknown`] for whatever does not read as expected: the server will refuse most of that,
//! and the rest runs on the writer and is probed after.

use super::ddl::{self, Seen};
use super::lexer::{Token, TokenKind, text_of};
use super::names::{Names, dotted_name};
use super::prove::{self, Proven};
use super::settings;
use super::split::Piece;
use super::statement::{
    Discard, Effects, Isolation, Kind, Modes, Reason, Scope, StatementFacts, Upkeep,
};
use super::words::Words;

/// The facts of one statement.
pub fn statement(text: &str, tokens: &[Token], piece: &Piece) -> StatementFacts {
    let words = Words::of(text, tokens, piece);
    let mut names = Names::of(text, words.tokens);
    let (kind, transactional) = kind(words);
    let mut named_effects = names.named_effects().or(kind_effects(&kind, words));
    if matches!(kind, Kind::Prepare(_) | Kind::Explain { analyze: false }) {
        // What it names is not run now.
        named_effects = kind_effects(&kind, words);
    }
    let query = readable(&kind, words).map(|proven| {
        names.relations = Some(proven.relations);
        names.with_queries = proven.with_queries;
    });
    StatementFacts {
        kind,
        bytes: piece.bytes.clone(),
        named_effects,
        transactional,
        names,
        query,
    }
}

/// Proves what it can: a query, or an EXPLAIN or COPY of one.
fn readable(kind: &Kind, words: Words<'_>) -> Result<Proven, Reason> {
    match kind {
        Kind::Query => prove::query(words),
        Kind::Explain { .. } => {
            let (_, inner) = explained(words).ok_or(Reason::NotAQuery)?;
            match query(words.from(inner)) {
                Some(Kind::Query) => prove::query(words.from(inner)),
                Some(_) => Err(Reason::Writes),
                None => Err(Reason::NotAQuery),
            }
        }
        Kind::Write | Kind::CopyIn => Err(Reason::Writes),
        _ => Err(Reason::NotAQuery),
    }
}

/// What a kind does to its session, whatever it names.
fn kind_effects(kind: &Kind, words: Words<'_>) -> Effects {
    let none = Effects::default();
    let settings = Effects {
        may_change_settings: true,
        ..none
    };
    let pins = Effects {
        may_pin: true,
        ..none
    };
    let unknown = Effects {
        uses_sequence_state: false,
        ..Effects::ALL
    };
    let temporary = if names_temporary(words) { pins } else { none };
    let own = match kind {
        // What is LOCAL ends with its transaction.
        Kind::Set { scope, .. }
        | Kind::SetRole { scope, .. }
        | Kind::SetSessionAuthorization { scope, .. }
        | Kind::SetTransaction { scope, .. } => match scope {
            Scope::Session => settings,
            Scope::Local => none,
        },
        Kind::Reset(_) | Kind::ResetAll => settings,
        Kind::Discard(Discard::All) => unknown,
        Kind::Discard(Discard::Plans) => none,
        Kind::Discard(_)
        | Kind::Prepare(_)
        | Kind::Deallocate(_)
        | Kind::DeallocateAll
        | Kind::DeclareCursor { .. }
        | Kind::CloseCursor(_)
        | Kind::Listen(_)
        | Kind::Unlisten(_)
        | Kind::TwoPhase
        | Kind::Load => pins,
        // DDL may run triggers, scripts and defaults; what it makes may be temporary by the path.
        Kind::Execute(_) | Kind::Do | Kind::Call | Kind::Ddl(_) | Kind::CreateSubscription => {
            unknown
        }
        Kind::Explain { analyze: true } if !explains_rows(words) => unknown,
        // An UPDATE of it is a SET.
        Kind::Write
            if (0..words.len()).any(|at| words.name(at).as_deref() == Some("pg_settings")) =>
        {
            settings
        }
        // Triggers fire on tables that the text does not name.
        Kind::Write if words.is(0, "truncate") && words.find(1, "cascade").is_some() => unknown,
        Kind::Unknown => Effects::ALL,
        _ => none,
    };
    own.or(temporary)
}

/// Whether an EXPLAIN is of a query or a write, not of EXECUTE or the like.
fn explains_rows(words: Words<'_>) -> bool {
    let inner = explained(words).map(|(_, inner)| kind(words.from(inner)).0);
    matches!(inner, Some(Kind::Query | Kind::Write))
}

/// Names a temporary schema, or makes something temporary.
fn names_temporary(words: Words<'_>) -> bool {
    let makes = words.is(0, "create") || words.find_in(0, "into", usize::MAX).is_some();
    (0..words.len()).any(|at| match words.kind(at) {
        Some(TokenKind::Word | TokenKind::QuotedName) => words.name(at).is_some_and(|name| {
            name.starts_with("pg_temp") || makes && (name == "temp" || name == "temporary")
        }),
        Some(TokenKind::UnicodeName) => true,
        Some(kind) if kind.is_text() => words.raw(at).to_ascii_lowercase().contains("pg_temp"),
        _ => false,
    })
}

/// The kind, and whether it may stand in a transaction block.
pub fn kind(words: Words<'_>) -> (Kind, bool) {
    if let Some(command) = ddl::command(words) {
        let kind = match command.seen {
            Seen::ByNode => Kind::AlterSystem,
            Seen::ByNobody => Kind::GlobalDdl,
            Seen::ByTrigger if command.tag == "CREATE SUBSCRIPTION" => Kind::CreateSubscription,
            Seen::ByTrigger => Kind::Ddl(command.tag),
        };
        return (kind, command.transactional);
    }
    let first = words.raw(0).to_ascii_lowercase();
    let kind = match (words.kind(0), first.as_str()) {
        (Some(TokenKind::Open), _) => query(words),
        (Some(TokenKind::Word), word) => match word {
            "select" | "values" | "table" | "with" => query(words),
            "insert" | "update" | "delete" | "merge" | "truncate" => Some(Kind::Write),
            "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint"
            | "release" => transaction(words, word),
            "set" | "reset" | "show" | "discard" => settings::kind(words, word),
            "prepare" | "execute" | "deallocate" | "declare" | "fetch" | "move" | "close" => {
                prepared(words, word)
            }
            "listen" | "unlisten" | "notify" => channel(words, word),
            "copy" => copy(words),
            "explain" => explain(words),
            "vacuum" | "analyze" | "analyse" | "reindex" | "cluster" | "checkpoint" => {
                return upkeep(words, word);
            }
            "lock" => Some(Kind::Lock),
            "do" => Some(Kind::Do),
            "call" => Some(Kind::Call),
            "load" => Some(Kind::Load),
            _ => None,
        },
        _ => None,
    };
    (kind.unwrap_or(Kind::Unknown), true)
}

/// SELECT and its like. INTO is spoken for by DDL; what holds the verb of a write is one.
fn query(words: Words<'_>) -> Option<Kind> {
    const WRITES: [&str; 4] = ["insert", "update", "delete", "merge"];
    let parens = words.leading_parens();
    if words.is(parens, "with") {
        words.behind_with(parens)?;
    } else if !words.is_any(parens, &["select", "values", "table"]) {
        return None;
    }
    let locks = |at: usize| at > 0 && words.is_any(at - 1, &["for", "key"]);
    let writes = (0..words.len()).any(|at| words.is_any(at, &WRITES) && !locks(at));
    Some(if writes { Kind::Write } else { Kind::Query })
}

fn transaction(words: Words<'_>, word: &str) -> Option<Kind> {
    let noise = |at: usize| usize::from(words.is_any(at, &["work", "transaction"]));
    match word {
        "begin" => modes(words.from(1 + noise(1))).map(Kind::Begin),
        "start" if words.is(1, "transaction") => modes(words.from(2)).map(Kind::Begin),
        "commit" | "rollback" if words.is(1, "prepared") => Some(Kind::TwoPhase),
        "commit" | "end" => chain(words.from(1 + noise(1))).map(|chain| Kind::Commit { chain }),
        "rollback" | "abort" => {
            let at = 1 + noise(1);
            if word == "rollback" && words.is(at, "to") {
                let at =
                    at + 1 + usize::from(words.is(at + 1, "savepoint") && words.len() > at + 2);
                return only_name(words, at).map(Kind::RollbackTo);
            }
            chain(words.from(at)).map(|chain| Kind::Rollback { chain })
        }
        "savepoint" => only_name(words, 1).map(Kind::Savepoint),
        "release" => {
            let at = 1 + usize::from(words.is(1, "savepoint") && words.len() > 2);
            only_name(words, at).map(Kind::Release)
        }
        _ => None,
    }
}

/// `[AND [NO] CHAIN]` and nothing else.
fn chain(words: Words<'_>) -> Option<bool> {
    match words.len() {
        0 => Some(false),
        2 if words.phrase(0, "and chain") > 0 => Some(true),
        3 if words.phrase(0, "and no chain") > 0 => Some(false),
        _ => None,
    }
}

/// The name at `at`, where nothing follows it.
pub fn only_name(words: Words<'_>, at: usize) -> Option<String> {
    (words.len() == at + 1).then(|| words.name(at)).flatten()
}

/// Transaction modes, with commas or without, and nothing else.
pub fn modes(words: Words<'_>) -> Option<Modes> {
    const LEVELS: [(&str, Isolation); 4] = [
        ("read uncommitted", Isolation::ReadUncommitted),
        ("read committed", Isolation::ReadCommitted),
        ("repeatable read", Isolation::RepeatableRead),
        ("serializable", Isolation::Serializable),
    ];
    let mut modes = Modes::default();
    let mut at = 0;
    while at < words.len() {
        if at > 0 && words.kind(at) == Some(TokenKind::Comma) {
            at += 1;
        }
        let level = words.phrase(at, "isolation level");
        if level > 0 {
            let (count, isolation) = LEVELS
                .iter()
                .map(|(name, isolation)| (words.phrase(at + level, name), *isolation))
                .find(|(count, _)| *count > 0)?;
            modes.isolation = Some(isolation);
            at += level + count;
        } else if words.phrase(at, "read only") > 0 {
            modes.read_only = Some(true);
            at += 2;
        } else if words.phrase(at, "read write") > 0 {
            modes.read_only = Some(false);
            at += 2;
        } else if words.is(at, "deferrable") {
            modes.deferrable = Some(true);
            at += 1;
        } else if words.phrase(at, "not deferrable") > 0 {
            modes.deferrable = Some(false);
            at += 2;
        } else {
            return None;
        }
    }
    Some(modes)
}

fn prepared(words: Words<'_>, word: &str) -> Option<Kind> {
    match word {
        "prepare"
            if words.is(1, "transaction") && words.kind(2).is_some_and(TokenKind::is_text) =>
        {
            Some(Kind::TwoPhase)
        }
        "prepare" => words.name(1).map(Kind::Prepare),
        "execute" => words.name(1).map(Kind::Execute),
        "deallocate" => {
            let at = 1 + usize::from(words.is(1, "prepare") && words.len() > 2);
            if words.is(at, "all") {
                return (words.len() == at + 1).then_some(Kind::DeallocateAll);
            }
            only_name(words, at).map(Kind::Deallocate)
        }
        "declare" => {
            let name = words.name(1)?;
            let query = words.find(2, "for")?;
            let hold = words
                .find(2, "hold")
                .is_some_and(|at| at < query && words.is(at - 1, "with"));
            Some(Kind::DeclareCursor { name, hold })
        }
        "fetch" | "move" => Some(Kind::Fetch),
        "close" if words.is(1, "all") && words.len() == 2 => Some(Kind::CloseCursor(None)),
        "close" => only_name(words, 1).map(|name| Kind::CloseCursor(Some(name))),
        _ => None,
    }
}

fn channel(words: Words<'_>, word: &str) -> Option<Kind> {
    match word {
        "listen" => only_name(words, 1).map(Kind::Listen),
        "unlisten" if words.raw(1) == "*" && words.len() == 2 => Some(Kind::Unlisten(None)),
        "unlisten" => only_name(words, 1).map(|name| Kind::Unlisten(Some(name))),
        _ => words.name(1).map(Kind::Notify),
    }
}

/// COPY: behind the table or query comes FROM or TO and where.
fn copy(words: Words<'_>) -> Option<Kind> {
    let mut at = 1 + usize::from(words.is(1, "binary") && words.kind(2) != Some(TokenKind::Dot));
    if words.kind(at) == Some(TokenKind::Open) {
        at = words.behind_parens(at)?;
    } else {
        dotted_name(words.text, words.tokens, at)?;
        at += 1;
        while words.kind(at) == Some(TokenKind::Dot) {
            at += 2;
        }
        if words.kind(at) == Some(TokenKind::Open) {
            at = words.behind_parens(at)?;
        }
    }
    let from = words.is(at, "from");
    if !from && !words.is(at, "to") {
        return None;
    }
    // The server takes either of the two words in both directions.
    Some(match (from, words.is_any(at + 1, &["stdin", "stdout"])) {
        (true, true) => Kind::CopyIn,
        (false, true) => Kind::CopyOut,
        _ => Kind::CopyServer,
    })
}

/// EXPLAIN: the options, then the statement that it explains.
fn explain(words: Words<'_>) -> Option<Kind> {
    let (analyze, inner) = explained(words)?;
    let makes = ddl::command(words.from(inner)).is_some();
    Some(if analyze && makes {
        Kind::ExplainMakesTable
    } else {
        Kind::Explain { analyze }
    })
}

/// Whether EXPLAIN runs the statement, and where that begins. Any mention of ANALYZE counts.
pub fn explained(words: Words<'_>) -> Option<(bool, usize)> {
    let is_analyze = |at: usize| words.is_any(at, &["analyze", "analyse"]);
    let options = words.kind(1) == Some(TokenKind::Open)
        && !words.is_any(2, &["select", "with", "values", "table"])
        && words.kind(2) != Some(TokenKind::Open);
    if options {
        let behind = words.behind_parens(1)?;
        let quoted = |at: usize| words.kind(at) == Some(TokenKind::QuotedName);
        return Some(((2..behind).any(|at| is_analyze(at) || quoted(at)), behind));
    }
    let analyze = is_analyze(1);
    let at = 1 + usize::from(analyze);
    Some((analyze, at + usize::from(words.is(at, "verbose"))))
}

fn upkeep(words: Words<'_>, word: &str) -> (Kind, bool) {
    let concurrently = (0..words.len()).any(|at| words.is(at, "concurrently"));
    let (upkeep, transactional) = match word {
        "vacuum" => (Upkeep::Vacuum, false),
        "reindex" => {
            let wide =
                (0..words.len()).any(|at| words.is_any(at, &["schema", "database", "system"]));
            (Upkeep::Reindex, !concurrently && !wide)
        }
        "cluster" => {
            let behind = if words.kind(1) == Some(TokenKind::Open) {
                words.behind_parens(1).unwrap_or(1)
            } else {
                1 + usize::from(words.is(1, "verbose"))
            };
            (Upkeep::Cluster, behind < words.len())
        }
        "checkpoint" => (Upkeep::Checkpoint, true),
        _ => (Upkeep::Analyze, true),
    };
    (Kind::Upkeep(upkeep), transactional)
}

/// The literal or name at `at`, where a setting takes either; `None` where it is neither or not known.
pub fn literal_or_name(words: Words<'_>, at: usize) -> Option<String> {
    let token = *words.tokens.get(at)?;
    text_of(words.text, token).or_else(|| words.name(at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::catalog::Catalog;
    use super::super::statement::{Facts, Verdict};
    use super::super::{pieces, rewrite};

    /// Everything that is done with a text, whatever it is.
    fn use_all(text: &str, scs: bool) {
        let catalog = Catalog::from_rows(1, []);
        let facts = Facts::of(text, scs);
        for statement in &facts.statements {
            assert!(text.get(statement.bytes.clone()).is_some());
        }
        let _ = (
            facts.verdict(&catalog),
            facts.effects(&catalog),
            facts.mentions_metadata(),
        );
        let _ = rewrite::metadata(text, scs, &facts, &catalog);
        let _ = pieces::piece(text, 1, "CREATE TABLE", false, scs);
        let _ = pieces::plain_form(text);
    }

    /// Words that mean something to the classifier, and what stands between them.
    fn soup() -> impl Strategy<Value = String> {
        const WORDS: &[&str] = &[
            "select",
            "insert",
            "update",
            "with",
            "as",
            "(",
            ")",
            ";",
            ",",
            ".",
            "from",
            "into",
            "for",
            "set",
            "local",
            "session",
            "to",
            "=",
            "'x'",
            "E'\\'",
            "$$",
            "$1",
            "1",
            "\"q\"",
            "U&\"q\"",
            "begin",
            "atomic",
            "end",
            "create",
            "table",
            "function",
            "temp",
            "explain",
            "analyze",
            "copy",
            "stdin",
            "rollback",
            "savepoint",
            "recursive",
            "search",
            "cycle",
            "using",
            "grant",
            "on",
            "database",
            "cluster_nodes",
            "check_quorum",
            "union",
            "join",
            "[",
            "]",
            "::",
            "--\n",
            "/*",
            "*/",
            "é",
            "\n",
            "concurrently",
            "detach",
            "reindex",
            "authorization",
            "role",
            "time",
            "zone",
            "prepare",
        ];
        let word = prop::sample::select(WORDS);
        prop::collection::vec(word, 0..40).prop_map(|words| words.join(" "))
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}", scs: bool) {
            use_all(&text, scs);
        }

        #[test]
        fn no_soup_panics(text in soup(), scs: bool) {
            use_all(&text, scs);
        }

        #[test]
        fn a_text_with_a_write_is_no_read(before in soup(), after in soup()) {
            // What opens here may close behind the write and make it a literal or a comment.
            prop_assume!(!before.contains("$$") && !before.contains("/*"));
            let text = format!("{before} ; delete from t ; {after}");
            let facts = Facts::of(&text, true);
            prop_assert_ne!(facts.verdict(&Catalog::from_rows(1, [])), Verdict::Read);
        }
    }
}
