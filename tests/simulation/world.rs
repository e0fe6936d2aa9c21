//! Everything there is: servers, what is on its way, the proxy if it lives, and the faults.

use synapsedb::engine::council::words::{Event, Part, Phase};
use synapsedb::engine::recovery::{Record, strays};
use synapsedb::ids::{Epoch, Lsn, NodeId, UnitId};

use crate::chance::Chance;
use crate::oracle::Oracle;
use crate::orders::{Answer, Body, Order, State};
use crate::proxy::{Proxy, Running, Stage};
use crate::server::{Entry, Server, Write};

/// How long faults happen, in steps.
const FAULTS: usize = 2500;
/// By when all must be well again.
const HEAL: usize = 100_000;

/// A fault in the proxy that the simulation must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    ShowAtOnce,
    ReadBehind,
    ConfirmAlone,
    FlushTheMajority,
    ForgetCopies,
    MoveWithoutCopies,
    SkipLevelling,
    NoDoubt,
    JoinEarly,
    TakeStraysBack,
    DropEarly,
    AdoptTheOldest,
    KeepOldConnections,
    MarkEarly,
    ElectAnybody,
    PretendDecoded,
    KeepWaits,
}

/// All of them.
pub const ALL: [Planted; 17] = [
    Planted::ShowAtOnce,
    Planted::ReadBehind,
    Planted::ConfirmAlone,
    Planted::FlushTheMajority,
    Planted::ForgetCopies,
    Planted::MoveWithoutCopies,
    Planted::SkipLevelling,
    Planted::NoDoubt,
    Planted::JoinEarly,
    Planted::TakeStraysBack,
    Planted::DropEarly,
    Planted::AdoptTheOldest,
    Planted::KeepOldConnections,
    Planted::MarkEarly,
    Planted::ElectAnybody,
    Planted::PretendDecoded,
    Planted::KeepWaits,
];

/// The servers and what is on its way to and from them.
pub struct Net {
    pub servers: Vec<Server>,
    pub orders: Vec<Order>,
    pub oracle: Oracle,
    pub chance: Chance,
    planted: Option<Planted>,
    traces: bool,
    numbers: u64,
    writes: Write,
    now: usize,
    /// How likely each of the proxy's own steps is.
    pub steps: [usize; 7],
}

impl Net {
    pub fn plants(&self, fault: Planted) -> bool {
        self.planted == Some(fault)
    }

    pub fn trace(&self, text: &dyn Fn() -> String) {
        if self.traces {
            println!("{}", text());
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub fn generation(&mut self) -> u64 {
        self.number()
    }

    pub fn next_write(&mut self) -> Write {
        self.writes += 1;
        self.writes
    }

    pub fn acknowledge(&mut self, write: Write) {
        self.trace(&|| format!("  write {write} is acknowledged"));
        self.oracle.acknowledge(write, &self.servers);
    }

    pub fn send(
        &mut self,
        proxy: u32,
        (generation, starts): (u64, u64),
        node: NodeId,
        body: Body,
        client: Option<usize>,
    ) {
        let id = self.number();
        let seldom = if matches!(body, Body::Copy(_)) { 3 } else { 12 };
        let late = if self.chance.one_in(seldom) { 150 } else { 1 };
        let after = self.now + self.chance.below(late);
        self.orders.push(Order {
            after,
            id,
            node,
            proxy,
            generation,
            starts,
            client,
            body,
            state: State::Sent,
        });
    }
}

/// See the module.
pub struct World {
    net: Net,
    proxy: Option<Proxy>,
    proxies: u32,
    step: usize,
    /// How likely each kind of step is.
    weights: [usize; 6],
    /// When the next fault happens that follows another one closely.
    soon: Option<usize>,
    /// So many steps after a proxy has begun the writer dies.
    doom: Option<usize>,
    /// About so many steps between two faults.
    calm: usize,
    /// Clients begin nothing more.
    quiet: bool,
}

/// What a schedule did, so that a test can say that something happened at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub acknowledged: usize,
    pub reads: usize,
    pub terms: u64,
    pub steps: usize,
}

impl World {
    pub fn new(seed: u64, planted: Option<Planted>, traces: bool) -> Self {
        let mut chance = Chance::new(seed);
        let nodes = if chance.one_in(3) { 5 } else { 3 };
        let weights = chance.moody([4, 4, 1, 4, 2, 2]);
        let steps = chance.moody([4, 2, 4, 1, 1, 2, 1]);
        let calm = chance.pick(&[20, 50, 100, 200]).unwrap_or(50);
        let record = Record {
            epoch: Epoch(1),
            term: Epoch(1),
            writer: NodeId(0),
        };
        let mut servers: Vec<Server> = (0..nodes)
            .map(|at| Server::new(NodeId(at), record))
            .collect();
        for server in &mut servers {
            server.keeps_waits = planted == Some(Planted::KeepWaits);
            if server.id == record.writer {
                server.offices.insert(record.term, Lsn(0));
            } else {
                server.places.insert(record.term, Lsn(0));
            }
        }
        Self {
            net: Net {
                servers,
                orders: Vec::new(),
                oracle: Oracle::default(),
                chance,
                planted,
                traces,
                numbers: 0,
                writes: 0,
                now: 0,
                steps,
            },
            proxy: Some(Proxy::new(1)),
            proxies: 1,
            step: 0,
            calm,
            weights,
            soon: None,
            doom: None,
            quiet: false,
        }
    }

