//! Text to tokens as `PostgreSQL`'s own scanner (`scan.l`, 15 to 18) cuts it.
//!
//! It never panics on any text, never copies it, and says so when a text cannot be cut (`Fault`):
//! then the server refuses the whole text too. A literal taken for code, or code for a literal, would
//! let a write pass as a read; that is the promise this file guards.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// An identifier or keyword without quotes.
    Word,
    /// `"..."`.
    QuotedName,
    /// `U&"..."`: escapes are not decoded here, so its name is not known.
    UnicodeName,
    /// `'...'` without escapes.
    PlainText,
    /// `E'...'`, or `'...'` with `standard_conforming_strings` off.
    EscapeText,
    /// `U&'...'`.
    UnicodeText,
    /// `B'...'` or `X'...'`.
    BitText,
    /// `$$...$$` or `$tag$...$tag$`.
    DollarText,
    /// `$1`.
    Parameter,
    /// Any number.
    Number,
    /// An operator, `::`, `:=`, `=>` and `..` among them.
    Operator,
    /// `(`.
    Open,
    /// `)`.
    Close,
    /// `[`.
    OpenBracket,
    /// `]`.
    CloseBracket,
    /// `,`.
    Comma,
    /// `;`.
    Semicolon,
    /// `.`.
    Dot,
    /// `:` alone.
    Colon,
}

impl TokenKind {
    /// A literal in quotes of any kind.
    pub fn is_text(self) -> bool {
        matches!(
            self,
            Self::PlainText
                | Self::EscapeText
                | Self::UnicodeText
                | Self::BitText
                | Self::DollarText
        )
    }

    /// Something that may name an object.
    pub fn is_name(self) -> bool {
        matches!(self, Self::Word | Self::QuotedName | Self::UnicodeName)
    }
}

/// One token and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// Why a text cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A literal without its end.
    #[error("unterminated quoted string")]
    UnterminatedText,
    /// A quoted name without its end.
    #[error("unterminated quoted identifier")]
    UnterminatedName,
    /// A comment without its end.
    #[error("unterminated comment")]
    UnterminatedComment,
    /// `""`.
    #[error("zero-length quoted identifier")]
    EmptyName,
    /// `U&'...'` with `standard_conforming_strings` off.
    #[error("unsafe use of Unicode escapes")]
    UnsafeUnicode,
    /// Letters that stick to a number or a parameter.
    #[error("trailing junk after a number or parameter")]
    Junk,
    /// A character no token begins with.
    #[error("unexpected character")]
    Character,
}

/// All tokens up to the end or the first fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lexed {
    /// In order of position.
    pub tokens: Vec<Token>,
    /// What ended it early, and at which byte.
    pub fault: Option<(Fault, usize)>,
}

/// Cuts `text`; `scs` is the session's `standard_conforming_strings`.
pub fn lex(text: &str, scs: bool) -> Lexed {
    let mut scan = Scan {
        bytes: text.as_bytes(),
        at: 0,
        scs,
    };
    let mut tokens = Vec::with_capacity(text.len() / 5 + 4);
    loop {
        match scan.next() {
            Ok(Some(token)) => tokens.push(token),
            Ok(None) => {
                return Lexed {
                    tokens,
                    fault: None,
                };
            }
            Err(fault) => {
                let at = scan.at.min(text.len());
                return Lexed {
                    tokens,
                    fault: Some((fault, at)),
                };
            }
        }
    }
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    scs: bool,
}

