//! Servers: one connection, pools, streams, appliers, control connections.

pub mod admin;
pub mod backend;
pub mod carried;
pub mod keys;
pub mod pool;
pub mod pooled;
pub mod schema;
pub mod settings;
pub mod verifiers;
