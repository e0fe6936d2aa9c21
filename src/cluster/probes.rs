//! How the nodes do: probes, the view that everyone sees, and what sessions are told of the writer.
//!
//! Guards promises 1 and 3 on the way to sessions: nothing is asked of a writer that was away for a moment before a
//! majority has all that its log holds. Who writes next is decided elsewhere.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::Client;

use super::bring_up::Prepared;
use super::catalogs::shows;
use super::office::{Office, State};
use super::replicator::{FollowerSnapshot, RETRY};
use super::steward::{Before, Steward};
use super::view::{NodeView, Status, View};
use crate::config::Config;
use crate::ids::{Lsn, NodeId};
use crate::node::canary::Canary;
use crate::node::control::{self, ControlError};

/// For appliers to be at work again after a planned change of writer.
const INHERITED: Duration = Duration::from_secs(3);

/// How the writer of a term does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A majority may still lack what its log holds.
    Beginning,
    /// It serves.
    Serving,
    /// It was lost, if only for a moment.
    Lost,
}

impl Steward {
    /// Asks a node again and again whether it lives.
    pub(super) async fn probe(&self, node: NodeId) {
        let interval = self.config.health.probe_interval();
        let name = self.config.nodes[node.0].name.clone();
        let seconds = metrics::histogram!("synapsedb_probe_seconds", "node" => name.clone());
        let failures = metrics::counter!("synapsedb_probe_failures_total", "node" => name);
        let mut client: Option<Client> = None;
        let mut silent = 0;
        loop {
            let started = Instant::now();
            let ask = self.ask(node, &mut client);
            let answer = tokio::select! {
                () = self.watching.cancelled() => return,
                answer = tokio::time::timeout(interval, ask) => answer,
            };
            match answer {
                Ok(Ok(took)) => {
                    silent = 0;
                    seconds.record(took);
                    self.note_probe(node, Some(took));
                }
                // A refused connection says it at once; silence only after several probes.
                Ok(Err(error)) => {
                    tracing::debug!(node = node.0, %error, "probe failed");
                    failures.increment(1);
                    client = None;
                    self.note_probe(node, None);
                }
                Err(_) => {
                    failures.increment(1);
                    silent += 1;
                    if silent >= self.config.health.probe_failures {
                        client = None;
                        self.note_probe(node, None);
                    }
                }
            }
            let suspected = async {
                match self.reads.loads.get(node) {
                    Some(load) => load.suspected().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.watching.cancelled() => return,
                () = tokio::time::sleep(interval.saturating_sub(started.elapsed())) => {}
                () = suspected => {}
            }
        }
    }

    /// One question and how long its answer took. A connection that broke since the last one says
    /// nothing of the node: a new one is tried.
    async fn ask(
        &self,
        node: NodeId,
        client: &mut Option<Client>,
    ) -> Result<Duration, ControlError> {
        if let Some(known) = client.as_ref() {
            let started = Instant::now();
            if !known.is_closed() && known.simple_query("select 1").await.is_ok() {
                return Ok(started.elapsed());
            }
            *client = None;
            if node == self.writer {
                // It may have been started again, and then its log may hold what no majority has.
                self.lost("a connection to it broke");
            }
        }
        let new = self.control.connect(node, &self.control.database).await?;
        let started = Instant::now();
        new.simple_query("select 1").await?;
        *client = Some(new);
        Ok(started.elapsed())
    }

    fn note_probe(&self, node: NodeId, took: Option<Duration>) {
        self.view.rcu(|view| {
            let mut view = View::clone(view);
            let entry = &mut view.nodes[node.0];
            if let Some(took) = took {
                let ms = took.as_secs_f64() * 1000.0;
                entry.latency_ms =
                    Some(entry.latency_ms.map_or(ms, |known| known * 0.8 + ms * 0.2));
                entry.last_heartbeat = Some(SystemTime::now());
                if entry.status == Status::Down {
                    // Nothing catches the writer up: it is there or not.
                    entry.status = if entry.is_writer {
                        Status::InSync
                    } else {
                        Status::CatchingUp
                    };
                }
            } else {
                entry.status = Status::Down;
            }
            count(&mut view);
            view
        });
        if let (Some(took), Some(load)) = (took, self.reads.loads.get(node)) {
            load.probed(took);
        }
        if took.is_none() && node == self.writer {
            self.lost("it does not answer");
        }
        self.tell_who_serves();
        self.tell_office();
    }

    /// The writer has to be met anew, or another one found.
    fn lost(&self, why: &str) {
        let first = self.standing.send_if_modified(|standing| {
            let first = *standing != Standing::Lost;
            *standing = Standing::Lost;
            first
        });
        if first && !self.cancel.is_cancelled() {
            let writer = &self.config.nodes[self.writer.0].name;
            tracing::warn!(%writer, why, "the writer is lost, if only for a moment");
            self.tell_office();
        }
    }

    /// Until a majority has what the writer's log held when it was met: nothing is asked of it before.
    pub(super) async fn settle_in(self: &Arc<Self>) {
        loop {
            let settled = self.cancel.run_until_cancelled(self.meet()).await;
            match settled {
                None => return,
                Some(true) => break,
                Some(false) => tokio::time::sleep(RETRY).await,
            }
        }
        self.standing.send_if_modified(|standing| {
            let begins = *standing == Standing::Beginning;
            if begins {
                *standing = Standing::Serving;
            }
            begins
        });
        self.served.store(true, Ordering::Release);
        self.reads.kept_word();
        self.spares.clear();
        self.carry();
    }

    /// Meets the writer's present run: a majority has all that its log held. From then on connections are worked on that
    /// lead to this run, and to none that comes after it.
    async fn meet(self: &Arc<Self>) -> bool {
        // First, so that the log is this run's.
        let canary = match self.spares.canary(self.control.address(self.writer)) {
            Some(canary) => Ok(canary),
            None => Canary::open(&self.control, self.writer).await,
        };
        let canary = match canary {
            Ok(canary) => Arc::new(canary),
            Err(error) => {
                tracing::debug!(%error, "the writer is not there to be met");
                return false;
            }
        };
        tracing::debug!("the writer's run is met");
        let known = tokio::select! {
            known = self.wait_quorum() => known,
            () = self.alone(), if self.on_majority => true,
        };
        if !known {
            return false;
        }
        tracing::debug!("a majority has all that the writer's log held");
        if !self.keep_word().await {
            return false;
        }
        self.tell_former();
        self.canaries.set(self.writer, Arc::clone(&canary));
        let this = Arc::clone(self);
        self.watchers.spawn(async move {
            let ended = this.watching.run_until_cancelled(canary.ended()).await;
            if ended.is_some() {
                this.lost("it ended its connections");
            }
        });
        true
    }

    /// Until so many are away that nobody can have what the writer adds: it may be read from.
    async fn alone(&self) {
        while self.view().may_have_majority() {
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Until the writer shows what followers were read by while it was away. False: not yet.
    async fn keep_word(&self) -> bool {
        let owed = self.reads.word_of(self.writer);
        if owed.is_empty() {
            return true;
        }
        let database = &self.control.database;
        let client = self.keeper.client(&self.control, self.writer, database);
        let Ok(client) = client.await else {
            return false;
        };
        let Ok(snapshot) = control::snapshot(&client).await else {
            return false;
        };
        owed.iter().all(|xid| shows(&snapshot, xid.0) == Some(true))
    }

    /// Tells sessions what may be asked of the writer. A planned change of writer says so itself, and its word stands.
    pub(super) fn tell_office(&self) {
        if !self.cancel.is_cancelled() {
            self.tell_state();
        }
    }

    /// Streams and appliers have ended, and nobody can follow: what is known of a majority holds until somebody does.
    pub(super) fn tell_headless(&self) {
        let serves = *self.standing.borrow() == Standing::Serving;
        if !serves && !self.view().may_have_majority() {
            self.tell_state();
        }
    }

    fn tell_state(&self) {
        let view = self.view();
        let state = match *self.standing.borrow() {
            // An applier that connects anew makes commits wait; writes are refused where nodes are missing.
            Standing::Serving if view.may_have_majority() => State::Open,
            Standing::Serving => State::ReadOnly {
                in_sync: view.in_sync,
                nodes: view.nodes.len(),
            },
            _ if !view.may_have_majority() => State::Headless {
                in_sync: view.in_sync,
                nodes: view.nodes.len(),
            },
            Standing::Beginning | Standing::Lost => State::Vacant,
        };
        let office = Office {
            writer: self.writer,
            term: self.term,
            state,
        };
        self.office.send_if_modified(|told| {
            let closing = told.state == State::Closing && told.term == self.term;
            if *told == office || closing && state == State::Open {
                return false;
            }
            if told.state != state {
                tracing::info!(writer = self.writer.0, term = %self.term, ?state, "the writer's office");
            }
            *told = office;
            true
        });
        if office.is_headless() && self.served.load(Ordering::Acquire) {
            // Behind the word to the sessions: by now nobody takes an answer from the writer.
            let written = self.replicator.snapshot().report.write;
            self.reads.go_by_majority(self.writer, written);
        }
    }

    /// What a node lacks of the proxy's own things, for the view.
    pub(super) fn note_missing(&self, missing: Option<&String>) {
        if let Some(what) = missing
            && self.view().missing.is_none()
        {
            tracing::error!("{what}: what is written may not reach other nodes");
        }
        self.view.rcu(|view| {
            let mut view = View::clone(view);
            view.missing = missing.cloned();
            view
        });
    }

    /// Up to where every node that is owed it has the writer's history.
    pub(super) fn everywhere(&self) -> Lsn {
        self.replicator.snapshot().report.flush
    }

    /// Carries what replication knows into the view.
    pub(super) async fn look(&self) {
        loop {
            self.carry();
            tokio::select! {
                () = self.watching.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    /// Once, so that the view is as true as can be from here on.
    pub(super) fn carry(&self) {
        if self.cancel.is_cancelled() {
            // That its appliers have ended says nothing of a node: what it has, it has.
            self.tell_who_serves();
            return;
        }
        let now = self.replicator.snapshot();
        let mut behind_since = self
            .behind_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (node, follower) in &now.followers {
            if follower.place < now.report.write {
                behind_since.entry(*node).or_insert_with(Instant::now);
            } else {
                behind_since.remove(node);
            }
        }
        let inherits = self
            .inherits
            .is_some_and(|since| since.elapsed() < INHERITED);
        self.view.rcu(|view| {
            let mut view = View::clone(view);
            view.written = now.report.write;
            view.everywhere = now.report.flush;
            view.pending_units = now.pending_units;
            view.databases.clone_from(&now.databases);
            view.asleep.clone_from(&now.asleep);
            view.held.clone_from(&now.held);
            for (node, follower) in &now.followers {
                let behind = behind_since.get(node).map(Instant::elapsed);
                let databases = now.databases.len();
                let entry = &mut view.nodes[node.0];
                show(entry, follower, now.decoded, databases, inherits);
                view.nodes[node.0].lag_seconds = behind.unwrap_or_default().as_secs_f64();
                view.nodes[node.0].indexes_owed = now.indexes_owed.get(node).copied().unwrap_or(0);
            }
            count(&mut view);
            view
        });
        drop(behind_since);
        self.tell_who_serves();
        self.tell_office();
    }
}

/// Carries what replication knows of a follower into its entry. What the probes say of a dead node
/// comes first: its appliers may not have noticed yet. `inherits`: who was in sync a moment ago, under another writer,
/// is so still.
fn show(
    entry: &mut NodeView,
    follower: &FollowerSnapshot,
    decoded: Lsn,
    databases: usize,
    inherits: bool,
) {
    let known = &follower.known;
    entry.lag_bytes = decoded.0.saturating_sub(follower.place.0);
    (entry.queue_units, entry.queue_bytes) = follower.queue;
    let mut failures = known.failures.values().chain(known.stalls.values());
    let failure = failures.next().map(|f| f.text.clone());
    let at_work = databases > 0 && known.connected >= databases && failure.is_none();
    entry.problem = known.fenced.clone().or(failure);
    entry.status = match entry.status {
        Status::Down => Status::Down,
        _ if known.fenced.is_some() => Status::Fenced,
        Status::InSync if inherits && entry.problem.is_none() => Status::InSync,
        _ if at_work => Status::InSync,
        _ => Status::CatchingUp,
    };
}

/// Counts the majority anew. Without the writer nothing can be written, whoever else is there.
fn count(view: &mut View) {
    let in_sync = |node: &&NodeView| node.status == Status::InSync;
    view.in_sync = view.nodes.iter().filter(in_sync).count();
    let writer = view.nodes[view.writer.0].status == Status::InSync;
    view.quorum = writer && view.in_sync > view.nodes.len() / 2;
}

pub(super) fn first_view(config: &Config, prepared: &Prepared, before: Option<&Before>) -> View {
    let known = |at: usize| before.and_then(|before| before.view.nodes.get(at));
    let planned = before.is_some_and(|before| before.planned);
    let node = |(at, node): (usize, &crate::config::Node)| NodeView {
        id: NodeId(at),
        name: node.name.clone(),
        host: node.host.clone(),
        port: node.port,
        status: match known(at).map(|node| node.status) {
            _ if NodeId(at) == prepared.writer => Status::InSync,
            Some(Status::Down) if !prepared.armed.contains(&NodeId(at)) => Status::Down,
            Some(Status::InSync) if planned => Status::InSync,
            _ => Status::CatchingUp,
        },
        is_writer: NodeId(at) == prepared.writer,
        last_heartbeat: known(at).and_then(|node| node.last_heartbeat),
        latency_ms: known(at).and_then(|node| node.latency_ms),
        lag_bytes: 0,
        lag_seconds: 0.0,
        indexes_owed: 0,
        queue_units: 0,
        queue_bytes: 0,
        problem: None,
    };
    View {
        nodes: config.nodes.iter().enumerate().map(node).collect(),
        writer: prepared.writer,
        epoch: prepared.epoch,
        quorum: false,
        in_sync: 0,
        written: Lsn::default(),
        everywhere: Lsn::default(),
        pending_units: 0,
        databases: Vec::new(),
        asleep: Vec::new(),
        held: None,
        missing: None,
    }
}
