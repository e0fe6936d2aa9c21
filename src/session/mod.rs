//! Clients: listener, handshake, relay, routing.

pub mod brief;
pub mod cancel;
pub mod client;
pub mod handshake;
pub mod listener;
pub mod pipeline;
pub mod prepared;
pub mod probe;
pub mod pump;
pub mod scram;
pub mod shared;
pub mod startup;
pub mod state;
pub mod tls;
