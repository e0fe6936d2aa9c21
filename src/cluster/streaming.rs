//! The replicator's streams: one task each, which reads while it is wanted, and which of them speaks to the writer.
//!
//! Guards promise 1: a stream that sleeps is out of every minimum first and closed then; one that is woken is
//! open and level first and counted then. Who may sleep is decided elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::replicator::{RETRY, Replicator, State, StreamEntry};
use crate::engine::confirm::StreamId;
use crate::ids::{Lsn, UnitId};
use crate::node::spill::Running;
use crate::node::stream::{Sink, Stream, StreamError, StreamSettings, Voice};
use crate::node::token::Token;
use crate::node::unit::Unit;

/// Between two looks at what other tasks do.
const LOOK: Duration = Duration::from_millis(10);
/// The writer's end of a connection that was closed here may hold the slot for so long.
const ENDING: Duration = Duration::from_secs(1);

impl Replicator {
    /// Keeps to the stream that releases commits while it is awake: a change stops them for a moment.
    pub(super) fn choose_releasing(&self, state: &State) {
        let awake = |id: &StreamId| !state.confirmer.sleeps(*id);
        let now = *self.releasing.borrow();
        let now = now.filter(|id| state.streams.contains_key(id) && awake(id));
        let chosen = now.or_else(|| state.streams.keys().copied().find(awake));
        self.releasing.send_if_modified(|known| {
            let changed = *known != chosen;
            *known = chosen;
            changed
        });
    }

    pub(super) async fn run_stream(
        self: Arc<Self>,
        id: StreamId,
        settings: StreamSettings,
        mut wanted: watch::Receiver<bool>,
        cancel: CancellationToken,
    ) {
        let mut reports = self.reports.subscribe();
        let mut releasing = self.releasing.subscribe();
        let slot = settings.slot.clone();
        let mut first = true;
        let mut left: Option<Instant> = None;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                there = wanted.wait_for(|wanted| *wanted) => if there.is_err() { return },
            }
            let voice = match *releasing.borrow_and_update() {
                Some(first) if first == id => Voice::Releases,
                _ => Voice::MovesSlot,
            };
            let run = async {
                let mut stream = Stream::open(&settings, voice).await?;
                if std::mem::take(&mut first) {
                    tracing::info!(%slot, "reading the writer's log");
                } else {
                    tracing::debug!(%slot, ?voice, "reading the writer's log again");
                }
                self.opened(id, voice);
                let mut sink = StreamSink {
                    id,
                    replicator: &self,
                };
                stream.run(&mut sink, &mut reports).await
            };
            let broken = tokio::select! {
                () = cancel.cancelled() => return,
                _ = wanted.wait_for(|wanted| !*wanted) => None,
                // The sender lives as long as `self`.
                _ = releasing.wait_for(|first| *first == Some(id)), if voice == Voice::MovesSlot => None,
                ended = run => ended.err(),
            };
            self.closed(id);
            let Some(error) = broken else {
                left = Some(Instant::now());
                continue;
            };
            if is_held(&error) && left.is_some_and(|left| left.elapsed() < ENDING) {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            metrics::counter!("synapsedb_stream_breaks_total").increment(1);
            tracing::warn!(%slot, %error, "the writer's stream broke; opening it again");
            first = true;
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    fn opened(&self, id: StreamId, voice: Voice) {
        let mut state = self.lock();
        state.confirmer.restart_stream(id);
        if let Some(entry) = state.streams.get_mut(&id) {
            entry.open = Some(voice);
        }
    }

    fn closed(&self, id: StreamId) {
        if let Some(entry) = self.lock().streams.get_mut(&id) {
            entry.open = None;
        }
    }

    /// Each stream with its database.
    pub(super) fn streams(&self) -> Vec<(StreamId, String)> {
        let state = self.lock();
        let name = |(id, entry): (&StreamId, &StreamEntry)| (*id, entry.database.clone());
        state.streams.iter().map(name).collect()
    }

    /// Whether the database's stream sleeps.
    pub(super) fn sleeps(&self, database: &str) -> bool {
        let state = self.lock();
        let mut streams = state.streams.iter();
        streams.any(|(id, entry)| entry.database == database && state.confirmer.sleeps(*id))
    }

    /// Has a stream read again, which counts for nothing yet.
    pub(super) fn read_again(&self, id: StreamId) {
        if let Some(entry) = self.lock().streams.get(&id) {
            entry.wanted.send_replace(true);
        }
    }

    /// Waits until every stream that is wanted is read by this process, so by no other: slots admit one reader.
    pub(super) async fn wait_open(&self) {
        let open = |entry: &StreamEntry| entry.open.is_some() || !*entry.wanted.borrow();
        while !self.lock().streams.values().all(open) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Counts a stream again, from this moment on: nothing may have been committed in its database so far.
    pub(super) fn include(&self, id: StreamId) {
        let mut state = self.lock();
        state.confirmer.wake(id);
        self.choose_releasing(&state);
        self.announce(&mut state);
    }

    /// No longer counts a stream in whose database nothing is committed from `past` on; false where it has
    /// something to do still, or where it is the last.
    pub(super) fn exclude(&self, id: StreamId, past: Lsn) -> bool {
        let mut state = self.lock();
        let left = state.confirmer.sleep(id, past);
        self.choose_releasing(&state);
        self.announce(&mut state);
        left
    }

    /// Closes a stream that is not counted, once another one speaks for it.
    pub(super) async fn close(&self, id: StreamId) {
        let speaks = |state: &State| {
            let mut entries = state.streams.iter();
            entries.any(|(other, entry)| *other != id && entry.open == Some(Voice::Releases))
        };
        while !speaks(&self.lock()) {
            tokio::time::sleep(LOOK).await;
        }
        let state = self.lock();
        if let Some(entry) = state.streams.get(&id)
            && state.confirmer.sleeps(id)
        {
            entry.wanted.send_replace(false);
        }
    }

    /// Waits until everybody who is owed it has everything before `lsn`. Dropping it is harmless.
    pub(super) async fn wait_everywhere(&self, lsn: Lsn) {
        let mut reports = self.reports.subscribe();
        // The sender lives as long as `self`, so this can only end by success.
        let _ = reports.wait_for(|report| report.flush >= lsn).await;
    }
}

fn is_held(error: &StreamError) -> bool {
    matches!(error, StreamError::Backend(error) if error.sqlstate() == Some("55006"))
}

struct StreamSink<'a> {
    id: StreamId,
    replicator: &'a Replicator,
}

impl Sink for StreamSink<'_> {
    fn unit(&mut self, unit: Unit) {
        self.replicator.decoded_unit(self.id, unit);
    }

    fn shown(&mut self, token: Token) {
        self.replicator.commits.shown(token, UnitId::NOTHING);
    }

    fn progress(&mut self, lsn: Lsn) {
        self.replicator.decoded_up_to(self.id, lsn);
    }

    fn running(&mut self, running: Running) {
        let state = self.replicator.lock();
        if let Some(entry) = state.streams.get(&self.id) {
            for queue in entry.queues.values() {
                queue.offer(running.clone());
            }
        }
    }
}