impl Scan<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn next(&mut self) -> Result<Option<Token>, Fault> {
        self.skip_blank()?;
        let start = self.at;
        let Some(&first) = self.bytes.get(start) else {
            return Ok(None);
        };
        let kind = match first {
            b'\'' => self.text(start, !self.scs)?,
            b'"' => self.quoted_name(start + 1, TokenKind::QuotedName)?,
            b'$' => self.dollar()?,
            b'0'..=b'9' => self.number()?,
            b'.' if self.peek(1).is_ascii_digit() => self.number()?,
            b'.' if self.peek(1) == b'.' => self.take(2, TokenKind::Operator),
            b'.' => self.take(1, TokenKind::Dot),
            b'(' => self.take(1, TokenKind::Open),
            b')' => self.take(1, TokenKind::Close),
            b'[' => self.take(1, TokenKind::OpenBracket),
            b']' => self.take(1, TokenKind::CloseBracket),
            b',' => self.take(1, TokenKind::Comma),
            b';' => self.take(1, TokenKind::Semicolon),
            b':' if matches!(self.peek(1), b':' | b'=') => self.take(2, TokenKind::Operator),
            b':' => self.take(1, TokenKind::Colon),
            c if is_operator(c) => self.operator(),
            c if is_word_start(c) => self.word(first)?,
            _ => return Err(Fault::Character),
        };
        Ok(Some(Token {
            kind,
            start,
            end: self.at,
        }))
    }

    fn take(&mut self, bytes: usize, kind: TokenKind) -> TokenKind {
        self.at += bytes;
        kind
    }

    /// Blanks and comments; block comments nest.
    fn skip_blank(&mut self) -> Result<(), Fault> {
        loop {
            match self.peek(0) {
                c if is_blank(c) && self.at < self.bytes.len() => self.at += 1,
                b'-' if self.peek(1) == b'-' => self.skip_line(),
                b'/' if self.peek(1) == b'*' => self.skip_block()?,
                _ => return Ok(()),
            }
        }
    }

    fn skip_line(&mut self) {
        while self.at < self.bytes.len() && !matches!(self.bytes[self.at], b'\n' | b'\r') {
            self.at += 1;
        }
    }

    fn skip_block(&mut self) -> Result<(), Fault> {
        let mut depth = 0_usize;
        while self.at < self.bytes.len() {
            if self.peek(0) == b'/' && self.peek(1) == b'*' {
                depth += 1;
                self.at += 2;
            } else if self.peek(0) == b'*' && self.peek(1) == b'/' {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    return Ok(());
                }
            } else {
                self.at += 1;
            }
        }
        Err(Fault::UnterminatedComment)
    }

    fn word(&mut self, first: u8) -> Result<TokenKind, Fault> {
        let second = self.peek(1);
        match first {
            b'e' | b'E' if second == b'\'' => return self.text(self.at + 1, true),
            b'b' | b'B' | b'x' | b'X' if second == b'\'' => return self.bits(),
            b'n' | b'N' if second == b'\'' => return self.text(self.at + 1, !self.scs),
            b'u' | b'U' if second == b'&' => match self.peek(2) {
                b'"' => return self.quoted_name(self.at + 3, TokenKind::UnicodeName),
                b'\'' if !self.scs => return Err(Fault::UnsafeUnicode),
                b'\'' => {
                    self.text(self.at + 2, false)?;
                    return Ok(TokenKind::UnicodeText);
                }
                _ => {}
            },
            _ => {}
        }
        self.skip_word();
        Ok(TokenKind::Word)
    }

    fn skip_word(&mut self) {
        while self.at < self.bytes.len() && is_word_part(self.bytes[self.at]) {
            self.at += 1;
        }
    }

    /// A literal whose opening quote is at `open`, with the continuations that follow on later lines.
    fn text(&mut self, open: usize, escapes: bool) -> Result<TokenKind, Fault> {
        self.at = open + 1;
        loop {
            match self.bytes.get(self.at) {
                None => return Err(Fault::UnterminatedText),
                Some(b'\\') if escapes => self.at += 2,
                Some(b'\'') if self.peek(1) == b'\'' => self.at += 2,
                Some(b'\'') => {
                    self.at += 1;
                    if !self.continued() {
                        break;
                    }
                }
                Some(_) => self.at += 1,
            }
        }
        Ok(if escapes {
            TokenKind::EscapeText
        } else {
            TokenKind::PlainText
        })
    }

    /// `B'...'` and `X'...'`: no doubled quotes inside.
    fn bits(&mut self) -> Result<TokenKind, Fault> {
        self.at += 2;
        loop {
            match self.bytes.get(self.at) {
                None => return Err(Fault::UnterminatedText),
                Some(b'\'') => {
                    self.at += 1;
                    if !self.continued() {
                        return Ok(TokenKind::BitText);
                    }
                }
                Some(_) => self.at += 1,
            }
        }
    }

    /// Behind a closing quote: blanks with a newline among them and then a quote go on with the same
    /// literal, in the same mode. Moves past that quote if so.
    fn continued(&mut self) -> bool {
        let mut at = self.at;
        let mut newline = false;
        while let Some(&c) = self.bytes.get(at) {
            if is_blank(c) {
                newline |= matches!(c, b'\n' | b'\r');
                at += 1;
            } else if c == b'-' && self.bytes.get(at + 1) == Some(&b'-') {
                while at < self.bytes.len() && !matches!(self.bytes[at], b'\n' | b'\r') {
                    at += 1;
                }
            } else if c == b'\'' && newline {
                self.at = at + 1;
                return true;
            } else {
                return false;
            }
        }
        false
    }

    fn quoted_name(&mut self, inside: usize, kind: TokenKind) -> Result<TokenKind, Fault> {
        self.at = inside;
        loop {
            match self.bytes.get(self.at) {
                None => return Err(Fault::UnterminatedName),
                Some(b'"') if self.peek(1) == b'"' => self.at += 2,
                Some(b'"') if self.at == inside => return Err(Fault::EmptyName),
                Some(b'"') => return Ok(self.take(1, kind)),
                Some(_) => self.at += 1,
            }
        }
    }

    fn dollar(&mut self) -> Result<TokenKind, Fault> {
        if self.peek(1).is_ascii_digit() {
            self.at += 1;
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
            return self.no_junk(TokenKind::Parameter);
        }
        let mut end = self.at + 1;
        while let Some(&c) = self.bytes.get(end) {
            let first = end == self.at + 1;
            if c == b'$' {
                return self.dollar_text(end + 1);
            }
            if !(is_word_start(c) || !first && c.is_ascii_digit()) {
                break;
            }
            end += 1;
        }
        Err(Fault::Character)
    }

    /// The opening delimiter ends before `inside`.
    fn dollar_text(&mut self, inside: usize) -> Result<TokenKind, Fault> {
        let delimiter = &self.bytes[self.at..inside];
        match memchr::memmem::find(&self.bytes[inside..], delimiter) {
            Some(found) => {
                self.at = inside + found + delimiter.len();
                Ok(TokenKind::DollarText)
            }
            None => Err(Fault::UnterminatedText),
        }
    }

    fn number(&mut self) -> Result<TokenKind, Fault> {
        let radix = match (self.peek(0), self.peek(1) | 0x20) {
            (b'0', b'x') => Some(16),
            (b'0', b'o') => Some(8),
            (b'0', b'b') => Some(2),
            _ => None,
        };
        if let Some(radix) = radix {
            self.at += 2;
            while (self.peek(0) as char).is_digit(radix) || self.peek(0) == b'_' {
                self.at += 1;
            }
            return self.no_junk(TokenKind::Number);
        }
        self.digits();
        // `1..10` is an integer and then the two dots of a range.
        if self.peek(0) == b'.' && self.peek(1) != b'.' {
            self.at += 1;
            self.digits();
        }
        if self.peek(0) | 0x20 == b'e' {
            let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
            if self.peek(1 + sign).is_ascii_digit() {
                self.at += 1 + sign;
                self.digits();
            }
        }
        self.no_junk(TokenKind::Number)
    }

    fn digits(&mut self) {
        while self.peek(0).is_ascii_digit() || self.peek(0) == b'_' && self.peek(1).is_ascii_digit()
        {
            self.at += 1;
        }
    }

    fn no_junk(&self, kind: TokenKind) -> Result<TokenKind, Fault> {
        match self.bytes.get(self.at) {
            Some(&c) if is_word_start(c) => Err(Fault::Junk),
            _ => Ok(kind),
        }
    }

    /// The longest run of operator characters, less a comment that begins in it, and less trailing
    /// `+` and `-` where no character of the run allows them.
    fn operator(&mut self) -> TokenKind {
        let start = self.at;
        let mut end = start;
        while end < self.bytes.len() && is_operator(self.bytes[end]) {
            let pair = (self.bytes[end], self.bytes.get(end + 1));
            if end > start && matches!(pair, (b'/', Some(b'*')) | (b'-', Some(b'-'))) {
                break;
            }
            end += 1;
        }
        let run = &self.bytes[start..end];
        let free = |c: &u8| {
            matches!(
                c,
                b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'%'
            )
        };
        while end - start > 1
            && matches!(self.bytes[end - 1], b'+' | b'-')
            && !run[..end - start].iter().any(free)
        {
            end -= 1;
        }
        self.at = end;
        TokenKind::Operator
    }
}