    /// Faults for a while, then none: all must be well in the end.
    pub fn run(&mut self) -> Done {
        while self.step < FAULTS {
            self.advance();
            self.fault();
        }
        self.mend_all();
        let acknowledged = self.net.oracle.acknowledged;
        let reads = self.net.oracle.reads;
        let healed = self.step;
        while !self.is_well(acknowledged, reads) {
            self.quiet = self.is_served(acknowledged, reads);
            self.advance();
            self.mend_all();
            self.operate();
            assert!(
                self.step < healed + HEAL,
                "the cluster does not serve again: {}",
                self.describe()
            );
        }
        self.net.oracle.end(&self.net.servers);
        Done {
            acknowledged: self.net.oracle.acknowledged,
            reads: self.net.oracle.reads,
            terms: self.running().map_or(0, |running| running.horizon.term().0),
            steps: self.step,
        }
    }

    fn running(&self) -> Option<&Running> {
        match &self.proxy.as_ref()?.stage {
            Stage::Running(running) => Some(running),
            Stage::Meeting(_) => None,
        }
    }

    fn advance(&mut self) {
        self.step += 1;
        self.net.now = self.step;
        match self.net.chance.weighted(&self.weights) {
            0 => self.deliver(),
            1 => self.answer(),
            2 => self.wake(),
            3 => {
                if let Some(proxy) = &mut self.proxy {
                    proxy.step(&mut self.net);
                }
            }
            4 => self.step_client(),
            _ => self.notice(),
        }
    }

    fn step_client(&mut self) {
        if let Some(proxy) = &mut self.proxy
            && let Stage::Running(running) = &mut proxy.stage
        {
            running.step_client(!self.quiet, &proxy.link, &mut self.net);
        }
    }

    fn notice(&mut self) {
        let node = NodeId(self.net.chance.below(self.net.servers.len()));
        if let Some(proxy) = &mut self.proxy {
            let known = proxy.link.connections.contains_key(&node);
            if !known || self.net.chance.one_in(3) {
                proxy.notice(node, &mut self.net);
            }
        }
    }

    fn pick(&mut self, wanted: impl Fn(&Order, &Server) -> bool) -> Option<usize> {
        let servers = &self.net.servers;
        let found: Vec<usize> = (0..self.net.orders.len())
            .filter(|at| {
                let order = &self.net.orders[*at];
                wanted(order, &servers[order.node.0])
            })
            .collect();
        self.net.chance.pick(&found)
    }

    /// A server does what it is asked.
    fn deliver(&mut self) {
        let now = self.step;
        let sent = |order: &Order, server: &Server| {
            matches!(order.state, State::Sent) && order.after <= now && server.answers()
        };
        let Some(at) = self.pick(sent) else { return };
        let order = self.net.orders[at].clone();
        if self.is_late(&order) {
            return;
        }
        let keeps = self.net.plants(Planted::KeepOldConnections);
        let server = &mut self.net.servers[order.node.0];
        if order.starts != server.starts || !server.hears(&order) && !keeps {
            self.net.orders.swap_remove(at);
            return;
        }
        let answer = server.execute(&order);
        self.net.trace(&|| format!("  node {}: {:?}", order.node.0, order.body));
        self.net.orders[at].state = answer.map_or(State::Waits, State::Answered);
        self.check_slots(&order);
    }

    /// A slow server's applier takes its time.
    fn is_late(&mut self, order: &Order) -> bool {
        let slow = self.net.servers[order.node.0].slow;
        slow && matches!(order.body, Body::Apply(_)) && !self.net.chance.one_in(10)
    }

    fn check_slots(&self, order: &Order) {
        let moves = matches!(
            order.body,
            Body::Report { .. } | Body::Move(_) | Body::Copy(_) | Body::Drop(_)
        );
        let Some(running) = self.running().filter(|_| moves) else {
            return;
        };
        let on = &self.net.servers[order.node.0];
        if matches!(
            running.council.part(on.id),
            Some(Part::Fenced) | None
        ) {
            return;
        }
        for of in &self.net.servers {
            let part = running.council.part(of.id);
            // Whoever strays is owed nothing, also where the proxy has not found it out yet.
            let strays = strays(&of.facts(), &running.writer_facts);
            if of.id == on.id || of.wiped || strays || part == Some(Part::Fenced) {
                continue;
            }
            let place = on.copies.get(&of.id).copied().unwrap_or(on.slot);
            self.net.oracle.slot(on, of, place);
        }
    }

