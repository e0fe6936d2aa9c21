//! A connection that does nothing but end when its server's processes do.
//!
//! A server that was killed and started again, or that ended all its backends after one of them crashed, may show
//! commits that no majority has. It takes new connections only once the old ones are closed, so whoever has opened a
//! connection and finds the canary's still open works on the same run of the server as the canary. Guards that a
//! connection to the writer's next run is not worked on before somebody has met that run. It says nothing of a server
//! that is frozen.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::backend::{Backend, BackendError, Login};
use super::control::{Control, OPTIONS};
use crate::ids::NodeId;

/// For opening it.
const LIMIT: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Canary {
    backend: Backend,
}

impl Canary {
    /// Opens one on a node.
    pub async fn open(control: &Control, node: NodeId) -> Result<Self, BackendError> {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let login = Login {
            user: control.user().to_owned(),
            database: control.database.clone(),
            secret: control.secret(),
            parameters: vec![
                pair("application_name", "synapsedb control"),
                pair("options", OPTIONS),
            ],
        };
        let backend = Backend::connect(control.address(node), &login, LIMIT).await?;
        Ok(Self { backend })
    }

    /// Whether the server's side is open, by what has arrived here until now. Costs a system call.
    pub fn lives(&self) -> bool {
        let mut sockets = [PollFd::new(&self.backend.stream, PollFlags::RDHUP)];
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut sockets, Some(&at_once)).is_ok() && !sockets[0].revents().intersects(ended)
    }

    /// Until the server's side is closed. Cancel-safe.
    pub async fn ended(&self) {
        let stream = &self.backend.stream;
        let mut heard = [0; 512];
        while stream.readable().await.is_ok() {
            match stream.try_read(&mut heard) {
                // A notice, or a setting that was loaded anew.
                Ok(1..) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
            }
        }
    }
}

/// The writer's canary, for all who open connections to it.
#[derive(Debug, Default)]
pub struct Canaries {
    writers: Mutex<Option<(NodeId, Arc<Canary>)>>,
}

impl Canaries {
    /// The run of the writer that was met last.
    pub fn set(&self, writer: NodeId, canary: Arc<Canary>) {
        *self.writers() = Some((writer, canary));
    }

    /// Whether a connection that has been opened may be worked on: no later run of the writer has taken it.
    pub fn vouches(&self, node: NodeId) -> bool {
        let canary = match self.writers().as_ref() {
            Some((writer, canary)) if *writer == node => Arc::clone(canary),
            _ => return true,
        };
        canary.lives()
    }

    fn writers(&self) -> std::sync::MutexGuard<'_, Option<(NodeId, Arc<Canary>)>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
