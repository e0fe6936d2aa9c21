//! What is true, whatever the proxy thinks: what was acknowledged, what clients saw, and what must hold of it.
//!
//! A write that was neither acknowledged nor denied is *unknown*, never absent.

use std::collections::BTreeSet;

use synapsedb::engine::confirm::Report;
use synapsedb::ids::{Lsn, NodeId};

use crate::server::{Entry, Server, Write, end_of, entries_before};

/// See the module.
#[derive(Default)]
pub struct Oracle {
    /// Acknowledged, or seen in an answer that went out.
    certain: BTreeSet<Write>,
    /// Whose client was told that they never happened.
    never: BTreeSet<Write>,
    pub acknowledged: usize,
    pub reads: usize,
}

impl Oracle {
    /// What a read that begins now must show.
    pub fn certain(&self) -> BTreeSet<Write> {
        self.certain.clone()
    }

    /// A client was told that its write is there.
    pub fn acknowledge(&mut self, write: Write, servers: &[Server]) {
        assert!(
            !self.never.contains(&write),
            "write {write} was denied, then acknowledged"
        );
        let holders = servers
            .iter()
            .filter(|server| !server.wiped && server.history().contains(&write));
        let count = holders.count();
        assert!(
            count > servers.len() / 2,
            "write {write} is acknowledged and on {count} nodes"
        );
        self.certain.insert(write);
        self.acknowledged += 1;
    }

    /// A client was told that its write is not there and never will be.
    pub fn deny(&mut self, write: Write) {
        assert!(
            !self.certain.contains(&write),
            "write {write} is there, and is denied"
        );
        self.never.insert(write);
    }

    /// An answer went out to a client who began to read when `must` was certain.
    pub fn answer(&mut self, node: NodeId, must: &BTreeSet<Write>, rows: &BTreeSet<Write>) {
        let missing: Vec<_> = must.difference(rows).collect();
        assert!(
            missing.is_empty(),
            "a read on node {} misses {missing:?}, known before it began",
            node.0
        );
        if let Some(denied) = rows.intersection(&self.never).next() {
            panic!("a read on node {} shows {denied}, which was denied", node.0);
        }
        self.certain.extend(rows);
        self.reads += 1;
    }

    /// What is reported to a writer whose term began at `start`, after `last`. A node that has become live since
    /// may still lack what was flushed before, and is held by its copies.
    pub fn report(
        last: Report,
        report: Report,
        start: Lsn,
        writer: NodeId,
        owed: &[NodeId],
        servers: &[Server],
    ) {
        assert!(report.flush <= report.write, "flush is ahead of write");
        let log = &servers[writer.0].log;
        let histories: Vec<_> = servers.iter().map(Server::history).collect();
        for (at, entry) in log.iter().enumerate().skip(entries_before(start)) {
            let Entry::Own { write, .. } = entry else {
                continue;
            };
            let has = |server: &Server| !server.wiped && histories[server.id.0].contains(write);
            if end_of(at) <= report.write {
                let count = servers.iter().filter(|server| has(server)).count();
                assert!(
                    count > servers.len() / 2,
                    "write {write} is reported and on {count} nodes"
                );
            }
            if end_of(at) > last.flush && end_of(at) <= report.flush {
                // One that is made anew gets a copy that is taken later.
                let lacks = |node: &&NodeId| !servers[node.0].wiped && !has(&servers[node.0]);
                let lacks = owed.iter().find(lacks);
                assert!(
                    lacks.is_none(),
                    "write {write} is flushed, but {lacks:?} lacks it"
                );
            }
        }
    }

    /// A slot of `on` that holds what `of` lacks stands at `place`.
    pub fn slot(on: &Server, of: &Server, place: Lsn) {
        let theirs = of.history();
        let forgotten = on.history_before(entries_before(place));
        let lost = forgotten.iter().find(|write| !theirs.contains(write));
        assert!(
            lost.is_none(),
            "the slot of node {} for node {} at {place} has forgotten {lost:?}",
            on.id.0,
            of.id.0
        );
    }

    /// All is well again: everyone has the same, all that is certain is there once, nothing that was denied.
    pub fn end(&self, servers: &[Server]) {
        let first = servers[0].history();
        for server in servers {
            let history = server.history();
            assert!(
                history == first,
                "node {} ends with {history:?}, node 0 with {first:?}",
                server.id.0
            );
        }
        let all: BTreeSet<_> = first.iter().copied().collect();
        assert!(
            all.len() == first.len(),
            "a write is there twice: {first:?}"
        );
        let lost: Vec<_> = self.certain.difference(&all).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
        let denied: Vec<_> = self.never.intersection(&all).collect();
        assert!(denied.is_empty(), "there though denied: {denied:?}");
    }
}
