//! The model of the proxy: the shell around the engine's decisions. It decides nothing by itself.
//!
//! What it knows is lost when it dies. It is at one of two stages: it meets the nodes (`begin.rs`), or it runs
//! (`steps.rs`, `clients.rs`), which ends when the council concludes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use synapsedb::engine::confirm::{Confirmer, Report};
use synapsedb::engine::council::Council;
use synapsedb::engine::council::words::{Command, Event, Part, Phase};
use synapsedb::engine::horizon::Horizon;
use synapsedb::engine::recovery::{Facts, Record, strays};
use synapsedb::engine::slots::Slots;
use synapsedb::ids::{Epoch, Lsn, NodeId, UnitId};

use crate::begin::Meeting;
use crate::clients::Clients;
use crate::orders::{Answer, Body, Item, Order};
use crate::server::{Write, entries_before};
use crate::world::{Net, Planted};

/// The only database's stream.
pub const STREAM: usize = 0;

/// Connections to the nodes that are thought to be there.
pub struct Link {
    pub proxy: u32,
    /// By node: the connections' generation, and which start of the server they are to.
    pub connections: BTreeMap<NodeId, (u64, u64)>,
}

impl Link {
    /// Sends an order, if there is a connection.
    pub fn send(&self, net: &mut Net, node: NodeId, body: Body, client: Option<usize>) -> bool {
        let Some(connection) = self.connections.get(&node) else {
            return false;
        };
        // One question at a time, and the next report when the last one has arrived.
        let coalesced = matches!(body, Body::Show | Body::Report { .. } | Body::Sample);
        let same = |order: &Order| {
            let connected = order.proxy == self.proxy && order.generation == connection.0;
            let kind = std::mem::discriminant(&order.body) == std::mem::discriminant(&body);
            connected && kind && order.node == node
        };
        if coalesced && net.orders.iter().any(same) {
            return false;
        }
        net.send(self.proxy, *connection, node, body, client);
        true
    }

    /// New connections, whose answers alone count from now on.
    pub fn renew(&mut self, net: &mut Net, node: NodeId) {
        if let Some(connection) = self.connections.get_mut(&node) {
            connection.0 = net.generation();
        }
    }

    pub fn connect(&mut self, net: &mut Net, node: NodeId) {
        let starts = net.servers[node.0].starts;
        let generation = net.generation();
        self.connections.insert(node, (generation, starts));
    }

    /// Whether what the node sends arrives.
    pub fn reads(&self, net: &Net, node: NodeId) -> bool {
        let server = &net.servers[node.0];
        let known = self.connections.get(&node);
        server.answers() && known.is_some_and(|(_, starts)| *starts == server.starts)
    }
}

/// A follower that is given units.
pub struct Follower {
    pub queue: VecDeque<Item>,
    /// The last unit queued, ever.
    pub last: UnitId,
    /// The last one handed to its applier.
    pub given: UnitId,
    /// How many items its applier has in hand.
    pub busy: usize,
}

impl Follower {
    pub fn at(place: UnitId) -> Self {
        Self {
            queue: VecDeque::new(),
            last: place,
            given: place,
            busy: 0,
        }
    }

    /// The same, and its applier has yet to begin.
    pub fn beginning(place: UnitId) -> Self {
        let mut follower = Self::at(place);
        follower.queue.push_back(Item::Place(place));
        follower
    }

    pub fn push(&mut self, item: Item) {
        if item.unit() > self.last {
            self.last = item.unit();
            self.queue.push_back(item);
        }
    }

    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }
}

/// A proxy that runs.
#[expect(
    clippy::struct_excessive_bools,
    reason = "a model says plainly what is so"
)]
pub struct Running {
    pub council: Council,
    pub confirmer: Confirmer,
    pub horizon: Horizon,
    pub slots: Slots,
    pub clients: Clients,
    /// What the writer had when it was met or took office.
    pub writer_facts: Facts,
    /// Where its office began.
    pub office: Lsn,
    /// Where its stream began.
    pub start: Lsn,
    /// The entry that is decoded next; none while the writer is not read.
    pub stream: Option<usize>,
    /// Up to where the writer's log has ever been decoded in its term.
    pub furthest: Lsn,
    /// All up to here was there when the writer was met.
    pub met_end: Lsn,
    pub told_decoded: bool,
    /// Writes that have been decoded.
    pub decoded: BTreeSet<Write>,
    pub followers: BTreeMap<NodeId, Follower>,
    /// Where catching up reads the writer's log.
    pub catchups: BTreeMap<NodeId, usize>,
    /// What each follower is known to have durable.
    pub places: BTreeMap<NodeId, UnitId>,
    pub held: bool,
    /// The council wants to know who is level.
    pub levelling: bool,
    pub reported: Report,
    pub concluded: bool,
}

