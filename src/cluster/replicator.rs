//! The replicator: streams in, queues and appliers out, the majority's place told back to the writer.
//!
//! The I/O shell around `engine::confirm` and `engine::fence`. Guards promises 1 and 2. It promises that a
//! place is reported as written only after the confirmer allows it, and that a follower which differs
//! is out before anything else is said of it. It doesn't know sessions; the view tells them what they
//! need.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::Counter;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::catalogs::Catalogs;
use super::commits::Commits;
use super::failures::{Failure, fence};
use super::follower::{Follower, FollowerTask};
use super::jumps::Jumps;
use super::reads::Reads;
use super::sight::Sight;
use super::steward::Common;
use crate::engine::confirm::{Confirmer, Report, Standing, StreamId};
use crate::engine::sequences::Sequences;
use crate::ids::{Lsn, NodeId, UnitId};
use crate::node::apply::aside::Aside;
use crate::node::queue::{Full, Queue};
use crate::node::stream::{StreamSettings, Voice};
use crate::node::unit::Unit;

/// What is known of one follower, for the view and for judging failures.
#[derive(Clone, Debug, Default)]
pub struct FollowerState {
    /// Databases whose applier is connected and at work.
    pub connected: usize,
    /// The last failure that is not over, by stream.
    pub failures: BTreeMap<StreamId, Failure>,
    /// What keeps it from applying a unit for the time being, by stream: a full disk, say.
    pub stalls: BTreeMap<StreamId, Failure>,
    /// Why it is out of service for good, until it is mended.
    pub fenced: Option<String>,
}

/// One database's stream.
pub(super) struct StreamEntry {
    pub(super) database: String,
    pub(super) sight: Arc<Sight>,
    pub(super) queues: BTreeMap<NodeId, Arc<Queue>>,
    asides: BTreeMap<NodeId, Arc<Aside>>,
    /// Each follower's last durable unit.
    pub(super) places: BTreeMap<NodeId, UnitId>,
    /// Whether it is to be read.
    pub(super) wanted: watch::Sender<bool>,
    /// As what it is read at the moment.
    pub(super) open: Option<Voice>,
    cancel: CancellationToken,
}

pub(super) struct State {
    pub(super) confirmer: Confirmer,
    pub(super) followers: BTreeMap<NodeId, FollowerState>,
    pub(super) streams: BTreeMap<StreamId, StreamEntry>,
    next_stream: StreamId,
    /// Why the writer holds: a unit that nobody can apply.
    pub(super) held: Option<Failure>,
    /// What followers' sequences allow to be confirmed.
    pub(super) sequences: Sequences,
    /// What had been moved when they were read last.
    pub(super) jumps_read: Option<u64>,
}

/// See the module. Shared by all its tasks.
pub struct Replicator {
    state: Mutex<State>,
    pub(super) reports: watch::Sender<Report>,
    /// The stream whose reports release commits: one that is awake.
    pub(super) releasing: watch::Sender<Option<StreamId>>,
    catalogs: Arc<Catalogs>,
    reads: Arc<Reads>,
    pub(super) commits: Arc<Commits>,
    units: Counter,
    unit_bytes: Counter,
    /// Told when a node is fenced, which must be recorded.
    pub(super) fencing: Notify,
    pub(super) jumps: Arc<Jumps>,
    /// Told when the writer's sequences are to be read, and when they are unless a unit comes soon.
    pub(super) reading: Notify,
    pub(super) tail: Notify,
    tasks: TaskTracker,
    /// On which all of it runs, whoever asks for more.
    runtime: Handle,
    cancel: CancellationToken,
}

/// One follower at a moment.
#[derive(Clone, Debug)]
pub struct FollowerSnapshot {
    /// What is known of it.
    pub known: FollowerState,
    /// How far it has the writer's history.
    pub place: Lsn,
    /// Units and bytes waiting for it in memory, over all databases.
    pub queue: (usize, usize),
}

