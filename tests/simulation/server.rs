//! A model of one `PostgreSQL` server: its log, who waits for a report, slots, places, and what it keeps of the cluster.
//!
//! A transaction is durable when it is in the log; a crash before is as if it had not been sent. A client's commit is
//! shown to others only when a report has released it, a moment later and in any order; a crash releases them all.

use std::collections::{BTreeMap, BTreeSet};

use synapsedb::engine::recovery::{Facts, Record};
use synapsedb::ids::{Epoch, Lsn, NodeId, UnitId};

use crate::orders::{Answer, Body, Item, Order, Refused};

/// A client's write, by number; no two are the same.
pub type Write = u32;

/// Bytes of log that every record takes.
const RECORD: u64 = 10;
/// Where its commit begins.
const COMMIT: u64 = 3;

/// A record of the log.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A client's transaction, and whether others see it.
    Own { write: Write, shown: bool },
    /// A unit of another writer's.
    Applied { unit: UnitId, write: Write },
    /// The server's own affairs.
    Local,
    /// Everything that a node which was made anew began with.
    Base(Vec<Write>),
}

/// See the module.
#[expect(
    clippy::struct_excessive_bools,
    reason = "a model says plainly what is so"
)]
pub struct Server {
    pub id: NodeId,
    pub alive: bool,
    pub frozen: bool,
    pub cut: bool,
    /// Its appliers take their time.
    pub slow: bool,
    /// A planted fault: an applier leaves commits waiting that nobody will report to.
    pub keeps_waits: bool,
    /// Being made anew: it holds nothing that counts.
    pub wiped: bool,
    /// Grows with each start.
    pub starts: u64,
    pub log: Vec<Entry>,
    /// The newest epoch promised, and which proxy's.
    pub promised: (Epoch, u32),
    pub record: Record,
    pub offices: BTreeMap<Epoch, Lsn>,
    pub places: BTreeMap<Epoch, Lsn>,
    pub slot: Lsn,
    pub copies: BTreeMap<NodeId, Lsn>,
    /// What the proxy has reported as written, since the server was started.
    written: Lsn,
    /// Connections older than this are ended.
    floor: u64,
    /// Commits whose answer is awaited: by the log's entry, the order.
    waiting: BTreeMap<usize, u64>,
}

pub fn end_of(at: usize) -> Lsn {
    Lsn((at as u64 + 1) * RECORD)
}

pub fn commit_of(at: usize) -> Lsn {
    Lsn(at as u64 * RECORD + COMMIT)
}

/// How many entries end no later than `place`.
pub fn entries_before(place: Lsn) -> usize {
    usize::try_from(place.0 / RECORD).expect("short logs")
}

impl Server {
    pub fn new(id: NodeId, record: Record) -> Self {
        Self {
            id,
            alive: true,
            frozen: false,
            cut: false,
            slow: false,
            keeps_waits: false,
            wiped: false,
            starts: 0,
            log: Vec::new(),
            promised: (record.epoch, 0),
            record,
            offices: BTreeMap::new(),
            places: BTreeMap::new(),
            slot: Lsn(0),
            copies: BTreeMap::new(),
            written: Lsn(0),
            floor: 0,
            waiting: BTreeMap::new(),
        }
    }

    /// Whether the proxy's messages get an answer.
    pub fn answers(&self) -> bool {
        self.alive && !self.frozen && !self.cut
    }

    pub fn end(&self) -> Lsn {
        Lsn(self.log.len() as u64 * RECORD)
    }

    /// Every write in its log, in order.
    pub fn history(&self) -> Vec<Write> {
        self.history_before(self.log.len())
    }

    pub fn history_before(&self, entries: usize) -> Vec<Write> {
        let mut found = Vec::new();
        for entry in self.log.iter().take(entries) {
            match entry {
                Entry::Own { write, .. } | Entry::Applied { write, .. } => found.push(*write),
                Entry::Base(writes) => found.extend(writes),
                Entry::Local => {}
            }
        }
        found
    }

    fn shows(&self) -> BTreeSet<Write> {
        let mut found = BTreeSet::new();
        for entry in &self.log {
            match entry {
                Entry::Own { write, shown: true } | Entry::Applied { write, .. } => {
                    found.insert(*write);
                }
                Entry::Base(writes) => found.extend(writes),
                Entry::Own { .. } | Entry::Local => {}
            }
        }
        found
    }

    /// Up to where everything is shown.
    fn shown(&self) -> Lsn {
        let hidden = |entry: &Entry| matches!(entry, Entry::Own { shown: false, .. });
        let first = self.log.iter().position(hidden);
        first.map_or(self.end(), commit_of)
    }

    /// The name of an entry's unit, if it is one.
    pub fn unit(&self, at: usize) -> Option<(UnitId, Write)> {
        match &self.log[at] {
            Entry::Own { write, .. } => {
                let commit = commit_of(at);
                let office = self
                    .offices
                    .iter()
                    .rev()
                    .find(|(_, start)| **start <= commit);
                let (term, _) = office?;
                let unit = UnitId {
                    term: *term,
                    lsn: end_of(at),
                };
                Some((unit, *write))
            }
            Entry::Applied { unit, write } => Some((*unit, *write)),
            Entry::Local | Entry::Base(_) => None,
        }
    }

