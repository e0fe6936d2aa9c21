//! The steward's shell: brings the cluster up, keeps the view fresh, and does what sessions ask of it.
//!
//! Everyone else knows the cluster by this handle and by the view. Guards promises 1 and 2 by starting
//! streams and appliers only from places that the nodes themselves remember.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bring_up::{BringUp, BringUpError, DatabasePlaces, Prepared};
use super::catalogs::Catalogs;
use super::follower::{Arming, Follower};
use super::replicator::Replicator;
use super::view::{NodeView, Status, View};
use crate::config::Config;
use crate::ids::{Epoch, Lsn, NodeId, origin_name, slot_name};
use crate::node::apply::applier::ApplierSettings;
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
    replicator: Arc<Replicator>,
    view: ArcSwap<View>,
    catalogs: Arc<Catalogs>,
    writer: NodeId,
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
        let tasks = TaskTracker::new();
        let cancel = CancellationToken::new();
        let all = (0..config.nodes.len()).map(NodeId);
        let followers: Vec<NodeId> = all.filter(|node| *node != prepared.writer).collect();
        let replicator = Replicator::new(
            config.nodes.len(),
            &followers,
            Arc::clone(&catalogs),
            tasks.clone(),
            cancel.clone(),
        );
        for (node, why) in &prepared.lost {
            replicator.fence(*node, why.clone());
        }
        let steward = Arc::new(Self {
            view: ArcSwap::from_pointee(first_view(&config, &prepared)),
            catalogs,
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
        for (database, places) in &prepared.databases {
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

    /// The node that runs the writes.
    pub fn writer(&self) -> NodeId {
        self.writer
    }

    fn replicate(&self, database: &str, places: &DatabasePlaces) {
        self.catalogs.mark_stale(database);
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
            term: self.term,
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
                place: places.followers.get(&node).copied().unwrap_or_default(),
                settings: ApplierSettings {
                    address: self.control.address(node).clone(),
                    login,
                    term: self.term,
                    superuser: self.control.user().to_owned(),
                    runner_secret: self.arming.runner_secret.clone(),
                    timeout: CONNECT,
                },
                control: self.control.clone(),
                arming: Arc::clone(&self.arming),
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
                followers.insert(node, Lsn::default());
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
            let client = self
                .control
                .connect(self.writer, &self.control.database)
                .await
                .ok()?;
            let row = client
                .query_one("select pg_current_wal_insert_lsn()::text", &[])
                .await
                .ok()?;
            let lsn: Lsn = row.get::<_, String>(0).parse().ok()?;
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

    /// Writes what the metadata views show into the writer's copy of `database`.
    pub async fn refresh_metadata(&self, database: &str) -> Result<(), ControlError> {
        let client = self.control.connect(self.writer, database).await?;
        let view = self.view();
        let mut values = Vec::new();
        for node in &view.nodes {
            let quote = |text: &str| format!("'{}'", text.replace('\'', "''"));
            let heartbeat = node
                .last_heartbeat
                .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            let heartbeat = heartbeat.map_or("null".to_owned(), |at| {
                format!("to_timestamp({})", at.as_secs_f64())
            });
            let latency = node
                .latency_ms
                .map_or("null".to_owned(), |ms| format!("{ms:.3}"));
            values.push(format!(
                "({}, {}, {}, {}, {}, {}, {heartbeat}, {latency}::float8, 0, {}, {:.3})",
                node.id.0 + 1,
                quote(&node.name),
                quote(&node.host),
                node.port,
                quote(node.status.name()),
                node.is_writer,
                node.lag_bytes,
                node.lag_seconds,
            ));
        }
        let sql = format!(
            "begin; lock table synapsedb.cluster_nodes_data in share row exclusive mode; \
             delete from synapsedb.cluster_nodes_data; insert into synapsedb.cluster_nodes_data \
             (node_id, node_name, host, port, status, is_writer, last_heartbeat, latency_ms, in_flight, lag_bytes, lag_seconds) \
             values {}; insert into synapsedb.quorum_data (has_quorum) values ({}) \
             on conflict (only_row) do update set has_quorum = excluded.has_quorum, written_at = now(); commit",
            values.join(", "),
            view.quorum
        );
        Ok(client.batch_execute(&sql).await?)
    }

    /// Asks a node again and again whether it lives.
    async fn probe(&self, node: NodeId) {
        let interval = self.config.health.probe_interval();
        let mut client: Option<Client> = None;
        let mut silent = 0;
        loop {
            let started = Instant::now();
            let ask = async {
                if client.as_ref().is_none_or(Client::is_closed) {
                    client = Some(self.control.connect(node, &self.control.database).await?);
                }
                if let Some(client) = &client {
                    client.simple_query("select 1").await?;
                }
                Ok::<_, ControlError>(())
            };
            let answer = tokio::select! {
                () = self.cancel.cancelled() => return,
                answer = tokio::time::timeout(interval, ask) => answer,
            };
            match answer {
                Ok(Ok(())) => {
                    silent = 0;
                    self.note_probe(node, Some(started.elapsed()));
                }
                // A refused connection says it at once; silence only after several probes.
                Ok(Err(error)) => {
                    tracing::debug!(node = node.0, %error, "probe failed");
                    client = None;
                    self.note_probe(node, None);
                }
                Err(_) => {
                    client = None;
                    silent += 1;
                    if silent >= self.config.health.probe_failures {
                        self.note_probe(node, None);
                    }
                }
            }
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(interval.saturating_sub(started.elapsed())) => {}
            }
        }
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
                    entry.status = Status::CatchingUp;
                }
            } else if entry.status != Status::Fenced {
                entry.status = Status::Down;
            }
            view
        });
    }

    /// Carries what replication knows into the view.
    async fn look(&self) {
        let mut behind_since: BTreeMap<NodeId, Instant> = BTreeMap::new();
        loop {
            let now = self.replicator.snapshot();
            for (node, (_, place)) in &now.followers {
                if *place < now.report.write {
                    behind_since.entry(*node).or_insert_with(Instant::now);
                } else {
                    behind_since.remove(node);
                }
            }
            self.view.rcu(|view| {
                let mut view = View::clone(view);
                view.quorum = now.quorum;
                view.in_sync = now.in_sync;
                view.written = now.report.write;
                view.everywhere = now.report.flush;
                view.pending_units = now.pending_units;
                view.databases.clone_from(&now.databases);
                view.held.clone_from(&now.held);
                for (node, (known, place)) in &now.followers {
                    let entry = &mut view.nodes[node.0];
                    entry.lag_bytes = now.decoded.0.saturating_sub(place.0);
                    let since = behind_since
                        .get(node)
                        .map(|since| since.elapsed().as_secs_f64());
                    entry.lag_seconds = since.unwrap_or(0.0);
                    entry.indexes_owed = now.indexes_owed.get(node).copied().unwrap_or(0);
                    entry.problem = known
                        .fenced
                        .clone()
                        .or_else(|| known.failures.values().next().map(|f| f.text.clone()));
                    let at_work = known.connected >= now.databases.len();
                    entry.status = match entry.status {
                        _ if known.fenced.is_some() => Status::Fenced,
                        _ if at_work && known.failures.is_empty() => Status::InSync,
                        Status::Down => Status::Down,
                        _ => Status::CatchingUp,
                    };
                }
                view
            });
            publish(&self.view.load());
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    /// Ends streams and appliers. What they have not done is done at the next start.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await;
    }
}

