//! Servers: one connection, pools, streams, appliers, control connections.
