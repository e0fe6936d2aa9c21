//! As whom code runs that rows and commands set off on a follower, where it hides, and what its owner may.

use crate::support::cluster::TestCluster;
use crate::tools::{ask, rows, run, until};
use synapsedb::cli::demo::server::DATABASE;

async fn with_mallory(cluster: &TestCluster) -> tokio_postgres::Client {
    let client = cluster.client().await;
    let make = "create role mallory login password 'm'; create schema mal authorization mallory;
        grant all on schema public to mallory";
    run(&client, make).await;
    cluster.client_as("mallory", "m", DATABASE).await
}

/// What code tells of itself: a line for each place it hid in, with the role it ran as.
fn told(cluster: &TestCluster, node: usize) -> Vec<String> {
    let log = crate::applying::server_log(cluster, node);
    let told = log.lines().filter_map(|line| line.split_once("told: "));
    let words = |told: &str| told.split(' ').take(2).collect::<Vec<_>>().join(" ");
    told.map(|(_, told)| words(told)).collect()
}

/// All that ran on the followers ran as mallory, and every one of the places did run.
fn only_as_mallory(cluster: &TestCluster, places: &[&str]) {
    for node in 1..3 {
        let told = told(cluster, node);
        let mut others: Vec<_> = told.iter().filter(|t| !t.ends_with(" mallory")).collect();
        others.sort_unstable();
        others.dedup();
        assert!(others.is_empty(), "node {node}: {others:?}");
        for place in places {
            let line = format!("{place} mallory");
            assert!(told.contains(&line), "node {node}: {place} never ran");
        }
    }
}

const TELL: &str = "
create function mal.tell(place text, v int) returns int language plpgsql immutable as $$ begin
  if session_user = 'synapsedb_applier' then raise log 'told: % %', place, current_user; end if; return v; end $$;
create domain mal.checked as int check (mal.tell('domain', value) > 0);
create domain mal.wanted as int check (mal.tell('cast', value) > 0);
create domain mal.filed as int check (mal.tell('index', value) > 0);
create domain mal.picked as int check (mal.tell('predicate', value) > 0);
create domain mal.making as int check (mal.tell('generated', value) > 0);
create domain mal.keyed as int check (mal.tell('partition', value) > 0);
create type mal.pair as (a int, b mal.checked);
create function mal.diff(a int, b int) returns float8 language plpgsql immutable as $$ begin
  if session_user = 'synapsedb_applier' then raise log 'told: range %', current_user; end if; return a - b; end $$;
create type mal.span as range (subtype = int, subtype_diff = mal.diff);
create type mal.mood as enum ('glad', 'sad');
create function mal.to_json(mal.mood) returns json language plpgsql immutable as $$ begin
  if session_user = 'synapsedb_applier' then raise log 'told: json %', current_user; end if; return '1'; end $$;
create cast (mal.mood as json) with function mal.to_json(mal.mood);
create table mal.rewrites (q tsquery, r tsquery);
create table mal.typed (id int primary key, v mal.checked);
create table mal.nested (id int primary key, v mal.checked[], p mal.pair[]);
create table mal.cast_to (id int primary key, v int check (v::mal.wanted > 0));
create table mal.indexed (id int primary key, v int); create index on mal.indexed ((v::mal.filed));
create table mal.chosen (id int primary key, v int); create index on mal.chosen (v) where v::mal.picked > 0;
create table mal.made (id int primary key, v int, g int generated always as (v::mal.making) stored);
create table mal.parts (id int, v int) partition by list ((v::mal.keyed));
create table mal.part partition of mal.parts for values in (1, 2, 3);
create table mal.spans (id int primary key, v mal.span); create index on mal.spans using gist (v);
create table mal.moods (id int primary key, v mal.mood check (to_jsonb(v) is not null));
create table mal.words (id int primary key, v tsquery
  check (ts_rewrite(v, 'select q, r from mal.rewrites where mal.tell(''query'', 1) = 1') is not null));
