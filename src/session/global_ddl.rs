//! Commands that no event trigger sees (rule 22): what has to be logged beside them, what other nodes must
//! run themselves, and passwords that must not travel in clear.
//!
//! Pure. A command that a transaction may hold is logged by a call in the same transaction, just before
//! it; one that none may hold is run elsewhere once the writer has run it. A password becomes one SCRAM
//! verifier first, so that all nodes have the same and no log shows it.

use crate::error::Refusal;
use crate::session::brief::facts_of;
use crate::sql::lexer::{Token, is_word, lex, name_of, text_of};
use crate::sql::statement::{Facts, Kind, StatementFacts};

/// A command to be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Its first words.
    pub tag: String,
    /// Its text.
    pub command: String,
}

/// What is to be done once the writer has run a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// Every other node must run it too.
    Elsewhere {
        /// The command.
        command: String,
        /// The database that it makes.
        makes: Option<String>,
        /// The database that it drops.
        drops: Option<String>,
    },
    /// Other nodes may do it some time soon.
    Upkeep(Vec<String>),
}

/// What a text asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be sent in the text's place.
    pub text: Option<String>,
    /// To be logged ahead of it, in its transaction.
    pub logged: Vec<Logged>,
    /// To be done afterwards.
    pub after: Option<After>,
    /// The database that a new one is copied from.
    pub template: Option<String>,
}

/// Whether the facts hold anything for this file.
pub fn concerns(facts: &Facts) -> bool {
    let ours = |one: &StatementFacts| matches!(one.kind, Kind::GlobalDdl | Kind::Upkeep(_));
    facts.statements.iter().any(ours)
}

/// Plans a text; `verifier` makes a SCRAM verifier of a password.
pub fn plan(
    text: &str,
    facts: &Facts,
    standard: bool,
    verifier: impl FnMut(&str) -> Option<String>,
) -> Result<Plan, Refusal> {
    let hidden = hide_passwords(text, facts, standard, verifier)?;
    let renewed = hidden.as_deref().map(|text| facts_of(text, standard));
    let (sent, facts) = match (&hidden, &renewed) {
        (Some(text), Some(facts)) => (text.as_str(), facts),
        _ => (text, facts),
    };
    let piece = |one: &StatementFacts| sent[one.bytes.clone()].to_owned();
    let mut plan = Plan::default();
    let mut upkeep = Vec::new();
    for one in &facts.statements {
        match one.kind {
            Kind::GlobalDdl if one.transactional => plan.logged.push(Logged {
                tag: first_words(&piece(one)),
                command: piece(one),
            }),
            Kind::GlobalDdl => {
                let (makes, drops) = database(&sent[one.bytes.clone()], standard);
                plan.template = makes
                    .as_ref()
                    .map(|_| template(&sent[one.bytes.clone()], standard));
                plan.after = Some(After::Elsewhere {
                    command: piece(one),
                    makes,
                    drops,
                });
            }
            Kind::Upkeep(_) => upkeep.push(piece(one)),
            _ => {}
        }
    }
    if !plan.logged.is_empty() && taken_back(facts) {
        return Err(Refusal::MixedQuery);
    }
    let mut pieces = facts.statements.iter().map(piece);
    if pieces.any(|command| renames_database(&command, standard)) {
        return Err(Refusal::HeldDatabase);
    }
    if behind_ddl(sent, facts) {
        return Err(Refusal::BehindDdl);
    }
    if plan.after.is_none() && !upkeep.is_empty() {
        plan.after = Some(After::Upkeep(upkeep));
    }
    plan.text = hidden;
    Ok(plan)
}

/// Whether the text itself may take back or part what stands in it: its log rows come before all of it.
fn taken_back(facts: &Facts) -> bool {
    let last = facts.statements.len().saturating_sub(1);
    facts
        .statements
        .iter()
        .enumerate()
        .any(|(at, one)| match one.kind {
            Kind::Rollback { .. } | Kind::RollbackTo(_) | Kind::Savepoint(_) | Kind::Release(_) => {
                last > 0
            }
            Kind::Commit { chain } => at < last || chain && last > 0,
            _ => false,
        })
}

