//! Which node answers a read: of two picked at random the one that will be done sooner.
//!
//! Two choices are enough to keep nodes evenly busy, and a node that has become slow is left alone without anybody
//! having to find it first. The first of the two is mostly the node that answered last, where that is as good as
//! another: what it keeps for a session is warm in its caches (measured on 2 cores: a fifth of all selects). Time and
//! dice are arguments.

/// A node that could answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// What it works on for clients now.
    pub in_flight: usize,
    /// Its average time for an answer, milliseconds.
    pub latency_ms: f64,
    /// For how long its answer is likely to be held, milliseconds.
    pub wait_ms: f64,
}

impl Candidate {
    #[expect(clippy::cast_precision_loss, reason = "connections are few")]
    fn cost(&self) -> f64 {
        (1.0 + self.in_flight as f64 / ROOM) * self.latency_ms + self.wait_ms
    }
}

/// So much at work makes a node take twice as long: it has cores and disks for several, and a count taken at one moment
/// is chance for a part. With less, reads would run back and forth between nodes that are equally busy on average.
const ROOM: f64 = 8.0;

/// Averages of nodes that are alike differ by chance. Without this one of three would have all the work of a client
/// that asks one thing after the other, and the averages of the others would never be put right.
const ALIKE: f64 = 0.67;

/// About so many reads in a row go to one node before another is tried that is no better.
const IN_A_ROW: u64 = 32;

/// The place of the better of two: the one that answered `last`, now and then one that `dice` picks, and another that
/// `dice` picks; of two alike the first. `None` where there is none.
pub fn choose(candidates: &[Candidate], last: Option<usize>, dice: u64) -> Option<usize> {
    let count = u64::try_from(candidates.len()).unwrap_or(u64::MAX);
    if count < 2 {
        return (count == 1).then_some(0);
    }
    let (again, dice) = (!dice.is_multiple_of(IN_A_ROW), dice / IN_A_ROW);
    let picked = usize::try_from(dice % count).ok()?;
    let first = last.filter(|_| again).unwrap_or(picked);
    let step = usize::try_from(1 + (dice / count) % (count - 1)).ok()?;
    let second = (first + step) % candidates.len();
    let better = candidates[second].cost() < candidates[first].cost() * ALIKE;
    Some(if better { second } else { first })
}

/// One value counts as at most so many times what is known, or as [`NOT_MUCH`]: the first read over a new connection
/// takes long on any node, which would be left alone for seconds because of it. One that has become slow is found by
/// its next few answers.
const OUTLIER: f64 = 4.0;
/// Milliseconds that are no outlier in any case.
const NOT_MUCH: f64 = 1.0;

/// A moving average, in milliseconds, of which the newest value makes `share`.
pub fn average(known: Option<f64>, value: f64, share: f64) -> f64 {
    let Some(known) = known else {
        return value.min(NOT_MUCH);
    };
    let value = value.min((known * OUTLIER).max(NOT_MUCH));
    known + (value - known) * share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(in_flight: usize, latency_ms: f64) -> Candidate {
        Candidate {
            in_flight,
            latency_ms,
            wait_ms: 0.0,
        }
    }

    #[test]
    fn nodes_alike_share_and_a_slow_one_is_left_alone() {
        let mut chosen = [0; 3];
        let alike = [node(0, 1.0), node(0, 1.2), node(0, 0.9)];
        for dice in 0..600 {
            chosen[choose(&alike, None, dice * IN_A_ROW).unwrap()] += 1;
        }
        assert_eq!(chosen, [200; 3]);
        let slow = [node(0, 1.0), node(0, 50.0), node(3, 1.0)];
        let picked = (0..600).map(|dice| choose(&slow, None, dice).unwrap());
        assert!(picked.clone().all(|at| at != 1) && picked.clone().any(|at| at == 2));
    }

    #[test]
    fn a_node_is_kept_for_a_while_unless_another_is_better() {
        let alike = [node(0, 1.0), node(0, 1.2), node(0, 0.9)];
        let again = (1..IN_A_ROW).map(|dice| choose(&alike, Some(1), dice));
        assert!(again.clone().all(|at| at == Some(1)));
        let in_time = (0..6).map(|dice| choose(&alike, Some(1), dice * IN_A_ROW));
        assert!(in_time.clone().any(|at| at != Some(1)));
        let slow = [node(0, 1.0), node(0, 50.0), node(0, 1.0)];
        assert!((0..600).all(|dice| choose(&slow, Some(1), dice) != Some(1)));
    }

    #[test]
    fn a_wait_counts_and_nobody_is_nobody() {
        let waits = Candidate {
            wait_ms: 3.0,
            ..node(0, 1.0)
        };
        assert!((0..9).all(|dice| choose(&[waits, node(1, 1.0)], Some(0), dice) == Some(1)));
        assert_eq!(choose(&[], None, 7), None);
        assert_eq!(choose(&[waits], None, 7), Some(0));
    }

    #[test]
    fn averages_move() {
        assert!((average(None, 0.5, 0.5) - 0.5).abs() < 1e-9);
        assert!((average(None, 60.0, 0.5) - NOT_MUCH).abs() < 1e-9);
        assert!((average(Some(2.0), 4.0, 0.5) - 3.0).abs() < 1e-9);
        // One slow answer is nothing, several are found.
        let once = average(Some(1.0), 60.0, 0.05);
        assert!(once < 1.0 / ALIKE, "{once}");
        let often = (0..10).fold(1.0, |known, _| average(Some(known), 60.0, 0.05));
        assert!(often > 1.0 / ALIKE, "{often}");
    }
}