create table mal.planned (id int primary key, v int);
create statistics mal.planned_s on (mal.tell('statistics', 1) + v), id from mal.planned;
";

/// Types, keys and built-in functions lead to a user's code without naming it in the table's dependencies.
#[tokio::test(flavor = "multi_thread")]
async fn rule_11_code_behind_types_keys_and_statistics_runs_as_the_owner() {
    let cluster = TestCluster::start().await;
    let mallory = with_mallory(&cluster).await;
    run(&mallory, TELL).await;
    let write = "insert into mal.typed values (1, 1), (2, 2); update mal.typed set v = 3; delete from mal.typed where id = 1;
        insert into mal.nested values (1, '{1}', '{\"(1,2)\"}'); update mal.nested set v = '{2}';
        insert into mal.cast_to values (1, 1); update mal.cast_to set v = 2; delete from mal.cast_to;
        insert into mal.indexed values (1, 1); update mal.indexed set v = 2; delete from mal.indexed;
        insert into mal.chosen values (1, 1); update mal.chosen set v = 2; delete from mal.chosen;
        insert into mal.made (id, v) values (1, 1); update mal.made set v = 2; delete from mal.made;
        insert into mal.parts values (1, 1), (2, 2), (3, 1), (4, 2), (5, 3);
        insert into mal.spans select g, mal.span(g, g + g % 7 + 1) from generate_series(1, 600) g;
        insert into mal.moods values (1, 'glad'); update mal.moods set v = 'sad'; delete from mal.moods;
        insert into mal.words values (1, 'a & b');
        insert into mal.planned values (1, 1), (2, 2); update mal.planned set v = 3; delete from mal.planned where id = 2";
    run(&mallory, write).await;
    cluster.assert_nodes_equal().await;
    only_as_mallory(
        &cluster,
        &[
            "domain",
            "cast",
            "index",
            "predicate",
            "generated",
            "partition",
            "range",
            "json",
            "query",
        ],
    );
}

/// The applier knew the table before its index was built beside the stream.
#[tokio::test(flavor = "multi_thread")]
async fn rule_11_the_code_of_an_index_that_comes_late_runs_as_the_owner() {
    let cluster = TestCluster::start().await;
    let mallory = with_mallory(&cluster).await;
    run(&mallory, TELL).await;
    let table =
        "create table mal.late (id int primary key, v int); insert into mal.late values (1, 1)";
    run(&mallory, table).await;
    run(&mallory, "insert into mal.late values (2, 2)").await;
    run(
        &mallory,
        "create index late_i on mal.late (mal.tell('late', v))",
    )
    .await;
    run(&mallory, "insert into mal.late values (3, 3)").await;
    for index in 1..3 {
        let node = cluster.node(index).await;
        let sql = "select count(*) from pg_index where indexrelid = to_regclass('mal.late_i') and indisvalid";
        until("the index is there", || async {
            ask(&node, sql).await == "1"
        })
        .await;
    }
    run(&mallory, "insert into mal.late values (4, 4)").await;
    run(&mallory, "update mal.late set v = 7 where id = 1").await;
    cluster.assert_nodes_equal().await;
    only_as_mallory(&cluster, &["late"]);
}

/// An operator that fits a comparison of catalog columns better than the server's own.
#[tokio::test(flavor = "multi_thread")]
async fn rule_11_what_the_applier_asks_of_the_catalog_runs_no_operator_of_a_user() {
    let cluster = TestCluster::start().await;
    let mallory = with_mallory(&cluster).await;
    let trap = "create function public.eq(a oid, b regclass) returns bool language plpgsql as $$ begin
          if session_user = 'synapsedb_applier' then raise log 'told: operator %', current_user; end if; return a operator(pg_catalog.=) b::oid; end $$;
        create operator public.= (leftarg = oid, rightarg = regclass, procedure = public.eq);
        create table mal.plain (id int primary key check (id > 0))";
    run(&mallory, trap).await;
    run(&mallory, "insert into mal.plain values (1)").await;
    cluster.assert_nodes_equal().await;
    only_as_mallory(&cluster, &[]);
}