fn is_blank(c: u8) -> bool {
    matches!(c, b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C)
}

fn is_word_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || c == b'_' || c >= 0x80
}

fn is_word_part(c: u8) -> bool {
    is_word_start(c) || c.is_ascii_digit() || c == b'$'
}

fn is_operator(c: u8) -> bool {
    b"~!@#^&|`?+-*/%<>=".contains(&c)
}

/// Whether the token at `at` is the unquoted word `word` (given in lower case).
pub fn is_word(text: &str, tokens: &[Token], at: usize, word: &str) -> bool {
    tokens.get(at).is_some_and(|token| {
        token.kind == TokenKind::Word && text[token.start..token.end].eq_ignore_ascii_case(word)
    })
}

/// The longest name the server keeps, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// The name a token stands for, folded and cut as the server does; `None` where it is none or not known.
pub fn name_of(text: &str, token: Token) -> Option<String> {
    let raw = &text[token.start..token.end];
    let mut name = match token.kind {
        TokenKind::Word => raw.to_ascii_lowercase(),
        TokenKind::QuotedName => raw[1..raw.len() - 1].replace("\"\"", "\""),
        _ => return None,
    };
    if name.len() > NAME_BYTES_MAX {
        let cut = (0..=NAME_BYTES_MAX)
            .rev()
            .find(|at| name.is_char_boundary(*at));
        name.truncate(cut.unwrap_or(0));
    }
    Some(name)
}

