//! `synapsedb check` on real servers: what it finds before the first start, while the proxy runs, and after.

use crate::support::cluster::TestCluster;

/// Whether nothing has to be mended, and what it said.
fn check(cluster: &TestCluster) -> (bool, String) {
    let mut command = cluster.command("check");
    let output = tokio::task::block_in_place(|| command.output()).expect("the program runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (
        output.status.success(),
        said + &String::from_utf8_lossy(&output.stderr),
    )
}

fn has(said: &str, sign: &str) {
    assert!(said.contains(sign), "{sign} is not in:\n{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_start_it_finds_what_the_start_would_refuse() {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    let (good, said) = check(&cluster);
    assert!(good, "{said}");
    has(&said, "not set up yet");
    has(&said, "the nodes hold the same data");

    for index in 0..3 {
        let node = cluster.node(index).await;
        node.batch_execute(
            "create table log (a text); create table t (a int primary key); select lo_create(4711)",
        )
        .await
        .expect("made");
    }
    let (good, said) = check(&cluster);
    assert!(good, "hints need no mending: {said}");
    has(&said, "hint: database synapsedb has 1 large objects");
    has(&said, "tables without a key (public.log)");

    // Each of these is planted on one node, found, and taken back.
    let second = cluster.node(1).await;
    for (plant, undo, sign) in [
        (
            "insert into t values (1)",
            "delete from t",
            "hold different data",
        ),
        (
            "create extension vector",
            "drop extension vector",
            "extension vector is not there on node1",
        ),
        (
            "create database more",
            "drop database more",
            "only node2 has more",
        ),
        (
            "alter role synapsedb set client_min_messages = error",
            "alter role synapsedb reset client_min_messages",
            "role synapsedb has client_min_messages = error",
        ),
        (
            "alter database synapsedb set client_min_messages = error",
            "alter database synapsedb reset client_min_messages",
            "database synapsedb has client_min_messages = error",
        ),
    ] {
        if sign.contains("vector") && !cluster.has_pgvector() {
            continue;
        }
        second.batch_execute(plant).await.expect(plant);
        let (good, said) = check(&cluster);
        assert!(!good, "{plant}: {said}");
        has(&said, sign);
        second.batch_execute(undo).await.expect(undo);
    }
    let (good, said) = check(&cluster);
    assert!(good, "{said}");

    // It has changed nothing: the first start finds untouched nodes.
    for index in 0..3 {
        let node = cluster.node(index).await;
        let left = "select (select count(*) from pg_replication_slots) + (select count(*) from pg_publication)
                         + (select count(*) from pg_namespace where nspname = 'synapsedb')";
        let row = node.query_one(left, &[]).await.expect("a catalog query");
        assert_eq!(row.get::<_, i64>(0), 0);
        node.batch_execute("select lo_unlink(4711)")
            .await
            .expect("gone");
    }
    cluster.start_proxy().await;
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_set_up_is_looked_at_with_and_without_its_proxy() {
    let mut cluster = TestCluster::start().await;
    let client = cluster.client().await;
    client
        .batch_execute("create table t (a int primary key); insert into t values (1)")
        .await
        .expect("written");
    cluster.assert_nodes_equal().await;
    let (good, said) = check(&cluster);
    assert!(good, "{said}");
    has(&said, "set up, epoch 1, writer node1");
    assert!(!said.contains("no proxy reads"), "{said}");
    client
        .batch_execute("insert into t values (2)")
        .await
        .expect("it harms nobody");
    drop(client);
    cluster.kill_proxy();
    // The server notices a moment later that nobody reads.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    let (good, said) = check(&cluster);
    assert!(good, "{said}");
    has(&said, "hint: no proxy reads its slots now");

    // A node of another cluster, and one that was away.
    let third = cluster.node_db(2, "postgres").await;
    let set = |column: &str| {
        format!("set synchronous_commit = local; update synapsedb.cluster_state set {column}")
    };
    third
        .batch_execute(&set("epoch = 0"))
        .await
        .expect("a superuser may");
    let (good, said) = check(&cluster);
    assert!(good, "{said}");
    has(&said, "hint: node3 has seen epoch 0, others 1");
    third
        .batch_execute(&set("cluster_id = 'other'"))
        .await
        .expect("a superuser may");
    let (good, said) = check(&cluster);
    assert!(!good, "{said}");
    has(&said, "the nodes belong to different clusters");
    // The start refuses it too.
    cluster.spawn_proxy();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while cluster.proxy_exit().is_none() {
        assert!(std::time::Instant::now() < until, "it started");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    has(&cluster.proxy_log_text(), "belongs to another cluster");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_the_configuration_names_are_looked_at() {
    let cluster = TestCluster::builder()
        .nodes(1)
        .config("[tls]\ncertificate = \"none.crt\"\nkey = \"none.key\"")
        .without_proxy()
        .start()
        .await;
    let (good, said) = check(&cluster);
    assert!(!good, "{said}");
    has(&said, "tls.certificate");
    for file in ["none.crt", "none.key"] {
        std::fs::write(cluster.folder().join(file), "not PEM").expect("ours");
    }
    let (good, said) = check(&cluster);
    assert!(!good, "{said}");
    has(&said, "- tls: ");
}
