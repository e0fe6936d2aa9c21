//! What followers fail at: who is out for it, what holds the writer, and what passes.
//!
//! The shell around `engine::fence`. Guards promise 2: a node that could differ serves nobody, and a majority remembers
//! it before anybody's slots let go of what it lacks.

use super::replicator::{Replicator, State};
use crate::engine::confirm::{Standing, StreamId};
use crate::engine::fence::{Other, Verdict, judge};
use crate::ids::{NodeId, UnitId};

/// A follower's failure that a new connection did not mend.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The unit that could not be applied.
    pub unit: UnitId,
    /// In the applier's words.
    pub text: String,
}

impl Replicator {
    /// A follower can't apply a unit for the time being, again and again. Whether this is news.
    pub(super) fn stalled(&self, id: StreamId, node: NodeId, stall: Failure) -> bool {
        let mut state = self.lock();
        let Some(follower) = state.followers.get_mut(&node) else {
            return false;
        };
        let unit = stall.unit;
        let before = follower.stalls.insert(id, stall);
        before.is_none_or(|before| before.unit != unit)
    }

    /// A follower could not apply a unit, and a new connection did not help. True: it is out.
    pub(super) fn failed(&self, id: StreamId, node: NodeId, failure: Failure) -> bool {
        let mut state = self.lock();
        let State {
            followers,
            streams,
            confirmer,
            ..
        } = &mut *state;
        let place = |other: NodeId| streams.get(&id).and_then(|s| s.places.get(&other)).copied();
        let others: Vec<Other> = followers
            .iter()
            .filter(|(other, _)| **other != node)
            .map(|(other, known)| match known.failures.get(&id) {
                _ if confirmer.standing(*other) != Some(Standing::InSync) => Other::Out,
                Some(theirs) => Other::FailedAt(theirs.unit),
                None => Other::At(place(*other).unwrap_or_default()),
            })
            .collect();
        let verdict = judge(failure.unit, &others);
        if let Some(follower) = followers.get_mut(&node) {
            follower.failures.insert(id, failure.clone());
        }
        match verdict {
            Verdict::Fence => {
                fence(&mut state, node, failure.text);
                self.fencing.notify_one();
                self.announce(&mut state);
                true
            }
            Verdict::Hold => {
                if state.held.is_none() {
                    metrics::counter!("synapsedb_held_units_total").increment(1);
                    tracing::error!(unit = %failure.unit, error = %failure.text, "no follower can apply a unit; commits wait");
                    state.held = Some(failure);
                }
                false
            }
            Verdict::Wait => false,
        }
    }

    /// Takes a follower out of service: it differs, or something that had to happen there did not.
    pub fn fence(&self, node: NodeId, why: String) {
        let mut state = self.lock();
        fence(&mut state, node, why);
        self.fencing.notify_one();
        self.announce(&mut state);
    }

    /// Waits until a node has been fenced and this is not recorded yet. Dropping it is harmless.
    pub async fn fencing(&self) -> Vec<NodeId> {
        loop {
            let told = self.fencing.notified();
            let leaving = self.leaving();
            if !leaving.is_empty() {
                return leaving;
            }
            told.await;
        }
    }

    fn leaving(&self) -> Vec<NodeId> {
        let state = self.lock();
        let leaving = |node: &NodeId| state.confirmer.standing(*node) == Some(Standing::Leaving);
        state.followers.keys().copied().filter(leaving).collect()
    }

    /// A majority remembers that the node is fenced: the slots need hold nothing for it any more.
    pub fn fence_recorded(&self, node: NodeId) {
        let mut state = self.lock();
        if state.confirmer.standing(node) == Some(Standing::Leaving) {
            state.confirmer.set_standing(node, Standing::Out);
            self.announce(&mut state);
        }
    }
}

/// Takes a follower out of service.
pub(super) fn fence(state: &mut State, node: NodeId, why: String) {
    let Some(follower) = state.followers.get_mut(&node) else {
        return;
    };
    if follower.fenced.is_some() {
        return;
    }
    metrics::counter!("synapsedb_fenced_total").increment(1);
    tracing::error!(node = node.0, reason = %why, "node fenced: it must be mended before it serves again");
    follower.fenced = Some(why);
    state.confirmer.set_standing(node, Standing::Leaving);
    for entry in state.streams.values() {
        entry.sight.fence(node);
        if let Some(queue) = entry.queues.get(&node) {
            queue.abandon();
        }
    }
}
