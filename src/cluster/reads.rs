//! What sessions need to know in order to read from any node, in one place.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use metrics::{Counter, Histogram};

use super::loads::Loads;
use super::relaxed::Relaxed;
use super::replicator::RETRY;
use super::sight::{Asker, Sight};
use super::steward::Steward;
use super::view::Status;
use crate::config::Config;
use crate::ids::{Lsn, NodeId, Tables, Xid};

/// Handles registered once.
pub struct Meters {
    /// Reads by node.
    pub reads: Vec<Counter>,
    /// How long answers were held.
    pub waits: Histogram,
    /// Reads run again, since they wrote.
    pub wrote: Counter,
    /// Likewise, since a type of theirs has another OID on the writer.
    pub foreign: Counter,
    /// Likewise, since their node was lost.
    pub lost: Counter,
    /// Likewise, since the node's applier waited for them.
    pub blocks: Counter,
    /// Likewise, since the writer did not show in time what they had seen.
    pub late: Counter,
}

impl Meters {
    fn new(config: &Config) -> Self {
        let again = |why: &'static str| metrics::counter!("synapsedb_reruns_total", "why" => why);
        let node = |node: &crate::config::Node| {
            let counter = metrics::counter!("synapsedb_reads_total", "node" => node.name.clone());
            counter.increment(0);
            counter
        };
        Self {
            reads: config.nodes.iter().map(node).collect(),
            waits: metrics::histogram!("synapsedb_read_wait_seconds"),
            wrote: again("wrote"),
            foreign: again("type"),
            lost: again("lost"),
            blocks: again("blocks"),
            late: again("late"),
        }
    }
}

/// Places in the log of the writer of now.
struct Term {
    /// A majority has everything up to here.
    written: Arc<AtomicU64>,
    /// Its end when it was met.
    met: Arc<AtomicU64>,
}

impl Term {
    fn new() -> Self {
        Self {
            written: Arc::default(),
            // Not known yet, and so is what followers lack.
            met: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }
}

/// One for the cluster.
pub struct Reads {
    /// How quick nodes are, and which of them serve.
    pub loads: Loads,
    /// Commits that wait for nobody.
    pub relaxed: Arc<Relaxed>,
    /// What is counted.
    pub meters: Meters,
    pub(super) asker: Arc<Asker>,
    nodes: usize,
    term: ArcSwap<Term>,
    sights: ArcSwap<BTreeMap<String, Arc<Sight>>>,
    /// Who was away, and what followers may have shown meanwhile that it did not show.
    word: Mutex<Vec<(NodeId, Xid)>>,
}

impl Reads {
    /// No database yet.
    pub fn new(config: &Config) -> Self {
        Self {
            loads: Loads::new(config.nodes.len()),
            relaxed: Arc::default(),
            meters: Meters::new(config),
            asker: Arc::default(),
            nodes: config.nodes.len(),
            term: ArcSwap::from_pointee(Term::new()),
            sights: ArcSwap::default(),
            word: Mutex::default(),
        }
    }

    /// What is known of a database's units.
    pub fn sight(&self, database: &str) -> Option<Arc<Sight>> {
        self.sights.load().get(database).map(Arc::clone)
    }

    /// A node that serves and has in every database everything that was acknowledged.
    pub fn follower_with_all(&self) -> Option<NodeId> {
        let sights = self.sights.load();
        let has_all = |node: NodeId| {
            let mut sights = sights.values();
            sights.all(|sight| sight.is_fresh(node, &Tables::All, sight.written()))
        };
        let mut serving = self.loads.iter().filter(|(_, load)| load.serves());
        serving.find_map(|(node, _)| has_all(node).then_some(node))
    }

    /// A database has a stream from now on.
    pub(super) fn open(&self, database: &str) -> Arc<Sight> {
        let term = self.term.load();
        let (written, met) = (Arc::clone(&term.written), Arc::clone(&term.met));
        let sight = Sight::new(self.nodes, written, met, Arc::clone(&self.asker));
        if let Some(before) = self.replace(database, Some(&sight)) {
            before.close();
        }
        sight
    }

    /// A database has none any more.
    pub(super) fn close(&self, database: &str) {
        if let Some(before) = self.replace(database, None) {
            before.close();
        }
    }

    fn replace(&self, database: &str, sight: Option<&Arc<Sight>>) -> Option<Arc<Sight>> {
        let before = self.sight(database);
        self.sights.rcu(|known| {
            let mut known = BTreeMap::clone(known);
            match sight {
                Some(sight) => known.insert(database.to_owned(), Arc::clone(sight)),
                None => known.remove(database),
            };
            known
        });
        before
    }

    /// A majority has everything up to here; told before the writer is.
    pub(super) fn set_written(&self, lsn: Lsn) {
        self.term.load().written.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// The writer is away, nobody can follow, and no session takes an answer of its any more: what a majority has, which
    /// is everything up to here, will be part of whatever comes, and may be shown.
    pub(super) fn go_by_majority(&self, writer: NodeId, written: Lsn) {
        let mut word = self.word.lock().unwrap_or_else(PoisonError::into_inner);
        for sight in self.sights.load().values() {
            let owed = sight.go_by_majority(written);
            word.extend(owed.into_iter().map(|xid| (writer, xid)));
        }
        word.sort_unstable();
        word.dedup();
    }

    /// What this writer must show before anybody reads from it.
    pub(super) fn word_of(&self, writer: NodeId) -> Vec<Xid> {
        let word = self.word.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = word.iter().filter(|(node, _)| *node == writer);
        mine.map(|(_, xid)| *xid).collect()
    }

    /// A writer serves that shows all of it.
    pub(super) fn kept_word(&self) {
        let mut word = self.word.lock().unwrap_or_else(PoisonError::into_inner);
        word.clear();
    }

    /// Another writer, or the same anew: places in its log are not those of before. Nobody begins to read by what was
    /// known. `planned`: the writer has left in order, so what goes on at followers may go on.
    pub(super) fn new_term(&self, planned: bool) {
        if !planned {
            for (_, load) in self.loads.iter() {
                load.set_serves(false);
            }
        }
        self.term.store(Arc::new(Term::new()));
        let databases: Vec<String> = self.sights.load().keys().cloned().collect();
        for database in databases {
            match self.replace(&database, None) {
                Some(before) if planned => before.pass(),
                Some(before) => before.close(),
                None => {}
            }
        }
    }
}

impl Steward {
    /// Tells sessions what the writer shows, and which commits that waited for nobody every follower has.
    pub(super) async fn serve_reads(&self) {
        let met = async {
            loop {
                if let Some(lsn) = self.writers_end().await {
                    self.reads.set_written(lsn);
                    self.reads.term.load().met.store(lsn.0, Ordering::Release);
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        let shown = self.reads.asker.run(&self.control, self.writer);
        let relaxed = async {
            loop {
                let ended = self.reads.relaxed.uncovered().await;
                let Some(lsn) = self.writers_end().await else {
                    tokio::time::sleep(RETRY).await;
                    continue;
                };
                self.replicator.wait_everywhere(lsn).await;
                self.reads.relaxed.cover(ended);
            }
        };
        tokio::select! {
            () = self.cancel.cancelled() => {}
            () = met => {}
            () = shown => {}
            () = relaxed => {}
        }
    }

    /// Sessions read only from nodes that are in sync.
    pub(super) fn tell_who_serves(&self) {
        for node in &self.view().nodes {
            if let Some(load) = self.reads.loads.get(node.id) {
                load.set_serves(node.status == Status::InSync);
            }
        }
    }
}
