//! Operators: status, health, metrics over HTTP.

pub mod door;
pub mod health;
pub mod limit;
pub mod metrics;
pub mod orders;
pub mod page;
pub mod status;
