//! The confirmer against a model that remembers every unit ever decoded: seeded, replayable.
#![allow(clippy::disallowed_methods, reason = "SEED replays a schedule")]

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::engine::chance::Chance;

/// Followers that are known to have nothing yet.
fn nowhere(followers: &[NodeId]) -> BTreeMap<NodeId, Lsn> {
    followers.iter().map(|node| (*node, Lsn(0))).collect()
}

/// Three nodes with both followers in sync, and so many streams.
fn three(streams: usize) -> Confirmer {
    let followers = [NodeId(1), NodeId(2)];
    let mut confirmer = Confirmer::new(3, followers.map(|node| (node, Standing::InSync)));
    for id in 0..streams {
        confirmer.add_stream(id, Lsn(0), &nowhere(&followers));
    }
    confirmer
}

/// What truly happened.
struct World {
    confirmer: Confirmer,
    nodes: usize,
    followers: Vec<NodeId>,
    out: BTreeSet<NodeId>,
    streams: usize,
    /// By stream: every unit of the writer's log, as (begin, end) of its commit record.
    log: BTreeMap<StreamId, Vec<(Lsn, Lsn)>>,
    /// The end of the writer's log.
    end: Lsn,
    /// By stream: how many of its units have been decoded since it was last opened, and up to where.
    read: BTreeMap<StreamId, (usize, Lsn)>,
    /// By stream and follower: how many of the stream's units it has durable.
    has: BTreeMap<(StreamId, NodeId), usize>,
    /// What the slot will remember: the flush last sent.
    slot: Lsn,
    /// Streams whose database takes no commit.
    asleep: BTreeSet<StreamId>,
}

impl World {
    fn new(nodes: usize, streams: usize) -> Self {
        let followers: Vec<NodeId> = (1..nodes).map(NodeId).collect();
        let standing = followers.iter().map(|node| (*node, Standing::InSync));
        let mut confirmer = Confirmer::new(nodes, standing);
        let places = nowhere(&followers);
        for id in 0..streams {
            confirmer.add_stream(id, Lsn(0), &places);
        }
        Self {
            confirmer,
            nodes,
            followers,
            out: BTreeSet::new(),
            streams,
            log: (0..streams).map(|id| (id, Vec::new())).collect(),
            end: Lsn(0),
            read: (0..streams).map(|id| (id, (0, Lsn(0)))).collect(),
            has: BTreeMap::new(),
            slot: Lsn(0),
            asleep: BTreeSet::new(),
        }
    }

    fn step(&mut self, chance: &mut Chance) {
        let id = usize::try_from(chance.below(self.streams as u64)).expect("small");
        match chance.below(104) {
            0..=29 if !self.asleep.contains(&id) => self.commit(id, chance),
            30..=54 => self.decode(id),
            55..=64 => self.keepalive(id),
            65..=94 => self.apply(id, chance),
            95..=97 => self.reopen(id),
            100..=101 => self.sleep(id),
            102..=103 => self.wake(id),
            _ if self.out.is_empty() => {
                let at = usize::try_from(chance.below(self.followers.len() as u64)).expect("small");
                self.out.insert(self.followers[at]);
                self.confirmer
                    .set_standing(self.followers[at], Standing::Out);
            }
            _ => {}
        }
    }

    fn commit(&mut self, id: StreamId, chance: &mut Chance) {
        let begin = Lsn(self.end.0 + 1 + chance.below(50));
        self.end = Lsn(begin.0 + 1 + chance.below(50));
        self.log.entry(id).or_default().push((begin, self.end));
    }

    fn decode(&mut self, id: StreamId) {
        let (count, upto) = self.read[&id];
        if let Some((begin, end)) = self.log[&id].get(count).copied() {
            self.confirmer.decoded_unit(id, begin, end);
            self.read.insert(id, (count + 1, upto.max(end)));
        }
    }

    /// The server says how far it has read, which is never behind a unit that it has not sent.
    fn keepalive(&mut self, id: StreamId) {
        let (count, upto) = self.read[&id];
        let next = self.log[&id]
            .get(count)
            .map_or(self.end, |(begin, _)| *begin);
        self.confirmer.decoded_up_to(id, next.max(upto));
        self.read.insert(id, (count, next.max(upto)));
    }

