//! Threads: one half of the cores for the relay, the other for replication, and at least one each.
//!
//! However busy clients keep the relay, units are decoded, applied and confirmed meanwhile; and the fewer threads
//! a runtime has, the fewer it wakes for each step (measured on 2 cores: 15 % of what a relayed query costs).

use std::future::Future;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// The threads of replication. Dropping it ends what runs on them.
#[derive(Debug)]
pub struct Threads(Option<Runtime>);

impl Threads {
    /// Starts idle ones.
    pub fn start(name: &str) -> std::io::Result<Self> {
        let runtime = half_of_the_cores().thread_name(name).build()?;
        Ok(Self(Some(runtime)))
    }

    /// Runs a task there. What it spawns runs there too.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        match &self.0 {
            Some(runtime) => runtime.spawn(task),
            // Only `drop` takes it out.
            None => tokio::spawn(task),
        }
    }
}

impl Drop for Threads {
    /// Without waiting, which is not allowed where this is dropped.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A runtime with one half of the cores.
pub fn half_of_the_cores() -> Builder {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads((cores / 2).max(1)).enable_all();
    builder
}
