//! The cluster's metadata as SQL: any client, any statement, true when it is asked.

use std::process::Command;
use std::time::{Duration, Instant};

use tokio_postgres::error::ErrorPosition;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::cluster::TestCluster;

/// The first column of each row of a simple query.
async fn simple(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await;
    let messages = messages.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let value = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    messages.iter().filter_map(value).collect()
}

/// Clients are let in a moment before the followers' appliers are at work.
async fn until_in_sync(client: &Client) {
    let until = Instant::now() + Duration::from_secs(20);
    let states = "select status from cluster_nodes";
    while simple(client, states).await != ["in_sync"; 3] {
        assert!(Instant::now() < until, "not all nodes are in sync");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn position(error: &tokio_postgres::Error) -> u32 {
    match error.as_db_error().and_then(|e| e.position()) {
        Some(ErrorPosition::Original(position)) => *position,
        other => panic!("{other:?} in {error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_nodes_and_check_quorum_work_in_any_statement() {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    for index in 0..3 {
        let node = cluster.node(index).await;
        node.batch_execute("create role plain login password 'plain'")
            .await
            .expect("made");
    }
    cluster.start_proxy().await;
    let client = cluster.client().await;
    until_in_sync(&client).await;
    healthy(&client).await;
    statements(&client).await;
    prepared(&client).await;
    errors_are_where_the_client_wrote(&client).await;
    let reader = cluster.reader().await;
    assert_eq!(
        simple(&reader, "select count(*) from cluster_nodes").await,
        ["3"]
    );
    // In every database, and for everyone.
    let plain = cluster.client_as("plain", "plain", "postgres").await;
    assert_eq!(
        simple(&plain, "select count(*) from cluster_nodes").await,
        ["3"]
    );
    assert_eq!(simple(&plain, "select check_quorum()").await, ["t"]);
    through_psql(&cluster);
    cluster.assert_nodes_equal().await;
}

async fn healthy(client: &Client) {
    let row = "select node_id, node_name, host, port, status, is_writer, last_heartbeat > now() - interval '5 s',
                      latency_ms > 0, in_flight, lag_bytes, lag_seconds
                 from cluster_nodes order by node_id";
    let rows = client.query(row, &[]).await.expect("rows");
    assert_eq!(rows.len(), 3);
    for (at, row) in rows.iter().enumerate() {
        assert_eq!(row.get::<_, String>(1), format!("node{}", at + 1));
        assert_eq!(row.get::<_, String>(4), "in_sync");
        assert_eq!(row.get::<_, bool>(5), at == 0);
        assert_eq!(row.get::<_, Option<bool>>(6), Some(true));
        assert_eq!(row.get::<_, Option<bool>>(7), Some(true));
    }
    assert_eq!(simple(client, "SELECT check_quorum()").await, ["t"]);
}

async fn statements(client: &Client) {
    client
        .batch_execute("create table names (name text primary key); insert into names values ('node2'), ('other')")
        .await
        .expect("made");
    for (sql, expected) in [
        (
            "select node_id from cluster_nodes join names on name = node_name",
            vec!["2"],
        ),
        (
            "select count(*) from cluster_nodes where status = 'in_sync' and port > 0",
            vec!["3"],
        ),
        (
            "select n.node_name from names, Cluster_Nodes n where is_writer limit 1",
            vec!["node1"],
        ),
        (
            "with c as (select * from cluster_nodes) select count(*) from c",
            vec!["3"],
        ),
        (
            "select count(*) from synapsedb.cluster_nodes where synapsedb.check_quorum()",
            vec!["3"],
        ),
        (
            "select 1; select check_quorum(); select 2",
            vec!["1", "t", "2"],
        ),
        (
            "begin; select count(*) from cluster_nodes; commit",
            vec!["3"],
        ),
        (
            "insert into names select 'ä ' || node_name from cluster_nodes returning name",
            vec!["ä node1", "ä node2", "ä node3"],
        ),
        ("select 'cluster_nodes'", vec!["cluster_nodes"]),
    ] {
        assert_eq!(simple(client, sql).await, expected, "{sql}");
    }
}

async fn prepared(client: &Client) {
    let statement = client
        .prepare("select node_name from cluster_nodes where node_id = $1 and check_quorum()")
        .await
        .expect("prepared");
    for _ in 0..2 {
        for id in 1..=3 {
            let row = client.query_one(&statement, &[&id]).await.expect("a row");
            assert_eq!(row.get::<_, String>(0), format!("node{id}"));
        }
    }
    // Not deallocated: the user's own tables have these names now, and the statement keeps its meaning.
    client
        .batch_execute("create schema mine; create table mine.cluster_nodes (a int); set search_path = mine; insert into cluster_nodes values (7)")
        .await
        .expect("made");
    assert_eq!(simple(client, "select * from cluster_nodes").await, ["7"]);
    assert_eq!(
        simple(client, "select count(*) from synapsedb.cluster_nodes").await,
        ["3"]
    );
    client
        .batch_execute("reset search_path; drop schema mine cascade")
        .await
        .expect("dropped");
}

async fn errors_are_where_the_client_wrote(client: &Client) {
    for (sql, at) in [
        ("select nothing_here from cluster_nodes", "nothing_here"),
        (
            "select 'ä', 1 from cluster_nodes c where nothing_here",
            "nothing_here",
        ),
        ("select 1 from cluster_nodes, nothing_here", "nothing_here"),
        ("select 1 from cluster_nodes where nothing(1)", "nothing"),
        ("nonsense from cluster_nodes", "nonsense"),
    ] {
        let before = sql.find(at).expect("is in it");
        let wanted = u32::try_from(sql[..before].chars().count() + 1).expect("short");
        let error = client.simple_query(sql).await.expect_err(sql);
        assert_eq!(position(&error), wanted, "{sql}");
        let error = client.prepare(sql).await.expect_err(sql);
        assert_eq!(position(&error), wanted, "{sql}");
    }
}

fn through_psql(cluster: &TestCluster) {
    let psql = |sql: &str| {
        let output = Command::new(cluster.program("psql"))
            .args(["-X", "-c", sql, &cluster.url()])
            .output()
            .expect("psql runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let described = psql("\\d synapsedb.cluster_nodes");
    for column in ["node_id", "status", "lag_seconds"] {
        assert!(described.contains(column), "{described}");
    }
    let copied = psql("\\copy (select node_name, status from cluster_nodes order by 1) to stdout");
    assert_eq!(copied, "node1\tin_sync\nnode2\tin_sync\nnode3\tin_sync\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_the_user_gave_to_something_else_are_left_alone() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    // Not yet committed, and temporary: nobody else can see them.
    client
        .batch_execute(
            "begin; create table cluster_nodes (a int); insert into cluster_nodes values (1)",
        )
        .await
        .expect("made");
    assert_eq!(simple(&client, "select * from cluster_nodes").await, ["1"]);
    client.batch_execute("rollback").await.expect("taken back");
    let other = cluster.client().await;
    other
        .batch_execute(
            "create temp table cluster_nodes (a int); insert into cluster_nodes values (2)",
        )
        .await
        .expect("made");
    assert_eq!(simple(&other, "select * from cluster_nodes").await, ["2"]);
    // The temporary one is its own session's alone.
    let third = cluster.client().await;
    assert_eq!(
        simple(&third, "select count(*) from cluster_nodes").await,
        ["3"]
    );
    // One for everybody.
    third
        .batch_execute("create table public.cluster_nodes (a int); insert into public.cluster_nodes values (5); create function check_quorum() returns int language sql return 9")
        .await
        .expect("made");
    let fourth = cluster.client().await;
    assert_eq!(simple(&fourth, "select * from cluster_nodes").await, ["5"]);
    assert_eq!(simple(&fourth, "select check_quorum()").await, ["9"]);
    assert_eq!(
        simple(&fourth, "select count(*) from synapsedb.cluster_nodes").await,
        ["3"]
    );
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_is_true_within_a_second_after_a_follower_died() {
    let mut cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let states = "select status from cluster_nodes order by node_id";
    let prepared = client.prepare(states).await.expect("prepared");
    until_in_sync(&client).await;
    tokio::task::block_in_place(|| cluster.server(1).kill9());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        simple(&client, states).await,
        ["in_sync", "down", "in_sync"]
    );
    let rows = client.query(&prepared, &[]).await.expect("rows");
    assert_eq!(rows[1].get::<_, String>(0), "down");
    assert_eq!(simple(&client, "select check_quorum()").await, ["t"]);
    client
        .batch_execute("create table t (a int primary key); insert into t values (1)")
        .await
        .expect("two of three are a majority");
    let behind = "select lag_bytes > 0 from cluster_nodes where node_id = 2";
    assert_eq!(simple(&client, behind).await, ["t"]);
    tokio::task::block_in_place(|| cluster.server(2).kill9());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(simple(&client, states).await, ["in_sync", "down", "down"]);
    assert_eq!(simple(&client, "select check_quorum()").await, ["f"]);
    tokio::task::block_in_place(|| {
        cluster.server(1).start().expect("starts");
        cluster.server(2).start().expect("starts");
    });
    cluster.assert_nodes_equal().await;
    until_in_sync(&client).await;
}
