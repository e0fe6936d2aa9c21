//! How far commits may be confirmed before the followers' sequences are raised.
//!
//! Sequences are not in the stream, so followers are kept a block ahead (REPLICATION rule 24). Guards promise 1 for
//! values: one that an acknowledged commit may have used is never handed out again by a later writer. A sequence
//! logs a record of at least 100 bytes for each 32 + CACHE values that it hands out, so a stretch of W bytes of the
//! writer's log can hold at most (32 + CACHE) x W / 100 values of it.
//!
//! What jumps is not bounded by that. DDL (RESTART, a sequence that is new or altered) is seen in the stream: behind it
//! only a reading that was made later counts. `setval` is not: while somebody may be at it, only what has been read
//! counts. A place that holds no unit (a bare `nextval`) is confirmed by a reading as well. It reads no sequence itself.

use std::collections::VecDeque;

use crate::ids::Lsn;

/// The least that a record of a sequence takes in the log, in bytes.
const RECORD_BYTES: u64 = 100;
/// `PostgreSQL` logs so many values in advance (`SEQ_LOG_VALS`).
const LOGGED_AHEAD: u64 = 32;

/// What one sequence allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// How many values every follower that counts is ahead of what the writer had logged when it was read:
    /// `last_value` and the `log_cnt` values that it may still hand out without another record.
    pub ahead: u64,
    /// CACHE.
    pub cache: u64,
}

impl Block {
    /// The bytes of log after which the writer may have caught up with the followers.
    fn bytes(self) -> u64 {
        let each = LOGGED_AHEAD.saturating_add(self.cache);
        // A record that began before the reading has handed out nothing that was not read with it.
        self.ahead.saturating_mul(RECORD_BYTES) / each.max(1)
    }

    /// The block that lets so many bytes of log be confirmed without another reading.
    pub fn for_bytes(bytes: u64, cache: u64) -> Self {
        let each = LOGGED_AHEAD.saturating_add(cache);
        let ahead = bytes.saturating_mul(each).div_ceil(RECORD_BYTES);
        Self { ahead, cache }
    }
}

/// See the module. One for each writer's term.
#[derive(Debug, Default)]
pub struct Sequences {
    /// The end of the writer's log just before its sequences were last read, and raised on the followers.
    read: Lsn,
    /// What that reading allows up to.
    covered: Lsn,
    /// Places behind the reading at which a sequence may have jumped, in order.
    jumps: VecDeque<Lsn>,
    /// Somebody may be moving a sequence, or may have since the last reading began.
    suspect: bool,
    /// There were none at all when they were read, and none has been made since.
    none: bool,
}

impl Sequences {
    /// The writer's log ended at `end`, then its sequences were read, then the followers were raised, durably: on
    /// all that count for the majority. No sequences at all cover everything up to the next jump.
    pub fn raised(&mut self, end: Lsn, blocks: impl IntoIterator<Item = Block>) {
        let least = blocks.into_iter().map(Block::bytes).min();
        let made = self.jumps.back().is_some_and(|jump| *jump > end);
        self.none = least.is_none() && !made;
        self.read = self.read.max(end);
        let covered = Lsn(end.0.saturating_add(least.unwrap_or(u64::MAX)));
        // The newest reading counts: followers are raised, never lowered, but CACHE may have grown.
        self.covered = covered;
        self.jumps.retain(|jump| *jump > end);
    }

    /// A follower begins to count that was not raised: nothing is covered until all are.
    pub fn joined(&mut self) {
        self.read = Lsn::default();
        self.covered = Lsn::default();
        self.none = false;
    }

    /// At `place` something was decoded behind which a sequence may be anywhere.
    pub fn jumped(&mut self, place: Lsn) {
        self.none = false;
        let newest = self.jumps.back().copied().unwrap_or(self.read);
        if place > newest {
            self.jumps.push_back(place);
        } else if place > self.read && !self.jumps.contains(&place) {
            // Several streams, each in its own order.
            let at = self.jumps.partition_point(|jump| *jump < place);
            self.jumps.insert(at, place);
        }
    }

    /// Whether somebody may be moving a sequence, or may have since the last reading began.
    pub fn suspect(&mut self, suspect: bool) {
        self.suspect = suspect;
    }

    /// Whether only a reading allows more, whatever is decoded: else another unit may do.
    pub fn is_in_the_way(&self, unit: Lsn) -> bool {
        !self.none && unit > self.limit()
    }

    /// The greatest place up to `wanted` that may be confirmed, where `unit` is the end of the last unit up to there.
    pub fn confirmable(&self, wanted: Lsn, unit: Lsn) -> Lsn {
        if self.none || self.may_confirm(wanted, wanted <= unit) {
            return wanted;
        }
        let by_block = unit.min(wanted).min(self.limit());
        by_block.max(wanted.min(self.read))
    }

    /// Up to where units may be confirmed.
    pub fn limit(&self) -> Lsn {
        match self.jumps.front() {
            _ if self.suspect => self.read,
            // Before the jump the block counts, behind it only another reading.
            Some(jump) => self
                .covered
                .min(Lsn(jump.0.saturating_sub(1)))
                .max(self.read),
            None => self.covered,
        }
    }

    /// Whether a place may be confirmed. One that holds no unit (a bare `nextval`, say) needs a later reading: what
    /// was logged there may be a jump.
    pub fn may_confirm(&self, place: Lsn, holds_unit: bool) -> bool {
        place <= self.read || holds_unit && place <= self.limit()
    }

    /// The end of the writer's log just before they were last read.
    pub fn read(&self) -> Lsn {
        self.read
    }

    /// The newest place behind that, and no further than `had`, at which one may have jumped.
    pub fn newest_jump(&self, had: Lsn) -> Option<Lsn> {
        let mut newest_first = self.jumps.iter().rev();
        newest_first.find(|jump| **jump <= had).copied()
    }

    /// Whether a place lies before the last reading.
    pub fn has_read(&self, place: Lsn) -> bool {
        place <= self.read
    }

    /// Whether half of what the last reading allowed is used up.
    pub fn is_half_used(&self, place: Lsn) -> bool {
        !self.none && place.0 > self.read.0.midpoint(self.covered.0)
    }
}

#[cfg(test)]
#[path = "sequences_tests.rs"]
mod tests;
