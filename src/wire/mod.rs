//! Bytes to messages and back: frames, message builders, SCRAM, pgoutput.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
