//! Nodes that are there and not well: one that is slow, one whose disk is full. Nobody waits for either, the proxy says
//! how they do, and both have everything in the end.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::time::Duration;

use synapsedb::cli::demo::server::Stop;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::Client;

use crate::support::cluster::TestCluster;
use crate::support::http;
use crate::tools::{ask, rows, run, try_ask, until, until_status};

/// What the slow node's answers take longer.
const DELAY: Duration = Duration::from_millis(40);
/// Which is followed by the slow one and another.
const SLOW: usize = 2;

/// Leads from a free port to the node. What the node says arrives later.
fn slow_wire(node: u16) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    let port = listener.local_addr().expect("bound").port();
    let listener = TcpListener::from_std(listener).expect("a socket");
    tokio::spawn(async move {
        while let Ok((proxy, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(node) = TcpStream::connect(("127.0.0.1", node)).await else {
                    return;
                };
                let (mut from_proxy, mut to_proxy) = proxy.into_split();
                let (mut from_node, mut to_node) = node.into_split();
                let back = async move {
                    let mut piece = vec![0; 1 << 16];
                    while let Ok(read @ 1..) = from_node.read(&mut piece).await {
                        tokio::time::sleep(DELAY).await;
                        if to_proxy.write_all(&piece[..read]).await.is_err() {
                            return;
                        }
                    }
                };
                // Either end closes both.
                tokio::select! {
                    () = back => {}
                    _ = tokio::io::copy(&mut from_proxy, &mut to_node) => {}
                }
            });
        }
    });
    port
}

/// The cluster with a slow third node.
async fn with_slow_node() -> TestCluster {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    let file = cluster.folder().join("proxy.toml");
    let config = std::fs::read_to_string(&file).expect("ours");
    let old = format!("port = {}", cluster.node_port(SLOW));
    let new = format!("port = {}", slow_wire(cluster.node_port(SLOW)));
    assert!(config.contains(&old), "{config}");
    std::fs::write(&file, config.replace(&old, &new)).expect("ours");
    cluster.start_proxy().await;
    cluster
}

/// How many of so many reads each node answers, by its port.
async fn readers(client: &Client, reads: usize) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for _ in 0..reads {
        let port = ask(client, "select port_here() from kept limit 1").await;
        *found.entry(port).or_default() += 1;
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_follower_is_waited_for_by_nobody_and_hardly_read() {
    let cluster = with_slow_node().await;
    let client = cluster.client().await;
    run(
        &client,
        "create table kept (a int); insert into kept values (0);
         create function port_here() returns int language sql stable as 'select inet_server_port()'",
    )
    .await;
    until_status(&cluster, SLOW, "in_sync").await;
    cluster.assert_nodes_equal().await;
    let slow = cluster.node(SLOW).await;
    let mut ahead = 0;
    for n in 1..=50 {
        run(&client, &format!("insert into kept values ({n})")).await;
        let there: usize = ask(&slow, "select count(*) from kept")
            .await
            .parse()
            .expect("a number");
        ahead += usize::from(there <= n);
    }
    assert!(ahead > 25, "only {ahead} of 50 commits were ahead of it");
    let millis = DELAY.as_millis();
    until("its latency is shown", || async {
        let sql = format!(
            "select count(*) filter (where latency_ms >= {millis}) = 1 and
                    bool_and((latency_ms >= {millis}) = (node_id = {})) from cluster_nodes",
            SLOW + 1
        );
        try_ask(&cluster, &sql).await.as_deref() == Some("t")
    })
    .await;
    cluster.assert_nodes_equal().await;
    let reader = cluster.reader().await;
    let writer = cluster.node_port(0).to_string();
    until("followers answer", async || {
        !readers(&reader, 20).await.contains_key(&writer)
    })
    .await;
    let found = readers(&reader, 300).await;
    let theirs = found.get(&cluster.node_port(SLOW).to_string());
    assert!(theirs.copied().unwrap_or_default() < 30, "{found:?}");
    until_status(&cluster, SLOW, "in_sync").await;
}

/// No page can be added to the table on a node any more: the node says 53100.
async fn fill_up(cluster: &mut TestCluster, node: usize, table: &str) -> std::path::PathBuf {
    let path = {
        let client = cluster.node(node).await;
        ask(&client, &format!("select pg_relation_filepath('{table}')")).await
    };
    let path = cluster.server_ref(node).data().join(path);
    tokio::task::block_in_place(|| {
        cluster.server(node).stop(Stop::Fast).expect("stops");
        std::fs::rename(&path, path.with_extension("kept")).expect("ours");
        symlink("/dev/full", &path).expect("ours");
        cluster.server(node).start().expect("starts");
    });
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_without_room_holds_nobody_up_and_goes_on_once_there_is_some() {
    let mut cluster = TestCluster::start().await;
    let (client, reader) = (cluster.client().await, cluster.reader().await);
    run(
        &client,
        "create table kept (a int); create table other (a int)",
    )
    .await;
    cluster.assert_nodes_equal().await;
    let path = fill_up(&mut cluster, 1, "kept").await;
    until_status(&cluster, 1, "in_sync").await;
    run(&client, "insert into other values (1)").await;
    for n in 0..20 {
        run(&client, &format!("insert into kept values ({n})")).await;
        let count = (n + 1).to_string();
        assert_eq!(ask(&client, "select count(*) from kept").await, count);
        assert_eq!(ask(&reader, "select count(*) from kept").await, count);
    }
    until("the proxy says why", || async {
        let (_, status) = http::get(cluster.http_port(), "/status").await;
        status.contains("No space left on device")
    })
    .await;
    until_status(&cluster, 1, "catching_up").await;
    tokio::task::block_in_place(|| {
        cluster.server(1).stop(Stop::Fast).expect("stops");
        std::fs::rename(path.with_extension("kept"), &path).expect("ours");
        cluster.server(1).start().expect("starts");
    });
    until_status(&cluster, 1, "in_sync").await;
    run(&client, "insert into kept values (20)").await;
    cluster.assert_nodes_equal().await;
    assert_eq!(
        rows(&cluster.node(1).await, "select a from kept")
            .await
            .len(),
        21
    );
}
