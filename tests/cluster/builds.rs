//! Indexes that take long: begun on every node at once, and nothing left of those that fail on the writer.

use std::time::Duration;

use tokio_postgres::Client;

use crate::support::cluster::TestCluster;
use crate::tools::{ask, in_the_background, run, until};

/// A table whose index takes the writer some seconds.
async fn slow_table(cluster: &TestCluster, rows: u32) -> Client {
    let client = cluster.client().await;
    let make = format!(
        "create function slow(a int) returns int language plpgsql immutable as
           'begin perform pg_sleep(0.02); return a; end';
         create table t (a int, b int); insert into t select g, g from generate_series(1, {rows}) g"
    );
    run(&client, &make).await;
    cluster.assert_nodes_equal().await;
    client
}

const AT_WORK: &str = "select count(*) from pg_stat_progress_create_index";

async fn all_build(cluster: &TestCluster) {
    for index in 0..3 {
        let node = cluster.node(index).await;
        until("the node builds", || async {
            ask(&node, AT_WORK).await != "0"
        })
        .await;
    }
}

async fn nothing_is_owed(cluster: &TestCluster) {
    for index in 0..3 {
        let node = cluster.node(index).await;
        until("nothing is owed", || async {
            ask(&node, "select count(*) from synapsedb.pending_indexes").await == "0"
        })
        .await;
    }
}

fn built_early(cluster: &TestCluster) -> usize {
    let log = cluster.proxy_log_text();
    log.matches("an index begun early is the writer's").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_23_an_index_is_begun_on_all_nodes_at_once() {
    let cluster = TestCluster::start().await;
    let client = slow_table(&cluster, 250).await;
    let plain = in_the_background(
        &cluster,
        "create index \"Slow\" on t (slow(a)) where b > 0;",
    )
    .await;
    all_build(&cluster).await;
    assert_eq!(
        ask(&cluster.node(0).await, AT_WORK).await,
        "1",
        "the writer is at it too"
    );
    plain.await.expect("no panic").expect("built");
    let concurrent = "create unique index concurrently other on t (slow(b))";
    let concurrent = in_the_background(&cluster, concurrent).await;
    all_build(&cluster).await;
    run(
        &client,
        "insert into t values (-1, -1); update t set b = b where a < 5",
    )
    .await;
    concurrent.await.expect("no panic").expect("built");
    nothing_is_owed(&cluster).await;
    cluster.assert_nodes_equal().await;
    assert_eq!(built_early(&cluster), 4, "{}", cluster.proxy_log_text());
    for index in 0..3 {
        let names = "select string_agg(indexrelid::regclass::text, ' ' order by 1) from pg_index
            where indrelid = 't'::regclass and indisvalid";
        assert_eq!(
            ask(&cluster.node(index).await, names).await,
            "\"Slow\" other"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_23_nothing_is_left_of_a_build_that_fails_on_the_writer() {
    let cluster = TestCluster::start().await;
    let client = slow_table(&cluster, 300).await;
    let cancel = "select count(pg_cancel_backend(pid)) from pg_stat_progress_create_index";
    let writer = cluster.node(0).await;
    let failing = in_the_background(&cluster, "create index slow_i on t (slow(a))").await;
    all_build(&cluster).await;
    run(&writer, cancel).await;
    failing.await.expect("no panic").expect_err("cancelled");
    nothing_is_owed(&cluster).await;
    for index in 0..3 {
        let node = cluster.node(index).await;
        assert_eq!(
            ask(&node, "select to_regclass('slow_i') is null").await,
            "t"
        );
    }
    // Other DDL, and rows that no such index would take, come before the writer is done with it.
    let failing = in_the_background(
        &cluster,
        "create unique index concurrently slow_i on t (slow(a))",
    )
    .await;
    all_build(&cluster).await;
    let others = async {
        run(&client, "insert into t values (1, 1), (1, 1)").await;
        run(&client, "create table while_it_is_built (a int)").await;
        run(&client, "insert into while_it_is_built values (1)").await;
    };
    tokio::time::timeout(Duration::from_secs(20), others)
        .await
        .expect("nobody waits for a build");
    failing.await.expect("no panic").expect_err("not unique");
    let left = "comment on index slow_i is 'left'; alter index slow_i rename to left_i;
        alter index left_i rename to slow_i; alter index slow_i set (fillfactor = 80)";
    run(&client, left).await;
    let again = "create unique index concurrently if not exists slow_i on t (slow(a))";
    run(&client, again).await;
    run(&client, "drop index slow_i; delete from t where a = 1").await;
    run(&client, "create unique index slow_i on t (slow(a))").await;
    nothing_is_owed(&cluster).await;
    cluster.assert_nodes_equal().await;
}

/// What is begun early is never taken for what was there before, nor the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn rule_23_an_index_of_the_same_name_stays_what_it_is() {
    let cluster = TestCluster::start().await;
    let client = slow_table(&cluster, 150).await;
    let steps = [
        "create index ti on t (b); alter table t add constraint t_key unique (a)",
        "begin",
        "drop index ti",
        "create index ti on t (slow(a))",
        "rollback",
        "begin",
        "alter table t drop constraint t_key",
        "create unique index t_key on t (slow(a))",
        "rollback",
        "begin",
        "alter index ti rename to ti_old",
        "create index ti on t (slow(a))",
        "commit",
        "create table other (a int, b int); insert into other select g, g from generate_series(1, 150) g",
        "begin",
        "alter table t rename to t_old",
        "alter table other rename to t",
        "create index swapped on t (slow(a))",
        "commit",
    ];
    let all = async {
        for sql in steps {
            run(&client, sql).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(50), all)
        .await
        .expect("no step waits for ever");
    nothing_is_owed(&cluster).await;
    cluster.assert_nodes_equal().await;
}

/// A failed CREATE INDEX CONCURRENTLY leaves a name that means another index on the followers.
#[tokio::test(flavor = "multi_thread")]
async fn rule_23_dropping_what_a_failed_build_left_drops_nothing_else() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let make = "create schema s1; create schema s2; create table s2.t (id int primary key, a int);
        create index i on s2.t (a); create table s1.t (id int primary key, a int); insert into s1.t values (1, 1), (2, 1);
        set search_path = s1, s2";
    run(&client, make).await;
    let failed = client
        .batch_execute("create unique index concurrently i on t (a)")
        .await;
    failed.expect_err("not unique");
    run(&client, "alter table i rename to j").await;
    run(&client, "alter table j rename to i").await;
    run(&client, "drop index i").await;
    let failed = client
        .batch_execute("create unique index concurrently i on t (a)")
        .await;
    failed.expect_err("not unique");
    run(&client, "drop index concurrently i").await;
    run(&client, "alter index s2.i rename to k").await;
    cluster.assert_nodes_equal().await;
}

/// An index that the followers can't build is said, and DDL behind it does not wait in silence.
#[tokio::test(flavor = "multi_thread")]
async fn rule_23_an_index_that_no_follower_can_build_is_shown() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let make = "create table t (id int primary key, a int); insert into t values (1, 1);
        create function f(i int) returns int language plpgsql immutable as
          'begin return i * current_setting(''app.factor'')::int; end'";
    run(&client, make).await;
    run(&client, "set app.factor = '3'; create index fi on t (f(a))").await;
    let waiting = in_the_background(&cluster, "create table behind (a int)").await;
    until("the log says what is wrong", || async {
        let log = cluster.proxy_log_text();
        log.contains("no follower can apply a unit") && log.contains("app.factor")
    })
    .await;
    waiting.abort();
}