    /// An answer reaches the proxy, or nobody.
    fn answer(&mut self) {
        let answered = |order: &Order, server: &Server| {
            matches!(order.state, State::Answered(_)) && !server.cut
        };
        let Some(at) = self.pick(answered) else {
            return;
        };
        let order = self.net.orders.swap_remove(at);
        let State::Answered(answer) = order.state.clone() else {
            return;
        };
        if let Some(proxy) = &mut self.proxy {
            proxy.answered(&order, answer, &mut self.net);
        }
    }

    /// A commit that was released comes to be seen, and is answered.
    fn wake(&mut self) {
        let node = self.net.chance.below(self.net.servers.len());
        let server = &mut self.net.servers[node];
        if !server.alive || server.frozen {
            return;
        }
        let released = server.released();
        let Some(at) = self.net.chance.pick(&released) else {
            return;
        };
        let waits = self.net.servers[node].show(at);
        let order = self.net.orders.iter_mut().find(|order| Some(order.id) == waits);
        if let Some(order) = order {
            order.state = State::Answered(Answer::Done);
        }
    }

    fn fault(&mut self) {
        if self.running().is_some() && self.doom.is_some() {
            self.doom = self.doom.and_then(|doom| doom.checked_sub(1));
            if self.doom.is_none() {
                self.kill_writer();
            }
        }
        let due = self.soon.is_some_and(|soon| soon <= self.step);
        if !due && !self.net.chance.one_in(self.calm) {
            return;
        }
        let again = self.net.chance.one_in(3);
        let soon = self.step + 1 + self.net.chance.below(60);
        self.soon = again.then_some(soon);
        if self.net.chance.one_in(2) && self.relieve() {
            return;
        }
        let at = self.net.chance.below(self.net.servers.len());
        let kind = self.net.chance.below(19);
        let server = &mut self.net.servers[at];
        if server.wiped {
            return;
        }
        match kind {
            0 | 1 if server.alive => self.kill(at),
            2 if !server.alive => self.revive(at),
            5 | 6 if server.alive => {
                server.frozen = true;
                self.net.trace(&|| format!("node {at} freezes"));
            }
            8 => {
                server.cut = true;
                self.net.trace(&|| format!("node {at} is cut off"));
            }
            9 if server.alive => {
                self.kill(at);
                self.revive(at);
            }
            10 => self.kill_proxy(),
            11 => {
                self.kill_proxy();
                self.doom = Some(self.net.chance.below(60));
            }
            12 | 13 => self.promote(NodeId(at)),
            14 => self.kill_writer(),
            15..=17 => {
                server.slow = !server.slow;
                self.net.trace(&|| format!("node {at} becomes slow, or no longer"));
            }
            _ => self.operate(),
        }
    }

    /// One server that is dead, frozen or cut off is so no longer, if there is any.
    fn relieve(&mut self) -> bool {
        let ill = |server: &&Server| !server.wiped && !server.answers();
        let ill: Vec<usize> = self.net.servers.iter().filter(ill).map(|s| s.id.0).collect();
        let Some(at) = self.net.chance.pick(&ill) else {
            return false;
        };
        let server = &mut self.net.servers[at];
        if !server.alive {
            self.revive(at);
        } else if server.frozen {
            server.frozen = false;
            self.net.trace(&|| format!("node {at} thaws"));
        } else {
            server.cut = false;
            self.net.trace(&|| format!("node {at} is cut off no longer"));
        }
        true
    }

    fn kill(&mut self, at: usize) {
        self.net.trace(&|| format!("node {at} dies"));
        self.net.servers[at].crash();
        // What was on its way to it is gone; what it had answered may still arrive.
        let kept = |order: &Order| order.node.0 != at || matches!(order.state, State::Answered(_));
        self.net.orders.retain(kept);
    }

    fn kill_writer(&mut self) {
        let writer = self.running().and_then(|running| running.council.writer());
        if let Some(writer) = writer
            && self.net.servers[writer.0].alive
        {
            self.kill(writer.0);
        }
    }

    fn revive(&mut self, at: usize) {
        self.net.trace(&|| format!("node {at} starts"));
        self.net.servers[at].start();
    }

    fn kill_proxy(&mut self) {
        self.proxies += 1;
        self.net.trace(&|| "the proxy dies, and another starts".to_owned());
        self.proxy = Some(Proxy::new(self.proxies));
    }

