//! What the proxy asks of a server and what it answers: each on its way for as long as chance wants.
//!
//! An order may be carried out long after the proxy has given its server up, or has died itself, as long as the
//! server has not ended the connection; its answer then reaches nobody.

use std::collections::BTreeSet;

use synapsedb::engine::recovery::{Facts, Record};
use synapsedb::ids::{Epoch, Lsn, NodeId, UnitId};

use crate::server::Write;

/// What a follower's applier does in one transaction with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    Unit {
        unit: UnitId,
        write: Write,
    },
    /// An applier's beginning: commits that wait for a report, of an office that is over, wait no more, since all of
    /// them are in the history. Then nothing but the place: everything up to this unit is there.
    Place(UnitId),
}

impl Item {
    pub fn unit(self) -> UnitId {
        match self {
            Self::Unit { unit, .. } | Self::Place(unit) => unit,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Body {
    Greet,
    Promise(Epoch),
    /// Promises, ends older connections, tells its facts.
    Meet(Epoch),
    Record(Record),
    TakeOffice(Epoch),
    Write(Write),
    Read,
    Show,
    Report {
        write: Lsn,
        flush: Lsn,
    },
    Apply(Vec<Item>),
    Copy(NodeId),
    Drop(NodeId),
    Sample,
    Move(Lsn),
}

/// Why a server refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Outrun,
}

#[derive(Clone, Debug)]
pub enum Answer {
    Done,
    Refused(Refused),
    Promised(Epoch),
    Met(Box<Facts>, Lsn),
    Office(Box<Facts>, Lsn),
    Rows(BTreeSet<Write>),
    Shown(Lsn),
    Sampled(Lsn),
}

#[derive(Clone, Debug)]
pub enum State {
    Sent,
    /// Carried out, and its answer will come later: a commit that waits.
    Waits,
    Answered(Answer),
}

#[derive(Clone, Debug)]
pub struct Order {
    pub id: u64,
    pub node: NodeId,
    /// Which proxy's process sent it.
    pub proxy: u32,
    /// By which of its connections.
    pub generation: u64,
    /// To which start of the server that goes.
    pub starts: u64,
    /// Of which client, where it is one's.
    pub client: Option<usize>,
    /// It arrives no sooner than at this step.
    pub after: usize,
    pub body: Body,
    pub state: State,
}
