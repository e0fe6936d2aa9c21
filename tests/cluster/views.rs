//! Materialized views hold the same rows on every node, whatever their queries and whoever writes meanwhile.

use crate::support::cluster::TestCluster;
use crate::tools::{Hold, ask, in_the_background, rows, run, still_waits, until};
use synapsedb::cli::demo::server::DATABASE;

async fn compare(cluster: &TestCluster, view: &str, expected: &str) {
    cluster.assert_nodes_equal().await;
    for index in 0..3 {
        let node = cluster.node(index).await;
        assert_eq!(ask(&node, view).await, expected, "node {}", index + 1);
    }
}

/// What a commit before it wrote is not seen by a REFRESH while that commit waits for its majority.
#[tokio::test(flavor = "multi_thread")]
async fn rule_20_a_refresh_beside_a_commit_that_waits_gives_the_writers_rows() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let make = "create table t (a int primary key); insert into t values (1);
        create materialized view m as select a from t";
    run(&client, make).await;
    cluster.assert_nodes_equal().await;
    let holds = [
        Hold::table(&cluster, 1, DATABASE, "t").await,
        Hold::table(&cluster, 2, DATABASE, "t").await,
    ];
    let writer = cluster.node(0).await;
    let in_wait = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    let mut waiting = Vec::new();
    for (number, sql) in ["insert into t values (2)", "refresh materialized view m"]
        .into_iter()
        .enumerate()
    {
        waiting.push(in_the_background(&cluster, sql).await);
        let expected = (number + 1).to_string();
        until("it waits for its majority", || async {
            ask(&writer, in_wait).await == expected
        })
        .await;
    }
    for task in &mut waiting {
        assert!(still_waits(task).await, "acknowledged without a majority");
    }
    for hold in holds {
        hold.release().await;
    }
    for task in waiting {
        task.await.expect("no panic").expect("acknowledged");
    }
    compare(&cluster, "select count(*), max(a) from m", "1|1").await;
    run(&client, "refresh materialized view m").await;
    compare(&cluster, "select count(*), max(a) from m", "2|2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_20_materialized_views_over_volatile_queries_are_alike_everywhere() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let make = "create role owner; grant create, usage on schema public to owner; set role owner;
        create domain small as int check (value < 100000);
        create type pair as (a small, b text);
        create function same(a uuid) returns uuid immutable language plpgsql as 'begin return a; end';
        create materialized view m as select g as id, gen_random_uuid() as u, random() as r, clock_timestamp() as at,
            (g, null)::pair as p, array[null, 'NULL', E'a\\b\"{},', ''] as list, 'a''b' || chr(10) as quoted, null::int as none
          from generate_series(1, 20000) g with data;
        create unique index on m (id); create index on m (same(u));
        refresh materialized view m;
        reset role";
    for sql in make.split_inclusive(";\n") {
        run(&client, sql).await;
    }
    let count = "select count(*), count(distinct u), count(r), sum((p).a) from m";
    compare(&cluster, count, "20000|20000|20000|200010000").await;
    run(&client, "refresh materialized view concurrently m").await;
    compare(&cluster, count, "20000|20000|20000|200010000").await;
    let empty = "create materialized view e as select random() as r where false; refresh materialized view e";
    run(&client, empty).await;
    compare(&cluster, "select count(*) from e", "0").await;
    let unfilled = "create materialized view n as select random() as r with no data;
        refresh materialized view m with no data";
    run(&client, unfilled).await;
    let state = "select string_agg(concat_ws('', relname, relispopulated, relkind, relhasrules), ' ' order by relname)
        from pg_class where relname in ('m', 'e', 'n')";
    compare(&cluster, state, "etmt mfmt nfmt").await;
    let inside = "do $$ begin create materialized view d as select random() as r;
        execute 'refresh materialized view n'; refresh materialized view d; end $$;
        begin; refresh materialized view m; savepoint s; refresh materialized view m; rollback to s;
        insert into keep values (random()); commit";
    run(&client, "create table keep (r float8)").await;
    run(&client, inside).await;
    compare(&cluster, count, "20000|20000|20000|200010000").await;
    let drop =
        "drop materialized view m, e, n, d; drop function same; drop type pair; drop domain small";
    run(&client, drop).await;
    cluster.assert_nodes_equal().await;
}

