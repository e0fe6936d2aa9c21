//! Clients: listener, handshake, relay, routing.

pub mod cancel;
pub mod client;
pub mod handshake;
pub mod listener;
pub mod scram;
pub mod shared;
pub mod startup;
pub mod tls;
