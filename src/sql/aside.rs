//! Which index builds a follower may do beside the stream, and how (REPLICATION rule 23).
//!
//! An index changes no rows, so nobody's commit needs to wait for its build. Only a command that names
//! the index is taken: the server's own choice of a name depends on what is there at that moment.
//!
//! Nor is one taken that may hold a constant in quotes. Such a build is done in a superuser's session, and the server
//! makes a constant a value of its type while it reads the command, before it turns to the rights of the table's
//! owner: the check of a user's domain would run as somebody who can become the superuser again. All other user code
//! in a definition runs as the owner.

use std::borrow::Cow;

use super::lexer::lex;
use super::pieces::plain_form;
use super::split::split;
use super::words::Words;

/// `CREATE [UNIQUE] INDEX name ON ...` as `CREATE [UNIQUE] INDEX CONCURRENTLY name ON ...`; none for
/// any other text. The bytes are the client's own but for the one keyword.
pub fn concurrent_form(command: &str) -> Option<String> {
    named_index(command).map(|(concurrent, _)| concurrent)
}

/// From a text that is such a command and nothing else: the command in its plain form, and the name of the index as
/// the catalog has it. Read with `standard_conforming_strings` on.
pub fn lone_build(text: &str) -> Option<(String, String)> {
    let lexed = lex(text, true);
    if lexed.fault.is_some() {
        return None;
    }
    let pieces = split(text, &lexed.tokens);
    let [piece] = pieces.as_slice() else {
        return None;
    };
    let command = plain_form(&text[piece.bytes.clone()]).into_owned();
    let (_, name) = named_index(&command)?;
    Some((command, name))
}

/// `DROP INDEX ...` as `DROP INDEX IF EXISTS ...`, any other command as it is: a writer may drop what a failed
/// `CREATE INDEX CONCURRENTLY` left there, which no follower has.
pub fn tolerant_drop(command: &str) -> Cow<'_, str> {
    let lexed = lex(command, true);
    let words = Words {
        text: command,
        tokens: &lexed.tokens,
    };
    let drops = words.is(0, "drop") && words.is(1, "index") && words.phrase(2, "if exists") == 0;
    match lexed.tokens.get(1).filter(|_| drops) {
        Some(index) => {
            let (before, behind) = command.split_at(index.end);
            Cow::Owned(format!("{before} if exists{behind}"))
        }
        None => Cow::Borrowed(command),
    }
}

/// Whether a text can hold no constant in quotes of whatever kind, however it is read. In doubt false: names and
/// comments count, too.
fn without_quotes(text: &str) -> bool {
    !text.contains(['\'', '$'])
}

fn named_index(command: &str) -> Option<(String, String)> {
    if !without_quotes(command) {
        return None;
    }
    let plain = plain_form(command);
    let lexed = lex(&plain, true);
    let words = Words {
        text: &plain,
        tokens: &lexed.tokens,
    };
    if !words.is(0, "create") {
        return None;
    }
    let index = 1 + usize::from(words.is(1, "unique"));
    if !words.is(index, "index") {
        return None;
    }
    let name = index + 1 + words.phrase(index + 1, "if not exists");
    let named = words.kind(name)?.is_name() && !words.is(name, "on") && words.is(name + 1, "on");
    // ON ONLY makes the index of a partitioned table without its parts: quick, and never CONCURRENTLY.
    if !named || words.is(name + 2, "only") {
        return None;
    }
    let at = lexed.tokens.get(index)?.end;
    let concurrent = format!("{} concurrently{}", &plain[..at], &plain[at..]);
    Some((concurrent, words.name(name)?))
}

#[cfg(test)]
mod tests {
    use super::{concurrent_form, lone_build, tolerant_drop};

    #[test]
    fn only_a_named_index_is_built_aside() {
        let built = |text| concurrent_form(text);
        assert_eq!(
            built("create unique /* c */ index i on t (a)").as_deref(),
            Some("create unique /* c */ index concurrently i on t (a)")
        );
        assert_eq!(
            built(
                "CREATE INDEX CONCURRENTLY IF NOT EXISTS \"I\" ON s.t USING hnsw (v vector_l2_ops)"
            )
            .as_deref(),
            Some(
                "CREATE INDEX concurrently  IF NOT EXISTS \"I\" ON s.t USING hnsw (v vector_l2_ops)"
            )
        );
        for other in [
            "create index on t (a)",
            "create index i on only t (a)",
            "create table index (on int)",
            "create index i on t (a) where b = '{1}'::d[]",
            "create index i on t (a) where b = $${1}$$::d[]",
            "create index i on t (a) where b = $x${1}$x$::d[]",
            "create index i on t (a) where b = U&'1'::d",
            "create index i on t (a) where b = e'1'::d",
            "create index i on t (a) where b = n'1'::d",
            "create index i /* ' */ on t (a)",
            "drop index i",
            "create",
            "",
        ] {
            assert_eq!(built(other), None, "{other}");
        }
    }

    #[test]
    fn an_index_that_is_not_there_may_be_dropped() {
        for (command, tolerant) in [
            (
                "DROP INDEX a, b cascade",
                "DROP INDEX if exists a, b cascade",
            ),
            ("drop index if exists a", "drop index if exists a"),
            ("drop index \"if\"", "drop index if exists \"if\""),
            ("drop table index", "drop table index"),
        ] {
            assert_eq!(tolerant_drop(command), tolerant);
        }
    }

    #[test]
    fn only_a_text_with_nothing_else_is_a_lone_build() {
        let both = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        for (text, lone) in [
            (
                "create index concurrently \"My I\" on t (a); ",
                both("create index  \"My I\" on t (a)", "My I"),
            ),
            (
                "create index My on t ((a || \";\"))",
                both("create index My on t ((a || \";\"))", "my"),
            ),
            ("create index My on t ((a || ';'))", None),
            ("create index i on t (a); reset role", None),
            ("select 1; create index i on t (a)", None),
            ("create index on t (a)", None),
            ("create index i on t (a) where b = 'x", None),
            ("", None),
        ] {
            assert_eq!(lone_build(text), lone, "{text}");
        }
    }
}
