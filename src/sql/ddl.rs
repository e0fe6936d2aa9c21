//! The command tag of a DDL statement, who sees it, and whether a transaction block may hold it.
//!
//! Guards rule 22: what no event trigger sees must be told from what one does, or a command would be
//! applied nowhere else, or twice. The tags are those of the manual's "Event Trigger Firing Matrix".

use super::lexer::TokenKind;
use super::words::Words;

/// Who learns of a DDL command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Event triggers.
    ByTrigger,
    /// Nobody: it concerns the whole server (rule 22).
    ByNobody,
    /// Nobody: it concerns this one node.
    ByNode,
}

/// A DDL command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// As the server names it.
    pub tag: String,
    /// Who learns of it.
    pub seen: Seen,
    /// Whether it may stand in a transaction block.
    pub transactional: bool,
}

/// Kinds of objects, longer names before those they begin with.
#[rustfmt::skip]
const OBJECTS: &[&str] = &[
    "access method", "aggregate", "cast", "collation", "conversion", "database",
    "default privileges", "domain", "event trigger", "extension", "foreign data wrapper",
    "foreign table", "function", "group", "index", "language", "large object", "materialized view",
    "operator class", "operator family", "operator", "owned", "policy", "procedure", "publication",
    "role", "routine", "rule", "schema", "sequence", "server", "statistics", "subscription",
    "system", "tablespace", "table", "text search configuration", "text search dictionary",
    "text search parser", "text search template", "transform", "trigger", "type", "user mapping",
    "user", "view",
];

#[rustfmt::skip]
const GLOBAL: &[&str] = &[
    "database", "event trigger", "group", "role", "tablespace", "user",
];

/// Words between CREATE and the kind of object.
#[rustfmt::skip]
const MODIFIERS: &[&str] = &[
    "temp", "temporary", "local", "global", "unlogged", "unique", "constraint", "recursive",
    "default", "trusted", "procedural",
];

/// The DDL command that a statement is, if it is one.
pub fn command(words: Words<'_>) -> Option<Command> {
    if words.is(0, "create") {
        create(words)
    } else if words.is(0, "alter") {
        alter(words)
    } else if words.is(0, "drop") {
        drop(words)
    } else if words.is(0, "comment") && words.is(1, "on") {
        Some(about_object(words, 2, "COMMENT"))
    } else if words.phrase(0, "security label") > 0 {
        let on = words.find(2, "on")?;
        Some(about_object(words, on + 1, "SECURITY LABEL"))
    } else if words.is(0, "grant") {
        Some(grant(words, "GRANT"))
    } else if words.is(0, "revoke") {
        Some(grant(words, "REVOKE"))
    } else if words.phrase(0, "reassign owned") > 0 {
        Some(global("REASSIGN OWNED"))
    } else if words.phrase(0, "refresh materialized view") > 0 {
        Some(evented("REFRESH MATERIALIZED VIEW"))
    } else if words.phrase(0, "import foreign schema") > 0 {
        Some(evented("IMPORT FOREIGN SCHEMA"))
    } else {
        makes_table_by_select(words).then(|| evented("SELECT INTO"))
    }
}

/// SELECT ... INTO table, also with a WITH before it or in parentheses.
pub fn makes_table_by_select(words: Words<'_>) -> bool {
    let parens = words.leading_parens();
    let verb = if words.is(parens, "with") {
        words.behind_with(parens)
    } else {
        Some(parens)
    };
    let Some(verb) = verb else { return false };
    let inner = words.from(verb);
    let select = verb + inner.leading_parens();
    words.is(select, "select") && words.from(select).find(1, "into").is_some()
}

fn evented(tag: &str) -> Command {
    Command {
        tag: tag.to_owned(),
        seen: Seen::ByTrigger,
        transactional: true,
    }
}

fn global(tag: &str) -> Command {
    Command {
        seen: Seen::ByNobody,
        ..evented(tag)
    }
}

/// The kind of object named at `at`, and the token behind it.
fn object(words: Words<'_>, at: usize) -> Option<(&'static str, usize)> {
    OBJECTS.iter().find_map(|object| {
        let count = words.phrase(at, object);
        (count > 0).then_some((*object, at + count))
    })
}

fn on_object(verb: &str, object: &str) -> Command {
    let kind = match object {
        "user" | "group" => "role",
        other => other,
    };
    let tag = format!("{verb} {}", kind.to_ascii_uppercase());
    if GLOBAL.contains(&object) {
        global(&tag)
    } else {
        evented(&tag)
    }
}

fn create(words: Words<'_>) -> Option<Command> {
    let mut at = 1;
    if words.phrase(at, "or replace") > 0 {
        at += 2;
    }
    while words.is_any(at, MODIFIERS) {
        at += 1;
    }
    let (object, behind) = object(words, at)?;
    let mut command = on_object("CREATE", object);
    match object {
        "table" if words.find(behind, "as").is_some() => {
            "CREATE TABLE AS".clone_into(&mut command.tag);
        }
        "index" => command.transactional = !words.is(behind, "concurrently"),
        // Without a handler it is another way to write CREATE EXTENSION, since 13.
        "language" if words.find(behind, "handler").is_none() => {
            "CREATE EXTENSION".clone_into(&mut command.tag);
        }
        "database" | "tablespace" | "subscription" => command.transactional = false,
        "system" | "owned" | "default privileges" | "large object" => return None,
        _ => {}
    }
    Some(command)
}

fn alter(words: Words<'_>) -> Option<Command> {
    let (object, behind) = object(words, 1 + usize::from(words.is(1, "procedural")))?;
    let mut command = on_object("ALTER", object);
    match object {
        "system" => {
            command.seen = Seen::ByNode;
            command.transactional = false;
        }
        "database" => {
            command.transactional = words.phrase(behind + 1, "set tablespace") == 0;
        }
        "table" => {
            let detach = words.find(behind, "detach");
            let concurrently = detach.and_then(|at| words.find(at, "concurrently"));
            command.transactional = concurrently.is_none();
        }
        "subscription" => command.transactional = false,
        "cast" | "owned" | "transform" => return None,
        _ => {}
    }
    Some(command)
}

fn drop(words: Words<'_>) -> Option<Command> {
    let (object, behind) = object(words, 1 + usize::from(words.is(1, "procedural")))?;
    let mut command = on_object("DROP", object);
    match object {
        "index" => command.transactional = !words.is(behind, "concurrently"),
        "database" | "tablespace" | "subscription" => command.transactional = false,
        "system" | "default privileges" | "large object" => return None,
        _ => {}
    }
    Some(command)
}

/// COMMENT and SECURITY LABEL: one tag, seen where the object's own DDL is.
fn about_object(words: Words<'_>, at: usize, tag: &str) -> Command {
    match object(words, at) {
        Some((object, _)) if GLOBAL.contains(&object) => global(tag),
        _ => evented(tag),
    }
}

/// GRANT and REVOKE: of a role, on something of the server's, or on something of the database's.
fn grant(words: Words<'_>, verb: &str) -> Command {
    let Some(on) = words.find(1, "on") else {
        return global(&format!("{verb} ROLE"));
    };
    // A table may be called `database`, `tablespace` or `parameter`.
    let kind = words.is_any(on + 1, &["database", "tablespace", "parameter"]);
    let named = words.kind(on + 2).is_some_and(TokenKind::is_name)
        && !words.is_any(on + 2, &["to", "from"]);
    if kind && named {
        global(verb)
    } else {
        evented(verb)
    }
}
