//! Clients: listener, handshake, relay, routing.

pub mod answers;
pub mod brief;
pub mod cancel;
pub mod client;
pub mod counts;
pub mod global_ddl;
pub mod handshake;
pub mod inside;
pub mod leave;
pub mod likeness;
pub mod listener;
pub mod metadata;
pub mod naming;
pub mod pipeline;
pub mod prepared;
pub mod probe;
pub mod pump;
pub mod relay;
pub mod requests;
pub mod scram;
pub mod shapes;
pub mod shared;
pub mod startup;
pub mod state;
pub mod tls;
pub mod unseen;
