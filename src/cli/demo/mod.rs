//! The demo: real servers on this machine with the proxy in front.
//!
//! What starts, stops and finds servers is a library, because the tests use it too.

pub mod account;
pub mod install;
pub mod server;
pub mod signal;
