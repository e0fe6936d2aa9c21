//! Finds, in the text a DDL command was logged with, the command itself (REPLICATION rule 17).
//!
//! The writer's event trigger counts the commands of a text as they run; what ROLLBACK and ROLLBACK TO
//! take back gives its numbers back too, COMMIT does not. Here the same is played over the text. A
//! piece is only ever a part of the client's own bytes, and where number and tag do not agree there
//! is none: a wrong command on a follower would be worse than a stop.

use std::borrow::Cow;
use std::ops::Range;

use super::classify;
use super::ddl::{self, Seen};
use super::lexer::{Fault, TokenKind, lex};
use super::split::split;
use super::statement::Kind;
use super::words::Words;

/// Why there is no piece.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// The text cannot be cut.
    #[error("the text cannot be cut: {fault} at byte {at}")]
    Fault {
        /// Why not.
        fault: Fault,
        /// Where.
        at: usize,
    },
    /// Fewer commands survive in the text.
    #[error("command {ordinal} was asked for, the text leaves {found}")]
    TooFew {
        /// The number asked for.
        ordinal: u32,
        /// How many there are.
        found: usize,
    },
    /// The command of that number is another one.
    #[error("command {ordinal} is {found}, not {wanted}")]
    OtherTag {
        /// The number asked for.
        ordinal: u32,
        /// The tag asked for.
        wanted: String,
        /// The tag in the text.
        found: String,
    },
}

/// The `ordinal`-th surviving DDL command of `query`, counted from 1, which must have the tag `tag`.
/// A `nested` text (run by a function) may have run several times: its numbers go on counting.
/// `scs` is the `standard_conforming_strings` under which it ran.
pub fn piece<'a>(
    query: &'a str,
    ordinal: u32,
    tag: &str,
    nested: bool,
    scs: bool,
) -> Result<&'a str, PieceError> {
    let survivors = survivors(query, nested, scs)?;
    let found = survivors.len();
    let mut index = (ordinal as usize)
        .checked_sub(1)
        .filter(|_| found > 0)
        .ok_or(PieceError::TooFew { ordinal, found })?;
    if nested {
        index %= found;
    }
    let (bytes, own) = survivors
        .get(index)
        .ok_or(PieceError::TooFew { ordinal, found })?;
    if own != tag {
        return Err(PieceError::OtherTag {
            ordinal,
            wanted: tag.to_owned(),
            found: own.clone(),
        });
    }
    Ok(&query[bytes.clone()])
}

/// The `ordinal`-th statement of `query` of any kind, counted from 1: how a function in language sql
/// numbers its own.
pub fn statement(query: &str, ordinal: u32, scs: bool) -> Result<&str, PieceError> {
    let lexed = lex(query, scs);
    if let Some((fault, at)) = lexed.fault {
        return Err(PieceError::Fault { fault, at });
    }
    let pieces = split(query, &lexed.tokens);
    let found = pieces.len();
    (ordinal as usize)
        .checked_sub(1)
        .and_then(|index| pieces.get(index))
        .map(|piece| &query[piece.bytes.clone()])
        .ok_or(PieceError::TooFew { ordinal, found })
}

/// The command tag of a text that is one DDL command which event triggers see.
pub fn command_tag(command: &str, scs: bool) -> Option<String> {
    let survivors = survivors(command, true, scs).ok()?;
    match survivors.as_slice() {
        [(_, tag)] => Some(tag.clone()),
        _ => None,
    }
}

/// The DDL commands that event triggers see, in order, less those that the text takes back itself.
fn survivors(
    query: &str,
    nested: bool,
    scs: bool,
) -> Result<Vec<(Range<usize>, String)>, PieceError> {
    let lexed = lex(query, scs);
    if let Some((fault, at)) = lexed.fault {
        return Err(PieceError::Fault { fault, at });
    }
    let mut found = Vec::new();
    let mut transaction = Transaction::default();
    for piece in split(query, &lexed.tokens) {
        let words = Words::of(query, &lexed.tokens, &piece);
        match ddl::command(words) {
            Some(command) if command.seen == Seen::ByTrigger => {
                found.push((piece.bytes, command.tag));
            }
            None if !nested => transaction.step(&classify::kind(words).0, &mut found),
            _ => {}
        }
    }
    Ok(found)
}

/// How many commands there were at the points a text can go back to.
#[derive(Default)]
struct Transaction {
    began: usize,
    savepoints: Vec<(String, usize)>,
}

