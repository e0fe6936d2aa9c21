//! One follower's work in one database: connect, go on where it ended, apply what comes.
//!
//! Guards promise 2. Units stay in the queue until they are durable; a broken connection is opened
//! again and goes on; a failure that a new connection does not mend is brought before the
//! replicator, which judges it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::Histogram;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::failures::Failure;
use super::meeting::Meeting;
use super::replicator::{RETRY, Replicator};
use crate::engine::care::Care;
use crate::engine::confirm::StreamId;
use crate::ids::{Epoch, NodeId, UnitId, origin_name};
use crate::node::apply::ahead::Ahead;
use crate::node::apply::applier::Applier;
use crate::node::apply::aside::{self, Aside};
use crate::node::apply::error::ApplyError;
use crate::node::apply::start::ApplierSettings;
use crate::node::control::{self, Control, ControlError};
use crate::node::queue::Queue;
use crate::node::schema::APPLIER_ROLE;
use crate::node::unit::Unit;
use crate::wire::scram::verifier::{DEFAULT_ITERATIONS, make_verifier};

/// A unit that can't be applied is tried again at most this far apart.
const STUCK_RETRY_MAX: Duration = Duration::from_secs(5);

/// So often applying breaks off at one unit before it is told.
const STALL: u32 = 3;

/// So long may a batch take while another transaction is applied ahead, whose locks may be what it waits for.
const AHEAD_PATIENCE: Duration = Duration::from_secs(2);

/// How long the applier waits for a lock before the reads that hold it are run elsewhere.
const READ_PATIENCE: Duration = Duration::from_secs(1);

/// See [`FollowerTask::gather`]. At 600 small transactions a second on one machine, 10 ms instead of 2 gave all
/// clients a tenth more; more than that gives little.
const GATHER: Duration = Duration::from_millis(10);

/// How an applier's work came to its end.
enum Ended {
    /// The connection or the server failed: at once again.
    Broken,
    /// A unit can't be applied, here and perhaps nowhere: again after a while.
    Stuck,
    /// The node is out.
    Fenced,
}

/// What became of meeting a node that was away.
enum Met {
    Ready,
    NotYet,
    Out,
}

/// A follower of one database, before its applier runs.
pub struct Follower {
    /// Which node.
    pub node: NodeId,
    /// Its configured name.
    pub name: String,
    /// How the applier gets there.
    pub settings: ApplierSettings,
    /// The last unit it had durable when the proxy started.
    pub place: UnitId,
    /// To set the node up where it could not be reached before, and to end a killed proxy's applier.
    pub control: Control,
    /// This process's secrets.
    pub arming: Arc<Arming>,
    /// The node was there when the proxy started, so this database of it has them.
    pub armed: bool,
    /// Whom it follows: to be asked where the node was away when he took office.
    pub meeting: Meeting,
}

/// The secrets a node's schema is armed with, new at each start of the proxy.
#[derive(Clone)]
pub struct Arming {
    /// Of the applier's role.
    pub applier_password: String,
    /// Opens the superuser's runner.
    pub runner_secret: String,
    /// Lets the proxy log commands that no event trigger sees.
    pub log_secret: String,
}

impl Arming {
    /// Sets them in the client's database.
    pub async fn arm(&self, client: &Client, control: &Control) -> Result<(), ControlError> {
        let salt: [u8; 16] = rand::random();
        let verifier = make_verifier(self.applier_password.as_bytes(), &salt, DEFAULT_ITERATIONS);
        control::arm(
            client,
            control.user(),
            &verifier.unwrap_or_default(),
            &self.runner_secret,
            &self.log_secret,
        )
        .await
    }
}

/// What is measured of a follower's applying.
struct Meters {
    seconds: Histogram,
    batch: Histogram,
}

