//! Who is a member, who writes, and how that changes: events in, commands out.
//!
//! Guards promises 1, 2 and 4. A node that is lost is owed what it lacks: by everyone's slots until copies of them
//! are on every serving node (*leaving*), by the copies then (*away*). A writer that is lost is followed by a
//! follower that has everything this proxy ever decoded, after a majority has promised a new epoch and then
//! recorded the new writer; from the first attempt to record it on, the old one never goes on by itself.
//!
//! It sends nothing and knows no clock: the shell says when a node is lost, reached, level or drained, carries the
//! commands out, and tries each again until it is answered or its node is lost. Where it can't say what is true any
//! more it says [`Command::Conclude`], and everything begins anew from the nodes' facts (`engine/recovery.rs`).

use std::collections::{BTreeMap, BTreeSet};

use self::words::{Command, Event, Part, Phase, Why};
use super::confirm::Standing;
use super::recovery::Record;
use crate::ids::{Epoch, Lsn, NodeId};

pub mod words;

#[derive(Clone, Copy, Debug)]
struct Seat {
    part: Part,
    reachable: bool,
    /// Its facts are known and its older connections ended, since it was last reached.
    met: bool,
    /// A meeting has been asked for.
    meeting: bool,
}

/// Copies of the slots of `on`, for `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Copies {
    of: NodeId,
    on: NodeId,
}

/// See the module.
#[derive(Debug)]
pub struct Council {
    seats: BTreeMap<NodeId, Seat>,
    record: Record,
    phase: Phase,
    /// All that the writer had when this proxy met it has been decoded.
    decoded: bool,
    level: BTreeSet<NodeId>,
    promised: BTreeSet<NodeId>,
    recorded: BTreeSet<NodeId>,
    planned: bool,
    copies: BTreeSet<Copies>,
    copying: BTreeSet<Copies>,
    dropping: BTreeSet<Copies>,
}

impl Council {
    /// For a recorded writer that is in office. `reached` nodes have just been met; `decoded` says whether the
    /// writer has just taken office, with nothing in its log that is still to be decoded.
    pub fn new(
        record: Record,
        parts: &BTreeMap<NodeId, Part>,
        reached: &BTreeSet<NodeId>,
        decoded: bool,
    ) -> Self {
        let seat = |(node, part): (&NodeId, &Part)| {
            let reachable = reached.contains(node);
            let part = match part {
                Part::Live if !reachable => Part::Leaving,
                part => *part,
            };
            let met = matches!(part, Part::Writer | Part::Live);
            let seat = Seat {
                part,
                reachable,
                met,
                meeting: false,
            };
            (*node, seat)
        };
        debug_assert!(reached.contains(&record.writer));
        Self {
            seats: parts.iter().map(seat).collect(),
            record,
            phase: Phase::Serving,
            decoded,
            level: BTreeSet::new(),
            promised: BTreeSet::new(),
            recorded: BTreeSet::new(),
            planned: false,
            copies: BTreeSet::new(),
            copying: BTreeSet::new(),
            dropping: BTreeSet::new(),
        }
    }

    /// Takes an event; what is to be done because of it is added to `commands`.
    pub fn handle(&mut self, event: Event, commands: &mut Vec<Command>) {
        if self.phase == Phase::Concluded {
            return;
        }
        match event {
            Event::Began => {}
            Event::Decoded => self.decoded = true,
            Event::Lost(node) => self.lost(node, commands),
            Event::Reached(node) => self.reached(node, commands),
            Event::Met { node, strays } => self.met(node, strays, commands),
            Event::Differs(node) => self.fence(node, commands),
            Event::Mend(node) => self.mend(node),
            Event::Joined(node) => self.joined(node),
            Event::Level(node) => {
                self.level.insert(node);
            }
            Event::Copied { of, on } => {
                if self.copying.remove(&Copies { of, on }) {
                    self.copies.insert(Copies { of, on });
                }
            }
            Event::Settled(node) => self.settled(node, commands),
            Event::Dropped { of, on } => {
                self.dropping.remove(&Copies { of, on });
            }
            Event::Promised(node) => {
                self.promised.insert(node);
            }
            Event::Recorded(node) => {
                self.recorded.insert(node);
            }
            Event::Outrun => self.conclude(Why::Outrun, commands),
            Event::TookOffice(start) => self.took_office(start, commands),
            Event::Promote(node) => self.promote(node, commands),
            Event::Drained => self.drained(commands),
            Event::Abandon => self.abandon(commands),
        }
        self.advance(commands);
    }

    fn conclude(&mut self, why: Why, commands: &mut Vec<Command>) {
        self.phase = Phase::Concluded;
        commands.push(Command::Conclude(why));
    }

    // Losing and finding.

