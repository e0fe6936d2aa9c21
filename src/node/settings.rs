//! Session settings: what a session wants set on whichever connection works for it.
//!
//! Decides the one statement that brings a connection from what the last session left to what the
//! next one wants. It writes names and values as literals only, names no function by a bare name
//! (a session's `search_path` must never reach a query of the proxy's own), and leaves judging them
//! to the node.

use std::fmt::Write;

use super::carried::Settings;

/// Settings that say as whom one acts: undone first and set last, so that each other setting is
/// made with the role that logged in.
const IDENTITY: [&str; 2] = ["session_authorization", "role"];

/// The statement that changes a connection with the settings `from` into one with the settings `to`, or
/// None where there is nothing to do. It fails whole or not at all.
pub fn difference(from: &Settings, to: &Settings) -> Option<String> {
    if from == to {
        return None;
    }
    let mut sql = String::new();
    let gone = |name: &str| from.contains_key(name) && from.get(name) != to.get(name);
    for name in IDENTITY.into_iter().rev().filter(|name| gone(name)) {
        change(&mut sql, name, None);
    }
    let plain = |name: &&String| !IDENTITY.contains(&name.as_str());
    for name in from
        .keys()
        .filter(plain)
        .filter(|name| !to.contains_key(*name))
    {
        change(&mut sql, name, None);
    }
    let new = |name: &str, value: &String| from.get(name) != Some(value);
    for (name, value) in to
        .iter()
        .filter(|(name, value)| plain(name) && new(name, value))
    {
        change(&mut sql, name, Some(value));
    }
    for name in IDENTITY {
        if let Some(value) = to.get(name).filter(|value| new(name, value)) {
            change(&mut sql, name, Some(value));
        }
    }
    Some(sql)
}

/// NULL as the value means the default (`PostgreSQL` manual, `set_config`).
fn change(sql: &mut String, name: &str, value: Option<&str>) {
    sql.push_str(if sql.is_empty() { "select " } else { ", " });
    let name = literal(name);
    let value = value.map_or_else(|| "null".to_owned(), literal);
    // Writing to a String does not fail.
    let _ = write!(sql, "pg_catalog.set_config({name}, {value}, false)");
}

/// A string literal that reads the same whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!("e'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn only_differences_are_said() {
        let a = settings(&[("search_path", "a"), ("datestyle", "ISO"), ("jit", "off")]);
        let b = settings(&[
            ("search_path", "b"),
            ("datestyle", "ISO"),
            ("work_mem", "1MB"),
        ]);
        assert_eq!(difference(&a, &a.clone()), None);
        assert_eq!(
            difference(&a, &b).as_deref(),
            Some(
                "select pg_catalog.set_config('jit', null, false), \
                 pg_catalog.set_config('search_path', 'b', false), \
                 pg_catalog.set_config('work_mem', '1MB', false)"
            )
        );
    }

    #[test]
    fn identity_is_undone_first_and_set_last() {
        let a = settings(&[
            ("role", "r"),
            ("session_authorization", "s"),
            ("jit", "off"),
        ]);
        let b = settings(&[("role", "q"), ("work_mem", "1MB")]);
        assert_eq!(
            difference(&a, &b).as_deref(),
            Some(
                "select pg_catalog.set_config('role', null, false), \
                 pg_catalog.set_config('session_authorization', null, false), \
                 pg_catalog.set_config('jit', null, false), \
                 pg_catalog.set_config('work_mem', '1MB', false), \
                 pg_catalog.set_config('role', 'q', false)"
            )
        );
    }

    #[test]
    fn literals_stay_literals() {
        assert_eq!(literal("a'b"), "'a''b'");
        assert_eq!(literal(r"a\'b"), r"e'a\\''b'");
    }
}
