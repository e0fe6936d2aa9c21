//! What is done when a proxy meets the nodes: who goes on as writer, or who has the longest history.
//!
//! Guards promises 1 and 2 over the death of everything. It decides from facts alone that each node keeps durably:
//! the newest epoch it *promised* and the newest *record* it accepted, the *offices* it took as writer (term, and
//! the end of its log then), and its *places* in other writers' terms. A history is named by its last unit; the
//! greatest name is the longest history, since a term begins only where everything before it is known.
//!
//! The facts must be read after the node has promised this proxy's epoch and ended older connections: what comes
//! in later from a killed proxy would make them untrue. It sends nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::council::words::Part;
use crate::ids::{Epoch, Lsn, NodeId, UnitId};

/// What a majority accepts, so that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Grows at each change of writer and each start of a proxy.
    pub epoch: Epoch,
    /// When the writer took, or is to take, office.
    pub term: Epoch,
    /// Who.
    pub writer: NodeId,
}

/// What a node keeps of itself, read in one piece.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Nothing of an older epoch is accepted any more.
    pub promised: Epoch,
    /// The newest record accepted.
    pub record: Record,
    /// Terms in which it was the writer, and the end of its log when it took office.
    pub offices: BTreeMap<Epoch, Lsn>,
    /// Its last unit of other writers' terms.
    pub places: BTreeMap<Epoch, Lsn>,
    /// The end of its log.
    pub end: Lsn,
    /// For whom it keeps copies of its slots.
    pub copies: BTreeSet<NodeId>,
}

impl Facts {
    /// The last unit that may be in its history. As a writer's, it is the end of its log.
    pub fn history(&self) -> UnitId {
        let place = self.places.last_key_value().map(|(term, lsn)| UnitId {
            term: *term,
            lsn: *lsn,
        });
        let office = self.offices.last_key_value().map(|(term, _)| UnitId {
            term: *term,
            lsn: self.end,
        });
        place.max(office).unwrap_or_default()
    }

    /// Whether it is in office in this term.
    pub fn holds(&self, term: Epoch) -> bool {
        self.offices.contains_key(&term)
    }
}

/// Whether a node has something that this writer's history lacks, so that it may not be given anything before it
/// is mended: a former writer's own end, or units that no majority ever had.
pub fn strays(node: &Facts, writer: &Facts) -> bool {
    let UnitId { term, lsn } = node.history();
    if writer.holds(term) {
        return false;
    }
    lsn > writer.places.get(&term).copied().unwrap_or_default()
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The recorded writer goes on in its term, which began at `start` in its log.
    GoOn {
        /// What is to be recorded, with this proxy's epoch.
        record: Record,
        /// Where its office began.
        start: Lsn,
        /// Everyone's part.
        parts: BTreeMap<NodeId, Part>,
    },
    /// Another writer takes office: the one with the longest history.
    Elect {
        /// What is to be recorded first.
        record: Record,
        /// Everyone's part then.
        parts: BTreeMap<NodeId, Part>,
    },
    /// Too few nodes are there to know what was acknowledged.
    Wait,
}

/// The epoch with which a proxy that has seen these promises begins.
pub fn next_epoch<'a>(promises: impl IntoIterator<Item = &'a Epoch>, floor: Epoch) -> Epoch {
    let newest = promises.into_iter().copied().fold(floor, Epoch::max);
    Epoch(newest.0 + 1)
}

/// Decides from the facts of those nodes that promised `epoch`. `fenced` are known to differ, as was recorded.
pub fn decide(
    nodes: usize,
    epoch: Epoch,
    facts: &BTreeMap<NodeId, Facts>,
    fenced: &BTreeSet<NodeId>,
) -> Plan {
    let majority = nodes / 2 + 1;
    if facts.len() < majority {
        return Plan::Wait;
    }
    let Some(known) = facts.values().map(|facts| facts.record).max() else {
        return Plan::Wait;
    };
    match facts.get(&known.writer) {
        Some(writer) if writer.holds(known.term) => {
            with_writer(nodes, Record { epoch, ..known }, writer, facts, fenced)
        }
        _ => without_writer(nodes, epoch, facts, fenced),
    }
}

/// The recorded writer is there and in office: it goes on, and its log says what there is.
pub fn with_writer(
    nodes: usize,
    record: Record,
    writer: &Facts,
    facts: &BTreeMap<NodeId, Facts>,
    fenced: &BTreeSet<NodeId>,
) -> Plan {
    let part = |node: NodeId| match facts.get(&node) {
        _ if node == record.writer => Part::Writer,
        _ if fenced.contains(&node) => Part::Fenced,
        Some(facts) if strays(facts, writer) => Part::Fenced,
        _ if writer.copies.contains(&node) => Part::Away,
        Some(facts) if facts.places.contains_key(&record.term) => Part::Live,
        _ => Part::Leaving,
    };
    Plan::GoOn {
        record,
        start: writer
            .offices
            .get(&record.term)
            .copied()
            .unwrap_or_default(),
        parts: (0..nodes)
            .map(NodeId)
            .map(|node| (node, part(node)))
            .collect(),
    }
}

