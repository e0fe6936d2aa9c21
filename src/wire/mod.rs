//! Bytes to messages and back: frames, message builders, SCRAM, pgoutput.
//!
//! Nothing here waits, reads a clock or draws a random number, and no input makes it panic:
//! whatever a client or a node sends becomes a value or a [`error::WireError`].
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod error;
pub mod frame;
pub mod message;
pub mod pgoutput;
mod read;
pub mod scram;
pub mod startup;
