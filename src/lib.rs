//! `SynapseDB`: one front door for plain `PostgreSQL` servers.
//!
//! The crate is a tower of floors; each module uses only floors below it (see ARCHITECTURE.md).
//! The binary in `main.rs` is a thin shell over [`cli`]; everything else is a library so that
//! tests and benches reach it.

pub mod cli;
pub mod cluster;
pub mod config;
pub mod engine;
pub mod error;
pub mod http;
pub mod ids;
pub mod node;
pub mod session;
pub mod sql;
pub mod wire;
