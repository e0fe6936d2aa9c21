//! Names of things: nodes, epochs, places in a WAL, and the names the proxy gives its objects on a node.
//!
//! Promises that two databases never share a slot or origin name, and that a name is always one
//! `PostgreSQL` accepts (slot names: `[a-z0-9_]`, under 64 bytes). Knows nothing of servers.

use std::fmt;
use std::str::FromStr;

/// A place in a server's write-ahead log, in bytes from its beginning (`PostgreSQL` manual, `pg_lsn`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// Text that is not a `pg_lsn`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a WAL position: {0:?}")]
pub struct BadLsn(pub String);

impl FromStr for Lsn {
    type Err = BadLsn;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            let high = u32::from_str_radix(high, 16).ok()?;
            let low = u32::from_str_radix(low, 16).ok()?;
            Some(Self(u64::from(high) << 32 | u64::from(low)))
        };
        parse().ok_or_else(|| BadLsn(text.to_owned()))
    }
}

/// A transaction's number on one node, as it stands in the stream: without the epoch of its counter,
/// so it comes again after four thousand million others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xid(pub u32);

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Grows at each change of writer and at each start or takeover of a proxy. The one with which the present writer
/// took office is its *term*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A node's place in the configured list, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub usize);

/// A unit's name: its writer's term, and the end of its commit record in that writer's WAL.
///
/// A *term* is the epoch with which a writer took office. A later term goes on where the one before it
/// ended, so names are in the order of the one history, and a place in the history is a name too: the
/// last unit that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId {
    /// The writer's term.
    pub term: Epoch,
    /// End of the commit record in the writer's WAL.
    pub lsn: Lsn,
}

impl UnitId {
    /// Before every unit.
    pub const NOTHING: Self = Self {
        term: Epoch(0),
        lsn: Lsn(0),
    };

    /// What the name alone says of the place in the log of the writer of `term`, up to which whoever has this unit has
    /// everything: the end of one of its own units, and nothing where the unit is an older writer's.
    pub fn in_log_of(self, term: Epoch) -> Lsn {
        if self.term == term { self.lsn } else { Lsn(0) }
    }
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.term, self.lsn)
    }
}

/// Text that is not a unit's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a unit: {0:?}")]
pub struct BadUnitId(pub String);

impl FromStr for UnitId {
    type Err = BadUnitId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (term, lsn) = text.split_once('/')?;
            let digits = !term.is_empty() && term.bytes().all(|byte| byte.is_ascii_digit());
            let term = digits.then(|| term.parse().ok())??;
            Some(Self {
                term: Epoch(term),
                lsn: lsn.parse().ok()?,
            })
        };
        parse().ok_or_else(|| BadUnitId(text.to_owned()))
    }
}

/// A table by its schema and name, which are the same on all nodes. Two tables with one number are taken for one,
/// which makes a read wait for nothing, and never lets it miss a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(u64);

impl TableId {
    /// Of the table called so.
    pub fn of(schema: &str, name: &str) -> Self {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let schema = fnv1a(schema.as_bytes());
        Self(name.bytes().fold(step(schema, 0), step))
    }
}

/// Tables that a statement reads, or that a unit changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tables {
    /// It may be any.
    All,
    /// These, in order and without doubles.
    Some(Box<[TableId]>),
}

impl Tables {
    /// These.
    pub fn these(tables: impl IntoIterator<Item = TableId>) -> Self {
        let mut tables: Vec<TableId> = tables.into_iter().collect();
        tables.sort_unstable();
        tables.dedup();
        Self::Some(tables.into())
    }

    /// None.
    pub fn none() -> Self {
        Self::Some(Box::default())
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Some(mine), Self::Some(others)) => {
                Self::these(mine.iter().chain(others.iter()).copied())
            }
            _ => Self::All,
        }
    }

    /// Whether one of these may be one of those.
    pub fn meet(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Some(mine), Self::Some(others)) => {
                let (few, many) = if mine.len() < others.len() {
                    (mine, others)
                } else {
                    (others, mine)
                };
                few.iter().any(|table| many.binary_search(table).is_ok())
            }
            (Self::All, Self::Some(tables)) | (Self::Some(tables), Self::All) => !tables.is_empty(),
            (Self::All, Self::All) => true,
        }
    }
}

