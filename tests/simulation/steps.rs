//! What a running proxy does by itself, a step at a time: reading, reporting, applying, catching up, moving slots.

use synapsedb::engine::confirm::Report;
use synapsedb::engine::council::words::{Event, Part, Phase};
use synapsedb::ids::{Lsn, NodeId, UnitId};

use crate::oracle::Oracle;
use crate::orders::{Body, Item};
use crate::proxy::{Follower, Link, Proxy, Running, STREAM, Stage};
use crate::server::{Entry, commit_of, end_of};
use crate::world::{Net, Planted};

/// The most units in one transaction of an applier.
const BATCH: usize = 4;

impl Proxy {
    /// One step.
    pub fn step(&mut self, net: &mut Net) {
        let floor = self.floor;
        match &mut self.stage {
            Stage::Meeting(meeting) => meeting.step(&mut self.link, floor, net),
            Stage::Running(running) => running.step(&mut self.link, net),
        }
        self.turn(net);
    }
}

impl Running {
    fn step(&mut self, link: &mut Link, net: &mut Net) {
        let kind = net.chance.weighted(&net.steps);
        let of: Vec<NodeId> = match kind {
            2 => self.followers.keys().copied().collect(),
            5 => self.catchups.keys().copied().collect(),
            _ => self.council.nodes(),
        };
        let Some(node) = net.chance.pick(&of) else {
            return;
        };
        match kind {
            0 => self.decode(link, net),
            1 => self.report(link, net),
            2 => self.apply(node, link, net),
            3 => self.ask_what_is_shown(link, net),
            4 => self.move_slot(node, link, net),
            5 => {
                for _ in 0..=net.chance.below(6) {
                    self.catch_up(node, link, net);
                }
            }
            _ => self.tell_progress(node, link, net),
        }
    }

    /// The next entry of the writer's log.
    fn decode(&mut self, link: &mut Link, net: &mut Net) {
        let writer = self.council.record().writer;
        let Some(at) = self.stream else { return };
        if !link.reads(net, writer) {
            return;
        }
        if net.chance.one_in(60) {
            self.restart_stream();
            return;
        }
        let server = &net.servers[writer.0];
        let Some(entry) = server.log.get(at) else {
            return;
        };
        let end = end_of(at);
        if let (Entry::Own { write, .. }, true) = (entry, commit_of(at) >= self.office) {
            let write = *write;
            let unit = UnitId {
                term: self.horizon.term(),
                lsn: end,
            };
            self.decoded.insert(write);
            self.confirmer.decoded_unit(STREAM, commit_of(at), end);
            self.horizon.decoded_unit(end);
            for (node, follower) in &mut self.followers {
                if self.council.part(*node) == Some(Part::Live) {
                    follower.push(Item::Unit { unit, write });
                }
            }
        }
        self.confirmer.decoded_up_to(STREAM, end);
        self.horizon.decoded_up_to(end);
        self.furthest = self.furthest.max(end);
        self.stream = Some(at + 1);
        if !self.told_decoded && self.confirmer.decoded() >= self.met_end {
            self.told_decoded = true;
            self.tell(Event::Decoded, link, net);
        }
    }

    /// What may be confirmed now, also while nobody can be told.
    fn report(&mut self, link: &Link, net: &mut Net) {
        let mut report = self.confirmer.report();
        if net.plants(Planted::ConfirmAlone) {
            report.write = self.confirmer.decoded();
        }
        if net.plants(Planted::FlushTheMajority) {
            report.flush = report.write;
        }
        if let Some(writer) = self.council.writer() {
            if report != self.reported {
                let nodes = self.council.nodes();
                let owed = |node: &NodeId| self.council.is_owed(*node);
                let owed: Vec<NodeId> = nodes.into_iter().filter(owed).collect();
                // What the slot had forgotten when it was met is no longer this proxy's to answer for.
                let flush = self.reported.flush.max(self.start);
                let last = Report {
                    flush,
                    ..self.reported
                };
                Oracle::report(last, report, self.office, writer, &owed, &net.servers);
                self.reported = report;
            }
            self.horizon.written(report.write);
            let body = Body::Report {
                write: report.write,
                flush: report.flush,
            };
            link.send(net, writer, body, None);
        } else {
            self.horizon.written(report.write);
            self.reported = report;
        }
    }

    /// A follower's applier takes what comes next.
    fn apply(&mut self, node: NodeId, link: &Link, net: &mut Net) {
        let Some(follower) = self.followers.get_mut(&node) else {
            return;
        };
        if follower.busy > 0 || follower.queue.is_empty() {
            return;
        }
        let count = 1 + net.chance.below(BATCH.min(follower.queue.len()));
        let items: Vec<Item> = follower.queue.iter().take(count).copied().collect();
        follower.busy = items.len();
        let last = items.last().map_or(UnitId::NOTHING, |item| item.unit());
        follower.given = follower.given.max(last);
        if last.term == self.horizon.term() {
            self.horizon.gave(node, last.lsn);
        }
        link.send(net, node, Body::Apply(items), None);
    }

