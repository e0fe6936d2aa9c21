//! A follower that stands still: within the queue's bound nobody notices, past it the node is fenced.

use std::time::Duration;

use crate::support::cluster::TestCluster;
use crate::tools::{Hold, PATIENCE, applier_pid, ask, rows, run, signal, until, until_status};
use synapsedb::cli::demo::server::DATABASE;

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_while_a_follower_stands_still_and_it_misses_nothing() {
    let mut cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(
        &client,
        "create table t (id serial primary key, v float8 default random());
         create table keyless (a int, b float8)",
    )
    .await;
    cluster.assert_nodes_equal().await;

    // By a lock on one follower, then by stopping the other's applier, then that whole server.
    let hold = Hold::table(&cluster, 2, DATABASE, "t").await;
    writes(&client, 200).await;
    let flushed = "select bool_and(flush_lsn < write_lsn) from pg_stat_replication \
                   where application_name = 'synapsedb' and state = 'streaming'";
    let writer = cluster.node(0).await;
    until(
        "what the held follower lacks is written, not flushed",
        || async { ask(&writer, flushed).await == "t" },
    )
    .await;
    hold.release().await;
    cluster.assert_nodes_equal().await;

    let follower = cluster.node(1).await;
    let pid = applier_pid(&follower).await.expect("an applier");
    signal(&pid, "-STOP");
    writes(&client, 200).await;
    signal(&pid, "-CONT");
    cluster.assert_nodes_equal().await;

    cluster.server(1).pause();
    writes(&client, 200).await;
    cluster.server(1).resume();
    cluster.assert_nodes_equal().await;
    assert_eq!(ask(&client, "select count(*) from t").await, "600");
    assert!(!cluster.proxy_log_text().contains("fenced"));
    until_status(&cluster, 1, "in_sync").await;
    until_status(&cluster, 2, "in_sync").await;
}

/// So many transactions, each of which must end while the follower stands.
async fn writes(client: &tokio_postgres::Client, count: usize) {
    let all = async {
        for n in 0..count {
            run(
                client,
                &format!(
                    "insert into t default values; insert into keyless values ({n}, random()); \
                     delete from keyless where a = {n} - 3"
                ),
            )
            .await;
        }
    };
    let ended = tokio::time::timeout(PATIENCE, all).await;
    ended.expect("writes go on though one follower stands still");
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_queue_s_bound_the_follower_is_fenced_for_good_and_writes_go_on() {
    let mut cluster = TestCluster::builder()
        .config("[replication]\nqueue_max_mib = 1")
        .start()
        .await;
    let client = cluster.client().await;
    run(&client, "create table t (a int, v text)").await;
    cluster.assert_nodes_equal().await;
    let hold = Hold::table(&cluster, 2, DATABASE, "t").await;
    for n in 0..30 {
        let sql = format!(
            "insert into t select {n}, repeat(md5(g::text), 200) from generate_series(1, 10) g"
        );
        let write = tokio::time::timeout(PATIENCE, run(&client, &sql));
        write.await.expect("writes go on");
    }
    until_status(&cluster, 2, "fenced").await;
    until_status(&cluster, 1, "in_sync").await;
    let log = cluster.proxy_log_text();
    assert!(log.contains("node fenced"), "{log}");
    let metrics = http(&cluster, "/metrics").await;
    let line = metrics
        .lines()
        .find(|line| line.starts_with("synapsedb_node_in_sync") && line.contains("node3"));
    assert!(line.is_some_and(|line| line.ends_with(" 0")), "{metrics}");
    let equal = cluster.compare_some(&[0, 1], PATIENCE).await;
    assert_eq!(equal, Ok(()));
    hold.release().await;

    // The slots no longer hold what it lacks: another start of the proxy must not take it for whole.
    cluster.restart_proxy().await;
    let client = cluster.client().await;
    run(&client, "insert into t values (1000, 'after')").await;
    until_status(&cluster, 2, "fenced").await;
    let equal = cluster.compare_some(&[0, 1], PATIENCE).await;
    assert_eq!(equal, Ok(()));
    let third = cluster.node(2).await;
    let found = rows(&third, "select 1 from t where a = 1000").await;
    assert!(found.is_empty(), "a fenced node is left alone");
}

/// The body of an answer of the proxy's port for operators.
async fn http(cluster: &TestCluster, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let talk = async {
        let port = cluster.http_port();
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), talk).await;
    answer.expect("an answer").expect("an answer")
}
