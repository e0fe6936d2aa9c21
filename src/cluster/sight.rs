//! What followers have and what the writer shows of one database, for sessions that read: looked up without a lock
//! while nobody writes.
//!
//! The shell around `engine::sight`. Guards promise 3. Fed by the replicator ahead of everything that lets a unit be
//! seen: a unit is known here before it is in any queue, and a follower's horizon moves before it is told to commit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_postgres::{Client, Statement};

use super::catalogs;
use crate::engine::sight::Units;
use crate::ids::{Lsn, NodeId, TableId, Tables, Xid};
use crate::node::control::{self, Control, ControlError};
use crate::node::unit::{Changes, Unit};

/// Between two questions while what is asked for waits for its majority.
const AGAIN: Duration = Duration::from_millis(1);
/// Between two tries to reach the writer.
const RETRY: Duration = Duration::from_millis(50);
/// From so many units of which nobody wanted to know whether the writer shows them, it is asked all the same.
const HIDDEN_MAX: usize = 512;

/// One follower in one database.
#[derive(Debug, Default)]
struct Follower {
    /// It has every unit up to here.
    applied: AtomicU64,
    /// Its answers may show units up to here.
    horizon: Arc<AtomicU64>,
    /// Nothing that it says is given out any more.
    fenced: AtomicBool,
    /// Server processes that its applier waits for.
    blockers: Mutex<Vec<u32>>,
}

/// One database's units, as far as reads must know of them.
#[derive(Debug)]
pub struct Sight {
    /// By node; the writer's is not used.
    followers: Vec<Follower>,
    units: Mutex<Units>,
    /// The end of the newest unit.
    newest: AtomicU64,
    /// Everything before this place has been decoded.
    decoded: AtomicU64,
    /// Up to where the writer shows every unit.
    shown: AtomicU64,
    /// Up to where a majority has everything, so that its commits may have been answered.
    written: Arc<AtomicU64>,
    /// The end of the writer's log when this proxy met it: what was acknowledged before ends there.
    met: Arc<AtomicU64>,
    /// Nobody writes, and everything up to here is part of whatever comes; 0 while somebody does.
    settled: AtomicU64,
    /// Of another writer's time, or of a database that is gone.
    closed: AtomicBool,
    /// It ended in order: all that anybody has seen is part of what the next writer shows.
    past: AtomicBool,
    asker: Arc<Asker>,
}

impl Sight {
    /// For so many nodes; a majority has everything up to `written`, and the writer's log ended at `met`.
    pub fn new(
        nodes: usize,
        written: Arc<AtomicU64>,
        met: Arc<AtomicU64>,
        asker: Arc<Asker>,
    ) -> Arc<Self> {
        let sight = Arc::new(Self {
            followers: (0..nodes).map(|_| Follower::default()).collect(),
            units: Mutex::default(),
            newest: AtomicU64::new(0),
            decoded: AtomicU64::new(0),
            shown: AtomicU64::new(0),
            written,
            met,
            settled: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            past: AtomicBool::new(false),
            asker,
        });
        sight.asker.lock().push(Arc::clone(&sight));
        sight
    }

    fn lock(&self) -> MutexGuard<'_, Units> {
        // No code that can panic runs under the lock.
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A unit was decoded; nobody has been given it yet.
    pub fn decoded_unit(&self, unit: &Unit) {
        let mut units = self.lock();
        units.decoded(unit.end, Xid(unit.xid), tables_of(unit));
        self.newest.store(units.newest().0, Ordering::Release);
        if unit.closes {
            self.decoded.fetch_max(unit.end.0, Ordering::AcqRel);
        }
        if units.hidden().is_multiple_of(HIDDEN_MAX) {
            self.asker.wanted.notify_one();
        }
    }

    /// Everything before `lsn` has been decoded.
    pub fn decoded_up_to(&self, lsn: Lsn) {
        self.decoded.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// A follower has every unit up to `lsn`.
    pub fn applied(&self, node: NodeId, lsn: Lsn) {
        if let Some(follower) = self.followers.get(node.0) {
            follower.horizon.fetch_max(lsn.0, Ordering::AcqRel);
            follower.applied.fetch_max(lsn.0, Ordering::AcqRel);
        }
    }

    /// Where the follower's applier says what it is about to let be seen.
    pub fn horizon_of(&self, node: NodeId) -> Arc<AtomicU64> {
        let follower = self.followers.get(node.0);
        follower.map_or_else(Arc::default, |one| Arc::clone(&one.horizon))
    }

    /// The follower differs.
    pub fn fence(&self, node: NodeId) {
        if let Some(follower) = self.followers.get(node.0) {
            follower.fenced.store(true, Ordering::Release);
        }
    }

    /// The follower's applier waits for these server processes.
    pub fn name_blockers(&self, node: NodeId, pids: Vec<u32>) {
        if let Some(follower) = self.followers.get(node.0) {
            *lock(&follower.blockers) = pids;
        }
    }

    /// Whether its applier waits for this one.
    pub fn is_blocked_by(&self, node: NodeId, pid: u32) -> bool {
        let follower = self.followers.get(node.0);
        follower.is_some_and(|one| lock(&one.blockers).contains(&pid))
    }

    /// Nobody is to go by this any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.asker.lock().retain(|other| !other.is_closed());
    }

