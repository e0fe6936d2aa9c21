//! What the relay does about a text: the facts of its statements boiled down to a few yes and no.
//!
//! Kept per text, so that a statement that was seen before costs one look-up. What is not known of a text
//! (too long, not UTF-8, cannot be cut) fails closed: it may write, change settings and pin.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::config::Consistency;
use crate::error::Refusal;
use crate::ids::Tables;
use crate::node::pooled::CONSISTENCY;
use crate::session::inside;
use crate::session::likeness;
use crate::session::pipeline::Risk;
use crate::sql::catalog::Catalog;
use crate::sql::lexer::lex;
use crate::sql::split::split;
use crate::sql::statement::{
    Discard, Effects, Facts, Kind, Modes, Reason, StatementFacts, TEXT_BYTES_MAX, Value,
};

/// Bytes of texts whose briefs are kept.
const CACHE_BYTES_MAX: u64 = 24 << 20;
/// Longer texts are not even cut into statements.
const LONG_BYTES_MAX: usize = 1 << 20;
/// About how many texts are kept.
const CACHE_TEXTS: usize = 8192;

/// One command that begins or ends a transaction, and nothing beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Control {
    /// Anything else.
    #[default]
    None,
    /// BEGIN, with any modes.
    Begin,
    /// START TRANSACTION, which differs in its tag.
    Start,
    /// COMMIT, END.
    Commit {
        /// AND CHAIN.
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    Rollback {
        /// AND CHAIN.
        chain: bool,
    },
}

impl Control {
    /// Of a text. One with more than ASCII in it counts as anything else: whether a server takes its comments
    /// depends on encodings.
    fn of(text: &[u8], facts: &Facts) -> Self {
        let Some(one) = facts.single().filter(|_| text.is_ascii()) else {
            return Self::None;
        };
        let starts = |word: &[u8]| {
            let first = text[one.bytes.clone()].get(..word.len());
            first.is_some_and(|first| first.eq_ignore_ascii_case(word))
        };
        match one.kind {
            Kind::Begin(_) if starts(b"start") => Self::Start,
            Kind::Begin(_) => Self::Begin,
            Kind::Commit { chain } => Self::Commit { chain },
            Kind::Rollback { chain } => Self::Rollback { chain },
            _ => Self::None,
        }
    }

    /// Of what ends a transaction, whether the next begins at once.
    pub fn ends(self) -> Option<bool> {
        match self {
            Self::Commit { chain } | Self::Rollback { chain } => Some(chain),
            Self::None | Self::Begin | Self::Start => None,
        }
    }

    /// The tag that a server answers it with.
    pub fn tag(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Begin => "BEGIN",
            Self::Start => "START TRANSACTION",
            Self::Commit { .. } => "COMMIT",
            Self::Rollback { .. } => "ROLLBACK",
        }
    }
}

/// What a statement that reads no table means for a read-only transaction that runs on a follower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inside {
    /// It may not run there.
    #[default]
    Foreign,
    /// It may, and leaves nothing.
    Harmless,
    /// It may, and what it does is lost where the transaction begins anew elsewhere.
    Roots,
}

impl Inside {
    fn of(kind: &Kind) -> Self {
        match kind {
            Kind::Commit { chain: false }
            | Kind::Rollback { chain: false }
            | Kind::Release(_)
            | Kind::Show(_)
            // Behind a query the server has its own words for it, and ahead of one no follower has the transaction.
            | Kind::SetTransaction { .. } => Self::Harmless,
            Kind::Savepoint(_) | Kind::RollbackTo(_) | Kind::Set { .. } | Kind::Reset(_) => {
                Self::Roots
            }
            _ => Self::Foreign,
        }
    }
}