/// What the view shows of replication.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Each follower.
    pub followers: BTreeMap<NodeId, FollowerSnapshot>,
    /// Indexes that followers still have to build.
    pub indexes_owed: BTreeMap<NodeId, usize>,
    /// How far the writer's log has been decoded.
    pub decoded: Lsn,
    /// What was told to the writer last.
    pub report: Report,
    /// Enough followers are at work for commits to complete.
    pub quorum: bool,
    /// Nodes at work, the writer among them.
    pub in_sync: usize,
    /// Units that somebody lacks.
    pub pending_units: usize,
    /// Databases replicated.
    pub databases: Vec<String>,
    /// Those of them whose stream sleeps.
    pub asleep: Vec<String>,
    /// Why the writer holds.
    pub held: Option<String>,
}

impl Replicator {
    /// For `nodes` configured nodes with these followers. Nothing runs until a stream is added, and then on the
    /// runtime from which this is called.
    pub fn new(
        nodes: usize,
        followers: &[NodeId],
        common: &Common,
        tasks: TaskTracker,
        cancel: CancellationToken,
    ) -> Arc<Self> {
        let standing = followers.iter().map(|node| (*node, Standing::InSync));
        Arc::new(Self {
            state: Mutex::new(State {
                confirmer: Confirmer::new(nodes, standing),
                followers: followers
                    .iter()
                    .map(|node| (*node, FollowerState::default()))
                    .collect(),
                streams: BTreeMap::new(),
                next_stream: 0,
                held: None,
                sequences: Sequences::default(),
                jumps_read: None,
            }),
            jumps: Arc::clone(&common.jumps),
            reading: Notify::new(),
            tail: Notify::new(),
            reports: watch::Sender::new(Report::default()),
            releasing: watch::Sender::new(None),
            catalogs: Arc::clone(&common.catalogs),
            reads: Arc::clone(&common.reads),
            commits: Arc::clone(&common.commits),
            units: metrics::counter!("synapsedb_units_total"),
            unit_bytes: metrics::counter!("synapsedb_unit_bytes_total"),
            fencing: Notify::new(),
            tasks,
            runtime: Handle::current(),
            cancel,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts replicating a database whose slot is at `start`.
    pub fn add_database(
        self: &Arc<Self>,
        settings: StreamSettings,
        start: Lsn,
        followers: Vec<Follower>,
        queue_bytes: usize,
    ) {
        let cancel = self.cancel.child_token();
        let mut state = self.lock();
        let id = state.next_stream;
        state.next_stream += 1;
        let places: BTreeMap<_, _> = followers.iter().map(|f| (f.node, f.place)).collect();
        let term = settings.term();
        let ends = places
            .iter()
            .map(|(node, place)| (*node, place.in_log_of(term)));
        let ends = ends.collect();
        let mut queues = BTreeMap::new();
        let mut asides = BTreeMap::new();
        let sight = self.reads.open(&settings.login.database);
        for mut follower in followers {
            follower.settings.horizon = sight.horizon_of(follower.node);
            let queue = Arc::new(Queue::new(queue_bytes));
            if state.confirmer.standing(follower.node) != Some(Standing::InSync) {
                queue.abandon();
                sight.fence(follower.node);
            }
            queues.insert(follower.node, Arc::clone(&queue));
            let database = settings.login.database.clone();
            let aside = Aside::new(follower.control.clone(), follower.node, database);
            asides.insert(follower.node, Arc::clone(&aside));
            let task = FollowerTask {
                follower,
                aside,
                stream: id,
                queue,
                replicator: Arc::clone(self),
                cancel: cancel.clone(),
            };
            self.tasks.spawn_on(task.run(), &self.runtime);
        }
        state.confirmer.add_stream(id, start, &ends);
        let entry = StreamEntry {
            database: settings.login.database.clone(),
            sight,
            queues,
            asides,
            places,
            wanted: watch::Sender::new(true),
            open: None,
            cancel: cancel.clone(),
        };
        let wanted = entry.wanted.subscribe();
        state.streams.insert(id, entry);
        self.choose_releasing(&state);
        drop(state);
        let stream = Arc::clone(self).run_stream(id, settings, wanted, cancel);
        self.tasks.spawn_on(stream, &self.runtime);
    }

    /// Whether the database is replicated.
    pub fn has_database(&self, database: &str) -> bool {
        let state = self.lock();
        let mut entries = state.streams.values();
        entries.any(|entry| entry.database == database)
    }

    /// The followers' builders of indexes in a database.
    pub fn asides(&self, database: &str) -> Vec<Arc<Aside>> {
        let state = self.lock();
        let mut entries = state.streams.values();
        let entry = entries.find(|entry| entry.database == database);
        entry.map_or_else(Vec::new, |entry| entry.asides.values().cloned().collect())
    }

    /// Stops replicating a database that is about to be dropped.
    pub fn remove_database(&self, database: &str) {
        let mut state = self.lock();
        let found = state
            .streams
            .iter()
            .find(|(_, entry)| entry.database == database);
        let Some(id) = found.map(|(id, _)| *id) else {
            return;
        };
        if let Some(entry) = state.streams.remove(&id) {
            entry.cancel.cancel();
        }
        self.reads.close(database);
        state.confirmer.remove_stream(id);
        self.choose_releasing(&state);
        self.announce(&mut state);
    }

    pub(super) fn announce(&self, state: &mut State) {
        let report = self.covered(state);
        // Ahead of the report that lets a commit be answered.
        self.reads.set_written(report.write);
        self.reports.send_if_modified(|told| {
            let changed = *told != report;
            *told = report;
            changed
        });
    }

    pub(super) fn decoded_unit(&self, id: StreamId, unit: Unit) {
        self.units.increment(1);
        self.unit_bytes.increment(unit.bytes as u64);
        if let Some(token) = unit.token {
            // Ahead of the queues, so of everything by which a follower could have it.
            self.commits.shown(token, unit.id);
        }
        let unit = Arc::new(unit);
        let mut state = self.lock();
        let state = &mut *state;
        if unit.closes {
            // Several units in one transaction are one to the node that waits for its commit to be confirmed.
            state.confirmer.decoded_unit(id, unit.commit, unit.end);
            if unit.has_ddl {
                state.sequences.jumped(unit.end);
            }
        }
        let Some(entry) = state.streams.get(&id) else {
            return;
        };
        entry.sight.decoded_unit(&unit);
        if unit.has_ddl {
            // Ahead of any report that lets the writer go on: nobody has seen the commit yet.
            self.catalogs.mark_stale(&entry.database, Some(unit.xid));
        }
        let mut full = Vec::new();
        let mut durable = Vec::new();
        for (node, queue) in &entry.queues {
            match queue.push(&unit) {
                Ok(None) => {}
                Ok(Some(end)) => durable.push((*node, end)),
                Err(Full) => full.push(*node),
            }
        }
        for (node, end) in durable {
            // It had it before, perhaps from another writer.
            entry.sight.applied(node, end);
            state.confirmer.applied(id, node, end);
        }
        for node in full {
            // Without its queue a follower can't stay in sync; it is out even if the quorum goes with it.
            let why = "its queue is full: it is too slow or does not answer";
            fence(state, node, why.to_owned());
            self.fencing.notify_one();
        }
    }

    pub(super) fn decoded_up_to(&self, id: StreamId, lsn: Lsn) {
        let mut state = self.lock();
        state.confirmer.decoded_up_to(id, lsn);
        if let Some(entry) = state.streams.get(&id) {
            entry.sight.decoded_up_to(lsn);
        }
        self.announce(&mut state);
    }

    /// A follower has everything up to this unit durable, and so everything up to `end` in the writer's log, where
    /// that is known to be further than before.
    pub(super) fn applied(&self, id: StreamId, node: NodeId, unit: UnitId, end: Option<Lsn>) {
        let mut state = self.lock();
        if let Some(end) = end {
            state.confirmer.applied(id, node, end);
        }
        if let Some(entry) = state.streams.get_mut(&id) {
            entry.places.insert(node, unit);
            if let Some(end) = end {
                entry.sight.applied(node, end);
            }
        }
        if let Some(follower) = state.followers.get_mut(&node) {
            follower.failures.remove(&id);
            if follower
                .stalls
                .get(&id)
                .is_some_and(|stall| stall.unit <= unit)
            {
                follower.stalls.remove(&id);
            }
        }
        if state.held.as_ref().is_some_and(|held| held.unit <= unit) {
            state.held = None;
            tracing::info!("the unit that nobody could apply has been applied; the writer goes on");
        }
        self.announce(&mut state);
    }

    /// Whether a majority has every unit before this follower does, as things stand. Of equal ones the first counts.
    pub(super) fn is_spare(&self, id: StreamId, node: NodeId) -> bool {
        let state = self.lock();
        let Some(entry) = state.streams.get(&id) else {
            return false;
        };
        let rank = |node: &NodeId, place: &UnitId| (*place, Reverse(*node));
        let mine = entry.places.get(&node).map(|place| rank(&node, place));
        let at_work = |other: &NodeId| {
            let connected = state.followers.get(other).is_some_and(|f| f.connected > 0);
            connected && state.confirmer.standing(*other) == Some(Standing::InSync)
        };
        let before =
            |(other, place): &(&NodeId, &UnitId)| Some(rank(other, place)) > mine && at_work(other);
        let before = entry.places.iter().filter(before).count();
        // The writer is one of the majority.
        before + 1 >= state.confirmer.majority()
    }

    /// A follower's applier waits for these server processes: reads among them are run elsewhere.
    pub(super) fn name_blockers(&self, id: StreamId, node: NodeId, pids: Vec<u32>) {
        if let Some(entry) = self.lock().streams.get(&id) {
            entry.sight.name_blockers(node, pids);
        }
        if let Some(load) = self.reads.loads.get(node) {
            load.disturb();
        }
    }

    /// An applier has connected (`+1`) or lost its connection (`-1`).
    pub(super) fn connected(&self, node: NodeId, up: bool) {
        let mut state = self.lock();
        if let Some(follower) = state.followers.get_mut(&node) {
            follower.connected = if up {
                follower.connected + 1
            } else {
                follower.connected.saturating_sub(1)
            };
        }
    }

    /// Nobody has been handed anything of the writer's log behind this place.
    pub fn handed(&self) -> Lsn {
        self.lock().confirmer.handed()
    }

    /// The place before which a follower has everything.
    pub fn place(&self, node: NodeId) -> Lsn {
        self.lock().confirmer.place(node)
    }

    /// Waits until a majority has everything before `lsn` durable. Dropping it is harmless.
    pub async fn wait_written(&self, lsn: Lsn) {
        let mut reports = self.reports.subscribe();
        // The sender lives as long as `self`, so this can only end by success.
        let _ = reports.wait_for(|report| report.write >= lsn).await;
    }

    /// For the view, /status and the metrics.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let databases = state.streams.len();
        let at_work =
            |f: &FollowerState| f.fenced.is_none() && f.connected >= databases && databases > 0;
        let in_sync = 1 + state.followers.values().filter(|f| at_work(f)).count();
        Snapshot {
            followers: state
                .followers
                .iter()
                .map(|(node, known)| {
                    let snapshot = FollowerSnapshot {
                        known: known.clone(),
                        place: state.confirmer.place(*node),
                        queue: queue_depth(&state, *node),
                    };
                    (*node, snapshot)
                })
                .collect(),
            indexes_owed: indexes_owed(&state),
            decoded: state.confirmer.decoded(),
            report: *self.reports.borrow(),
            quorum: in_sync >= state.confirmer.majority(),
            in_sync,
            pending_units: state.confirmer.pending_units(),
            databases: state
                .streams
                .values()
                .map(|entry| entry.database.clone())
                .collect(),
            asleep: asleep(&state),
            held: state.held.as_ref().map(|held| held.text.clone()),
        }
    }
}

fn asleep(state: &State) -> Vec<String> {
    let sleeps = |(id, _): &(&StreamId, &StreamEntry)| state.confirmer.sleeps(**id);
    let entries = state.streams.iter().filter(sleeps);
    entries.map(|(_, entry)| entry.database.clone()).collect()
}

fn queue_depth(state: &State, node: NodeId) -> (usize, usize) {
    let queues = state
        .streams
        .values()
        .filter_map(|entry| entry.queues.get(&node));
    queues.fold((0, 0), |(units, bytes), queue| {
        let depth = queue.depth();
        (units + depth.0, bytes + depth.1)
    })
}

/// Between two attempts to open a broken connection.
pub(super) const RETRY: Duration = Duration::from_millis(200);

fn indexes_owed(state: &State) -> BTreeMap<NodeId, usize> {
    let mut owed = BTreeMap::new();
    for entry in state.streams.values() {
        for (node, aside) in &entry.asides {
            *owed.entry(*node).or_default() += aside.left();
        }
    }
    owed
}
