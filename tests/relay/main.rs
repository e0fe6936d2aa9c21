//! The relay on a real server: what drivers, tools and the field's traps send through pooled connections.

#![allow(dead_code)]

#[path = "../support/mod.rs"]
mod support;

mod aborted;
mod basics;
mod batches;
mod bulk;
mod certainty;
mod deferred;
mod house;
mod offices;
mod protocol;
mod raw;
mod settings;
mod shapes;
mod tap;
mod tools;
mod unseen;
