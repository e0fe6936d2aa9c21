//! Splices into a text by byte position, and error positions back to where the client wrote them.
//!
//! The only rewrite of this floor gives bare names of the proxy's metadata their schema. A rewrite
//! only ever inserts: what the client sent is all there, in its order, byte for byte.

use super::catalog::Catalog;
use super::lexer::{Token, TokenKind, lex, name_of};
use super::names::{METADATA_FUNCTIONS, METADATA_RELATIONS};
use super::split::split;
use super::statement::{Facts, Kind};
use super::words::Words;

/// One insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Splice {
    /// How many characters of the original stand before it.
    before_chars: usize,
    /// How many characters it adds.
    added_chars: usize,
}

/// A text with something inserted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// What to send.
    pub text: String,
    splices: Vec<Splice>,
}

impl Rewritten {
    /// Inserts each text at its byte position; positions must be sorted and lie between characters.
    /// Others are left out.
    pub fn insert(original: &str, inserts: &[(usize, &str)]) -> Self {
        let added: usize = inserts.iter().map(|(_, text)| text.len()).sum();
        let mut text = String::with_capacity(original.len() + added);
        let mut splices = Vec::with_capacity(inserts.len());
        let (mut done, mut chars) = (0, 0);
        for (at, insert) in inserts {
            let Some(between) = original.get(done..*at) else {
                continue;
            };
            text.push_str(between);
            text.push_str(insert);
            done = *at;
            chars += between.chars().count();
            splices.push(Splice {
                before_chars: chars,
                added_chars: insert.chars().count(),
            });
        }
        text.push_str(&original[done..]);
        Self { text, splices }
    }

    /// Each insertion: where it begins in the original, in characters from 1, and how many it adds.
    pub fn splices(&self) -> Box<[(u32, u32)]> {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let splice = |s: &Splice| (number(s.before_chars + 1), number(s.added_chars));
        self.splices.iter().map(splice).collect()
    }

    /// The place in the original that a position in an error speaks of. Both count characters from 1,
    /// as the server does; a place inside an insertion becomes the character behind it.
    pub fn original_position(&self, position: usize) -> usize {
        let mut added = 0;
        for splice in &self.splices {
            let start = splice.before_chars + added;
            if position <= start {
                break;
            }
            if position <= start + splice.added_chars {
                return splice.before_chars + 1;
            }
            added += splice.added_chars;
        }
        position - added
    }
}

/// What stands before a name of the metadata.
const SCHEMA: &str = "synapsedb.";

/// The text with the schema before each bare name of the proxy's metadata, where no relation,
/// function or WITH query of the user's own has that name; `None` where there is nothing to do.
pub fn metadata(text: &str, scs: bool, facts: &Facts, catalog: &Catalog) -> Option<Rewritten> {
    if !facts.mentions_metadata() {
        return None;
    }
    let lexed = lex(text, scs);
    if lexed.fault.is_some() {
        return None;
    }
    let mut inserts = Vec::new();
    for (piece, statement) in split(text, &lexed.tokens).iter().zip(&facts.statements) {
        if statement.names.mentions_metadata() && may_name_metadata(&statement.kind) {
            let words = Words::of(text, &lexed.tokens, piece);
            inserts.extend(places(words, catalog).into_iter().map(|at| (at, SCHEMA)));
        }
    }
    (!inserts.is_empty()).then(|| Rewritten::insert(text, &inserts))
}

fn may_name_metadata(kind: &Kind) -> bool {
    match kind {
        Kind::Query
        | Kind::Write
        | Kind::Explain { .. }
        | Kind::DeclareCursor { .. }
        | Kind::Prepare(_)
        | Kind::CopyOut => true,
        Kind::Ddl(tag) => matches!(
            tag.as_str(),
            "CREATE TABLE AS" | "SELECT INTO" | "CREATE VIEW" | "CREATE MATERIALIZED VIEW"
        ),
        _ => false,
    }
}

