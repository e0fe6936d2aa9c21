//! Tests of `engine/council.rs`.