    fn ask_what_is_shown(&mut self, link: &Link, net: &mut Net) {
        if net.plants(Planted::TrustUnshown) {
            self.horizon.shown(self.met_end);
        }
        if let (Some(writer), Some(_)) = (self.council.writer(), self.horizon.to_ask()) {
            link.send(net, writer, Body::Show, None);
        }
    }

    /// A follower's slot comes after.
    fn move_slot(&mut self, node: NodeId, link: &mut Link, net: &mut Net) {
        if self.council.part(node) != Some(Part::Live) {
            return;
        }
        if self.slots.wants_sample(node) {
            link.send(net, node, Body::Sample, None);
            return;
        }
        let allowed = self.council.may_move(node) || net.plants(Planted::MoveWithoutCopies);
        if allowed && let Some(place) = self.slots.movable(node, self.least()) {
            link.send(net, node, Body::Move(place), None);
        }
    }

    /// What every node has that is owed something by the slots in use.
    fn least(&self) -> UnitId {
        let nodes = self.council.nodes();
        let owed = nodes.into_iter().filter(|node| self.council.is_owed(*node));
        let place = |node: NodeId| self.places.get(&node).copied().unwrap_or_default();
        owed.map(place).min().unwrap_or(self.horizon.last())
    }

    /// A node that was away is given the next entry of the writer's log, or comes to be live.
    fn catch_up(&mut self, node: NodeId, link: &mut Link, net: &mut Net) {
        let (Some(at), Some(writer)) = (self.catchups.get(&node).copied(), self.council.writer())
        else {
            return;
        };
        if self.council.phase() != Phase::Serving || !link.reads(net, writer) {
            return;
        }
        let read = if at == 0 { Lsn(0) } else { end_of(at - 1) };
        let all = read >= self.furthest && read >= self.office;
        if all || net.plants(Planted::JoinEarly) {
            self.catchups.remove(&node);
            self.tell(Event::Joined(node), link, net);
            let last = self.horizon.last();
            if let Some(follower) = self.followers.get_mut(&node) {
                let place = follower.last.max(last);
                follower.last = UnitId::NOTHING;
                follower.push(Item::Place(place));
            }
            return;
        }
        let server = &net.servers[writer.0];
        if at < server.log.len() {
            if let (Some((unit, write)), Some(follower)) =
                (server.unit(at), self.followers.get_mut(&node))
            {
                follower.push(Item::Unit { unit, write });
            }
            self.catchups.insert(node, at + 1);
        }
    }

    /// What the council waits to be told.
    fn tell_progress(&mut self, node: NodeId, link: &mut Link, net: &mut Net) {
        let part = self.council.part(node);
        let follower = self.followers.get(&node);
        let idle = follower.is_some_and(Follower::is_idle);
        if part == Some(Part::Live) && idle && self.stream.is_some() {
            // Everything decoded was queued for it.
            let last = self.horizon.last();
            self.horizon.applied(node, last.lsn);
        }
        if self.levelling
            && part == Some(Part::Live)
            && (idle || net.plants(Planted::SkipLevelling))
        {
            self.tell(Event::Level(node), link, net);
        }
        if part == Some(Part::Live) && self.has_copies_to_drop(node, net) {
            self.tell(Event::Settled(node), link, net);
        }
        if let Phase::Handing { drained: false, .. } = self.council.phase() {
            let writer = self.council.record().writer;
            let end = net.servers[writer.0].end();
            let read = link.reads(net, writer) && self.confirmer.decoded() >= end;
            if read && self.clients.are_done_with(writer) {
                self.tell(Event::Drained, link, net);
            } else if net.chance.one_in(40) {
                self.tell(Event::Abandon, link, net);
            }
        }
    }

    /// The last unit of the writer's that a slot at this place may have forgotten: behind the last one there is none.
    pub fn last_before(&self, slot: Lsn) -> UnitId {
        let last = self.horizon.last();
        UnitId {
            term: last.term,
            lsn: slot.min(last.lsn),
        }
    }

    fn has_copies_to_drop(&self, node: NodeId, net: &Net) -> bool {
        let place = self.places.get(&node).copied().unwrap_or_default();
        let flush = self.last_before(self.reported.flush.max(self.start));
        let held = net
            .servers
            .iter()
            .any(|server| server.copies.contains_key(&node));
        held && (self.slots.settled(place, flush) || net.plants(Planted::DropEarly))
    }
}