/// The bytes before which the schema belongs.
fn places(words: Words<'_>, catalog: &Catalog) -> Vec<usize> {
    let scopes = Scopes::of(words);
    let mut reader = FromReader::default();
    let mut places = Vec::new();
    for (at, token) in words.tokens.iter().enumerate() {
        let relation = reader.is_relation(words, at);
        let bare = at == 0 || words.kind(at - 1) != Some(TokenKind::Dot);
        let behind = words.kind(at + 1);
        if !bare || behind == Some(TokenKind::Dot) || !token.kind.is_name() {
            continue;
        }
        let Some(name) = name_of(words.text, *token) else {
            continue;
        };
        let called = behind == Some(TokenKind::Open);
        let ours = if called {
            METADATA_FUNCTIONS.contains(&name.as_str()) && !catalog.has_user_function(&name)
        } else {
            relation
                && METADATA_RELATIONS.contains(&name.as_str())
                && !catalog.has_user_relation(&name)
                && !scopes.hide(&name, at)
        };
        if ours {
            places.push(token.start);
        }
    }
    places
}

/// Where WITH queries hide a name.
struct Scopes {
    /// A name, and the tokens from which and up to which it stands for a WITH query.
    hidden: Vec<(String, usize, usize)>,
}

impl Scopes {
    fn of(words: Words<'_>) -> Self {
        let close = closing(words.tokens);
        let mut hidden = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        for (at, token) in words.tokens.iter().enumerate() {
            match token.kind {
                TokenKind::Open => open.push(close[at]),
                TokenKind::Close => drop(open.pop()),
                TokenKind::Word if words.is(at, "with") => {
                    let end = open.last().copied().unwrap_or(words.len());
                    with_queries(words, at, &close, |name, from| {
                        hidden.push((name, from, end));
                    });
                }
                _ => {}
            }
        }
        Self { hidden }
    }

    fn hide(&self, name: &str, at: usize) -> bool {
        let hides =
            |(own, from, end): &(String, usize, usize)| own == name && (*from..*end).contains(&at);
        self.hidden.iter().any(hides)
    }
}

/// For each opening parenthesis its closing one, else the end.
fn closing(tokens: &[Token]) -> Vec<usize> {
    let mut close = vec![tokens.len(); tokens.len()];
    let mut open = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token.kind {
            TokenKind::Open => open.push(at),
            TokenKind::Close => {
                if let Some(opened) = open.pop() {
                    close[opened] = at;
                }
            }
            _ => {}
        }
    }
    close
}

/// Calls `found` for each query of the WITH at `with`, with the token from which its name is known.
fn with_queries(
    words: Words<'_>,
    with: usize,
    close: &[usize],
    mut found: impl FnMut(String, usize),
) {
    let recursive = words.is(with + 1, "recursive");
    let mut at = with + 1 + usize::from(recursive);
    while let Some(name) = words.name(at) {
        at += 1;
        if words.kind(at) == Some(TokenKind::Open) {
            at = close[at] + 1;
        }
        if !words.is(at, "as") {
            return;
        }
        at += 1;
        at += usize::from(words.is(at, "not"));
        at += usize::from(words.is(at, "materialized"));
        if words.kind(at) != Some(TokenKind::Open) {
            return;
        }
        at = close[at] + 1;
        found(name, if recursive { with } else { at });
        // SEARCH and CYCLE end with a name; the next query follows a comma behind it.
        let clauses = words.is_any(at, &["search", "cycle"]);
        let comma = (at..words.len()).take_while(|_| clauses).find(|comma| {
            words.kind(*comma) == Some(TokenKind::Comma) && words.is(comma + 2, "as")
        });
        at = comma.unwrap_or(at);
        if words.kind(at) != Some(TokenKind::Comma) {
            return;
        }
        at += 1;
    }
}

/// Follows a statement token by token and knows where a relation's name stands.
#[derive(Default)]
pub struct FromReader {
    /// Each open parenthesis, and whether a FROM list goes on around it.
    outer: Vec<(usize, bool)>,
    /// Inside a FROM list at this depth: behind a comma comes a relation.
    in_from: bool,
    /// The next token may be a relation.
    expects: bool,
}

