//! Tests of `engine/horizon.rs`.
