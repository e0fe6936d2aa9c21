//! Commands of the program: serve, check, release, demo.

pub mod demo;
