//! What a database's names stand for, as far as it decides where a statement may run.
//!
//! Plain data, filled from the rows of [`LOAD_QUERY`] by a loader elsewhere. Everything is by bare
//! name and the worst of all that bear it, since a `search_path` may lead to any of them; a name that
//! is not in it is unknown and never harmless.

use std::collections::{BTreeMap, BTreeSet};

use super::builtins;
use super::names::Names;
use super::statement::Reason;
use crate::ids::{TableId, Tables};

/// One SELECT whose rows, in order, make a [`CatalogRow`] each. It must be run with an empty
/// `search_path` or with `pg_catalog` first, by a role that may read `pg_catalog`.
pub const LOAD_QUERY: &str = include_str!("catalog.sql");

/// One row of [`LOAD_QUERY`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)]
pub struct CatalogRow {
    /// `function`, `operator`, `type`, `foreign_type`, `relation`, `jumps` or `implicit`.
    pub kind: String,
    /// Of a relation.
    pub schema: Option<String>,
    /// The bare name.
    pub name: String,
    /// Running or writing it may run code that is not known, or touch the session.
    pub hides: bool,
    /// Reading it may.
    pub read_hides: bool,
    /// A query with it is not provably read-only.
    pub unreadable: bool,
    /// Writing it takes values of a sequence.
    pub draws: bool,
    /// The user's own.
    pub own: bool,
    /// Its values may be of a type whose OID differs from node to node.
    pub elsewhere: bool,
    /// Running or reading it may read any table.
    pub anything: bool,
    /// Of a relation: the tables without which it would be another, schema and name in turn.
    pub tables: Option<Vec<String>>,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)]
struct Known {
    hides: bool,
    read_hides: bool,
    unreadable: bool,
    draws: bool,
    own: bool,
    elsewhere: bool,
    anything: bool,
}

impl Known {
    fn or(&mut self, row: &CatalogRow) {
        self.hides |= row.hides;
        self.read_hides |= row.read_hides;
        self.unreadable |= row.unreadable;
        self.draws |= row.draws;
        self.own |= row.own;
        self.elsewhere |= row.elsewhere;
        self.anything |= row.anything;
    }
}

type ByName = BTreeMap<Box<str>, Known>;

/// A snapshot of one database's functions, operators, types and relations.
#[derive(Clone, Debug, Default)]
#[allow(clippy::struct_excessive_bools)]
pub struct Catalog {
    generation: u64,
    /// DDL has been seen that no snapshot shows yet.
    doubted: bool,
    /// `None` where nothing was loaded.
    functions: Option<ByName>,
    operators: ByName,
    types: BTreeSet<Box<str>>,
    relations: ByName,
    qualified: BTreeMap<(Box<str>, Box<str>), Known>,
    /// By bare name, of all that bear it.
    tables: BTreeMap<Box<str>, Tables>,
    /// Types whose OIDs differ from node to node.
    foreign_types: BTreeSet<Box<str>>,
    implicit: bool,
    /// Code that no text names may read any table.
    implicit_reads: bool,
    /// Code of users may move a sequence.
    jumps: bool,
}

/// Words that stand for OIDs or transaction numbers, which differ from node to node.
const NODE_TYPES: [&str; 15] = [
    "cid",
    "oid",
    "regclass",
    "regcollation",
    "regnamespace",
    "regoper",
    "regoperator",
    "regproc",
    "regprocedure",
    "regrole",
    "regtype",
    "tid",
    "txid_snapshot",
    "xid",
    "xid8",
];

impl Catalog {
    /// Knows nothing of the database: only the server's own functions are taken for what they are.
    pub fn unknown() -> Self {
        Self::default()
    }

    /// Of a database whose names may stand for something else by now than any snapshot says, the server's own
    /// functions among them: nothing is harmless.
    pub fn doubted(generation: u64) -> Self {
        Self {
            generation,
            doubted: true,
            ..Self::default()
        }
    }

    /// From the rows of [`LOAD_QUERY`]. `generation` must differ from that of any other snapshot of
    /// this process, of whatever database, and not be 0: facts remember by it what they found.
    pub fn from_rows(generation: u64, rows: impl IntoIterator<Item = CatalogRow>) -> Self {
        let mut catalog = Self {
            generation,
            functions: Some(ByName::new()),
            ..Self::default()
        };
        for row in rows {
            let name: Box<str> = row.name.as_str().into();
            match (row.kind.as_str(), &row.schema) {
                ("function", _) => {
                    let functions = catalog.functions.get_or_insert_default();
                    functions.entry(name).or_default().or(&row);
                }
                ("operator", _) => catalog.operators.entry(name).or_default().or(&row),
                ("type", _) => drop(catalog.types.insert(name)),
                ("foreign_type", _) => drop(catalog.foreign_types.insert(name)),
                ("relation", Some(schema)) => {
                    let key = (schema.as_str().into(), name.clone());
                    catalog.qualified.entry(key).or_default().or(&row);
                    catalog.relations.entry(name.clone()).or_default().or(&row);
                    let known = catalog.tables.remove(&name).unwrap_or_else(Tables::none);
                    catalog.tables.insert(name, known.and(tables_of(&row)));
                }
                ("jumps", _) => catalog.jumps |= row.hides,
                // `implicit`, and what a newer query might say, stands for all.
                _ => {
                    catalog.implicit |= row.hides || row.kind != "implicit";
                    catalog.implicit_reads |= row.anything;
                }
            }
        }
        catalog
    }

