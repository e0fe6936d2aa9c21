//! What the relay must know of a text before it sends it on: the kind of each statement and what it
//! may leave behind in the connection.
//!
//! Facts come from the text alone (and `standard_conforming_strings`), so they can be cached by text;
//! what depends on the database's functions and relations is asked of a [`Catalog`] with them. It
//! must never call harmless what may write, set, notify or lock: whatever is not known fails closed,
//! as [`Kind::Unknown`], which runs on the writer and is followed by a probe.

use std::sync::Arc;

use super::catalog::Catalog;
use super::classify;
use super::lexer::{self, Fault};
use super::names::Names;
use super::split;
use crate::ids::Tables;

/// `ISOLATION LEVEL ...`, as named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Runs as READ COMMITTED.
    ReadUncommitted,
    /// The server's default.
    ReadCommitted,
    /// One snapshot for the transaction.
    RepeatableRead,
    /// As if one after the other.
    Serializable,
}

/// The modes a BEGIN or SET TRANSACTION names; `None` where it is silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    /// `ISOLATION LEVEL ...`.
    pub isolation: Option<Isolation>,
    /// `READ ONLY` is true, `READ WRITE` is false.
    pub read_only: Option<bool>,
    /// `DEFERRABLE` is true, `NOT DEFERRABLE` is false.
    pub deferrable: Option<bool>,
}

/// How long a SET lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Until the session ends, if the transaction commits.
    Session,
    /// `SET LOCAL`: until the transaction ends.
    Local,
}

/// What a SET gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// The SQL behind `TO`, as written.
    Written(String),
    /// `TO DEFAULT`.
    Default,
    /// `FROM CURRENT`: changes nothing but how long the value lasts.
    Current,
}

/// What DISCARD throws away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// Everything, as if newly connected.
    All,
    /// Cached plans.
    Plans,
    /// What `currval` and `lastval` know.
    Sequences,
    /// Temporary tables.
    Temporary,
}

/// Work on storage that changes no rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upkeep {
    /// VACUUM.
    Vacuum,
    /// ANALYZE.
    Analyze,
    /// REINDEX.
    Reindex,
    /// CLUSTER.
    Cluster,
    /// CHECKPOINT.
    Checkpoint,
}

