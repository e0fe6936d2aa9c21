//! Large transactions that followers apply while the writer still runs them: nothing differs, nobody is held up.

use tokio_postgres::Client;

use crate::support::cluster::TestCluster;
use crate::support::http;
use crate::tools::{PATIENCE, applier_pid, ask, rows, run, until};

/// What is streamed before it ends: rows of about 10 MB, more than the writer keeps in memory.
const FILL: &str =
    "insert into big select g, 'v', repeat('x', 100) from generate_series(1, 50000) g";
/// The connections that apply something ahead: they have locks on tables of users and no place of their own yet.
const AHEAD: &str = "select count(distinct l.pid) from pg_locks l join pg_stat_activity a using (pid)
    where a.usename = 'synapsedb_applier' and l.relation = 'big'::regclass and l.mode = 'RowExclusiveLock' and l.granted";

async fn set_up(cluster: &TestCluster) -> Client {
    let client = cluster.client().await;
    let make = "create table big (id int primary key, v text, filler text);
        create table small (id int primary key, v text); create table keyless (a int, b text);
        insert into keyless select 1, 'same' from generate_series(1, 20)";
    run(&client, make).await;
    cluster.assert_nodes_equal().await;
    client
}

async fn applied_ahead(cluster: &TestCluster) -> u64 {
    let (_, metrics) = http::get(cluster.http_port(), "/metrics").await;
    let mine = metrics
        .lines()
        .filter(|line| line.starts_with("synapsedb_units_applied_ahead_total{"));
    mine.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// Begins a large transaction and waits until both followers apply it.
async fn begin_big(cluster: &TestCluster, client: &Client) {
    run(client, "begin").await;
    run(client, FILL).await;
    for index in 1..3 {
        let node = cluster.node(index).await;
        until("it is applied ahead", || async {
            ask(&node, AHEAD).await == "1"
        })
        .await;
    }
}

async fn bounded(what: &str, work: impl Future<Output = ()>) {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("{what} was held up"));
}

/// What others commit meanwhile is there first, and the rows that the transaction then finds among it are changed.
#[tokio::test(flavor = "multi_thread")]
async fn rule_8_a_large_transaction_is_applied_while_it_runs_and_commits_in_its_turn() {
    let cluster = TestCluster::start().await;
    let client = set_up(&cluster).await;
    let other = cluster.client().await;
    begin_big(&cluster, &client).await;
    for round in 0..5 {
        let theirs = format!(
            "insert into small select {round} * 1000 + g, 'new' from generate_series(1, 200) g"
        );
        run(&other, &theirs).await;
        let mine = format!(
            "update small set v = 'changed ' || id where id > {round} * 1000; \
             delete from small where id = {round} * 1000 + 7; \
             update big set v = 'again', id = id + 1000000 where id between {round} * 5000 and {round} * 5000 + 4999"
        );
        run(&client, &mine).await;
    }
    run(&client, "update big set v = v || '!' where id % 3 = 0").await;
    run(&client, "commit").await;
    run(&other, "update small set v = v || ' after' where id < 100").await;
    cluster.assert_nodes_equal().await;
    assert_eq!(applied_ahead(&cluster).await, 2);
    // The connection that took over is an applier like any other.
    run(
        &other,
        "alter table small add column w float8 default random()",
    )
    .await;
    run(&other, "insert into small values (-1, 'x', random())").await;
    begin_big_again(&client).await;
    cluster.assert_nodes_equal().await;
    for index in 1..3 {
        let node = cluster.node(index).await;
        let appliers = "select count(*) from pg_stat_activity where usename = 'synapsedb_applier'
            and datname = current_database()";
        until("one applier is left", || async {
            ask(&node, appliers).await == "1"
        })
        .await;
    }
}

async fn begin_big_again(client: &Client) {
    let again = "begin; delete from big; insert into big select g, 'w', repeat('y', 100) from generate_series(1, 50000) g; commit";
    for sql in again.split_inclusive("; ") {
        run(client, sql).await;
    }
}

