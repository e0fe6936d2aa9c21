//! What tests of the whole program share: real servers, the proxy as a real process, and the
//! comparison of all copies.
//!
//! `SYNAPSEDB_TEST_PG_BIN` names the folder of programs of the `PostgreSQL` to test on; without it
//! a version 16 with pgvector is looked for (`SYNAPSEDB_PG_BIN`, PATH, /usr/lib/postgresql,
//! `.synapsedb/pg`, which `scripts/get-postgres` fills).

// Each test binary includes this whole and uses a part of it.
#![allow(dead_code)]

pub mod cluster;
pub mod compare;
pub mod http;
pub mod ports;
