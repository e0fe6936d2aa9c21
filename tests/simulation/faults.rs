//! What goes wrong in a schedule, and the operator who mends what stays wrong: servers die, freeze and are cut off,
//! the proxy dies, the writer is to be another, fenced nodes are made anew.

use synapsedb::engine::council::words::{Event, Part, Phase};
use synapsedb::ids::{NodeId, UnitId};

use crate::orders::{Order, State};
use crate::proxy::{Proxy, Running, Stage};
use crate::server::{Entry, Server};
use crate::world::{Net, World};

impl World {
    pub fn fault(&mut self) {
        if let Some(turn) = self.turn {
            self.turn = turn.checked_sub(1);
            if turn == 0 {
                self.turn_over();
            }
        }
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
        let kind = self.net.chance.below(20);
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
            10 if self.net.chance.one_in(2) => self.kill_proxy(),
            11 if self.net.chance.one_in(2) => {
                self.kill_proxy();
                self.doom = Some(self.net.chance.below(60));
            }
            10..=13 => self.promote(),
            14 => self.kill_writer(),
            19 => self.turn_over(),
            15..=17 => {
                server.slow = !server.slow;
                self.net
                    .trace(&|| format!("node {at} becomes slow, or no longer"));
            }
            _ => self.operate(),
        }
    }

    /// One server that is dead, frozen or cut off is so no longer, if there is any.
    fn relieve(&mut self) -> bool {
        let ill = |server: &&Server| !server.wiped && !server.answers();
        let ill: Vec<usize> = self
            .net
            .servers
            .iter()
            .filter(ill)
            .map(|s| s.id.0)
            .collect();
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
            self.net
                .trace(&|| format!("node {at} is cut off no longer"));
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

    /// Whoever is left must know by itself what there was.
    fn turn_over(&mut self) {
        self.kill_writer();
        self.kill_proxy();
        while self.net.chance.one_in(2) && self.relieve() {}
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
        self.net
            .trace(&|| "the proxy dies, and another starts".to_owned());
        self.proxy = Some(Proxy::new(self.proxies));
    }

    fn promote(&mut self) {
        let Some(proxy) = &mut self.proxy else { return };
        if let Stage::Running(running) = &mut proxy.stage {
            let live = |node: &NodeId| running.council.part(*node) == Some(Part::Live);
            let live: Vec<NodeId> = running.council.nodes().into_iter().filter(live).collect();
            if let Some(to) = self.net.chance.pick(&live) {
                running.tell(Event::Promote(to), &mut proxy.link, &mut self.net);
            }
        }
        proxy.turn(&mut self.net);
    }

    pub fn mend_all(&mut self) {
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
    pub fn operate(&mut self) {
        let Some(proxy) = &mut self.proxy else { return };
        let Stage::Running(running) = &mut proxy.stage else {
            return;
        };
        if running.council.phase() != Phase::Serving {
            return;
        }
        let nodes = running.council.nodes();
        let part = |node: &NodeId| running.council.part(*node);
        let wiped = nodes
            .iter()
            .copied()
            .find(|node| self.net.servers[node.0].wiped);
        if let Some(node) = wiped {
            if part(&node) == Some(Part::Away) {
                make_anew(running, node, &mut self.net);
            } else if part(&node) == Some(Part::Fenced) {
                running.tell(Event::Mend(node), &mut proxy.link, &mut self.net);
            }
            return;
        }
        let fenced = nodes
            .iter()
            .copied()
            .find(|node| part(node) == Some(Part::Fenced));
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
    let kept = |(at, entry): &(usize, &Entry)| {
        let unit = server.unit(*at).map(|(unit, _)| unit);
        matches!(entry, Entry::Base(_)) || unit.is_some_and(|unit| unit <= least)
    };
    let mut held = Vec::new();
    for (_, entry) in server.log.iter().enumerate().filter(kept) {
        match entry {
            Entry::Own { write, .. } | Entry::Applied { write, .. } => held.push(*write),
            Entry::Base(base) => held.extend(base),
            Entry::Local => {}
        }
    }
    net.trace(&|| format!("node {} is made anew up to {least}", node.0));
    net.servers[node.0].make_anew(held, least);
}
