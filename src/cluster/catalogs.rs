//! What each database's names stand for, as the writer knows them: loaded at start, and again after DDL.
//!
//! From the moment that a DDL transaction has been decoded until a snapshot has been loaded that shows it, the
//! database is in doubt: nothing named there is taken for harmless. A commit that waits for its majority is
//! decoded before anybody sees it, so whoever has its answer is never judged by the names as they were before.
//! What was judged just before and ran just after is caught by its session, which has its connection looked
//! at when the generation has changed meanwhile. Only a commit that waits for nobody (`synchronous_commit` off
//! or local) is visible for the moment until it is decoded. Readers take a snapshot without waiting; one task
//! loads, one database after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::ids::NodeId;
use crate::node::control::{self, Control, ControlError};
use crate::sql::catalog::{Catalog, CatalogRow, LOAD_QUERY};

/// After a load failed, until it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks whether a commit is visible: at first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Transactions whose DDL a snapshot has to show, by database.
type Stale = BTreeMap<String, BTreeSet<u32>>;

/// All databases' snapshots.
#[derive(Default)]
pub struct Catalogs {
    snapshots: ArcSwap<BTreeMap<String, Arc<Catalog>>>,
    /// Grows with each new snapshot of any database.
    generation: AtomicU64,
    /// Held while a snapshot is replaced.
    stale: Mutex<Stale>,
    more: Notify,
}

/// A database that has to be loaded.
struct Waiting {
    xids: BTreeSet<u32>,
    due: Instant,
    pause: Duration,
    client: Option<Client>,
}

/// What came of a try to load.
enum Tried {
    Loaded,
    /// A commit is not visible yet.
    NotYet,
}

impl Catalogs {
    /// Differs after any snapshot has been replaced: until then a snapshot once taken is the newest.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The newest snapshot of a database; one that knows nothing until the first has been loaded.
    pub fn get(&self, database: &str) -> Arc<Catalog> {
        let snapshots = self.snapshots.load();
        let known = snapshots.get(database).map(Arc::clone);
        known.unwrap_or_else(|| Arc::new(Catalog::unknown()))
    }

    /// A database is new, or has seen DDL in the transaction `xid`, which need not be visible yet.
    pub fn mark_stale(&self, database: &str, xid: Option<u32>) {
        let mut stale = self.stale();
        stale.entry(database.to_owned()).or_default().extend(xid);
        self.replace(&stale, database, Catalog::doubted);
        drop(stale);
        self.more.notify_one();
    }

    /// A database is gone.
    pub fn forget(&self, database: &str) {
        self.stale().remove(database);
        self.snapshots.rcu(|known| {
            let mut known = BTreeMap::clone(known);
            known.remove(database);
            known
        });
        self.more.notify_one();
    }

    /// A database has a stream from now on: its names are loaded, unless they are known.
    pub fn expect(&self, database: &str) {
        if self.get(database).is_blind() {
            self.mark_stale(database, None);
        }
    }

    /// Another writer that has everything the one before had: the same names stand for the same there. What is in
    /// doubt is loaded from it; transactions have other numbers.
    pub fn hand_on(&self) {
        let mut stale = self.stale();
        stale.clear();
        let snapshots = self.snapshots.load();
        let doubted = snapshots.iter().filter(|(_, known)| known.is_blind());
        stale.extend(doubted.map(|(database, _)| (database.clone(), BTreeSet::new())));
        drop(stale);
        self.more.notify_one();
    }

    /// Another writer: what was known of the one before, its transactions' numbers too, says nothing of this one.
    pub fn forget_all(&self) {
        self.stale().clear();
        self.snapshots.store(Arc::default());
        self.more.notify_one();
    }

    fn stale(&self) -> MutexGuard<'_, Stale> {
        self.stale.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a snapshot in place under a generation of its own; whoever does it holds the lock.
    fn replace(
        &self,
        _: &MutexGuard<'_, Stale>,
        database: &str,
        make: impl FnOnce(u64) -> Catalog,
    ) {
        let generation = self.generation.load(Ordering::Acquire) + 1;
        let catalog = Arc::new(make(generation));
        self.snapshots.rcu(|known| {
            let mut known = BTreeMap::clone(known);
            known.insert(database.to_owned(), Arc::clone(&catalog));
            known
        });
        self.generation.store(generation, Ordering::Release);
    }