/// Whether a command that is logged ahead of the whole text may depend on DDL that stands before it there:
/// `DROP OWNED BY r; DROP ROLE r`, which other nodes would run the other way round.
fn behind_ddl(text: &str, facts: &Facts) -> bool {
    let mut after_ddl = false;
    facts.statements.iter().any(|one| {
        let words = first_words(&text[one.bytes.clone()]);
        let bound =
            words.starts_with("DROP ") || words.ends_with(" OWNED") || words.ends_with(" EVENT");
        let behind = after_ddl && bound && one.kind == Kind::GlobalDdl;
        after_ddl |= matches!(
            one.kind,
            Kind::Ddl(_) | Kind::Do | Kind::Call | Kind::Unknown
        );
        behind
    })
}

/// The database that CREATE DATABASE makes or DROP DATABASE drops.
fn database(command: &str, standard: bool) -> (Option<String>, Option<String>) {
    let tokens = lex(command, standard).tokens;
    let word = |at: usize, text: &str| is_word(command, &tokens, at, text);
    if !word(1, "database") {
        return (None, None);
    }
    let named = |at: usize| tokens.get(at).and_then(|token| name_of(command, *token));
    if word(0, "create") {
        return (named(2), None);
    }
    if word(0, "drop") {
        let exists = word(2, "if") && word(3, "exists");
        return (None, named(if exists { 4 } else { 2 }));
    }
    (None, None)
}

/// The database that CREATE DATABASE copies.
fn template(command: &str, standard: bool) -> String {
    let tokens = lex(command, standard).tokens;
    let named = (3..tokens.len()).find_map(|at| {
        let behind = at + 1 + usize::from(command[tokens[at].end..].trim_start().starts_with('='));
        let token = tokens.get(behind)?;
        let name = name_of(command, *token).or_else(|| text_of(command, *token));
        name.filter(|_| is_word(command, &tokens, at, "template"))
    });
    named.unwrap_or_else(|| "template1".to_owned())
}

/// Whether a command renames a database.
fn renames_database(command: &str, standard: bool) -> bool {
    let tokens = lex(command, standard).tokens;
    let word = |at: usize, text: &str| is_word(command, &tokens, at, text);
    word(0, "alter") && word(1, "database") && word(3, "rename")
}

/// The command's first two words, in capitals.
fn first_words(command: &str) -> String {
    let words: Vec<_> = command
        .split_whitespace()
        .take(2)
        .map(str::to_uppercase)
        .collect();
    words.join(" ")
}

/// The text with verifiers in the place of passwords; none where there is nothing to hide.
fn hide_passwords(
    text: &str,
    facts: &Facts,
    standard: bool,
    mut verifier: impl FnMut(&str) -> Option<String>,
) -> Result<Option<String>, Refusal> {
    let tokens = lex(text, standard).tokens;
    let mut hidden = String::new();
    let mut done = 0;
    for (at, token) in tokens.iter().enumerate() {
        let Some(literal) = tokens.get(at + 1).filter(|next| next.kind.is_text()) else {
            continue;
        };
        if !is_word(text, &tokens, at, "password") || !in_global(facts, token) {
            continue;
        }
        let continued = tokens.get(at + 2).is_some_and(|next| next.kind.is_text());
        let password = decoded(text, *literal).filter(|_| !continued);
        let password = password.ok_or(Refusal::OddPassword)?;
        if password.is_empty() || is_verifier(&password) {
            continue;
        }
        let verifier = verifier(&password).ok_or(Refusal::OddPassword)?;
        hidden.push_str(&text[done..literal.start]);
        hidden.push('\'');
        hidden.push_str(&verifier);
        hidden.push('\'');
        done = literal.end;
    }
    if done == 0 {
        return Ok(None);
    }
    hidden.push_str(&text[done..]);
    Ok(Some(hidden))
}

/// The literal's value; of escapes only `\\\\` and `\\'` are read, which is what clients' quoting makes.
fn decoded(text: &str, literal: Token) -> Option<String> {
    let raw = &text[literal.start..literal.end];
    let escaped = raw
        .strip_prefix(['e', 'E'])
        .and_then(|raw| raw.strip_prefix('\''));
    let Some(inside) = escaped.and_then(|raw| raw.strip_suffix('\'')) else {
        return text_of(text, literal);
    };
    let mut value = String::new();
    let mut characters = inside.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => value.push(
                characters
                    .next()
                    .filter(|next| matches!(next, '\\' | '\''))?,
            ),
            '\'' => value.push(characters.next()?),
            other => value.push(other),
        }
    }
    Some(value)
}

