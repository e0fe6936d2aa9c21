//! Golden statements: SQL, what it is, where it may run and what it may leave behind.
//!
//! `tests/golden/statements.txt` has a statement a line, `=>` and what is said of it: the kind (the
//! kinds, where there are several statements); `read`, or `writer` and the reason; the effects. Its
//! database is `catalog.txt`. `commands.txt` has DDL and its command tags. With `UPDATE_GOLDEN=1` the file is written anew, to be read in a diff.

use std::fmt::Write as _;
use std::path::PathBuf;

use synapsedb::sql::catalog::{Catalog, CatalogRow};
use synapsedb::sql::pieces;
use synapsedb::sql::statement::{Effects, Facts, Verdict};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The database of the golden statements.
fn catalog() -> Catalog {
    let text = read("catalog.txt");
    let rows = text.lines().map(|line| {
        let column: Vec<&str> = line.split('\t').collect();
        CatalogRow {
            kind: column[0].to_owned(),
            schema: Some(column[1].to_owned()).filter(|schema| !schema.is_empty()),
            name: column[2].to_owned(),
            hides: column[3] == "t",
            read_hides: column[4] == "t",
            unreadable: column[5] == "t",
            draws: column[6] == "t",
            own: column[7] == "t",
            ..CatalogRow::default()
        }
    });
    Catalog::from_rows(1, rows)
}

fn describe(sql: &str, catalog: &Catalog) -> String {
    let facts = Facts::of(sql, true);
    let kinds: Vec<String> = facts
        .statements
        .iter()
        .map(|one| format!("{:?}", one.kind))
        .collect();
    let mut text = kinds.join(" + ");
    match facts.verdict(catalog) {
        Verdict::Read => text.push_str("; read"),
        Verdict::Writer(reason) => write!(text, "; writer: {reason}").expect("a string grows"),
    }
    let Effects {
        may_change_settings,
        may_pin,
        uses_sequence_state,
        touches_unknown_code,
        draws_sequence,
    } = facts.effects(catalog);
    for (holds, word) in [
        (may_change_settings, "settings"),
        (may_pin, "pins"),
        (uses_sequence_state, "sequence state"),
        (touches_unknown_code, "unknown code"),
        (draws_sequence, "draws"),
        (
            facts.statements.iter().any(|one| !one.transactional),
            "not in a transaction",
        ),
    ] {
        if holds {
            write!(text, "; {word}").expect("a string grows");
        }
    }
    text
}

#[test]
fn statements_are_what_the_file_says() {
    let catalog = catalog();
    let text = read("statements.txt");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let (mut written, mut wrong, mut count) = (String::new(), String::new(), 0);
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            writeln!(written, "{line}").expect("a string grows");
            continue;
        }
        count += 1;
        let (sql, expected) = line.rsplit_once(" => ").unwrap_or((line, ""));
        // A line break is written as the two characters.
        let found = describe(&sql.replace("\\n", "\n"), &catalog);
        if found != expected {
            writeln!(wrong, "{sql}\n  expected {expected}\n  found    {found}")
                .expect("a string grows");
        }
        writeln!(written, "{sql} => {found}").expect("a string grows");
    }
    if update {
        std::fs::write(file("statements.txt"), written).expect("the file can be written");
    } else {
        assert!(wrong.is_empty(), "\n{wrong}");
    }
    assert!(count >= 200, "only {count} statements");
}

#[test]
fn commands_have_the_servers_tags() {
    let text = read("commands.txt");
    for line in text.lines().filter(|line| line.contains(" => ")) {
        let (sql, tag) = line.rsplit_once(" => ").expect("the line has an arrow");
        let found = pieces::command_tag(sql, true);
        assert_eq!(found.as_deref().unwrap_or("none"), tag, "{sql}");
    }
}

#[test]
fn nothing_is_read_where_no_catalog_is_loaded() {
    for line in read("statements.txt").lines() {
        let sql = line
            .rsplit_once(" => ")
            .map_or(line, |(sql, _)| sql)
            .replace("\\n", "\n");
        assert_ne!(
            Facts::of(&sql, true).verdict(&Catalog::unknown()),
            Verdict::Read,
            "{sql}"
        );
    }
}