    fn promote(&mut self, to: NodeId) {
        if let Some(proxy) = &mut self.proxy {
            if let Stage::Running(running) = &mut proxy.stage {
                running.tell(Event::Promote(to), &mut proxy.link, &mut self.net);
            }
            proxy.turn(&mut self.net);
        }
    }

    fn mend_all(&mut self) {
        for at in 0..self.net.servers.len() {
            let server = &mut self.net.servers[at];
            server.frozen = false;
            server.cut = false;
            server.slow = false;
            if !server.alive && !server.wiped {
                self.revive(at);
            }
        }
    }

    /// Somebody has fenced nodes made anew.
    fn operate(&mut self) {
        let Some(proxy) = &mut self.proxy else { return };
        let Stage::Running(running) = &mut proxy.stage else {
            return;
        };
        if running.council.phase() != Phase::Serving {
            return;
        }
        let nodes = running.council.nodes();
        let part = |node: &NodeId| running.council.part(*node);
        let wiped = nodes.iter().copied().find(|node| self.net.servers[node.0].wiped);
        if let Some(node) = wiped {
            if part(&node) == Some(Part::Away) {
                make_anew(running, node, &mut self.net);
            } else if part(&node) == Some(Part::Fenced) {
                running.tell(Event::Mend(node), &mut proxy.link, &mut self.net);
            }
            return;
        }
        let fenced = nodes.iter().copied().find(|node| part(node) == Some(Part::Fenced));
        if let Some(node) = fenced {
            self.net.trace(&|| format!("node {} is wiped", node.0));
            running.tell(Event::Mend(node), &mut proxy.link, &mut self.net);
            let server = &mut self.net.servers[node.0];
            server.crash();
            server.wiped = true;
            server.cut = false;
            self.net.orders.retain(|order| order.node != node);
            proxy.notice(node, &mut self.net);
        }
        proxy.turn(&mut self.net);
    }

    fn is_well(&self, acknowledged: usize, reads: usize) -> bool {
        let Some(running) = self.running() else {
            return false;
        };
        let council = &running.council;
        let serves = |node: &NodeId| matches!(council.part(*node), Some(Part::Writer | Part::Live));
        let Some(writer) = council.writer() else {
            return false;
        };
        let all = council.nodes();
        let idle = running.followers.values().all(|follower| follower.is_idle());
        let log = &self.net.servers[writer.0].log;
        council.phase() == Phase::Serving
            && all.iter().all(serves)
            && idle
            && running.stream.is_some_and(|at| at == log.len())
            && self.is_served(acknowledged, reads)
            && running.clients.are_done()
    }

    fn is_served(&self, acknowledged: usize, reads: usize) -> bool {
        self.net.oracle.acknowledged > acknowledged + 2 && self.net.oracle.reads > reads + 5
    }

    fn describe(&self) -> String {
        let Some(running) = self.running() else {
            return "the proxy meets the nodes".to_owned();
        };
        let nodes = running.council.nodes();
        let parts: Vec<_> = nodes.iter().filter_map(|n| running.council.part(*n)).collect();
        format!(
            "{:?} {parts:?} {:?} {:?} stream {:?}",
            running.council.phase(),
            running.horizon,
            running.confirmer,
            running.stream
        )
    }
}

/// A node gets all that everybody has, and its place; its copies elsewhere hold the rest. Where others
/// are on their way back, its own slot would not hold what they lack.
fn make_anew(running: &Running, node: NodeId, net: &mut Net) {
    let term = running.horizon.term();
    let mut least = UnitId {
        term,
        lsn: running.confirmer.decoded(),
    };
    for other in running.council.nodes() {
        match running.council.part(other) {
            Some(Part::Live) => {
                let place = running.places.get(&other).copied().unwrap_or_default();
                least = least.min(place);
            }
            Some(Part::Writer | Part::Fenced) => {}
            _ if other == node => {}
            _ => return,
        }
    }
    let Some(writer) = running.council.writer() else {
        return;
    };
    let server = &net.servers[writer.0];
    // Taken after its copies, it holds all that they have forgotten.
    let flush = running.last_before(server.slot);
    if least.term != term || !server.answers() || !running.slots.settled(least, flush) {
        return;
    }
    let own = |(at, entry): &(usize, &Entry)| {
        let unit = server.unit(*at).map(|(unit, _)| unit);
        matches!(entry, Entry::Base(_)) || unit.is_some_and(|unit| unit <= least)
    };
    let mut writes = Vec::new();
    for (_, entry) in server.log.iter().enumerate().filter(own) {
        match entry {
            Entry::Own { write, .. } | Entry::Applied { write, .. } => writes.push(*write),
            Entry::Base(base) => writes.extend(base),
            Entry::Local => {}
        }
    }
    net.trace(&|| format!("node {} is made anew up to {least}", node.0));
    net.servers[node.0].make_anew(writes, least);
}
