//! What belongs to a session whichever connection works for it: its settings, and what ties it to one.
//!
//! Settings are learnt from the server, never from reading SET: after a text that may have changed them
//! the connection is asked (`probe.rs`), so rollbacks, SET LOCAL and functions come out right by
//! themselves. It guards the promise that settings follow the session and nothing is left for the next.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::config::Consistency;
use crate::node::carried::Settings;
use crate::node::pooled::CONSISTENCY;
use crate::session::brief::Brief;
use crate::sql::statement::{Isolation, Modes};

/// Custom settings (`my.name`) a session may use; past that it keeps its connection.
pub const PLACEHOLDERS_MAX: usize = 64;

/// The setting that the proxy keeps at warning on the nodes, whatever the client sets (rule 4).
pub const MIN_MESSAGES: &str = "client_min_messages";
/// What the node has where the client wants to hear less.
const KEPT_LEVEL: &str = "warning";

/// Settings that change nothing about what a prepared statement means.
const HARMLESS: [&str; 19] = [
    CONSISTENCY,
    "application_name",
    "client_min_messages",
    "commit_delay",
    "enable_seqscan",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "jit",
    "lock_timeout",
    "log_statement",
    "maintenance_work_mem",
    "plan_cache_mode",
    "statement_timeout",
    "synchronous_commit",
    "tcp_keepalives_idle",
    "transaction_timeout",
    "work_mem",
    "default_transaction_read_only",
];

/// How long a session holds on to its connection between transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// Not at all.
    #[default]
    None,
    /// Until another session waits for one.
    Soft,
    /// Until nothing is left on it.
    Hard,
}

/// What may have happened on the connection since it was last looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)]
pub struct Doubt {
    /// It must be looked at.
    pub probe: bool,
    /// Settings may differ.
    pub settings: bool,
    /// Code ran that may have set what no probe sees.
    pub taint: bool,
    /// `client_min_messages` may differ: a broken wait may go unsaid.
    pub muted: bool,
    /// An advisory lock of the session's may have been taken, which stays when its transaction fails.
    pub locks: bool,
}

/// What the server said when asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// The settings that were set in the session.
    pub settings: Settings,
    /// Something that lives on this connection only.
    pub pinned: bool,
    /// What, in a word or two.
    pub tie: Option<&'static str>,
}

/// A session's settings and ties.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)]
pub struct State {
    /// What is to be in force on whichever connection works.
    pub wanted: Settings,
    /// What the startup packet asked for; RESET leads back here.
    startup: Settings,
    /// The read-only port.
    read_only: bool,
    /// Notices the client does not want to see although the node sends them; 0 hides nothing.
    quiet: u8,
    /// Since the last look began.
    pub doubt: Doubt,
    /// What the look that is under way will settle.
    looking: Option<Doubt>,
    /// The last look found temporary objects or the like.
    pub pinned: bool,
    /// What it found.
    pinned_by: Option<&'static str>,
    /// `nextval` was called.
    sequences: bool,
    /// `currval` or `lastval` was called.
    current_values: bool,
    /// Custom settings named in texts.
    pub placeholders: BTreeSet<String>,
    /// What reads may miss, where the session says so. What can't be read says strict.
    consistency: Option<Consistency>,
    /// Its transactions may be above READ COMMITTED, or the highest level, and may write although it was told that
    /// they do not.
    level: Level,
}

/// At which level a session's transactions are where they do not say so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Level {
    /// READ COMMITTED.
    #[default]
    Plain,
    /// REPEATABLE READ.
    Repeatable,
    /// SERIALIZABLE; or something that a follower's connections are not to be told.
    Never,
}

impl Level {
    fn of(wanted: &Settings) -> Self {
        if wanted
            .get("default_transaction_read_only")
            .is_some_and(|value| value != "on")
        {
            return Self::Never;
        }
        let level = wanted.get("default_transaction_isolation");
        match level.map(|level| level.to_ascii_lowercase()).as_deref() {
            None | Some("read committed" | "read uncommitted") => Self::Plain,
            Some("repeatable read") => Self::Repeatable,
            Some(_) => Self::Never,
        }
    }
}

impl State {
    /// A session that begins with these settings.
    pub fn new(mut startup: Settings, read_only: bool) -> Self {
        if read_only {
            startup.insert("default_transaction_read_only".to_owned(), "on".to_owned());
        }
        let mut state = Self {
            startup: startup.clone(),
            read_only,
            ..Self::default()
        };
        state.want(startup);
        state
    }

    /// What is to be in force from now on.
    fn want(&mut self, settings: Settings) {
        self.wanted = self.without_quiet(settings);
        let said = self.wanted.get(CONSISTENCY).filter(|said| !said.is_empty());
        self.consistency = said.map(|said| Consistency::named(said).unwrap_or_default());
        self.level = Level::of(&self.wanted);
    }

