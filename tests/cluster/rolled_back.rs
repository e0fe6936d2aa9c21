//! Parts of a large transaction that the writer sends while it runs, and that are rolled back before it commits.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_postgres::Client;

use crate::support::cluster::TestCluster;
use crate::tools::{ask, is_all, run, seed, until};

const MAKE: &str = "create table big (id int primary key, v text, filler text);
    create table small (id int primary key, v text); alter table small alter v set storage external";
/// About 10 MB, more than the writer keeps in memory.
const FILL: &str =
    "insert into big select g, 'v', repeat('x', 100) from generate_series(1, 50000) g";
/// One value of 16 MB; `$` is its row.
const WIDE: &str =
    "insert into small select $, string_agg(md5(g::text), '') from generate_series(1, 500000) g";

/// How often the writer has sent a part of a transaction that still ran.
async fn parts_sent(writer: &Client) -> u64 {
    let count = "select coalesce(sum(stream_count), 0) from pg_stat_replication_slots s
        join pg_replication_slots using (slot_name) where database = current_database()";
    ask(writer, count).await.parse().expect("a number")
}

async fn until_sent(writer: &Client, before: u64) {
    until("a part is sent", || async {
        parts_sent(writer).await > before
    })
    .await;
}

/// Ends the stream on the writer and waits for the next one.
async fn break_stream(writer: &Client) {
    let reader = "select active_pid from pg_replication_slots where database = current_database() and active";
    until("the log is read", || async {
        !ask(writer, reader).await.is_empty()
    })
    .await;
    let before = ask(writer, reader).await;
    run(writer, &format!("select pg_terminate_backend({before})")).await;
    until("the log is read again", || async {
        let now = ask(writer, reader).await;
        !now.is_empty() && now != before
    })
    .await;
}

/// Has the next stream begin behind all that is in the log now.
async fn move_slot(writer: &Client, other: &Client) {
    let end = ask(writer, "select pg_current_wal_lsn()").await;
    run(other, "update small set v = v where id = 0").await;
    let moved = format!(
        "select bool_and(confirmed_flush_lsn > '{end}') from pg_replication_slots where database = current_database()"
    );
    until("the slot has moved", || async {
        ask(writer, &moved).await == "t"
    })
    .await;
}

/// The writer does not say that such a part was rolled back.
#[tokio::test(flavor = "multi_thread")]
async fn rule_3_what_was_rolled_back_around_a_broken_stream_is_nowhere() {
    let cluster = TestCluster::start().await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let writer = cluster.node(0).await;
    run(&client, MAKE).await;
    run(&client, "insert into small values (0, 'x')").await;
    run(&client, "begin").await;
    run(&client, FILL).await;
    run(&client, "savepoint s; update big set v = 'undone'").await;
    move_slot(&writer, &other).await;
    break_stream(&writer).await;
    let before = parts_sent(&writer).await;
    let mut at = 0;
    until("a part is sent", || {
        at += 1000;
        let more = format!("update big set v = 'undone, too' where id between {at} - 999 and {at}");
        let (client, writer) = (&client, &writer);
        async move {
            run(client, &more).await;
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            parts_sent(writer).await > before
        }
    })
    .await;
    run(
        &client,
        "rollback to s; update big set v = 'kept' where id < 10; commit",
    )
    .await;
    cluster.assert_nodes_equal().await;
}

/// Nor does it where a value was too large for its memory; no stream need break for that.
#[tokio::test(flavor = "multi_thread")]
async fn rule_3_a_large_value_that_was_rolled_back_is_nowhere() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let writer = cluster.node(0).await;
    run(&client, MAKE).await;
    let before = parts_sent(&writer).await;
    run(&client, "begin; savepoint s").await;
    run(&client, &WIDE.replace('$', "1")).await;
    until_sent(&writer, before).await;
    run(
        &client,
        "rollback to s; insert into small values (2, 'kept'); commit",
    )
    .await;
    cluster.assert_nodes_equal().await;
}

/// Nested parts, kept and rolled back, while the stream breaks at any moment.
#[tokio::test(flavor = "multi_thread")]
async fn rule_3_any_parts_rolled_back_under_any_breaks_leave_all_copies_alike() {
    let seed = seed();
    println!("SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let cluster = TestCluster::start().await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let writer = cluster.node(0).await;
    run(&client, MAKE).await;
    run(&client, "insert into small values (0, 'x')").await;
    for round in 1..=if is_all() { 25 } else { 1 } {
        run(&client, "truncate big").await;
        run(&client, "begin").await;
        run(&client, FILL).await;
        let mut open = Vec::new();
        for step in 0..10 {
            let low = rng.random_range(1..50_000);
            let change =
                format!("update big set v = '{round}.{step}' where id between {low} and {low} + ");
            match rng.random_range(0..10) {
                0..3 => {
                    open.push(format!("s{step}"));
                    run(&client, &format!("savepoint s{step}; {change} 20000")).await;
                }
                3 | 4 if !open.is_empty() => {
                    let keep = rng.random_range(0..open.len());
                    run(
                        &client,
                        &format!("rollback to {}; {change} 5000", open[keep]),
                    )
                    .await;
                    open.truncate(keep + 1);
                }
                5 if !open.is_empty() => {
                    let keep = rng.random_range(0..open.len());
                    run(&client, &format!("release {}", open[keep])).await;
                    open.truncate(keep);
                }
                6 | 7 => {
                    open.push(format!("s{step}"));
                    run(&client, &format!("savepoint s{step}; {change} 40000")).await;
                    move_slot(&writer, &other).await;
                    break_stream(&writer).await;
                    run(&client, &format!("{change} 18000")).await;
                }
                8 => {
                    let row = round * 100 + step;
                    run(&client, &WIDE.replace('$', &row.to_string())).await;
                }
                _ => run(&client, &format!("{change} 9000")).await,
            }
        }
        let end = if rng.random_bool(0.8) {
            "commit"
        } else {
            "rollback"
        };
        run(&client, end).await;
        cluster.assert_nodes_equal().await;
    }
}