fn in_global(facts: &Facts, token: &Token) -> bool {
    let holds =
        |one: &StatementFacts| one.kind == Kind::GlobalDdl && one.bytes.contains(&token.start);
    facts.statements.iter().any(holds)
}

/// What the server takes as it is (`get_password_type` in its `crypt.c`).
fn is_verifier(password: &str) -> bool {
    let hex = |text: &str| text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    password.strip_prefix("md5").is_some_and(hex)
        || crate::wire::scram::verifier::Verifier::parse(password).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(text: &str) -> Result<Plan, Refusal> {
        let facts = Facts::of(text, true);
        plan(text, &facts, true, |password| Some(format!("<{password}>")))
    }

    fn logged(text: &str) -> Vec<String> {
        let plan = planned(text).expect("may be");
        plan.logged.into_iter().map(|one| one.command).collect()
    }

    #[test]
    fn transactional_commands_are_logged_one_by_one() {
        assert_eq!(logged("create role a"), ["create role a"]);
        let text = "create role a; insert into t values (1); grant a to b;";
        assert_eq!(logged(text), ["create role a", "grant a to b"]);
        assert_eq!(logged("begin; create role a; commit"), ["create role a"]);
        assert_eq!(logged("create table t (a int)"), [""; 0]);
        assert_eq!(
            planned("alter role a set work_mem = '1MB'")
                .expect("may be")
                .logged[0]
                .tag,
            "ALTER ROLE"
        );
        for text in [
            "begin; create role a; rollback; create role b",
            "savepoint s; drop role a; rollback to s",
        ] {
            assert_eq!(planned(text), Err(Refusal::MixedQuery), "{text}");
        }
    }

    #[test]
    fn what_depends_on_ddl_before_it_does_not_overtake_it() {
        for text in [
            "drop owned by r; drop role r",
            "revoke select on t from r; drop role r",
            "create table t (a int); reassign owned by a to b",
            "create function f() returns event_trigger language plpgsql as ''; create event trigger e on ddl_command_end execute function f()",
        ] {
            assert_eq!(planned(text), Err(Refusal::BehindDdl), "{text}");
        }
        for text in [
            "create role r; grant select on t to r",
            "create table t (a int); create role r",
            "drop role a; drop role b",
        ] {
            assert!(planned(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn passwords_are_hidden_before_anything_is_sent() {
        let plan =
            planned("create user a encrypted PASSWORD 'it''s'; alter role b password E'a\\\\b'")
                .expect("may be");
        let text = "create user a encrypted PASSWORD '<it's>'; alter role b password '<a\\b>'";
        assert_eq!(plan.text.as_deref(), Some(text));
        assert!(
            planned("create role a password null")
                .expect("may be")
                .text
                .is_none()
        );
        let md5 = "alter role a password 'md5d41d8cd98f00b204e9800998ecf8427e'";
        assert!(planned(md5).expect("may be").text.is_none());
        assert_eq!(
            planned("create role a password U&'x'"),
            Err(Refusal::OddPassword)
        );
    }

    #[test]
    fn what_no_transaction_holds_runs_elsewhere_afterwards() {
        let Some(After::Elsewhere { makes, drops, .. }) =
            planned("create database \"A b\"").expect("may be").after
        else {
            panic!("elsewhere");
        };
        assert_eq!((makes.as_deref(), drops), (Some("A b"), None));
        let Some(After::Elsewhere { makes, drops, .. }) =
            planned("drop database if exists x").expect("may be").after
        else {
            panic!("elsewhere");
        };
        assert_eq!((makes, drops.as_deref()), (None, Some("x")));
        for (text, from) in [
            ("create database a", "template1"),
            (
                "create database a owner b template = \"T 0\" encoding 'x'",
                "T 0",
            ),
            ("create database a template 'x'", "x"),
        ] {
            let plan = planned(text).expect("may be");
            assert_eq!(plan.template.as_deref(), Some(from), "{text}");
        }
        assert_eq!(
            planned("alter database a rename to b"),
            Err(Refusal::HeldDatabase)
        );
        let upkeep = planned("analyze a; analyze b").expect("may be").after;
        assert_eq!(
            upkeep,
            Some(After::Upkeep(vec!["analyze a".into(), "analyze b".into()]))
        );
    }
}
