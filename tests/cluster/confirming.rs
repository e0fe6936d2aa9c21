//! REPLICATION's rules on confirming, 1 to 6, each on real servers.

use std::time::Duration;

use crate::support::cluster::TestCluster;
use crate::tools::{
    Hold, PATIENCE, ask, in_the_background, rows, run, still_waits, until, until_status,
};
use synapsedb::cli::demo::server::DATABASE;

/// Both followers' appliers held at table `t`.
async fn hold_both(cluster: &TestCluster) -> (Hold, Hold) {
    (
        Hold::table(cluster, 1, DATABASE, "t").await,
        Hold::table(cluster, 2, DATABASE, "t").await,
    )
}

async fn with_table() -> TestCluster {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(
        &client,
        "create table t (a int); create table u (a int); insert into t values (0)",
    )
    .await;
    cluster.assert_nodes_equal().await;
    cluster
}

const COUNT: &str = "select count(*) from t";

#[tokio::test(flavor = "multi_thread")]
async fn rule_1_a_commit_waits_for_a_majority_unseen_and_flush_waits_for_everybody() {
    let cluster = with_table().await;
    let writer = cluster.node(0).await;
    let (one, two) = hold_both(&cluster).await;
    let mut commit = in_the_background(&cluster, "insert into t values (1)").await;
    assert!(still_waits(&mut commit).await, "no majority has it");
    // In a transaction, so that it is the writer that answers: the followers' copies are locked.
    let other = cluster.client().await;
    run(&other, "begin").await;
    assert_eq!(ask(&other, COUNT).await, "1", "seen too early");
    run(&other, "commit").await;
    assert_eq!(ask(&writer, COUNT).await, "1", "seen too early");
    // Who asks for nothing waits for nobody, as the user chose.
    let careless = in_the_background(
        &cluster,
        "set synchronous_commit = local; insert into u values (1)",
    )
    .await;
    let ended = tokio::time::timeout(PATIENCE, careless).await;
    ended
        .expect("local waits for nobody")
        .expect("no panic")
        .expect("committed");

    let before = ask(&writer, "select pg_current_wal_insert_lsn()").await;
    one.release().await;
    commit.await.expect("no panic").expect("a majority has it");
    assert_eq!(ask(&writer, COUNT).await, "2");
    // One follower lacks it: written, not flushed, and the slot keeps it.
    let positions = format!(
        "select (select bool_and(write_lsn >= '{before}') from pg_stat_replication where application_name = 'synapsedb'),
                (select bool_or(flush_lsn >= '{before}' or replay_lsn >= '{before}') from pg_stat_replication where application_name = 'synapsedb'),
                (select bool_or(confirmed_flush_lsn >= '{before}') from pg_replication_slots)"
    );
    until("the majority's place is reported", || async {
        rows(&writer, &positions).await == ["t|f|f"]
    })
    .await;
    // Who asks for everybody waits for everybody.
    let mut careful = in_the_background(
        &cluster,
        "set synchronous_commit = on; insert into u values (2)",
    )
    .await;
    assert!(still_waits(&mut careful).await, "one follower lacks it");
    two.release().await;
    careful.await.expect("no panic").expect("everybody has it");
    until("the flush follows", || async {
        rows(&writer, &positions).await == ["t|t|t"]
    })
    .await;
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_1_a_node_that_is_down_counts_in_the_total_only() {
    let mut cluster = with_table().await;
    let client = cluster.client().await;
    tokio::task::block_in_place(|| cluster.server(2).kill9());
    run(&client, "insert into t values (1)").await;
    until_status(&cluster, 2, "down").await;
    let hold = Hold::table(&cluster, 1, DATABASE, "t").await;
    let mut commit = in_the_background(&cluster, "insert into t values (2)").await;
    assert!(
        still_waits(&mut commit).await,
        "one of three is no majority"
    );
    hold.release().await;
    commit
        .await
        .expect("no panic")
        .expect("two of three are one");
    tokio::task::block_in_place(|| cluster.server(2).start()).expect("starts again");
    cluster.assert_nodes_equal().await;
    until_status(&cluster, 2, "in_sync").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_2_several_databases_wait_each_for_its_own_and_an_idle_one_holds_up_nobody() {
    let cluster = with_table().await;
    let client = cluster.client().await;
    for sql in ["create database second", "create database \"Third one\""] {
        run(&client, sql).await;
    }
    let second = cluster
        .client_as("synapsedb", "changeme123", "second")
        .await;
    run(&second, "create table t (a int); insert into t values (1)").await;
    for n in 0..50 {
        run(&client, &format!("insert into t values ({n})")).await;
        run(&second, &format!("insert into t values ({n})")).await;
    }
    let holds = [
        Hold::table(&cluster, 1, "second", "t").await,
        Hold::table(&cluster, 2, "second", "t").await,
    ];
    let mut commit =
        tokio::spawn(async move { second.batch_execute("insert into t values (-1)").await });
    assert!(still_waits(&mut commit).await, "its own followers lack it");
    // Waiting goes by the log's place alone, so what comes later waits behind it.
    let mut behind = in_the_background(&cluster, "insert into t values (-1)").await;
    assert!(
        still_waits(&mut behind).await,
        "confirmed past a unit without a majority"
    );
    for hold in holds {
        hold.release().await;
    }
    commit.await.expect("no panic").expect("goes on");
    behind.await.expect("no panic").expect("goes on");
    cluster.assert_nodes_equal().await;

    // A database that is gone holds nobody up, and its followers are not counted any more.
    run(&client, "drop database \"Third one\"").await;
    run(&client, "insert into t values (-2)").await;
    until_status(&cluster, 1, "in_sync").await;
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_3_a_large_transaction_stops_the_others_only_for_a_moment() {
    let cluster = with_table().await;
    let client = cluster.client().await;
    run(&client, "create table large (id int primary key, v text)").await;
    // Larger than the writer's memory for decoding, so it is streamed while it runs; parts are undone.
    let large = cluster.client().await;
    let work = tokio::spawn(async move {
        run(
            &large,
            "begin; insert into large select g, md5(g::text) from generate_series(1, 200000) g;
             savepoint a; insert into large select g, 'undone' from generate_series(200001, 260000) g; rollback to a;
             savepoint b; update large set v = v || '+' where id % 10 = 0; release b",
        )
        .await;
        run(&large, "commit").await;
    });
    let undone = cluster.client().await;
    let in_vain = tokio::spawn(async move {
        run(
            &undone,
            "begin; create table never (a int); insert into never select generate_series(1, 150000); rollback",
        )
        .await;
    });
    let mut commits = 0;
    while !work.is_finished() {
        let write = run(&client, "insert into t values (7)");
        tokio::time::timeout(PATIENCE, write)
            .await
            .expect("small commits go on");
        commits += 1;
    }
    work.await.expect("the large transaction is committed");
    in_vain.await.expect("the other is rolled back");
    assert!(commits > 0);
    run(&client, "insert into t values (8)").await;
    cluster.assert_nodes_equal().await;
    assert_eq!(ask(&client, "select count(*) from large").await, "200000");
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_4_what_an_open_transaction_wrote_is_not_waited_for_in_vain() {
    let cluster = with_table().await;
    let client = cluster.client().await;
    // Its answers are held until the majority is known to have what the writer's log holds, and nobody else commits.
    for sql in [
        "begin",
        "set local client_min_messages = log",
        "create table muted (a int primary key, b text)",
        "insert into muted select n, 'x' from generate_series(1, 3) n",
        "commit",
    ] {
        run(&client, sql).await;
    }
    assert_eq!(ask(&client, "select count(*) from muted").await, "3");
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_4_a_wait_broken_off_on_the_node_is_not_passed_off_as_a_commit() {
    let cluster = with_table().await;
    let writer = cluster.node(0).await;
    let waiting = "select pid from pg_stat_activity where wait_event = 'SyncRep'";
    for (at, way) in ["pg_cancel_backend", "pg_terminate_backend"]
        .iter()
        .enumerate()
    {
        let (one, two) = hold_both(&cluster).await;
        let mut commit = in_the_background(
            &cluster,
            &format!(
                "set client_min_messages = error; insert into t values ({})",
                at + 1
            ),
        )
        .await;
        until("the commit waits", || async {
            rows(&writer, waiting).await.len() == 1
        })
        .await;
        ask(&writer, &format!("select {way}(pid) from ({waiting}) w")).await;
        // The node shows the row now; the client is told of a commit only when a majority has it.
        until("the wait is over", || async {
            rows(&writer, waiting).await.is_empty()
        })
        .await;
        // Nor is it shown to others (to the test, which asks the node itself, it is).
        let mut reading = in_the_background(&cluster, COUNT).await;
        assert!(
            still_waits(&mut reading).await,
            "{way}: read without a majority"
        );
        if let Ok(outcome) = tokio::time::timeout(Duration::from_secs(1), &mut commit).await {
            let error = outcome.expect("no panic").expect_err("no majority has it");
            let code = error.code().map_or("", |code| code.code()).to_owned();
            let unknown = matches!(code.as_str(), "08007" | "57P01" | "");
            assert!(unknown, "{way}: {error:?}");
            one.release().await;
        } else {
            one.release().await;
            let outcome = commit.await.expect("no panic");
            assert!(outcome.is_ok(), "{way}: {outcome:?}");
        }
        reading.await.expect("no panic").expect("read");
        two.release().await;
        cluster.assert_nodes_equal().await;
        let count = ask(&writer, COUNT).await;
        assert_eq!(count, (at + 2).to_string());
    }
    // A client's own cancel is carried out where it can do no harm: not while the commit waits.
    let (one, two) = hold_both(&cluster).await;
    let client = cluster.client().await;
    let token = client.cancel_token();
    let mut commit =
        tokio::spawn(async move { client.batch_execute("insert into t values (9)").await });
    until("the commit waits", || async {
        rows(&writer, waiting).await.len() == 1
    })
    .await;
    token
        .cancel_query(tokio_postgres::NoTls)
        .await
        .expect("taken");
    assert!(still_waits(&mut commit).await, "still no majority");
    assert_eq!(rows(&writer, waiting).await.len(), 1);
    one.release().await;
    commit
        .await
        .expect("no panic")
        .expect("committed after all");
    two.release().await;
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_6_the_slot_follows_closely_with_and_without_writes() {
    let cluster = with_table().await;
    let client = cluster.client().await;
    let writer = cluster.node(0).await;
    for n in 0..20 {
        run(&client, &format!("insert into t values ({n})")).await;
    }
    // WAL that no stream carries: the slots must not hold it either.
    run(
        &writer,
        "create temp table x (a int); select pg_switch_wal()",
    )
    .await;
    let before = ask(&writer, "select pg_current_wal_insert_lsn()").await;
    let behind =
        format!("select count(*) from pg_replication_slots where confirmed_flush_lsn < '{before}'");
    until("every slot is past it", || async {
        ask(&writer, &behind).await == "0"
    })
    .await;
    cluster.assert_nodes_equal().await;
}
