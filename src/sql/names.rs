//! The names a statement mentions, as its tokens show them, and what they stand for in a catalog.
//!
//! Every identifier counts wherever it stands, so that nothing is missed which an exact parse would
//! find; the cost of that is a probe or a trip to the writer too many, never one too few.

use super::builtins;
use super::catalog::Catalog;
use super::lexer::{Token, TokenKind, name_of, text_of};
use super::statement::{Effects, Reason};
use super::words::Words;

/// A relation as a text names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RelationName {
    /// Its schema, where the text says it.
    pub schema: Option<String>,
    /// Its name.
    pub name: String,
}

/// What one statement mentions. All lists are sorted and without doubles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Every identifier, keywords and aliases among them.
    pub words: Vec<String>,
    /// What stands before a parenthesis as a function's name does.
    pub calls: Vec<String>,
    /// Likewise, where it may also be a word of the grammar (`over (`): a call only if there is such a
    /// function.
    pub maybe_calls: Vec<String>,
    /// Every operator.
    pub operators: Vec<String>,
    /// Settings with a dot in their name that SET, `set_config` or `current_setting` names.
    pub placeholders: Vec<String>,
    /// The relations it reads or writes; `None` where that is not known (then it may be any).
    pub relations: Option<Vec<RelationName>>,
    /// The names of the WITH queries of a proven query.
    pub with_queries: Vec<String>,
    /// What stands behind a dot: of a value it may be a function, too.
    pub fields: Vec<String>,
    /// A name in it is written so that it was not read (`U&"..."`).
    pub opaque: bool,
}

/// The proxy's relations and functions that a bare name reaches.
pub const METADATA_RELATIONS: [&str; 4] = [
    "cluster_nodes",
    "conflict_log",
    "distributed_transactions",
    "replication_status",
];
/// Likewise, functions.
pub const METADATA_FUNCTIONS: [&str; 2] = ["check_quorum", "execute_with_quorum"];

impl Names {
    /// Collects from the tokens of one statement.
    pub fn of(text: &str, tokens: &[Token]) -> Self {
        let mut names = Self::default();
        for (at, token) in tokens.iter().enumerate() {
            match token.kind {
                TokenKind::Operator => {
                    names
                        .operators
                        .push(text[token.start..token.end].to_owned());
                }
                TokenKind::UnicodeName => names.opaque = true,
                kind if kind.is_name() => {
                    let Some(name) = name_of(text, *token) else {
                        continue;
                    };
                    match call(text, tokens, at, &name) {
                        Call::Sure => names.calls.push(name.clone()),
                        Call::Perhaps => names.maybe_calls.push(name.clone()),
                        Call::No => {}
                    }
                    if at > 0 && tokens[at - 1].kind == TokenKind::Dot {
                        names.fields.push(name.clone());
                    }
                    names.words.push(name);
                }
                _ => {}
            }
        }
        names.placeholders = placeholders(text, tokens);
        for list in [
            &mut names.words,
            &mut names.calls,
            &mut names.maybe_calls,
            &mut names.fields,
            &mut names.operators,
            &mut names.placeholders,
        ] {
            list.sort_unstable();
            list.dedup();
        }
        names
    }

    /// What the functions that it calls by name are known to do.
    pub fn named_effects(&self) -> Effects {
        self.calls
            .iter()
            .filter_map(|name| builtins::named_effects(name))
            .fold(Effects::default(), Effects::or)
    }

    /// Whether running it may run code that is not known to leave the session as it was; `written`
    /// says that it may write what it names.
    pub fn effects_unknown(&self, catalog: &Catalog, written: bool) -> bool {
        let any =
            |list: &[String], hides: &dyn Fn(&str) -> bool| list.iter().any(|name| hides(name));
        self.opaque
            || catalog.is_doubted() && !self.words.is_empty()
            || catalog.implicit_code()
            || any(&self.calls, &|name| !catalog.call_is_tame(name))
            || any(&self.maybe_calls, &|name| {
                catalog.function_may_hide_code(name)
            })
            || any(&self.fields, &|name| catalog.function_may_hide_code(name))
            || any(&self.words, &|name| {
                catalog.word_may_hide_code(name, written)
            })
            || any(&self.operators, &|name| {
                catalog.operator_may_hide_code(name)
            })
    }

    /// Whether all names are harmless, for a query that is one as far as its text goes.
    pub fn read_only(&self, catalog: &Catalog) -> Result<(), Reason> {
        catalog.read_only(self)
    }

