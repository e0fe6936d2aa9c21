//! A follower's applier: the writer's units, repeated in order, exactly once.

pub mod ahead;
pub mod applier;
pub mod aside;
pub mod ddl;
pub mod early;
pub mod error;
pub mod facts;
pub mod pipeline;
pub mod roles;
pub mod session;
pub mod sql;
pub mod start;
pub mod text;
pub mod views;