    fn lost(&mut self, node: NodeId, commands: &mut Vec<Command>) {
        let Some(seat) = self.seats.get_mut(&node) else {
            return;
        };
        (seat.reachable, seat.met, seat.meeting) = (false, false, false);
        let part = seat.part;
        // Whether it still does what it was asked, nobody knows; when it is met again, it will not.
        let unknown = |copies: &Copies| copies.on == node;
        self.copies.retain(|copies| !unknown(copies));
        self.copying.retain(|copies| !unknown(copies));
        self.dropping.retain(|copies| !unknown(copies));
        match part {
            Part::Writer => self.lost_writer(commands),
            Part::Live => {
                self.set(node, Part::Leaving);
                commands.push(Command::Out(node));
            }
            Part::Joining => {
                self.set(node, Part::Away);
                commands.push(Command::Out(node));
            }
            Part::Leaving | Part::Away | Part::Fenced => {}
        }
        match self.phase {
            Phase::Recording { to, .. } | Phase::Taking { to } if to == node => {
                self.conclude(Why::Unfinished, commands);
            }
            Phase::Handing { to, .. } if to == node => self.abandon(commands),
            _ => {}
        }
    }

    fn lost_writer(&mut self, commands: &mut Vec<Command>) {
        match self.phase {
            Phase::Serving | Phase::Handing { .. } if !self.decoded => {
                self.conclude(Why::Undecoded, commands);
            }
            Phase::Serving | Phase::Handing { .. } => {
                self.phase = Phase::Vacant;
                self.level.clear();
                commands.push(Command::Level);
            }
            // It is being followed already, or is.
            _ => {}
        }
    }

    fn reached(&mut self, node: NodeId, commands: &mut Vec<Command>) {
        let Some(seat) = self.seats.get_mut(&node) else {
            return;
        };
        if seat.reachable {
            return;
        }
        seat.reachable = true;
        if let Phase::Recording { promised, .. } = self.phase {
            self.ask(node, promised, commands);
        }
    }

    fn met(&mut self, node: NodeId, strays: bool, commands: &mut Vec<Command>) {
        let Some(seat) = self.seats.get_mut(&node) else {
            return;
        };
        if !std::mem::take(&mut seat.meeting) {
            return;
        }
        seat.met = true;
        if seat.part == Part::Writer {
            if self.phase == Phase::Vacant {
                self.phase = Phase::Serving;
                commands.push(Command::Resume);
            }
        } else if strays {
            self.fence(node, commands);
        }
    }

    fn fence(&mut self, node: NodeId, commands: &mut Vec<Command>) {
        match self.part(node) {
            Some(Part::Live | Part::Joining) => commands.push(Command::Out(node)),
            Some(Part::Leaving | Part::Away) => {}
            Some(Part::Writer | Part::Fenced) | None => return,
        }
        self.set(node, Part::Fenced);
        self.drop_copies(node, commands);
        match self.phase {
            Phase::Recording { to, .. } | Phase::Taking { to } if to == node => {
                self.conclude(Why::Unfinished, commands);
            }
            Phase::Handing { to, .. } if to == node => self.abandon(commands),
            _ => {}
        }
    }

    fn mend(&mut self, node: NodeId) {
        if self.part(node) == Some(Part::Fenced) {
            self.set(node, Part::Leaving);
            if let Some(seat) = self.seats.get_mut(&node) {
                (seat.met, seat.meeting) = (false, false);
            }
        }
    }

    fn joined(&mut self, node: NodeId) {
        if self.part(node) == Some(Part::Joining) && self.phase == Phase::Serving {
            self.set(node, Part::Live);
        }
    }

    fn settled(&mut self, node: NodeId, commands: &mut Vec<Command>) {
        if self.part(node) != Some(Part::Live) || self.phase != Phase::Serving {
            return;
        }
        self.drop_copies(node, commands);
    }

    fn drop_copies(&mut self, node: NodeId, commands: &mut Vec<Command>) {
        let whose = |copies: &&Copies| copies.of == node;
        let done: Vec<Copies> = self.copies.iter().filter(whose).copied().collect();
        for copies in done {
            self.copies.remove(&copies);
            self.dropping.insert(copies);
            let Copies { of, on } = copies;
            commands.push(Command::Drop { of, on });
        }
    }

    // Another writer.

    fn promote(&mut self, to: NodeId, commands: &mut Vec<Command>) {
        if self.phase == Phase::Serving && self.decoded && self.part(to) == Some(Part::Live) {
            self.phase = Phase::Handing { to, drained: false };
            self.level.clear();
            commands.push(Command::Hold);
        }
    }

