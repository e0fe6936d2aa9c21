//! Nodes that can't be part of a cluster, or not yet: the proxy says which, why, and what to do.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use synapsedb::cli::demo::server::Stop;

use crate::support::cluster::TestCluster;

/// Starts the proxy, which must refuse, and gives what it said.
async fn refused(cluster: &mut TestCluster) -> String {
    cluster.spawn_proxy();
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = cluster.proxy_exit() {
            let said = cluster.proxy_log_text();
            assert!(!status.success(), "{said}");
            let last = said.rsplit("\nsynapsedb: ").next();
            return last.unwrap_or_default().to_owned();
        }
        let said = cluster.proxy_log_text();
        assert!(Instant::now() < until, "it goes on:\n{said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Changes a setting of a server that needs a restart.
fn restart_with(cluster: &mut TestCluster, index: usize, line: &str) {
    let conf = cluster.server_ref(index).data().join("postgresql.conf");
    let old = std::fs::read_to_string(&conf).expect("its configuration");
    std::fs::write(&conf, format!("{old}\n{line}\n")).expect("written");
    tokio::task::block_in_place(|| {
        cluster.server(index).stop(Stop::Fast).expect("stops");
        cluster.server(index).start().expect("starts");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_wrong_settings_or_without_rights_is_refused_with_the_mend() {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    restart_with(&mut cluster, 1, "wal_level = replica");
    let said = refused(&mut cluster).await;
    assert!(said.contains("node2: wal_level is replica"), "{said}");
    assert!(
        said.contains("ALTER SYSTEM SET wal_level = 'logical'"),
        "{said}"
    );

    restart_with(
        &mut cluster,
        1,
        "wal_level = logical\nmax_replication_slots = 1",
    );
    let said = refused(&mut cluster).await;
    assert!(said.contains("node2: max_replication_slots"), "{said}");
    assert!(said.contains("Raise"), "{said}");
    restart_with(&mut cluster, 1, "max_replication_slots = 20");

    // The admin's rights are asked for on each node.
    for index in 0..3 {
        let node = cluster.node(index).await;
        node.batch_execute("create role watcher login password 'watcher'")
            .await
            .expect("made");
    }
    let file = cluster.folder().join("proxy.toml");
    let good = std::fs::read_to_string(&file).expect("ours");
    let bad = good.replace("user = \"synapsedb\"", "user = \"watcher\"");
    assert_ne!(good, bad);
    std::fs::write(&file, bad).expect("ours");
    cluster.set_env("SYNAPSEDB_ADMIN_PASSWORD", "watcher");
    let said = refused(&mut cluster).await;
    assert!(said.contains("role watcher is no superuser"), "{said}");
    cluster.set_env("SYNAPSEDB_ADMIN_PASSWORD", "wrong");
    let said = refused(&mut cluster).await;
    assert!(said.contains("password authentication failed"), "{said}");
    assert!(said.contains("SYNAPSEDB_ADMIN_PASSWORD"), "{said}");
    std::fs::write(&file, good).expect("ours");
    cluster.clear_env();

    // All mended: it starts, and nothing was left behind that is in the way.
    cluster.start_proxy().await;
    let client = cluster.client().await;
    client
        .batch_execute("create table t (a int)")
        .await
        .expect("written");
    cluster.assert_nodes_equal().await;
}

/// What is done on the third node, what takes it back, and the word that the refusal must have.
const DIFFERENCES: [(&str, &str, &str); 9] = [
    (
        "insert into t values (9)",
        "delete from t where a = 9",
        "table public.t",
    ),
    (
        "update t set b = 'y' where a = 1",
        "update t set b = 'x' where a = 1",
        "table public.t",
    ),
    (
        "create table extra (a int)",
        "drop table extra",
        "public.extra",
    ),
    (
        "alter table t add c int",
        "alter table t drop c",
        "public.t.c",
    ),
    ("create index late on t (b)", "drop index late", "late"),
    (
        "alter table t add constraint small check (a < 100)",
        "alter table t drop constraint small",
        "small",
    ),
    (
        "create function f() returns int language sql as 'select 1'",
        "drop function f()",
        "f()",
    ),
    (
        "create role stranger",
        "drop role stranger",
        "role stranger",
    ),
    (
        "create database more",
        "drop database more",
        "database more",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_hold_different_data_are_refused_with_what_differs() {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    for index in 0..3 {
        let node = cluster.node(index).await;
        node.batch_execute(
            "create table t (a int primary key, b text); insert into t values (1, 'x')",
        )
        .await
        .expect("made");
    }
    let third = cluster.node(2).await;
    for (plant, undo, sign) in DIFFERENCES {
        third.batch_execute(plant).await.expect(plant);
        let said = refused(&mut cluster).await;
        assert!(
            said.contains("hold different data") && said.contains(sign),
            "{plant}: {said}"
        );
        assert!(said.contains("only node3 has"), "{plant}: {said}");
        // Refusing has changed nothing on a node.
        let row = third
            .query_one(
                "select count(*) from pg_namespace where nspname = 'synapsedb'",
                &[],
            )
            .await
            .expect("a catalog query");
        assert_eq!(row.get::<_, i64>(0), 0, "{plant}");
        third.batch_execute(undo).await.expect(undo);
    }
    cluster.start_proxy().await;
    let client = cluster.client().await;
    client
        .batch_execute("insert into t values (2)")
        .await
        .expect("equal again");
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_are_enough_and_the_third_joins_when_it_comes() {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    // The very first time all are needed: nobody could say what the absent one holds.
    tokio::task::block_in_place(|| cluster.server(2).stop(Stop::Fast)).expect("stops");
    let said = refused(&mut cluster).await;
    assert!(said.contains("first"), "{said}");
    assert!(said.contains("node3"), "{said}");
    tokio::task::block_in_place(|| cluster.server(2).start()).expect("starts");
    cluster.start_proxy().await;
    let client = cluster.client().await;
    client
        .batch_execute("create table t (a int primary key); insert into t values (1)")
        .await
        .expect("written");
    cluster.assert_nodes_equal().await;
    drop(client);
    cluster.kill_proxy();
    tokio::task::block_in_place(|| cluster.server(2).kill9());
    // Afterwards two of three.
    cluster.start_proxy().await;
    let client = cluster.client().await;
    for at in 2..20 {
        client
            .execute("insert into t values ($1)", &[&at])
            .await
            .expect("the writer and one follower are a majority");
    }
    client
        .batch_execute("create table u (a int primary key); insert into u select a from t")
        .await
        .expect("DDL too");
    cluster
        .compare_some(&[0, 1], Duration::from_secs(20))
        .await
        .expect("the two are equal");
    tokio::task::block_in_place(|| cluster.server(2).start()).expect("starts");
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_never_answers_is_given_up() {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    let file = cluster.folder().join("proxy.toml");
    let mut config = std::fs::read_to_string(&file).expect("ours");
    let mute: Vec<TcpListener> = (0..2)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
        .collect();
    for (index, listener) in mute.iter().enumerate() {
        let port = listener.local_addr().expect("bound").port();
        let old = format!("port = {}", cluster.node_port(index + 1));
        config = config.replace(&old, &format!("port = {port}"));
    }
    std::fs::write(&file, config).expect("ours");
    let since = Instant::now();
    let said = refused(&mut cluster).await;
    assert!(said.contains("node3 can't be reached"), "{said}");
    assert!(said.contains("no connection within"), "{said}");
    assert!(since.elapsed() < Duration::from_secs(30));
}