impl Running {
    pub fn new(
        record: Record,
        office: Lsn,
        slot: Lsn,
        parts: &BTreeMap<NodeId, Part>,
        facts: &BTreeMap<NodeId, Facts>,
        fresh: bool,
        decoded: bool,
    ) -> Self {
        let reached: BTreeSet<NodeId> = facts.keys().copied().collect();
        let writer_facts = facts[&record.writer].clone();
        let start = if fresh { office } else { office.max(slot) };
        let mut running = Self {
            council: Council::new(record, parts, &reached, decoded),
            confirmer: Confirmer::new(parts.len(), []),
            horizon: Horizon::begin(record.writer, record.term, start, writer_facts.end),
            slots: Slots::default(),
            clients: Clients::new(),
            met_end: writer_facts.end,
            writer_facts,
            office,
            start,
            stream: None,
            furthest: start,
            told_decoded: decoded,
            decoded: BTreeSet::new(),
            followers: BTreeMap::new(),
            catchups: BTreeMap::new(),
            places: BTreeMap::new(),
            held: false,
            levelling: false,
            reported: Report::default(),
            concluded: false,
        };
        for (node, facts) in facts {
            running.places.insert(*node, facts.history());
            if *node != record.writer {
                running.slots.met(*node, facts.history());
            }
            if running.council.part(*node) == Some(Part::Live) {
                running
                    .followers
                    .insert(*node, Follower::at(facts.history()));
            }
        }
        running.open(fresh);
        running
    }

    /// A new confirmer for the writer's term, and its stream from the beginning.
    fn open(&mut self, fresh: bool) {
        let record = self.council.record();
        let nodes = self.council.nodes();
        let standing = |node: &NodeId| Some((*node, self.council.standing(*node)?));
        let followers: Vec<_> = nodes.iter().filter_map(standing).collect();
        self.confirmer = Confirmer::new(nodes.len(), followers);
        let live = |node: &NodeId| self.council.part(*node) == Some(Part::Live);
        let place = |node: NodeId| {
            let place = *self.places.get(&node)?;
            (place.term == record.term).then_some((node, place.lsn))
        };
        let places: BTreeMap<_, _> = nodes
            .iter()
            .copied()
            .filter(live)
            .filter_map(place)
            .collect();
        self.confirmer.add_stream(STREAM, self.start, &places);
        for (node, lsn) in places {
            // Nothing is read there before its applier has begun.
            let place = UnitId {
                term: record.term,
                lsn,
            };
            self.followers.insert(node, Follower::beginning(place));
        }
        if fresh {
            self.inaugurate();
        }
        self.stream = Some(entries_before(self.start));
    }

    /// Every live node is given its place in the new term.
    fn inaugurate(&mut self) {
        let place = UnitId {
            term: self.council.record().term,
            lsn: self.office,
        };
        for node in self.council.nodes() {
            if self.council.part(node) == Some(Part::Live) {
                let history = self.places.get(&node).copied().unwrap_or_default();
                let follower = self
                    .followers
                    .entry(node)
                    .or_insert_with(|| Follower::at(history));
                follower.push(Item::Place(place));
            }
        }
    }

    /// Tells the council and does what it says.
    pub fn tell(&mut self, event: Event, link: &mut Link, net: &mut Net) {
        let mut commands = Vec::new();
        self.council.handle(event, &mut commands);
        net.trace(&|| format!("    {event:?} -> {commands:?}"));
        if net.plants(Planted::ForgetCopies) {
            commands.retain(|command| !matches!(command, Command::Copy { .. }));
            for node in self.council.nodes() {
                for on in self.council.nodes() {
                    let copied = Event::Copied { of: node, on };
                    self.council.handle(copied, &mut Vec::new());
                }
            }
        }
        for command in commands {
            self.carry_out(command, link, net);
        }
        for node in self.council.nodes() {
            if let Some(standing) = self.council.standing(node) {
                self.confirmer.set_standing(node, standing);
            }
        }
    }

