//! SET, RESET, SHOW and DISCARD: which setting, for how long, to what.
//!
//! Every spelling that the server's grammar has is read, so that a role or setting that a session
//! took on is never overlooked; an unread one is [`Kind::Unknown`], which is probed.

use super::classify::{literal_or_name, modes};
use super::lexer::TokenKind;
use super::names::dotted_name;
use super::statement::{Discard, Kind, Scope, Value};
use super::words::Words;

/// The kind of a statement that begins with one of the four words.
pub fn kind(words: Words<'_>, word: &str) -> Option<Kind> {
    match word {
        "set" => set(words),
        "reset" => reset(words),
        "show" => show(words),
        _ => discard(words),
    }
}

fn set(words: Words<'_>) -> Option<Kind> {
    if words.is(1, "constraints") && !is_assignment(words, 2) {
        return Some(Kind::SetConstraints);
    }
    if words.phrase(1, "session characteristics as transaction") > 0 {
        return transaction(words, 5, Scope::Session);
    }
    let (scope, at) = if is_assignment(words, 2) || words.kind(2) == Some(TokenKind::Dot) {
        // `session` and `local` may themselves be a setting's name.
        (Scope::Session, 1)
    } else if words.is(1, "local") {
        (Scope::Local, 2)
    } else if words.is(1, "session") && !words.is(2, "authorization") {
        (Scope::Session, 2)
    } else {
        (Scope::Session, 1)
    };
    if words.is(at, "transaction") && !is_assignment(words, at + 1) {
        return transaction(words, at + 1, Scope::Local);
    }
    special(words, at, scope).or_else(|| assignment(words, at, scope))
}

fn is_assignment(words: Words<'_>, at: usize) -> bool {
    words.is(at, "to") || words.raw(at) == "="
}

/// SET TRANSACTION and SET SESSION CHARACTERISTICS.
fn transaction(words: Words<'_>, at: usize, scope: Scope) -> Option<Kind> {
    if words.is(at, "snapshot") {
        let modes = super::statement::Modes::default();
        return Some(Kind::SetTransaction { scope, modes });
    }
    let modes = modes(words.from(at))?;
    Some(Kind::SetTransaction { scope, modes })
}

/// The forms of SET that have a grammar of their own.
fn special(words: Words<'_>, at: usize, scope: Scope) -> Option<Kind> {
    let set = |name: &str, value: Value| {
        let name = name.to_owned();
        Some(Kind::Set { scope, name, value })
    };
    let rest = |from: usize| {
        if words.is(from, "default") && words.len() == from + 1 {
            Value::Default
        } else {
            Value::Written(words.rest(from).to_owned())
        }
    };
    if is_assignment(words, at + 1) {
        return None;
    }
    if words.phrase(at, "time zone") > 0 {
        let value = if words.is(at + 2, "local") {
            Value::Default
        } else {
            rest(at + 2)
        };
        return set("timezone", value);
    }
    if words.is(at, "names") {
        let value = if words.len() == at + 1 {
            Value::Default
        } else {
            rest(at + 1)
        };
        return set("client_encoding", value);
    }
    if words.is(at, "schema") {
        return set("search_path", rest(at + 1));
    }
    if words.phrase(at, "xml option") > 0 {
        return set("xmloption", rest(at + 2));
    }
    if words.is(at, "role") {
        let role = role(words, at + 1, "none")?;
        return Some(Kind::SetRole { scope, role });
    }
    if words.phrase(at, "session authorization") > 0 {
        let role = role(words, at + 2, "default")?;
        return Some(Kind::SetSessionAuthorization { scope, role });
    }
    None
}

/// The role at the end of a statement; `Some(None)` is the word for none.
#[allow(clippy::option_option)] // Known to be none, and not known, differ here.
fn role(words: Words<'_>, at: usize, none: &str) -> Option<Option<String>> {
    if words.len() != at + 1 {
        return None;
    }
    if words.is(at, none) {
        return Some(None);
    }
    let role = literal_or_name(words, at)?;
    // `SET ROLE 'none'` is NONE, too.
    Some((none != "none" || role != "none").then_some(role))
}

/// `name {TO | =} value`, `name FROM CURRENT`.
fn assignment(words: Words<'_>, at: usize, scope: Scope) -> Option<Kind> {
    let name = dotted_name(words.text, words.tokens, at)?.to_ascii_lowercase();
    let mut behind = at + 1;
    while words.kind(behind) == Some(TokenKind::Dot) {
        behind += 2;
    }
    if words.phrase(behind, "from current") > 0 {
        let value = Value::Current;
        return Some(Kind::Set { scope, name, value });
    }
    if !is_assignment(words, behind) || words.len() <= behind + 1 {
        return None;
    }
    let default = words.is(behind + 1, "default") && words.len() == behind + 2;
    let value = if default {
        Value::Default
    } else {
        Value::Written(words.rest(behind + 1).to_owned())
    };
    // These two are settings underneath; as such they must not be mistaken for harmless ones.
    match name.as_str() {
        "role" | "session_authorization" => {
            let none = if name == "role" { "none" } else { "default" };
            let role = if default {
                None
            } else {
                role(words, behind + 1, none)?
            };
            Some(if name == "role" {
                Kind::SetRole { scope, role }
            } else {
                Kind::SetSessionAuthorization { scope, role }
            })
        }
        _ => Some(Kind::Set { scope, name, value }),
    }
}

fn reset(words: Words<'_>) -> Option<Kind> {
    let scope = Scope::Session;
    let role = None;
    if words.phrase(1, "time zone") > 0 && words.len() == 3 {
        return Some(Kind::Reset("timezone".to_owned()));
    }
    if words.phrase(1, "session authorization") > 0 && words.len() == 3 {
        return Some(Kind::SetSessionAuthorization { scope, role });
    }
    if words.phrase(1, "transaction isolation level") > 0 && words.len() == 4 {
        return Some(Kind::Reset("transaction_isolation".to_owned()));
    }
    if words.is(1, "all") && words.len() == 2 {
        return Some(Kind::ResetAll);
    }
    let name = whole_name(words)?;
    Some(match name.as_str() {
        "role" => Kind::SetRole { scope, role },
        "session_authorization" => Kind::SetSessionAuthorization { scope, role },
        _ => Kind::Reset(name),
    })
}

fn show(words: Words<'_>) -> Option<Kind> {
    let name = if words.phrase(1, "time zone") > 0 && words.len() == 3 {
        "timezone".to_owned()
    } else if words.phrase(1, "session authorization") > 0 && words.len() == 3 {
        "session_authorization".to_owned()
    } else if words.phrase(1, "transaction isolation level") > 0 && words.len() == 4 {
        "transaction_isolation".to_owned()
    } else {
        whole_name(words)?
    };
    Some(Kind::Show(name))
}

/// The dotted name behind the first word, where nothing follows it; in lower case.
fn whole_name(words: Words<'_>) -> Option<String> {
    let name = dotted_name(words.text, words.tokens, 1)?;
    let dots = words
        .tokens
        .iter()
        .filter(|token| token.kind == TokenKind::Dot)
        .count();
    (words.len() == 2 + 2 * dots).then(|| name.to_ascii_lowercase())
}

fn discard(words: Words<'_>) -> Option<Kind> {
    let what = match words.raw(1).to_ascii_lowercase().as_str() {
        "all" => Discard::All,
        "plans" => Discard::Plans,
        "sequences" => Discard::Sequences,
        "temp" | "temporary" => Discard::Temporary,
        _ => return None,
    };
    (words.len() == 2).then_some(Kind::Discard(what))
}