    fn apply(&mut self, id: StreamId, chance: &mut Chance) {
        let at = usize::try_from(chance.below(self.followers.len() as u64)).expect("small");
        let node = self.followers[at];
        let has = self.has.entry((id, node)).or_default();
        // Only what was decoded can be applied, but a broken stream forgets nothing that is durable.
        if *has < self.read[&id].0 {
            *has += 1;
            let (_, end) = self.log[&id][*has - 1];
            self.confirmer.applied(id, node, end);
        }
    }

    /// The connection breaks: the server sends again everything behind what the slot remembers.
    fn reopen(&mut self, id: StreamId) {
        let again = self.log[&id]
            .iter()
            .take_while(|(_, end)| *end <= self.slot)
            .count();
        self.confirmer.restart_stream(id);
        self.read.insert(id, (again, self.slot));
    }

    fn sleep(&mut self, id: StreamId) {
        if !self.asleep.contains(&id) && self.confirmer.sleep(id, self.end) {
            self.asleep.insert(id);
        }
        assert!(
            self.asleep.len() < self.streams,
            "the last one has gone to sleep"
        );
    }

    fn wake(&mut self, id: StreamId) {
        if self.asleep.remove(&id) {
            self.reopen(id);
            self.confirmer.wake(id);
        }
    }

    /// What must never happen.
    fn check(&mut self) {
        let report = self.confirmer.report();
        assert!(
            report.flush <= report.write,
            "flush is ahead of the majority"
        );
        for (id, units) in &self.log {
            for (at, (_, end)) in units.iter().enumerate() {
                let having =
                    |node: &&NodeId| self.has.get(&(*id, **node)).is_some_and(|has| *has > at);
                if *end <= report.write {
                    let holders = 1 + self.followers.iter().filter(having).count();
                    assert!(
                        holders > self.nodes / 2,
                        "{end} is confirmed and on {holders} nodes"
                    );
                }
                if *end <= report.flush {
                    let owed = self
                        .followers
                        .iter()
                        .filter(|node| !self.out.contains(node));
                    assert!(
                        owed.clone().all(|node| having(&node)),
                        "{end} is forgotten too early"
                    );
                }
            }
        }
        self.slot = report.flush;
    }

    /// Everything is read and applied: then everything is confirmed.
    fn heal(&mut self) {
        for id in 0..self.streams {
            self.wake(id);
            while self.read[&id].0 < self.log[&id].len() {
                self.decode(id);
            }
            self.keepalive(id);
            for node in self.followers.clone() {
                let all = self.log[&id].len();
                self.has.insert((id, node), all);
                if let Some((_, end)) = self.log[&id].last() {
                    self.confirmer.applied(id, node, *end);
                }
            }
        }
        self.check();
        let report = self.confirmer.report();
        assert_eq!((report.write, report.flush), (self.end, self.end));
    }
}

fn schedule(seed: u64) {
    let mut chance = Chance::new(seed);
    let nodes = if chance.below(2) == 0 { 3 } else { 5 };
    let streams = 1 + usize::try_from(chance.below(3)).expect("small");
    let mut world = World::new(nodes, streams);
    for _ in 0..200 {
        world.step(&mut chance);
        world.check();
    }
    world.heal();
}

#[test]
fn nothing_is_confirmed_too_early_and_everything_in_the_end() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..3000,
    };
    for seed in seeds {
        let run = std::panic::catch_unwind(|| schedule(seed));
        assert!(run.is_ok(), "failing schedule: SEED={seed}");
    }
}

#[test]
fn one_slow_follower_holds_the_flush_but_not_the_write() {
    let mut confirmer = three(1);
    confirmer.decoded_unit(0, Lsn(10), Lsn(20));
    assert_eq!(confirmer.report().write, Lsn(10));
    confirmer.applied(0, NodeId(2), Lsn(20));
    assert_eq!(
        confirmer.report(),
        Report {
            write: Lsn(20),
            flush: Lsn(10),
            unit: Lsn(20),
            bounded: false,
        }
    );
    confirmer.set_standing(NodeId(1), Standing::Out);
    assert_eq!(
        confirmer.report(),
        Report {
            write: Lsn(20),
            flush: Lsn(20),
            unit: Lsn(20),
            bounded: false,
        }
    );
}