/// Temporary relations come before the catalog wherever a search path does not name `pg_temp`.
#[tokio::test(flavor = "multi_thread")]
async fn rule_11_temporary_views_called_like_catalogs_deceive_nobody() {
    let cluster = TestCluster::start().await;
    let mallory = with_mallory(&cluster).await;
    let trap = "create function mal.gain(o oid) returns oid language plpgsql as $$ begin
          raise log 'told: temporary %', current_user; return o; end $$;
        create function mal.lay() returns void language plpgsql as $$ declare v name; begin
          foreach v in array array['pg_class', 'pg_proc', 'pg_namespace', 'pg_trigger', 'pg_depend'] loop
            if to_regclass('pg_temp.' || v) is null then
              execute format('create temp view %1$I as select %2$s from pg_catalog.%1$I', v,
                (select string_agg(case when attname = 'oid' or attname = 'objid' then format('mal.gain(%1$I) as %1$I', attname)
                                        else quote_ident(attname) end, ',' order by attnum)
                   from pg_catalog.pg_attribute where attrelid = ('pg_catalog.' || v)::regclass and attnum > 0));
            end if;
          end loop; end $$;
        create function mal.trap(v int) returns bool language plpgsql as $$ begin
          if session_user = 'synapsedb_applier' then perform mal.lay(); end if; return true; end $$;
        create table mal.t (id int primary key check (mal.trap(id)))";
    run(&mallory, trap).await;
    run(
        &mallory,
        "insert into mal.t values (1); insert into mal.t values (2)",
    )
    .await;
    run(&mallory, "create table mal.more (a int)").await;
    run(&mallory, "insert into mal.t values (3)").await;
    run(&mallory, "select mal.lay()").await;
    run(
        &mallory,
        "create table mal.on_the_writer (a int); alter table mal.on_the_writer add b int; drop table mal.on_the_writer",
    )
    .await;
    cluster.assert_nodes_equal().await;
    for node in 0..3 {
        let told = told(&cluster, node);
        let other = told.iter().find(|told| *told != "temporary mallory");
        assert_eq!(other, None, "node {node}");
    }
}

/// What ordinary tables hold is written by the fast way.
#[tokio::test(flavor = "multi_thread")]
async fn rule_11_ordinary_tables_are_not_taken_for_foreign_code() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let plain = "create type mood as enum ('glad', 'sad'); create type pair as (a int, b text[]);
        create domain email as text check (value ~ '^[^@]+@[^@]+$');
        create table plain (id bigint generated always as identity primary key, n int default 1 check (n > 0),
          t text not null check (length(t) < 100 and t like '%'), m mood, ms mood[], p pair, e email, at timestamptz default now(),
          u uuid default gen_random_uuid(), j jsonb check (jsonb_typeof(j) = 'object'), d date, ar int[], r int4range,
          x numeric(10, 2), b bytea, v tsvector generated always as (to_tsvector('english', t)) stored,
          check (at <= now() or at is null), check (n in (1, 2, 3) or case when n > 5 then true else coalesce(x, 1) > 0 end));
        create table child (id serial primary key, plain_id bigint references plain, exclude using gist (r with &&), r int4range);
        create index on plain (lower(t)); create index on plain ((j ->> 'a')) where d is null; create index on plain using gin (j);
        create table parts (id int, at date) partition by range (at, (id % 10));
        create table part partition of parts default";
    run(&client, plain).await;
    let mut tables = vec!["plain", "child", "part"];
    if cluster.has_pgvector() {
        run(&client, "create extension vector; create table items (id int primary key, v vector(3), h halfvec(3)); \
             create index on items using hnsw (v vector_l2_ops); create index on items using hnsw ((v::halfvec(3)) halfvec_l2_ops)").await;
        tables.push("items");
    }
    cluster.assert_nodes_equal().await;
    let node = cluster.node(1).await;
    for table in tables {
        let sql = format!("select synapsedb.runs_user_code('{table}'::regclass)");
        assert_eq!(ask(&node, &sql).await, "f", "{table}");
    }
}