/// The value of a literal; `None` where it has escapes, is a bit string or goes on over lines.
pub fn text_of(text: &str, token: Token) -> Option<String> {
    let raw = &text[token.start..token.end];
    match token.kind {
        TokenKind::PlainText | TokenKind::EscapeText => {
            let open = raw.find('\'')?;
            let inner = raw[open + 1..].strip_suffix('\'')?;
            let plain = inner.replace("''", "");
            let escaped = token.kind == TokenKind::EscapeText && inner.contains('\\');
            let simple = !escaped && !plain.contains('\'');
            simple.then(|| inner.replace("''", "'"))
        }
        TokenKind::DollarText => {
            let tag = raw[1..].find('$')? + 2;
            Some(raw[tag..raw.len() - tag].to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_stop_where_the_server_stops_them() {
        let words = |text: &'static str| -> Vec<&str> {
            let lexed = lex(text, true);
            lexed.tokens.iter().map(|t| &text[t.start..t.end]).collect()
        };
        assert_eq!(words("1*-2"), ["1", "*", "-", "2"]);
        assert_eq!(words("a<->-b"), ["a", "<->", "-", "b"]);
        assert_eq!(words("a@-b"), ["a", "@-", "b"]);
        assert_eq!(words("a=--c\nb"), ["a", "=", "b"]);
        assert_eq!(words("a+/*c*/b"), ["a", "+", "b"]);
        assert_eq!(words("1..10"), ["1", "..", "10"]);
        assert_eq!(
            words("$1::int[:2]"),
            ["$1", "::", "int", "[", ":", "2", "]"]
        );
        assert_eq!(words("a$b$c"), ["a$b$c"]);
    }
}
