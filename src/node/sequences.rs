//! What a node's sequences have handed out, and raising them.
//!
//! Each function is one question or one idempotent act on the client's database. It decides nothing; `engine::sequences`
//! does, and says why (REPLICATION rule 24).

use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::control::ControlError;
use super::settings::literal;
use crate::engine::sequences::Block;
use crate::ids::Epoch;

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

/// Sequences that are there for more than one session, with what a command holds or wants to hold so that nobody else may
/// even look at it. The proxy's own are each node's.
const READ: &str = "set local lock_timeout = '20ms';
    with held as materialized (
      select relation from pg_locks
       where locktype = 'relation' and database = (select oid from pg_database where datname = current_database())
         and mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
    select format('%I.%I', n.nspname, c.relname), c.oid in (select relation from held),
           case when c.oid in (select relation from held) then null else pg_sequence_last_value(c.oid) end,
           s.seqstart, s.seqincrement, s.seqcache, s.seqmin, s.seqmax, s.seqcycle
      from pg_sequence s join pg_class c on c.oid = s.seqrelid join pg_namespace n on n.oid = c.relnamespace
     where c.relpersistence <> 't'
       and not (n.nspname = 'synapsedb' and c.relname in ('asleep', 'pending_indexes_id_seq'))";

/// What there is of a database's sequences.
#[derive(Debug, Default)]
pub struct Found {
    /// Those that could be read.
    pub read: Vec<Sequence>,
    /// Names of those of which that can't be: a command holds them, or waits for them, and has not ended.
    pub held: Vec<String>,
}

/// Every sequence of the client's database. Waits for no command that holds one, for it may wait for what becomes of this
/// reading.
pub async fn read(client: &Client) -> Result<Found, ControlError> {
    let answers = client.simple_query(READ).await?;
    let mut found = Found::default();
    for answer in &answers {
        let SimpleQueryMessage::Row(row) = answer else {
            continue;
        };
        if row.get(1) == Some("t") {
            found.held.extend(row.get(0).map(str::to_owned));
        } else {
            let sequence = sequence(row).ok_or(ControlError::Answer("a sequence"))?;
            found.read.push(sequence);
        }
    }
    Ok(found)
}

fn sequence(row: &SimpleQueryRow) -> Option<Sequence> {
    let number = |at: usize| row.get(at)?.parse::<i64>().ok();
    let (last, start, increment) = (number(2), number(3)?, number(4)?);
    let (min, max) = (number(6)?, number(7)?);
    let called = last.is_some();
    let last = last.unwrap_or_else(|| start.saturating_sub(increment));
    let room = if increment > 0 {
        i128::from(max) - i128::from(last)
    } else {
        i128::from(last) - i128::from(min)
    };
    let steps = room / i128::from(increment).abs().max(1);
    Some(Sequence {
        name: row.get(0)?.to_owned(),
        last,
        called,
        increment,
        cache: u64::try_from(number(5)?).unwrap_or(1),
        left: u64::try_from(steps).unwrap_or_default(),
        cycles: row.get(8) == Some("t"),
    })
}

/// Raises sequences from where they stand on this node, so that a stretch of so many bytes of the writer's log can't use
/// all of it up; never by more than a part of what is left. Gives for how many bytes that is, the least of all; those
/// that are not there don't count. None where the node has not been met in the term to which `origin` belongs: what an
/// earlier one had asked of it may be carried out still.
pub async fn raise_for(
    client: &Client,
    names: &[String],
    bytes: u64,
    origin: &str,
) -> Result<Option<u64>, ControlError> {
    let sql = "with found as (
                 select r, seqincrement as step, 32 + seqcache as each, last,
                        trunc(least(ceil($2::int8::numeric * (32 + seqcache) / 100) + 32 + seqcache,
                                    (case when seqincrement > 0 then seqmax - last else last - seqmin end)
                                      / abs(seqincrement) / 16)) as steps
                   from unnest($1::text[]) w(name) cross join lateral (select to_regclass(name)) t(r)
                   join pg_sequence on seqrelid = r
                   cross join lateral (
                     select coalesce(pg_sequence_last_value(r), seqstart - seqincrement)::numeric) v(last)
                  where not seqcycle and exists (select from synapsedb.applied_places where origin = $3))
               select exists (select from synapsedb.applied_places where origin = $3),
                      coalesce(min(case when steps <= each or setval(r, (last + step * steps)::int8) is null then 0
                                        else trunc((steps - each) * 100 / each) end), $2)::int8 from found";
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    let row = client.query_one(sql, &[&names, &bytes, &origin]).await?;
    let least = u64::try_from(row.get::<_, i64>(1)).unwrap_or_default();
    Ok(row.get::<_, bool>(0).then_some(least))
}

/// Raises sequences that have not come as far as these values. Gives how many are not there; none, with nothing raised,
/// where the node has not been met in the term to which `origin` belongs.
pub async fn raise(
    client: &Client,
    wanted: &[(String, i64)],
    origin: Option<&str>,
) -> Result<Option<i64>, ControlError> {
    let sql = "select count(*) filter (where moved is null) from (
                 select case when r is null then null
                             when s.seqincrement > 0 and coalesce(pg_sequence_last_value(r), s.seqmin - 1) < v
                               or s.seqincrement < 0 and coalesce(pg_sequence_last_value(r), s.seqmax + 1) > v
                             then setval(r, v) else v end as moved
                   from (select to_regclass(name) as r, v from unnest($1::text[], $2::int8[]) w(name, v)) w
                   left join pg_sequence s on s.seqrelid = r) t
                having $3::text is null or exists (select from synapsedb.applied_places where origin = $3)";
    let names: Vec<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
    let values: Vec<i64> = wanted.iter().map(|(_, value)| *value).collect();
    let row = client.query_opt(sql, &[&names, &values, &origin]).await?;
    Ok(row.map(|row| row.get(0)))
}

/// Makes sequences stand exactly where these stand, unless the node has been met in a newer term than this one: it may
/// be carried out long after it was asked. Those that are not there are left out.
pub async fn copy(client: &Client, theirs: &[Sequence], term: Epoch) -> Result<(), ControlError> {
    let called: Vec<&Sequence> = theirs.iter().filter(|one| one.called).collect();
    if called.is_empty() {
        return Ok(());
    }
    let rows: Vec<String> = called
        .iter()
        .map(|one| format!("({}, {}::int8)", literal(&one.name), one.last))
        .collect();
    // Whoever meets the node makes an origin, then adds a row to that table. Two statements: the second one sees what was
    // there once the first one had its lock.
    let sql = format!(
        "lock table synapsedb.applied_places in share mode;
         select setval(to_regclass(name), v) from (values {}) w(name, v)
          where to_regclass(name) is not null and pg_sequence_last_value(to_regclass(name)) is distinct from v
            and not exists (select from pg_replication_origin
                             where (substring(roname from '^synapsedb_([0-9]+)_'))::int8 > {term})",
        rows.join(", ")
    );
    client.simple_query(&sql).await?;
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
