//! The steward: what the nodes are doing, and one lock-free view of it for everyone.

pub mod alike;
pub mod asked;
mod audit;
pub mod bring_up;
mod builds;
pub mod catalogs;
pub mod elsewhere;
pub mod follower;
pub mod guests;
pub mod loads;
pub mod metadata;
pub mod office;
pub mod reads;
pub mod relaxed;
pub mod replicator;
pub mod service;
pub mod sight;
mod sleep;
pub mod steward;
mod streaming;
pub mod view;