/// What sending a text means for its session and connection.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)]
pub struct Brief {
    /// The snapshot of names that it goes by.
    pub names: u64,
    /// Look at the connection before another session may have it.
    pub probe: bool,
    /// Settings may differ from here on, so what is prepared now must not be shared.
    pub settings: bool,
    /// Code ran whose settings no probe may see.
    pub taints: bool,
    /// Calls `nextval`, so the connection is kept while nobody needs it.
    pub nextval: bool,
    /// May draw values of sequences, if only by a column's default.
    pub draws: bool,
    /// May move a sequence.
    pub jumps: bool,
    /// Calls `currval` or `lastval`, so the connection is kept.
    pub currval: bool,
    /// Names `client_min_messages`: the server may say nothing of a broken wait.
    pub mutes: bool,
    /// May take an advisory lock for the session.
    pub locks: bool,
    /// Names `synchronous_commit`: its commit may wait for nobody.
    pub relaxes: bool,
    /// Is COMMIT and nothing else.
    pub commits: bool,
    /// Whether it is one command that begins or ends a transaction.
    pub control: Control,
    /// Asks for a transaction that writes, which the read-only port has not got.
    pub read_write: bool,
    /// Runs the text of a literal: DO.
    pub runs_literals: bool,
    /// Writes by the word of its first words.
    pub writes: bool,
    /// What its loss means.
    pub risk: Risk,
    /// Custom settings it names.
    pub placeholders: Vec<String>,
    /// May drop all prepared statements: DISCARD ALL, DEALLOCATE ALL.
    pub deallocates_all: bool,
    /// Is the one statement `DEALLOCATE name`.
    pub deallocates: Option<String>,
    /// What it sets `synapsedb.read_consistency` to, where that takes no such value.
    pub bad_consistency: Option<String>,
    /// Refused.
    pub refusal: Option<Refusal>,
    /// The tables that it reads, where any node may answer it.
    pub reads: Option<Tables>,
    /// It has several statements.
    pub several: bool,
    /// It reads or writes rows, and does nothing else: no COPY, no command.
    pub plain: bool,
    /// What it does to a read-only transaction that runs on a follower.
    pub inside: Inside,
    /// Of one BEGIN, the modes that it names.
    pub begins: Option<Modes>,
    /// It leaves a transaction open that it has begun.
    pub opens: bool,
    /// It goes to the writer whatever is proven: it was found to write, or to give values that differ by node.
    pub(super) barred: AtomicBool,
    /// Its statements, where the relay has more to do about them than to send them on.
    pub special: Option<Arc<Facts>>,
}

impl Brief {
    /// The brief of a text.
    pub fn of(text: &[u8], catalog: &Catalog, standard_strings: bool) -> Self {
        let facts = match std::str::from_utf8(text) {
            Ok(text) => facts_of(text, standard_strings),
            Err(_) => Facts::unknown(Reason::NotUnderstood("not UTF-8".to_owned())),
        };
        let mut brief = Self {
            names: catalog.generation(),
            ..Self::default()
        };
        for statement in &facts.statements {
            brief.add(statement, catalog);
            match &statement.kind {
                Kind::Begin(_) => brief.opens = true,
                Kind::Commit { chain } | Kind::Rollback { chain } => brief.opens &= *chain,
                _ => {}
            }
        }
        if let Ok(text) = std::str::from_utf8(text) {
            brief.refusal = brief.refusal.or_else(|| hidden_refusal(text, &facts));
        }
        brief.relaxes = contains(text, b"synchronous_commit");
        brief.locks = contains(text, b"advisory_lock");
        brief.jumps = brief.taints && catalog.may_jump() || contains(text, b"setval");
        brief.mutes = brief.mutes || contains(text, b"client_min_messages");
        brief.commits = facts
            .single()
            .is_some_and(|one| matches!(one.kind, Kind::Commit { .. }));
        brief.control = Control::of(text, &facts);
        if let [one] = facts.statements.as_slice()
            && let Kind::Deallocate(name) = &one.kind
        {
            brief.deallocates = Some(name.clone());
        }
        // What a setting says of read-only transactions differs where nothing can be written, and the proxy's metadata
        // are what the writer has of them.
        if !contains(text, b"read_only") && !facts.mentions_metadata() {
            brief.reads = facts.reads(catalog);
        }
        brief.several = facts.statements.len() > 1;
        let plain = |one: &StatementFacts| matches!(one.kind, Kind::Query | Kind::Write);
        brief.plain = !facts.statements.is_empty() && facts.statements.iter().all(plain);
        if let Some(one) = facts.single() {
            brief.inside = Inside::of(&one.kind);
            if let Kind::Begin(modes) = one.kind {
                brief.begins = Some(modes);
            }
        }
        let special = |one: &StatementFacts| matches!(one.kind, Kind::GlobalDdl | Kind::Upkeep(_));
        if facts.mentions_metadata() || facts.statements.iter().any(special) {
            brief.special = Some(Arc::new(facts));
        }
        brief
    }