    /// Tells snapshots apart; 0 where nothing was loaded.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether nothing is to be taken for harmless.
    pub fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// Whether unknown code may move a sequence, as `setval` does.
    pub fn may_jump(&self) -> bool {
        self.jumps || self.is_blind()
    }

    /// Whether no snapshot has been loaded.
    pub fn is_blind(&self) -> bool {
        self.functions.is_none()
    }

    /// Whether calling `name` leaves the session as it was, but for what its name is known to do.
    pub fn call_is_tame(&self, name: &str) -> bool {
        match &self.functions {
            Some(functions) => functions.get(name).is_some_and(|known| !known.hides),
            None => builtins::is_harmless(name) || builtins::named_effects(name).is_some(),
        }
    }

    /// Whether there is a function of this name whose code is not known: for `value.name` and for
    /// words that are either a call or grammar.
    pub fn function_may_hide_code(&self, name: &str) -> bool {
        let functions = self.functions.as_ref();
        functions.is_some_and(|known| known.get(name).is_some_and(|known| known.hides))
    }

    /// Whether behind a relation or type of this name code may run that is not known, when it is
    /// only read, or written too.
    pub fn word_may_hide_code(&self, name: &str, written: bool) -> bool {
        let hides = |known: &Known| known.read_hides || written && known.hides;
        self.types.contains(name) || self.relations.get(name).is_some_and(hides)
    }

    /// Whether an operator of this name may run code that is not known.
    pub fn operator_may_hide_code(&self, name: &str) -> bool {
        self.operators.get(name).is_some_and(|known| known.hides)
    }

    /// Whether casts or comparisons that no text names may run code that is not known.
    pub fn implicit_code(&self) -> bool {
        self.implicit
    }

    /// Whether writing a relation of this name takes values of a sequence.
    pub fn draws_sequence(&self, name: &str) -> bool {
        self.relations.get(name).is_some_and(|known| known.draws)
    }

    /// Whether the user has a relation of this name.
    pub fn has_user_relation(&self, name: &str) -> bool {
        self.relations.get(name).is_some_and(|known| known.own)
    }

    /// Whether the user has a function of this name.
    pub fn has_user_function(&self, name: &str) -> bool {
        let functions = self.functions.as_ref();
        functions.is_some_and(|known| known.get(name).is_some_and(|known| known.own))
    }

    /// Whether a query with these names is read-only, given that its text is.
    pub fn read_only(&self, names: &Names) -> Result<(), Reason> {
        let Some(functions) = &self.functions else {
            return Err(Reason::NotUnderstood("no catalog is loaded".to_owned()));
        };
        let bad = |map: &ByName, name: &str| map.get(name).is_none_or(|known| known.unreadable);
        if self.implicit {
            return Err(Reason::ImplicitCode);
        }
        if let Some(name) = names.calls.iter().find(|name| bad(functions, name)) {
            return Err(Reason::Function(name.clone()));
        }
        let hidden_call = |name: &&String| {
            functions
                .get(name.as_str())
                .is_some_and(|known| known.own && known.unreadable)
        };
        if let Some(name) = names
            .fields
            .iter()
            .chain(&names.maybe_calls)
            .find(hidden_call)
        {
            return Err(Reason::Function(name.clone()));
        }
        let not_syntax =
            |name: &&String| !matches!(name.as_str(), "::" | ":=" | "=>" | ".." | "!=");
        let mut operators = names.operators.iter().filter(not_syntax);
        if let Some(name) = operators.find(|name| bad(&self.operators, name)) {
            return Err(Reason::Operator(name.clone()));
        }
        let node_bound = |name: &String| NODE_TYPES.binary_search(&name.as_str()).is_ok();
        if names.words.iter().any(node_bound) {
            return Err(Reason::SystemCatalog);
        }
        if let Some(name) = names
            .words
            .iter()
            .find(|name| self.types.contains(name.as_str()))
        {
            return Err(Reason::Type(name.clone()));
        }
        self.relations_read_only(names)
    }

