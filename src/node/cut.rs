//! Where a transaction that an applier made is cut into the units that it repeated.
//!
//! Guards promise 2 when a follower has become the writer, or another one is levelled from its log: each unit is found
//! there under the name that its own writer gave it. An applier sets a mark behind each unit's rows (REPLICATION
//! rule 8). That a transaction is an applier's shows by its row in `applied_places`, which no user may write; a
//! streamed transaction does not name its origin. Nothing of a user's runs behind the last mark, so that one can
//! be believed, and any other one only where it carries the same number, drawn for this transaction: code that
//! a row set off may have sent messages too. It reads no bytes of the stream, and doesn't know where changes lie.

use std::fmt;
use std::ops::Range;

use crate::ids::{Epoch, SYNAPSEDB, UnitId, term_of_origin};
use crate::node::apply::views;
use crate::node::token::Token;
use crate::node::unit::Change;
use crate::wire::pgoutput::tuple::{Tuple, Value};
use crate::wire::pgoutput::{Emitted, Relation};

/// The prefix of the marks.
const PREFIX: &[u8] = b"synapsedb unit";

/// An applier's transaction that can't be cut.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an applier's transaction up to {place} can't be cut into units: {problem}")]
pub struct CutError {
    place: UnitId,
    problem: &'static str,
}

/// What an applier says behind each unit's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The unit's name.
    pub unit: UnitId,
    /// The same in all marks of a transaction, and known to nobody before.
    pub number: u64,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:016x}", self.unit, self.number)
    }
}

impl Mark {
    fn read(emitted: &Emitted) -> Option<Self> {
        if !emitted.transactional || emitted.prefix != PREFIX {
            return None;
        }
        let text = std::str::from_utf8(&emitted.content).ok()?;
        let (unit, number) = text.split_once(' ')?;
        Some(Self {
            unit: unit.parse().ok()?,
            number: u64::from_str_radix(number, 16).ok()?,
        })
    }
}

/// How far a transaction has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// Where the next change will lie.
    pub at: u64,
    /// Memory that the changes so far take.
    pub bytes: usize,
    /// How many of them are DDL.
    pub ddl: usize,
}

/// One unit of an applier's transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its name.
    pub unit: UnitId,
    /// Where its changes lie.
    pub range: Range<u64>,
    /// Memory that they take.
    pub bytes: usize,
    /// Whether DDL is among them.
    pub has_ddl: bool,
}

/// What there is of the proxy in a transaction.
#[derive(Debug, Default)]
pub struct Trace {
    marks: Vec<(Mark, Here)>,
    place: Option<UnitId>,
    token: Option<Token>,
}

impl Trace {
    /// A message stands here.
    pub fn message(&mut self, emitted: &Emitted, here: Here) {
        if let Some(mark) = Mark::read(emitted) {
            self.marks.push((mark, here));
        }
        self.token = Token::read(emitted).or(self.token);
    }

    /// The row of an applier's place stands here.
    pub fn place(&mut self, place: UnitId) {
        self.place = Some(place);
    }

    /// What a session said ahead of its COMMIT.
    pub fn token(&self) -> Option<Token> {
        self.token
    }

    /// Whether an applier made the transaction.
    pub fn is_applied(&self) -> bool {
        self.place.is_some()
    }

    /// The units of a transaction that an applier made, in order; none in one of the node's own.
    pub fn pieces(&self, end: Here) -> Result<Option<Vec<Piece>>, CutError> {
        let Some(place) = self.place else {
            return Ok(None);
        };
        let error = |problem| Err(CutError { place, problem });
        let Some((last, _)) = self.marks.last() else {
            // An origin's first row is alone.
            return if end.at == 0 {
                Ok(Some(Vec::new()))
            } else {
                error("it has no mark")
            };
        };
        if last.unit != place {
            return error("the last mark is not of its place");
        }
        let mut pieces: Vec<Piece> = Vec::new();
        let mut from = Here::default();
        let marks = self
            .marks
            .iter()
            .filter(|(mark, _)| mark.number == last.number);
        for (Mark { unit, .. }, here) in marks {
            let follows = |before: &Piece| before.unit.term == unit.term && before.unit < *unit;
            if !pieces.last().is_none_or(follows) {
                return error("its marks are not in order");
            }
            let to = if *unit == place { end } else { *here };
            pieces.push(Piece {
                unit: *unit,
                range: from.at..to.at,
                bytes: to.bytes - from.bytes,
                has_ddl: to.ddl > from.ddl,
            });
            from = to;
        }
        Ok(Some(pieces))
    }
}

/// The place in a new row of `applied_places`; none in any other row.
pub fn place_of(table: &Relation, new: &Tuple) -> Option<UnitId> {
    if table.namespace != SYNAPSEDB || table.name != "applied_places" {
        return None;
    }
    let text = |name: &str| {
        let at = table
            .columns
            .iter()
            .position(|column| column.name == name)?;
        match new.iter().nth(at) {
            Some(Value::Text(bytes)) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    };
    let term: Epoch = term_of_origin(text("origin")?)?;
    let lsn = text("lsn")?.parse().ok()?;
    Some(UnitId { term, lsn })
}

/// Tells rows of a materialized view that a follower filled: while it does so the view is a table, and its log
/// has those rows behind the line that held them. Only the line is for others.
#[derive(Debug, Default)]
pub struct Filled {
    within: bool,
}

impl Filled {
    /// Whether the change that comes next is for others.
    pub fn keeps(&mut self, change: &Change) -> bool {
        if let Change::Insert { table, new } = change
            && change.is_contents()
        {
            self.within = views::lines(table, new).is_some();
            return true;
        }
        !self.within
    }
}

#[cfg(test)]
#[path = "cut_tests.rs"]
mod tests;
