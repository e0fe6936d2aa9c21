//! Streams of empty and idle databases sleep, and nothing is lost by it.

use std::time::{Duration, Instant};

use crate::support::cluster::{TestCluster, connect};
use crate::support::http;
use crate::tools::{Hold, PATIENCE, ask, is_all, rows, run, signal, still_waits, until};
use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// The database that is empty in these tests.
const EMPTY: &str = "postgres";
/// The process that reads its slot.
const READER: &str =
    "select active_pid from pg_replication_slots where database = 'postgres' and active";
const MARK: &str = "select last_value from synapsedb.asleep";

/// A cluster with one table in its own database, and the empty one asleep.
async fn asleep() -> TestCluster {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(&client, "create table t (a int primary key)").await;
    until_asleep(&cluster).await;
    cluster
}

/// Connections for clients' work are closed as soon as nobody uses them.
async fn start() -> TestCluster {
    let builder = TestCluster::builder().config("[pool]\nidle_timeout_s = 1");
    let builder = builder.env("RUST_LOG", "info,synapsedb::cluster::sleep=debug");
    builder.start().await
}

/// Waits until it is tried once more in vain to have the empty database sleep.
async fn until_kept_awake(cluster: &TestCluster) {
    let tries = || {
        let log = cluster.proxy_log_text();
        let kept = |line: &&str| line.contains("stays awake") && line.contains(EMPTY);
        log.lines().filter(kept).count()
    };
    let before = tries();
    until("it was tried", || async { tries() > before }).await;
}

/// Makes a database in which nobody ever is.
async fn make_another(cluster: &TestCluster) {
    run(&cluster.client().await, "create database another").await;
}

/// Waits until that one sleeps: one in which nobody has been for longer is awake for a reason then.
async fn until_another_sleeps(cluster: &TestCluster) {
    until("it sleeps", || async {
        let body = http::get(cluster.http_port(), "/status").await.1;
        let asleep = body.split_once("\"asleep\":[").map_or("", |(_, rest)| rest);
        let asleep = asleep.split(']').next().unwrap_or_default();
        asleep.contains("\"another\"")
    })
    .await;
}

async fn until_asleep(cluster: &TestCluster) {
    let writer = cluster.node(0).await;
    until("the empty database sleeps", || async {
        rows(&writer, READER).await.is_empty() && says_asleep(cluster).await
    })
    .await;
}

async fn says_asleep(cluster: &TestCluster) -> bool {
    let (_, body) = http::get(cluster.http_port(), "/status").await;
    body.contains("\"asleep\":[\"postgres\"]")
}

async fn is_awake(cluster: &TestCluster) -> bool {
    !rows(&cluster.node(0).await, READER).await.is_empty()
}

