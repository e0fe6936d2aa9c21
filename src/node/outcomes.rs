//! Which parts of a large transaction a node rolled back.
//!
//! The stream does not say that of every part: a node that had a part's changes on its own disk before it sent them
//! forgets that it did, and so never takes them back (measured on 16.14 and 18.4: more than 4,096 changes of one
//! subtransaction that came before the place where a reopened stream begins, or around a value larger than
//! `logical_decoding_work_mem`). So when such a transaction has committed, the node itself is asked. It knows: what
//! a slot still holds back is no older than the slot's `catalog_xmin`, and no node forgets outcomes from there on.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use super::backend::{Address, Backend, BackendError, Login};

/// So many are asked for at once.
const AT_ONCE: usize = 10_000;

/// Those of `parts`, numbers of subtransactions of one that has written its commit record, that were rolled back.
pub async fn rolled_back(
    address: &Address,
    login: &Login,
    timeout: Duration,
    parts: &[u32],
) -> Result<BTreeSet<u32>, BackendError> {
    let mut node = Backend::connect(address, login, timeout).await?;
    let mut undone = BTreeSet::new();
    for some in parts.chunks(AT_ONCE) {
        let asked = tokio::time::timeout(timeout, ask(&mut node, some, &mut undone));
        asked.await.map_err(|_| BackendError::Timeout(timeout))??;
    }
    Ok(undone)
}

async fn ask(
    node: &mut Backend,
    parts: &[u32],
    undone: &mut BTreeSet<u32>,
) -> Result<(), BackendError> {
    let unread = || BackendError::Protocol("an outcome that can't be read".to_owned());
    let next = node
        .query("select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())")
        .await?;
    let next: u64 = one(&next)
        .and_then(|next| next.parse().ok())
        .ok_or_else(unread)?;
    let mut numbers = String::new();
    for part in parts {
        // Writing to a string can't fail.
        let _ = write!(numbers, "{},", whole(next, *part));
    }
    // As long as the transaction still waits for a majority, what it keeps is in progress.
    let sql = format!(
        "select n, pg_catalog.pg_xact_status(n::pg_catalog.xid8)
           from pg_catalog.unnest('{{{}}}'::pg_catalog.text[]) n
          where pg_catalog.pg_xact_status(n::pg_catalog.xid8) is null
             or pg_catalog.pg_xact_status(n::pg_catalog.xid8) operator(pg_catalog.=) 'aborted'",
        numbers.trim_end_matches(',')
    );
    for row in node.query(&sql).await? {
        let [Some(number), outcome] = row.as_slice() else {
            return Err(unread());
        };
        if outcome.is_none() {
            let text = format!("how subtransaction {number} ended is forgotten");
            return Err(BackendError::Protocol(text));
        }
        let number: u64 = number.parse().map_err(|_| unread())?;
        // The stream's numbers are the lower half.
        undone.insert(u32::try_from(number & u64::from(u32::MAX)).map_err(|_| unread())?);
    }
    Ok(())
}

fn one(rows: &[Vec<Option<String>>]) -> Option<&str> {
    rows.first()?.first()?.as_deref()
}

/// The number that `part` is short for: the one nearest to what comes next, since nodes keep all numbers in use
/// within half of their range.
fn whole(next: u64, part: u32) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is what is meant"
    )]
    let ahead = part.wrapping_sub(next as u32).cast_signed();
    next.saturating_add_signed(i64::from(ahead))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_numbers_stand_for_the_nearest_whole_ones() {
        let epoch = 1 << 32;
        for (next, part, expected) in [
            (1000, 999, 999),
            (1000, 1001, 1001),
            (epoch + 5, 3, epoch + 3),
            (epoch + 5, u32::MAX - 1, epoch - 2),
            (epoch - 2, 7, epoch + 7),
            (3 * epoch + 700, 650, 3 * epoch + 650),
        ] {
            assert_eq!(whole(next, part), expected, "{next} {part}");
        }
    }
}