    /// Of a text of which nothing is known.
    pub fn unknown() -> Self {
        Self {
            probe: true,
            settings: true,
            taints: true,
            jumps: true,
            mutes: true,
            draws: true,
            read_write: true,
            risk: Risk::Commit,
            ..Self::default()
        }
    }

    /// The tables it reads, where any node may answer it.
    pub fn reads(&self) -> Option<&Tables> {
        let barred = self.barred.load(Ordering::Relaxed);
        self.reads.as_ref().filter(|_| !barred)
    }

    /// It goes to the writer from now on.
    pub fn bar(&self) {
        self.barred.store(true, Ordering::Relaxed);
    }

    fn add(&mut self, statement: &StatementFacts, catalog: &Catalog) {
        let effects = statement.effects(catalog);
        let calls = |name: &str| statement.names.calls.iter().any(|call| call == name);
        self.probe |= effects.needs_probe();
        self.settings |= effects.may_change_settings;
        self.taints |= effects.touches_unknown_code;
        self.nextval |= calls("nextval");
        self.currval |= calls("currval") || calls("lastval");
        if let Kind::Set { name, value, .. } = &statement.kind
            && name == CONSISTENCY
        {
            let given = bad_consistency(value);
            self.bad_consistency = self.bad_consistency.take().or(given);
        }
        self.placeholders
            .extend(statement.names.placeholders.iter().cloned());
        self.writes |= writes(&statement.kind);
        self.runs_literals |= statement.kind == Kind::Do;
        let risk = risk(&statement.kind, effects);
        self.risk = self.risk.max(risk);
        // Without a snapshot of the names any column's default may draw.
        let blind = catalog.is_blind();
        self.draws |= effects.draws_sequence || blind && risk > Risk::None;
        self.read_write |= asks_to_write(&statement.kind);
        let all = matches!(
            statement.kind,
            Kind::DeallocateAll | Kind::Discard(Discard::All)
        );
        self.deallocates_all |= all;
        self.mutes |= statement.kind == Kind::Unknown;
        self.refusal = self.refusal.or_else(|| refusal(statement));
    }
}

/// A value that the setting does not take; what can't be read is left to the node.
fn bad_consistency(value: &Value) -> Option<String> {
    let Value::Written(written) = value else {
        return None;
    };
    let quoted = written
        .strip_prefix('\'')
        .and_then(|rest| rest.strip_suffix('\''));
    let given = quoted.unwrap_or(written);
    Consistency::named(given)
        .is_none()
        .then(|| given.to_owned())
}

/// The facts of a text of any length.
pub fn facts_of(text: &str, standard: bool) -> Facts {
    if text.len() > TEXT_BYTES_MAX {
        return long_facts(text, standard);
    }
    Facts::of(text, standard)
}

/// The facts of a text too long to be looked at whole: cut into statements, of which those that the relay
/// has something to do about are short. The others, and all of a text longer still, stay unknown.
fn long_facts(text: &str, standard: bool) -> Facts {
    const FIRST: [&str; 16] = [
        "alter",
        "analyze",
        "checkpoint",
        "cluster",
        "comment",
        "create",
        "do",
        "drop",
        "explain",
        "grant",
        "prepare",
        "reassign",
        "reindex",
        "revoke",
        "security",
        "vacuum",
    ];
    let mut facts = Facts::unknown(Reason::TooLong);
    if text.len() > LONG_BYTES_MAX {
        return facts;
    }
    let lexed = lex(text, standard);
    if lexed.fault.is_some() {
        return facts;
    }
    for piece in split(text, &lexed.tokens) {
        let sql = &text[piece.bytes.clone()];
        let word = sql
            .split(|c: char| !c.is_ascii_alphabetic())
            .next()
            .unwrap_or_default();
        let told = FIRST.iter().any(|first| first.eq_ignore_ascii_case(word));
        let control = [
            "begin",
            "commit",
            "end",
            "rollback",
            "abort",
            "savepoint",
            "release",
            "start",
        ]
        .iter()
        .any(|first| first.eq_ignore_ascii_case(word));
        if (told || control) && sql.len() <= TEXT_BYTES_MAX {
            for mut one in Facts::of(sql, standard).statements {
                one.bytes = one.bytes.start + piece.bytes.start..one.bytes.end + piece.bytes.start;
                facts.statements.push(one);
            }
        }
    }
    facts
}

