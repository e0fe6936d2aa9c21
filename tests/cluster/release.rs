//! `synapsedb release` on nodes that a proxy has set up: afterwards each is as it was, and nothing hangs.

use std::process::{Command, Output};
use std::time::Duration;

use tokio_postgres::Client;

use crate::support::cluster::TestCluster;

/// Everything that the proxy may have left on a node, one line each.
const TRACES: &str = "
    select 'setting ' || name || ' ' || coalesce(setting, '') || ' ' || source from pg_settings
     where name in ('synchronous_standby_names', 'synchronous_commit', 'client_min_messages', 'wal_level')
    union all select 'file ' || name || ' ' || coalesce(setting, '') from pg_file_settings
     where sourcefile like '%auto.conf'
    union all select 'trigger ' || evtname || evtevent from pg_event_trigger
    union all select 'publication ' || pubname from pg_publication
    union all select 'slot ' || slot_name from pg_replication_slots
    union all select 'origin ' || roname from pg_replication_origin
    union all select 'role ' || rolname || ' ' || coalesce(rolconfig::text, '') from pg_roles
    union all select 'schema ' || nspname || ' ' || coalesce(nspacl::text, '') from pg_namespace
     where nspname !~ '^pg_(temp|toast_temp)'
    union all select 'function ' || oid::regprocedure || ' ' || coalesce(proacl::text, '') from pg_proc
     where pronamespace = 'pg_catalog'::regnamespace and proname ~ '^pg_replication_origin'
    union all select 'parameter ' || parname || paracl::text from pg_parameter_acl
    union all select 'table ' || oid::regclass || relreplident::text from pg_class
     where relkind in ('r', 'v') and relnamespace = 'public'::regnamespace
    order by 1";

async fn traces(cluster: &TestCluster, node: usize) -> Vec<String> {
    let mut all = Vec::new();
    for database in ["synapsedb", "postgres"] {
        let client = cluster.node_db(node, database).await;
        let rows = client.query(TRACES, &[]).await.expect("a catalog query");
        for row in rows {
            all.push(format!("{database}: {}", row.get::<_, String>(0)));
        }
    }
    all
}

async fn all_traces(cluster: &TestCluster) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for node in 0..cluster.nodes() {
        all.push(traces(cluster, node).await);
    }
    all
}

fn run(command: &mut Command) -> (bool, String) {
    let output: Output =
        tokio::task::block_in_place(|| command.output()).expect("the program runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let text = text + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// A write straight on a node must not wait for anybody.
async fn writes_at_once(client: &Client, sql: &str) {
    let written = tokio::time::timeout(Duration::from_secs(5), client.batch_execute(sql)).await;
    written.expect("the commit hangs").expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_node_is_as_it_was_before() {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    let before = all_traces(&cluster).await;
    cluster.start_proxy().await;
    let client = cluster.client().await;
    client
        .batch_execute("create table kept (a int primary key); insert into kept values (1)")
        .await
        .expect("written");
    cluster.assert_nodes_equal().await;

    // Not while a proxy is at work, on whichever node, and nothing has changed by asking.
    for node in ["node1", "node3"] {
        let (good, said) = run(cluster.command("release").args(["--node", node]));
        assert!(!good && said.contains("a proxy is at work on it"), "{said}");
    }
    client
        .batch_execute("insert into kept values (2)")
        .await
        .expect("the proxy goes on");
    drop(client);
    cluster.assert_nodes_equal().await;
    cluster.kill_proxy();

    // A commit hangs on the writer; release ends its wait.
    let direct = cluster.node(0).await;
    let hanging =
        tokio::spawn(async move { direct.batch_execute("insert into kept values (3)").await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!hanging.is_finished(), "the node waits for the proxy");
    let (good, said) = run(&mut cluster.command("release"));
    assert!(good, "{said}");
    let ended = tokio::time::timeout(Duration::from_secs(5), hanging).await;
    ended
        .expect("its wait has ended")
        .expect("no panic")
        .expect("committed");
    let after = all_traces(&cluster).await;
    for (node, (before, after)) in before.iter().zip(&after).enumerate() {
        let new: Vec<_> = after.iter().filter(|l| !before.contains(l)).collect();
        let gone: Vec<_> = before.iter().filter(|l| !after.contains(l)).collect();
        let new: Vec<_> = new.iter().filter(|l| !l.contains("kept")).collect();
        assert!(
            new.is_empty() && gone.is_empty(),
            "node {node}: new {new:?}, gone {gone:?}"
        );
    }
    // Each node is an ordinary server again. What only the first one got is given to the others.
    for node in 0..cluster.nodes() {
        let client = cluster.node(node).await;
        writes_at_once(
            &client,
            "insert into kept values (3) on conflict do nothing",
        )
        .await;
        writes_at_once(&client, "insert into kept values (4)").await;
        writes_at_once(&client, "create table more (a int)").await;
    }
    cluster.assert_nodes_equal().await;
    // And may become part of a cluster again.
    cluster.start_proxy().await;
    let client = cluster.client().await;
    client
        .batch_execute("insert into kept values (5)")
        .await
        .expect("written");
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn release_says_what_it_could_not_reach_and_does_the_rest() {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    cluster.start_proxy().await;
    cluster.kill_proxy();
    tokio::task::block_in_place(|| cluster.server(1).kill9());
    let (good, said) = run(&mut cluster.command("release"));
    assert!(!good, "{said}");
    assert!(said.contains("node1: released"), "{said}");
    assert!(said.contains("node2: not released"), "{said}");
    assert!(said.contains("node3: released"), "{said}");
    tokio::task::block_in_place(|| cluster.server(1).start()).expect("starts");
    let (good, said) = run(cluster.command("release").args(["--node", "node2"]));
    assert!(good && said.contains("node2: released"), "{said}");
    for node in 0..cluster.nodes() {
        let client = cluster.node(node).await;
        writes_at_once(&client, "create table t (a int)").await;
    }
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_hangs_is_ended_on_the_nodes_by_force() {
    let mut cluster = TestCluster::start().await;
    let client = cluster.client().await;
    client
        .batch_execute("create table kept (a int primary key)")
        .await
        .expect("written");
    cluster.assert_nodes_equal().await;
    // Stopped, not dead: its connections stay, and nobody answers on them.
    signal(cluster.proxy_pid(), "STOP");
    let (good, said) = run(&mut cluster.command("release"));
    assert!(!good && said.contains("--force"), "{said}");
    let (good, said) = run(cluster.command("release").arg("--force"));
    assert!(good, "{said}");
    for node in 0..cluster.nodes() {
        let client = cluster.node(node).await;
        writes_at_once(&client, "insert into kept values (1)").await;
    }
    signal(cluster.proxy_pid(), "CONT");
    cluster.kill_proxy();
    cluster.assert_nodes_equal().await;
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
    assert!(sent.is_ok_and(|status| status.success()));
}
