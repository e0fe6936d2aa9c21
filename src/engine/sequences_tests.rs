//! Tests of `engine/sequences.rs`.