impl FromReader {
    /// Whether the token at `at`, the next one, stands where a relation's name does.
    pub fn is_relation(&mut self, words: Words<'_>, at: usize) -> bool {
        let expected = std::mem::take(&mut self.expects);
        match words.kind(at) {
            Some(TokenKind::Open) => {
                self.outer.push((at, self.in_from));
                self.in_from = expected;
                self.expects = expected;
                false
            }
            Some(TokenKind::Close) => {
                self.in_from = self.outer.pop().is_some_and(|(_, outer)| outer);
                false
            }
            Some(TokenKind::Comma) => {
                self.expects = self.in_from;
                false
            }
            Some(TokenKind::Word) => {
                self.word(words, at, expected);
                expected
            }
            Some(kind) => expected && kind.is_name(),
            None => false,
        }
    }

    fn word(&mut self, words: Words<'_>, at: usize, expected: bool) {
        const ENDS: [&str; 16] = [
            "where",
            "group",
            "order",
            "having",
            "limit",
            "offset",
            "fetch",
            "for",
            "window",
            "union",
            "intersect",
            "except",
            "set",
            "returning",
            "select",
            "values",
        ];
        let label =
            at > 0 && (words.is(at - 1, "as") || words.kind(at - 1) == Some(TokenKind::Dot));
        if label && !words.is_any(at, &["select", "values", "table"]) {
            return;
        }
        if words.is_any(at, &["from", "using"]) {
            let compares =
                at > 1 && words.is(at - 1, "distinct") && words.is_any(at - 2, &["is", "not"]);
            let list = !compares && !self.in_function(words);
            // JOIN ... USING (columns) goes on with the list, but names no relation.
            let columns = words.is(at, "using") && words.kind(at + 1) == Some(TokenKind::Open);
            self.in_from |= list;
            self.expects = list && !columns;
        } else if words.is(at, "join") {
            self.expects = true;
        } else if words.is_any(at, &["only", "lateral"]) {
            self.expects = expected;
        } else if words.is(at, "table") || at == 0 && words.is(at, "copy") {
            self.expects = true;
            self.in_from = false;
        } else if words.is_any(at, &ENDS) {
            self.in_from = false;
        }
    }

