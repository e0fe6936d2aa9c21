//! What a follower may have shown of the writer's newest units, and what the writer itself shows of them.
//!
//! Guards promise 3: a read begins on a follower only where that has every acknowledged unit which touches what is
//! read, and its answer goes out only once the writer shows every such unit that may be in it. It knows units by
//! place, transaction and tables; it must never call a unit shown of which nobody said so. It lives for one writer's
//! term: what a change of writer means for reads is `horizon.rs`' to say, which knows no tables.

use std::collections::VecDeque;

use crate::ids::{Lsn, Tables, Xid};

/// So many units are remembered with their tables; a follower that lacks an older one is behind for any table.
const REMEMBERED: usize = 4096;

/// A unit that the writer may not show yet.
#[derive(Debug)]
struct Hidden {
    end: Lsn,
    xid: Xid,
    tables: Tables,
}

/// The units of one database, in commit order.
#[derive(Debug, Default)]
pub struct Units {
    /// The newest ones.
    recent: VecDeque<(Lsn, Tables)>,
    /// The end of the newest unit that is no longer among them.
    forgotten: Lsn,
    /// Those of which it is not known that the writer shows them.
    hidden: VecDeque<Hidden>,
    newest: Lsn,
}

impl Units {
    /// A unit was decoded. One that comes a second time changes nothing, but may be another one of a transaction that
    /// holds several.
    pub fn decoded(&mut self, end: Lsn, xid: Xid, tables: Tables) {
        if end < self.newest {
            return;
        }
        if end == self.newest {
            self.joined(end, &tables);
            return;
        }
        self.newest = end;
        self.recent.push_back((end, tables.clone()));
        if self.recent.len() > REMEMBERED
            && let Some((end, _)) = self.recent.pop_front()
        {
            self.forgotten = end;
        }
        self.hidden.push_back(Hidden { end, xid, tables });
    }

    /// The transaction that came last changed these tables too.
    fn joined(&mut self, end: Lsn, tables: &Tables) {
        let add = |known: &mut Tables| {
            let before = std::mem::replace(known, Tables::All);
            *known = before.and(tables.clone());
        };
        if let Some((_, known)) = self.recent.back_mut().filter(|(last, _)| *last == end) {
            add(known);
        }
        if let Some(unit) = self.hidden.back_mut().filter(|unit| unit.end == end) {
            add(&mut unit.tables);
        }
    }

    /// The end of the newest unit.
    pub fn newest(&self) -> Lsn {
        self.newest
    }

    /// Whether a follower that has every unit up to `applied` lacks none of those up to `acknowledged` that touch
    /// `tables`.
    pub fn is_fresh(&self, tables: &Tables, applied: Lsn, acknowledged: Lsn) -> bool {
        if applied >= self.newest {
            return true;
        }
        if applied < self.forgotten.min(acknowledged) {
            return false;
        }
        let newest_first = self.recent.iter().rev();
        let mut lacking = newest_first.take_while(|(end, _)| *end > applied);
        !lacking.any(|(end, touched)| *end <= acknowledged && touched.meet(tables))
    }

    /// Whether the writer may not show yet a unit up to `horizon` that touches `tables`. Those up to `settled` are part
    /// of whatever comes, and nobody asks the writer.
    pub fn hides(&self, tables: &Tables, settled: Lsn, horizon: Lsn) -> bool {
        let mut within = self.hidden.iter().take_while(|unit| unit.end <= horizon);
        within.any(|unit| unit.end > settled && unit.tables.meet(tables))
    }

    /// The transactions up to `end` of which it is not known that the writer shows them.
    pub fn unshown(&self, end: Lsn) -> Vec<Xid> {
        let within = self.hidden.iter().take_while(|unit| unit.end <= end);
        within.map(|unit| unit.xid).collect()
    }

    /// The writer was seen to show those transactions of which `shows` says so; it shows what it has shown.
    pub fn shown(&mut self, shows: impl Fn(Xid) -> bool) {
        self.hidden.retain(|unit| !shows(unit.xid));
    }