/// What a statement is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// BEGIN, START TRANSACTION.
    Begin(Modes),
    /// COMMIT, END.
    Commit {
        /// AND CHAIN: the next transaction begins at once.
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    Rollback {
        /// AND CHAIN: the next transaction begins at once.
        chain: bool,
    },
    /// SAVEPOINT name.
    Savepoint(String),
    /// ROLLBACK TO name.
    RollbackTo(String),
    /// RELEASE name.
    Release(String),
    /// PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED: refused (0A000).
    TwoPhase,
    /// SET TRANSACTION, SET SESSION CHARACTERISTICS, also with a snapshot.
    SetTransaction {
        /// For this transaction only, or for those that follow.
        scope: Scope,
        /// What it names.
        modes: Modes,
    },
    /// SET CONSTRAINTS: lasts for the transaction.
    SetConstraints,
    /// SET of one setting, TIME ZONE, NAMES, SCHEMA and XML OPTION among them.
    Set {
        /// How long it lasts.
        scope: Scope,
        /// The setting, in lower case.
        name: String,
        /// What it is set to.
        value: Value,
    },
    /// SET ROLE, RESET ROLE: `None` is NONE.
    SetRole {
        /// How long it lasts.
        scope: Scope,
        /// The role, where it is known from the text.
        role: Option<String>,
    },
    /// SET or RESET SESSION AUTHORIZATION: `None` is DEFAULT.
    SetSessionAuthorization {
        /// How long it lasts.
        scope: Scope,
        /// The role, where it is known from the text.
        role: Option<String>,
    },
    /// RESET of one setting, in lower case.
    Reset(String),
    /// RESET ALL.
    ResetAll,
    /// SHOW of one setting, in lower case, or `all`.
    Show(String),
    /// DISCARD.
    Discard(Discard),
    /// PREPARE name AS ...
    Prepare(String),
    /// EXECUTE name.
    Execute(String),
    /// DEALLOCATE name.
    Deallocate(String),
    /// DEALLOCATE ALL.
    DeallocateAll,
    /// DECLARE name CURSOR.
    DeclareCursor {
        /// The cursor.
        name: String,
        /// WITH HOLD: outlives its transaction.
        hold: bool,
    },
    /// FETCH, MOVE.
    Fetch,
    /// CLOSE; `None` is ALL.
    CloseCursor(Option<String>),
    /// LISTEN channel.
    Listen(String),
    /// UNLISTEN channel; `None` is `*`.
    Unlisten(Option<String>),
    /// NOTIFY channel.
    Notify(String),
    /// COPY ... FROM STDIN.
    CopyIn,
    /// COPY ... TO STDOUT.
    CopyOut,
    /// COPY from or to a file or program of the server.
    CopyServer,
    /// LOCK TABLE.
    Lock,
    /// VACUUM and its like.
    Upkeep(Upkeep),
    /// DDL on what the whole server shares, which no event trigger sees (rule 22).
    GlobalDdl,
    /// ALTER SYSTEM: one node's own affair.
    AlterSystem,
    /// DDL that event triggers see, with its command tag.
    Ddl(String),
    /// CREATE SUBSCRIPTION: refused.
    CreateSubscription,
    /// DO.
    Do,
    /// CALL.
    Call,
    /// EXPLAIN; with `analyze` it runs what it explains.
    Explain {
        /// Runs it.
        analyze: bool,
    },
    /// EXPLAIN ANALYZE of CREATE TABLE AS and its like: makes the table, and no event trigger sees it
    /// (tried on 16). Refused (0A000).
    ExplainMakesTable,
    /// SELECT, VALUES, TABLE, WITH: only [`StatementFacts::verdict`] says whether it is read-only.
    Query,
    /// Changes rows, or may: INSERT, UPDATE, DELETE, MERGE, TRUNCATE, and a WITH that holds one.
    Write,
    /// LOAD of a library.
    Load,
    /// Anything else.
    Unknown,
}

/// What running a statement may leave in the connection or needs from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)]
pub struct Effects {
    /// A setting, role or the like may differ afterwards.
    pub may_change_settings: bool,
    /// A temporary object, held cursor, advisory lock, LISTEN, prepared statement or sequence value
    /// may be there afterwards.
    pub may_pin: bool,
    /// Asks for what `nextval` left in this very connection (`currval`, `lastval`).
    pub uses_sequence_state: bool,
    /// Runs code that is not known.
    pub touches_unknown_code: bool,
    /// Takes values of a sequence, by `nextval` or a column's default, so that `currval` and `lastval`
    /// may be asked for later. No reason for a probe.
    pub draws_sequence: bool,
}

impl Effects {
    /// Everything may have happened.
    pub const ALL: Self = Self {
        may_change_settings: true,
        may_pin: true,
        uses_sequence_state: true,
        touches_unknown_code: true,
        draws_sequence: true,
    };

    /// Either's effects.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            may_change_settings: self.may_change_settings || other.may_change_settings,
            may_pin: self.may_pin || other.may_pin,
            uses_sequence_state: self.uses_sequence_state || other.uses_sequence_state,
            touches_unknown_code: self.touches_unknown_code || other.touches_unknown_code,
            draws_sequence: self.draws_sequence || other.draws_sequence,
        }
    }

    /// Whether the connection must be looked at before another session may have it.
    pub fn needs_probe(self) -> bool {
        self.may_change_settings || self.may_pin || self.touches_unknown_code
    }
}

