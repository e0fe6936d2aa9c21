//! Roles without rights that try to reach further on a follower than on the writer.

use crate::support::cluster::TestCluster;
use crate::tools::{ask, rows, run, until};
use synapsedb::cli::demo::server::DATABASE;

async fn with_mallory(cluster: &TestCluster) -> tokio_postgres::Client {
    let client = cluster.client().await;
    let make = "create role mallory login password 'm'; create schema mal authorization mallory";
    run(&client, make).await;
    cluster.client_as("mallory", "m", DATABASE).await
}

/// An index is built beside the stream by a superuser, under the search path of whoever made it.
#[tokio::test(flavor = "multi_thread")]
async fn rule_11_operators_in_the_search_path_of_an_index_build_are_never_run() {
    let cluster = TestCluster::start().await;
    let mallory = with_mallory(&cluster).await;
    let trap = "create table mal.ix (a int);
        create function mal.eq(a bigint, b bigint) returns bool language plpgsql as $$ begin
          if current_user <> 'mallory' then execute 'alter role mallory superuser'; end if;
          return a operator(pg_catalog.=) b; end $$;
        create operator mal.= (leftarg = bigint, rightarg = bigint, procedure = mal.eq)";
    run(&mallory, trap).await;
    run(&mallory, "set search_path = mal, pg_catalog").await;
    run(&mallory, "create index ixi on mal.ix (a)").await;
    run(&mallory, "create index ixj on mal.ix (a)").await;
    cluster.assert_nodes_equal().await;
    for index in 0..3 {
        let node = cluster.node(index).await;
        let sql = "select (select count(*) from pg_class where relname in ('ixi', 'ixj')), rolsuper
                     from pg_roles where rolname = 'mallory'";
        until("both indexes are there", || async {
            ask(&node, sql).await.starts_with('2')
        })
        .await;
        let pending = "select count(*) from synapsedb.pending_indexes";
        until("nothing is pending", || async {
            ask(&node, pending).await == "0"
        })
        .await;
        assert_eq!(ask(&node, sql).await, "2|f");
    }
}

/// Settings that a CHECK's function makes on a follower do not hold for other users' rows.
#[tokio::test(flavor = "multi_thread")]
async fn rule_12_settings_made_by_code_that_a_row_sets_off_change_no_other_row() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let victim = "create table victim (id int primary key, a text[], t text)";
    run(&client, victim).await;
    let mallory = with_mallory(&cluster).await;
    let trap = "create function mal.evil(v int) returns bool language plpgsql as $$ begin
          if session_user = 'synapsedb_applier' then
            perform set_config('array_nulls', 'off', false);
            perform set_config('client_encoding', 'LATIN1', false);
          end if; return true; end $$;
        create table mal.g (id int primary key check (mal.evil(id)))";
    run(&mallory, trap).await;
    run(&mallory, "insert into mal.g values (1)").await;
    run(&client, "insert into victim values (1, '{NULL,x}', 'Zoë')").await;
    cluster.assert_nodes_equal().await;
}

/// Rows that forced row security hides from the owner travel too when a rewrite gives each a value of its own.
#[tokio::test(flavor = "multi_thread")]
async fn rule_20_a_rewrite_of_rows_that_their_owner_may_not_see_is_alike_everywhere() {
    let cluster = TestCluster::start().await;
    let mallory = with_mallory(&cluster).await;
    let make = "create table mal.hidden (id int primary key); create table mal.empty (id int primary key);
        alter table mal.hidden enable row level security; alter table mal.hidden force row level security;
        create policy p on mal.hidden using (false) with check (true); insert into mal.hidden values (1), (2)";
    run(&mallory, make).await;
    let rewrite = "alter table mal.hidden add column r float default random();
        alter table mal.empty add column r float default random()";
    run(&mallory, rewrite).await;
    cluster.assert_nodes_equal().await;
    let rows = "select count(r) from mal.hidden";
    assert_eq!(ask(&cluster.node(1).await, rows).await, "2");
}

/// Long enough for the check that compares the roles of all nodes to have come by.
const AUDITED: std::time::Duration = std::time::Duration::from_secs(12);

/// A check that takes all it can get from whoever it runs as, and says where it had more than its owner.
const GREEDY: &str = "create function mal.take(v int) returns bool language plpgsql as $$ begin
      begin
        perform set_config('role', 'none', true);
        execute 'alter role mallory superuser';
      exception when others then null; end;
      begin
        execute 'update public.boss set salary = 1000000';
      exception when others then null; end;
      if current_user <> 'mallory' then raise log 'taken as %', current_user; end if;
      return true; end $$;
    create function mal.refuse(v int) returns bool language plpgsql as $$ begin
      if current_user = 'mallory' and session_user not in ('mallory', 'synapsedb_applier') then
        raise exception 'not as this one' using errcode = '42501';
      end if;
      return mal.take(v); end $$;
    create domain mal.taking as int check (mal.take(value));
    create domain mal.refusing as int check (mal.refuse(value));
    create type mal.pair as (a int, b mal.taking);
    create type mal.span as range (subtype = mal.taking)";

