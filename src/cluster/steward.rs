//! The steward's shell: brings the cluster up, keeps the view fresh, and does what sessions ask of it.
//!
//! Everyone else knows the cluster by this handle and by the view. Guards promises 1 and 2 by starting
//! streams and appliers only from places that the nodes themselves remember.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bring_up::{DatabasePlaces, Prepared};
use super::catalogs::Catalogs;
use super::commits::{Commits, Former};
use super::follower::{Arming, Follower};
use super::guests::Guests;
use super::jumps::Jumps;
use super::keeper::Keeper;
use super::meeting::Meeting;
use super::metadata;
use super::office::Told;
use super::probes::{Standing, first_view};
use super::reads::Reads;
use super::replicator::{RETRY, Replicator};
use super::service::OwnNames;
use super::view::View;
use crate::config::Config;
use crate::ids::{Epoch, Lsn, NodeId, UnitId, origin_name, slot_name};
use crate::node::apply::start::ApplierSettings;
use crate::node::backend::{Login, Secret};
use crate::node::canary::Canaries;
use crate::node::control::{self, Control, ControlError};
use crate::node::schema::APPLIER_ROLE;
use crate::node::spares::Spares;
use crate::node::stream::StreamSettings;

/// For a writer to begin to serve.
const MOMENT: Duration = Duration::from_millis(400);
/// So many former terms are kept of which nothing can be told.
const TERMS: usize = 8;
/// For opening streams and appliers.
const CONNECT: Duration = Duration::from_secs(5);

/// The running cluster.
pub struct Steward {
    pub(super) config: Arc<Config>,
    pub(super) control: Control,
    pub(super) replicator: Arc<Replicator>,
    pub(super) view: ArcSwap<View>,
    /// Since when each follower lacks something that a majority has.
    pub(super) behind_since: Mutex<BTreeMap<NodeId, Instant>>,
    catalogs: Arc<Catalogs>,
    pub(super) reads: Arc<Reads>,
    pub(super) writer: NodeId,
    pub(super) guests: Arc<Guests>,
    epoch: Epoch,
    pub(super) term: Epoch,
    /// When the writer's terms of office began.
    offices: BTreeMap<Epoch, Lsn>,
    pub(super) version: u32,
    pub(super) arming: Arc<Arming>,
    pub(super) office: Told,
    pub(super) canaries: Arc<Canaries>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) spares: Arc<Spares>,
    pub(super) commits: Arc<Commits>,
    /// Terms of which sessions have not been told what became of their commits.
    former: Mutex<Vec<Former>>,
    /// How the writer does.
    pub(super) standing: watch::Sender<Standing>,
    /// It has served in this term.
    pub(super) served: AtomicBool,
    /// When it began, where it followed in order: nodes are what they were until then.
    pub(super) inherits: Option<Instant>,
    /// All that the writer had at its begin was on a majority then.
    pub(super) on_majority: bool,
    pub(super) tasks: TaskTracker,
    pub(super) cancel: CancellationToken,
    pub(super) watchers: TaskTracker,
    pub(super) watching: CancellationToken,
}

/// The steward whose time is over.
pub struct Before {
    /// As it saw the cluster last.
    pub view: Arc<View>,
    /// Its writer has left office in order, and the next one has everything.
    pub planned: bool,
    /// A majority, the old writer in it, has all that the next one has.
    pub majority: bool,
}

/// What all stewards of a process have, one after the other.
pub struct Common {
    pub(super) config: Arc<Config>,
    pub(super) control: Control,
    pub(super) catalogs: Arc<Catalogs>,
    pub(super) reads: Arc<Reads>,
    pub(super) commits: Arc<Commits>,
    pub(super) jumps: Arc<Jumps>,
    pub(super) guests: Arc<Guests>,
    pub(super) arming: Arc<Arming>,
    pub(super) office: Told,
    pub(super) canaries: Arc<Canaries>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) spares: Arc<Spares>,
}

