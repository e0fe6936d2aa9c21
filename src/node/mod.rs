//! Servers: one connection, pools, streams, appliers, control connections.

pub mod admin;
pub mod apply;
pub mod asleep;
pub mod assemble;
pub mod backend;
pub mod canary;
pub mod carried;
pub mod control;
pub mod cut;
pub mod identity;
pub mod keys;
pub mod office;
pub mod outcomes;
pub mod places;
pub mod pool;
pub mod pooled;
pub mod queue;
pub mod schema;
pub mod sequences;
pub mod settings;
pub mod spares;
pub mod spill;
pub mod stream;
pub mod token;
pub mod unit;
pub mod verifiers;
