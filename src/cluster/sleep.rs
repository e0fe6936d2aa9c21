//! Streams of empty and idle databases sleep, since each one that is read costs every commit on the writer a tenth.
//!
//! Guards promise 1: no commit with content is made in a database whose stream sleeps. The database itself sees to
//! that by a mark (`node/asleep.rs`, `node/schema/sleep.sql`): it is set before the stream is left out of what is
//! confirmed, and taken back after the stream is in again. A mark that was left behind, by a proxy that was killed
//! or by an error midway, keeps DDL waiting and nothing else, until the next round takes it back. When to try is
//! `engine/rest.rs`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::guests::Guest;
use super::steward::Steward;
use crate::engine::confirm::StreamId;
use crate::engine::rest::{Act, Rest, Use};
use crate::ids::slot_name;
use crate::node::asleep;
use crate::node::control::ControlError;

/// Between two looks at the writer, while a database sleeps and while none does.
const LOOK: Duration = Duration::from_millis(500);
const LOOK_AWAKE: Duration = Duration::from_secs(2);
/// For everybody to have what was written before a database goes to sleep.
const LEVEL: Duration = Duration::from_secs(2);
/// For a stream to be open, or to be close behind. Who waits to be served gives up later than that.
const OPEN: Duration = Duration::from_secs(10);
/// Between two looks whether it is.
const SOON: Duration = Duration::from_millis(10);

/// Who is in each database, and how much of the log its slot holds. Whom the proxy takes for itself by his name
/// is not let down: he waits with his DDL, and in the end is told why.
const SEEN: &str = "select d.datname::text,
    exists (select from pg_stat_activity a where a.datid = d.oid
              and a.backend_type not in ('autovacuum worker', 'parallel worker')
              and not (a.usename = current_user and a.application_name in
                       ('synapsedb', 'synapsedb slot', 'synapsedb control', 'synapsedb admin')))
    or exists (select from pg_prepared_xacts p where p.database = d.datname),
    coalesce((select max(pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn)) from pg_replication_slots s
               where s.database = d.datname and s.slot_name = any ($1)), 0)::int8
  from pg_database d";

/// What became of a try to put a stream to sleep.
enum Tried {
    Asleep,
    /// The database is not empty, or somebody is at work, or something is on its way still.
    NotNow,
}

type Seen = BTreeMap<String, (Use, u64)>;

impl Steward {
    /// A client has come to a database, which is woken if it sleeps.
    pub(super) fn enter(&self, database: &str) -> Guest {
        let guest = self.guests.enter(database);
        if self.replicator.sleeps(database) {
            self.guests.call();
        }
        guest
    }

