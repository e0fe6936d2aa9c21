//! One steward after the other: who follows when a writer is lost, or is asked to hand over.
//!
//! Guards promises 1 and 2 over a change of writer. A steward's time ends when its writer is lost, if only for a
//! moment, or when an operator names another one. Units that have been decoded are applied first wherever somebody can
//! take them, so that those who are left are level; then the next steward is found from what the nodes keep durably,
//! as at the start of a proxy. Until then nobody asks anything of a writer. It knows no session.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bring_up::{BringUp, BringUpError, How, Prepared, new_arming};
use super::catalogs::Catalogs;
use super::commits::{Commits, Former};
use super::follower::Arming;
use super::guests::Guests;
use super::handover::HandoverError;
use super::jumps::Jumps;
use super::keeper::Keeper;
use super::office::{State, Told};
use super::probes::Standing;
use super::reads::Reads;
use super::steward::{Before, Common, Steward};
use super::view::Status;
use crate::config::Config;
use crate::ids::{Epoch, Lsn, NodeId};
use crate::node::canary::Canaries;
use crate::node::control::{self, Control, ControlError};

/// What a node may take to answer while a writer is looked for.
const PATIENCE: Duration = Duration::from_secs(2);
/// For followers to apply what was decoded before the writer was lost, while they get on with it.
const LEVEL: Duration = Duration::from_secs(10);
/// For a writer to be brought up. A node that stands still in the middle of it is not reached the next time; where there
/// is so much to do, there is more time then.
const BRING_UP: Duration = Duration::from_secs(3);
const BRING_UP_MAX: Duration = Duration::from_secs(120);
/// The exit code of a program that has found a fault in itself (`sysexits.h`: `EX_SOFTWARE`).
const FAULT: i32 = 70;
/// Between two looks at that, and between two tries to find a writer.
const LOOK: Duration = Duration::from_millis(5);
const AGAIN: Duration = Duration::from_millis(200);

/// An operator's wish, and where he waits for what becomes of it.
struct Wish {
    node: NodeId,
    answer: oneshot::Sender<Result<(), HandoverError>>,
}

/// How many sessions have something under way at the writer; once it is 0 after `Closing` was told, it stays so.
pub type UnderWay = Box<dyn Fn() -> usize + Send + Sync>;

/// What there is of those whom the cluster serves.
pub struct Served {
    /// Whether they have something under way.
    pub under_way: UnderWay,
    /// Where they hear of writers.
    pub office: Told,
    /// By which they know a writer that was started again.
    pub canaries: Arc<Canaries>,
}