/// What losing the connection while it runs would leave open.
fn risk(kind: &Kind, effects: Effects) -> Risk {
    match kind {
        Kind::Begin(_)
        | Kind::Rollback { .. }
        | Kind::Savepoint(_)
        | Kind::RollbackTo(_)
        | Kind::Release(_)
        | Kind::Set { .. }
        | Kind::SetTransaction { .. }
        | Kind::SetConstraints
        | Kind::SetRole { .. }
        | Kind::SetSessionAuthorization { .. }
        | Kind::Reset(_)
        | Kind::ResetAll
        | Kind::Show(_)
        | Kind::Prepare(_)
        | Kind::Deallocate(_)
        | Kind::DeallocateAll
        | Kind::CloseCursor(_)
        | Kind::CopyOut
        | Kind::Explain { analyze: false } => Risk::None,
        Kind::Query | Kind::Fetch if effects == Effects::default() => Risk::None,
        Kind::Commit { .. } | Kind::Unknown | Kind::Call | Kind::Do => Risk::Commit,
        _ => Risk::Write,
    }
}

fn asks_to_write(kind: &Kind) -> bool {
    let names = |name: &str| {
        matches!(
            name,
            "default_transaction_read_only" | "transaction_read_only"
        )
    };
    match kind {
        Kind::Begin(modes) | Kind::SetTransaction { modes, .. } => modes.read_only == Some(false),
        Kind::Set { name, .. } | Kind::Reset(name) => names(name),
        _ => false,
    }
}

/// Whether such a statement changes something whatever it names.
fn writes(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::CopyIn
            | Kind::GlobalDdl
            | Kind::Ddl(_)
            | Kind::Do
            | Kind::Call
            | Kind::Write
            | Kind::Unknown
    )
}

/// What shows only by reading the statements themselves.
fn hidden_refusal(text: &str, facts: &Facts) -> Option<Refusal> {
    facts.statements.iter().find_map(|one| match &one.kind {
        Kind::Do if inside::changes_what_is_shared(text.get(one.bytes.clone())?) => {
            Some(Refusal::SharedInside)
        }
        Kind::Ddl(_) | Kind::GlobalDdl if inside::concerns_own(one) => Some(Refusal::OwnObjects),
        _ => None,
    })
}

fn refusal(statement: &StatementFacts) -> Option<Refusal> {
    /// The server's own functions that change large objects.
    const LARGE: [&str; 9] = [
        "lo_creat",
        "lo_create",
        "lo_from_bytea",
        "lo_import",
        "lo_put",
        "lo_truncate",
        "lo_truncate64",
        "lo_unlink",
        "lowrite",
    ];
    match statement.kind {
        Kind::TwoPhase => Some(Refusal::TwoPhase),
        Kind::CreateSubscription => Some(Refusal::Subscription),
        Kind::ExplainMakesTable => Some(Refusal::ExplainMakesTable),
        _ => {
            let large = |call: &String| LARGE.contains(&call.as_str());
            statement
                .names
                .calls
                .iter()
                .any(large)
                .then_some(Refusal::LargeObjects)
        }
    }
}

/// Whether `text` contains `word` (lower case) in any case.
fn contains(text: &[u8], word: &[u8]) -> bool {
    let (first, upper) = (word[0], word[0].to_ascii_uppercase());
    let same = |at: usize| {
        let end = at + word.len();
        text.get(at..end)
            .is_some_and(|here| here.eq_ignore_ascii_case(word))
    };
    memchr::memchr2_iter(first, upper, text).any(same)
}

#[derive(Clone)]
struct TextWeight;