    /// The tables that a proven query with these names reads. `None` where a value of it may be of a type whose
    /// OID differs from node to node.
    pub fn reads(&self, names: &Names) -> Option<Tables> {
        let foreign = |name: &String| self.foreign_types.contains(name.as_str());
        if names.words.iter().any(foreign) {
            return None;
        }
        let functions = self.functions.as_ref()?;
        let calls = names.calls.iter().chain(&names.maybe_calls);
        let calls = calls.chain(&names.fields);
        let calls = calls.filter_map(|name| functions.get(name.as_str()));
        let operators = names.operators.iter();
        let operators = operators.filter_map(|name| self.operators.get(name.as_str()));
        let mut anything = self.implicit_reads;
        for known in calls.chain(operators) {
            if known.elsewhere {
                return None;
            }
            anything |= known.anything;
        }
        let mut tables = Tables::none();
        for relation in names.relations.as_ref()? {
            let name = relation.name.as_str();
            let Some(known) = self.relations.get(name) else {
                // A WITH query: what it reads is named as well.
                continue;
            };
            if known.elsewhere {
                return None;
            }
            anything |= known.anything;
            let reached = self.tables.get(name).cloned().unwrap_or(Tables::All);
            tables = tables.and(reached);
        }
        Some(if anything { Tables::All } else { tables })
    }

    fn relations_read_only(&self, names: &Names) -> Result<(), Reason> {
        let Some(relations) = &names.relations else {
            return Err(Reason::NotUnderstood("relations".to_owned()));
        };
        for relation in relations {
            let name = &relation.name;
            let known = match &relation.schema {
                Some(schema) => {
                    let key: (Box<str>, Box<str>) = (schema.as_str().into(), name.as_str().into());
                    self.qualified.get(&key)
                }
                None => self.relations.get(name.as_str()),
            };
            let system = relation.schema.as_deref().is_some_and(is_system)
                || relation.schema.is_none() && name.starts_with("pg_");
            match known {
                Some(known) if !known.unreadable => {}
                Some(known) if !known.own || system => return Err(Reason::SystemCatalog),
                None if relation.schema.is_none() && names.with_queries.contains(name) => {}
                _ => return Err(Reason::Relation(name.clone())),
            }
        }
        Ok(())
    }
}

fn tables_of(row: &CatalogRow) -> Tables {
    let Some(names) = row.tables.as_ref() else {
        return Tables::All;
    };
    let pairs = names.chunks_exact(2);
    Tables::these(pairs.map(|pair| TableId::of(&pair[0], &pair[1])))
}

fn is_system(schema: &str) -> bool {
    matches!(schema, "pg_catalog" | "information_schema")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_knows_every_function_that_is_known_by_name() {
        let foreign = ["crosstab", "xpath_table"];
        for name in builtins::PINS.iter().chain(builtins::RUNS_OTHERS) {
            let known = LOAD_QUERY.contains(&format!("('{name}')"));
            assert!(known || foreign.contains(name), "{name}");
        }
    }

    fn relation(name: &str, tables: &[&str]) -> CatalogRow {
        let tables = tables.iter().flat_map(|name| ["public", *name]);
        CatalogRow {
            kind: "relation".to_owned(),
            schema: Some("public".to_owned()),
            name: name.to_owned(),
            own: true,
            tables: Some(tables.map(str::to_owned).collect()),
            ..CatalogRow::default()
        }
    }

    fn function(name: &str) -> CatalogRow {
        CatalogRow {
            kind: "function".to_owned(),
            name: name.to_owned(),
            ..CatalogRow::default()
        }
    }

    #[test]
    fn a_query_reads_what_is_behind_its_names() {
        let rows = [
            relation("t", &["t"]),
            relation("v", &["v", "t", "u"]),
            CatalogRow {
                anything: true,
                ..function("f")
            },
            function("count"),
            CatalogRow {
                elsewhere: true,
                ..relation("moods", &["moods"])
            },
            CatalogRow {
                kind: "foreign_type".to_owned(),
                ..function("mood")
            },
        ];
        let catalog = Catalog::from_rows(1, rows);
        let reads = |sql: &str| {
            let facts = crate::sql::statement::Facts::of(sql, true);
            facts.reads(&catalog)
        };
        let these = |names: &[&str]| {
            Some(Tables::these(
                names.iter().map(|name| TableId::of("public", name)),
            ))
        };
        assert_eq!(reads("select count(a) from t"), these(&["t"]));
        assert_eq!(reads("select 1; table v"), these(&["t", "u", "v"]));
        assert_eq!(
            reads("with t2 as (select a from t) select a from t2"),
            these(&["t"])
        );
        assert_eq!(reads("select f() from t"), Some(Tables::All));
        assert_eq!(reads("select a from moods"), None);
        assert_eq!(reads("select 'a'::mood"), None);
        assert_eq!(reads("select 1 from t for update"), None);
        assert_eq!(reads("delete from t"), None);
    }

    #[test]
    fn a_row_of_an_unknown_kind_stands_for_all() {
        let row = CatalogRow {
            kind: "novelty".to_owned(),
            ..CatalogRow::default()
        };
        assert!(Catalog::from_rows(1, [row]).implicit_code());
    }
}