/// Rolled back, whole or in part; DDL, TRUNCATE, rows without a key; DDL of others: all give it up, and nothing differs.
#[tokio::test(flavor = "multi_thread")]
async fn rule_8_what_a_follower_could_do_otherwise_is_not_applied_ahead() {
    let cluster = TestCluster::start().await;
    let client = set_up(&cluster).await;
    let other = cluster.client().await;
    begin_big(&cluster, &client).await;
    run(&client, "rollback").await;
    bounded("a writer behind a rollback", async {
        run(&other, "insert into big values (5, 'mine', null)").await;
    })
    .await;
    cluster.assert_nodes_equal().await;
    run(&other, "truncate big").await;
    for (number, within) in [
        "savepoint s; update big set v = 'undone'; rollback to s; update big set v = 'kept' where id < 10",
        "truncate small",
        "create table made (a int primary key); insert into made values (1); drop table made",
        "update keyless set b = 'other' where ctid = (select min(ctid) from keyless)",
        "alter table big add column r float8 default random()",
    ]
    .into_iter()
    .enumerate()
    {
        begin_big(&cluster, &client).await;
        let theirs = format!("insert into small values ({number}, 'x'); delete from keyless
            where ctid = (select max(ctid) from keyless)");
        bounded("another writer", async { run(&other, &theirs).await }).await;
        run(&client, within).await;
        run(&client, "update big set filler = repeat('z', 120) where id <= 5000").await;
        run(&client, "commit").await;
        cluster.assert_nodes_equal().await;
        run(&client, "truncate big, small").await;
    }
    begin_big(&cluster, &client).await;
    run(
        &other,
        "create table theirs (a int); insert into theirs values (1); create index on theirs (a)",
    )
    .await;
    run(&client, "insert into theirs values (2); commit").await;
    cluster.assert_nodes_equal().await;
    assert_eq!(applied_ahead(&cluster).await, 0);
}

/// Appliers ended at either connection, the proxy killed, a lock that stands between the two.
#[tokio::test(flavor = "multi_thread")]
async fn rule_8_what_ends_a_transaction_applied_ahead_loses_and_holds_nothing() {
    let mut cluster = TestCluster::start().await;
    let client = set_up(&cluster).await;
    let other = cluster.client().await;
    begin_big(&cluster, &client).await;
    let end = "select pg_terminate_backend(a.pid) from pg_stat_activity a where a.usename = 'synapsedb_applier'
        and datname = current_database() and (a.pid in (select pid from pg_locks where relation = 'big'::regclass)) = ";
    // One follower's work ahead is ended, the other's own applier.
    for (index, ahead) in [(1, "true"), (2, "false")] {
        rows(&cluster.node(index).await, &format!("{end} {ahead}")).await;
    }
    bounded("another writer", async {
        run(&other, "insert into small values (1, 'x')").await;
    })
    .await;
    run(
        &client,
        "update big set v = 'later' where id % 2 = 0; commit",
    )
    .await;
    cluster.assert_nodes_equal().await;
    run(&other, "truncate big").await;

    // Whoever waits for a lock on the table makes others wait, until the work ahead makes room.
    begin_big(&cluster, &client).await;
    let mut locking = Vec::new();
    for index in 1..3 {
        let node = cluster.node(index).await;
        let lock = "begin read write; lock table big in share mode; rollback";
        locking.push(tokio::spawn(async move { node.batch_execute(lock).await }));
        let node = cluster.node(index).await;
        let waits =
            "select count(*) from pg_locks where relation = 'big'::regclass and not granted";
        until("it waits", || async { ask(&node, waits).await == "1" }).await;
    }
    bounded("a writer behind a lock", async {
        run(&other, "insert into big values (0, 'mine', null)").await;
    })
    .await;
    for lock in locking {
        lock.await.expect("no panic").expect("locked");
    }
    run(&client, "update big set v = 'later' where id > 0; commit").await;
    cluster.assert_nodes_equal().await;
    run(&other, "truncate big").await;

    begin_big(&cluster, &client).await;
    cluster.restart_proxy().await;
    let client = cluster.client().await;
    bounded("a writer behind a killed proxy", async {
        run(&client, "insert into big values (1, 'mine', null)").await;
    })
    .await;
    cluster.assert_nodes_equal().await;
    for index in 1..3 {
        let node = cluster.node(index).await;
        until("the applier is back", || async {
            applier_pid(&node).await.is_some()
        })
        .await;
    }
}
