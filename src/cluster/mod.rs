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
pub mod handover;
pub mod loads;
pub mod metadata;
pub mod office;
pub mod probes;
pub mod reads;
pub mod reigns;
pub mod relaxed;
pub mod replicator;
mod sequences;
pub mod service;
pub mod sight;
mod sleep;
mod slots;
pub mod steward;
mod streaming;
mod taking_office;
pub mod view;