    fn drained(&mut self, commands: &mut Vec<Command>) {
        if let Phase::Handing { to, drained: false } = self.phase {
            self.phase = Phase::Handing { to, drained: true };
            commands.push(Command::Level);
        }
    }

    fn abandon(&mut self, commands: &mut Vec<Command>) {
        if let Phase::Handing { .. } = self.phase {
            self.phase = Phase::Serving;
            commands.push(Command::Resume);
        }
    }

    fn begin_change(&mut self, to: NodeId, planned: bool, commands: &mut Vec<Command>) {
        self.phase = Phase::Recording {
            to,
            promised: false,
        };
        self.planned = planned;
        self.promised.clear();
        self.recorded.clear();
        let epoch = Epoch(self.record.epoch.0 + 1);
        self.record = Record {
            epoch,
            term: epoch,
            writer: self.record.writer,
        };
        for node in self.reachable() {
            self.ask(node, false, commands);
        }
    }

    fn ask(&self, node: NodeId, promised: bool, commands: &mut Vec<Command>) {
        let Phase::Recording { to, .. } = self.phase else {
            return;
        };
        let record = Record {
            writer: to,
            ..self.record
        };
        commands.push(if promised {
            Command::Record { node, record }
        } else {
            let epoch = record.epoch;
            Command::Promise { node, epoch }
        });
    }

    fn took_office(&mut self, start: Lsn, commands: &mut Vec<Command>) {
        let Phase::Taking { to } = self.phase else {
            return;
        };
        let former = self.record.writer;
        self.record.writer = to;
        self.phase = Phase::Serving;
        self.decoded = true;
        self.level.clear();
        self.set(to, Part::Writer);
        for (node, seat) in &mut self.seats {
            let held = self.copies.contains(&Copies { of: *node, on: to });
            match seat.part {
                Part::Writer if *node == former => {
                    let stays = self.planned && seat.reachable && seat.met;
                    seat.part = if stays { Part::Live } else { Part::Leaving };
                    seat.met = stays;
                }
                Part::Joining => {
                    commands.push(Command::Out(*node));
                    seat.part = if held { Part::Away } else { Part::Leaving };
                    seat.met = false;
                }
                // Where the new writer has no copies its own slots hold what the node lacks.
                Part::Away => {
                    seat.part = if held { Part::Away } else { Part::Leaving };
                    seat.met = false;
                }
                Part::Leaving => seat.met = false,
                Part::Writer | Part::Live | Part::Fenced => {}
            }
            seat.meeting = false;
        }
        commands.push(Command::Serve {
            writer: to,
            term: self.record.term,
            start,
        });
    }

    // What follows from what is known.

    fn advance(&mut self, commands: &mut Vec<Command>) {
        match self.phase {
            Phase::Concluded => return,
            Phase::Vacant => self.advance_vacant(commands),
            Phase::Handing { to, drained: true } if self.all_level() => {
                self.begin_change(to, true, commands);
            }
            Phase::Serving | Phase::Handing { .. } => self.advance_members(commands),
            Phase::Recording { to, promised } => self.advance_recording(to, promised, commands),
            Phase::Taking { .. } => {}
        }
        if self.phase != Phase::Concluded {
            self.copy(commands);
        }
    }

    fn advance_vacant(&mut self, commands: &mut Vec<Command>) {
        let writer = self.record.writer;
        if self.seats.get(&writer).is_some_and(|seat| seat.reachable) {
            self.meet(writer, commands);
            return;
        }
        let sound = |seat: &&Seat| seat.reachable && seat.part != Part::Fenced;
        if self.seats.values().filter(sound).count() < self.majority() {
            return;
        }
        let first = self.live().next();
        match first {
            None => self.conclude(Why::NobodyLevel, commands),
            Some(to) if self.all_level() => self.begin_change(to, false, commands),
            Some(_) => {}
        }
    }

    fn advance_recording(&mut self, to: NodeId, promised: bool, commands: &mut Vec<Command>) {
        let enough =
            |nodes: &BTreeSet<NodeId>| nodes.len() >= self.majority() && nodes.contains(&to);
        if !promised && enough(&self.promised) {
            self.phase = Phase::Recording { to, promised: true };
            for node in self.reachable() {
                self.ask(node, true, commands);
            }
        } else if promised && enough(&self.recorded) {
            self.phase = Phase::Taking { to };
            let term = self.record.term;
            commands.push(Command::TakeOffice { node: to, term });
        }
    }

