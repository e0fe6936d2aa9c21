//! Which index builds a follower may do beside the stream, and how (REPLICATION rule 23).
//!
//! An index changes no rows, so nobody's commit needs to wait for its build. Only a command that names
//! the index is taken: the server's own choice of a name depends on what is there at that moment.

use super::lexer::lex;
use super::pieces::plain_form;
use super::words::Words;

/// `CREATE [UNIQUE] INDEX name ON ...` as `CREATE [UNIQUE] INDEX CONCURRENTLY name ON ...`; none for
/// any other text. The bytes are the client's own but for the one keyword.
pub fn concurrent_form(command: &str) -> Option<String> {
    let plain = plain_form(command);
    // What is looked at stands before any literal, so how those are read does not matter.
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
    Some(format!("{} concurrently{}", &plain[..at], &plain[at..]))
}

#[cfg(test)]
mod tests {
    use super::concurrent_form;

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
            "drop index i",
            "create",
            "",
        ] {
            assert_eq!(built(other), None, "{other}");
        }
    }
}
