//! Everything there is: servers, what is on its way, the proxy if it lives, and the faults.

use synapsedb::engine::council::words::{Part, Phase};
use synapsedb::engine::recovery::{Record, strays};
use synapsedb::ids::{Epoch, Lsn, NodeId};

use crate::chance::Chance;
use crate::oracle::Oracle;
use crate::orders::{Answer, Body, Order, State};
use crate::proxy::{Follower, Proxy, Running, Stage};
use crate::server::{Server, Write};

/// How long faults happen, in steps.
const FAULTS: usize = 2500;
/// By when all must be well again.
const HEAL: usize = 100_000;

/// A fault in the proxy that the simulation must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A follower's answer goes out before the writer shows what it shows.
    ShowAtOnce,
    /// A read begins on a follower that lacks something acknowledged.
    ReadBehind,
    /// What has been decoded is reported as written.
    ConfirmAlone,
    /// What a majority has is reported as flushed.
    FlushTheMajority,
    /// No slots are copied for a node that leaves.
    ForgetCopies,
    /// A follower's slot moves though it has no copies for those who are away.
    MoveWithoutCopies,
    /// A follower is taken for level while it still has units to apply.
    SkipLevelling,
    /// A writer is used while what it shows may be on no majority.
    NoDoubt,
    /// A node is live before it was given all that came before the live stream.
    JoinEarly,
    /// Nobody is fenced for what it has and the others have not.
    TakeStraysBack,
    /// Copies go while their node lacks what slots have forgotten.
    DropEarly,
    /// A proxy that starts goes by the oldest record it finds.
    AdoptTheOldest,
    /// A killed proxy's connections are not ended.
    KeepOldConnections,
    /// What a follower may have shown is judged when the read begins.
    MarkEarly,
    /// The shortest history takes office.
    ElectAnybody,
    /// A writer that is lost before its log was read is followed by who has what was read.
    PretendDecoded,
    /// While there is no writer, answers go out whatever they show.
    AnswerInVacancy,
    /// A writer is trusted once a majority has its past, shown or not.
    TrustUnshown,
    /// An applier leaves commits waiting on a former writer.
    KeepWaits,
}

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
    pub net: Net,
    pub proxy: Option<Proxy>,
    pub proxies: u32,
    pub step: usize,
    /// How likely each kind of step is.
    weights: [usize; 6],
    /// When the next fault happens that follows another one closely.
    pub soon: Option<usize>,
    /// So many steps after a proxy has begun the writer dies.
    pub doom: Option<usize>,
    /// About so many steps between two faults.
    pub calm: usize,
    changes: usize,
    /// So many steps later a writer that has just taken office dies, and the proxy too.
    pub turn: Option<usize>,
    /// Clients begin nothing more.
    quiet: bool,
}

/// What a schedule did, so that a test can say that something happened at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub acknowledged: usize,
    pub reads: usize,
    /// How often a writer took office.
    pub changes: usize,
    pub steps: usize,
}

impl Done {
    pub fn add(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.reads += other.reads;
        self.changes += other.changes;
        self.steps += other.steps;
    }
}

impl World {
    pub fn new(seed: u64, planted: Option<Planted>, traces: bool) -> Self {
        let mut chance = Chance::new(seed);
        let nodes = if chance.one_in(3) { 5 } else { 3 };
        let weights = chance.moody([4, 4, 1, 4, 2, 2]);
        let steps = chance.moody([6, 3, 6, 2, 1, 3, 3]);
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
            changes: 0,
            turn: None,
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
            changes: self.changes,
            steps: self.step,
        }
    }

    pub fn running(&self) -> Option<&Running> {
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
        if matches!(order.body, Body::TakeOffice(_)) {
            self.changes += 1;
            self.turn = self.net.chance.one_in(4).then(|| self.net.chance.below(60));
        }
        self.net
            .trace(&|| format!("  node {}: {:?}", order.node.0, order.body));
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
        if matches!(running.council.part(on.id), Some(Part::Fenced) | None) {
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
            Oracle::slot(on, of, place);
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
        let order = self
            .net
            .orders
            .iter_mut()
            .find(|order| Some(order.id) == waits);
        if let Some(order) = order {
            order.state = State::Answered(Answer::Done);
        }
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
        let idle = running.followers.values().all(Follower::is_idle);
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
        let parts: Vec<_> = nodes
            .iter()
            .filter_map(|n| running.council.part(*n))
            .collect();
        format!(
            "{:?} {parts:?} {:?} {:?} stream {:?}",
            running.council.phase(),
            running.horizon,
            running.confirmer,
            running.stream
        )
    }
}
