//! Threads: one half of the cores for the relay, the other for replication, and at least one each.
//!
//! However busy clients keep the relay, units are decoded, applied and confirmed meanwhile; and the fewer threads
//! a runtime has, the fewer it wakes for each step (measured on 2 cores: 15 % of what a relayed query costs). Where
//! it has just one, it is of the kind that shares nothing with others, which saves a few percent more.

use std::future::{Future, pending};
use std::io;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The threads of replication. Dropping it ends what runs on them, without waiting for it.
#[derive(Debug)]
pub struct Threads {
    handle: Handle,
    _end: DropGuard,
}

impl Threads {
    /// Starts idle ones.
    pub fn start(name: &str) -> io::Result<Self> {
        let runtime = half_of_the_cores(name)?;
        let handle = runtime.handle().clone();
        let end = CancellationToken::new();
        let ended = end.clone();
        // A runtime with one thread runs only while somebody waits on it, and none may be dropped from within.
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                runtime.block_on(ended.run_until_cancelled_owned(pending::<()>()));
                runtime.shutdown_background();
            })?;
        Ok(Self {
            handle,
            _end: end.drop_guard(),
        })
    }

    /// Runs a task there. What it spawns runs there too.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        self.handle.spawn(task)
    }
}

/// A runtime with one half of the cores.
pub fn half_of_the_cores(name: &str) -> io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let mut builder = match cores / 2 {
        0 | 1 => Builder::new_current_thread(),
        threads => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    builder.thread_name(name).enable_all().build()
}
