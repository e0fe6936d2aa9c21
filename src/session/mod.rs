//! Clients: listener, handshake, relay, routing.
