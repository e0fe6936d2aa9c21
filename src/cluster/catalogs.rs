//! What each database's names stand for, as the writer knows them: loaded at start, and again after DDL.
//!
//! A snapshot may be a moment behind the writer; a name it does not know is never taken for harmless.
//! Readers take a snapshot without waiting; one task loads, at most one load for each database at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::ids::NodeId;
use crate::node::control::{Control, ControlError};
use crate::sql::catalog::{Catalog, CatalogRow, LOAD_QUERY};

/// After a load failed, until it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// All databases' snapshots.
#[derive(Default)]
pub struct Catalogs {
    snapshots: ArcSwap<BTreeMap<String, Arc<Catalog>>>,
    /// Grows with each new snapshot of any database.
    generation: AtomicU64,
    stale: Mutex<BTreeSet<String>>,
    more: Notify,
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

    /// A database has seen DDL, or is new.
    pub fn mark_stale(&self, database: &str) {
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        stale.insert(database.to_owned());
        drop(stale);
        self.more.notify_one();
    }

    /// A database is gone.
    pub fn forget(&self, database: &str) {
        self.snapshots.rcu(|known| {
            let mut known = BTreeMap::clone(known);
            known.remove(database);
            known
        });
    }

    fn take_stale(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.stale.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Loads what is stale, until dropped.
    pub async fn tend(&self, control: &Control, writer: NodeId) {
        loop {
            for database in self.take_stale() {
                if let Err(error) = self.load(control, writer, &database).await {
                    tracing::debug!(database, %error, "the catalog could not be read yet");
                    tokio::time::sleep(RETRY).await;
                    // Dropped meanwhile, or the writer is away: tried again as long as it is replicated.
                    if self.snapshots.load().contains_key(&database) {
                        self.mark_stale(&database);
                    }
                }
            }
            self.more.notified().await;
        }
    }

    async fn load(
        &self,
        control: &Control,
        writer: NodeId,
        database: &str,
    ) -> Result<(), ControlError> {
        let client = control.connect(writer, database).await?;
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
        });
        let generation = self.generation.load(Ordering::Acquire) + 1;
        let catalog = Arc::new(Catalog::from_rows(generation, rows));
        self.snapshots.rcu(|known| {
            let mut known = BTreeMap::clone(known);
            known.insert(database.to_owned(), Arc::clone(&catalog));
            known
        });
        self.generation.store(generation, Ordering::Release);
        metrics::counter!("synapsedb_catalog_loads_total").increment(1);
        Ok(())
    }
}