    fn carry_out(&mut self, command: Command, link: &mut Link, net: &mut Net) {
        match command {
            Command::Level => {
                self.levelling = true;
                if self.council.phase() == Phase::Vacant {
                    self.stream = None;
                    self.horizon.vacate();
                }
            }
            Command::Hold => self.held = true,
            Command::Resume => self.resume(),
            Command::Promise { node, epoch } => {
                link.send(net, node, Body::Promise(epoch), None);
            }
            Command::Record { node, record } => {
                link.send(net, node, Body::Record(record), None);
            }
            Command::TakeOffice { node, term } => {
                link.send(net, node, Body::TakeOffice(term), None);
            }
            Command::Serve { start, .. } => self.serve(start),
            Command::Meet(node) => {
                link.renew(net, node);
                let epoch = self.council.record().epoch;
                link.send(net, node, Body::Meet(epoch), None);
            }
            Command::Join(node) => {
                let Some(writer) = self.council.writer() else {
                    return;
                };
                let place = self.places.get(&node).copied().unwrap_or_default();
                let server = &net.servers[writer.0];
                let copy = server.copies.get(&node).copied();
                let from = copy.expect("an away node has copies on the writer");
                self.followers.insert(node, Follower::beginning(place));
                self.catchups.insert(node, entries_before(from));
            }
            Command::Out(node) => {
                self.followers.remove(&node);
                self.catchups.remove(&node);
                self.horizon.forget(node);
                link.renew(net, node);
            }
            Command::Copy { of, on } => {
                link.send(net, on, Body::Copy(of), Some(of.0));
            }
            Command::Drop { of, on } => {
                link.send(net, on, Body::Drop(of), Some(of.0));
            }
            Command::Conclude(_) => self.concluded = true,
        }
    }

    fn resume(&mut self) {
        self.held = false;
        self.levelling = false;
        if self.stream.is_none() {
            self.horizon.resume(self.met_end);
            self.restart_stream();
        }
    }

    /// The stream broke: the slot remembers where it goes on.
    pub fn restart_stream(&mut self) {
        self.confirmer.restart_stream(STREAM);
        self.stream = Some(entries_before(self.confirmer.decoded()));
    }

    fn serve(&mut self, start: Lsn) {
        let record = self.council.record();
        self.held = false;
        self.levelling = false;
        self.office = start;
        self.start = start;
        self.furthest = start;
        self.met_end = start;
        self.told_decoded = true;
        self.reported = Report::default();
        self.followers.remove(&record.writer);
        self.catchups.clear();
        self.slots.new_term();
        self.horizon = Horizon::begin(record.writer, record.term, start, start);
        self.open(true);
    }

    /// An answer that is still wanted has come.
    pub fn answered(&mut self, order: &Order, answer: Answer, link: &mut Link, net: &mut Net) {
        let node = order.node;
        if let Some(client) = order.client
            && matches!(order.body, Body::Read | Body::Write(_))
        {
            self.client_answered(client, node, answer, net);
            return;
        }
        match (&order.body, answer) {
            (_, Answer::Refused(_)) => self.tell(Event::Outrun, link, net),
            (Body::Promise(_), _) => self.tell(Event::Promised(node), link, net),
            (Body::Record(_), _) => self.tell(Event::Recorded(node), link, net),
            (Body::TakeOffice(_), Answer::Office(facts, start)) => {
                self.writer_facts = *facts;
                self.tell(Event::TookOffice(start), link, net);
            }
            (Body::Meet(_), Answer::Met(facts, _)) => self.met(node, &facts, link, net),
            (Body::Apply(items), _) => self.applied(node, items),
            (Body::Show, Answer::Shown(place)) if self.council.writer() == Some(node) => {
                self.horizon.shown(place);
            }
            (Body::Copy(of), _) => self.tell(Event::Copied { of: *of, on: node }, link, net),
            (Body::Drop(of), _) => self.tell(Event::Dropped { of: *of, on: node }, link, net),
            (Body::Sample, Answer::Sampled(local)) => {
                if let Some(follower) = self.followers.get(&node) {
                    self.slots.sampled(node, local, follower.given);
                }
            }
            _ => {}
        }
    }