    /// The same where the writer has left office in order, and the next one has everything: what a follower has said by
    /// then may be given out.
    pub fn pass(&self) {
        self.settled.store(u64::MAX, Ordering::Release);
        self.past.store(true, Ordering::Release);
        self.close();
    }

    /// Whether it ended in order.
    pub fn is_past(&self) -> bool {
        self.past.load(Ordering::Acquire)
    }

    /// Whether what the node has said may be given out, once the writer shows it.
    pub fn stands_by(&self, node: NodeId) -> bool {
        let follower = self.followers.get(node.0);
        let fenced = follower.is_none_or(|one| one.fenced.load(Ordering::Acquire));
        !fenced && (self.is_past() || !self.is_closed())
    }

    /// Whether another one has taken its place.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Up to where a majority has everything: whatever was acknowledged so far ends before.
    pub fn written(&self) -> Lsn {
        Lsn(self.written.load(Ordering::Acquire))
    }

    /// Whether what the node says may be given out at all.
    pub fn is_trusted(&self, node: NodeId) -> bool {
        let follower = self.followers.get(node.0);
        !self.is_closed() && follower.is_some_and(|one| !one.fenced.load(Ordering::Acquire))
    }

    /// Whether a follower has everything up to `acknowledged` that touches `tables`.
    pub fn is_fresh(&self, node: NodeId, tables: &Tables, acknowledged: Lsn) -> bool {
        let Some(follower) = self.followers.get(node.0).filter(|_| self.is_trusted(node)) else {
            return false;
        };
        let applied = follower.applied.load(Ordering::Acquire);
        let decoded = self.decoded.load(Ordering::Acquire);
        // What was acknowledged before this proxy came, and what the follower has, must be known here, or nobody
        // knows what it lacks and when the writer shows the rest.
        if decoded < self.met.load(Ordering::Acquire)
            || decoded < follower.horizon.load(Ordering::Acquire)
        {
            return false;
        }
        applied >= self.newest.load(Ordering::Acquire)
            || applied >= acknowledged.0
            || self.lock().is_fresh(tables, Lsn(applied), acknowledged)
    }

    /// Up to where the follower's answer that has just come in may show units.
    pub fn horizon(&self, node: NodeId) -> Lsn {
        let follower = self.followers.get(node.0);
        Lsn(follower.map_or(u64::MAX, |one| one.horizon.load(Ordering::Acquire)))
    }

    /// Whether the follower may show something that the writer does not show yet.
    pub fn may_hide(&self, node: NodeId) -> bool {
        self.shown.load(Ordering::Acquire) < self.horizon(node).0
    }

    /// Whether the writer may not show yet something of these tables up to `horizon`.
    pub fn hides(&self, tables: &Tables, horizon: Lsn) -> bool {
        if self.shown.load(Ordering::Acquire) >= horizon.0 {
            return false;
        }
        let settled = Lsn(self.settled.load(Ordering::Acquire));
        self.lock().hides(tables, settled, horizon)
    }

    /// Nobody writes, and everything up to here is part of whatever comes: it counts as shown. Gives what the writer
    /// may not have shown of it.
    pub fn go_by_majority(&self, written: Lsn) -> Vec<Xid> {
        let before = self.settled.fetch_max(written.0, Ordering::AcqRel);
        if before >= written.0 {
            return Vec::new();
        }
        self.lock().unshown(written)
    }

    /// Until the writer shows everything of these tables up to `horizon`. Dropping it is harmless.
    pub async fn shown(&self, tables: &Tables, horizon: Lsn) {
        let mut answers = self.asker.answers.subscribe();
        let mut asked = 0;
        while self.hides(tables, horizon) {
            // The first answer may be to a question that was asked before.
            if asked > 1 {
                tokio::time::sleep(AGAIN).await;
            }
            asked += 1;
            answers.borrow_and_update();
            self.asker.ask();
            // The sender lives as long as the asker does. Where the writer is away it says nothing any more.
            let _ = tokio::time::timeout(RETRY, answers.changed()).await;
        }
    }

