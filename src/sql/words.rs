//! One statement's tokens, read as words: the small reader under the classifier, the command tags
//! and the splices. Reads past the end give "no", never a panic.

use super::lexer::{Token, TokenKind, is_word, name_of};
use super::split::Piece;

/// The tokens of one statement and the text they are cut from.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a> {
    /// The whole text; positions count from its first byte.
    pub text: &'a str,
    /// The statement's tokens.
    pub tokens: &'a [Token],
}

impl<'a> Words<'a> {
    /// The tokens of `piece`.
    pub fn of(text: &'a str, tokens: &'a [Token], piece: &Piece) -> Self {
        Self {
            text,
            tokens: &tokens[piece.tokens.clone()],
        }
    }

    /// The statement from its token `at` on.
    #[must_use]
    pub fn from(self, at: usize) -> Self {
        Self {
            tokens: self.tokens.get(at..).unwrap_or_default(),
            ..self
        }
    }

    /// How many tokens there are.
    pub fn len(self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.tokens.is_empty()
    }

    /// Whether token `at` is the unquoted `word`, given in lower case.
    pub fn is(self, at: usize, word: &str) -> bool {
        is_word(self.text, self.tokens, at, word)
    }

    /// Whether token `at` is one of `words`.
    pub fn is_any(self, at: usize, words: &[&str]) -> bool {
        words.iter().any(|word| self.is(at, word))
    }

    /// How many tokens the words of `phrase` (one blank between them) take at `at`; 0 if they are not there.
    pub fn phrase(self, at: usize, phrase: &str) -> usize {
        let mut count = 0;
        for word in phrase.split(' ') {
            if !self.is(at + count, word) {
                return 0;
            }
            count += 1;
        }
        count
    }

    /// The kind of token `at`.
    pub fn kind(self, at: usize) -> Option<TokenKind> {
        self.tokens.get(at).map(|token| token.kind)
    }

    /// The token's own bytes.
    pub fn raw(self, at: usize) -> &'a str {
        self.tokens
            .get(at)
            .map_or("", |token| &self.text[token.start..token.end])
    }

    /// The bytes from token `from` to the end.
    pub fn rest(self, from: usize) -> &'a str {
        match (self.tokens.get(from), self.tokens.last()) {
            (Some(first), Some(last)) => &self.text[first.start..last.end],
            _ => "",
        }
    }

    /// The name token `at` stands for.
    pub fn name(self, at: usize) -> Option<String> {
        name_of(self.text, *self.tokens.get(at)?)
    }

    /// The token behind the parenthesis that token `at` opens.
    pub fn behind_parens(self, at: usize) -> Option<usize> {
        let mut depth = 0_usize;
        for (offset, token) in self.tokens.get(at..)?.iter().enumerate() {
            match token.kind {
                TokenKind::Open => depth += 1,
                TokenKind::Close => depth = depth.checked_sub(1)?,
                _ => {}
            }
            if depth == 0 {
                return Some(at + offset + 1);
            }
        }
        None
    }

    /// The first place from `at` on, outside parentheses, where `word` stands as a keyword: not
    /// behind a dot, nor behind AS, where anything is a label.
    pub fn find(self, at: usize, word: &str) -> Option<usize> {
        self.find_in(at, word, 0)
    }

    /// As [`Words::find`], but at most `depth_max` parentheses deep.
    pub fn find_in(self, at: usize, word: &str, depth_max: usize) -> Option<usize> {
        let mut depth = 0_usize;
        for (index, token) in self.tokens.iter().enumerate().skip(at) {
            match token.kind {
                TokenKind::Open => depth += 1,
                TokenKind::Close => depth = depth.saturating_sub(1),
                TokenKind::Word if depth <= depth_max && self.is(index, word) => {
                    let label = index > 0
                        && (self.tokens[index - 1].kind == TokenKind::Dot
                            || self.is(index - 1, "as"));
                    if !label {
                        return Some(index);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// How many parentheses the statement begins with.
    pub fn leading_parens(self) -> usize {
        self.tokens
            .iter()
            .take_while(|token| token.kind == TokenKind::Open)
            .count()
    }

    /// Where the verb of a statement stands that begins with WITH: behind its last query in parentheses.
    pub fn behind_with(self, with: usize) -> Option<usize> {
        let mut at = with + 1 + usize::from(self.is(with + 1, "recursive"));
        loop {
            self.kind(at).filter(|kind| kind.is_name())?;
            at += 1;
            if self.kind(at) == Some(TokenKind::Open) {
                at = self.behind_parens(at)?;
            }
            if !self.is(at, "as") {
                return None;
            }
            at += 1;
            at += usize::from(self.is(at, "not"));
            at += usize::from(self.is(at, "materialized"));
            if self.kind(at) != Some(TokenKind::Open) {
                return None;
            }
            at = self.behind_parens(at)?;
            if self.is(at, "search") {
                at = self.find(at, "set")? + 2;
            }
            if self.is(at, "cycle") {
                at = self.find(at, "using")? + 2;
            }
            if self.kind(at) != Some(TokenKind::Comma) {
                return Some(at);
            }
            at += 1;
        }
    }
}