    fn met(&mut self, node: NodeId, facts: &Facts, link: &mut Link, net: &mut Net) {
        self.places.insert(node, facts.history());
        if self.council.record().writer != node {
            self.slots.met(node, facts.history());
        }
        let mut stray = strays(facts, &self.writer_facts);
        if self.council.record().writer == node {
            self.met_end = facts.end;
            stray = false;
        } else if net.plants(Planted::TakeStraysBack) {
            stray = false;
        }
        let event = Event::Met {
            node,
            strays: stray,
        };
        self.tell(event, link, net);
    }

    fn applied(&mut self, node: NodeId, items: &[Item]) {
        let Some(follower) = self.followers.get_mut(&node) else {
            return;
        };
        follower.busy = 0;
        follower.queue.drain(..items.len());
        let Some(last) = items.last().map(|item| item.unit()) else {
            return;
        };
        self.places.insert(node, last);
        if last.term == self.horizon.term() {
            self.confirmer.applied(STREAM, node, last.lsn);
            if self.council.part(node) == Some(Part::Live) {
                self.horizon.applied(node, last.lsn);
            }
        }
    }

    /// A node's connections are gone.
    pub fn lost(&mut self, node: NodeId, link: &mut Link, net: &mut Net) {
        self.clients.lost(node);
        self.tell(Event::Lost(node), link, net);
    }
}

/// Where the proxy stands.
pub enum Stage {
    Meeting(Box<Meeting>),
    Running(Box<Running>),
}

/// See the module.
pub struct Proxy {
    pub link: Link,
    pub stage: Stage,
    /// An epoch that is too old already.
    pub floor: Epoch,
}

impl Proxy {
    pub fn new(proxy: u32) -> Self {
        Self {
            link: Link {
                proxy,
                connections: BTreeMap::new(),
            },
            stage: Stage::Meeting(Box::default()),
            floor: Epoch(0),
        }
    }

    /// An answer arrives, unless its connection is given up.
    pub fn answered(&mut self, order: &Order, answer: Answer, net: &mut Net) {
        let known = self.link.connections.get(&order.node);
        let current = known.is_some_and(|(generation, _)| *generation == order.generation);
        if order.proxy != self.link.proxy || !current {
            return;
        }
        match &mut self.stage {
            Stage::Meeting(meeting) => meeting.answered(order, answer),
            Stage::Running(running) => running.answered(order, answer, &mut self.link, net),
        }
        self.turn(net);
    }

    /// From one stage to the other.
    pub fn turn(&mut self, net: &mut Net) {
        match &mut self.stage {
            Stage::Running(running) if running.concluded => {
                self.floor = self.floor.max(running.council.record().epoch);
                self.meet_again(net);
            }
            Stage::Running(_) => {}
            Stage::Meeting(meeting) => {
                if let Some(running) = meeting.ready.take() {
                    self.stage = Stage::Running(running);
                    if let Stage::Running(running) = &mut self.stage {
                        running.tell(Event::Began, &mut self.link, net);
                        // Found too late to be asked for its facts.
                        let nodes: Vec<NodeId> = self.link.connections.keys().copied().collect();
                        for node in nodes {
                            running.tell(Event::Reached(node), &mut self.link, net);
                        }
                    }
                } else if meeting.outrun {
                    self.floor = self.floor.max(meeting.newest());
                    self.meet_again(net);
                }
            }
        }
    }

    fn meet_again(&mut self, net: &mut Net) {
        let nodes: Vec<NodeId> = self.link.connections.keys().copied().collect();
        for node in nodes {
            self.link.renew(net, node);
        }
        net.trace(&|| "    begins anew from facts".to_owned());
        self.stage = Stage::Meeting(Box::default());
    }

    /// It notices that a node is gone or there again.
    pub fn notice(&mut self, node: NodeId, net: &mut Net) {
        let server = &net.servers[node.0];
        let (answers, starts) = (server.answers(), server.starts);
        match self.link.connections.get(&node) {
            Some((_, known)) if !answers || *known != starts => {
                net.trace(&|| format!("  proxy loses node {}", node.0));
                self.link.connections.remove(&node);
                match &mut self.stage {
                    Stage::Meeting(meeting) => meeting.lost(node),
                    Stage::Running(running) => running.lost(node, &mut self.link, net),
                }
            }
            None if answers => {
                net.trace(&|| format!("  proxy finds node {}", node.0));
                self.link.connect(net, node);
                if let Stage::Running(running) = &mut self.stage {
                    running.tell(Event::Reached(node), &mut self.link, net);
                }
            }
            _ => {}
        }
        self.turn(net);
    }
}
