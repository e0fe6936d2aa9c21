//! Tests on real servers, a file per behaviour that a user sees. Each ends by comparing all copies.

#[path = "../support/mod.rs"]
mod support;

mod bad_nodes;
mod check;
mod commands;
mod comparison;
mod demo;
mod metadata;
mod operators;
mod release;
mod servers;
mod smoke;
