//! Text to facts: lexer, statement classification, pieces of a query, splices.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod aside;
pub mod builtins;
pub mod catalog;
pub mod classify;
pub mod ddl;
pub mod expressions;
pub mod lexer;
pub mod names;
pub mod pieces;
pub mod prove;
pub mod rewrite;
pub mod settings;
pub mod split;
pub mod statement;
pub mod tree;
pub mod words;
