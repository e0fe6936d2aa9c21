//! Tokens to statements, as the server's grammar and psql divide a text.
//!
//! Decides where a statement begins and ends and nothing more. A boundary found where the server
//! finds none would cut a DDL command in two, or hide a write behind a read.

use std::ops::Range;

use super::lexer::{Token, TokenKind, is_word};

/// One statement of a text: never empty, without its semicolon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its bytes, from the first token's to the last one's.
    pub bytes: Range<usize>,
    /// Its tokens.
    pub tokens: Range<usize>,
}

/// Cuts tokens at the semicolons that end a statement: not those inside parentheses (`CREATE RULE ...
/// DO (a; b)`) nor those in the body of `CREATE FUNCTION ... BEGIN ATOMIC ... END`.
pub fn split(text: &str, tokens: &[Token]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut first = 0;
    let mut depth = 0_usize;
    let mut atomic = false;
    for (index, token) in tokens.iter().enumerate() {
        let word = |at: usize, word: &str| at >= first && is_word(text, tokens, at, word);
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => depth = depth.saturating_sub(1),
            TokenKind::Word if depth == 0 && !atomic => {
                atomic = word(index, "atomic")
                    && index > first
                    && word(index - 1, "begin")
                    && makes_routine(text, &tokens[first..index]);
            }
            // Each statement of the body ends with a semicolon, and none of them begins with END.
            TokenKind::Word if depth == 0 && word(index, "end") => {
                let before = index - 1;
                let closes = tokens[before].kind == TokenKind::Semicolon || word(before, "atomic");
                atomic = !closes;
            }
            TokenKind::Semicolon if depth == 0 && !atomic => {
                push_piece(&mut pieces, tokens, first..index);
                first = index + 1;
            }
            _ => {}
        }
    }
    push_piece(&mut pieces, tokens, first..tokens.len());
    pieces
}

fn push_piece(pieces: &mut Vec<Piece>, tokens: &[Token], range: Range<usize>) {
    if let (Some(first), Some(last)) = (tokens.get(range.start), tokens[range.clone()].last()) {
        pieces.push(Piece {
            bytes: first.start..last.end,
            tokens: range,
        });
    }
}

fn makes_routine(text: &str, tokens: &[Token]) -> bool {
    let word = |at: usize, word: &str| is_word(text, tokens, at, word);
    let at = if word(1, "or") && word(2, "replace") {
        3
    } else {
        1
    };
    word(0, "create") && (word(at, "function") || word(at, "procedure"))
}

#[cfg(test)]
mod tests {
    use super::super::lexer::lex;
    use super::*;

    fn pieces(text: &str) -> Vec<&str> {
        let lexed = lex(text, true);
        assert_eq!(lexed.fault, None, "{text}");
        split(text, &lexed.tokens)
            .into_iter()
            .map(|piece| &text[piece.bytes])
            .collect()
    }

    #[test]
    fn semicolons_in_quotes_comments_parentheses_and_bodies_end_nothing() {
        assert_eq!(
            pieces("select ';'; select 2 ;;"),
            ["select ';'", "select 2"]
        );
        assert_eq!(pieces("select $a$;$$;$a$;x"), ["select $a$;$$;$a$", "x"]);
        assert_eq!(
            pieces("a /* ; /* ; */ ; */ b -- ;\n;c"),
            ["a /* ; /* ; */ ; */ b", "c"]
        );
        assert_eq!(
            pieces("create rule r as on insert to t do (a; b); c").len(),
            2
        );
        let function = "create function f() returns int begin atomic \
                        select case when true then 1 end; return 2; end; select 3";
        assert_eq!(pieces(function).len(), 2);
        assert_eq!(pieces("begin; select atomic; end").len(), 3);
        assert_eq!(pieces("create function f() begin atomic end; x").len(), 2);
        assert!(pieces(" ; -- nothing\n ;").is_empty());
    }

    #[test]
    fn literals_go_on_over_lines_in_their_own_mode() {
        assert_eq!(pieces("select E'a'\n'b\\';c'; x").len(), 2);
        assert_eq!(pieces("select 'a'\n'b\\';c").len(), 2);
        assert_eq!(pieces("select 'a' -- x\n ';'").len(), 1);
        assert_eq!(lex("select 'a\\'", true).fault, None);
        assert!(lex("select 'a\\'", false).fault.is_some());
    }
}