    /// Whether it names a relation that takes values of a sequence when it is written.
    pub fn draws_sequence(&self, catalog: &Catalog) -> bool {
        self.words.iter().any(|name| catalog.draws_sequence(name))
    }

    /// Whether a word of it is a name of the proxy's metadata.
    pub fn mentions_metadata(&self) -> bool {
        let has = |name: &&str| {
            self.words
                .binary_search_by(|word| word.as_str().cmp(name))
                .is_ok()
        };
        METADATA_RELATIONS.iter().any(has) || METADATA_FUNCTIONS.iter().any(has)
    }

    /// About how much memory it takes.
    pub fn bytes(&self) -> usize {
        let lists = [
            &self.words,
            &self.calls,
            &self.operators,
            &self.placeholders,
            &self.fields,
            &self.with_queries,
        ];
        let relations = self
            .relations
            .iter()
            .flatten()
            .map(|one| one.name.len() + 64);
        let words = lists.into_iter().flatten().map(|name| name.len() + 32);
        words.chain(relations).sum()
    }
}

/// Whether a name is called.
enum Call {
    Sure,
    Perhaps,
    No,
}

/// Whether the name at `at` is called. A parenthesis also follows the grammar's own words, the target
/// of INSERT INTO and COPY, an alias behind AS, and a WITH query.
fn call(text: &str, tokens: &[Token], at: usize, name: &str) -> Call {
    let words = Words { text, tokens };
    if words.kind(at + 1) != Some(TokenKind::Open) {
        return Call::No;
    }
    let qualified = |first: usize| {
        first >= 2
            && words.kind(first - 1) == Some(TokenKind::Dot)
            && words.kind(first - 2).is_some_and(TokenKind::is_name)
    };
    let mut first = at;
    while qualified(first) {
        first -= 2;
    }
    let bare = first == at && words.kind(at) == Some(TokenKind::Word);
    let behind = |word: &str| first > 0 && words.is(first - 1, word);
    if bare && builtins::is_reserved(name)
        || behind("into")
        || behind("as")
        || first == 1 && behind("copy")
        || names_with_query(words, at)
    {
        Call::No
    } else if bare && builtins::may_be_syntax(name) {
        Call::Perhaps
    } else {
        Call::Sure
    }
}

/// `name (columns) AS [[NOT] MATERIALIZED] (query)`, as only a WITH has it: in FROM, what stands in
/// the second parentheses are columns, and none is called SELECT.
fn names_with_query(words: Words<'_>, at: usize) -> bool {
    let with = at > 0
        && (words.is_any(at - 1, &["with", "recursive"])
            || words.kind(at - 1) == Some(TokenKind::Comma));
    let Some(behind) = Some(at + 1)
        .filter(|_| with)
        .and_then(|open| words.behind_parens(open))
    else {
        return false;
    };
    let mut open = behind + 1;
    open += usize::from(words.is(open, "not"));
    open += usize::from(words.is(open, "materialized"));
    words.is(behind, "as")
        && words.kind(open) == Some(TokenKind::Open)
        && words.is_any(open + 1, &["select", "with", "table"])
}

/// Settings named as `a.b`: behind SET, and as the first argument of the functions for settings.
fn placeholders(text: &str, tokens: &[Token]) -> Vec<String> {
    let word = |at: usize, word: &str| super::lexer::is_word(text, tokens, at, word);
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        if word(at, "set_config") || word(at, "current_setting") {
            if let Some(name) = tokens.get(at + 2).and_then(|token| text_of(text, *token)) {
                found.push(name.to_ascii_lowercase());
            }
        } else if word(at, "set") || word(at, "reset") || word(at, "show") {
            let skip = usize::from(word(at + 1, "local") || word(at + 1, "session"));
            if let Some(name) = dotted_name(text, tokens, at + 1 + skip) {
                found.push(name.to_ascii_lowercase());
            }
        }
    }
    found.retain(|name| name.contains('.'));
    found
}

/// The name at `at` with what dots join to it.
pub fn dotted_name(text: &str, tokens: &[Token], at: usize) -> Option<String> {
    let mut name = name_of(text, *tokens.get(at)?)?;
    let mut at = at + 1;
    while tokens
        .get(at)
        .is_some_and(|token| token.kind == TokenKind::Dot)
    {
        name.push('.');
        name.push_str(&name_of(text, *tokens.get(at + 1)?)?);
        at += 2;
    }
    Some(name)
}
