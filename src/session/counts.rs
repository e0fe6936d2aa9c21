//! What sessions count for operators: handles registered once, an atomic addition each.
//!
//! Nothing here decides anything. What is counted by text is counted from its brief, so no statement is
//! looked at twice.

use std::time::Instant;

use metrics::{Counter, Histogram};

use crate::session::brief::Brief;
use crate::session::pipeline::Risk;
use crate::session::relay::Session;
use crate::wire::message::backend::Status;
use crate::wire::message::report::{self, field};

/// One for all sessions.
pub struct Counts {
    statements: Counter,
    transactions: Counter,
    received: Counter,
    sent: Counter,
    relaxed: Counter,
    commit: Histogram,
    autocommit: Histogram,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            statements: metrics::counter!("synapsedb_statements_total"),
            transactions: metrics::counter!("synapsedb_transactions_total"),
            received: metrics::counter!("synapsedb_client_received_bytes_total"),
            sent: metrics::counter!("synapsedb_client_sent_bytes_total"),
            relaxed: metrics::counter!("synapsedb_relaxed_writes_total"),
            commit: metrics::histogram!("synapsedb_commit_seconds"),
            autocommit: metrics::histogram!("synapsedb_autocommit_seconds"),
        }
    }
}

impl Counts {
    /// What one wait at the sockets brought.
    pub fn moved(&self, from_client: usize, from_server: usize) {
        if from_client > 0 {
            self.received.increment(from_client as u64);
        }
        if from_server > 0 {
            self.sent.increment(from_server as u64);
        }
    }
}

/// What one session has under way.
#[derive(Debug, Default)]
pub struct Tally {
    /// When what may commit was sent, and whether it was a COMMIT of its own.
    since: Option<(Instant, bool)>,
    /// The transaction may have written.
    wrote: bool,
    /// It has named `synchronous_commit`.
    named: bool,
}

impl Session {
    /// A text is about to be sent to be run.
    pub(super) fn count_text(&mut self, brief: &Brief) {
        self.shared.relay.counts.statements.increment(1);
        self.tally.named |= brief.relaxes;
        self.tally.wrote |= brief.risk > Risk::None && !brief.commits;
        if self.relaxed.is_none() && self.tally.wrote && self.is_relaxed() {
            // Ahead of the text: it may be seen before it is answered.
            self.relaxed = self.ways.reads().map(|reads| reads.relaxed.enter());
        }
        let alone = self.status == Status::Idle && brief.risk > Risk::None;
        if brief.commits || alone {
            self.tally.since = Some((Instant::now(), brief.commits));
        }
    }

    /// A text has been answered that no node has seen: it begins a transaction, or ends one in which nothing was done.
    pub(super) fn count_local(&mut self) {
        self.shared.relay.counts.statements.increment(1);
        if self.status == Status::Idle {
            self.count_ready();
        }
    }

    /// The node says that it is idle or in a transaction.
    pub(super) fn count_ready(&mut self) {
        let counts = &self.shared.relay.counts;
        if self.status == Status::Idle {
            counts.transactions.increment(1);
        }
        if !self.pipeline.is_empty() {
            // What was sent meanwhile is not answered yet.
            return;
        }
        if self.status != Status::Idle {
            self.tally.since = None;
            return;
        }
        if let Some((since, commits)) = self.tally.since.take() {
            let histogram = if commits {
                &counts.commit
            } else {
                &counts.autocommit
            };
            histogram.record(since.elapsed());
        }
        if self.tally.wrote {
            if self.is_relaxed() {
                counts.relaxed.increment(1);
            }
            self.ways.wrote();
        }
        self.relaxed = None;
        self.tally = Tally::default();
    }

    /// Whether a commit now may wait for nobody.
    fn is_relaxed(&self) -> bool {
        let set = self.state.wanted.get("synchronous_commit");
        let relaxed = set.is_some_and(|value| matches!(value.as_str(), "local" | "off"));
        relaxed || self.tally.named || self.relaxes
    }

    /// What was under way has failed.
    pub(super) fn count_error(&mut self, frame: &[u8]) {
        self.tally.since = None;
        error(report::get(frame, field::CODE).unwrap_or_default());
    }
}

/// The classes of SQLSTATE that `PostgreSQL` and the proxy use; others may be anybody's invention.
#[rustfmt::skip]
const CLASSES: [&str; 42] = [
    "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "20", "21", "22", "23", "24", "25", "26", "27", "28",
    "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40", "42", "44", "53", "54", "55", "57", "58", "72",
    "F0", "HV", "P0", "XX", "00", "01",
];

/// An error has been told to a client.
pub fn error(sqlstate: &[u8]) {
    let class = sqlstate.get(..2).unwrap_or_default();
    let known = CLASSES.iter().find(|known| known.as_bytes() == class);
    let class = known.copied().unwrap_or("other");
    metrics::counter!("synapsedb_errors_total", "class" => class).increment(1);
}
