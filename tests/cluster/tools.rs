//! What the tests of behaviour need besides a cluster: questions, patience, and a hold on an applier.

use std::future::Future;
use std::time::{Duration, Instant};

use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::cluster::{TestCluster, connect};

/// How long anything that must happen may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long something that must not happen is watched.
pub const WATCHED: Duration = Duration::from_millis(700);

/// Whether there is time for everything.
pub fn is_all() -> bool {
    std::env::var_os("SYNAPSEDB_TEST_ALL").is_some()
}

/// What chance begins with: `SEED`, else any where there is time for everything, else the same each time.
pub fn seed() -> u64 {
    let given = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| if is_all() { rand::random() } else { 1 })
}

/// Runs statements that must succeed.
pub async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        panic!("{sql}: {error:?}");
    }
}

/// The rows of a query as text, columns joined by `|`.
pub async fn rows(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await;
    let messages = messages.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let line = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let values = (0..row.len()).map(|at| row.get(at).unwrap_or("null"));
            Some(values.collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    messages.iter().filter_map(line).collect()
}

/// The first column of the first row.
pub async fn ask(client: &Client, sql: &str) -> String {
    rows(client, sql)
        .await
        .into_iter()
        .next()
        .unwrap_or_default()
}

/// Waits until the question is answered with yes.
pub async fn until<F: Future<Output = bool>>(what: &str, question: impl FnMut() -> F) {
    within(PATIENCE, what, question).await;
}

/// The same where the time is what is promised. How long it took.
pub async fn within<F: Future<Output = bool>>(
    patience: Duration,
    what: &str,
    mut question: impl FnMut() -> F,
) -> Duration {
    let began = Instant::now();
    while !question().await {
        let waited = began.elapsed();
        assert!(waited < patience, "in vain for {waited:?}: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    began.elapsed()
}

/// One value by a connection of its own through the proxy; none where that fails.
pub async fn try_ask(cluster: &TestCluster, sql: &str) -> Option<String> {
    let client = connect(cluster.port(), USER, PASSWORD, DATABASE).await;
    let messages = client.ok()?.simple_query(sql).await.ok()?;
    messages.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

/// In which state the proxy shows the node, where it shows anything.
pub async fn status(cluster: &TestCluster, node: usize) -> Option<String> {
    let name = cluster.server_ref(node).name();
    let sql = format!("select status from cluster_nodes where node_name = '{name}'");
    try_ask(cluster, &sql).await
}

/// Waits until the proxy shows the node in this state.
pub async fn until_status(cluster: &TestCluster, node: usize, wanted: &str) {
    let name = cluster.server_ref(node).name();
    until(&format!("{name} is {wanted}"), || async {
        status(cluster, node).await.as_deref() == Some(wanted)
    })
    .await;
}

/// A lock that the follower's applier runs into.
pub struct Hold {
    client: Client,
}

impl Hold {
    /// Locks a table on one node, past the proxy.
    pub async fn table(cluster: &TestCluster, node: usize, database: &str, table: &str) -> Self {
        let client = cluster.node_db(node, database).await;
        run(
            &client,
            &format!("set idle_in_transaction_session_timeout = 0; begin read write; lock table {table} in share row exclusive mode"),
        )
        .await;
        Self { client }
    }

    /// Lets the applier go on.
    pub async fn release(self) {
        run(&self.client, "rollback").await;
    }
}

/// Whether something is still going on after having been watched for a while.
pub async fn still_waits<T>(task: &mut tokio::task::JoinHandle<T>) -> bool {
    tokio::time::timeout(WATCHED, task).await.is_err()
}

/// A statement in a task of its own, with its outcome.
pub async fn in_the_background(
    cluster: &TestCluster,
    sql: &str,
) -> tokio::task::JoinHandle<Result<(), tokio_postgres::Error>> {
    let client = cluster.client().await;
    let sql = sql.to_owned();
    tokio::spawn(async move { client.batch_execute(&sql).await })
}

/// A signal to a server's process.
pub fn signal(pid: &str, signal: &str) {
    let status = std::process::Command::new("kill")
        .args([signal, pid])
        .status();
    assert!(status.expect("kill runs").success(), "kill {signal} {pid}");
}

/// The process of the applier on a node, for the cluster's database.
pub async fn applier_pid(node: &Client) -> Option<String> {
    let sql = "select pid from pg_stat_activity where usename = 'synapsedb_applier' and datname = current_database()";
    rows(node, sql).await.into_iter().next()
}