impl Transaction {
    fn step<T>(&mut self, kind: &Kind, found: &mut Vec<T>) {
        match kind {
            Kind::Commit { .. } => {
                self.began = found.len();
                self.savepoints.clear();
            }
            Kind::Rollback { .. } => {
                found.truncate(self.began);
                self.savepoints.clear();
            }
            Kind::Savepoint(name) => self.savepoints.push((name.clone(), found.len())),
            Kind::Release(name) => {
                if let Some(at) = self.newest(name) {
                    self.savepoints.truncate(at);
                }
            }
            Kind::RollbackTo(name) => {
                // One older than this text leaves nothing that this transaction did in the text.
                let newest = self.newest(name);
                found.truncate(newest.map_or(self.began, |at| self.savepoints[at].1));
                self.savepoints.truncate(newest.map_or(0, |at| at + 1));
            }
            _ => {}
        }
    }

    fn newest(&self, name: &str) -> Option<usize> {
        self.savepoints.iter().rposition(|(own, _)| own == name)
    }
}

/// The command without CONCURRENTLY (or the FINALIZE of an interrupted one): CREATE INDEX, DROP INDEX, REINDEX, DETACH PARTITION and REFRESH
/// MATERIALIZED VIEW in the form that a transaction block may hold (REPLICATION rule 21).
pub fn plain_form(command: &str) -> Cow<'_, str> {
    // The keyword stands before any literal, so how those are read does not matter.
    let lexed = lex(command, true);
    let words = Words {
        text: command,
        tokens: &lexed.tokens,
    };
    match concurrently(words) {
        Some(cut) => {
            let mut plain = String::with_capacity(command.len());
            plain.push_str(&command[..cut.start]);
            plain.push_str(&command[cut.end..]);
            Cow::Owned(plain)
        }
        None => Cow::Borrowed(command),
    }
}

/// A CREATE MATERIALIZED VIEW whose query is not run: its own `WITH [NO] DATA` gives way to `WITH NO DATA`.
/// `conforming` is `standard_conforming_strings` as it was.
pub fn without_data(command: &str, conforming: bool) -> String {
    let lexed = lex(command, conforming);
    let words = Words {
        text: command,
        tokens: &lexed.tokens,
    };
    let mut end = words.len();
    while end > 0 && words.kind(end - 1) == Some(TokenKind::Semicolon) {
        end -= 1;
    }
    for said in ["with no data", "with data"] {
        let length = said.split(' ').count();
        if end > length && words.phrase(end - length, said) > 0 {
            end -= length;
            break;
        }
    }
    let kept = end.checked_sub(1).and_then(|last| words.tokens.get(last));
    format!(
        "{} with no data",
        &command[..kept.map_or(0, |token| token.end)]
    )
}

/// The bytes to take out.
fn concurrently(words: Words<'_>) -> Option<Range<usize>> {
    let bytes = |from: usize, to: usize| {
        Some(words.tokens.get(from)?.start..words.tokens.get(to.checked_sub(1)?)?.end)
    };
    let keyword = |at: usize| {
        words
            .is(at, "concurrently")
            .then(|| bytes(at, at + 1))
            .flatten()
    };
    if words.is(0, "create") {
        let index = 1 + usize::from(words.is(1, "unique"));
        return words
            .is(index, "index")
            .then(|| keyword(index + 1))
            .flatten();
    }
    if words.phrase(0, "drop index") > 0 {
        return keyword(2);
    }
    if words.phrase(0, "refresh materialized view") > 0 {
        return keyword(3);
    }
    if words.phrase(0, "alter table") > 0 {
        let detach = words.find(2, "detach")?;
        let end = (detach..words.len())
            .take_while(|at| words.kind(*at) != Some(TokenKind::Semicolon))
            .last()?;
        let finalize = words.is(end, "finalize").then(|| bytes(end, end + 1));
        return keyword(end).or(finalize.flatten());
    }
    if words.is(0, "reindex") {
        if words.kind(1) != Some(TokenKind::Open) {
            return keyword(2);
        }
        let behind = words.behind_parens(1)?;
        return match keyword(behind + 1) {
            Some(cut) => Some(cut),
            None => reindex_option(words, behind).and_then(|(from, to)| bytes(from, to)),
        };
    }
    None
}

