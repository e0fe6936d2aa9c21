//! What becomes of a follower that could not apply a unit (REPLICATION rule 14).
//!
//! A node that fails where another one succeeded differs from it and is fenced. A unit that no
//! follower can apply fences nobody: the writer holds. Pure; guards promises 1 and 2.

use crate::ids::UnitId;

/// Where another follower stands with the unit in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// Has everything up to this unit durable.
    At(UnitId),
    /// Could not apply this unit either.
    FailedAt(UnitId),
    /// Counts for nothing any more, or can't be reached.
    Out,
}

/// What to do with the follower that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It differs: out of service.
    Fence,
    /// Nobody can apply it: nothing goes on until somebody mends it; try again from time to time.
    Hold,
    /// Not known yet: try again.
    Wait,
}

/// Judges a follower that failed at `unit`, by the other followers.
pub fn judge(unit: UnitId, others: &[Other]) -> Verdict {
    let passed = |other: &Other| match other {
        Other::At(place) => *place >= unit,
        Other::FailedAt(place) => *place > unit,
        Other::Out => false,
    };
    if others.iter().any(passed) {
        return Verdict::Fence;
    }
    let stuck = |other: &Other| matches!(other, Other::FailedAt(_) | Other::Out);
    if others.iter().all(stuck) {
        return Verdict::Hold;
    }
    Verdict::Wait
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, Lsn};

    fn at(lsn: u64) -> UnitId {
        UnitId {
            term: Epoch(1),
            lsn: Lsn(lsn),
        }
    }

    #[test]
    fn a_lone_failure_is_fenced_and_a_common_one_holds() {
        let unit = at(100);
        assert_eq!(judge(unit, &[Other::At(at(100))]), Verdict::Fence);
        assert_eq!(judge(unit, &[Other::FailedAt(at(120))]), Verdict::Fence);
        assert_eq!(judge(unit, &[Other::FailedAt(unit)]), Verdict::Hold);
        assert_eq!(
            judge(unit, &[Other::FailedAt(unit), Other::Out]),
            Verdict::Hold
        );
        assert_eq!(judge(unit, &[Other::At(at(90))]), Verdict::Wait);
        assert_eq!(
            judge(unit, &[Other::At(at(90)), Other::At(at(101))]),
            Verdict::Fence
        );
        assert_eq!(judge(unit, &[]), Verdict::Hold);
    }
}