/// Why a statement goes to the writer. The golden tests name them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Not a query at all.
    #[error("not a query")]
    NotAQuery,
    /// The text cannot be cut, or is not parsed whole.
    #[error("not understood: {0}")]
    NotUnderstood(String),
    /// Longer than what is looked at.
    #[error("too long to look at")]
    TooLong,
    /// Rows are changed in it, or may be.
    #[error("writes")]
    Writes,
    /// SELECT INTO.
    #[error("makes a table")]
    MakesTable,
    /// FOR UPDATE and the like.
    #[error("locks rows")]
    Locks,
    /// A function that is volatile, unknown or bound to its session.
    #[error("function {0}")]
    Function(String),
    /// An operator that is unknown or may run volatile code.
    #[error("operator {0}")]
    Operator(String),
    /// A type that is unknown or whose checks or casts may run volatile code.
    #[error("type {0}")]
    Type(String),
    /// A relation that is unknown or behind which volatile code may hide.
    #[error("relation {0}")]
    Relation(String),
    /// A system catalog: OIDs and statistics are the writer's.
    #[error("reads the system catalog")]
    SystemCatalog,
    /// Implicit casts or comparisons of the database may run volatile code.
    #[error("implicit code")]
    ImplicitCode,
}

/// Where a statement may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Provably read-only: any node.
    Read,
    /// The writer, because.
    Writer(Reason),
}

/// The facts of one statement.
#[derive(Clone, Debug)]
pub struct StatementFacts {
    /// What it is.
    pub kind: Kind,
    /// Its bytes in the text.
    pub bytes: std::ops::Range<usize>,
    /// What its keywords and the functions known by name do. What hides behind other names is asked
    /// by [`StatementFacts::effects`].
    pub named_effects: Effects,
    /// Whether it may stand in a transaction block.
    pub transactional: bool,
    /// The names it mentions.
    pub names: Names,
    /// What the text proves: `Ok` where it is read-only as far as its names are harmless.
    pub query: Result<(), Reason>,
}

impl StatementFacts {
    /// What running it may do, given what the database's names stand for.
    pub fn effects(&self, catalog: &Catalog) -> Effects {
        let (reads, runs) = match &self.kind {
            Kind::Explain { analyze: false } | Kind::Prepare(_) | Kind::Show(_) => (true, false),
            Kind::Explain { analyze: true } => (self.query.is_ok(), true),
            Kind::Query | Kind::DeclareCursor { .. } => (true, true),
            _ => (false, true),
        };
        if !runs {
            return self.named_effects;
        }
        let inserts = matches!(self.kind, Kind::Write | Kind::CopyIn | Kind::Explain { .. });
        let draws = Effects {
            draws_sequence: inserts && !reads && self.names.draws_sequence(catalog),
            ..Effects::default()
        };
        let hidden = if self.names.effects_unknown(catalog, !reads) {
            Effects {
                uses_sequence_state: false,
                ..Effects::ALL
            }
        } else {
            Effects::default()
        };
        self.named_effects.or(draws).or(hidden)
    }

    /// Where it may run.
    pub fn verdict(&self, catalog: &Catalog) -> Verdict {
        let proven = self
            .query
            .clone()
            .and_then(|()| self.names.read_only(catalog));
        proven.map_or_else(Verdict::Writer, |()| Verdict::Read)
    }
}

/// The facts of one text.
#[derive(Clone, Debug)]
pub struct Facts {
    /// In order; none where the text holds only blanks and comments.
    pub statements: Vec<StatementFacts>,
    /// Why the text cannot be cut, if so: the server will refuse all of it.
    pub fault: Option<Fault>,
}

/// Longer texts are not looked at.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

impl Facts {
    /// Looks at `text`; `scs` is the session's `standard_conforming_strings`.
    pub fn of(text: &str, scs: bool) -> Self {
        if text.len() > TEXT_BYTES_MAX {
            return Self::unknown(Reason::TooLong);
        }
        let lexed = lexer::lex(text, scs);
        if let Some((fault, _)) = lexed.fault {
            let mut facts = Self::unknown(Reason::NotUnderstood(fault.to_string()));
            facts.fault = Some(fault);
            return facts;
        }
        let statements = split::split(text, &lexed.tokens)
            .into_iter()
            .map(|piece| classify::statement(text, &lexed.tokens, &piece))
            .collect();
        Self {
            statements,
            fault: None,
        }
    }

