//! The steward's shell: brings the cluster up, keeps the view fresh, and does what sessions ask of it.
//!
//! Everyone else knows the cluster by this handle and by the view. Guards promises 1 and 2 by starting
//! streams and appliers only from places that the nodes themselves remember.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bring_up::{BringUp, BringUpError, DatabasePlaces, Prepared};
use super::catalogs::Catalogs;
use super::follower::{Arming, Follower};
use super::guests::Guests;
use super::metadata;
use super::reads::Reads;
use super::replicator::{FollowerSnapshot, RETRY, Replicator};
use super::service::OwnNames;
use super::view::{NodeView, Status, View};
use crate::config::Config;
use crate::ids::{Epoch, Lsn, NodeId, UnitId, origin_name, slot_name};
use crate::node::apply::start::ApplierSettings;
use crate::node::backend::{Login, Secret};
use crate::node::control::{self, Control, ControlError};
use crate::node::schema::APPLIER_ROLE;
use crate::node::stream::StreamSettings;

/// For opening streams and appliers.
const CONNECT: Duration = Duration::from_secs(5);

/// The running cluster.
pub struct Steward {
    pub(super) config: Arc<Config>,
    pub(super) control: Control,
    pub(super) replicator: Arc<Replicator>,
    view: ArcSwap<View>,
    /// Since when each follower lacks something that a majority has.
    behind_since: Mutex<BTreeMap<NodeId, Instant>>,
    catalogs: Arc<Catalogs>,
    pub(super) reads: Arc<Reads>,
    pub(super) writer: NodeId,
    pub(super) guests: Arc<Guests>,
    epoch: Epoch,
    term: Epoch,
    version: u32,
    pub(super) arming: Arc<Arming>,
    pub(super) tasks: TaskTracker,
    pub(super) cancel: CancellationToken,
}

impl Steward {
    /// Brings the cluster up and starts streams, appliers and probes.
    pub async fn start(config: Arc<Config>) -> Result<Arc<Self>, BringUpError> {
        let control = Control::new(&config);
        let prepared = BringUp::new(&config, &control).run().await?;
        let catalogs = Arc::new(Catalogs::default());
        let reads = Arc::new(Reads::new(&config));
        let tasks = TaskTracker::new();
        let cancel = CancellationToken::new();
        let all = (0..config.nodes.len()).map(NodeId);
        let followers: Vec<NodeId> = all.filter(|node| *node != prepared.writer).collect();
        let replicator = Replicator::new(
            config.nodes.len(),
            &followers,
            Arc::clone(&catalogs),
            Arc::clone(&reads),
            tasks.clone(),
            cancel.clone(),
        );
        for (node, why) in &prepared.lost {
            replicator.fence(*node, why.clone());
        }
        let steward = Arc::new(Self {
            view: ArcSwap::from_pointee(first_view(&config, &prepared)),
            behind_since: Mutex::default(),
            catalogs,
            reads,
            guests: Arc::default(),
            control,
            replicator,
            writer: prepared.writer,
            epoch: prepared.epoch,
            term: prepared.term,
            version: prepared.version,
            arming: Arc::new(prepared.arming),
            tasks,
            cancel,
            config,
        });
        // The admin database is the one that is likely to sleep; the first one's stream releases commits.
        let (last, first): (Vec<_>, Vec<_>) = prepared
            .databases
            .iter()
            .partition(|(database, _)| **database == steward.control.database);
        for (database, places) in first.into_iter().chain(last) {
            steward.replicate(database, places);
        }
        for at in 0..steward.config.nodes.len() {
            let this = Arc::clone(&steward);
            steward
                .tasks
                .spawn(async move { this.probe(NodeId(at)).await });
        }
        let this = Arc::clone(&steward);
        steward.tasks.spawn(async move { this.look().await });
        let this = Arc::clone(&steward);
        steward.tasks.spawn(async move {
            let tending = this.catalogs.tend(&this.control, this.writer);
            this.cancel.run_until_cancelled(tending).await;
        });
        let this = Arc::clone(&steward);
        steward
            .tasks
            .spawn(async move { this.record_fences().await });
        let this = Arc::clone(&steward);
        steward.tasks.spawn(async move { this.audit().await });
        let this = Arc::clone(&steward);
        steward
            .tasks
            .spawn(async move { this.watch_builds().await });
        let this = Arc::clone(&steward);
        steward.tasks.spawn(async move { this.serve_reads().await });
        let this = Arc::clone(&steward);
        steward.tasks.spawn(async move { this.mind_sleep().await });
        tracing::info!(epoch = %steward.epoch, writer = steward.writer.0, "cluster is up");
        Ok(steward)
    }

    /// The cluster at this moment.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// What the databases' names stand for.
    pub fn catalogs(&self) -> &Catalogs {
        &self.catalogs
    }

    /// What sessions that read from any node must know.
    pub fn reads(&self) -> &Arc<Reads> {
        &self.reads
    }

