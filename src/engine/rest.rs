//! When the stream of one database sleeps and when it is woken.
//!
//! Pure: it is told what was seen of the database, and says what is worth trying. Whether a database may sleep is
//! not decided here but tried on the writer; here it is only a matter of what that costs and saves, so a wrong
//! guess loses time and nothing else.

use std::time::Duration;

/// Nobody has been in the database for so long.
const IDLE: Duration = Duration::from_secs(10);
/// One that has been looked after stays awake so long, for its slot to be moved.
const LINGER: Duration = Duration::from_secs(1);
/// A sleeping slot holds the writer's log: it is looked after this often, or when it holds so much.
const NAP: Duration = Duration::from_secs(30);
const NAP_BYTES: u64 = 64 * 1024 * 1024;
/// A database that could not sleep, since it holds something or somebody is still at work, is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// Who is in a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nobody.
    Free,
    /// Somebody.
    Busy,
    /// Nobody that is known, but the writer did not say.
    Unknown,
}

/// What to do with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// See to it that it is awake, and that the database knows.
    Wake,
    /// Try to put it to sleep.
    Sleep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The database may say that it sleeps, whoever said so.
    Unsure,
    /// It is awake and the database says so; not to be tried before.
    Awake { until: Duration },
    /// Since then.
    Asleep { since: Duration },
}

/// One database.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    phase: Phase,
    free_since: Option<Duration>,
}

impl Default for Rest {
    /// Nothing is known: an earlier proxy may have left it asleep.
    fn default() -> Self {
        Self {
            phase: Phase::Unsure,
            free_since: None,
        }
    }
}

impl Rest {
    /// What is worth trying. `behind` is how much of the log its slot holds back; `alone`: no other stream is awake.
    pub fn look(&mut self, now: Duration, seen: Use, behind: u64, alone: bool) -> Option<Act> {
        self.free_since = match seen {
            Use::Free => self.free_since.or(Some(now)),
            Use::Busy | Use::Unknown => None,
        };
        let since = |then: Duration| now.saturating_sub(then);
        match self.phase {
            Phase::Unsure => Some(Act::Wake),
            Phase::Awake { until } => {
                let idle = self.free_since.is_some_and(|then| since(then) >= IDLE);
                (idle && now >= until && !alone).then_some(Act::Sleep)
            }
            Phase::Asleep { since: then } => {
                let nap_over = since(then) >= NAP || behind >= NAP_BYTES;
                (seen == Use::Busy || nap_over).then_some(Act::Wake)
            }
        }
    }

    /// It is awake, and the database says so.
    pub fn woken(&mut self, now: Duration) {
        let until = now + LINGER;
        self.phase = Phase::Awake { until };
    }

    /// It sleeps.
    pub fn fell_asleep(&mut self, now: Duration) {
        self.phase = Phase::Asleep { since: now };
    }

    /// It is awake, since it could not sleep.
    pub fn stayed_awake(&mut self, now: Duration) {
        self.phase = Phase::Awake { until: now + AGAIN };
    }

    /// Something failed midway.
    pub fn unsure(&mut self) {
        self.phase = Phase::Unsure;
    }

    /// Whether it certainly has nothing to do with sleep.
    pub fn is_awake(&self) -> bool {
        matches!(self.phase, Phase::Awake { .. })
    }

    /// Whether it sleeps.
    pub fn is_asleep(&self) -> bool {
        matches!(self.phase, Phase::Asleep { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_sleeps_after_a_while_without_use_and_wakes_for_whoever_comes() {
        let mut rest = Rest::default();
        assert_eq!(rest.look(at(0), Use::Free, 0, false), Some(Act::Wake));
        rest.woken(at(0));
        assert_eq!(rest.look(at(9), Use::Free, 0, false), None);
        assert_eq!(rest.look(at(10), Use::Busy, 0, false), None);
        assert_eq!(rest.look(at(11), Use::Free, 0, false), None);
        assert_eq!(rest.look(at(20), Use::Free, 0, false), None);
        assert_eq!(rest.look(at(21), Use::Free, 0, true), None, "the last one");
        assert_eq!(rest.look(at(21), Use::Free, 0, false), Some(Act::Sleep));
        rest.fell_asleep(at(21));
        assert_eq!(rest.look(at(22), Use::Unknown, 0, false), None);
        assert_eq!(rest.look(at(22), Use::Busy, 0, false), Some(Act::Wake));
    }

    #[test]
    fn a_nap_ends_by_itself_and_the_next_one_begins_soon() {
        let mut rest = Rest::default();
        rest.look(at(0), Use::Free, 0, false);
        rest.woken(at(0));
        rest.look(at(1), Use::Free, 0, false);
        rest.fell_asleep(at(20));
        assert_eq!(rest.look(at(49), Use::Free, NAP_BYTES - 1, false), None);
        let full = rest.look(at(49), Use::Free, NAP_BYTES, false);
        assert_eq!(full, Some(Act::Wake));
        assert_eq!(rest.look(at(50), Use::Free, 0, false), Some(Act::Wake));
        rest.woken(at(50));
        assert_eq!(rest.look(at(50), Use::Free, 0, false), None);
        assert_eq!(rest.look(at(51), Use::Free, 0, false), Some(Act::Sleep));
        rest.stayed_awake(at(51));
        assert_eq!(rest.look(at(80), Use::Free, 0, false), None);
        assert_eq!(rest.look(at(81), Use::Free, 0, false), Some(Act::Sleep));
    }

    #[test]
    fn what_failed_midway_is_woken() {
        let mut rest = Rest::default();
        rest.woken(at(0));
        rest.unsure();
        assert_eq!(rest.look(at(1), Use::Unknown, 0, false), Some(Act::Wake));
        assert!(!rest.is_awake());
    }
}
