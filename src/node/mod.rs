//! Servers: one connection, pools, streams, appliers, control connections.

pub mod backend;
pub mod carried;
pub mod schema;