    /// A connection to the writer that is kept for the next question, opened where there is none.
    pub(super) async fn on_writer<'a>(
        &self,
        client: &'a mut Option<Client>,
    ) -> Result<&'a Client, ControlError> {
        if let Some(client) = client {
            return Ok(client);
        }
        let database = &self.control.database;
        Ok(client.insert(self.control.connect(self.writer, database).await?))
    }

    /// The end of what has been put into the writer's log.
    pub(super) async fn writers_end(&self) -> Option<Lsn> {
        let database = &self.control.database;
        let client = self.control.connect(self.writer, database).await.ok()?;
        let sql = "select pg_current_wal_insert_lsn()::text";
        let row = client.query_one(sql, &[]).await.ok()?;
        // What an open transaction wrote lies in memory until somebody commits, and the stream sees nothing of it
        // before: this commits at once, and holds no row.
        let flush = "select pg_logical_emit_message(true, 'synapsedb flush', '')";
        client.batch_execute(flush).await.ok()?;
        row.get::<_, String>(0).parse().ok()
    }

    /// Whether the database has a stream.
    pub fn replicates(&self, database: &str) -> bool {
        self.replicator.has_database(database)
    }

    /// The node that runs the writes.
    pub fn writer(&self) -> NodeId {
        self.writer
    }

    fn replicate(&self, database: &str, places: &DatabasePlaces) {
        self.catalogs.mark_stale(database, None);
        let login = |user: &str, secret: Secret| Login {
            user: user.to_owned(),
            database: database.to_owned(),
            secret,
            parameters: Vec::new(),
        };
        let admin_secret = self
            .control
            .password()
            .map_or(Secret::None, |p| Secret::Password(p.to_owned()));
        let replication = &self.config.replication;
        let settings = StreamSettings {
            address: self.control.address(self.writer).clone(),
            login: login(self.control.user(), admin_secret),
            slot: slot_name(database),
            offices: vec![(self.term, Lsn(0))],
            version: self.version,
            spill_directory: replication.spill_directory.clone(),
            report_interval: replication.report_interval(),
            sender_timeout: Duration::from_millis(replication.wal_sender_timeout_ms),
            timeout: CONNECT,
        };
        let mut followers = Vec::new();
        for at in (0..self.config.nodes.len()).filter(|at| NodeId(*at) != self.writer) {
            let node = NodeId(at);
            let mut login = login(
                APPLIER_ROLE,
                Secret::Password(self.arming.applier_password.clone()),
            );
            login.parameters = vec![(
                "application_name".to_owned(),
                "synapsedb applier".to_owned(),
            )];
            followers.push(Follower {
                node,
                name: self.config.nodes[at].name.clone(),
                place: places.followers.get(&node).copied().unwrap_or_default(),
                settings: ApplierSettings {
                    address: self.control.address(node).clone(),
                    login,
                    term: self.term,
                    horizon: Arc::default(),
                    superuser: self.control.user().to_owned(),
                    runner_secret: self.arming.runner_secret.clone(),
                    timeout: CONNECT,
                },
                control: self.control.clone(),
                arming: Arc::clone(&self.arming),
                armed: places.followers.contains_key(&node),
            });
        }
        let bytes = usize::try_from(replication.queue_max_bytes()).unwrap_or(usize::MAX);
        self.replicator
            .add_database(settings, places.start, followers, bytes);
    }

    /// A database was made on every node: it is replicated from here on, before anybody uses it.
    pub async fn database_created(&self, database: &str) -> Result<(), ControlError> {
        let origin = origin_name(self.term, database);
        let mut start = Lsn::default();
        let mut followers = BTreeMap::new();
        for at in 0..self.config.nodes.len() {
            let node = NodeId(at);
            let client = self.control.connect(node, database).await?;
            control::install(&client).await?;
            self.arming.arm(&client, &self.control).await?;
            if node == self.writer {
                start = control::create_slot(&client, &slot_name(database)).await?;
            } else {
                control::create_origin(&client, &origin).await?;
                followers.insert(node, UnitId::NOTHING);
            }
        }
        self.replicate(database, &DatabasePlaces { start, followers });
        tracing::info!(database, "a new database is replicated");
        Ok(())
    }

    /// A database is about to be dropped: its stream and slot would hold it.
    pub async fn database_dropping(&self, database: &str) -> Result<(), ControlError> {
        self.replicator.remove_database(database);
        self.catalogs.forget(database);
        for at in 0..self.config.nodes.len() {
            let client = self
                .control
                .connect(NodeId(at), &self.control.database)
                .await?;
            control::drop_slot(&client, &slot_name(database)).await?;
            control::end_stale_appliers(&client, database).await?;
        }
        Ok(())
    }

    /// The database that was about to be dropped is still there.
    pub async fn database_kept(&self, database: &str) -> Result<(), ControlError> {
        self.database_created(database).await
    }

    /// Waits until everything the writer has committed so far is on a majority. False where that can't
    /// be known within `limits.commit_wait_ms`.
    pub async fn wait_quorum(&self) -> bool {
        let wait = async {
            let lsn = self.writers_end().await?;
            self.replicator.wait_written(lsn).await;
            Some(())
        };
        let limit = self.config.limits.commit_wait();
        matches!(tokio::time::timeout(limit, wait).await, Ok(Some(())))
    }

    /// Something that had to happen on a node did not: it differs.
    pub fn fence(&self, node: NodeId, why: &str) {
        self.replicator.fence(node, why.to_owned());
    }

    /// A fenced node is owed nothing, and the slots move on without it: a proxy that starts must know, so
    /// a majority, the writer in it, records it before they may.
    async fn record_fences(&self) {
        loop {
            let nodes = tokio::select! {
                () = self.cancel.cancelled() => return,
                nodes = self.replicator.fencing() => nodes,
            };
            for node in nodes {
                if self.record_fence(node).await {
                    self.replicator.fence_recorded(node);
                }
            }
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn record_fence(&self, fenced: NodeId) -> bool {
        let name = &self.config.nodes[fenced.0].name;
        let mut recorded = Vec::new();
        for at in 0..self.config.nodes.len() {
            let write = async {
                let node = NodeId(at);
                let client = self.control.connect(node, &self.control.database).await?;
                control::write_fence(&client, self.epoch, name).await
            };
            match tokio::time::timeout(CONNECT, write).await {
                Ok(Ok(true)) => recorded.push(NodeId(at)),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(node = at, %error, "fence could not be recorded"),
                Err(_) => tracing::warn!(node = at, "fence could not be recorded in time"),
            }
        }
        recorded.contains(&self.writer) && recorded.len() > self.config.nodes.len() / 2
    }

    /// Writes what the metadata views show into the writer's copy of `database`, and says which of their
    /// names are the user's there. `in_flight` is, by node, how many connections work for clients.
    pub async fn refresh_metadata(
        &self,
        database: &str,
        in_flight: &BTreeMap<NodeId, usize>,
    ) -> Result<OwnNames, ControlError> {
        let client = self.control.connect(self.writer, database).await?;
        self.carry();
        metadata::refresh(&client, &self.view(), in_flight).await?;
        metadata::own_names(&client).await
    }

    /// Asks a node again and again whether it lives.
    async fn probe(&self, node: NodeId) {
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
                () = self.cancel.cancelled() => return,
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
                () = self.cancel.cancelled() => return,
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
        if let Some(known) = client.as_ref().filter(|known| !known.is_closed()) {
            let started = Instant::now();
            if known.simple_query("select 1").await.is_ok() {
                return Ok(started.elapsed());
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
            } else if entry.status != Status::Fenced {
                entry.status = Status::Down;
            }
            count(&mut view);
            view
        });
        if let (Some(took), Some(load)) = (took, self.reads.loads.get(node)) {
            load.probed(took);
        }
        self.tell_who_serves();
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
    async fn look(&self) {
        loop {
            self.carry();
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    /// Once, so that the view is as true as can be from here on.
    fn carry(&self) {
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
                show(&mut view.nodes[node.0], follower, now.decoded, databases);
                view.nodes[node.0].lag_seconds = behind.unwrap_or_default().as_secs_f64();
                view.nodes[node.0].indexes_owed = now.indexes_owed.get(node).copied().unwrap_or(0);
            }
            count(&mut view);
            view
        });
        drop(behind_since);
        self.tell_who_serves();
    }

    /// Ends streams and appliers. What they have not done is done at the next start.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await;
    }
}

/// Carries what replication knows of a follower into its entry. What the probes say of a dead node
/// comes first: its appliers may not have noticed yet.
fn show(entry: &mut NodeView, follower: &FollowerSnapshot, decoded: Lsn, databases: usize) {
    let known = &follower.known;
    entry.lag_bytes = decoded.0.saturating_sub(follower.place.0);
    (entry.queue_units, entry.queue_bytes) = follower.queue;
    let failure = known.failures.values().next().map(|f| f.text.clone());
    entry.problem = known.fenced.clone().or(failure);
    let at_work = databases > 0 && known.connected >= databases && known.failures.is_empty();
    entry.status = match entry.status {
        _ if known.fenced.is_some() => Status::Fenced,
        Status::Down => Status::Down,
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

fn first_view(config: &Config, prepared: &Prepared) -> View {
    let node = |(at, node): (usize, &crate::config::Node)| NodeView {
        id: NodeId(at),
        name: node.name.clone(),
        host: node.host.clone(),
        port: node.port,
        status: if NodeId(at) == prepared.writer {
            Status::InSync
        } else {
            Status::CatchingUp
        },
        is_writer: NodeId(at) == prepared.writer,
        last_heartbeat: None,
        latency_ms: None,
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