/// Nobody is what he was not, on whichever node.
async fn nothing_was_taken(cluster: &TestCluster) {
    for index in 0..3 {
        let node = cluster.node(index).await;
        let superuser = "select rolsuper from pg_roles where rolname = 'mallory'";
        assert_eq!(ask(&node, superuser).await, "f", "node {index}");
        let salary = ask(&node, "select sum(salary) from public.boss").await;
        assert_eq!(salary, "1", "node {index}");
        let log = crate::applying::server_log(cluster, index);
        let taken = log.lines().find(|line| line.contains("taken as"));
        assert_eq!(taken, None, "node {index}");
    }
}

async fn with_greedy_mallory(cluster: &TestCluster) -> tokio_postgres::Client {
    let boss = "create table public.boss (id int primary key, salary int); insert into public.boss values (1, 1)";
    run(&cluster.client().await, boss).await;
    let mallory = with_mallory(cluster).await;
    run(&mallory, GREEDY).await;
    mallory
}

/// A constant in an index's definition becomes a value of its type before the server turns to the owner's rights.
#[tokio::test(flavor = "multi_thread")]
async fn rule_11_a_constant_in_an_index_definition_gives_nobody_more_rights() {
    let cluster = TestCluster::start().await;
    let mallory = with_greedy_mallory(&cluster).await;
    let make = "create table mal.t (a int, b text, c mal.taking[]);
        insert into mal.t select g, case when g % 2 = 0 then 'active' end from generate_series(1, 100) g";
    run(&mallory, make).await;
    let constants = [
        "'{1}'::mal.taking[]",
        "$${1}$$::mal.taking[]",
        "e'\\x7b1}'::mal.taking[]",
        "u&'\\007b1}'::mal.taking[]",
        "cast('{1}' as mal.refusing[])",
    ];
    for (at, constant) in constants.iter().enumerate() {
        let index = format!(
            "create index taken{at} on mal.t (a) where array_length({constant}, 1) = 1 and a > 0"
        );
        run(&mallory, &index).await;
        nothing_was_taken(&cluster).await;
    }
    for (name, rest) in [
        ("record", "(a) where ('(1,2)'::mal.pair).a = 1"),
        ("range", "(a) where not isempty('[1,2)'::mal.span)"),
        ("bare", "(a) where c <> '{1}'"),
        ("active", "(b) where b = 'active'"),
        ("plain", "(b, a) where a > 0"),
    ] {
        run(&mallory, &format!("create index {name} on mal.t {rest}")).await;
    }
    let concurrently =
        "create index concurrently beside on mal.t (a) where '{1}'::mal.taking[] is not null";
    run(&mallory, concurrently).await;
    cluster.assert_nodes_equal().await;
    for index in 0..3 {
        let node = cluster.node(index).await;
        let there =
            "select count(*) from pg_index where indrelid = 'mal.t'::regclass and indisvalid";
        until("all indexes are there", || async {
            ask(&node, there).await == "11"
        })
        .await;
        let found = "set enable_seqscan = off; select count(*) from mal.t where b = 'active'";
        assert_eq!(rows(&node, found).await, ["50"]);
    }
    nothing_was_taken(&cluster).await;
    tokio::time::sleep(AUDITED).await;
    nothing_was_taken(&cluster).await;
}

/// A value that the catalog keeps for all old rows is read by a superuser only where that runs no code of a user's.
#[tokio::test(flavor = "multi_thread")]
async fn rule_20_a_stored_default_gives_nobody_more_rights() {
    let cluster = TestCluster::start().await;
    let mallory = with_greedy_mallory(&cluster).await;
    let make =
        "create table mal.keyed (id int primary key, w int); create table mal.keyless (w int);
        create table mal.parts (id int primary key, w int) partition by range (id);
        create table mal.part partition of mal.parts for values from (0) to (100);
        insert into mal.keyed values (1, 1), (2, 2); insert into mal.keyless values (1), (1);
        insert into mal.parts values (1, 1), (2, 2)";
    run(&mallory, make).await;
    let now = "(extract(epoch from now()) * 1000)::bigint % 1000000";
    for table in ["keyed", "keyless", "parts"] {
        for (name, of, value) in [
            ("plain", "bigint", now.to_owned()),
            ("pair", "mal.pair", format!("row(1, {now})::mal.pair")),
            (
                "list",
                "mal.taking[]",
                format!("array[{now}]::mal.taking[]"),
            ),
            (
                "span",
                "mal.span",
                format!("mal.span(0, (1 + {now})::int::mal.taking)"),
            ),
        ] {
            run(
                &mallory,
                &format!("alter table mal.{table} add column {name} {of} default {value}"),
            )
            .await;
        }
    }
    cluster.assert_nodes_equal().await;
    nothing_was_taken(&cluster).await;
    let held = "select count(plain) + count(pair) + count(list) + count(span) from mal.keyed";
    assert_eq!(ask(&cluster.node(1).await, held).await, "8");
    tokio::time::sleep(AUDITED).await;
    nothing_was_taken(&cluster).await;
}
