//! What would be on one node only is refused: template databases, roles inside DO, DDL in the replica role; and
//! nobody takes off what the proxy needs.

use crate::support::cluster::TestCluster;
use crate::support::http;
use crate::tools::{ask, run, until};
use synapsedb::cli::demo::server::{PASSWORD, USER};
use tokio_postgres::Client;

/// SQLSTATE and hint of what must fail.
async fn refused(client: &Client, sql: &str) -> (String, bool) {
    let error = client.batch_execute(sql).await.expect_err(sql);
    let error = error.as_db_error().expect("the server's error").clone();
    (error.code().code().to_owned(), error.hint().is_some())
}

fn not_supported() -> (String, bool) {
    ("0A000".to_owned(), true)
}

#[tokio::test(flavor = "multi_thread")]
async fn template_databases_cannot_be_written() {
    let cluster = TestCluster::start().await;
    let client = cluster.client_as(USER, PASSWORD, "template1").await;
    for sql in [
        "create table t (a int)",
        "create role nobody_knows",
        "begin; create extension if not exists plpgsql",
        "do $$ begin create table t (a int); end $$",
    ] {
        assert_eq!(refused(&client, sql).await, not_supported(), "{sql}");
        run(&client, "rollback").await;
    }
    assert_eq!(
        ask(&client, "select count(*) > 0 from pg_database").await,
        "t"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_22_roles_cannot_be_changed_inside_do() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(&client, "create role one; create role two").await;
    for sql in [
        "do $$ begin create role hidden; end $$",
        "do 'begin grant one to two; end'",
        "do $$ begin execute 'alter role ' || quote_ident('one') || ' createdb'; end $$",
    ] {
        assert_eq!(refused(&client, sql).await, not_supported(), "{sql}");
    }
    run(&client, "do 'begin perform 1; end'; do $$ begin create table t (a int); grant select on t to one; end $$").await;
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ddl_in_the_replica_role_is_refused_and_rows_are_not() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(&client, "create table t (a int primary key); create function f() returns trigger language plpgsql as \
                  $$ begin raise exception 'not now'; end $$; \
                  create trigger f before insert on t for each row execute function f()").await;
    run(
        &client,
        "set session_replication_role = replica; insert into t values (1)",
    )
    .await;
    for sql in [
        "alter table t add b int",
        "create table u (a int)",
        "do $$ begin execute 'drop table t'; end $$",
        "reset session_replication_role; begin; set local session_replication_role = replica; drop table t",
        "select set_config('session_replication_role', 'replica', false); create view v as select 1",
    ] {
        assert_eq!(refused(&client, sql).await, not_supported(), "{sql}");
        run(&client, "rollback; set session_replication_role = replica").await;
    }
    run(&client, "create temp table own (a int)").await;
    run(
        &client,
        "insert into t values (2); reset session_replication_role; alter table t add c int",
    )
    .await;
    cluster.assert_nodes_equal().await;
    assert_eq!(
        ask(&cluster.node(2).await, "select count(c) + count(a) from t").await,
        "2"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_proxy_needs_cannot_be_dropped() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    for sql in [
        "drop schema synapsedb cascade",
        "drop publication synapsedb",
        "drop event trigger \"!synapsedb_2_end\"",
        "alter event trigger \"!synapsedb_2_end\" disable",
    ] {
        assert_eq!(
            refused(&client, sql).await,
            ("42501".to_owned(), true),
            "{sql}"
        );
    }
    // Where the text does not show it, the server refuses.
    for sql in [
        "do $$ begin execute 'drop schema synap' || 'sedb cascade'; end $$",
        "do $$ begin execute 'drop publication synap' || 'sedb'; end $$",
        "drop function synapsedb.on_ddl_end() cascade",
    ] {
        let (code, _) = refused(&client, sql).await;
        assert!(["2BP01", "42501"].contains(&code.as_str()), "{sql}: {code}");
    }
    run(&client, "create table t (a int)").await;
    cluster.assert_nodes_equal().await;
    // Straight on a node it can be switched off: that is seen.
    assert_eq!(http::get(cluster.http_port(), "/healthz").await.0, 200);
    let node = cluster.node(0).await;
    run(
        &node,
        "set synchronous_commit = local; alter event trigger \"!synapsedb_2_end\" disable",
    )
    .await;
    until("it is seen", || async {
        let (code, text) = http::get(cluster.http_port(), "/healthz").await;
        code == 503 && text.contains("node1 lacks")
    })
    .await;
    run(&node, "alter event trigger \"!synapsedb_2_end\" enable").await;
    until("it is seen again", || async {
        http::get(cluster.http_port(), "/healthz").await.0 == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_other_node_can_do_is_taken_back_and_fences_nobody() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let data = ask(&client, "select current_setting('data_directory')").await;
    // All servers are on one machine: what the first has taken, the others cannot have.
    let make = format!("copy (select 1) to program 'mkdir {data}/space'");
    run(&client, &make).await;
    let create = format!("create tablespace space location '{data}/space'");
    let (code, hint) = refused(&client, &create).await;
    assert_eq!((code.as_str(), hint), ("58000", true));
    run(&client, "create table t (a int); insert into t values (1)").await;
    assert_eq!(
        ask(&client, "select count(*) from pg_tablespace").await,
        "2"
    );
    assert_eq!(
        ask(
            &client,
            "select count(*) from cluster_nodes where status = 'in_sync'"
        )
        .await,
        "3"
    );
    // A database that the proxy itself is connected to.
    for sql in [
        "create database copy template synapsedb",
        "alter database postgres rename to other",
    ] {
        assert_eq!(refused(&client, sql).await, not_supported(), "{sql}");
    }
    // Connections that only wait in the pool do not hold it.
    let template = cluster.client_as(USER, PASSWORD, "template1").await;
    assert_eq!(ask(&template, "select 1").await, "1");
    drop(template);
    run(&client, "create database more").await;
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_22_roles_that_a_function_made_come_to_all_nodes() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(&client, "create function hires() returns void language plpgsql as $$ begin
        create role hidden login createdb password 'x' valid until '2040-01-01'; create role \"The boss\";
        grant \"The boss\" to hidden with admin option; end $$; select hires()").await;
    let there = "select (select count(*) from pg_authid where rolname in ('hidden', 'The boss')) || ' ' ||
        (select count(*) from pg_auth_members where member = to_regrole('hidden') and admin_option)";
    for at in 1..3 {
        let node = cluster.node(at).await;
        until("the role is there", || async {
            ask(&node, there).await == "2 1"
        })
        .await;
    }
    run(
        &client,
        "create function changes() returns void language plpgsql as \
                  $$ begin alter role hidden password 'y' nocreatedb; end $$; select changes()",
    )
    .await;
    let changed = "select count(*) from pg_roles where rolname = 'hidden' and not rolcreatedb";
    for at in 1..3 {
        let node = cluster.node(at).await;
        until("it is changed", || async {
            ask(&node, changed).await == "1"
        })
        .await;
    }
    cluster.assert_nodes_equal().await;
    run(&client, "drop role hidden").await;
    cluster.assert_nodes_equal().await;
}