/// The gauges an operator watches.
#[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
fn publish(view: &View) {
    metrics::gauge!("synapsedb_nodes_in_sync").set(view.in_sync as f64);
    metrics::gauge!("synapsedb_quorum").set(f64::from(u8::from(view.quorum)));
    metrics::gauge!("synapsedb_pending_units").set(view.pending_units as f64);
    metrics::gauge!("synapsedb_held").set(f64::from(u8::from(view.held.is_some())));
    metrics::gauge!("synapsedb_epoch").set(view.epoch.0 as f64);
    for node in &view.nodes {
        let name = node.name.clone();
        metrics::gauge!("synapsedb_node_lag_bytes", "node" => name.clone())
            .set(node.lag_bytes as f64);
        metrics::gauge!("synapsedb_node_latency_ms", "node" => name.clone())
            .set(node.latency_ms.unwrap_or(f64::NAN));
        let up = f64::from(u8::from(node.status == Status::InSync));
        metrics::gauge!("synapsedb_node_in_sync", "node" => name).set(up);
    }
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
        problem: None,
    };
    View {
        nodes: config.nodes.iter().enumerate().map(node).collect(),
        writer: prepared.writer,
        epoch: prepared.epoch,
        quorum: false,
        in_sync: 1,
        written: Lsn::default(),
        everywhere: Lsn::default(),
        pending_units: 0,
        databases: Vec::new(),
        held: None,
    }
}