/// Rights that an owner lacks on what is his own are no reason for a follower to stop.
#[tokio::test(flavor = "multi_thread")]
async fn rule_11_an_owner_without_rights_on_his_own_table_stops_nothing() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let mallory = with_mallory(&cluster).await;
    let make = "create function mal.fine(v int) returns bool language plpgsql as $$ begin return v > 0; end $$;
        create table mal.closed (id int primary key, v int check (mal.fine(v)));
        create materialized view mal.seen as select 1 as a;
        create unique index on mal.seen (a);
        grant all on mal.closed to synapsedb; grant select on mal.closed to public";
    run(&mallory, make).await;
    let revoke = "revoke all on mal.closed from mallory; revoke all on mal.seen from mallory;
        alter schema mal owner to synapsedb; revoke all on schema mal from mallory;
        create role aside; grant usage on schema mal to aside";
    run(&client, revoke).await;
    let write = "insert into mal.closed select g, g from generate_series(1, 9) g;
        update mal.closed set v = 7 where id = 1; delete from mal.closed where id = 2";
    run(&client, write).await;
    run(&client, "refresh materialized view mal.seen").await;
    cluster.assert_nodes_equal().await;
    let acl = "select c.relname, c.relacl, n.nspacl from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where c.relname in ('closed', 'seen') order by 1";
    let right = rows(&cluster.node(0).await, acl).await;
    for index in 1..3 {
        assert_eq!(rows(&cluster.node(index).await, acl).await, right);
    }
    let may = "select count(*) from mal.closed";
    mallory.batch_execute(may).await.expect_err("still closed");
}

/// Bytes of a database that does not say what they mean, in rows and in commands.
#[tokio::test(flavor = "multi_thread")]
async fn rule_12_bytes_without_an_encoding_arrive_unchanged_by_every_way() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let make =
        "create database bytes template template0 encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'";
    run(&client, make).await;
    let bytes = cluster.client_as("synapsedb", "changeme123", "bytes").await;
    // The client speaks UTF-8 only; what it can't write is made by the server.
    let make = r"set client_encoding = 'SQL_ASCII';
         create function fine(v text) returns boolean language plpgsql as 'begin return true; end';
         create table owned (id int primary key, v text check (fine(v)));
         create table plain (id int primary key, v text);
         insert into owned values (1, E'gr\xfcn'), (2, E'\xe9'); update owned set v = E'wei\xdf' where id = 2;
         insert into plain values (1, E'gr\xfcn');
         do $$ begin execute E'comment on table owned is ''\xfcbung'''; end $$;
         do $$ begin execute E'create view said as select ''\xfc ; drop''::text as v'; end $$;
         create materialized view seen as select v from owned";
    run(&bytes, make).await;
    let sql = "select md5(string_agg(v, ',' order by v)) from (select v from owned union all select v from plain union all
        select v from seen union all select v from said union all select obj_description('owned'::regclass)) x";
    let right = ask(&cluster.node_db(0, "bytes").await, sql).await;
    for index in 1..3 {
        let node = cluster.node_db(index, "bytes").await;
        until("the follower has them", || async {
            node.simple_query("select from seen").await.is_ok()
        })
        .await;
        assert_eq!(ask(&node, sql).await, right);
    }
}

