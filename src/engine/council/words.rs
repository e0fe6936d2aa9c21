//! The council's words: parts and phases, what it is told, and what it says is to be done.

use crate::engine::recovery::Record;
use crate::ids::{Epoch, Lsn, NodeId};

/// A node's part in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Runs the writes.
    Writer,
    /// Receives every unit as it is decoded, and counts for the majority.
    Live,
    /// Lost, and not every serving node has copies of its slots for it yet: all slots hold what it lacks.
    Leaving,
    /// Lost; the copies hold what it lacks.
    Away,
    /// Receives what it lacks from the writer's copy.
    Joining,
    /// Has something that the others have not, or failed where they did not: owed nothing until it is mended.
    Fenced,
}

/// Where the cluster stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The writer is at work.
    Serving,
    /// The writer is lost, and no other has been attempted yet: it may still go on.
    Vacant,
    /// The writer is to hand over: new work is held, and what has begun comes to its end.
    Handing {
        /// To whom.
        to: NodeId,
        /// Nothing is under way any more, and all of the writer's log has been decoded.
        drained: bool,
    },
    /// Another writer's epoch is being promised, then recorded, by a majority.
    Recording {
        /// Who it is.
        to: NodeId,
        /// A majority has promised.
        promised: bool,
    },
    /// The new writer is recorded and takes office.
    Taking {
        /// Who it is.
        to: NodeId,
    },
    /// It must all begin anew from facts.
    Concluded,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The proxy has begun from facts; told once, first.
    Began,
    /// All that the writer's log held when it was met has been decoded.
    Decoded,
    /// A node does not answer, or its connections broke in a way that can't be mended in place.
    Lost(NodeId),
    /// A node that was lost answers.
    Reached(NodeId),
    /// What [`Command::Meet`] asked for. The node's older connections are ended and its facts were read after that.
    Met {
        /// Which node.
        node: NodeId,
        /// What `engine/recovery.rs` says of it.
        strays: bool,
    },
    /// A node has been found to differ.
    Differs(NodeId),
    /// A fenced node is about to be made anew, from a copy that is taken later than this.
    Mend(NodeId),
    /// A node that was joining has read as far as the live stream, and gets it from here on.
    Joined(NodeId),
    /// A live node has all that was decoded; told after [`Command::Level`] only.
    Level(NodeId),
    /// See [`Command::Copy`].
    Copied {
        /// For whom.
        of: NodeId,
        /// Where.
        on: NodeId,
    },
    /// A live node lacks nothing that some slot has forgotten (`engine/slots.rs`).
    Settled(NodeId),
    /// See [`Command::Drop`].
    Dropped {
        /// Whose.
        of: NodeId,
        /// Where.
        on: NodeId,
    },
    /// A node has promised the epoch.
    Promised(NodeId),
    /// A node has recorded the new writer.
    Recorded(NodeId),
    /// A node had promised a newer epoch already: somebody else is at work, or was.
    Outrun,
    /// The new writer is in office, which began at this place in its log.
    TookOffice(Lsn),
    /// The writer is to hand over to this node.
    Promote(NodeId),
    /// See [`Command::Hold`].
    Drained,
    /// What was to be drained does not end: the writer goes on.
    Abandon,
}

/// What is to be done. A node's commands end when it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Stop reading the writer (but in handing over), and tell of each live node when it has all that was decoded.
    Level,
    /// Let nothing new begin on the writer; tell when nothing is under way and all of its log has been decoded.
    Hold,
    /// The same writer goes on. What it may show unseen by a majority is in doubt (`engine/horizon.rs`).
    Resume,
    /// Ask the node to promise the epoch, unless it has promised one as new.
    Promise {
        /// Which node.
        node: NodeId,
        /// What it is to promise.
        epoch: Epoch,
    },
    /// Ask the node to record the writer, if it has promised nothing newer.
    Record {
        /// Which node.
        node: NodeId,
        /// What it is to record.
        record: Record,
    },
    /// The node keeps durably that it is in office, and where its log ended then. Its slot is there already.
    TakeOffice {
        /// Which node.
        node: NodeId,
        /// The term.
        term: Epoch,
    },
    /// The new writer is at work: read its slot, leaving out what it did itself before `start`; give each live node
    /// its place in the term, durably, after ending commits that wait there; begin a new horizon and a new confirmer,
    /// in which a live node counts once it has that place.
    Serve {
        /// Which node.
        writer: NodeId,
        /// Its term.
        term: Epoch,
        /// Where it began.
        start: Lsn,
    },
    /// End the node's older connections, then read its facts.
    Meet(NodeId),
    /// Give the node what it lacks from the writer's copy of its slots. Its applier begins by ending commits that wait
    /// there for a report: it may have been a writer, and all that it has is in the history.
    Join(NodeId),
    /// Give the node nothing more; forget its queue.
    Out(NodeId),
    /// Copy the slots of `on` for `of`, if there is no such copy. Never over one that is there.
    Copy {
        /// For whom.
        of: NodeId,
        /// Where.
        on: NodeId,
    },
    /// Drop the copies.
    Drop {
        /// Whose.
        of: NodeId,
        /// Where.
        on: NodeId,
    },
    /// Begin anew from facts. Nothing that this council knew counts any more; answers that wait are void.
    Conclude(Why),
}

/// Why it begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The writer is lost before all of its log was decoded, so nobody is known to be level.
    Undecoded,
    /// The node that was to become writer is lost.
    Unfinished,
    /// A majority is there, but nobody is level.
    NobodyLevel,
    /// Somebody has a newer epoch.
    Outrun,
}
