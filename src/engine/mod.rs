//! Decisions: units, majority, what to confirm. Inputs and outputs only.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod balance;
pub mod care;
pub mod confirm;
pub mod fence;
pub mod rest;
pub mod sight;
