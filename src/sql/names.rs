//! The names a statement mentions, as its tokens show them, and what they stand for in a catalog.
//!
//! Every identifier counts wherever it stands, so that nothing is missed which an exact parse would
//! find; the cost of that is a probe or a trip to the writer too many, never one too few.

use super::builtins;
use super::catalog::Catalog;
use super::lexer::{Token, TokenKind, name_of, text_of};
use super::statement::{Effects, Reason};

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
                    let called = tokens
                        .get(at + 1)
                        .is_some_and(|t| t.kind == TokenKind::Open);
                    if called && is_call(text, tokens, at, &name) {
                        names.calls.push(name.clone());
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

    /// Whether running it may run code that is not known to leave the session as it was.
    pub fn effects_unknown(&self, catalog: &Catalog) -> bool {
        self.opaque
            || self.calls.iter().any(|name| !catalog.call_is_tame(name))
            || self
                .words
                .iter()
                .any(|name| catalog.word_may_hide_code(name))
            || self
                .operators
                .iter()
                .any(|name| catalog.operator_may_hide_code(name))
            || catalog.implicit_code()
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

/// A name before a parenthesis that may be a function: not the grammar's own words, and not the
/// target of INSERT INTO or COPY with its columns.
fn is_call(text: &str, tokens: &[Token], at: usize, name: &str) -> bool {
    let quoted = tokens[at].kind != TokenKind::Word;
    let mut first = at;
    while first >= 2 && tokens[first - 1].kind == TokenKind::Dot && tokens[first - 2].kind.is_name()
    {
        first -= 2;
    }
    let qualified = first != at;
    if !quoted && !qualified && builtins::is_syntax(name) {
        return false;
    }
    let before = first.checked_sub(1).map(|before| tokens[before]);
    let target = before.is_some_and(|token| {
        let word = &text[token.start..token.end];
        token.kind == TokenKind::Word
            && (word.eq_ignore_ascii_case("into")
                || first == 1 && word.eq_ignore_ascii_case("copy"))
    });
    !target
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