/// The prefix of every object the proxy makes on a node, and the standby name it announces.
pub const SYNAPSEDB: &str = "synapsedb";

/// The name of the logical slot that carries `database`'s transactions.
pub fn slot_name(database: &str) -> String {
    format!("{SYNAPSEDB}_{}", tame(database))
}

/// The replication origin under which a follower keeps its place in `database` for one writer's term.
pub fn origin_name(term: Epoch, database: &str) -> String {
    format!("{SYNAPSEDB}_{term}_{}", tame(database))
}

/// The term in the name of an origin that [`origin_name`] made; none in another one's.
pub fn term_of_origin(name: &str) -> Option<Epoch> {
    let rest = name.strip_prefix(SYNAPSEDB)?.strip_prefix('_')?;
    let (term, _database) = rest.split_once('_')?;
    let digits = !term.is_empty() && term.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| term.parse().ok().map(Epoch))?
}

/// Makes a name of `[a-z0-9_]`, at most 40 bytes, different for different databases:
/// a name that had to be changed carries a hash of the original.
fn tame(database: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if database.len() <= 40 && database.chars().all(plain) && !database.contains("__") {
        return database.to_owned();
    }
    let kept: String = database
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .take(20)
        .collect();
    format!("{kept}__{:016x}", fnv1a(database.as_bytes()))
}

/// FNV-1a, 64 bits: stable over versions and platforms, which `std`'s hashers do not promise.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_reads_what_it_writes() {
        for value in [0, 1, 0xFFFF_FFFF, 0x1_0000_0000, u64::MAX] {
            assert_eq!(Lsn(value).to_string().parse(), Ok(Lsn(value)));
        }
        assert!("16".parse::<Lsn>().is_err());
        assert!("0/1G".parse::<Lsn>().is_err());
    }

    #[test]
    fn tables_meet_where_one_is_in_both() {
        let table = |name: &str| TableId::of("public", name);
        let (a, b) = (Tables::these([table("a")]), Tables::these([table("b")]));
        let both = a.clone().and(b.clone());
        assert!(!a.meet(&b) && a.meet(&both) && both.meet(&b));
        assert!(a.meet(&Tables::All) && Tables::All.meet(&Tables::All));
        assert!(!Tables::none().meet(&Tables::All) && !Tables::none().meet(&both));
        assert_eq!(a.and(Tables::All), Tables::All);
        assert_ne!(TableId::of("a", "bc"), TableId::of("ab", "c"));
    }

    #[test]
    fn units_are_in_the_order_of_the_history_and_read_what_they_write() {
        let unit = |term, lsn| UnitId {
            term: Epoch(term),
            lsn: Lsn(lsn),
        };
        let order = [UnitId::NOTHING, unit(1, 7), unit(1, u64::MAX), unit(2, 1)];
        assert!(order.is_sorted());
        for name in order {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        for bad in ["", "1", "1/2", "+1/0/2", "/0/2", "1/0/2/3"] {
            assert_eq!(bad.parse::<UnitId>(), Err(BadUnitId(bad.to_owned())));
        }
    }

    #[test]
    fn the_term_is_read_from_an_origins_name() {
        for (term, database) in [(1, "app"), (27, "My App"), (u64::MAX, "5_a")] {
            let name = origin_name(Epoch(term), database);
            assert_eq!(term_of_origin(&name), Some(Epoch(term)));
        }
        for other in [
            "pg_16389",
            "synapsedb",
            "synapsedb_",
            "synapsedb_a_1",
            "synapsedb_+1_a",
            "synapsedb_1",
        ] {
            assert_eq!(term_of_origin(other), None);
        }
    }

    #[test]
    fn slot_names_are_tame_and_differ() {
        let names = ["app", "App", "a-b", "a_b", "a__b", "ünï", &"x".repeat(63)];
        let slots: std::collections::BTreeSet<_> = names.iter().map(|n| slot_name(n)).collect();
        assert_eq!(slots.len(), names.len());
        for slot in slots {
            assert!(slot.len() < 64);
            assert!(
                slot.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            );
        }
    }
}