    /// Up to where the writer shows all.
    pub fn all_shown(&self) -> Lsn {
        // Ends of units differ, so what is right before the first hidden one is enough.
        let first = self.hidden.front();
        first.map_or(self.newest, |unit| Lsn(unit.end.0.saturating_sub(1)))
    }

    /// How many the writer may not show yet.
    pub fn hidden(&self) -> usize {
        self.hidden.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TableId;

    const NOTHING: Lsn = Lsn(0);

    fn table(name: &str) -> Tables {
        Tables::these([TableId::of("public", name)])
    }

    fn units(units: &[(u64, u32, &str)]) -> Units {
        let mut all = Units::default();
        for (end, xid, name) in units {
            all.decoded(Lsn(*end), Xid(*xid), table(name));
        }
        all
    }

    #[test]
    fn units_of_one_transaction_are_one_with_all_their_tables() {
        let mut units = Units::default();
        units.decoded(Lsn(10), Xid(1), table("a"));
        units.decoded(Lsn(20), Xid(2), table("b"));
        units.decoded(Lsn(20), Xid(2), table("c"));
        for touched in ["b", "c"] {
            assert!(!units.is_fresh(&table(touched), Lsn(10), Lsn(20)));
            assert!(units.hides(&table(touched), NOTHING, Lsn(20)));
            assert!(!units.hides(&table(touched), NOTHING, Lsn(19)));
        }
        units.shown(|xid| xid == Xid(2));
        assert!(!units.hides(&table("c"), NOTHING, Lsn(20)));
    }

    #[test]
    fn a_follower_must_have_what_was_acknowledged_of_the_tables_read() {
        let units = units(&[(10, 1, "a"), (20, 2, "b"), (30, 3, "a")]);
        for (name, applied, acknowledged, fresh) in [
            ("a", 30, 30, true),
            ("a", 20, 30, false),
            // The newest one is not acknowledged.
            ("a", 20, 29, true),
            ("a", 10, 29, true),
            ("a", 9, 29, false),
            ("b", 10, 30, false),
            ("b", 20, 30, true),
            ("c", 0, 30, true),
        ] {
            let found = units.is_fresh(&table(name), Lsn(applied), Lsn(acknowledged));
            assert_eq!(found, fresh, "{name} {applied} {acknowledged}");
        }
        assert!(!units.is_fresh(&Tables::All, Lsn(20), Lsn(30)));
        assert!(units.is_fresh(&Tables::none(), Lsn(0), Lsn(30)));
    }

    #[test]
    fn what_is_no_longer_remembered_touches_every_table() {
        let mut units = Units::default();
        for at in 1..=REMEMBERED as u64 + 10 {
            units.decoded(Lsn(at), Xid(1), table("a"));
        }
        assert!(!units.is_fresh(&table("b"), Lsn(9), Lsn(u64::MAX)));
        assert!(units.is_fresh(&table("b"), Lsn(10), Lsn(u64::MAX)));
        // Nothing of what it lacks is acknowledged.
        assert!(units.is_fresh(&table("b"), Lsn(9), Lsn(9)));
    }

    #[test]
    fn an_answer_waits_for_what_may_be_in_it_and_no_more() {
        let mut units = units(&[(10, 1, "a"), (20, 2, "b"), (30, 3, "a")]);
        assert_eq!(units.all_shown(), Lsn(9));
        assert!(!units.hides(&table("a"), NOTHING, Lsn(9)));
        assert!(units.hides(&table("a"), NOTHING, Lsn(10)));
        assert!(!units.hides(&table("b"), NOTHING, Lsn(19)));
        assert!(units.hides(&Tables::All, NOTHING, Lsn(10)));
        units.shown(|xid| xid != Xid(2));
        assert_eq!(units.all_shown(), Lsn(19));
        assert!(!units.hides(&table("a"), NOTHING, Lsn(30)));
        assert!(units.hides(&table("b"), NOTHING, Lsn(30)));
        units.shown(|_| true);
        assert_eq!((units.all_shown(), units.hidden()), (Lsn(30), 0));
        // Decoded again after a broken stream.
        units.decoded(Lsn(20), Xid(2), table("b"));
        assert_eq!(units.hidden(), 0);
    }
}