    pub fn facts(&self) -> Facts {
        Facts {
            promised: self.promised.0,
            record: self.record,
            offices: self.offices.clone(),
            places: self.places.clone(),
            end: self.end(),
            copies: self.copies.keys().copied().collect(),
        }
    }

    /// The process dies. Whoever waited for a report waits no more; the commits are there.
    pub fn crash(&mut self) {
        self.alive = false;
        self.frozen = false;
        self.written = Lsn(0);
        self.end_waits();
    }

    /// Whoever waits for a report waits no more, and is seen.
    fn end_waits(&mut self) {
        self.waiting.clear();
        for entry in &mut self.log {
            if let Entry::Own { shown, .. } = entry {
                *shown = true;
            }
        }
    }

    pub fn start(&mut self) {
        self.alive = true;
        self.starts += 1;
    }

    /// Commits that have been released and are not shown yet.
    pub fn released(&self) -> Vec<usize> {
        let hidden = |(at, entry): &(usize, &Entry)| {
            matches!(entry, Entry::Own { shown: false, .. }) && end_of(*at) <= self.written
        };
        self.log
            .iter()
            .enumerate()
            .filter(hidden)
            .map(|(at, _)| at)
            .collect()
    }

    /// A released commit comes to be seen; whose answer that is.
    pub fn show(&mut self, at: usize) -> Option<u64> {
        if let Entry::Own { shown, .. } = &mut self.log[at] {
            *shown = true;
        }
        self.waiting.remove(&at)
    }

    /// Whether the order's connection is still there.
    pub fn hears(&self, order: &Order) -> bool {
        let greets = matches!(order.body, Body::Greet | Body::Promise(_) | Body::Meet(_));
        order.generation >= self.floor && (greets || order.proxy == self.promised.1)
    }

    /// Does what it is asked; no answer yet where a commit waits.
    pub fn execute(&mut self, order: &Order) -> Option<Answer> {
        match &order.body {
            Body::Greet => Some(Answer::Promised(self.promised.0)),
            Body::Promise(epoch) => Some(self.promise(*epoch, order.proxy)),
            Body::Meet(epoch) => {
                if let refused @ Answer::Refused(_) = self.promise(*epoch, order.proxy) {
                    return Some(refused);
                }
                self.floor = order.generation;
                Some(Answer::Met(Box::new(self.facts()), self.slot))
            }
            Body::Record(record) => {
                if record.epoch < self.promised.0 {
                    return Some(Answer::Refused(Refused::Outrun));
                }
                self.record = *record;
                self.log.push(Entry::Local);
                Some(Answer::Done)
            }
            Body::TakeOffice(term) => {
                let start = self.end();
                self.offices.insert(*term, start);
                self.log.push(Entry::Local);
                Some(Answer::Office(Box::new(self.facts()), start))
            }
            Body::Write(write) => {
                self.waiting.insert(self.log.len(), order.id);
                self.log.push(Entry::Own {
                    write: *write,
                    shown: false,
                });
                None
            }
            Body::Read => Some(Answer::Rows(self.shows())),
            Body::Show => Some(Answer::Shown(self.shown())),
            Body::Report { write, flush } => {
                self.written = self.written.max(*write);
                self.slot = self.slot.max(*flush);
                Some(Answer::Done)
            }
            Body::Apply(items) => {
                for item in items {
                    self.apply(*item);
                }
                Some(Answer::Done)
            }
            Body::Copy(of) => {
                self.copies.entry(*of).or_insert(self.slot);
                Some(Answer::Done)
            }
            Body::Drop(of) => {
                self.copies.remove(of);
                Some(Answer::Done)
            }
            Body::Sample => Some(Answer::Sampled(self.end())),
            Body::Move(to) => {
                self.slot = self.slot.max(*to);
                Some(Answer::Done)
            }
        }
    }

    fn promise(&mut self, epoch: Epoch, proxy: u32) -> Answer {
        let again = self.promised == (epoch, proxy);
        if epoch <= self.promised.0 && !again {
            return Answer::Refused(Refused::Outrun);
        }
        self.promised = (epoch, proxy);
        Answer::Done
    }

    fn apply(&mut self, item: Item) {
        let (unit, entry) = match item {
            Item::Unit { unit, write } => (unit, Entry::Applied { unit, write }),
            Item::Place(unit) => {
                if !self.keeps_waits {
                    self.end_waits();
                }
                (unit, Entry::Local)
            }
        };
        if let Entry::Applied { write, .. } = entry {
            let twice = self.history().contains(&write);
            assert!(
                !twice,
                "write {write} is applied twice on node {}",
                self.id.0
            );
        }
        let place = self.places.entry(unit.term).or_default();
        *place = (*place).max(unit.lsn);
        self.log.push(entry);
    }

    /// Made anew from what another has up to a unit.
    pub fn make_anew(&mut self, writes: Vec<Write>, place: UnitId) {
        self.log = vec![Entry::Base(writes)];
        self.offices.clear();
        self.copies.clear();
        self.places = BTreeMap::from([(place.term, place.lsn)]);
        self.slot = self.end();
        self.wiped = false;
        self.start();
    }
}