    /// Goes round until the proxy stops.
    pub(super) async fn mind_sleep(&self) {
        let began = Instant::now();
        let mut known: BTreeMap<StreamId, (String, Rest)> = BTreeMap::new();
        let mut client = None;
        loop {
            let round = self.round(began, &mut known, &mut client);
            if self.cancel.run_until_cancelled(round).await.is_none() {
                return;
            }
            let quiet = known.values().all(|(_, rest)| rest.is_awake());
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = self.guests.called() => {}
                () = tokio::time::sleep(if quiet { LOOK_AWAKE } else { LOOK }) => {}
            }
        }
    }

    async fn round(
        &self,
        began: Instant,
        known: &mut BTreeMap<StreamId, (String, Rest)>,
        client: &mut Option<Client>,
    ) {
        let streams: BTreeMap<StreamId, String> = self.replicator.streams().into_iter().collect();
        known.retain(|id, _| streams.contains_key(id));
        for (id, database) in streams {
            known.entry(id).or_insert((database, Rest::default()));
        }
        if known.len() < 2 && known.values().all(|(_, rest)| rest.is_awake()) {
            return;
        }
        let seen = self.look_who_is_there(known, client).await;
        let seen = seen.unwrap_or_else(|error| {
            tracing::debug!(%error, "the writer does not say who is in its databases");
            *client = None;
            Seen::new()
        });
        let mut awake = known.values().filter(|(_, rest)| !rest.is_asleep()).count();
        let mut tired = Vec::new();
        for (id, (database, rest)) in known.iter_mut() {
            let (mut used, behind) = seen.get(database).copied().unwrap_or((Use::Unknown, 0));
            if self.guests.any(database) {
                used = Use::Busy;
            }
            match rest.look(began.elapsed(), used, behind, awake < 2) {
                Some(Act::Wake) => self.wake_up(*id, database, rest, began).await,
                Some(Act::Sleep) => {
                    awake -= 1;
                    tired.push(*id);
                }
                None => {}
            }
        }
        // Whoever is to be woken does not wait for them.
        for id in tired {
            if let Some((database, rest)) = known.get_mut(&id) {
                self.lay_down(id, database, rest, began).await;
            }
        }
    }

    async fn look_who_is_there(
        &self,
        known: &BTreeMap<StreamId, (String, Rest)>,
        client: &mut Option<Client>,
    ) -> Result<Seen, ControlError> {
        let client = self.on_writer(client).await?;
        let slots: Vec<String> = known.values().map(|(name, _)| slot_name(name)).collect();
        let rows = client.query(SEEN, &[&slots]).await?;
        let seen = rows.iter().map(|row| {
            let used = if row.get(1) { Use::Busy } else { Use::Free };
            let behind = u64::try_from(row.get::<_, i64>(2)).unwrap_or_default();
            (row.get(0), (used, behind))
        });
        Ok(seen.collect())
    }

    async fn wake_up(&self, id: StreamId, database: &str, rest: &mut Rest, began: Instant) {
        match self.wake(id, database).await {
            Ok(()) => {
                tracing::debug!(database, "the database's stream is awake");
                rest.woken(began.elapsed());
            }
            Err(error) => {
                tracing::debug!(database, %error, "the database's stream can't be woken yet");
                rest.unsure();
            }
        }
    }

    async fn lay_down(&self, id: StreamId, database: &str, rest: &mut Rest, began: Instant) {
        match self.put_to_sleep(id, database).await {
            Ok(Tried::Asleep) => {
                tracing::debug!(database, "empty and idle: the database's stream sleeps");
                rest.fell_asleep(began.elapsed());
            }
            Ok(Tried::NotNow) => {
                tracing::debug!(database, "in use: the database's stream stays awake");
                rest.stayed_awake(began.elapsed());
            }
            Err(error) => {
                tracing::debug!(database, %error, "the database's stream can't be put to sleep");
                rest.unsure();
            }
        }
    }

    /// Dropped anywhere, the stream counts or the mark is set.
    async fn put_to_sleep(&self, id: StreamId, database: &str) -> Result<Tried, ControlError> {
        let client = self.control.connect(self.writer(), database).await?;
        if !asleep::is_empty(&client).await? {
            return Ok(Tried::NotNow);
        }
        if let Some(place) = asleep::lie_down(&client).await? {
            // What was committed before must be with everyone: nobody asks for it afterwards.
            let level = self.replicator.wait_everywhere(place);
            let level = tokio::time::timeout(LEVEL, level).await.is_ok();
            if level && self.replicator.exclude(id, place) {
                drop(client);
                // If no other one comes to speak soon, it goes on reading, which harms nobody.
                let closing = self.replicator.close(id);
                let _ = tokio::time::timeout(OPEN, closing).await;
                return Ok(Tried::Asleep);
            }
        }
        asleep::clear(&client).await?;
        Ok(Tried::NotNow)
    }

    /// Dropped anywhere, the stream counts or the mark is set.
    async fn wake(&self, id: StreamId, database: &str) -> Result<(), ControlError> {
        let asleep = self.replicator.sleeps(database);
        self.replicator.read_again(id);
        // Another proxy, which knows nothing of this, may have left the mark and may still confirm.
        let open = tokio::time::timeout(OPEN, self.replicator.wait_open()).await;
        open.map_err(|_| ControlError::Timeout)?;
        if asleep {
            // Commits elsewhere would wait for it to catch up.
            let slot = slot_name(database);
            let level = self.wait_level(database, &slot);
            if let Ok(Err(error)) = tokio::time::timeout(OPEN, level).await {
                return Err(error);
            }
        }
        self.replicator.include(id);
        // Not before: one that is being dropped must have no connection.
        let client = self.control.connect(self.writer(), database).await?;
        asleep::clear(&client).await
    }

    /// Ends also when the database is gone.
    async fn wait_level(&self, database: &str, slot: &str) -> Result<(), ControlError> {
        let admin = &self.control.database;
        let client = self.control.connect(self.writer(), admin).await?;
        while self.replicator.sleeps(database) && !asleep::is_level(&client, slot).await? {
            tokio::time::sleep(SOON).await;
        }
        Ok(())
    }
}
