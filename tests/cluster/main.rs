//! Tests on real servers, a file per behaviour that a user sees. Each ends by comparing all copies.

#[path = "../support/mod.rs"]
mod support;

mod acknowledged;
mod ahead;
mod applying;
mod bad_nodes;
mod builds;
mod catalogs;
mod changes;
mod check;
mod checks;
mod commands;
mod comparison;
mod confirming;
mod demo;
mod failover;
mod fates;
mod faults;
mod held_applier;
mod history;
mod hostile;
mod ledger;
mod metadata;
mod names;
mod operators;
mod random;
mod random_ddl;
#[allow(dead_code)]
#[path = "../relay/raw.rs"]
mod raw;
mod reads;
mod release;
mod rights;
mod rolled_back;
mod servers;
mod sleep;
mod smoke;
mod tools;
mod types;
mod unreplicated;
mod unwell;
mod views;
mod workload;
mod writers;
