//! What a node keeps of terms of office, durably: what it promised, when it was the writer, and its places in the terms
//! of other writers.
//!
//! `engine::recovery` decides from these. Each function is one question or one idempotent act over a connection of
//! [`Control`](super::control::Control). It decides nothing itself.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::control::ControlError;
use crate::ids::{Epoch, Lsn};

/// Terms in which a node was the writer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offices {
    /// Those that it did not leave in order, each with the end of its log at its begin.
    pub held: BTreeMap<Epoch, Lsn>,
    /// Those that it left in order, with the end of its last unit.
    pub left: BTreeMap<Epoch, Lsn>,
    /// All of them, with the end of its log at its begin.
    pub starts: BTreeMap<Epoch, Lsn>,
}

fn number(epoch: Epoch) -> i64 {
    i64::try_from(epoch.0).unwrap_or(i64::MAX)
}

fn lsn(text: Option<String>) -> Option<Lsn> {
    text.and_then(|text| text.parse().ok())
}

/// The newest epoch that the node has promised to or accepted; 0 where it knows none.
pub async fn promised(client: &Client) -> Result<Epoch, ControlError> {
    let sql = "select greatest(epoch, promised) from synapsedb.cluster_state";
    let row = client.query_opt(sql, &[]).await?;
    let known = row.map_or(0, |row| row.get::<_, i64>(0));
    Ok(Epoch(u64::try_from(known).unwrap_or_default()))
}

/// Has the node accept nothing older from now on; false where it has promised as much to somebody else.
pub async fn promise(client: &Client, epoch: Epoch) -> Result<bool, ControlError> {
    let sql = "update synapsedb.cluster_state set promised = $1 where promised < $1 and epoch < $1";
    Ok(client.execute(sql, &[&number(epoch)]).await? == 1)
}

/// The node's terms as writer.
pub async fn offices(client: &Client) -> Result<Offices, ControlError> {
    let sql = "select term, start_lsn::text, closed_lsn::text from synapsedb.offices";
    let mut offices = Offices::default();
    for row in client.query(sql, &[]).await? {
        let term = Epoch(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default());
        let start = lsn(row.get(1)).unwrap_or_default();
        offices.starts.insert(term, start);
        match lsn(row.get(2)) {
            Some(end) => offices.left.insert(term, end),
            None => offices.held.insert(term, start),
        };
    }
    Ok(offices)
}

/// Notes that the node is the writer from here on, unless it is noted already. Everything in its log before belongs to
/// the terms before.
pub async fn take(client: &Client, term: Epoch) -> Result<(), ControlError> {
    let sql =
        "insert into synapsedb.offices (term, start_lsn) values ($1, pg_current_wal_insert_lsn())
               on conflict (term) do nothing";
    client.execute(sql, &[&number(term)]).await?;
    Ok(())
}

/// Notes that the node has left office, and that its last unit in it ended at `end`.
pub async fn leave(client: &Client, term: Epoch, end: Lsn) -> Result<(), ControlError> {
    let sql = "update synapsedb.offices set closed_lsn = $2::text::pg_lsn where term = $1 and closed_lsn is null";
    client
        .execute(sql, &[&number(term), &end.to_string()])
        .await?;
    Ok(())
}

/// The end of the node's log.
pub async fn end_of_log(client: &Client) -> Result<Lsn, ControlError> {
    let row = client
        .query_one("select pg_current_wal_insert_lsn()::text", &[])
        .await?;
    lsn(row.get(0)).ok_or(ControlError::Answer("pg_current_wal_insert_lsn"))
}

/// Ends what an older run left at work on the node: its appliers, in every database, and the readers of its slots. Gives
/// how many were there still; to be asked again until there are none. `own` are this process's, and hold nothing.
pub async fn end_older(client: &Client, own: &[i32]) -> Result<i64, ControlError> {
    let sql = "select count(pg_terminate_backend(pid)) from (
                 select pid from pg_stat_activity where usename = 'synapsedb_applier' and pid <> all ($1) and pid <> pg_backend_pid()
                 union
                 select active_pid from pg_replication_slots
                  where slot_name like 'synapsedb\\_%' and active_pid is not null) older(pid)";
    Ok(client.query_one(sql, &[&own]).await?.get(0))
}
