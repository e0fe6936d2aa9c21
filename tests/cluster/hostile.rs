//! Roles without rights that try to reach further on a follower than on the writer.

use crate::support::cluster::TestCluster;
use crate::tools::{ask, run, until};
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
