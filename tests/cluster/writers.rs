//! Another writer after the death of one: DDL, a proxy that is killed then, and the dead one's return. What clients
//! meet meanwhile is in `failover.rs`.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::support::cluster::TestCluster;
use crate::tools::{PATIENCE, ask, run, until};

/// A client that may come while nobody writes yet.
async fn client(cluster: &TestCluster) -> Client {
    let end = Instant::now() + PATIENCE;
    loop {
        let (client, connection) =
            match tokio_postgres::connect(&cluster.url(), tokio_postgres::NoTls).await {
                Ok(both) => both,
                Err(error) => {
                    assert!(Instant::now() < end, "no login: {error:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
        tokio::spawn(connection);
        return client;
    }
}

async fn writer(cluster: &TestCluster) -> String {
    let client = client(cluster).await;
    ask(
        &client,
        "select node_name from cluster_nodes where is_writer",
    )
    .await
}

/// Until the node at `place` writes.
async fn until_writer_is_not(cluster: &TestCluster, former: &str) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = writer(cluster).await;
        if !now.is_empty() && now != former {
            return now;
        }
        assert!(
            Instant::now() < end,
            "in vain: another writer than {former}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writer_is_followed_by_another() {
    let mut cluster = TestCluster::start().await;
    let before = client(&cluster).await;
    run(&before, "create table t (id int primary key, who text)").await;
    run(
        &before,
        "insert into t select i, 'before' from generate_series(1, 100) i",
    )
    .await;
    let former = writer(&cluster).await;
    cluster.server(0).kill9();
    let now = until_writer_is_not(&cluster, &former).await;
    assert_ne!(now, former);
    let after = client(&cluster).await;
    run(
        &after,
        "insert into t select i, 'after' from generate_series(101, 200) i",
    )
    .await;
    assert_eq!(ask(&after, "select count(*) from t").await, "200");
    run(&after, "create table after_it (id int primary key)").await;
    cluster
        .compare_some(&[1, 2], PATIENCE)
        .await
        .expect("equal");
    cluster.server(0).start().expect("started again");
    until("the former writer is fenced", || async {
        let status = format!("select status from cluster_nodes where node_name = '{former}'");
        ask(&after, &status).await == "fenced"
    })
    .await;
    run(&after, "insert into t values (1000, 'with a fenced node')").await;
    // Once more, by another proxy.
    cluster.restart_proxy().await;
    let again = client(&cluster).await;
    assert_eq!(writer(&cluster).await, now);
    run(&again, "insert into t values (1001, 'after a restart')").await;
    cluster
        .compare_some(&[1, 2], PATIENCE)
        .await
        .expect("equal");
}