impl Steward {
    /// Starts streams, appliers and probes of a cluster that has been brought up.
    /// `before` is the one whose time is over, and `former` what sessions are to be told of it.
    pub fn start(
        common: &Arc<Common>,
        prepared: Prepared,
        before: Option<&Before>,
        former: Vec<Former>,
    ) -> Arc<Self> {
        let config = Arc::clone(&common.config);
        let tasks = TaskTracker::new();
        let cancel = CancellationToken::new();
        let all = (0..config.nodes.len()).map(NodeId);
        let followers: Vec<NodeId> = all.filter(|node| *node != prepared.writer).collect();
        let planned = before.is_some_and(|before| before.planned);
        common.reads.new_term(planned);
        let replicator = Replicator::new(
            config.nodes.len(),
            &followers,
            common,
            tasks.clone(),
            cancel.clone(),
        );
        for (node, why) in &prepared.lost {
            replicator.fence(*node, why.clone());
        }
        let steward = Arc::new(Self {
            view: ArcSwap::from_pointee(first_view(&config, &prepared, before)),
            behind_since: Mutex::default(),
            catalogs: Arc::clone(&common.catalogs),
            reads: Arc::clone(&common.reads),
            guests: Arc::clone(&common.guests),
            control: common.control.clone(),
            replicator,
            writer: prepared.writer,
            epoch: prepared.epoch,
            term: prepared.term,
            offices: prepared.offices,
            version: prepared.version,
            arming: Arc::clone(&common.arming),
            office: common.office.clone(),
            canaries: Arc::clone(&common.canaries),
            keeper: Arc::clone(&common.keeper),
            spares: Arc::clone(&common.spares),
            commits: Arc::clone(&common.commits),
            former: Mutex::new(former),
            standing: watch::Sender::new(Standing::Beginning),
            served: AtomicBool::new(false),
            inherits: planned.then(Instant::now),
            on_majority: before.is_some_and(|before| before.majority),
            tasks,
            cancel,
            watchers: TaskTracker::new(),
            watching: CancellationToken::new(),
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
        steward.begin();
        tracing::info!(epoch = %steward.epoch, term = %steward.term, writer = steward.writer.0, "cluster is up");
        steward
    }

    /// Until the writer serves, or for a moment: what is not needed for that takes nothing from it before.
    async fn settled(&self) {
        let mut standing = self.standing.subscribe();
        let serves = standing.wait_for(|standing| *standing != Standing::Beginning);
        // Any of them is a reason to go on.
        tokio::select! {
            _ = serves => {}
            () = self.cancel.cancelled() => {}
            () = tokio::time::sleep(MOMENT) => {}
        }
    }

    /// A little later: those who have waited for a writer come first.
    async fn at_leisure(&self, pause: Duration) {
        self.cancel
            .run_until_cancelled(tokio::time::sleep(pause))
            .await;
    }

    /// Starts what goes on beside the streams.
    fn begin(self: &Arc<Self>) {
        for at in 0..self.config.nodes.len() {
            let this = Arc::clone(self);
            self.watchers.spawn(async move {
                this.settled().await;
                if this.view().nodes[at].last_heartbeat.is_some() {
                    // It was well a moment ago.
                    this.at_leisure(MOMENT / 2).await;
                }
                this.probe(NodeId(at)).await;
            });
        }
        let this = Arc::clone(self);
        self.watchers.spawn(async move { this.look().await });
        self.spawn(|this| async move {
            let tending = this.catalogs.tend(&this.control, this.writer);
            this.cancel.run_until_cancelled(tending).await;
        });
        self.spawn(|this| async move { this.record_fences().await });
        self.spawn(|this| async move {
            this.settled().await;
            this.at_leisure(MOMENT).await;
            this.audit().await;
        });
        self.spawn(|this| async move {
            this.settled().await;
            this.at_leisure(MOMENT).await;
            this.watch_builds().await;
        });
        self.spawn(|this| async move { this.serve_reads().await });
        self.spawn(|this| async move {
            this.settled().await;
            this.mind_sleep().await;
        });
        self.spawn(|this| async move { this.settle_in().await });
        self.spawn(|this| async move { this.mind_slots().await });
        self.spawn(|this| async move { this.mind_sequences().await });
    }

    fn spawn<F>(self: &Arc<Self>, work: impl FnOnce(Arc<Self>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(work(Arc::clone(self)));
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
        // A kept connection may lead to a server that stands still.
        let asked = tokio::time::timeout(CONNECT, self.ask_writers_end()).await;
        asked.ok().flatten()
    }

    async fn ask_writers_end(&self) -> Option<Lsn> {
        let (keeper, database) = (&self.keeper, &self.control.database);
        let client = keeper.client(&self.control, self.writer, database);
        let client = client.await.ok()?;
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
        self.catalogs.expect(database);
        let settings = self.stream_settings(self.writer, database);
        let mut followers = Vec::new();
        for at in (0..self.config.nodes.len()).filter(|at| NodeId(*at) != self.writer) {
            let node = NodeId(at);
            followers.push(Follower {
                node,
                name: self.config.nodes[at].name.clone(),
                place: places.followers.get(&node).copied().unwrap_or_default(),
                settings: self.applier_settings(node, database),
                control: self.control.clone(),
                arming: Arc::clone(&self.arming),
                armed: places.followers.contains_key(&node),
                meeting: Meeting {
                    writer: self.writer,
                    term: self.term,
                },
            });
        }
        let bytes =
            usize::try_from(self.config.replication.queue_max_bytes()).unwrap_or(usize::MAX);
        self.replicator
            .add_database(settings, places.start, followers, bytes);
    }

    /// How a node's slot of this database is read.
    pub(super) fn stream_settings(&self, node: NodeId, database: &str) -> StreamSettings {
        let replication = &self.config.replication;
        let offices = self.offices.iter();
        StreamSettings {
            address: self.control.address(node).clone(),
            login: Login {
                user: self.control.user().to_owned(),
                database: database.to_owned(),
                secret: self.control.secret(),
                parameters: Vec::new(),
            },
            slot: slot_name(database),
            offices: offices.map(|(term, lsn)| (*term, *lsn)).collect(),
            version: self.version,
            spill_directory: replication.spill_directory.clone(),
            report_interval: replication.report_interval(),
            sender_timeout: Duration::from_millis(replication.wal_sender_timeout_ms),
            timeout: CONNECT,
            spares: Arc::clone(&self.spares),
        }
    }

    /// How this database's applier gets to a node.
    pub(super) fn applier_settings(&self, node: NodeId, database: &str) -> ApplierSettings {
        let name = (
            "application_name".to_owned(),
            "synapsedb applier".to_owned(),
        );
        ApplierSettings {
            address: self.control.address(node).clone(),
            login: Login {
                user: APPLIER_ROLE.to_owned(),
                database: database.to_owned(),
                secret: Secret::Password(self.arming.applier_password.clone()),
                parameters: vec![name],
            },
            term: self.term,
            horizon: Arc::default(),
            superuser: self.control.user().to_owned(),
            runner_secret: self.arming.runner_secret.clone(),
            timeout: CONNECT,
            spares: Arc::clone(&self.spares),
        }
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
                control::ensure_slot(&client, &slot_name(database)).await?;
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
        self.keeper.leave(database);
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

    /// A majority has all that the writer has: what became of commits under way in former terms is certain now.
    pub(super) fn tell_former(&self) {
        let mut former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        former.retain_mut(|term| {
            let last = term.last.take();
            let told = last.is_some();
            if let Some(last) = last {
                self.commits.end(term.term, last);
            }
            !told
        });
    }

    /// The terms of which nothing was told so far.
    pub(super) fn untold(&self) -> Vec<Former> {
        let former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        let long = former.len().saturating_sub(TERMS);
        former[long..].to_vec()
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

    /// Ends streams and appliers, so that another steward may begin. What they have not done is done then. Probes go on,
    /// so that the view tells the truth meanwhile.
    pub async fn abdicate(&self) {
        self.cancel.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(CONNECT, self.tasks.wait()).await;
    }

    /// Ends everything.
    pub async fn stop(&self) {
        self.watching.cancel();
        self.abdicate().await;
        self.watchers.close();
        let _ = tokio::time::timeout(CONNECT, self.watchers.wait()).await;
    }
}