    /// The writer's snapshot, as it writes it, was taken after this call began.
    fn learn(&self, snapshot: &str) {
        let mut units = self.lock();
        units.shown(|xid| catalogs::shows(snapshot, xid.0) == Some(true));
        self.shown.store(units.all_shown().0, Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tables that a unit changed. DDL may change what any table is.
fn tables_of(unit: &Unit) -> Tables {
    let Changes::Memory(changes) = &unit.changes else {
        return Tables::All;
    };
    if unit.has_ddl {
        return Tables::All;
    }
    let mut tables: Vec<TableId> = Vec::new();
    let mut last = std::ptr::null();
    for change in changes {
        if change.is_contents() {
            return Tables::All;
        }
        for table in change.tables() {
            // Rows of one table mostly come together.
            if !std::ptr::eq(last, Arc::as_ptr(table)) {
                last = Arc::as_ptr(table);
                tables.push(TableId::of(&table.namespace, &table.name));
            }
        }
    }
    Tables::these(tables)
}

/// Asks the writer what it shows: one question at a time, for all who want to know.
#[derive(Debug)]
pub struct Asker {
    wanted: Notify,
    answers: watch::Sender<u64>,
    sights: Mutex<Vec<Arc<Sight>>>,
}

impl Default for Asker {
    fn default() -> Self {
        Self {
            wanted: Notify::new(),
            answers: watch::Sender::new(0),
            sights: Mutex::default(),
        }
    }
}

impl Asker {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Sight>>> {
        self.sights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self) {
        self.wanted.notify_one();
    }

    /// Answers until dropped.
    pub async fn run(&self, control: &Control, writer: NodeId) {
        let mut known: Option<(Client, Statement)> = None;
        loop {
            self.wanted.notified().await;
            match question(control, writer, &mut known).await {
                Ok(snapshot) => {
                    let sights = self.lock().clone();
                    for sight in sights {
                        sight.learn(&snapshot);
                    }
                    self.answers.send_modify(|count| *count += 1);
                }
                Err(error) => {
                    tracing::debug!(%error, "the writer did not say what it shows");
                    known = None;
                    self.ask();
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

async fn question(
    control: &Control,
    writer: NodeId,
    known: &mut Option<(Client, Statement)>,
) -> Result<String, ControlError> {
    let (client, statement) = if let Some(known) = known {
        known
    } else {
        let client = control.connect(writer, &control.database).await?;
        let statement = client.prepare(control::SNAPSHOT).await?;
        known.insert((client, statement))
    };
    Ok(client.query_one(&*statement, &[]).await?.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight() -> Arc<Sight> {
        Sight::new(3, Arc::default(), Arc::default(), Arc::default())
    }

    fn unit(sight: &Sight, end: u64, xid: u32) {
        let mut units = sight.lock();
        units.decoded(Lsn(end), Xid(xid), Tables::All);
        sight.newest.store(end, Ordering::Release);
        drop(units);
        sight.decoded_up_to(Lsn(end));
    }

    #[test]
    fn a_follower_whose_place_is_not_known_here_is_not_read() {
        let (sight, node) = (sight(), NodeId(1));
        sight.applied(node, Lsn(50));
        assert!(!sight.is_fresh(node, &Tables::All, Lsn(0)));
        sight.decoded_up_to(Lsn(50));
        assert!(sight.is_fresh(node, &Tables::All, Lsn(50)));
        sight.fence(node);
        assert!(!sight.is_fresh(node, &Tables::All, Lsn(50)));
    }

    #[test]
    fn an_answer_is_held_until_the_writers_snapshot_shows_it() {
        let (sight, node) = (sight(), NodeId(2));
        unit(&sight, 10, 100);
        assert!(!sight.hides(&Tables::All, sight.horizon(node)));
        sight.horizon_of(node).fetch_max(10, Ordering::AcqRel);
        assert!(sight.hides(&Tables::All, sight.horizon(node)));
        sight.learn("100:101:100");
        assert!(sight.hides(&Tables::All, sight.horizon(node)));
        sight.learn("101:101:");
        assert!(!sight.hides(&Tables::All, sight.horizon(node)));
        assert_eq!(sight.shown.load(Ordering::Acquire), 10);
    }

    #[test]
    fn what_was_said_before_a_planned_change_may_be_given_out() {
        let (sight, node) = (sight(), NodeId(1));
        unit(&sight, 10, 100);
        sight.applied(node, Lsn(10));
        assert!(sight.hides(&Tables::All, sight.horizon(node)));
        sight.pass();
        assert!(sight.is_closed() && !sight.is_trusted(node) && sight.stands_by(node));
        assert!(!sight.hides(&Tables::All, sight.horizon(node)));
        sight.fence(node);
        assert!(!sight.stands_by(node));
    }

    #[test]
    fn where_nobody_writes_what_a_majority_has_is_given_out_and_owed() {
        let (sight, node) = (sight(), NodeId(1));
        unit(&sight, 10, 100);
        unit(&sight, 20, 101);
        sight.applied(node, Lsn(20));
        assert!(sight.hides(&Tables::All, sight.horizon(node)));
        assert_eq!(sight.go_by_majority(Lsn(10)), [Xid(100)]);
        assert!(!sight.hides(&Tables::All, Lsn(10)));
        assert!(sight.hides(&Tables::All, sight.horizon(node)));
        assert_eq!(sight.go_by_majority(Lsn(10)), []);
        assert_eq!(sight.go_by_majority(Lsn(20)), [Xid(100), Xid(101)]);
        assert!(!sight.hides(&Tables::All, sight.horizon(node)));
    }
}
