//! Up to where a node has the history, by the terms of its writers, as its rows in `applied_places` say.

use std::collections::BTreeMap;

use crate::ids::{Epoch, Lsn, UnitId, term_of_origin};

/// A node's last unit of each term in one database; 0 where it was to get units and has none yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places(pub BTreeMap<Epoch, Lsn>);

impl Places {
    /// From the origins' names and what they have come to, in any order.
    pub fn read<'a>(rows: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut places = BTreeMap::new();
        for (origin, lsn) in rows {
            if let (Some(term), Ok(lsn)) = (term_of_origin(origin), lsn.parse::<Lsn>()) {
                let place = places.entry(term).or_insert(lsn);
                *place = (*place).max(lsn);
            }
        }
        Self(places)
    }

    /// The last unit. An origin that was only made says nothing: what came before its term may still be lacking. Where
    /// there is nothing else, the node stands before the first unit of its oldest term.
    pub fn last(&self) -> Option<UnitId> {
        let unit = |(term, lsn): (&Epoch, &Lsn)| UnitId {
            term: *term,
            lsn: *lsn,
        };
        let moved = self.0.iter().rev().find(|(_, lsn)| **lsn > Lsn(0));
        moved.or_else(|| self.0.iter().next()).map(unit)
    }

    /// Whether it was ever to get units of this term.
    pub fn has(&self, term: Epoch) -> bool {
        self.0.contains_key(&term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_unit_is_of_the_newest_term_that_brought_one() {
        let last = |rows: &[(&str, &str)]| Places::read(rows.iter().copied()).last();
        let unit = |term, lsn| {
            Some(UnitId {
                term: Epoch(term),
                lsn: Lsn(lsn),
            })
        };
        assert_eq!(last(&[]), None);
        assert_eq!(last(&[("pg_1", "0/9"), ("synapsedb_x", "0/9")]), None);
        assert_eq!(last(&[("synapsedb_2_a", "0/0")]), unit(2, 0));
        let made = ("synapsedb_3_a", "0/0");
        assert_eq!(last(&[made, ("synapsedb_2_a", "0/9")]), unit(2, 9));
        assert_eq!(
            last(&[("synapsedb_10_a", "0/1"), ("synapsedb_2_a", "0/9")]),
            unit(10, 1)
        );
        assert_eq!(last(&[made, ("synapsedb_2_a", "0/0")]), unit(2, 0));
    }
}
