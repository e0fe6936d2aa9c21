//! Tests of `engine/recovery.rs`.
