//! Text to facts: lexer, statement classification, pieces of a query, splices.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
