//! What a node's sequences have handed out, and raising them.
//!
//! Each function is one question or one idempotent act on the client's database. It decides nothing; `engine::sequences`
//! does, and says why (REPLICATION rule 24).

use tokio_postgres::Client;

use super::control::ControlError;
use crate::engine::sequences::Block;

/// A sequence at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Schema and name, quoted where needed.
    pub name: String,
    /// The last value handed out to a session; before the first one, the value before the start.
    pub last: i64,
    /// Whether it has handed out any.
    pub called: bool,
    /// From one value to the next.
    pub increment: i64,
    /// Values that a session takes at once.
    pub cache: u64,
    /// How many values are left.
    pub left: u64,
    /// It begins anew behind the last: no value of its is promised to be new.
    pub cycles: bool,
}

impl Sequence {
    /// Whether another value of it comes later than this one.
    pub fn is_behind(&self, value: i64) -> bool {
        if self.increment > 0 {
            self.last < value
        } else {
            self.last > value
        }
    }

    /// The value so many steps behind the last one, and how many there are in fact: never more than a part of what is
    /// left.
    pub fn ahead(&self, steps: u64) -> (i64, u64) {
        let steps = steps.min(self.left / 16);
        let far = i128::from(self.last) + i128::from(self.increment) * i128::from(steps);
        // Within what is left, so within the bounds of the sequence and of its type.
        (i64::try_from(far).unwrap_or(self.last), steps)
    }

    /// What followers that are raised to `value` allow.
    pub fn block(&self, value: i64) -> Block {
        let distance = if self.is_behind(value) {
            (i128::from(value) - i128::from(self.last)).abs()
                / i128::from(self.increment).abs().max(1)
        } else {
            0
        };
        let ahead = u64::try_from(distance).unwrap_or(u64::MAX);
        // What is logged ahead may be handed out without another record.
        let logged = 32_u64.saturating_add(self.cache);
        Block {
            ahead: ahead.saturating_sub(logged),
            cache: self.cache,
        }
    }
}

/// Every sequence of the client's database that is there for more than one session. The proxy's own are each node's.
pub async fn read(client: &Client) -> Result<Vec<Sequence>, ControlError> {
    let sql = "select format('%I.%I', n.nspname, c.relname), pg_sequence_last_value(c.oid), s.seqstart, s.seqincrement,
                      s.seqcache, s.seqmin, s.seqmax, s.seqcycle
                 from pg_sequence s join pg_class c on c.oid = s.seqrelid join pg_namespace n on n.oid = c.relnamespace
                where c.relpersistence <> 't'
                  and not (n.nspname = 'synapsedb' and c.relname in ('asleep', 'pending_indexes_id_seq'))";
    let rows = client.query(sql, &[]).await?;
    let sequence = |row: &tokio_postgres::Row| {
        let (last, start, increment): (Option<i64>, i64, i64) =
            (row.get(1), row.get(2), row.get(3));
        let (min, max): (i64, i64) = (row.get(5), row.get(6));
        let called = last.is_some();
        let last = last.unwrap_or_else(|| start.saturating_sub(increment));
        let room = if increment > 0 {
            i128::from(max) - i128::from(last)
        } else {
            i128::from(last) - i128::from(min)
        };
        let steps = room / i128::from(increment).abs().max(1);
        Sequence {
            name: row.get(0),
            last,
            called,
            increment,
            cache: u64::try_from(row.get::<_, i64>(4)).unwrap_or(1),
            left: u64::try_from(steps).unwrap_or_default(),
            cycles: row.get(7),
        }
    };
    Ok(rows.iter().map(sequence).collect())
}

/// Raises sequences that have not come as far as these values. Gives how many are not there.
pub async fn raise(client: &Client, wanted: &[(String, i64)]) -> Result<i64, ControlError> {
    let sql = "select count(*) filter (where moved is null) from (
                 select case when r is null then null
                             when s.seqincrement > 0 and coalesce(pg_sequence_last_value(r), s.seqmin - 1) < v
                               or s.seqincrement < 0 and coalesce(pg_sequence_last_value(r), s.seqmax + 1) > v
                             then setval(r, v) else v end as moved
                   from (select to_regclass(name) as r, v from unnest($1::text[], $2::int8[]) w(name, v)) w
                   left join pg_sequence s on s.seqrelid = r) t";
    let names: Vec<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
    let values: Vec<i64> = wanted.iter().map(|(_, value)| *value).collect();
    Ok(client.query_one(sql, &[&names, &values]).await?.get(0))
}

/// Makes sequences stand exactly where these stand. Those that are not there are left out.
pub async fn copy(client: &Client, theirs: &[Sequence]) -> Result<(), ControlError> {
    let sql = "select setval(to_regclass(name), v) from unnest($1::text[], $2::int8[]) w(name, v)
                where to_regclass(name) is not null and pg_sequence_last_value(to_regclass(name)) is distinct from v";
    let called = || theirs.iter().filter(|one| one.called);
    let names: Vec<&str> = called().map(|one| one.name.as_str()).collect();
    let values: Vec<i64> = called().map(|one| one.last).collect();
    client.query(sql, &[&names, &values]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(last: i64, increment: i64, left: u64) -> Sequence {
        Sequence {
            name: "s".to_owned(),
            last,
            called: true,
            increment,
            cache: 1,
            left,
            cycles: false,
        }
    }

    #[test]
    fn a_follower_is_ahead_by_a_part_of_what_is_left() {
        assert_eq!(sequence(10, 1, 1 << 40).ahead(1000), (1010, 1000));
        assert_eq!(sequence(10, 1, 32_757).ahead(1 << 20), (2057, 2047));
        assert_eq!(sequence(-10, -5, 1600).ahead(1 << 20), (-510, 100));
        assert_eq!(sequence(i64::MAX, 1, 0).ahead(7), (i64::MAX, 0));
    }

    #[test]
    fn what_is_logged_ahead_is_used_up_already() {
        let block = sequence(10, 1, 1 << 40).block(1010);
        assert_eq!((block.ahead, block.cache), (1000 - 33, 1));
        assert_eq!(sequence(-10, -5, 1600).block(-510).ahead, 100 - 33);
        assert!(sequence(10, 1, 9).is_behind(11) && !sequence(10, -1, 9).is_behind(11));
    }
}
