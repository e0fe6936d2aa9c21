//! One committed transaction of the writer, as the stream hands it to the appliers.
//!
//! A unit is immutable and shared by all followers' queues. Small ones hold their changes in
//! memory as slices of the bytes that came from the writer; ones too large for that (streamed by
//! the writer while still running) lie in a file that is gone when the last applier lets go of it.

use std::sync::Arc;

use super::spill::Spill;
use super::token::Token;
use crate::ids::{Lsn, SYNAPSEDB, UnitId};
use crate::wire::pgoutput::tuple::Tuple;
use crate::wire::pgoutput::{self, Old, Relation};

/// A row change or a marker, in the order in which the writer made it.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new row.
    Insert {
        /// Where.
        table: Arc<Relation>,
        /// The row.
        new: Tuple,
    },
    /// A changed row.
    Update {
        /// Where.
        table: Arc<Relation>,
        /// The old key (`K`) or the whole old row (`O`), where the writer logged one.
        old: Option<Tuple>,
        /// The new row; columns left out are unchanged TOAST values.
        new: Tuple,
    },
    /// A row that is gone.
    Delete {
        /// Where.
        table: Arc<Relation>,
        /// Its key or the whole row.
        old: Tuple,
    },
    /// Tables emptied together.
    Truncate {
        /// All of them, the ones reached by CASCADE included.
        tables: Vec<Arc<Relation>>,
    },
}

impl Change {
    /// A change of one row of `table`, from its message; none for messages about anything else.
    pub fn of_row(message: pgoutput::Change, table: Arc<Relation>) -> Option<Self> {
        let kept = |old: Old| match old {
            Old::Absent => None,
            Old::Key(row) | Old::Row(row) => Some(row),
        };
        match message {
            pgoutput::Change::Insert { new, .. } => Some(Self::Insert { table, new }),
            pgoutput::Change::Update { old, new, .. } => Some(Self::Update {
                table,
                old: kept(old),
                new,
            }),
            pgoutput::Change::Delete { old, .. } => Some(Self::Delete {
                table,
                old: kept(old)?,
            }),
            _ => None,
        }
    }

    /// The tables it is about.
    pub fn tables(&self) -> &[Arc<Relation>] {
        match self {
            Self::Insert { table, .. }
            | Self::Update { table, .. }
            | Self::Delete { table, .. } => std::slice::from_ref(table),
            Self::Truncate { tables } => tables,
        }
    }

    /// Whether it is a DDL command: a new row of `ddl_log`.
    pub fn is_ddl(&self) -> bool {
        matches!(self, Self::Insert { table, .. } if is_ddl_log(table))
    }

    /// Whether it carries rows of a materialized view: a new row of `view_rows`.
    pub fn is_contents(&self) -> bool {
        let carrier = |table: &Relation| table.namespace == SYNAPSEDB && table.name == "view_rows";
        matches!(self, Self::Insert { table, .. } if carrier(table))
    }
}

/// The table whose rows are DDL commands.
pub fn is_ddl_log(table: &Relation) -> bool {
    table.namespace == SYNAPSEDB && table.name == "ddl_log"
}

/// One committed transaction of a writer.
#[derive(Debug)]
pub struct Unit {
    /// (term, end of the commit record), both of the writer that made it.
    pub id: UnitId,
    /// Begin of the commit record in the log that it was read from.
    pub commit: Lsn,
    /// End of that record. A node that was a follower then has several units in one transaction.
    pub end: Lsn,
    /// No other unit of that transaction comes after it: who has it, has everything up to `end`.
    pub closes: bool,
    /// The transaction's number in that log.
    pub xid: u32,
    /// Microseconds since 2000-01-01 UTC.
    pub committed_at: i64,
    /// What a session said ahead of its COMMIT.
    pub token: Option<Token>,
    /// Whether a row of `ddl_log` is among the changes: such a unit is applied alone.
    pub has_ddl: bool,
    /// About how much memory it holds, in bytes.
    pub bytes: usize,
    /// What it did.
    pub changes: Changes,
}

/// Where the changes lie.
#[derive(Debug)]
pub enum Changes {
    /// In memory.
    Memory(Vec<Change>),
    /// In a file without a name.
    Spilled(Spill),
}