/// The recorded writer is not there, or never took office: whoever has the longest history does. It holds everything
/// acknowledged, since a majority's histories are known: one of them had it, and a later term began with all of it.
pub fn without_writer(
    nodes: usize,
    epoch: Epoch,
    facts: &BTreeMap<NodeId, Facts>,
    fenced: &BTreeSet<NodeId>,
) -> Plan {
    let sound = facts.iter().filter(|(node, _)| !fenced.contains(node));
    let Some((chosen, longest)) = sound.clone().max_by_key(|(_, facts)| facts.history()) else {
        return Plan::Wait;
    };
    let fits = sound.filter(|(_, facts)| !strays(facts, longest)).count();
    let absent = |node: &NodeId| !facts.contains_key(node) && !fenced.contains(node);
    if fits < nodes / 2 + 1 && (0..nodes).map(NodeId).any(|node| absent(&node)) {
        // It would be safe, but make no majority. Whoever is still to come may be the writer, who can go on.
        return Plan::Wait;
    }
    let record = Record {
        epoch,
        term: epoch,
        writer: *chosen,
    };
    let follows = longest.places.last_key_value().map(|(term, _)| *term);
    let level = |facts: &Facts| {
        let same = facts.history() == longest.history();
        same && follows == Some(facts.history().term) && !facts.holds(facts.history().term)
    };
    let part = |node: NodeId| match facts.get(&node) {
        _ if node == *chosen => Part::Writer,
        _ if fenced.contains(&node) => Part::Fenced,
        Some(facts) if strays(facts, longest) => Part::Fenced,
        _ if longest.copies.contains(&node) => Part::Away,
        Some(facts) if level(facts) => Part::Live,
        _ => Part::Leaving,
    };
    Plan::Elect {
        record,
        parts: (0..nodes)
            .map(NodeId)
            .map(|node| (node, part(node)))
            .collect(),
    }
}

/// The same where several databases have streams of their own: the facts of each, alike but for the places. Whoever is
/// elected must have the longest history in all of them; of several such the one that is wanted, else the first. A
/// node that strays in one of them is out in all.
pub fn decide_together(
    nodes: usize,
    epoch: Epoch,
    databases: &[BTreeMap<NodeId, Facts>],
    fenced: &BTreeSet<NodeId>,
    wanted: Option<NodeId>,
) -> Plan {
    let majority = nodes / 2 + 1;
    let Some(facts) = databases.first().filter(|facts| facts.len() >= majority) else {
        return Plan::Wait;
    };
    let Some(known) = facts.values().map(|facts| facts.record).max() else {
        return Plan::Wait;
    };
    let in_office = facts.get(&known.writer);
    if let Some(writer) = in_office.filter(|facts| facts.holds(known.term)) {
        let record = Record { epoch, ..known };
        let outcast = outcasts(databases, known.writer, fenced);
        return with_writer(nodes, record, writer, facts, &outcast);
    }
    let longest = |node: &NodeId| {
        databases.iter().all(|facts| {
            let sound = facts.iter().filter(|(node, _)| !fenced.contains(node));
            let longest = sound.map(|(_, facts)| facts.history()).max();
            facts.get(node).map(Facts::history) == longest
        })
    };
    let able: Vec<NodeId> = facts
        .keys()
        .copied()
        .filter(|node| !fenced.contains(node) && longest(node))
        .collect();
    let wanted = wanted.filter(|node| able.contains(node));
    let Some(chosen) = wanted.or(able.first().copied()) else {
        return Plan::Wait;
    };
    let mut outcast = outcasts(databases, chosen, fenced);
    if in_office.is_none() {
        // It may have what nobody else has.
        outcast.insert(known.writer);
    }
    let sound = facts.keys().filter(|node| !outcast.contains(node)).count();
    if sound < majority {
        return Plan::Wait;
    }
    let part = |node: NodeId| match node {
        _ if node == chosen => Part::Writer,
        _ if outcast.contains(&node) => Part::Fenced,
        _ => Part::Live,
    };
    Plan::Elect {
        record: Record {
            epoch,
            term: epoch,
            writer: chosen,
        },
        parts: (0..nodes)
            .map(NodeId)
            .map(|node| (node, part(node)))
            .collect(),
    }
}

/// Those that are known to differ, and those that have something in some database which the writer has not.
fn outcasts(
    databases: &[BTreeMap<NodeId, Facts>],
    writer: NodeId,
    fenced: &BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    let mut outcast = fenced.clone();
    for facts in databases {
        let Some(writers) = facts.get(&writer) else {
            continue;
        };
        let stray = |(node, facts): &(&NodeId, &Facts)| **node != writer && strays(facts, writers);
        outcast.extend(facts.iter().filter(stray).map(|(node, _)| *node));
    }
    outcast
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
