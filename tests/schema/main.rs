//! What the proxy installs on a node, on real servers without the proxy: what `ddl_log` records of each DDL
//! command, that it cannot be forged, and that a second node becomes the same by it.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod forging;
mod house;
mod nested;
mod record;
mod replay;
mod travel;