/// A statement on a connection of one's own to the writer, past the proxy.
fn straight(client: Client, sql: &str) -> JoinHandle<(Client, Result<(), tokio_postgres::Error>)> {
    let sql = sql.to_owned();
    tokio::spawn(async move {
        let outcome = client.batch_execute(&sql).await;
        (client, outcome)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_empty_database_is_not_read_and_wakes_for_a_client() {
    let cluster = start().await;
    run(
        &cluster.client().await,
        "create table t (a int primary key)",
    )
    .await;
    until_asleep(&cluster).await;
    let client = cluster.client().await;
    for n in 0..50 {
        run(&client, &format!("insert into t values ({n})")).await;
    }
    assert!(!is_awake(&cluster).await, "writes elsewhere woke it");
    let metrics = http::get(cluster.http_port(), "/metrics").await.1;
    assert!(metrics.contains("synapsedb_databases_asleep 1"));
    // A role belongs to all databases and is logged where the client is.
    run(&client, "create role sleeper").await;

    let guest = cluster.client_as(USER, PASSWORD, EMPTY).await;
    run(&guest, "create table u (a int); insert into u values (1)").await;
    assert!(is_awake(&cluster).await);
    assert_eq!(ask(&guest, MARK).await, "0");
    for n in 50..100 {
        run(&client, &format!("insert into t values ({n})")).await;
        run(&guest, "insert into u values (2)").await;
    }
    cluster.assert_nodes_equal().await;
    assert_eq!(
        ask(&cluster.node_db(2, EMPTY).await, "select count(*) from u").await,
        "51"
    );

    // What it holds keeps it awake, and once that is gone it may sleep again.
    drop(guest);
    until_kept_awake(&cluster).await;
    assert!(is_awake(&cluster).await, "it is not empty");
    let guest = cluster.client_as(USER, PASSWORD, EMPTY).await;
    run(&guest, "drop table u").await;
    cluster.assert_nodes_equal().await;
    make_another(&cluster).await;
    until_another_sleeps(&cluster).await;
    assert!(is_awake(&cluster).await, "a client is in it");
    run(&client, "drop database another").await;
    drop(guest);
    until_asleep(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_that_releases_commits_hands_over_before_it_sleeps() {
    let cluster = start().await;
    // The other way round: the tests' own database is the empty one, whose stream was the first.
    let client = cluster.client_as(USER, PASSWORD, EMPTY).await;
    run(&client, "create table t (a int)").await;
    let voice = "select s.database from pg_replication_slots s join pg_stat_replication r on r.pid = s.active_pid \
                 where r.application_name = 'synapsedb'";
    let writer = cluster.node_db(0, EMPTY).await;
    assert_eq!(rows(&writer, voice).await, [DATABASE]);
    let (mut longest, mut count) = (Duration::ZERO, 0);
    let end = Instant::now() + PATIENCE;
    loop {
        let began = Instant::now();
        run(&client, "insert into t values (1)").await;
        longest = longest.max(began.elapsed());
        count += 1;
        if count % 50 == 0 && rows(&writer, voice).await == [EMPTY] {
            break;
        }
        assert!(Instant::now() < end, "nobody sleeps");
    }
    for _ in 0..200 {
        let began = Instant::now();
        run(&client, "insert into t values (1)").await;
        longest = longest.max(began.elapsed());
    }
    eprintln!("the longest of {count} commits took {longest:?}");
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    let began = Instant::now();
    let guest = cluster.client().await;
    run(&guest, "create table u (a int); insert into u values (1)").await;
    eprintln!("the first definition in it took {:?}", began.elapsed());
    assert_eq!(rows(&writer, voice).await, [EMPTY], "it keeps the voice");
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_no_trigger_sees_wakes_the_database_it_is_logged_in() {
    let cluster = asleep().await;
    let guest = cluster.client_as(USER, PASSWORD, EMPTY).await;
    run(
        &guest,
        "set session_replication_role = replica; create role one",
    )
    .await;
    run(&guest, "reset session_replication_role; create role two").await;
    assert!(is_awake(&cluster).await);
    // The slower follower may have them a moment later.
    cluster.assert_nodes_equal().await;
    for node in 0..3 {
        let roles = "select count(*) from pg_roles where rolname in ('one', 'two')";
        assert_eq!(ask(&cluster.node(node).await, roles).await, "2", "{node}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_made_straight_on_the_writer_waits_until_the_stream_counts() {
    let cluster = asleep().await;
    let ways = [
        "create table one (a int); insert into one values (1)",
        "begin isolation level repeatable read; select count(*) from pg_class; create table two (a int); \
         insert into two values (1); commit",
        "begin isolation level serializable; select 1; do 'begin create table three (a int); end'; \
         insert into three values (1); commit",
        "begin; savepoint a; create table four (a int); rollback to a; create table four (b int); \
         insert into four values (1); commit",
    ];
    let ways = if is_all() { &ways[..] } else { &ways[..2] };
    for (at, sql) in ways.iter().enumerate() {
        // Nobody else may have it, so its commit must wait for the majority however it came in.
        let writer = cluster.node_db(0, EMPTY).await;
        let holds = [
            Hold::table(&cluster, 1, EMPTY, "synapsedb.applied_places").await,
            Hold::table(&cluster, 2, EMPTY, "synapsedb.applied_places").await,
        ];
        let mut made = straight(writer, sql);
        until("the stream is awake", || async { is_awake(&cluster).await }).await;
        assert!(still_waits(&mut made).await, "no majority has it: {sql}");
        // Waiting goes by the log's place alone, so what is committed elsewhere waits behind it.
        let mut behind = straight(
            cluster.node(0).await,
            &format!("insert into t values ({at})"),
        );
        assert!(still_waits(&mut behind).await, "confirmed past it: {sql}");
        for hold in holds {
            hold.release().await;
        }
        let (writer, outcome) = made.await.expect("no panic");
        outcome.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        behind.await.expect("no panic").1.expect("committed");
        cluster.assert_nodes_equal().await;
        for table in ["one", "two", "three", "four"] {
            run(&writer, &format!("drop table if exists {table}")).await;
        }
        drop(writer);
        cluster.assert_nodes_equal().await;
        until_asleep(&cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_at_work_keeps_the_stream_awake() {
    let cluster = start().await;
    run(&cluster.client().await, "create table t (a int)").await;
    let early = cluster.node_db(0, EMPTY).await;
    // Ahead of the transaction, whose end its slot would wait for.
    make_another(&cluster).await;
    run(&early, "set idle_in_transaction_session_timeout = 0; begin isolation level repeatable read; select 1; create temp table x ()").await;
    until_another_sleeps(&cluster).await;
    assert!(is_awake(&cluster).await, "somebody is in it");
    // Not even by a name that passes for the proxy's own.
    run(&early, "set application_name = 'synapsedb control'").await;
    until_kept_awake(&cluster).await;
    assert!(is_awake(&cluster).await, "a transaction with DDL is open");
    assert_eq!(ask(&cluster.node_db(0, EMPTY).await, MARK).await, "0");
    run(
        &early,
        "create table u (a int); insert into u values (1); commit",
    )
    .await;
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_proxy_leaves_a_mark_that_keeps_definitions_out_until_the_next_one_reads() {
    let mut cluster = asleep().await;
    cluster.kill_proxy();
    let writer = cluster.node_db(0, EMPTY).await;
    assert_eq!(ask(&writer, MARK).await, "1");
    run(&writer, "set statement_timeout = '2s'").await;
    let refused = writer.batch_execute("create table early (a int)").await;
    let refused = refused.expect_err("nobody would carry it");
    assert_eq!(refused.code(), Some(&SqlState::QUERY_CANCELED));
    run(&writer, "set statement_timeout = 0").await;
    let mut made = straight(writer, "create table u (a int); insert into u values (1)");
    assert!(still_waits(&mut made).await, "no proxy is there");
    cluster.start_proxy().await;
    let made = tokio::time::timeout(PATIENCE, made).await.expect("goes on");
    made.expect("no panic").1.expect("committed");
    run(&cluster.client().await, "insert into t values (1)").await;
    cluster.assert_nodes_equal().await;
    assert_eq!(
        ask(&cluster.node_db(1, EMPTY).await, "select count(*) from u").await,
        "1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_proxy_a_definition_is_refused_after_a_while_with_the_reason() {
    let mut cluster = asleep().await;
    cluster.kill_proxy();
    let writer = cluster.node_db(0, EMPTY).await;
    let refused = writer.batch_execute("create table early (a int)").await;
    let refused = refused.expect_err("nobody would carry it");
    let refused = refused.as_db_error().expect("the server's error");
    assert_eq!(refused.code().code(), "57P03");
    assert!(refused.hint().is_some_and(|hint| hint.contains("proxy")));
    // Where nothing sleeps it waits for its majority, as ever.
    let other = cluster.node(0).await;
    let mut made = straight(other, "create table u (a int)");
    assert!(still_waits(&mut made).await);
    cluster.start_proxy().await;
    made.await.expect("no panic").1.expect("committed");
    cluster.assert_nodes_equal().await;
}

fn crash_writer(cluster: &mut TestCluster) {
    tokio::task::block_in_place(|| {
        cluster.server(0).kill9();
        cluster.server(0).start().expect("starts again");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_crashes_remembers_that_a_database_sleeps() {
    let mut cluster = asleep().await;
    cluster.kill_proxy();
    crash_writer(&mut cluster);
    assert_eq!(ask(&cluster.node_db(0, EMPTY).await, MARK).await, "1");
    cluster.start_proxy().await;
    until_asleep(&cluster).await;
    // A backend that crashes takes all others with it, and the server recovers by itself.
    let doomed = cluster.node(0).await;
    let victim = ask(&doomed, "select pg_backend_pid()").await;
    signal(&victim, "-KILL");
    let port = cluster.node_port(0);
    let back = || async { connect(port, USER, PASSWORD, EMPTY).await.ok() };
    until("its connections are closed", || async {
        doomed.is_closed()
    })
    .await;
    until("the writer is back", || async { back().await.is_some() }).await;
    // At once, perhaps before the proxy is back.
    let writer = cluster.node_db(0, EMPTY).await;
    run(&writer, "create table u (a int); insert into u values (1)").await;
    run(&cluster.client().await, "insert into t values (1)").await;
    cluster.assert_nodes_equal().await;
    assert_eq!(
        ask(&cluster.node_db(2, EMPTY).await, "select count(*) from u").await,
        "1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_database_can_be_dropped_altered_and_joined_by_others() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(&client, "create table t (a int); insert into t values (0)").await;
    run(&client, "create database idle").await;
    let asleep = "\"asleep\":[\"idle\",\"postgres\"]";
    until("both sleep", || async {
        let body = http::get(cluster.http_port(), "/status").await.1;
        body.contains(asleep) || body.contains("\"asleep\":[\"postgres\",\"idle\"]")
    })
    .await;
    run(
        &client,
        "alter database idle set work_mem = '5MB'; comment on database idle is 'x'",
    )
    .await;
    run(&client, "create database another").await;
    let another = cluster.client_as(USER, PASSWORD, "another").await;
    run(&another, "create table t (a int); insert into t values (1)").await;
    cluster.assert_nodes_equal().await;
    run(&client, "drop database idle").await;
    run(&client, "insert into t values (1)").await;
    cluster.assert_nodes_equal().await;
    let slots = "select count(*) from pg_replication_slots where database = 'idle'";
    assert_eq!(ask(&cluster.node(0).await, slots).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_of_a_sleeping_database_moves_and_a_follower_that_was_away_joins() {
    let mut cluster = asleep().await;
    let client = cluster.client().await;
    tokio::task::block_in_place(|| cluster.server(2).kill9());
    run(&client, "insert into t select generate_series(1, 1000)").await;
    tokio::task::block_in_place(|| cluster.server(2).start()).expect("starts again");
    cluster.assert_nodes_equal().await;
    run(
        &client,
        "checkpoint; insert into t select generate_series(1001, 2000)",
    )
    .await;
    let writer = cluster.node(0).await;
    let end = ask(&writer, "select pg_current_wal_insert_lsn()").await;
    let moved = format!(
        "select bool_and(confirmed_flush_lsn >= '{end}' and restart_lsn > '{end}'::pg_lsn - 64 * 1024::numeric)
           from pg_replication_slots where database = 'postgres'"
    );
    assert_eq!(ask(&writer, &moved).await, "f");
    until("the slot has moved", || async {
        ask(&writer, &moved).await == "t"
    })
    .await;
    until_asleep(&cluster).await;
    let guest = cluster.client_as(USER, PASSWORD, EMPTY).await;
    run(&guest, "create table u (a int); insert into u values (1)").await;
    cluster.assert_nodes_equal().await;
    assert_eq!(
        ask(&cluster.node_db(2, EMPTY).await, "select count(*) from u").await,
        "1"
    );
}
