//! The relay on a real server: what drivers, tools and the field's traps send through pooled connections.

#![allow(dead_code)]

#[path = "../support/mod.rs"]
mod support;

mod basics;
mod bulk;
mod certainty;
mod house;
mod protocol;
mod raw;
mod settings;
mod shapes;
mod tools;
mod unseen;
