//! The servers that the demo and the tests start: what they do when killed, frozen and left behind.

use std::time::Duration;

use synapsedb::cli::demo::server::{Stop, accepts_connections};

use crate::support::cluster::TestCluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_stopped_killed_frozen_and_started_again_with_its_data() {
    let mut cluster = TestCluster::builder()
        .nodes(1)
        .without_proxy()
        .start()
        .await;
    let client = cluster.node(0).await;
    client
        .batch_execute("create table kept (a int); insert into kept values (1)")
        .await
        .expect("made");

    tokio::task::block_in_place(|| cluster.server(0).stop(Stop::Fast)).expect("stops");
    assert!(!cluster.server(0).is_running());
    tokio::task::block_in_place(|| cluster.server(0).start()).expect("starts");

    let client = cluster.node(0).await;
    client
        .batch_execute("insert into kept values (2)")
        .await
        .expect("made");
    tokio::task::block_in_place(|| cluster.server(0).kill9());
    assert!(!cluster.server(0).is_running());
    assert!(!accepts_connections(cluster.node_port(0)));
    tokio::task::block_in_place(|| cluster.server(0).start()).expect("recovers");
    let client = cluster.node(0).await;
    let row = client
        .query_one("select sum(a) from kept", &[])
        .await
        .expect("kept");
    assert_eq!(row.get::<_, i64>(0), 3);

    cluster.server(0).pause();
    let frozen = client.simple_query("select 1");
    assert!(
        tokio::time::timeout(Duration::from_millis(300), frozen)
            .await
            .is_err()
    );
    cluster.server(0).resume();
    client.simple_query("select 1").await.expect("goes on");
}