/// What a pending build's names mean is for the role to say that ran it: others see other schemas.
#[tokio::test(flavor = "multi_thread")]
async fn rule_11_an_index_is_built_beside_the_stream_as_the_role_that_made_it() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let mallory = with_mallory(&cluster).await;
    let hidden = "create schema hidden;
        create function hidden.f(v int) returns int language plpgsql immutable as 'begin return 1; end'";
    run(&client, hidden).await;
    let make = "create function mal.f(v int) returns int language plpgsql immutable as 'begin return 2; end';
        create table mal.t (a int primary key); insert into mal.t values (1)";
    run(&mallory, make).await;
    run(&mallory, "set search_path = hidden, mal").await;
    run(&mallory, "create index named on mal.t (f(a))").await;
    cluster.assert_nodes_equal().await;
    for index in 0..3 {
        let sql = "select pg_get_indexdef('mal.named'::regclass)";
        let node = cluster.node(index).await;
        until("the index is there", || async {
            node.simple_query(sql).await.is_ok()
        })
        .await;
        let found = ask(&node, sql).await;
        assert!(found.contains("mal.f(a)"), "node {index}: {found}");
    }
}

/// No role's name makes the runner of another.
#[tokio::test(flavor = "multi_thread")]
async fn rule_11_runners_of_different_roles_have_different_names() {
    let cluster = TestCluster::start().await;
    let node = cluster.node(1).await;
    run(&node, "set synchronous_commit = local").await;
    let name = "repeat('long', 15)";
    let clash =
        format!("select synapsedb.runner_name({name}) = synapsedb.runner_name(md5({name}))");
    assert_eq!(ask(&node, &clash).await, "f");
    let make =
        format!("select synapsedb.make_runner({name}, 'x'), synapsedb.make_runner('short', 'x')");
    let roles = format!(
        "set session_replication_role = replica; create role short;
         do $$ begin execute 'create role ' || {name}; end $$"
    );
    run(&node, &roles).await;
    run(&node, &make).await;
    let drop = format!("select synapsedb.drop_runners({name}), synapsedb.drop_runners('short')");
    assert_eq!(rows(&node, &drop).await, ["1|1"]);
    run(
        &node,
        &make
            .replace("do $$ begin execute", "do $$ begin perform")
            .replace("create role short;", ""),
    )
    .await;
    run(&node, "begin; select synapsedb.drop_runners(null)").await;
    let left = "select count(*) from pg_proc where proname ~ '^run_(as|by)_'";
    assert_eq!(ask(&node, left).await, "0");
}

/// Deferred triggers and cursors WITH HOLD run when the transaction ends, as whoever began it.
#[tokio::test(flavor = "multi_thread")]
async fn rule_11_what_waits_for_the_end_of_a_transaction_runs_as_the_owner() {
    let cluster = TestCluster::start().await;
    let mallory = with_mallory(&cluster).await;
    let make = "create function mal.tell(place text) returns int language plpgsql as $$ begin
          if session_user = 'synapsedb_applier' then raise log 'told: % %', place, current_user; end if; return 1; end $$;
        create function mal.waits() returns bool language plpgsql as $$ begin
          if session_user = 'synapsedb_applier' then
            execute 'declare cc cursor with hold for select mal.tell(''held'')'; perform mal.tell('check'); end if;
          return true; end $$;
        create function mal.hides(int) returns bool language plpgsql immutable as 'begin return mal.waits(); end';
        create table mal.t (id int primary key, v int check (mal.hides(v)));
        create table mal.q (i int);
        create function mal.fires() returns trigger language plpgsql as 'begin perform mal.tell(''late''); return null; end';
        create constraint trigger d after insert on mal.q deferrable initially deferred for each row execute function mal.fires()";
    run(&mallory, make).await;
    run(&mallory, "insert into mal.t values (1, 1)").await;
    let always = mallory
        .batch_execute("alter table mal.q enable always trigger d")
        .await;
    let code = always.expect_err("refused").code().cloned();
    assert_eq!(code.map(|c| c.code().to_owned()).as_deref(), Some("0A000"));
    run(&mallory, "insert into mal.t values (2, 2)").await;
    cluster.assert_nodes_equal().await;
    only_as_mallory(&cluster, &["check"]);
}