    /// Whether FROM belongs to `extract(... from ...)` and its like: to a call that is open here.
    fn in_function(&self, words: Words<'_>) -> bool {
        const CALLS: [&str; 5] = ["extract", "substring", "trim", "overlay", "position"];
        self.outer
            .last()
            .is_some_and(|(open, _)| *open > 0 && words.is_any(open - 1, &CALLS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rewritten(text: &str) -> String {
        let facts = Facts::of(text, true);
        metadata(text, true, &facts, &Catalog::unknown())
            .map_or_else(|| text.to_owned(), |new| new.text)
    }

    #[test]
    fn bare_relations_get_their_schema() {
        for (text, expected) in [
            (
                "select * from cluster_nodes",
                "select * from synapsedb.cluster_nodes",
            ),
            ("TABLE cluster_nodes", "TABLE synapsedb.cluster_nodes"),
            (
                "select * from a, cluster_nodes n join replication_status using (node_id), conflict_log",
                "select * from a, synapsedb.cluster_nodes n join synapsedb.replication_status using (node_id), synapsedb.conflict_log",
            ),
            (
                "select * from (cluster_nodes c cross join only \"conflict_log\")",
                "select * from (synapsedb.cluster_nodes c cross join only synapsedb.\"conflict_log\")",
            ),
            (
                "select (select count(*) from Cluster_Nodes), cluster_nodes.x from cluster_nodes where a in (table conflict_log)",
                "select (select count(*) from synapsedb.Cluster_Nodes), cluster_nodes.x from synapsedb.cluster_nodes where a in (table synapsedb.conflict_log)",
            ),
            (
                "select check_quorum(), execute_with_quorum ('x')",
                "select synapsedb.check_quorum(), synapsedb.execute_with_quorum ('x')",
            ),
            (
                "copy cluster_nodes to stdout",
                "copy synapsedb.cluster_nodes to stdout",
            ),
            (
                "explain select 1 from cluster_nodes",
                "explain select 1 from synapsedb.cluster_nodes",
            ),
            (
                "select 1; select 1 from cluster_nodes; select 2",
                "select 1; select 1 from synapsedb.cluster_nodes; select 2",
            ),
            (
                "with recursive a as (select 1) search depth first by x set y, b as (select 2 from cluster_nodes) select 1 from b",
                "with recursive a as (select 1) search depth first by x set y, b as (select 2 from synapsedb.cluster_nodes) select 1 from b",
            ),
            (
                "with cluster_nodes as (select * from cluster_nodes) select * from cluster_nodes",
                "with cluster_nodes as (select * from synapsedb.cluster_nodes) select * from cluster_nodes",
            ),
            (
                "select * from (with conflict_log as (select 1) select * from conflict_log) a, conflict_log",
                "select * from (with conflict_log as (select 1) select * from conflict_log) a, synapsedb.conflict_log",
            ),
        ] {
            assert_eq!(rewritten(text), expected);
        }
    }

    #[test]
    fn other_names_stay_as_they_are() {
        for text in [
            "select * from public.cluster_nodes",
            "select * from synapsedb.cluster_nodes",
            "select cluster_nodes from t",
            "select 'from cluster_nodes', \"x\" from t cluster_nodes",
            "select extract(year from cluster_nodes) from t",
            "select a is distinct from cluster_nodes from t",
            "with recursive cluster_nodes as (select * from cluster_nodes) select * from cluster_nodes",
            "create table cluster_nodes(a int)",
            "create function check_quorum() returns int language sql as 'select 1'",
            "select x.check_quorum()",
            "insert into cluster_nodes values (1)",
            "select * from cluster_nodes(1)",
            "select * from t where a = cluster_nodes, b",
            "select * from 'cluster_nodes",
        ] {
            assert_eq!(rewritten(text), text);
        }
    }

    #[test]
    fn positions_count_characters() {
        let new = Rewritten::insert("ä from b", &[(8, "sch.")]);
        assert_eq!(new.text, "ä from sch.b");
        assert_eq!(new.original_position(1), 1);
        assert_eq!(new.original_position(7), 7);
        assert_eq!(new.original_position(8), 8);
        assert_eq!(new.original_position(10), 8);
        assert_eq!(new.original_position(12), 8);
        assert_eq!(new.original_position(13), 9);
    }

    proptest! {
        #[test]
        fn a_rewrite_only_inserts_and_positions_map_back(
            parts in prop::collection::vec(prop_oneof![
                Just("cluster_nodes"), Just("conflict_log"), Just("check_quorum("), Just(" from "),
                Just(" select "), Just("("), Just(")"), Just(", "), Just("ä "), Just(" join "),
                Just("; "), Just("'x' "), Just("with "), Just(" as "), Just("a."), Just("1 "),
            ], 0..40)
        ) {
            let text = format!("select {}", parts.concat());
            let facts = Facts::of(&text, true);
            if let Some(new) = metadata(&text, true, &facts, &Catalog::unknown()) {
                let chars: Vec<char> = text.chars().collect();
                let mut last = 1;
                for (at, char) in new.text.chars().enumerate() {
                    let original = new.original_position(at + 1);
                    prop_assert!(original >= last && original <= chars.len());
                    last = original;
                    // A character that is not part of an insertion is the one it maps to.
                    let inserted = new.original_position(at + 2) == original;
                    prop_assert!(inserted || chars[original - 1] == char);
                }
                prop_assert_eq!(new.original_position(new.text.chars().count() + 1), chars.len() + 1);
                prop_assert_eq!(new.text.replace(SCHEMA, ""), text);
            }
        }

        #[test]
        fn insertions_anywhere_map_back(text in "\\PC{0,40}", at in 0_usize..60, insert in "\\PC{0,5}") {
            let new = Rewritten::insert(&text, &[(at, &insert)]);
            for position in 1..=text.chars().count() + 1 {
                let before = text.get(..at).map_or(usize::MAX, |before| before.chars().count());
                let added = if position > before { insert.chars().count() } else { 0 };
                prop_assert_eq!(new.original_position(position + added), position);
            }
        }
    }
}