    /// What reads may miss, where the session says so.
    pub fn consistency(&self) -> Option<Consistency> {
        self.consistency
    }

    /// Of a transaction with these modes that only reads, and not at the highest level, whether it is above READ
    /// COMMITTED.
    pub fn reads_only(&self, modes: Modes) -> Option<bool> {
        let default = self.wanted.get("default_transaction_read_only");
        let read_only = modes
            .read_only
            .unwrap_or(default.is_some_and(|value| value == "on"));
        let above = match (modes.isolation, self.level) {
            (_, Level::Never) | (Some(Isolation::Serializable), _) => return None,
            (Some(Isolation::RepeatableRead), _) | (None, Level::Repeatable) => true,
            _ => false,
        };
        read_only.then_some(above)
    }

    /// Whether a read may go elsewhere than to the writer. In a batch more may follow, which would belong to the same
    /// snapshot at higher levels.
    pub fn may_read(&self, alone: bool) -> bool {
        match self.level {
            Level::Plain => true,
            Level::Repeatable => alone,
            Level::Never => false,
        }
    }

    /// Takes note of a text that is about to be sent.
    pub fn note(&mut self, brief: &Brief) {
        self.doubt.probe |= brief.probe;
        self.doubt.settings |= brief.settings;
        self.doubt.taint |= brief.taints;
        self.doubt.muted |= brief.mutes;
        self.doubt.locks |= brief.locks;
        self.sequences |= brief.nextval;
        self.current_values |= brief.currval;
        for name in &brief.placeholders {
            if self.placeholders.len() < PLACEHOLDERS_MAX {
                self.placeholders.insert(name.clone());
            }
        }
    }

    /// Code may have run that nothing was known of.
    pub fn suspect(&mut self) {
        self.doubt.probe = true;
        self.doubt.settings = true;
        self.doubt.taint = true;
    }

    /// Whether the connection must be kept between transactions.
    pub fn hold(&self) -> Hold {
        let hard =
            self.pinned || self.current_values || self.placeholders.len() >= PLACEHOLDERS_MAX;
        match (hard, self.sequences) {
            (true, _) => Hold::Hard,
            (false, true) => Hold::Soft,
            (false, false) => Hold::None,
        }
    }

    /// What would be missed if the connection were lost, in a word or two.
    pub fn tie(&self) -> Option<&'static str> {
        if self.pinned {
            return Some(self.pinned_by.unwrap_or("something"));
        }
        if self.current_values {
            return Some("a sequence's current value");
        }
        if self.placeholders.len() >= PLACEHOLDERS_MAX {
            return Some("settings of its own");
        }
        let locks = self.doubt.locks || self.looking.is_some_and(|doubt| doubt.locks);
        locks.then_some("an advisory lock")
    }

    /// The connection is gone with all that may have been on it.
    pub fn lose_connection(&mut self) {
        self.looking = None;
        self.doubt = Doubt::default();
        self.sequences = false;
    }

    /// A look begins, outside any transaction.
    pub fn look(&mut self) {
        self.looking = Some(std::mem::take(&mut self.doubt));
    }

    /// Whether a look is under way.
    pub fn looking(&self) -> bool {
        self.looking.is_some()
    }

    /// The look failed: nothing is settled.
    pub fn not_found(&mut self) {
        if let Some(old) = self.looking.take() {
            self.doubt.probe |= old.probe;
            self.doubt.settings |= old.settings;
            self.doubt.taint |= old.taint;
            self.doubt.muted |= old.muted;
            self.doubt.locks |= old.locks;
        }
    }

    /// Whether settings may be other than `wanted`.
    pub fn unsure(&self) -> bool {
        self.doubt.settings || self.looking.is_some_and(|doubt| doubt.settings)
    }

    /// Whether RESET on a node leads elsewhere than in the session.
    pub fn puts_back(&self) -> bool {
        !self.startup.is_empty()
    }

    /// Whether the server may keep quiet about a broken wait.
    pub fn muted(&self) -> bool {
        self.doubt.muted || self.looking.is_some_and(|doubt| doubt.muted)
    }

    /// Takes note of what the server said. The connection carries `finding.settings`; what the session
    /// wants is `wanted`. True if it may carry more than was found.
    pub fn found(&mut self, finding: &Finding) -> bool {
        let doubt = self.looking.take().unwrap_or(self.doubt);
        let mut settings = finding.settings.clone();
        let untouched = settings
            .get(MIN_MESSAGES)
            .is_some_and(|level| level == KEPT_LEVEL);
        let quiet = self.quiet;
        for (name, value) in &self.startup {
            settings
                .entry(name.clone())
                .or_insert_with(|| value.clone());
        }
        if self.read_only {
            settings.insert("default_transaction_read_only".to_owned(), "on".to_owned());
        }
        self.want(settings);
        if untouched && !doubt.muted {
            self.quiet = quiet;
        }
        self.pinned = finding.pinned;
        self.pinned_by = finding.tie;
        doubt.taint
    }

    /// Whether the client wants to see a notice of this severity (untranslated, as in field V).
    pub fn shows(&self, severity: &[u8]) -> bool {
        let level = match severity {
            b"WARNING" => 2,
            b"INFO" => return true,
            _ => 1,
        };
        level > self.quiet
    }

    /// A digest of all settings that may change what a text means; `None` while they are in doubt.
    pub fn digest(&self) -> Option<u64> {
        if self.unsure() {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        for (name, value) in &self.wanted {
            if !HARMLESS.contains(&name.as_str()) {
                (name, value).hash(&mut hasher);
            }
        }
        Some(hasher.finish())
    }

    /// Takes a level above warning out of the settings: the relay itself hides what the client does not
    /// want to hear.
    fn without_quiet(&mut self, mut settings: Settings) -> Settings {
        self.quiet = 0;
        if let Some(level) = settings
            .get_mut(MIN_MESSAGES)
            .filter(|level| is_silent(level))
        {
            self.quiet = 2;
            KEPT_LEVEL.clone_into(level);
        }
        settings
    }
}

