//! The client's door on a real server: what a hostile, odd or unlucky client meets on its way in,
//! with a small relay of the tests' own behind it.

#[path = "../support/mod.rs"]
mod support;

mod cancels;
mod house;
mod logins;
mod pools;
mod raw;
mod tls;
mod traps;