impl quick_cache::Weighter<Bytes, Arc<Brief>> for TextWeight {
    fn weight(&self, text: &Bytes, brief: &Arc<Brief>) -> u64 {
        let special = if brief.special.is_some() { 2000 } else { 0 };
        let tables = match &brief.reads {
            Some(Tables::Some(tables)) => 8 * tables.len(),
            _ => 0,
        };
        (text.len() + 300 + special + tables) as u64
    }
}

/// Briefs by text, bounded.
pub struct Briefs {
    cache: quick_cache::sync::Cache<Bytes, Arc<Brief>, TextWeight>,
    catalog: Arc<Catalog>,
}

impl Briefs {
    /// None yet; names mean what `catalog` says.
    pub fn new(catalog: Arc<Catalog>) -> Self {
        Self {
            cache: quick_cache::sync::Cache::with_weighter(
                CACHE_TEXTS,
                CACHE_BYTES_MAX,
                TextWeight,
            ),
            catalog,
        }
    }

    /// Which snapshot of the database's names they go by.
    pub fn generation(&self) -> u64 {
        self.catalog.generation()
    }

    /// The brief of a text; `standard_strings` is the session's `standard_conforming_strings`.
    pub fn get(&self, text: &[u8], standard_strings: bool) -> Arc<Brief> {
        if !standard_strings || text.len() > TEXT_BYTES_MAX {
            return Arc::new(Brief::of(text, &self.catalog, standard_strings));
        }
        let mut likeness = Vec::new();
        let shared = likeness::key(text, &mut likeness);
        let key = if shared { &likeness[..] } else { text };
        if let Some(brief) = self.cache.get(key) {
            return brief;
        }
        let brief = Arc::new(Brief::of(text, &self.catalog, true));
        // What speaks of places in a text holds for this text only; so does what a literal runs.
        if !shared || brief.special.is_none() && !brief.runs_literals {
            let key = Bytes::copy_from_slice(key);
            self.cache.insert(key, Arc::clone(&brief));
        }
        brief
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief(text: &str) -> Brief {
        Brief::of(text.as_bytes(), &Catalog::unknown(), true)
    }

    #[test]
    fn plain_work_leaves_nothing() {
        for text in [
            "SELECT abalance FROM pgbench_accounts WHERE aid = 1",
            "UPDATE t SET a = a + 1 WHERE b = $1",
            "BEGIN",
            "COMMIT",
            "INSERT INTO t (a, b) VALUES ($1, now())",
            "select count(*), max(a) from t",
        ] {
            let brief = brief(text);
            assert!(!brief.probe && !brief.settings && !brief.taints, "{text}");
        }
    }

    #[test]
    fn risks_are_told_apart() {
        assert_eq!(brief("select 1").risk, Risk::None);
        assert_eq!(brief("insert into t values (1)").risk, Risk::Write);
        assert_eq!(
            brief("begin; insert into t values (1); commit").risk,
            Risk::Commit
        );
        assert_eq!(brief("frobnicate").risk, Risk::Commit);
        assert!(brief("insert into t values (1)").plain && brief("select 1").plain);
        for text in ["copy t from stdin", "vacuum", "begin", "", "frobnicate"] {
            assert!(!brief(text).plain, "{text}");
        }
    }

    #[test]
    fn what_begins_and_ends_transactions_is_known() {
        for (text, control) in [
            ("begin", Control::Begin),
            (" ; BEGIN work;;", Control::Begin),
            ("/* start */ Begin read only -- start", Control::Begin),
            (
                "start /* a */ transaction isolation level serializable",
                Control::Start,
            ),
            ("end", Control::Commit { chain: false }),
            (
                "commit transaction and no chain",
                Control::Commit { chain: false },
            ),
            ("commit and chain", Control::Commit { chain: true }),
            ("abort;", Control::Rollback { chain: false }),
            ("rollback work and chain", Control::Rollback { chain: true }),
            ("rollback to a", Control::None),
            ("begin; commit", Control::None),
            ("begin /* gr\u{fc}n */", Control::None),
            ("begin nonsense", Control::None),
            ("commit prepared 'a'", Control::None),
            ("select 1", Control::None),
            ("", Control::None),
        ] {
            assert_eq!(brief(text).control, control, "{text}");
        }
    }

    #[test]
    fn like_texts_share_a_brief_and_special_ones_do_not() {
        let briefs = Briefs::new(Arc::new(Catalog::unknown()));
        let get = |text: &str| briefs.get(text.as_bytes(), true);
        assert!(Arc::ptr_eq(
            &get("select 1 from t where a = 'x'"),
            &get("select 22 from t where a = ''")
        ));
        assert!(!Arc::ptr_eq(&get("vacuum t1"), &get("vacuum t2")));
        let (one, two) = (get("do 'select 1'"), get("do 'drop role a'"));
        assert_eq!(
            (one.refusal, two.refusal),
            (None, Some(Refusal::SharedInside))
        );
        let (one, two) = (
            get("grant a to b; select 1"),
            get("grant a to b; select 22"),
        );
        assert_ne!(one.special.is_some().then_some(1), None);
        assert!(!Arc::ptr_eq(&one, &two));
        assert_eq!(
            get("select set_config('a.b', '1', false)").placeholders,
            ["a.b"]
        );
        assert_eq!(
            get("select set_config('c.d', '1', false)").placeholders,
            ["c.d"]
        );
    }

    #[test]
    fn commands_in_long_texts_are_found() {
        let rows = format!("insert into t values ('{}')", "x".repeat(100_000));
        let one = brief(&format!("{rows}; create role a; {rows}"));
        assert!(one.probe && one.special.is_some());
        assert_eq!(
            brief(&format!("{rows}; prepare transaction 'x'")).refusal,
            Some(Refusal::TwoPhase)
        );
        assert!(brief(&rows).special.is_none());
    }

    #[test]
    fn what_must_be_looked_at_is() {
        assert!(brief("set search_path = a").settings);
        assert!(brief("select set_config('a.b', 'c', false)").placeholders == ["a.b"]);
        assert!(brief("select my_function()").taints);
        assert!(brief("create temp table t (a int)").probe);
        assert!(brief("select pg_advisory_lock(1)").probe);
        assert!(brief("select nextval('s')").nextval);
        assert!(!brief("select nextval('s')").jumps && !brief("insert into t values (1)").jumps);
        assert!(brief("select pg_catalog.SetVal('s', 1)").jumps && brief("select f()").jumps);
        assert!(brief("select lastval()").currval);
        assert!(brief("SET Client_Min_Messages = error").mutes);
        assert!(brief("begin read write").read_write);
        for (text, bad) in [
            ("set synapsedb.read_consistency = 'foo'", Some("foo")),
            ("SET synapsedb.read_consistency TO Session", None),
            ("set session synapsedb.read_consistency = 'eventual'", None),
            ("set synapsedb.read_consistency to default", None),
        ] {
            assert_eq!(brief(text).bad_consistency.as_deref(), bad, "{text}");
        }
        assert_eq!(
            brief("prepare transaction 'x'").refusal,
            Some(Refusal::TwoPhase)
        );
        assert_eq!(
            brief("explain analyze create table t as select 1").refusal,
            Some(Refusal::ExplainMakesTable)
        );
        assert_eq!(
            brief("select lo_create(0)").refusal,
            Some(Refusal::LargeObjects)
        );
        assert!(brief("discard all").deallocates_all);
        assert_eq!(brief("deallocate s1").deallocates.as_deref(), Some("s1"));
        assert!(brief("create role r").special.is_some());
        assert!(brief("create temp table t (a int)").writes && !brief("select f()").writes);
        for text in [
            "do $$ begin create role r; end $$",
            "do $$ begin execute 'grant a to b'; end $$",
        ] {
            assert_eq!(brief(text).refusal, Some(Refusal::SharedInside), "{text}");
        }
        for text in [
            "drop schema if exists SynapseDB cascade",
            "drop publication a, \"synapsedb\"",
            "alter event trigger \"!synapsedb_2_end\" disable",
            "revoke execute on function pg_logical_emit_message(bool, text, text) from public",
        ] {
            assert_eq!(brief(text).refusal, Some(Refusal::OwnObjects), "{text}");
        }
        for text in [
            "do $$ begin execute 'grant select on t to b'; end $$",
            "drop schema s",
            "alter schema s owner to synapsedb",
        ] {
            assert_eq!(brief(text).refusal, None, "{text}");
        }
    }
}
