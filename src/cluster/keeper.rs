//! Superuser's connections to nodes' databases that are kept for a moment, for who asks several things in a row.
//!
//! A question over a kept connection costs a round trip; a new connection costs a process on the node and a proof of the
//! password, which a change of writer has no time for. Kept no longer than that: who is connected to a database
//! keeps it from being dropped or copied. It knows nothing of what is asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::ids::NodeId;
use crate::node::control::{Control, ControlError};

/// How long a connection is kept that nobody uses.
const KEPT: Duration = Duration::from_secs(2);

/// Connections by node and database, each with the moment of its last use.
type Kept = BTreeMap<(NodeId, String), (Arc<Client>, Instant)>;

/// See the module.
#[derive(Default)]
pub struct Keeper {
    clients: Mutex<Kept>,
}

impl Keeper {
    /// A connection, opened where none is kept that works.
    pub async fn client(
        &self,
        control: &Control,
        node: NodeId,
        database: &str,
    ) -> Result<Arc<Client>, ControlError> {
        let key = (node, database.to_owned());
        if let Some((client, used)) = self.lock().get_mut(&key)
            && !client.is_closed()
        {
            *used = Instant::now();
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(control.connect(node, database).await?);
        self.lock()
            .insert(key, (Arc::clone(&client), Instant::now()));
        Ok(client)
    }

    /// Lets go of a database: it may be dropped.
    pub fn leave(&self, database: &str) {
        self.lock().retain(|(_, other), _| other != database);
    }

    /// Lets go of a node, whose connections may lead nowhere.
    pub fn leave_node(&self, node: NodeId) {
        self.lock().retain(|(other, _), _| *other != node);
    }

    /// Lets go of what nobody uses, again and again. Never ends; dropping it is harmless.
    pub async fn tend(&self) {
        loop {
            tokio::time::sleep(KEPT / 4).await;
            self.lock()
                .retain(|_, (client, used)| used.elapsed() < KEPT && !client.is_closed());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
