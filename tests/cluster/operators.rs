//! What operators see over HTTP: it is there, it is true, and it is true soon after something happened.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::cluster::TestCluster;
use crate::support::http;

async fn status(cluster: &TestCluster) -> Value {
    let (code, body) = http::get(cluster.http_port(), "/status").await;
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

/// The value of one line of `/metrics`.
fn metric(text: &str, line: &str) -> f64 {
    let found = text.lines().find_map(|at| at.strip_prefix(line));
    let value = found.and_then(|rest| rest.trim().parse().ok());
    value.unwrap_or_else(|| panic!("{line} is not in:\n{text}"))
}

/// Waits until `/healthz` has this code, and gives its words.
async fn health(cluster: &TestCluster, code: u16, patience: Duration) -> String {
    let until = Instant::now() + patience;
    loop {
        let (said, text) = http::get(cluster.http_port(), "/healthz").await;
        if said == code {
            return text;
        }
        assert!(Instant::now() < until, "{said} {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_health_and_metrics_tell_what_happened() {
    let mut cluster = TestCluster::start().await;
    let client = cluster.client().await;
    client
        .batch_execute("create table t (a int primary key, b text)")
        .await
        .expect("made");
    for at in 0..5 {
        client.batch_execute("begin").await.expect("a transaction");
        client
            .execute("insert into t values ($1, 'x')", &[&at])
            .await
            .expect("inserted");
        client.batch_execute("commit").await.expect("committed");
    }
    client
        .batch_execute("select 1/0")
        .await
        .expect_err("an error");
    client
        .batch_execute(
            "begin; set local synchronous_commit = off; insert into t values (100); commit",
        )
        .await
        .expect("the user's own choice");
    cluster.assert_nodes_equal().await;
    assert_eq!(health(&cluster, 200, Duration::from_secs(5)).await, "ok\n");
    good_status(&cluster).await;
    good_metrics(&cluster).await;
    let (code, page) = http::get(cluster.http_port(), "/").await;
    assert_eq!(code, 200);
    assert!(page.contains("Writes are acknowledged."), "{page}");
    let (code, text) = http::get(cluster.http_port(), "/nothing").await;
    assert!(code == 404 && text.contains("/status"), "{text}");

    // A follower dies: writes go on, and the status is true within a second.
    tokio::task::block_in_place(|| cluster.server(2).kill9());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let now = status(&cluster).await;
    assert_eq!(now["nodes"][2]["status"], "down", "{now}");
    assert_eq!(now["in_sync"], 2, "{now}");
    assert_eq!(now["healthy"], true, "{now}");
    client
        .batch_execute("insert into t values (200)")
        .await
        .expect("two of three are a majority");
    // So does the other: nothing can be acknowledged.
    tokio::task::block_in_place(|| cluster.server(1).kill9());
    let why = health(&cluster, 503, Duration::from_secs(1)).await;
    assert_eq!(why, "write quorum lost: 1 of 3 nodes in sync\n");
    let (code, _) = http::get(cluster.http_port(), "/healthz?live").await;
    assert_eq!(code, 200);
    // They come back, and all is well again.
    tokio::task::block_in_place(|| {
        cluster.server(1).start().expect("starts");
        cluster.server(2).start().expect("starts");
    });
    health(&cluster, 200, Duration::from_secs(20)).await;
    cluster.assert_nodes_equal().await;
    // The writer dies, another one follows, and it returns as one that may hold what nobody else has.
    tokio::task::block_in_place(|| cluster.server(0).kill9());
    let why = health(&cluster, 503, Duration::from_secs(1)).await;
    // Whoever follows begins without the others.
    let words = [
        "the writer, node1, is down\n",
        "write quorum lost: 1 of 3 nodes in sync\n",
    ];
    assert!(words.contains(&why.as_str()), "{why}");
    tokio::task::block_in_place(|| cluster.server(0).start()).expect("starts");
    health(&cluster, 200, Duration::from_secs(20)).await;
    let client = cluster.client().await;
    client
        .batch_execute("insert into t values (300)")
        .await
        .expect("written again");
    let level = cluster.compare_some(&[1, 2], Duration::from_secs(60)).await;
    level.expect("equal");
}

async fn good_status(cluster: &TestCluster) {
    let now = status(cluster).await;
    assert_eq!(now["healthy"], true, "{now}");
    assert_eq!(now["writer"], "node1");
    assert_eq!(now["epoch"], 1);
    assert_eq!(now["quorum"], true);
    assert_eq!(now["nodes"].as_array().map(Vec::len), Some(3));
    for node in now["nodes"].as_array().expect("nodes") {
        assert_eq!(node["status"], "in_sync", "{now}");
        assert!(
            node["latency_ms"].as_f64().is_some_and(|ms| ms > 0.0),
            "{now}"
        );
        assert_eq!(node["problem"], Value::Null);
    }
    let databases = now["databases"].as_array().expect("a list");
    assert!(databases.contains(&Value::from("synapsedb")), "{now}");
    assert_eq!(now["clients"]["connected"], 1, "{now}");
    assert_eq!(now["pools"][0]["user"], "synapsedb", "{now}");
}

async fn good_metrics(cluster: &TestCluster) {
    let (code, text) = http::get(cluster.http_port(), "/metrics").await;
    assert_eq!(code, 200);
    let described = text
        .lines()
        .filter(|line| line.starts_with("# HELP synapsedb_"));
    assert!(described.count() >= 30, "{text}");
    for (line, least) in [
        ("synapsedb_clients_connected", 1.0),
        ("synapsedb_statements_total", 16.0),
        ("synapsedb_transactions_total", 7.0),
        ("synapsedb_client_received_bytes_total", 100.0),
        ("synapsedb_client_sent_bytes_total", 100.0),
        ("synapsedb_errors_total{class=\"22\"}", 1.0),
        ("synapsedb_commit_seconds_count", 5.0),
        ("synapsedb_relaxed_writes_total", 1.0),
        ("synapsedb_units_total", 6.0),
        ("synapsedb_apply_seconds_count{node=\"node2\"}", 1.0),
        ("synapsedb_apply_batch_units_sum{node=\"node3\"}", 6.0),
        ("synapsedb_probe_seconds_count{node=\"node1\"}", 1.0),
        (
            "synapsedb_node_status{node=\"node2\",status=\"in_sync\"}",
            1.0,
        ),
        ("synapsedb_quorum", 1.0),
        ("synapsedb_resident_bytes", 1e6),
    ] {
        let value = metric(&text, &format!("{line} "));
        assert!(value >= least, "{line} is {value}");
    }
    for line in ["synapsedb_fenced_total ", "synapsedb_held "] {
        assert!(metric(&text, line) < 0.5, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_for_operators_opens_before_the_cluster_is_up() {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    // A majority is needed to start; one that never answers is waited for.
    tokio::task::block_in_place(|| {
        cluster.server(1).pause();
        cluster.server(2).pause();
    });
    cluster.spawn_proxy();
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let (code, text) = http::get(cluster.http_port(), "/healthz").await;
        if code == 503 {
            assert!(text.contains("is starting"), "{text}");
            break;
        }
        assert!(code == 0 && Instant::now() < until, "{code} {text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (code, _) = http::get(cluster.http_port(), "/healthz?live").await;
    assert_eq!(code, 200);
    tokio::task::block_in_place(|| {
        cluster.server(1).resume();
        cluster.server(2).resume();
    });
}