/// `REINDEX (VERBOSE, CONCURRENTLY) ...`: the tokens of the option with one comma, or with the
/// parentheses where it is the only one.
fn reindex_option(words: Words<'_>, behind: usize) -> Option<(usize, usize)> {
    let option = (2..behind).find(|at| words.is(*at, "concurrently"))?;
    let close = behind - 1;
    let end = (option..close)
        .find(|at| words.kind(*at) == Some(TokenKind::Comma))
        .unwrap_or(close);
    Some(match (option == 2, end == close) {
        (true, true) => (1, behind),
        (true, false) => (option, end + 1),
        (false, _) => (option - 1, end),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top(query: &str, ordinal: u32, tag: &str) -> Result<String, PieceError> {
        piece(query, ordinal, tag, false, true).map(str::to_owned)
    }

    #[test]
    fn the_bytes_are_the_clients_own() {
        let query = "insert into t values (';'); create  table /* ; */ a(b text default ';') ; \
                     drop table x; select 1";
        let first = top(query, 1, "CREATE TABLE").expect("found");
        assert_eq!(first, "create  table /* ; */ a(b text default ';')");
        assert_eq!(top(query, 2, "DROP TABLE").expect("found"), "drop table x");
        assert!(matches!(
            top(query, 3, "DROP TABLE"),
            Err(PieceError::TooFew { found: 2, .. })
        ));
        assert!(matches!(
            top(query, 1, "DROP TABLE"),
            Err(PieceError::OtherTag { .. })
        ));
        assert!(top(query, 0, "DROP TABLE").is_err());
    }

    #[test]
    fn what_is_taken_back_gives_its_number_back() {
        let query = "begin; create table a(); savepoint s; create table b(); savepoint \"S\"; \
                     create table c(); rollback to s; create table d(); rollback to savepoint s; \
                     create table e(); commit; create table f(); begin; create table g(); \
                     rollback; create table h()";
        // BEGIN makes the implicit block that holds `f` a real one, so ROLLBACK takes `f` back.
        for (ordinal, table) in [(1, "a"), (2, "e"), (3, "h")] {
            let found = top(query, ordinal, "CREATE TABLE").expect("found");
            assert_eq!(found, format!("create table {table}()"));
        }
    }

    #[test]
    fn savepoints_of_earlier_texts_take_back_this_texts_part() {
        let query = "create table a(); rollback to old; create table b()";
        assert_eq!(
            top(query, 1, "CREATE TABLE").expect("found"),
            "create table b()"
        );
        let query = "savepoint s; savepoint s; create table a(); release s; rollback to s; \
                     create table b()";
        assert_eq!(
            top(query, 1, "CREATE TABLE").expect("found"),
            "create table b()"
        );
    }

    #[test]
    fn nested_texts_go_on_counting() {
        let text = "create table a(); create index on a(b)";
        for ordinal in [1, 3, 99] {
            assert_eq!(
                piece(text, ordinal, "CREATE TABLE", true, true),
                Ok("create table a()")
            );
            let index = piece(text, ordinal + 1, "CREATE INDEX", true, true);
            assert_eq!(index, Ok("create index on a(b)"));
        }
        assert!(piece("select 1", 1, "CREATE TABLE", true, true).is_err());
    }

    #[test]
    fn global_commands_are_not_counted() {
        let query = "create role r; grant r to s; grant select on t to r; comment on database d is ''; \
                     reindex table t; comment on table t is 'x'";
        assert_eq!(
            top(query, 1, "GRANT").expect("found"),
            "grant select on t to r"
        );
        assert_eq!(
            top(query, 2, "COMMENT").expect("found"),
            "comment on table t is 'x'"
        );
    }

    #[test]
    fn statements_of_sql_functions_are_numbered_from_one() {
        assert_eq!(
            statement("select 1; ; create table t(); ", 2, true),
            Ok("create table t()")
        );
        assert!(statement("select 1", 2, true).is_err());
    }

    #[test]
    fn plain_forms() {
        for (command, plain) in [
            (
                "create unique index concurrently if not exists i on t(a)",
                "create unique index  if not exists i on t(a)",
            ),
            (
                "CREATE INDEX CONCURRENTLY ON t (a)",
                "CREATE INDEX  ON t (a)",
            ),
            (
                "create index \"concurrently\" on t(a)",
                "create index \"concurrently\" on t(a)",
            ),
            ("drop index concurrently i", "drop index  i"),
            (
                "alter table p detach partition c concurrently",
                "alter table p detach partition c ",
            ),
            (
                "alter table p detach partition c finalize",
                "alter table p detach partition c ",
            ),
            (
                "refresh materialized view concurrently m",
                "refresh materialized view  m",
            ),
            ("reindex table concurrently t", "reindex table  t"),
            (
                "reindex (verbose) index concurrently i",
                "reindex (verbose) index  i",
            ),
            ("reindex (concurrently) table t", "reindex  table t"),
            (
                "reindex (concurrently, verbose) table t",
                "reindex ( verbose) table t",
            ),
            (
                "reindex (verbose, concurrently true) table t",
                "reindex (verbose) table t",
            ),
            (
                "create table concurrently_not(a text default 'concurrently')",
                "create table concurrently_not(a text default 'concurrently')",
            ),
            ("select 'unterminated", "select 'unterminated"),
        ] {
            assert_eq!(plain_form(command), plain);
        }
    }

    #[test]
    fn a_materialized_view_without_its_rows() {
        let head = "create materialized view m as select 'with data' as data";
        for tail in [
            "",
            " with data",
            " WITH /* */ Data;",
            " with no data -- none",
            " -- with data",
        ] {
            let command = format!("{head}{tail}");
            assert_eq!(without_data(&command, true), format!("{head} with no data"));
        }
        let command = r"create materialized view m as select 'a\' with data' as b";
        assert_eq!(
            without_data(command, false),
            format!("{command} with no data")
        );
    }
}