impl Meters {
    fn of(name: &str) -> Self {
        let name = name.to_owned();
        Self {
            seconds: metrics::histogram!("synapsedb_apply_seconds", "node" => name.clone()),
            batch: metrics::histogram!("synapsedb_apply_batch_units", "node" => name),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a batch has few units")]
    fn applied(&self, since: Instant, units: usize) {
        self.seconds.record(since.elapsed());
        self.batch.record(units as f64);
    }
}

/// The unit at which applying broke off last, and how often.
#[derive(Default)]
struct BrokenAt {
    unit: Option<UnitId>,
    times: u32,
}

impl BrokenAt {
    /// Whether it is no matter of a moment.
    fn is_stall(&mut self, unit: UnitId, error: &ApplyError) -> bool {
        if let ApplyError::GivenUp(_) = error {
            return false;
        }
        self.times = if self.unit == Some(unit) {
            self.times + 1
        } else {
            1
        };
        self.unit = Some(unit);
        error.lacks_room() || self.times >= STALL
    }
}

/// The running applier of one follower and database.
pub(super) struct FollowerTask {
    pub(super) follower: Follower,
    pub(super) stream: StreamId,
    pub(super) queue: Arc<Queue>,
    pub(super) replicator: Arc<Replicator>,
    pub(super) aside: Arc<Aside>,
    pub(super) cancel: CancellationToken,
}

impl FollowerTask {
    /// Until cancelled, or until the node is fenced. A transaction under way when it is dropped is
    /// either durable or not there; the next start asks which.
    pub(super) async fn run(self) {
        let cancel = self.cancel.clone();
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.work() => {}
            () = self.aside.run() => {}
        }
    }

    async fn work(&self) {
        let meters = Meters::of(&self.follower.name);
        let mut care = Care::default();
        let mut broken_at = BrokenAt::default();
        let mut pause = RETRY;
        let mut armed = self.follower.armed;
        loop {
            if !armed {
                // The password alone would not show it: databases share the role, yet each has its runner.
                match self.meet().await {
                    Met::Ready => armed = true,
                    Met::Out => return,
                    Met::NotYet => {
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
            match Applier::start(&self.follower.settings).await {
                Ok((applier, place)) => {
                    let known = place.in_log_of(self.follower.settings.term);
                    let end = self.queue.done(place).unwrap_or(known).max(known);
                    self.replicator
                        .applied(self.stream, self.follower.node, place, Some(end));
                    let connected = Connected::new(&self.replicator, self.follower.node);
                    tracing::info!(node = self.follower.node.0, %place, "follower's applier at work");
                    let ended = self
                        .apply(applier, &mut care, &mut broken_at, &meters)
                        .await;
                    drop(connected);
                    match ended {
                        Ended::Fenced => return,
                        Ended::Stuck => pause = (pause * 2).min(STUCK_RETRY_MAX),
                        Ended::Broken => pause = RETRY,
                    }
                }
                Err(error) => self.note_start(&error).await,
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Applies until something fails.
    async fn apply(
        &self,
        mut applier: Applier,
        care: &mut Care,
        broken_at: &mut BrokenAt,
        meters: &Meters,
    ) -> Ended {
        let mut ahead: Option<Ahead> = None;
        loop {
            self.begin_early(&mut applier).await;
            let batch = tokio::select! {
                biased;
                () = self.aside.head().some_offered() => continue,
                batch = self.queue.next_batch(care.single()) => batch,
                error = applier.broken() => {
                    let node = self.follower.node.0;
                    tracing::warn!(node, %error, "the applier's connection ended; opening another");
                    return Ended::Broken;
                }
                () = given_up(ahead.as_ref()) => {
                    ahead = None;
                    continue;
                }
                running = self.queue.next_running(), if ahead.is_none() => {
                    let settings = self.follower.settings.clone();
                    ahead = Some(Ahead::start(settings, running, self.queue.place()));
                    continue;
                }
            };
            let batch = self.gather(batch, care.single()).await;
            let since = Instant::now();
            let Some(last) = batch.last().map(|unit| unit.id) else {
                continue;
            };
            if last.term != applier.term() {
                ahead = None;
                match self.applier_of(last.term).await {
                    Ok(next) => applier = next,
                    Err(error) => {
                        self.note_start(&error).await;
                        return Ended::Broken;
                    }
                }
            }
            applier.take_care(*care);
            let error = match self.apply_batch(&mut applier, &batch, &mut ahead).await {
                Ok(()) => {
                    meters.applied(since, batch.len());
                    let end = self.queue.done(last);
                    self.replicator
                        .applied(self.stream, self.follower.node, last, end);
                    care.applied();
                    continue;
                }
                Err(error) => error,
            };
            // What it holds open could be waited for; and an index that the writer has not may be the cause.
            drop((applier, ahead));
            self.aside.without_early(None).await;
            let node = self.follower.node.0;
            let unit = batch.first().map_or(last, |first| first.id);
            if error.is_passing() {
                if !broken_at.is_stall(unit, &error) {
                    tracing::warn!(node, %error, "applying broke off; going on with a new connection");
                    return Ended::Broken;
                }
                return self.stalled(unit, &error);
            }
            if care.failed(batch.len()) {
                tracing::warn!(node, %error, ?care, "applying failed; trying with more care");
                return Ended::Broken;
            }
            let failure = Failure {
                unit: last,
                text: error.to_string(),
            };
            let out = self
                .replicator
                .failed(self.stream, self.follower.node, failure);
            return if out { Ended::Fenced } else { Ended::Stuck };
        }
    }

    /// It breaks off at the same unit again and again. Trying goes on, a little more rarely.
    fn stalled(&self, unit: UnitId, error: &ApplyError) -> Ended {
        let (id, node) = (self.stream, self.follower.node);
        let stall = Failure {
            unit,
            text: error.to_string(),
        };
        if self.replicator.stalled(id, node, stall) {
            tracing::error!(node = node.0, %error, "a follower can't go on for the time being");
        }
        Ended::Stuck
    }

    /// An applier for another writer's units. The one before has another origin, so both may be there for a moment.
    async fn applier_of(&self, term: Epoch) -> Result<Applier, ApplyError> {
        let mut settings = self.follower.settings.clone();
        settings.term = term;
        let mut started = Applier::start(&settings).await;
        if let Err(error) = &started
            && error.sqlstate() == Some("42704")
            && let Ok(true) = self.make_origin(term).await
        {
            started = Applier::start(&settings).await;
        }
        started.map(|(applier, _)| applier)
    }

    /// An origin for another term, on a node that has a place in the history. False where it has none.
    async fn make_origin(&self, term: Epoch) -> Result<bool, ControlError> {
        let control = &self.follower.control;
        let database = &self.follower.settings.login.database;
        let client = control.connect(self.follower.node, database).await?;
        let places = control::applied_places(&client, database).await?;
        if places.last().is_some() {
            control::create_origin(&client, &origin_name(term, database)).await?;
        }
        Ok(places.last().is_some())
    }

    /// A follower that no commit waits for takes what comes a little later along: fewer and larger transactions
    /// leave more of the machine to the others. Where a commit does wait for it, it is no more than this later.
    async fn gather(&self, batch: Vec<Arc<Unit>>, single: bool) -> Vec<Arc<Unit>> {
        if single || !self.replicator.is_spare(self.stream, self.follower.node) {
            return batch;
        }
        tokio::time::sleep(GATHER).await;
        self.queue.next_batch(single).await
    }

    /// One batch, by whoever has it in hand. What is applied ahead is given up where it may stand in the way.
    async fn apply_batch(
        &self,
        applier: &mut Applier,
        batch: &[Arc<Unit>],
        ahead: &mut Option<Ahead>,
    ) -> Result<(), ApplyError> {
        if let [unit] = batch
            && let Some(done) = ahead.take_if(|ahead| ahead.is_of(unit))
            && let Some(next) = done.finish(applier, unit).await?
        {
            metrics::counter!("synapsedb_units_applied_ahead_total", "node" => self.follower.name.clone())
                .increment(1);
            *applier = next;
            return Ok(());
        }
        if batch.iter().any(|unit| unit.has_ddl) {
            // What it knows of tables may be wrong from here on.
            ahead.take();
        }
        let mut work = std::pin::pin!(self.apply_whole(applier, batch));
        let mut held_up = std::pin::pin!(self.look_who_blocks());
        loop {
            tokio::select! {
                biased;
                outcome = &mut work => return outcome,
                () = &mut held_up => {}
                () = tokio::time::sleep(AHEAD_PATIENCE), if ahead.is_some() => {
                    let (node, unit) = (self.follower.node.0, batch.first().map(|unit| unit.id.to_string()));
                    tracing::info!(node, unit, "a transaction that is applied ahead may hold others up; it begins anew");
                    ahead.take();
                }
            }
        }
    }

    /// Names the reads that the applier waits for, so that they are run elsewhere: they would hold up every commit
    /// that waits for this node. Never ends; dropping it is harmless.
    async fn look_who_blocks(&self) {
        let node = self.follower.node;
        loop {
            tokio::time::sleep(READ_PATIENCE).await;
            match self.blockers().await {
                Ok(pids) if pids.is_empty() => {}
                Ok(pids) => self.replicator.name_blockers(self.stream, node, pids),
                Err(error) => {
                    tracing::debug!(node = node.0, %error, "nobody knows what an applier waits for");
                }
            }
        }
    }

    async fn blockers(&self) -> Result<Vec<u32>, ControlError> {
        let control = &self.follower.control;
        let database = &self.follower.settings.login.database;
        let client = control.connect(self.follower.node, database).await?;
        let sql = format!(
            "select distinct b from pg_stat_activity a, unnest(pg_blocking_pids(a.pid)) b
              where a.usename = '{APPLIER_ROLE}' and a.datname = current_database() and a.wait_event_type = 'Lock'"
        );
        let rows = control::rows(&client, &sql).await?;
        let pid = |row: &Vec<Option<String>>| row.first()?.as_ref()?.parse().ok();
        Ok(rows.iter().filter_map(pid).collect())
    }

    async fn apply_whole(
        &self,
        applier: &mut Applier,
        batch: &[Arc<Unit>],
    ) -> Result<(), ApplyError> {
        let build = batch.first().and_then(|unit| aside::build_of(unit));
        let build = build.and_then(|(command, _)| String::from_utf8(command).ok());
        if batch.first().is_some_and(|unit| unit.has_ddl) {
            self.aside.without_early(build.as_deref()).await;
            if build.is_none() {
                self.aside.done().await?;
            }
        }
        applier.apply(batch).await?;
        if let Some(command) = build {
            self.aside.noted(&command);
        }
        Ok(())
    }

    /// Lets an index be begun that the writer is still building, between two transactions of the applier.
    async fn begin_early(&self, applier: &mut Applier) {
        let Some(early) = self.aside.head().offered() else {
            return;
        };
        match self.aside.note_early(&early).await {
            Ok(true) => {
                applier.expect_indexes();
                self.aside.begin_early();
            }
            Ok(false) => self.aside.withdraw(&early),
            Err(error) => {
                tracing::debug!(node = self.follower.node.0, %error, "an early build can't be noted");
                self.aside.withdraw(&early);
            }
        }
    }

    /// What keeps the applier from starting is mended where it can be: a node that was away lacks this
    /// process's secrets, a killed proxy's applier still holds the origin. A node without the origin
    /// can't say what it lacks.
    async fn note_start(&self, error: &ApplyError) {
        let node = self.follower.node;
        tracing::debug!(node = node.0, %error, "follower's applier can't start yet");
        if let ApplyError::NoPlace(_) = error {
            return self.replicator.fence(node, error.to_string());
        }
        let mended = match error.sqlstate() {
            Some("42704") => match self.make_origin(self.follower.settings.term).await {
                Ok(false) => {
                    let why = "it does not know its place in the writer's history".to_owned();
                    return self.replicator.fence(node, why);
                }
                made => made.map(|_| ()),
            },
            Some("55006") => self.end_stale().await,
            Some("28P01" | "28000" | "42883" | "3F000") => self.arm().await,
            _ => return,
        };
        if let Err(error) = mended {
            tracing::debug!(node = node.0, %error, "setting the node up failed");
        }
    }

    async fn end_stale(&self) -> Result<(), ControlError> {
        let control = &self.follower.control;
        let client = control
            .connect(self.follower.node, &control.database)
            .await?;
        control::end_stale_appliers(&client, &self.follower.settings.login.database).await
    }

    async fn try_arm(&self) -> bool {
        let armed = self.arm().await;
        if let Err(error) = &armed {
            let node = self.follower.node.0;
            tracing::debug!(node, %error, "the node can't be set up yet");
        }
        armed.is_ok()
    }

    async fn arm(&self) -> Result<(), ControlError> {
        let control = &self.follower.control;
        let database = &self.follower.settings.login.database;
        let client = control.connect(self.follower.node, database).await?;
        control::install(&client).await?;
        self.follower.arming.arm(&client, control).await
    }

    /// A node that was away is armed, and may have to stay out.
    async fn meet(&self) -> Met {
        if !self.try_arm().await {
            return Met::NotYet;
        }
        let (control, node) = (&self.follower.control, self.follower.node);
        let database = &self.follower.settings.login.database;
        match self.follower.meeting.meet(control, node, database).await {
            Ok(None) => Met::Ready,
            Ok(Some(why)) => {
                self.replicator.fence(node, why);
                Met::Out
            }
            Err(error) => {
                tracing::debug!(node = node.0, %error, "the node can't be met yet");
                Met::NotYet
            }
        }
    }
}

async fn given_up(ahead: Option<&Ahead>) {
    match ahead {
        Some(ahead) => ahead.given_up().await,
        None => std::future::pending().await,
    }
}

/// Counts an applier as connected while it lives: it may be cancelled at any await.
struct Connected<'a> {
    replicator: &'a Replicator,
    node: NodeId,
}

impl<'a> Connected<'a> {
    fn new(replicator: &'a Replicator, node: NodeId) -> Self {
        replicator.connected(node, true);
        Self { replicator, node }
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.replicator.connected(self.node, false);
    }
}
