//! Commands that no event trigger sees reach every node (rule 22).

use std::time::{Duration, Instant};

use crate::house::{code, value};
use crate::support::cluster::TestCluster;

const ROLES: &str = "select string_agg(concat_ws(':', rolname, rolsuper, rolcreatedb, rolpassword, (select setconfig::text from pg_db_role_setting where setrole = a.oid), \
    shobj_description(oid, 'pg_authid'), (select string_agg(roleid::regrole::text, ',' order by roleid::regrole::text) \
    from pg_auth_members where member = a.oid)), ' ' order by rolname) from pg_authid a \
    where rolname !~ '^pg_' and rolname <> 'synapsedb_applier'";
const DATABASES: &str = "select string_agg(concat_ws(':', datname, pg_get_userbyid(datdba), datacl::text, \
    shobj_description(oid, 'pg_database')), ' ' order by datname) from pg_database";

/// Waits until all nodes answer a question alike.
async fn alike(cluster: &TestCluster, question: &str) -> String {
    let begun = Instant::now();
    loop {
        let mut answers = Vec::new();
        for node in 0..cluster.nodes() {
            answers.push(value(&cluster.node(node).await, question).await);
        }
        if answers.iter().all(|answer| *answer == answers[0]) {
            return answers.swap_remove(0);
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{answers:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_no_trigger_sees() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    for text in [
        "create role plain login password 'it''s'",
        "create role keeper createrole createdb login; create role member; grant member to plain",
        "alter role plain set work_mem = '3MB'",
        "comment on role plain is 'not special'",
        "begin; create role transient; rollback",
        "begin; create role committed; create table t (a int); alter table t owner to committed; commit",
        "begin; savepoint s; create role undone; rollback to s; create role kept; commit",
        "create role doomed; create role other; create table u (a int); alter table u owner to doomed",
        "reassign owned by doomed to other",
        "drop owned by doomed",
        "drop role doomed",
        "comment on database synapsedb is 'the demo'",
    ] {
        for statement in text.split("; ") {
            client
                .batch_execute(statement)
                .await
                .unwrap_or_else(|e| panic!("{statement}: {e:?}"));
        }
    }
    more_roles(&client).await;
    let roles = alike(&cluster, ROLES).await;
    for part in [
        "plain:f:f:SCRAM-SHA-256$",
        "work_mem=3MB",
        "not special:member",
        "committed",
        "kept",
        "extended:f:t:SCRAM",
        "made_by_keeper",
        "two:f:f:one",
    ] {
        assert!(roles.contains(part), "{part}: {roles}");
    }
    for part in ["transient", "undone", "doomed", "three", "it's"] {
        assert!(!roles.contains(part), "{part}: {roles}");
    }
    let clear = "select count(*) from synapsedb.ddl_log where command ~ 'it''''s|clear' and command !~ 'SCRAM'";
    assert_eq!(value(&client, clear).await, "0");
    // Whoever is not the proxy can't log.
    let forged = "select synapsedb.log_command('guess', 'x', 'create role forged', '{}', null)";
    assert_eq!(code(client.batch_execute(forged).await), "42501");
    databases(&cluster, &client).await;
    for upkeep in [
        "vacuum t",
        "analyze",
        "reindex table t",
        "vacuum full t",
        "checkpoint",
    ] {
        client
            .batch_execute(upkeep)
            .await
            .unwrap_or_else(|e| panic!("{upkeep}: {e:?}"));
    }
    let vacuumed = "select (vacuum_count > 0)::text from pg_stat_user_tables where relname = 't'";
    assert_eq!(alike(&cluster, vacuumed).await, "true");
    cluster.assert_nodes_equal().await;
}

/// Refusals, failures, the extended protocol, and another role.
async fn more_roles(client: &tokio_postgres::Client) {
    assert_eq!(
        code(client.batch_execute("create role plain").await),
        "42710"
    );
    assert_eq!(
        code(
            client
                .batch_execute("begin; create role x; rollback; create role y")
                .await
        ),
        "0A000"
    );
    client
        .batch_execute("rollback")
        .await
        .expect("nothing open");
    client
        .batch_execute("create role one; create role two; grant one to two")
        .await
        .expect("together");
    assert_eq!(
        code(
            client
                .batch_execute("create role three; create role three")
                .await
        ),
        "42710"
    );
    // By the extended protocol, prepared and run twice, with the second failing.
    let prepared = client
        .prepare("create role extended password 'clear'")
        .await
        .expect("prepared");
    client.execute(&prepared, &[]).await.expect("run");
    assert_eq!(code(client.execute(&prepared, &[]).await), "42710");
    client
        .execute("alter role extended createdb", &[])
        .await
        .expect("run");
    // As somebody who is no superuser.
    client.batch_execute("set role keeper").await.expect("may");
    client
        .batch_execute("create role made_by_keeper")
        .await
        .expect("may");
    client.batch_execute("reset role").await.expect("may");
}

async fn databases(cluster: &TestCluster, client: &tokio_postgres::Client) {
    client
        .batch_execute("create database shop owner plain")
        .await
        .expect("made");
    client
        .batch_execute("grant connect on database shop to member")
        .await
        .expect("granted");
    alike(cluster, DATABASES).await;
    // It is replicated from its first statement.
    let shop = cluster.client_as("plain", "it's", "shop").await;
    shop.batch_execute("create schema mine; create table mine.goods (a int primary key); insert into mine.goods values (1)")
        .await
        .expect("at work");
    let begun = Instant::now();
    for node in 0..cluster.nodes() {
        let there = cluster.node_db(node, "shop").await;
        loop {
            let rows = there.query("select a from mine.goods", &[]).await;
            if rows.is_ok_and(|rows| rows.len() == 1) {
                break;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "node {node} has not got it"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    drop(shop);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(
        code(client.batch_execute("drop database nowhere").await),
        "3D000"
    );
    client
        .batch_execute("drop database shop")
        .await
        .expect("dropped");
    // A client that leaves in the middle leaves no node behind.
    let mut raw = crate::raw::Raw::login(cluster.port(), &[]).await;
    raw.query("create database left_behind").go().await;
    drop(raw);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let databases = alike(cluster, DATABASES).await;
    assert!(!databases.contains("shop"), "{databases}");
    assert_eq!(value(client, "select 1").await, "1");
}
