//! The mark in a database by which it takes no DDL while its stream sleeps (`schema/sleep.sql`).
//!
//! Over a control connection to that database on the writer. Guards promise 1 together with the schema: when
//! [`lie_down`] has given a place, nothing that a stream would carry is committed behind it until [`clear`].

use tokio_postgres::Client;

use super::control::ControlError;
use crate::ids::Lsn;

/// Nothing in it has rows or values that could change without DDL. What comes with the server is never carried.
const EMPTY: &str = "select not exists (select from pg_class c where c.oid >= 16384 and c.relpersistence <> 't' \
    and c.relkind in ('r', 'p', 'S', 'm', 'f') and c.relnamespace <> 'synapsedb'::regnamespace)";

/// The lock conflicts with that of everyone who has passed the mark and may still commit, prepared transactions
/// among them. The commit makes the mark durable, and with it all that lies before.
const BEGIN: &str = "begin isolation level read committed; select setval('synapsedb.asleep', 1); \
    lock table synapsedb.ddl_log in share mode nowait";

/// Whether a database could sleep for all that it holds. Asked without a lock: worth a try, no more.
pub async fn is_empty(client: &Client) -> Result<bool, ControlError> {
    Ok(client.query_one(EMPTY, &[]).await?.get(0))
}

/// Sets the mark and looks whether that came in time: the place of the writer's log behind which no commit has
/// content, or none where somebody is at work or the database is not empty. The mark stays in either case. After
/// an error it may be set.
pub async fn lie_down(client: &Client) -> Result<Option<Lsn>, ControlError> {
    if let Err(error) = client.batch_execute(BEGIN).await {
        client.batch_execute("rollback").await?;
        let error = ControlError::from(error);
        return match error.sqlstate() {
            Some("55P03") => Ok(None),
            _ => Err(error),
        };
    }
    // A statement of its own, whose snapshot is younger than the lock.
    let empty = is_empty(client).await?;
    let place = client
        .query_one("select pg_current_wal_insert_lsn()::text", &[])
        .await?;
    client.batch_execute("commit").await?;
    let place: String = place.get(0);
    let place = place.parse();
    let place = place.map_err(|_| ControlError::Answer("pg_current_wal_insert_lsn"))?;
    Ok(empty.then_some(place))
}

/// Takes the mark back, durably: from now on the database takes DDL.
pub async fn clear(client: &Client) -> Result<(), ControlError> {
    client
        .execute(
            "select setval('synapsedb.asleep', 0) from synapsedb.asleep where last_value <> 0",
            &[],
        )
        .await?;
    Ok(())
}

/// Whether the reader of a slot has caught up with the writer's log.
pub async fn is_level(client: &Client, slot: &str) -> Result<bool, ControlError> {
    let row = client
        .query_one(
            "select exists (select from pg_replication_slots s join pg_stat_replication r on r.pid = s.active_pid
                             where s.slot_name = $1 and r.state = 'streaming')",
            &[&slot],
        )
        .await?;
    Ok(row.get(0))
}
