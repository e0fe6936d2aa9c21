//! A proxy's first stage: it meets the nodes, and `recovery::decide` says what is done.

use std::collections::{BTreeMap, BTreeSet};

use synapsedb::engine::council::words::Part;
use synapsedb::engine::recovery::{Facts, Plan, decide, next_epoch};
use synapsedb::ids::{Epoch, Lsn, NodeId};

use crate::orders::{Answer, Body, Order};
use crate::proxy::{Link, Running};
use crate::world::{Net, Planted};

/// See the module.
#[derive(Default)]
pub struct Meeting {
    greeted: BTreeSet<NodeId>,
    promises: BTreeMap<NodeId, Epoch>,
    /// Chosen once a majority has said what it has promised.
    epoch: Option<Epoch>,
    /// Asked to promise it.
    bound: BTreeSet<NodeId>,
    /// Have promised it, and are to be met.
    asked: BTreeSet<NodeId>,
    facts: BTreeMap<NodeId, (Facts, Lsn)>,
    plan: Option<Plan>,
    recorded: BTreeSet<NodeId>,
    taking: bool,
    pub outrun: bool,
    pub ready: Option<Box<Running>>,
}

impl Meeting {
    /// The newest epoch it has heard of.
    pub fn newest(&self) -> Epoch {
        let heard = self.promises.values().copied().max().unwrap_or_default();
        heard.max(self.epoch.unwrap_or_default())
    }

    pub fn lost(&mut self, node: NodeId) {
        self.greeted.remove(&node);
        self.promises.remove(&node);
        self.bound.remove(&node);
        self.asked.remove(&node);
        if self.facts.remove(&node).is_some() && self.plan.is_some() {
            // What was decided may rest on it.
            self.outrun = true;
        }
    }

    pub fn answered(&mut self, order: &Order, answer: Answer) {
        let node = order.node;
        match (&order.body, answer) {
            (_, Answer::Refused(_)) => self.outrun = true,
            (Body::Greet, Answer::Promised(epoch)) => {
                self.promises.insert(node, epoch);
            }
            (Body::Promise(_), Answer::Done) => {
                self.asked.insert(node);
            }
            (Body::Meet(_), Answer::Met(facts, slot)) => {
                self.facts.insert(node, (*facts, slot));
            }
            (Body::Record(_), Answer::Done) => {
                self.recorded.insert(node);
            }
            (Body::TakeOffice(_), Answer::Office(facts, start)) => {
                let slot = self.facts.get(&node).map_or(Lsn(0), |(_, slot)| *slot);
                self.facts.insert(node, (*facts, slot));
                if let Some(Plan::Elect { record, parts }) = &self.plan {
                    let facts = self.known();
                    let running = Running::new(*record, start, slot, parts, &facts, true, true);
                    self.ready = Some(Box::new(running));
                }
            }
            _ => {}
        }
    }

    fn known(&self) -> BTreeMap<NodeId, Facts> {
        let known = self.facts.iter();
        known
            .map(|(node, (facts, _))| (*node, facts.clone()))
            .collect()
    }

    /// Does what comes next, if anything does.
    pub fn step(&mut self, link: &mut Link, floor: Epoch, net: &mut Net) {
        let majority = net.servers.len() / 2 + 1;
        let connected: Vec<NodeId> = link.connections.keys().copied().collect();
        for node in &connected {
            if self.greeted.insert(*node) {
                link.send(net, *node, Body::Greet, None);
            }
        }
        let Some(epoch) = self.epoch else {
            let all = self.promises.len() == connected.len();
            if self.promises.len() >= majority && (all || net.chance.one_in(6)) {
                let epoch = next_epoch(self.promises.values(), floor);
                self.epoch = Some(epoch);
            }
            return;
        };
        if self.plan.is_none() {
            for node in self.promises.keys() {
                if self.bound.insert(*node) {
                    link.send(net, *node, Body::Promise(epoch), None);
                }
            }
        }
        // Facts are read by a connection that ends all others, after the promise.
        for node in std::mem::take(&mut self.asked) {
            link.renew(net, node);
            link.send(net, node, Body::Meet(epoch), None);
        }
        let Some(plan) = &self.plan else {
            let all = self.facts.len() == self.promises.len();
            let enough = self.facts.len() >= majority && (all || net.chance.one_in(6));
            if enough {
                let mut facts = self.known();
                if net.plants(Planted::AdoptTheOldest) {
                    let oldest = facts.values().map(|facts| facts.record).min();
                    for facts in facts.values_mut() {
                        facts.record = oldest.unwrap_or(facts.record);
                    }
                }
                let mut plan = decide(net.servers.len(), epoch, &facts, &wiped(net));
                if let Plan::Elect { record, parts } = &mut plan
                    && net.plants(Planted::ElectAnybody)
                {
                    let shortest = facts.iter().min_by_key(|(_, facts)| facts.history());
                    parts.insert(record.writer, Part::Leaving);
                    record.writer = shortest.map_or(record.writer, |(node, _)| *node);
                    parts.insert(record.writer, Part::Writer);
                }
                net.trace(&|| format!("    {plan:?}"));
                match &plan {
                    Plan::Wait => self.outrun = true,
                    Plan::GoOn { record, .. } | Plan::Elect { record, .. } => {
                        for node in facts.keys() {
                            link.send(net, *node, Body::Record(*record), None);
                        }
                        self.plan = Some(plan);
                    }
                }
            }
            return;
        };
        let (Plan::GoOn { record, .. } | Plan::Elect { record, .. }) = plan else {
            return;
        };
        if self.recorded.len() < majority || !self.recorded.contains(&record.writer) {
            return;
        }
        match plan {
            Plan::GoOn {
                record,
                start,
                parts,
            } => {
                let facts = self.known();
                let slot = self.facts[&record.writer].1;
                let running = Running::new(
                    *record,
                    *start,
                    slot,
                    parts,
                    &facts,
                    false,
                    net.plants(Planted::PretendDecoded),
                );
                self.ready = Some(Box::new(running));
            }
            Plan::Elect { record, .. } if !self.taking => {
                self.taking = true;
                link.send(net, record.writer, Body::TakeOffice(record.term), None);
            }
            _ => {}
        }
    }
}

/// Nodes that are being made anew: recorded as owed nothing.
fn wiped(net: &Net) -> BTreeSet<NodeId> {
    let wiped = net.servers.iter().filter(|server| server.wiped);
    wiped.map(|server| server.id).collect()
}
