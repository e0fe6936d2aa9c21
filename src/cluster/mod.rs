//! The steward: what the nodes are doing, and one lock-free view of it for everyone.

pub mod service;
