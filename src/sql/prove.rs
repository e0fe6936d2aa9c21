//! Proves that a text is a plain query, by two independent readings of it.
//!
//! The first is of the tokens: by the server's grammar a statement that begins like a query and holds
//! none of the words INSERT, UPDATE, DELETE, MERGE, INTO, and no FOR that locks, cannot be anything
//! else. The second is sqlparser's tree, built from this floor's own tokens (its tokenizer reads some
//! texts otherwise than the server does), walked whole; anything the walk does not know ends it.
//! What the names in the query stand for is left to the catalog.

use sqlparser::ast::DollarQuotedString;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token as ParserToken, Tokenizer};

use super::lexer::{TokenKind, name_of};
use super::names::RelationName;
use super::rewrite::FromReader;
use super::statement::Reason;
use super::tree::Walk;
use super::words::Words;

/// Deeper nesting is not looked at, so that a parse ends soon and on any stack.
const DEPTH_MAX: usize = 24;
/// Likewise, more tokens.
const TOKENS_MAX: usize = 20_000;

/// What a proven query reads.
#[derive(Debug, Default)]
pub struct Proven {
    /// The relations it names, WITH queries among them.
    pub relations: Vec<RelationName>,
    /// The names of its WITH queries.
    pub with_queries: Vec<String>,
}

/// Proves that a statement is a query and nothing else.
pub fn query(words: Words<'_>) -> Result<Proven, Reason> {
    only_reads(words)?;
    let tokens = parser_tokens(words)?;
    let mut parser = Parser::new(&PostgreSqlDialect {})
        .with_recursion_limit(2 * DEPTH_MAX + 30)
        .with_tokens(tokens);
    let not_understood = |error: sqlparser::parser::ParserError| {
        let text: String = error.to_string().chars().take(120).collect();
        Reason::NotUnderstood(text)
    };
    let query = parser.parse_query().map_err(not_understood)?;
    if parser.peek_token().token != ParserToken::EOF {
        return Err(Reason::NotUnderstood("words behind the query".to_owned()));
    }
    let mut walk = Walk::default();
    walk.query(&query)?;
    let mut proven = walk.proven;
    proven.relations.sort_unstable();
    proven.relations.dedup();
    same_relations(words, &proven)?;
    Ok(proven)
}

/// The first reading.
fn only_reads(words: Words<'_>) -> Result<(), Reason> {
    let mut depth = 0_usize;
    if words.len() > TOKENS_MAX {
        return Err(Reason::TooLong);
    }
    for at in 0..words.len() {
        match words.kind(at) {
            Some(TokenKind::Open) => depth += 1,
            Some(TokenKind::Close) => depth = depth.saturating_sub(1),
            Some(TokenKind::UnicodeName) => {
                return Err(Reason::NotUnderstood(
                    "a name with Unicode escapes".to_owned(),
                ));
            }
            Some(TokenKind::Word) => word(words, at)?,
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(Reason::TooLong);
        }
    }
    Ok(())
}

fn word(words: Words<'_>, at: usize) -> Result<(), Reason> {
    if words.is_any(at, &["insert", "update", "delete", "merge"])
        && !words.is(at.wrapping_sub(1), "for")
    {
        return Err(Reason::Writes);
    }
    if words.is(at, "into") {
        return Err(Reason::MakesTable);
    }
    if words.is(at, "for") && words.is_any(at + 1, &["update", "no", "share", "key"]) {
        return Err(Reason::Locks);
    }
    if words.is_any(at, &["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"]) {
        // These differ from node to node, and come back in WHERE clauses.
        return Err(Reason::SystemCatalog);
    }
    Ok(())
}

/// Every place where the tokens show a relation's name must be one in the tree.
fn same_relations(words: Words<'_>, proven: &Proven) -> Result<(), Reason> {
    const NO_NAMES: [&str; 7] = [
        "select", "values", "table", "with", "only", "lateral", "rows",
    ];
    let mut reader = FromReader::default();
    for (at, token) in words.tokens.iter().enumerate() {
        let skip = words.kind(at + 1) == Some(TokenKind::Open) || words.is_any(at, &NO_NAMES);
        if !reader.is_relation(words, at) || skip {
            continue;
        }
        let name = name_of(words.text, *token).unwrap_or_default();
        let qualifies = words.kind(at + 1) == Some(TokenKind::Dot);
        let function = qualifies && words.kind(at + 3) == Some(TokenKind::Open);
        let known = proven.relations.iter().any(|one| {
            if qualifies {
                one.schema.as_deref() == Some(&name)
            } else {
                one.name == name
            }
        });
        if !known && !function {
            return Err(Reason::NotUnderstood(format!(
                "relation {name} is not in the tree"
            )));
        }
    }
    Ok(())
}

/// Our tokens as the parser's. What literals hold is of no use to it.
fn parser_tokens(words: Words<'_>) -> Result<Vec<ParserToken>, Reason> {
    (0..words.len())
        .map(|at| {
            let raw = words.raw(at);
            let none = String::new;
            Ok(match words.tokens[at].kind {
                TokenKind::Word => ParserToken::make_word(raw, None),
                TokenKind::QuotedName => {
                    ParserToken::make_word(&words.name(at).unwrap_or_default(), Some('"'))
                }
                TokenKind::UnicodeName => {
                    return Err(Reason::NotUnderstood(
                        "a name with Unicode escapes".to_owned(),
                    ));
                }
                TokenKind::PlainText => ParserToken::SingleQuotedString(none()),
                TokenKind::EscapeText => ParserToken::EscapedStringLiteral(none()),
                TokenKind::UnicodeText => ParserToken::UnicodeStringLiteral(none()),
                TokenKind::BitText => ParserToken::HexStringLiteral(none()),
                TokenKind::DollarText => ParserToken::DollarQuotedString(DollarQuotedString {
                    value: none(),
                    tag: None,
                }),
                TokenKind::Parameter => ParserToken::Placeholder(raw.to_owned()),
                TokenKind::Number => ParserToken::Number(raw.to_owned(), false),
                TokenKind::Operator => operator(raw),
                TokenKind::Open => ParserToken::LParen,
                TokenKind::Close => ParserToken::RParen,
                TokenKind::OpenBracket => ParserToken::LBracket,
                TokenKind::CloseBracket => ParserToken::RBracket,
                TokenKind::Comma => ParserToken::Comma,
                TokenKind::Semicolon => ParserToken::SemiColon,
                TokenKind::Dot => ParserToken::Period,
                TokenKind::Colon => ParserToken::Colon,
            })
        })
        .collect()
}

fn operator(raw: &str) -> ParserToken {
    match raw {
        "=" => return ParserToken::Eq,
        "<>" | "!=" => return ParserToken::Neq,
        "<" => return ParserToken::Lt,
        ">" => return ParserToken::Gt,
        "*" => return ParserToken::Mul,
        "+" => return ParserToken::Plus,
        "-" => return ParserToken::Minus,
        "::" => return ParserToken::DoubleColon,
        _ => {}
    }
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, raw).tokenize();
    match tokens.as_deref() {
        Ok([one]) => one.clone(),
        _ => ParserToken::CustomBinaryOperator(raw.to_owned()),
    }
}
