//! What a client is told of a commit is certain, or 08007 (rule 4).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use synapsedb::cluster::commits::Commits;
use synapsedb::cluster::jumps::Jump;
use synapsedb::cluster::reads::Reads;
use synapsedb::cluster::service::{Answer, Order, OwnNames, Service};
use synapsedb::error::ClientError;
use synapsedb::ids::NodeId;

use crate::house::{House, value};

/// A cluster that answers as it is told.
#[derive(Default)]
struct Told {
    asked: AtomicUsize,
    doubts: AtomicBool,
}

impl Service for Told {
    fn wait_quorum(&self, _: NodeId) -> Answer<'_, Result<(), ClientError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let doubts = self.doubts.load(Ordering::SeqCst);
        let answer = if doubts {
            Err(ClientError::CommitUnknown)
        } else {
            Ok(())
        };
        Box::pin(std::future::ready(answer))
    }

    fn refresh_metadata<'a>(&'a self, _: &'a str) -> Answer<'a, Result<OwnNames, ClientError>> {
        Box::pin(std::future::ready(Ok(OwnNames::default())))
    }

    fn catalog_generation(&self) -> u64 {
        0
    }

    fn catalog(&self, _: &str) -> Arc<synapsedb::sql::catalog::Catalog> {
        Arc::default()
    }

    fn reads(&self) -> Option<&Arc<Reads>> {
        None
    }

    fn commits(&self) -> Option<&Arc<Commits>> {
        None
    }

    fn jump(&self) -> Option<Jump> {
        None
    }

    fn replicates(&self, _: &str) -> bool {
        true
    }

    fn enter(&self, _: &str) -> Option<synapsedb::cluster::guests::Guest> {
        None
    }

    fn log_secret(&self) -> Option<&str> {
        None
    }

    fn before_drop<'a>(&'a self, _: &'a str) -> Answer<'a, Result<(), ClientError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn after_failed_drop<'a>(&'a self, _: &'a str) -> Answer<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn run_elsewhere<'a>(
        &'a self,
        _: &'a Order,
    ) -> Answer<'a, synapsedb::cluster::service::Outcome> {
        Box::pin(std::future::ready(
            synapsedb::cluster::service::Outcome::default(),
        ))
    }

    fn upkeep_elsewhere(&self, _: Order) {}

    fn command_failed(&self, _: NodeId, _: &str, _: &str, _: &str) {}
}

/// Waits until a backend waits for its standby, and ends the wait by this function.
async fn break_wait(node: &tokio_postgres::Client, by: &str) {
    let waits = "select pid from pg_stat_activity where wait_event = 'SyncRep'";
    for _ in 0..100 {
        let rows = crate::house::rows(node, waits).await;
        if let [pid] = rows.as_slice() {
            value(node, &format!("select {by}({pid})")).await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nobody waits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_wait_is_not_an_answer() {
    let house = House::open(4).await;
    let told = Arc::new(Told::default());
    house
        .shared
        .relay
        .set_service(Arc::clone(&told) as Arc<dyn Service>);
    let node = house.cluster.node(0).await;
    node.batch_execute("set synchronous_commit = local; create table t (a int)")
        .await
        .expect("made");
    node.batch_execute("alter system set synchronous_standby_names = 'nobody'")
        .await
        .expect("set");
    node.batch_execute("select pg_reload_conf()")
        .await
        .expect("set");
    tokio::time::sleep(Duration::from_millis(300)).await;

    // The wait is cancelled on the node itself, the majority has it: an ordinary answer, no warning.
    let mut raw = house.raw().await;
    raw.query("insert into t values (1)").go().await;
    break_wait(&node, "pg_cancel_backend").await;
    assert_eq!(raw.hear().await, "CZ");
    assert_eq!(told.asked.load(Ordering::SeqCst), 1);
    // The same in the extended protocol and in a transaction.
    raw.parse("", "insert into t values (2)")
        .bind("", "", &[])
        .execute("", 0)
        .sync()
        .go()
        .await;
    break_wait(&node, "pg_cancel_backend").await;
    assert_eq!(raw.hear().await, "12CZ");
    assert_eq!(raw.query("begin").ask().await, "CZ");
    assert_eq!(
        raw.query("set client_min_messages = error").ask().await,
        "CZ"
    );
    assert_eq!(raw.query("insert into t values (3)").ask().await, "CZ");
    let asked = told.asked.load(Ordering::SeqCst);
    raw.query("commit").go().await;
    break_wait(&node, "pg_cancel_backend").await;
    assert_eq!(raw.hear().await, "CZ");
    assert!(
        told.asked.load(Ordering::SeqCst) > asked,
        "asked though the server said nothing"
    );
    // Whoever silenced the server before hears of it no less.
    let asked = told.asked.load(Ordering::SeqCst);
    raw.query("insert into t values (4)").go().await;
    break_wait(&node, "pg_cancel_backend").await;
    assert_eq!(raw.hear().await, "CZ");
    assert_eq!(told.asked.load(Ordering::SeqCst), asked + 1);

    // No majority is known to have it.
    told.doubts.store(true, Ordering::SeqCst);
    let mut raw = house.raw().await;
    raw.query("insert into t values (5)").go().await;
    break_wait(&node, "pg_cancel_backend").await;
    assert_eq!(raw.hear().await, "E(08007).");
    told.doubts.store(false, Ordering::SeqCst);

    // The connection is lost: while a commit waits, in a transaction, and while something is read.
    for (before, text, code) in [
        (None, "insert into t values (6)", "08007"),
        (Some("begin; insert into t values (7)"), "commit", "08007"),
    ] {
        let mut raw = house.raw().await;
        if let Some(before) = before {
            raw.query(before).ask().await;
        }
        raw.query(text).go().await;
        break_wait(&node, "pg_terminate_backend").await;
        assert_eq!(raw.hear().await, format!("E({code})Z"), "{text}");
    }
    let kill = |text: &str| {
        format!("select pg_terminate_backend(pid) from pg_stat_activity where query = '{text}'")
    };
    let mut raw = house.raw().await;
    assert_eq!(raw.query("begin").ask().await, "CZ");
    let sleep = "select pg_sleep(30) /* in a transaction */";
    raw.query(sleep).go().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    value(&node, &kill(sleep)).await;
    assert!(raw.hear().await.ends_with("E(40001)Z"));
    let mut raw = house.raw().await;
    let idle = "begin /* and wait */";
    assert_eq!(raw.query(idle).ask().await, "CZ");
    // The node hears of it a little later.
    while crate::house::rows(&node, &kill(idle)).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Nobody is there to be told, until it goes on.
    while !crate::house::rows(&node, &kill(idle)).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let lost = "E(ERROR 40001 the connection to the writer was lost inside the transaction )Z(E)";
    raw.query("insert into t values (8)").says(lost).await;
    raw.query("commit").says("C(ROLLBACK)Z(I)").await;
    // Idle connections that died do not hurt the next.
    let mut raw = house.raw().await;
    assert_eq!(raw.query("select 1").ask().await, "TD(1)CZ");
    node.batch_execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' \
         and pid <> pg_backend_pid() and application_name = ''",
    )
    .await
    .expect("ended");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(raw.query("select 2").ask().await, "TD(2)CZ");
}
