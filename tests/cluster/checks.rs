//! Checks that say something else on a follower than on the writer: whose row it is, what time it is, NULLs that a
//! domain let in. The writer's word holds everywhere, and no commit waits for a check for good.

use crate::support::cluster::TestCluster;
use crate::tools::{Hold, ask, in_the_background, run, until_status};
use synapsedb::cli::demo::server::DATABASE;

/// All that was written is on every node, whose checks are in force and as they were made.
async fn all_is_well(cluster: &TestCluster) {
    cluster.assert_nodes_equal().await;
    let state = "select (select count(*) from pg_constraint where contype not in ('c', 'f', 'n', 'p', 'u', 't', 'x')),
        (select sum(relchecks) from pg_class), (select count(*) from pg_type where typnotnull)";
    let expected = ask(&cluster.node(0).await, state).await;
    assert!(expected.starts_with("0|"), "{expected}");
    for index in 1..3 {
        assert_eq!(ask(&cluster.node(index).await, state).await, expected);
        until_status(cluster, index, "in_sync").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_13_a_check_that_depends_on_who_writes_stops_no_follower() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let make = "create function outraged() returns bool language plpgsql as $$ begin
          if session_user = 'synapsedb_applier' then raise 'not you'; end if; return true; end $$;
        create domain mine as text check (value = session_user); create domain plain as text check (value = session_user);
        create type pair as (a int, b mine);
        create table who (id int primary key, w plain, note text, constraint own check (w = session_user), check (id > 0));
        create table raises (id int primary key, check (outraged()));
        create table nested (id int primary key, v mine[], p pair);
        create table parts (id int, v mine) partition by range (id);
        create table part partition of parts for values from (1) to (100)";
    run(&client, make).await;
    let write = "insert into who select g, session_user from generate_series(1, 50) g;
        update who set note = 'x' where id < 20; delete from who where id = 20;
        insert into raises values (1), (2); delete from raises where id = 2;
        insert into nested values (1, array[session_user], row(1, session_user)); update nested set id = 2;
        insert into parts select g, session_user from generate_series(1, 50) g; update parts set id = 60 where id = 1;
        begin; insert into who values (100, session_user); alter table who add more int check (more > 1);
          insert into who values (101, session_user, null, 2); alter table who drop constraint own;
          insert into who values (102, session_user); alter domain plain add check (length(value) > 1);
          insert into nested values (3, array[session_user]); create table late (id int check (id > 0), v mine);
          insert into late values (1, session_user); commit";
    for sql in write.split(";\n") {
        run(&client, sql).await;
    }
    all_is_well(&cluster).await;
    for index in 0..3 {
        let node = cluster.node(index).await;
        let refused = node.batch_execute("insert into who values (0)").await;
        let code = refused.expect_err("the check is in force").code().cloned();
        assert_eq!(code.map(|c| c.code().to_owned()).as_deref(), Some("23514"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_13_values_that_their_domain_would_not_take_again_stop_no_follower() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let make = "create domain strict as int not null; create domain grown as int;
        create table a (id int primary key); create table b (id int primary key, v strict, g grown);
        insert into a values (1), (2), (3); insert into b values (1, 1, 1), (2, 2, 20)";
    run(&client, make).await;
    let write = "create table made as select a.id, b.v, b.g from a left join b using (id);
        create materialized view seen as select a.id, b.v from a left join b using (id);
        refresh materialized view seen;
        create table taken (id int primary key, v strict); insert into taken select id, v from made;
        update taken set id = 30 where id = 3;
        alter domain grown add constraint k check (value > 10) not valid; update b set v = 7";
    for sql in write.split(";\n") {
        run(&client, sql).await;
    }
    all_is_well(&cluster).await;
    for index in 0..3 {
        let node = cluster.node(index).await;
        let nulls = "select (select count(*) from made where v is null),
            (select count(*) from seen where v is null), (select count(*) from taken where v is null)";
        assert_eq!(ask(&node, nulls).await, "1|1|1", "node {}", index + 1);
    }
}

/// The row's time is over before any follower gets to it.
#[tokio::test(flavor = "multi_thread")]
async fn rule_13_a_check_on_the_time_stops_no_follower_that_is_late() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(
        &client,
        "create table t (id int primary key, until timestamptz check (until > clock_timestamp()))",
    )
    .await;
    cluster.assert_nodes_equal().await;
    let holds = [
        Hold::table(&cluster, 1, DATABASE, "t").await,
        Hold::table(&cluster, 2, DATABASE, "t").await,
    ];
    let write = "insert into t values (1, clock_timestamp() + '1 second')";
    let waiting = in_the_background(&cluster, write).await;
    let over = "select pg_sleep_until(clock_timestamp() + '1 second')";
    run(&client, over).await;
    for hold in holds {
        hold.release().await;
    }
    waiting.await.expect("no panic").expect("acknowledged");
    all_is_well(&cluster).await;
}

/// Rows are counted on the server, and foreign code could count too: what was found before it runs is checked before.
#[tokio::test(flavor = "multi_thread")]
async fn rule_14_a_missing_row_is_noticed_though_foreign_code_runs_behind_it() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let make = "create table t (id int primary key, v int); insert into t select g, g from generate_series(1, 10) g;
        create function counts(int) returns int language plpgsql immutable as $$ begin
          if session_user = 'synapsedb_applier' then perform set_config('synapsedb.found', '1', false); end if;
          return $1; end $$;
        create table coded (id int primary key, check (counts(id) > 0))";
    run(&client, make).await;
    let plain = "begin; update t set v = 1 where id = 1; insert into coded values (1); update t set v = 2 where id = 2;
        delete from t where id = 3; insert into coded values (2); commit";
    run(&client, plain).await;
    cluster.assert_nodes_equal().await;
    let third = cluster.node(2).await;
    let missing = "set synchronous_commit = local; delete from t where id = 5";
    run(&third, missing).await;
    let both = "begin; update t set v = 50 where id = 5; insert into coded values (3); commit";
    run(&client, both).await;
    until_status(&cluster, 2, "fenced").await;
    let log = cluster.proxy_log_text();
    assert!(
        log.contains("0 rows were changed where 1 should have been"),
        "{log}"
    );
}
