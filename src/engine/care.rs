//! How carefully a follower's applier takes what comes, after something of it failed.
//!
//! First one unit at a time, so that it shows which one it is; then past checks, which the writer's row has passed
//! and which may say something else here (by the time, say). Pure: it knows neither units nor errors.

/// Once a check stood in the way, so many transactions go past checks: trying one the usual way costs a connection.
const UNCHECKED: u32 = 1000;

/// The state of one applier's care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Care {
    single: bool,
    unchecked: u32,
}

impl Care {
    /// Whether the next transaction must be one unit only.
    pub fn single(&self) -> bool {
        self.single
    }

    /// Whether the next transaction's rows go past checks.
    pub fn unchecked(&self) -> bool {
        self.unchecked > 0
    }

    /// A transaction of so many units failed by itself. Whether more care may help; if not, a unit can't be applied.
    pub fn failed(&mut self, units: usize) -> bool {
        if units > 1 {
            self.single = true;
            return true;
        }
        let helps = !self.unchecked();
        (self.single, self.unchecked) = (true, UNCHECKED);
        helps
    }

    /// A transaction was applied.
    pub fn applied(&mut self) {
        self.single = false;
        self.unchecked = self.unchecked.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::{Care, UNCHECKED};

    #[test]
    fn a_unit_is_given_up_only_alone_and_past_checks() {
        let mut care = Care::default();
        assert!(care.failed(5));
        assert!(care.single() && !care.unchecked());
        assert!(care.failed(1));
        assert!(care.single() && care.unchecked());
        assert!(!care.failed(1));
        assert!(!care.failed(1));
    }

    #[test]
    fn care_ends_when_it_was_not_needed() {
        let mut care = Care::default();
        assert!(care.failed(2));
        care.applied();
        assert_eq!(care, Care::default());
        assert!(care.failed(1));
        for _ in 0..UNCHECKED {
            assert!(care.unchecked());
            care.applied();
        }
        assert_eq!(care, Care::default());
        assert!(care.failed(1));
        care.applied();
        assert!(care.unchecked() && !care.single());
        assert!(care.failed(3), "the one among them that fails is not known");
        assert!(!care.failed(1));
    }
}