#[test]
fn a_report_says_whether_it_is_past_another_unit_and_what_stands_right_behind_it() {
    let mut confirmer = three(2);
    let mut told = |event: &dyn Fn(&mut Confirmer)| {
        event(&mut confirmer);
        let report = confirmer.report();
        (report.write.0, report.unit.0, report.bounded)
    };
    assert_eq!(
        told(&|c| c.decoded_unit(0, Lsn(10), Lsn(20))),
        (0, 0, false)
    );
    assert_eq!(told(&|c| c.decoded_up_to(1, Lsn(35))), (10, 0, true));
    assert_eq!(
        told(&|c| c.decoded_unit(0, Lsn(20), Lsn(30))),
        (10, 0, true)
    );
    assert_eq!(told(&|c| c.applied(0, NodeId(1), Lsn(20))), (20, 20, true));
    assert_eq!(
        told(&|c| c.decoded_unit(0, Lsn(40), Lsn(50))),
        (20, 20, true)
    );
    assert_eq!(told(&|c| c.applied(0, NodeId(1), Lsn(30))), (35, 30, false));
    // The first stream has more than the second was read.
    assert_eq!(told(&|c| c.applied(0, NodeId(1), Lsn(50))), (35, 35, false));
    assert_eq!(told(&|c| c.applied(0, NodeId(2), Lsn(50))), (35, 35, false));
    assert_eq!(told(&|c| c.decoded_up_to(1, Lsn(60))), (50, 50, false));
}

#[test]
fn an_idle_database_holds_the_others_until_it_was_read_so_far() {
    let mut confirmer = three(2);
    confirmer.decoded_unit(0, Lsn(10), Lsn(20));
    confirmer.applied(0, NodeId(1), Lsn(20));
    assert_eq!(confirmer.report().write, Lsn(0));
    confirmer.decoded_up_to(1, Lsn(20));
    assert_eq!(confirmer.report().write, Lsn(20));
}

#[test]
fn a_follower_without_a_known_place_counts_for_nothing_and_is_owed_everything() {
    let followers = [NodeId(1), NodeId(2)].map(|node| (node, Standing::InSync));
    let mut confirmer = Confirmer::new(3, followers);
    confirmer.add_stream(0, Lsn(10), &BTreeMap::new());
    confirmer.decoded_up_to(0, Lsn(50));
    assert_eq!(confirmer.report(), Report::default());
    assert_eq!(confirmer.place(NodeId(1)), Lsn(10));
    confirmer.applied(0, NodeId(1), Lsn(10));
    let report = confirmer.report();
    assert_eq!((report.write, report.flush), (Lsn(50), Lsn(0)));
    confirmer.set_standing(NodeId(2), Standing::Leaving);
    assert_eq!(confirmer.report().flush, Lsn(0));
    confirmer.set_standing(NodeId(2), Standing::Out);
    assert_eq!(confirmer.report().flush, Lsn(50));
}

#[test]
fn a_stream_that_begins_anew_is_not_before_its_beginning() {
    let mut confirmer = Confirmer::new(3, []);
    confirmer.add_stream(0, Lsn(100), &BTreeMap::new());
    confirmer.restart_stream(0);
    assert_eq!(confirmer.decoded(), Lsn(100));
}

#[test]
fn a_stream_that_sleeps_holds_nobody_and_goes_on_from_what_was_reported() {
    let mut confirmer = three(1);
    assert!(!confirmer.sleep(0, Lsn(0)), "the last one");
    confirmer.add_stream(1, Lsn(0), &nowhere(&[NodeId(1), NodeId(2)]));
    assert!(!confirmer.sleep(1, Lsn(10)), "not read so far");
    confirmer.decoded_unit(1, Lsn(10), Lsn(20));
    assert!(!confirmer.sleep(1, Lsn(10)), "somebody lacks a unit");
    for node in [NodeId(1), NodeId(2)] {
        confirmer.applied(1, node, Lsn(20));
    }
    confirmer.report();
    assert!(confirmer.sleep(1, Lsn(10)));
    assert!(!confirmer.sleep(0, Lsn(0)), "the last one");
    confirmer.decoded_up_to(0, Lsn(50));
    assert_eq!(confirmer.report().write, Lsn(50));
    confirmer.restart_stream(1);
    confirmer.wake(1);
    confirmer.decoded_up_to(0, Lsn(70));
    assert_eq!(confirmer.report().write, Lsn(50), "it counts again");
    confirmer.decoded_up_to(1, Lsn(60));
    assert_eq!(confirmer.report().write, Lsn(60));
}