/// Whether the server says less than warnings at this level.
fn is_silent(level: &str) -> bool {
    let silent = |word: &str| level.eq_ignore_ascii_case(word);
    ["error", "fatal", "panic"].into_iter().any(silent)
}

/// Whether a connection with these settings keeps quiet about a wait that was broken off.
pub fn mutes(settings: &Settings) -> bool {
    settings
        .get(MIN_MESSAGES)
        .is_some_and(|level| is_silent(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn finding(pairs: &[(&str, &str)]) -> Finding {
        Finding {
            settings: settings(pairs),
            ..Finding::default()
        }
    }

    #[test]
    fn reset_leads_back_to_the_startup_packet() {
        let mut state = State::new(settings(&[("search_path", "a")]), false);
        state.found(&finding(&[("search_path", "b"), ("work_mem", "64")]));
        assert_eq!(
            state.wanted,
            settings(&[("search_path", "b"), ("work_mem", "64")])
        );
        state.found(&finding(&[]));
        assert_eq!(state.wanted, settings(&[("search_path", "a")]));
    }

    #[test]
    fn the_read_only_port_stays_read_only() {
        let mut state = State::new(Settings::new(), true);
        state.found(&finding(&[("default_transaction_read_only", "off")]));
        assert_eq!(
            state.wanted,
            settings(&[("default_transaction_read_only", "on")])
        );
    }

    #[test]
    fn silence_is_kept_by_the_relay() {
        let mut state = State::new(Settings::new(), false);
        assert!(state.shows(b"NOTICE"));
        state.doubt.muted = true;
        state.look();
        state.found(&finding(&[(MIN_MESSAGES, "error")]));
        assert!(!state.shows(b"WARNING") && state.shows(b"INFO"));
        assert_eq!(state.wanted, settings(&[(MIN_MESSAGES, "warning")]));
        // Another look that finds the node's level as it was put changes nothing.
        state.found(&finding(&[(MIN_MESSAGES, "warning")]));
        assert!(!state.shows(b"WARNING"));
        // The client sets it itself.
        state.doubt.muted = true;
        state.look();
        state.found(&finding(&[(MIN_MESSAGES, "warning")]));
        assert!(state.shows(b"WARNING"));
    }

    #[test]
    fn a_digest_tells_meanings_apart() {
        let digest = |pairs: &[(&str, &str)]| State::new(settings(pairs), false).digest();
        assert_ne!(
            digest(&[("search_path", "a")]),
            digest(&[("search_path", "b")])
        );
        assert_eq!(digest(&[("application_name", "a")]), digest(&[]));
        let mut state = State::default();
        state.doubt.settings = true;
        assert_eq!(state.digest(), None);
    }

    #[test]
    fn sequences_hold_softly_and_their_values_hard() {
        let mut state = State::default();
        assert_eq!(state.hold(), Hold::None);
        state.note(&Brief {
            nextval: true,
            ..Brief::default()
        });
        assert_eq!(state.hold(), Hold::Soft);
        state.note(&Brief {
            currval: true,
            ..Brief::default()
        });
        assert_eq!(state.hold(), Hold::Hard);
    }
}