    /// Puts a loaded snapshot in place, unless more DDL has come or the database has gone meanwhile.
    fn publish(&self, database: &str, make: impl FnOnce(u64) -> Catalog) {
        let stale = self.stale();
        if !stale.contains_key(database) && self.snapshots.load().contains_key(database) {
            self.replace(&stale, database, make);
        }
    }

    /// Loads what is stale, until dropped.
    pub async fn tend(&self, control: &Control, writer: NodeId) {
        let mut waiting: BTreeMap<String, Waiting> = BTreeMap::new();
        loop {
            self.gather(&mut waiting);
            let mut loaded = Vec::new();
            for (database, one) in &mut waiting {
                if one.due <= Instant::now()
                    && self.try_to_load(control, writer, database, one).await
                {
                    loaded.push(database.clone());
                }
            }
            waiting.retain(|database, _| !loaded.contains(database));
            let next = waiting.values().map(|one| one.due).min();
            let due = async {
                match next {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.more.notified() => {}
                () = due => {}
            }
        }
    }

    /// Takes over what became stale, and lets go of databases that are gone.
    fn gather(&self, waiting: &mut BTreeMap<String, Waiting>) {
        for (database, xids) in std::mem::take(&mut *self.stale()) {
            let one = waiting.entry(database).or_insert_with(|| Waiting {
                xids: BTreeSet::new(),
                due: Instant::now(),
                pause: LOOK.0,
                client: None,
            });
            one.xids.extend(xids);
            one.due = Instant::now();
            one.pause = LOOK.0;
        }
        let snapshots = self.snapshots.load();
        waiting.retain(|database, _| snapshots.contains_key(database));
    }

    /// True if it is done; else it is due again after a while.
    async fn try_to_load(
        &self,
        control: &Control,
        writer: NodeId,
        database: &str,
        one: &mut Waiting,
    ) -> bool {
        let pause = match self.load(control, writer, database, one).await {
            Ok(Tried::Loaded) => return true,
            Ok(Tried::NotYet) => one.pause,
            Err(error) => {
                tracing::debug!(database, %error, "the catalog could not be read yet");
                RETRY
            }
        };
        one.due = Instant::now() + pause;
        one.pause = (pause * 2).min(LOOK.1);
        false
    }

    async fn load(
        &self,
        control: &Control,
        writer: NodeId,
        database: &str,
        one: &mut Waiting,
    ) -> Result<Tried, ControlError> {
        let client = match one.client.take() {
            Some(client) => client,
            None => control.connect(writer, database).await?,
        };
        let snapshot = control::snapshot(&client).await?;
        for xid in &one.xids {
            let shown = shows(&snapshot, *xid);
            if !shown.ok_or(ControlError::Answer("pg_current_snapshot"))? {
                one.client = Some(client);
                return Ok(Tried::NotYet);
            }
        }
        // What one snapshot shows, each later one does.
        let rows = client.query(LOAD_QUERY, &[]).await?;
        let rows = rows.iter().map(|row| CatalogRow {
            kind: row.get("kind"),
            schema: row.get("schema"),
            name: row.get("name"),
            hides: row.get("hides"),
            read_hides: row.get("read_hides"),
            unreadable: row.get("unreadable"),
            draws: row.get("draws"),
            own: row.get("own"),
            elsewhere: row.get("elsewhere"),
            anything: row.get("anything"),
            tables: row.get("tables"),
        });
        self.publish(database, |generation| Catalog::from_rows(generation, rows));
        metrics::counter!("synapsedb_catalog_loads_total").increment(1);
        Ok(Tried::Loaded)
    }
}

/// Whether a snapshot, as the server writes it (`xmin:xmax:those between that run`), shows the transaction with
/// the lower half `xid`, which is known to have ended or to be ending. `None` where it can't be read.
pub(super) fn shows(snapshot: &str, xid: u32) -> Option<bool> {
    let mut parts = snapshot.split(':');
    let mut number = || parts.next()?.parse::<u64>().ok();
    let (oldest, next) = (number()?, number()?);
    // At most half of the numbers of 32 bits are in use at once, so the nearest is the one.
    let distance = xid.wrapping_sub(lower_half(next)).cast_signed();
    let full = next.checked_add_signed(i64::from(distance))?;
    let mut running = parts.next()?.split(',');
    let full_text = full.to_string();
    Some(full < oldest || full < next && !running.any(|one| one == full_text))
}

fn lower_half(xid: u64) -> u32 {
    // Cutting it off is the purpose.
    (xid & u64::from(u32::MAX)).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_shows_what_has_ended() {
        for (snapshot, xid, shown) in [
            ("10:20:10,14", 9, Some(true)),
            ("10:20:10,14", 10, Some(false)),
            ("10:20:10,14", 11, Some(true)),
            ("10:20:10,14", 14, Some(false)),
            ("10:20:10,14", 20, Some(false)),
            ("20:20:", 19, Some(true)),
            ("20:20:", 25, Some(false)),
            // The second round of numbers has begun.
            (
                "4294967290:4294967300:4294967299",
                4_294_967_295,
                Some(true),
            ),
            ("4294967290:4294967300:4294967299", 3, Some(false)),
            ("4294967290:4294967300:4294967299", 2, Some(true)),
            ("4294967290:4294967300:4294967299", 9, Some(false)),
            ("nonsense", 1, None),
            ("10:20", 1, None),
        ] {
            assert_eq!(shows(snapshot, xid), shown, "{snapshot} {xid}");
        }
    }

    #[test]
    fn a_database_is_in_doubt_until_a_snapshot_shows_all() {
        let catalogs = Catalogs::default();
        let loaded = |generation| Catalog::from_rows(generation, []);
        let mut waiting = BTreeMap::new();
        catalogs.mark_stale("a", Some(7));
        let first = catalogs.generation();
        assert!(catalogs.get("a").is_blind());
        // DDL that comes while it is loaded: the load may not have seen it.
        catalogs.gather(&mut waiting);
        catalogs.mark_stale("a", Some(8));
        assert!(catalogs.generation() > first);
        catalogs.publish("a", loaded);
        assert!(catalogs.get("a").is_blind());
        catalogs.gather(&mut waiting);
        assert_eq!(waiting["a"].xids, BTreeSet::from([7, 8]));
        catalogs.publish("a", loaded);
        assert!(!catalogs.get("a").is_blind());
        assert_eq!(catalogs.get("a").generation(), catalogs.generation());
        // A database that is gone does not come back with what was loaded of it.
        catalogs.mark_stale("a", None);
        catalogs.forget("a");
        catalogs.publish("a", loaded);
        catalogs.gather(&mut waiting);
        assert!(waiting.is_empty() && catalogs.get("a").is_blind());
    }

    #[test]
    fn names_outlive_a_planned_change_of_writer_unless_they_are_in_doubt() {
        let catalogs = Catalogs::default();
        let loaded = |generation| Catalog::from_rows(generation, []);
        let mut waiting = BTreeMap::new();
        catalogs.expect("a");
        catalogs.gather(&mut waiting);
        catalogs.publish("a", loaded);
        catalogs.mark_stale("b", Some(7));
        let known = catalogs.get("a").generation();
        catalogs.hand_on();
        // The next steward's streams begin, and its loader.
        catalogs.expect("a");
        catalogs.expect("b");
        waiting.clear();
        catalogs.gather(&mut waiting);
        assert_eq!(catalogs.get("a").generation(), known);
        assert!(!catalogs.get("a").is_blind() && !waiting.contains_key("a"));
        assert!(waiting["b"].xids.is_empty());
        catalogs.forget_all();
        assert!(catalogs.get("a").is_blind());
    }
}