    /// Lost nodes that may be forgotten by the slots in use, and those that come back.
    fn advance_members(&mut self, commands: &mut Vec<Command>) {
        let others: Vec<NodeId> = self.seats.keys().copied().collect();
        for node in others {
            if self.part(node) == Some(Part::Leaving) && self.is_copied(node) {
                self.set(node, Part::Away);
            }
            let Some(seat) = self.seats.get(&node).copied() else {
                continue;
            };
            match seat.part {
                Part::Leaving | Part::Away if seat.reachable && !seat.met => {
                    self.meet(node, commands);
                }
                Part::Away if seat.reachable && self.phase == Phase::Serving => {
                    self.set(node, Part::Joining);
                    commands.push(Command::Join(node));
                }
                _ => {}
            }
        }
    }

    /// Whoever is not served by the stream is held by copies on every node that serves.
    fn copy(&mut self, commands: &mut Vec<Command>) {
        let owed = |part| matches!(part, Part::Leaving | Part::Away | Part::Joining);
        let owed: Vec<NodeId> = self.nodes_that(|seat| owed(seat.part));
        let serving = self.nodes_that(|seat| {
            seat.reachable && seat.met && matches!(seat.part, Part::Writer | Part::Live)
        });
        for of in owed {
            for on in &serving {
                let copies = Copies { of, on: *on };
                let known = self.copies.contains(&copies) || self.dropping.contains(&copies);
                if !known && self.copying.insert(copies) {
                    commands.push(Command::Copy { of, on: *on });
                }
            }
        }
    }

    fn meet(&mut self, node: NodeId, commands: &mut Vec<Command>) {
        if let Some(seat) = self.seats.get_mut(&node)
            && !seat.met
            && !std::mem::replace(&mut seat.meeting, true)
        {
            commands.push(Command::Meet(node));
        }
    }

    fn set(&mut self, node: NodeId, part: Part) {
        if let Some(seat) = self.seats.get_mut(&node) {
            seat.part = part;
        }
    }

    fn nodes_that(&self, has: impl Fn(&Seat) -> bool) -> Vec<NodeId> {
        let found = self.seats.iter().filter(|(_, seat)| has(seat));
        found.map(|(node, _)| *node).collect()
    }

    fn reachable(&self) -> Vec<NodeId> {
        self.nodes_that(|seat| seat.reachable)
    }

    fn live(&self) -> impl Iterator<Item = NodeId> {
        let live = |(_, seat): &(&NodeId, &Seat)| seat.part == Part::Live;
        self.seats.iter().filter(live).map(|(node, _)| *node)
    }

    fn all_level(&self) -> bool {
        self.live().all(|node| self.level.contains(&node))
    }

    fn is_copied(&self, of: NodeId) -> bool {
        let mut serving = self
            .seats
            .iter()
            .filter(|(_, seat)| matches!(seat.part, Part::Writer | Part::Live));
        serving.all(|(on, _)| self.copies.contains(&Copies { of, on: *on }))
    }

    /// Every configured node.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.nodes_that(|_| true)
    }

    /// Nodes that make a majority.
    pub fn majority(&self) -> usize {
        self.seats.len() / 2 + 1
    }

    /// A node's part.
    pub fn part(&self, node: NodeId) -> Option<Part> {
        self.seats.get(&node).map(|seat| seat.part)
    }

    /// How it counts for the confirmer; none for the writer.
    pub fn standing(&self, node: NodeId) -> Option<Standing> {
        match self.part(node)? {
            Part::Writer => None,
            Part::Live => Some(Standing::InSync),
            Part::Leaving => Some(Standing::Leaving),
            Part::Away | Part::Joining | Part::Fenced => Some(Standing::Out),
        }
    }

    /// Where the cluster stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The newest epoch, and the writer with its term (the former one's until another is in office).
    pub fn record(&self) -> Record {
        self.record
    }

    /// Who writes, if anybody does now.
    pub fn writer(&self) -> Option<NodeId> {
        match self.phase {
            Phase::Serving | Phase::Handing { .. } => Some(self.record.writer),
            _ => None,
        }
    }

    /// Whether sessions may begin new work on the writer, as far as the council knows.
    pub fn takes_writes(&self) -> bool {
        self.phase == Phase::Serving && 1 + self.live().count() >= self.majority()
    }

    /// Whether the slots of a live node may move, if every owed node has what they forget: whoever is away is held
    /// by copies there.
    pub fn may_move(&self, on: NodeId) -> bool {
        let held = |(of, seat): (&NodeId, &Seat)| {
            !matches!(seat.part, Part::Away | Part::Joining)
                || self.copies.contains(&Copies { of: *of, on })
        };
        self.phase == Phase::Serving
            && self.part(on) == Some(Part::Live)
            && self.seats.iter().all(held)
    }

    /// Whether a node is owed what it lacks by the slots in use.
    pub fn is_owed(&self, node: NodeId) -> bool {
        matches!(self.part(node), Some(Part::Live | Part::Leaving))
    }
}

#[cfg(test)]
#[path = "../council_tests.rs"]
mod tests;