/// Casts of users, columns called like what the proxy writes, and values that look like nothing.
#[tokio::test(flavor = "multi_thread")]
async fn rule_20_odd_materialized_views_are_alike_everywhere() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let make = "create materialized view cast_to as select 1 as a, 'x'::text as b;
        create function tocast(text) returns cast_to language sql immutable as $$ select row(666, 'evil')::cast_to $$;
        create cast (text as cast_to) with function tocast(text);
        create function fromcast(cast_to) returns text language sql immutable as $$ select 'evil' $$;
        create cast (cast_to as text) with function fromcast(cast_to);
        create type ct as (a int, b text);
        create materialized view same_name as select row(g, 'zz')::ct as m, g as r from generate_series(1, 3) g;
        create materialized view plain_name as select g as m from generate_series(1, 3) g;
        create materialized view \"M-r \"\"x\" as select ';' as \"r\"\"\", null::text as b;
        create materialized view nothing as select from generate_series(1, 2);
        refresh materialized view cast_to; refresh materialized view same_name";
    for sql in make.split_inclusive(";\n") {
        run(&client, sql).await;
    }
    compare(&cluster, "select * from cast_to", "1|x").await;
    compare(
        &cluster,
        "select count(m), max((m).a), max((m).b) from same_name",
        "3|3|zz",
    )
    .await;
    compare(&cluster, "select sum(m) from plain_name", "6").await;
    compare(&cluster, "select count(*) from nothing", "2").await;
}

/// Reading a view may run code of its owner's, who must gain nothing by it, on no node and whoever refreshes.
#[tokio::test(flavor = "multi_thread")]
async fn rule_11_refreshing_a_view_lends_its_owner_no_rights() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(
        &client,
        "create role mallory login password 'm'; create schema mal authorization mallory",
    )
    .await;
    let mallory = cluster.client_as("mallory", "m", DATABASE).await;
    let trap = "create function mal.evil() returns void language plpgsql as
            $$ begin execute 'alter role mallory superuser'; end $$;
        create function mal.spy(i int) returns bool language plpgsql immutable as $$ begin
          if (select rolsuper from pg_roles where rolname = current_user) then perform mal.evil(); end if;
          return true; end $$;
        create table mal.q (i int);
        create function mal.late() returns trigger language plpgsql as $$ begin
          if current_user <> 'mallory' then perform mal.evil(); end if; return null; end $$;
        create constraint trigger d after insert on mal.q deferrable initially deferred for each row execute function mal.late();
        create function mal.held() returns int language plpgsql as $$ begin
          if current_user <> 'mallory' then perform mal.evil(); end if; return 1; end $$;
        create function mal.waits() returns bool language plpgsql as $$ begin
          begin insert into mal.q values (1); exception when others then null; end;
          begin execute 'declare cc cursor with hold for select mal.held()'; exception when others then null; end;
          return true; end $$;
        create function mal.hides(i int) returns bool language plpgsql immutable as $$ begin
          if session_user <> 'mallory' then perform mal.waits(); end if; return true; end $$;
        create materialized view mal.mv as select g as id, random() as r from generate_series(1, 10) g;
        create index on mal.mv (id) where mal.hides(1); create index on mal.mv (id) where mal.spy(1); create index on mal.mv ((mal.spy(2)));
        create statistics mal.st on (mal.spy(3)), id from mal.mv;
        refresh materialized view mal.mv";
    run(&mallory, trap).await;
    run(&client, "refresh materialized view mal.mv").await;
    run(&client, "create table marker ()").await;
    // The comparison would read the view as a superuser, which is what the trap waits for.
    let gains = "select (select rolsuper from pg_roles where rolname = 'mallory'),
        (select relhasindex::text from pg_class where relname = 'mv')";
    for index in 0..3 {
        let node = cluster.node(index).await;
        until("the node has it all", || async {
            ask(&node, "select to_regclass('marker') is not null").await == "t"
        })
        .await;
        assert_eq!(rows(&node, gains).await, ["f|true"], "node {}", index + 1);
    }
}