    /// The facts of a text nothing is known of (not UTF-8, too long): one statement of kind Unknown.
    pub fn unknown(reason: Reason) -> Self {
        Self {
            statements: vec![StatementFacts {
                kind: Kind::Unknown,
                bytes: 0..0,
                named_effects: Effects::ALL,
                transactional: true,
                names: Names::default(),
                query: Err(reason),
            }],
            fault: None,
        }
    }

    /// The worst of all statements.
    pub fn effects(&self, catalog: &Catalog) -> Effects {
        self.statements
            .iter()
            .fold(Effects::default(), |all, one| all.or(one.effects(catalog)))
    }

    /// Whether the connection must be looked at afterwards.
    pub fn needs_probe(&self, catalog: &Catalog) -> bool {
        self.effects(catalog).needs_probe()
    }

    /// Where the text may run: a read only if every statement is. A text without statements is none.
    pub fn verdict(&self, catalog: &Catalog) -> Verdict {
        if self.statements.is_empty() {
            return Verdict::Writer(Reason::NotAQuery);
        }
        self.statements
            .iter()
            .map(|one| one.verdict(catalog))
            .find(|verdict| *verdict != Verdict::Read)
            .unwrap_or(Verdict::Read)
    }

    /// The tables that the text reads, where all of it is provably read-only and says the same on every node.
    pub fn reads(&self, catalog: &Catalog) -> Option<Tables> {
        if self.verdict(catalog) != Verdict::Read {
            return None;
        }
        let mut tables = Tables::none();
        for one in &self.statements {
            tables = tables.and(catalog.reads(&one.names)?);
        }
        Some(tables)
    }

    /// Whether a statement names a relation or function of the proxy's metadata.
    pub fn mentions_metadata(&self) -> bool {
        self.statements
            .iter()
            .any(|one| one.names.mentions_metadata())
    }

    /// The only statement, where there is exactly one.
    pub fn single(&self) -> Option<&StatementFacts> {
        match self.statements.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }
}

/// Facts by text, bounded in number and bytes. Texts that are too long, and those of sessions with
/// `standard_conforming_strings` off, are not kept.
#[derive(Debug)]
pub struct FactsCache {
    cache: quick_cache::sync::Cache<Arc<str>, Arc<Facts>, Weight>,
    too_long: Arc<Facts>,
}

/// A text weighs its bytes and its facts', and at least its share of the whole, which bounds the number.
#[derive(Clone, Debug)]
struct Weight {
    least: u64,
}

impl quick_cache::Weighter<Arc<str>, Arc<Facts>> for Weight {
    fn weight(&self, text: &Arc<str>, facts: &Arc<Facts>) -> u64 {
        let names: usize = facts.statements.iter().map(|one| one.names.bytes()).sum();
        let bytes = text.len() + names + 256 + 400 * facts.statements.len();
        (bytes as u64).max(self.least)
    }
}

impl FactsCache {
    /// Holds at most `texts` texts, and at most `bytes` bytes of them and their facts.
    pub fn new(texts: usize, bytes: u64) -> Self {
        let texts = texts.max(1);
        let least = bytes / texts as u64;
        Self {
            cache: quick_cache::sync::Cache::with_weighter(texts, bytes, Weight { least }),
            too_long: Arc::new(Facts::unknown(Reason::TooLong)),
        }
    }

    /// The facts of `text`, looked at now if they are not there.
    pub fn facts(&self, text: &str, scs: bool) -> Arc<Facts> {
        if text.len() > TEXT_BYTES_MAX {
            return Arc::clone(&self.too_long);
        }
        if !scs {
            return Arc::new(Facts::of(text, scs));
        }
        if let Some(facts) = self.cache.get(text) {
            return facts;
        }
        let facts = Arc::new(Facts::of(text, scs));
        self.cache.insert(Arc::from(text), Arc::clone(&facts));
        facts
    }
}
