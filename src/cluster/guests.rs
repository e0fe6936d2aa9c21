//! Which databases clients of the proxy are in, whether or not they have a connection to a node at the moment.
//!
//! Only a count each. It knows nothing of who they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// How many clients there are, by database.
#[derive(Debug, Default)]
pub struct Guests {
    counts: Mutex<BTreeMap<String, usize>>,
    expected: Notify,
}

impl Guests {
    /// One more, until the guest is dropped.
    pub fn enter(self: &Arc<Self>, database: &str) -> Guest {
        *self.counts().entry(database.to_owned()).or_default() += 1;
        Guest {
            guests: Arc::clone(self),
            database: database.to_owned(),
        }
    }

    /// Whether there is anybody.
    pub fn any(&self, database: &str) -> bool {
        self.counts().contains_key(database)
    }

    /// Somebody has come whom something has to be made ready for.
    pub fn call(&self) {
        self.expected.notify_one();
    }

    /// Waits for the next call. Dropping it loses none.
    pub async fn called(&self) {
        self.expected.notified().await;
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's presence.
#[derive(Debug)]
pub struct Guest {
    guests: Arc<Guests>,
    database: String,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self.guests.counts();
        if let Some(count) = counts.get_mut(&self.database) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.database);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_there_until_dropped() {
        let guests = Arc::new(Guests::default());
        let (one, two) = (guests.enter("a"), guests.enter("a"));
        drop(one);
        assert!(guests.any("a") && !guests.any("b"));
        drop(two);
        assert!(!guests.any("a"));
    }
}
