//! Decisions: units, majority, what to confirm, who writes, what may be read. Inputs and outputs only.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod balance;
pub mod care;
#[cfg(test)]
mod chance;
pub mod confirm;
pub mod council;
pub mod fence;
pub mod horizon;
pub mod recovery;
pub mod rest;
pub mod sequences;
pub mod sight;
pub mod slots;
