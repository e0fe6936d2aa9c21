//! Connections that a planned change of writer is going to need, opened ahead of it, while clients are still served.
//!
//! A server needs some milliseconds for each new connection, and a change needs a dozen of them. It promises nothing of
//! what it holds: whoever takes one tries it, and opens his own where it is of no use.

use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::future::{join, join_all};

use super::apply::applier::Applier;
use super::apply::start::ApplierSettings;
use super::backend::{Address, Backend};
use super::canary::Canary;
use super::stream::{self, StreamSettings};

/// By node and database.
type Shelf<T> = Mutex<Vec<(Address, String, T)>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Spares {
    appliers: Shelf<Applier>,
    streams: Shelf<Backend>,
    canary: Mutex<Option<(Address, Canary)>>,
}

impl Spares {
    /// Opens those of the next writer's streams and of the nodes that will follow it. What can't be opened is missing.
    pub async fn prepare(&self, streams: &[StreamSettings], appliers: &[ApplierSettings]) {
        let streams = streams.iter().map(async |settings| {
            if let Ok(backend) = stream::connect(settings).await {
                let database = settings.login.database.clone();
                lock(&self.streams).push((settings.address.clone(), database, backend));
            }
        });
        let appliers = appliers.iter().map(async |settings| {
            if let Ok(mut applier) = Applier::connect(settings).await
                && applier.warm_up().await.is_ok()
            {
                let database = settings.login.database.clone();
                lock(&self.appliers).push((settings.address.clone(), database, applier));
            }
        });
        join(join_all(streams), join_all(appliers)).await;
    }

    /// One that could become an applier in this database.
    pub fn applier(&self, address: &Address, database: &str) -> Option<Applier> {
        take(&self.appliers, address, database)
    }

    /// The server processes of those that could become appliers on this node.
    pub fn appliers_on(&self, address: &Address) -> Vec<i32> {
        let appliers = lock(&self.appliers);
        let mine = appliers.iter().filter(|(node, ..)| node == address);
        mine.filter_map(|(.., applier)| i32::try_from(applier.process_id()).ok())
            .collect()
    }

    /// One over which a slot of this database can be read.
    pub fn stream(&self, address: &Address, database: &str) -> Option<Backend> {
        take(&self.streams, address, database)
    }

    /// Keeps a canary of the node that is going to write.
    pub fn put_canary(&self, address: &Address, canary: Canary) {
        *lock(&self.canary) = Some((address.clone(), canary));
    }

    /// A canary of this node's run, if that has not ended.
    pub fn canary(&self, address: &Address) -> Option<Canary> {
        let (node, canary) = lock(&self.canary).take()?;
        (node == *address && canary.lives()).then_some(canary)
    }

    /// Nobody needs what is left.
    pub fn clear(&self) {
        lock(&self.appliers).clear();
        lock(&self.streams).clear();
        *lock(&self.canary) = None;
    }
}

fn take<T>(shelf: &Shelf<T>, address: &Address, database: &str) -> Option<T> {
    let mut shelf = lock(shelf);
    let found = shelf
        .iter()
        .position(|(node, name, _)| node == address && name == database)?;
    Some(shelf.swap_remove(found).2)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