/// The cluster, whoever writes.
pub struct Cluster {
    pub(super) common: Arc<Common>,
    current: ArcSwap<Steward>,
    armed: Mutex<BTreeSet<NodeId>>,
    wishes: mpsc::Sender<Wish>,
    pub(super) under_way: UnderWay,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Whether a majority, the old writer in it, has all of its term that the next one has.
fn on_majority(steward: &Steward, former: &[Former]) -> bool {
    let written = steward.replicator.snapshot().report.write;
    let mine = former.iter().find(|one| one.term == steward.term);
    let last = mine.and_then(|mine| mine.last.as_ref());
    last.is_some_and(|last| last.values().all(|lsn| *lsn <= written))
}

impl Cluster {
    /// Brings the cluster up and starts its first steward.
    pub async fn start(config: Arc<Config>, served: Served) -> Result<Arc<Self>, BringUpError> {
        let control = Control::new(&config);
        let keeper = Arc::new(Keeper::default());
        let arming = new_arming();
        let how = How {
            arming: Some(arming.clone()),
            keeper: Arc::clone(&keeper),
            ..How::start()
        };
        let prepared = BringUp::new(&config, &control, &how).run().await?;
        let common = Arc::new(Common {
            control,
            catalogs: Arc::new(Catalogs::default()),
            reads: Arc::new(Reads::new(&config)),
            commits: Arc::default(),
            jumps: Arc::default(),
            guests: Arc::new(Guests::default()),
            arming: Arc::new(arming),
            office: served.office,
            canaries: served.canaries,
            keeper,
            spares: Arc::default(),
            config,
        });
        let armed = prepared.armed.clone();
        let steward = Steward::start(&common, prepared, None, Vec::new());
        let (wishes, heard) = mpsc::channel(1);
        let cluster = Arc::new(Self {
            common,
            current: ArcSwap::new(steward),
            armed: Mutex::new(armed),
            wishes,
            under_way: served.under_way,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let this = Arc::clone(&cluster);
        cluster.tasks.spawn(async move {
            let work = AssertUnwindSafe(this.go_on(heard)).catch_unwind();
            if work.await.is_err() {
                // Nobody would look after the cluster any more, and the doors would stay open.
                tracing::error!(
                    "the proxy has a fault and can't go on; it ends, to be started again"
                );
                std::process::exit(FAULT);
            }
        });
        Ok(cluster)
    }

    /// Whoever sees to it now.
    pub fn steward(&self) -> Arc<Steward> {
        self.current.load_full()
    }

    /// What sessions that read from any node must know.
    pub fn reads(&self) -> &Arc<Reads> {
        &self.common.reads
    }

    /// What became of commits whose answers were lost.
    pub fn commits(&self) -> &Arc<Commits> {
        &self.common.commits
    }

    /// Whether somebody may be moving a sequence.
    pub fn jumps(&self) -> &Arc<Jumps> {
        &self.common.jumps
    }

    /// What the databases' names stand for.
    pub fn catalogs(&self) -> &Catalogs {
        &self.common.catalogs
    }

    /// What opens `synapsedb.log_command`.
    pub fn log_secret(&self) -> &str {
        &self.common.arming.log_secret
    }

    /// Has a node become the writer, in order: no transaction is broken off for it. Dropping it gives up waiting only.
    pub async fn promote(&self, node: NodeId) -> Result<(), HandoverError> {
        let (answer, heard) = oneshot::channel();
        let wish = Wish { node, answer };
        if self.wishes.send(wish).await.is_err() {
            return Err(HandoverError::Stopping);
        }
        heard.await.unwrap_or(Err(HandoverError::Stopping))
    }

    /// Ends everything. What has not been done is done at the next start.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(PATIENCE, self.tasks.wait()).await;
        self.steward().stop().await;
    }

    async fn go_on(&self, mut heard: mpsc::Receiver<Wish>) {
        let reigns = async {
            loop {
                let steward = self.steward();
                let mut standing = steward.standing.subscribe();
                let wish = tokio::select! {
                    biased;
                    // The sender lives as long as the steward.
                    _ = standing.wait_for(|standing| *standing == Standing::Lost) => None,
                    Some(wish) = heard.recv() => Some(wish),
                };
                match wish {
                    None => self.follow(&steward, None).await,
                    Some(wish) => {
                        let outcome = self.hand_over(&steward, wish.node).await;
                        // Whoever asked may have left.
                        let _ = wish.answer.send(outcome);
                    }
                }
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.common.keeper.tend() => {}
            () = reigns => {}
        }
    }

    /// Ends a steward's time, and begins another's as soon as somebody can write.
    pub(super) async fn follow(&self, steward: &Arc<Steward>, wanted: Option<NodeId>) {
        let began = Instant::now();
        if wanted.is_none() {
            metrics::counter!("synapsedb_failovers_total").increment(1);
            loop {
                self.until_majority(steward).await;
                self.level(steward).await;
                // Somebody may have died meanwhile.
                if steward.view().may_have_majority() {
                    break;
                }
            }
        }
        steward.abdicate().await;
        let prepared = self.bring_up(steward, wanted).await;
        let former = self.former(steward, &prepared).await;
        let planned = wanted == Some(prepared.writer);
        if planned {
            self.common.catalogs.hand_on();
        } else {
            self.common.catalogs.forget_all();
        }
        let before = Before {
            view: steward.view(),
            planned,
            majority: steward.served.load(Ordering::Acquire) && on_majority(steward, &former),
        };
        let next = Steward::start(&self.common, prepared, Some(&before), former);
        self.current.store(Arc::clone(&next));
        steward.stop().await;
        tracing::info!(
            writer = next.writer().0,
            took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "a steward's time has begun"
        );
    }

    /// How much the new writer has of the terms of which nobody has been told what became of the commits under way.
    async fn former(&self, steward: &Steward, prepared: &Prepared) -> Vec<Former> {
        let mut former = steward.untold();
        former.push(Former {
            term: steward.term,
            writer: steward.writer,
            last: None,
        });
        for term in &mut former {
            // Its own log may hold more than anybody was shown.
            term.last = None;
            if term.writer != prepared.writer {
                let last = tokio::time::timeout(PATIENCE, self.last_of(term.term, prepared)).await;
                match last.unwrap_or(Err(ControlError::Slow)) {
                    Ok(last) => term.last = Some(last),
                    // Whoever asks is told that nobody knows.
                    Err(error) => {
                        tracing::warn!(term = %term.term, %error, "what became of commits under way is not known");
                    }
                }
            }
        }
        former
    }

    /// The last unit of a term that the new writer has, by database.
    async fn last_of(
        &self,
        term: Epoch,
        prepared: &Prepared,
    ) -> Result<BTreeMap<String, Lsn>, ControlError> {
        let (control, keeper) = (&self.common.control, &self.common.keeper);
        let mut last = BTreeMap::new();
        for database in prepared.databases.keys() {
            let client = keeper.client(control, prepared.writer, database).await?;
            let places = control::applied_places(&client, database).await?;
            let place = places.0.get(&term).copied().unwrap_or_default();
            last.insert(database.clone(), place);
        }
        Ok(last)
    }

    /// Whoever is away may lack what was decoded for it: it is kept until there are enough to go on with.
    async fn until_majority(&self, steward: &Arc<Steward>) {
        let mut said = false;
        loop {
            let view = steward.view();
            if view.may_have_majority() && self.majority_answers(steward).await {
                return;
            }
            steward.tell_office();
            if !std::mem::replace(&mut said, true) {
                tracing::error!(
                    present = view.present(),
                    nodes = view.nodes.len(),
                    "the writer is lost and no majority is left: nobody can write until nodes return"
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether a majority of nodes is to be reached now: what is known of them may be older than what befell the writer.
    async fn majority_answers(&self, steward: &Arc<Steward>) -> bool {
        let common = &self.common;
        let view = steward.view();
        let there = view.nodes.iter().filter(|node| node.is_there());
        let mut asked: FuturesUnordered<_> = there
            .map(async |node| {
                let ask = async {
                    let database = &common.control.database;
                    let keeper = &common.keeper;
                    let client = keeper.client(&common.control, node.id, database).await?;
                    Ok::<_, ControlError>(client.simple_query("select 1").await?)
                };
                let answer = tokio::time::timeout(PATIENCE, ask).await;
                (node.id, matches!(answer, Ok(Ok(_))))
            })
            .collect();
        let mut answered = 0;
        while let Some((node, answers)) = asked.next().await {
            answered += usize::from(answers);
            if answered > view.nodes.len() / 2 {
                return true;
            }
            if !answers {
                common.keeper.leave_node(node);
                if let Some(load) = common.reads.loads.get(node) {
                    load.suspect();
                }
            }
        }
        false
    }

    /// Lets those who are there apply what was decoded, as long as they get on with it.
    async fn level(&self, steward: &Arc<Steward>) {
        let began = Instant::now();
        loop {
            let view = steward.view();
            let now = steward.replicator.snapshot();
            let owing = now.followers.iter().any(|(node, follower)| {
                let there = view.nodes[node.0].is_there();
                there && follower.known.failures.is_empty() && follower.queue.0 > 0
            });
            if !owing || began.elapsed() > LEVEL {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Tries until it succeeds.
    async fn bring_up(&self, steward: &Steward, mut wanted: Option<NodeId>) -> Prepared {
        let mut said = String::new();
        let mut limit = BRING_UP;
        loop {
            let how = How {
                patience: PATIENCE,
                absent: self.absent(),
                former: Some(steward.writer),
                wanted,
                arming: Some(Arming::clone(&self.common.arming)),
                armed: self.armed().clone(),
                keeper: Arc::clone(&self.common.keeper),
                spares: Arc::clone(&self.common.spares),
            };
            let bring_up = BringUp::new(&self.common.config, &self.common.control, &how);
            let outcome = tokio::time::timeout(limit, bring_up.run()).await;
            match outcome.unwrap_or(Err(BringUpError::Slow(limit))) {
                Ok(prepared) => {
                    self.armed().extend(&prepared.armed);
                    return prepared;
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != said {
                        tracing::error!(%error, "nobody can be the writer yet");
                        said = text;
                    }
                }
            }
            steward.tell_headless();
            // Either may be what stands in the way.
            wanted = None;
            limit = (limit * 2).min(BRING_UP_MAX);
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Those of whom nothing is to be expected.
    fn absent(&self) -> BTreeSet<NodeId> {
        let view = self.steward().view();
        let down = view.nodes.iter().filter(|node| node.status == Status::Down);
        down.map(|node| node.id).collect()
    }

    fn armed(&self) -> std::sync::MutexGuard<'_, BTreeSet<NodeId>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what may be asked of the writer, on behalf of its steward.
    pub(super) fn tell(&self, steward: &Steward, state: State) {
        self.common.office.send_if_modified(|told| {
            let changed = told.term == steward.term && told.state != state;
            if changed {
                told.state = state;
            }
            changed
        });
    }
}
