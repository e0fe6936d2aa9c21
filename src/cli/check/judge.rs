//! What must be mended on the nodes, each with the mend, and what is worth knowing.
//!
//! Pure: facts in, findings out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::facts::{Database, Facts, Slot};
use crate::cli::demo::install::PgVersion;
use crate::config::Config;

/// Clocks further apart than this are a fault.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(1);
/// A slot that keeps back more log than this is worth knowing.
const KEPT_BYTES: i64 = 1 << 30;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It must be mended.
    Fault(String),
    /// It need not.
    Hint(String),
}

impl Finding {
    pub fn is_fault(&self) -> bool {
        matches!(self, Self::Fault(_))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(text) => write!(f, "- {text}"),
            Self::Hint(text) => write!(f, "hint: {text}"),
        }
    }
}

/// One node by itself.
pub fn node(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut found: Vec<Finding> = faults(facts, config)
        .into_iter()
        .map(Finding::Fault)
        .collect();
    found.extend(given(facts));
    found.extend(facts.slots.iter().filter_map(slot));
    found.extend(unread(facts));
    found.extend(facts.databases.iter().flat_map(database));
    found
}

/// Without which it can't be part of a cluster.
fn faults(facts: &Facts, config: &Config) -> Vec<String> {
    let mut faults = Vec::new();
    if !facts.version.is_supported() {
        faults.push(format!(
            "the version is too old: on it commits just after a start may not wait for a majority. \
             Needed: {}",
            PgVersion::SUPPORTED
        ));
    }
    if !facts.superuser {
        faults.push(format!(
            "user {0} is no superuser. As one: alter role \"{0}\" superuser",
            config.admin.user
        ));
    }
    if facts.in_recovery {
        faults.push("it is a standby of another server: promote it, or name that server".into());
    }
    for (name, wanted) in [
        ("wal_level", "logical"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
    ] {
        let value = facts.text(name);
        if value != wanted {
            faults.push(format!(
                "{name} is {value}. alter system set {name} = '{wanted}', then restart the server"
            ));
        }
    }
    let standbys = facts.text("synchronous_standby_names");
    if !matches!(standbys, "" | "synapsedb") {
        faults.push(format!(
            "synchronous_standby_names is {standbys:?}: other standbys are waited for. \
             alter system reset synchronous_standby_names, then reload"
        ));
    }
    if !facts.text("password_encryption").starts_with("scram") {
        faults.push(
            "password_encryption is not scram-sha-256: new passwords would be of no use here. \
             alter system set password_encryption = 'scram-sha-256', reload, set the passwords again"
                .into(),
        );
    }
    if matches!(
        facts.text("client_min_messages"),
        "error" | "fatal" | "panic"
    ) {
        faults.push(
            "client_min_messages is above warning: it would say nothing of a commit whose wait was broken off. \
             alter system reset client_min_messages, then reload"
                .into(),
        );
    }
    faults.extend(too_few(facts, config));
    if facts.clock_ahead_s.abs() > CLOCKS_APART_MAX.as_secs_f64() {
        faults.push(format!(
            "its clock is {:.1} s {} this machine's: run a time service on both",
            facts.clock_ahead_s.abs(),
            if facts.clock_ahead_s > 0.0 {
                "ahead of"
            } else {
                "behind"
            }
        ));
    }
    faults
}

/// Bounds of the server that the proxy would run into.
fn too_few(facts: &Facts, config: &Config) -> Vec<String> {
    // One slot a database, and as many again while a node that left is remembered by copies.
    let databases = i64::try_from(facts.databases.len()).unwrap_or(i64::MAX / 8);
    let slots = 2 * databases + facts.foreign_slots;
    let senders = databases + 2 + facts.foreign_senders;
    // One origin for each database and term of a writer; the term before is still needed for a while.
    let origins = 2 * databases + facts.foreign_origins;
    // Before 18 origins are bounded by the same setting as slots.
    let origins_setting = if facts.version.major >= 18 {
        "max_active_replication_origins"
    } else {
        "max_replication_slots"
    };
    let pool = i64::try_from(config.pool.max_connections).unwrap_or(i64::MAX);
    let connections = pool.saturating_add(10 + 3 * databases);
    let wanted = [
        ("max_replication_slots", slots),
        ("max_wal_senders", senders),
        (origins_setting, origins),
        ("max_connections", connections),
    ];
    let mut faults = Vec::new();
    for (name, least) in wanted {
        let value = facts.number(name);
        if value < least {
            faults.push(format!(
                "{name} is {value}, needed are {least}. alter system set {name} = {least}, then restart the server"
            ));
        }
    }
    faults
}

/// Settings of roles and databases.
fn given(facts: &Facts) -> impl Iterator<Item = Finding> {
    facts.given.iter().filter_map(|(whose, name, value)| {
        match (name.as_str(), value.as_str()) {
            ("client_min_messages", "error" | "fatal" | "panic") => Some(Finding::Fault(format!(
                "{whose} has client_min_messages = {value}: the server would say nothing of a commit whose wait was \
                 broken off. alter {whose} reset client_min_messages"
            ))),
            ("synchronous_commit", "off" | "local") => Some(Finding::Hint(format!(
                "{whose} has synchronous_commit = {value}: its commits wait for no other node, so they can be lost \
                 with the writer"
            ))),
            ("synchronous_commit", "on" | "remote_apply") => Some(Finding::Hint(format!(
                "{whose} has synchronous_commit = {value}: its commits wait for every node, not for a majority"
            ))),
            _ => None,
        }
    })
}

fn slot(slot: &Slot) -> Option<Finding> {
    let Slot {
        name, status, kept, ..
    } = slot;
    if status == "lost" {
        return Some(Finding::Fault(format!(
            "slot {name} has lost its log (max_slot_wal_keep_size): what followers lack is gone. Stop the proxy, \
             synapsedb release, make the nodes equal, start again"
        )));
    }
    if status == "unreserved" {
        return Some(Finding::Fault(format!(
            "slot {name} is about to lose its log: start the proxy now, or raise max_slot_wal_keep_size"
        )));
    }
    (*kept > KEPT_BYTES).then(|| {
        let mib = kept >> 20;
        Finding::Hint(format!(
            "slot {name} keeps {mib} MiB of log from being removed: a node is down or far behind, or the proxy is off"
        ))
    })
}

/// Commits wait for a proxy that does not run.
fn unread(facts: &Facts) -> Option<Finding> {
    let waits = facts.text("synchronous_standby_names") == "synapsedb";
    let idle = facts.slots.iter().any(|slot| !slot.active);
    // A follower's slots are not read, only moved.
    (waits && idle && facts.in_office).then(|| {
        Finding::Hint(
            "no proxy reads its slots now: commits on it wait. Start the proxy, or take it off with synapsedb release"
                .to_owned(),
        )
    })
}

fn database(database: &Database) -> Vec<Finding> {
    let mut found = Vec::new();
    let name = &database.name;
    if database.large_objects > 0 {
        found.push(Finding::Hint(format!(
            "database {name} has {} large objects: they are not replicated and can't be changed through the proxy. \
             Move them into bytea columns",
            database.large_objects
        )));
    }
    if database.keyless_count > 0 {
        let more = if database.keyless_count > i64::try_from(database.keyless.len()).unwrap_or(0) {
            ", ..."
        } else {
            ""
        };
        found.push(Finding::Hint(format!(
            "database {name} has tables without a key ({}{more}): they are replicated by comparing whole rows, which \
             is slow for large ones. Give them a primary key",
            database.keyless.join(", ")
        )));
    }
    found
}

/// What the nodes do not agree on.
pub fn together(nodes: &[(String, Facts)]) -> Vec<Finding> {
    let Some(((first, ours), others)) = nodes.split_first() else {
        return Vec::new();
    };
    let mut found = cluster(nodes);
    for (other, theirs) in others {
        found.extend(databases(first, ours, other, theirs));
        found.extend(extensions(first, ours, other, theirs));
    }
    found
}

/// Whether they belong to one cluster, and who is behind.
fn cluster(nodes: &[(String, Facts)]) -> Vec<Finding> {
    let known: Vec<_> = nodes
        .iter()
        .filter_map(|(name, facts)| facts.state.as_ref().map(|state| (name, state)))
        .collect();
    let mut found = Vec::new();
    let clusters: BTreeSet<&str> = known.iter().map(|(_, s)| s.cluster.as_str()).collect();
    if clusters.len() > 1 {
        let list: Vec<String> = known
            .iter()
            .map(|(name, state)| format!("{name}: {}", state.cluster))
            .collect();
        found.push(Finding::Fault(format!(
            "the nodes belong to different clusters ({}). synapsedb release --node NAME on those that do not belong here",
            list.join(", ")
        )));
        return found;
    }
    let newest = known.iter().map(|(_, state)| state).max_by_key(|s| s.epoch);
    for (name, state) in &known {
        if let Some(newest) = newest.filter(|newest| newest.epoch > state.epoch) {
            found.push(Finding::Hint(format!(
                "{name} has seen epoch {}, others {}: it was away when the proxy started last",
                state.epoch, newest.epoch
            )));
        }
    }
    if !known.is_empty() && known.len() < nodes.len() {
        let strangers: Vec<&str> = nodes
            .iter()
            .filter(|(_, facts)| facts.state.is_none())
            .map(|(name, _)| name.as_str())
            .collect();
        found.push(Finding::Fault(format!(
            "{} is not part of the cluster that the others belong to. Stop the proxy, synapsedb release, make the \
             nodes equal, start again",
            strangers.join(", ")
        )));
    }
    found
}

fn databases(first: &str, ours: &Facts, other: &str, theirs: &Facts) -> Vec<Finding> {
    let list = |facts: &Facts| -> BTreeSet<String> {
        let databases = facts.databases.iter();
        databases
            .map(|d| format!("{} ({})", d.name, d.kind))
            .collect()
    };
    let (ours, theirs) = (list(ours), list(theirs));
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| -> String {
        let only: Vec<&str> = a.difference(b).map(String::as_str).collect();
        if only.is_empty() {
            "none".to_owned()
        } else {
            only.join(", ")
        }
    };
    if ours == theirs {
        return Vec::new();
    }
    vec![Finding::Fault(format!(
        "databases differ: only {first} has {}; only {other} has {}. Make them the same, encodings and collations too, \
         before the first start",
        only(&ours, &theirs),
        only(&theirs, &ours)
    ))]
}

fn extensions(first: &str, ours: &Facts, other: &str, theirs: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for here in &ours.databases {
        let there = theirs.databases.iter().find(|d| d.name == here.name);
        let none = BTreeMap::new();
        let there = there.map_or(&none, |d| &d.extensions);
        let names: BTreeSet<&String> = here.extensions.keys().chain(there.keys()).collect();
        for name in names {
            let (a, b) = (here.extensions.get(name), there.get(name));
            if a != b {
                let version = |v: Option<&String>| v.map_or("not there".to_owned(), Clone::clone);
                found.push(Finding::Fault(format!(
                    "database {}: extension {name} is {} on {first} and {} on {other}. Make it the same on all nodes",
                    here.name,
                    version(a),
                    version(b)
                )));
            }
        }
    }
    let missing = |a: &Facts, b: &Facts| -> Vec<String> {
        let there: BTreeSet<&String> = b.available.iter().collect();
        let lacks = |name: &&String| !there.contains(name);
        a.available.iter().filter(lacks).take(10).cloned().collect()
    };
    for (has, lacks, names) in [
        (first, other, missing(ours, theirs)),
        (other, first, missing(theirs, ours)),
    ] {
        if !names.is_empty() {
            found.push(Finding::Hint(format!(
                "{has} offers extensions that {lacks} does not ({}): made through the proxy, they would fail there",
                names.join(", ")
            )));
        }
    }
    found
}

/// Whether comparing all rows makes sense: nothing is set up yet, and nothing stands in the way.
pub fn may_meet(nodes: &[(String, Facts)], alone: &[Finding], together: &[Finding]) -> bool {
    let fresh = nodes.iter().all(|(_, facts)| facts.state.is_none());
    fresh && !alone.iter().chain(together).any(Finding::is_fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;
    use crate::node::control::State;

    fn good() -> Facts {
        let settings = [
            ("wal_level", "logical"),
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("synchronous_standby_names", ""),
            ("password_encryption", "scram-sha-256"),
            ("max_replication_slots", "10"),
            ("max_wal_senders", "10"),
            ("max_connections", "100"),
        ];
        Facts {
            version: PgVersion {
                major: 16,
                minor: 14,
            },
            superuser: true,
            in_recovery: false,
            clock_ahead_s: 0.01,
            foreign_slots: 0,
            foreign_origins: 0,
            foreign_senders: 0,
            settings: settings.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
            given: Vec::new(),
            state: None,
            in_office: true,
            slots: Vec::new(),
            available: Vec::new(),
            databases: ["app", "postgres"]
                .map(|name| Database {
                    name: name.to_owned(),
                    ..Database::default()
                })
                .to_vec(),
        }
    }

    fn set(facts: &mut Facts, name: &str, value: &str) {
        facts.settings.insert(name.into(), value.into());
    }

    fn judge(facts: &Facts, config: &Config) -> Vec<String> {
        super::faults(facts, config)
    }

    fn state(epoch: u64, cluster: &str) -> State {
        State {
            epoch: Epoch(epoch),
            term: Epoch(1),
            writer: "a".to_owned(),
            cluster: cluster.to_owned(),
            fenced: Vec::new(),
        }
    }

    fn said(findings: &[Finding]) -> String {
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        lines.join("\n")
    }

    #[test]
    fn nodes_of_different_clusters_and_epochs_are_told_apart() {
        let pair = |ours, theirs| {
            let (mut a, mut b) = (good(), good());
            (a.state, b.state) = (ours, theirs);
            together(&[("a".to_owned(), a), ("b".to_owned(), b)])
        };
        assert_eq!(pair(None, None), []);
        assert_eq!(pair(Some(state(3, "x")), Some(state(3, "x"))), []);
        let found = pair(Some(state(3, "x")), Some(state(3, "y")));
        assert!(
            found[0].is_fault() && said(&found).contains("different clusters"),
            "{found:?}"
        );
        let found = pair(Some(state(3, "x")), Some(state(2, "x")));
        assert!(
            !found[0].is_fault() && said(&found).contains("b has seen epoch 2"),
            "{found:?}"
        );
        let found = pair(Some(state(3, "x")), None);
        assert!(
            found[0].is_fault() && said(&found).contains("b is not part"),
            "{found:?}"
        );
    }

    #[test]
    fn extensions_and_databases_that_one_node_lacks_are_named() {
        let (a, mut b) = (good(), good());
        b.databases[0]
            .extensions
            .insert("vector".into(), "0.8.5".into());
        b.databases.remove(1);
        b.available.push("plperl".into());
        let found = together(&[("a".to_owned(), a), ("b".to_owned(), b)]);
        let text = said(&found);
        assert!(text.contains("only a has postgres"), "{text}");
        assert!(
            text.contains("extension vector is not there on a and 0.8.5 on b"),
            "{text}"
        );
        assert!(
            text.contains("hint: b offers extensions that a does not (plperl)"),
            "{text}"
        );
    }

    #[test]
    fn slots_settings_keys_and_large_objects_are_looked_at() {
        let mut facts = good();
        set(&mut facts, "synchronous_standby_names", "synapsedb");
        let slot = |name: &str, status: &str, kept| Slot {
            name: name.to_owned(),
            active: false,
            status: status.to_owned(),
            kept,
        };
        facts.slots = vec![
            slot("s1", "lost", 0),
            slot("s2", "unreserved", 0),
            slot("s3", "extended", 3 << 30),
        ];
        let given =
            |whose: &str, name: &str, value: &str| (whose.into(), name.into(), value.into());
        facts.given = vec![
            given("role ann", "client_min_messages", "error"),
            given("database app", "synchronous_commit", "off"),
            given("role bob", "synchronous_commit", "remote_write"),
        ];
        facts.databases[0].large_objects = 3;
        facts.databases[0].keyless = vec!["public.log".to_owned()];
        facts.databases[0].keyless_count = 2;
        let found = node(&facts, &Config::default());
        let text = said(&found);
        for sign in [
            "- slot s1 has lost its log",
            "- slot s2 is about to lose",
            "hint: slot s3 keeps 3072 MiB",
            "- role ann has client_min_messages = error",
            "hint: database app has synchronous_commit = off",
            "hint: no proxy reads its slots",
            "has 3 large objects",
            "(public.log, ...)",
        ] {
            assert!(text.contains(sign), "{sign}: {text}");
        }
        assert_eq!(found.iter().filter(|f| f.is_fault()).count(), 3, "{text}");
        assert!(!text.contains("bob"), "{text}");
    }

    #[test]
    fn a_good_node_has_nothing_to_mend() {
        assert_eq!(judge(&good(), &Config::default()), Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_named_with_its_mend() {
        let config = Config::default();
        for (name, value, sign) in [
            (
                "wal_level",
                "replica",
                "alter system set wal_level = 'logical'",
            ),
            ("fsync", "off", "fsync is off"),
            ("synchronous_standby_names", "other", "other standbys"),
            ("password_encryption", "md5", "scram-sha-256"),
            ("max_replication_slots", "3", "needed are 4"),
            ("max_wal_senders", "2", "max_wal_senders is 2"),
            ("max_connections", "20", "max_connections is 20"),
            (
                "client_min_messages",
                "error",
                "client_min_messages is above",
            ),
        ] {
            let mut facts = good();
            set(&mut facts, name, value);
            let text = judge(&facts, &config).join("\n");
            assert!(text.contains(sign), "{name} = {value}: {text}");
        }
        let mut facts = good();
        facts.superuser = false;
        facts.version = PgVersion {
            major: 16,
            minor: 8,
        };
        facts.clock_ahead_s = -3.0;
        facts.in_recovery = true;
        assert_eq!(judge(&facts, &config).len(), 4);
    }

    #[test]
    fn version_18_bounds_origins_by_their_own_setting() {
        let mut facts = good();
        facts.version = PgVersion {
            major: 18,
            minor: 4,
        };
        set(&mut facts, "max_active_replication_origins", "1");
        let faults = judge(&facts, &Config::default());
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains("max_active_replication_origins"));
    }
}
