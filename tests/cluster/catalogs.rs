//! What names stand for, at the moment when DDL changes it: code that comes under a known name is found out,
//! whether the snapshot of names has been read again yet or not.

use std::time::Duration;

use tokio_postgres::Client;

use crate::support::cluster::TestCluster;
use crate::tools::{ask, run, until};

/// A function that leaves the session alone, and under the same name one that does not.
const TAME: &str =
    "create or replace function known() returns int language sql immutable as 'select 1'";
const WILD: &str = "create or replace function known() returns int language plpgsql volatile as \
                    $$ begin perform set_config('work_mem', '5MB', false); return 2; end $$";

#[tokio::test(flavor = "multi_thread")]
async fn code_under_a_known_name_is_found_out_as_soon_as_its_commit_is_answered() {
    let mut cluster = TestCluster::builder()
        .config("[pool]\nmax_connections = 2")
        .start()
        .await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    run(&one, "create table t (a int)").await;

    // The commit waits long after it was decoded: what is read meanwhile does not show it.
    run(&one, TAME).await;
    settled(&cluster).await;
    cluster.server(1).pause();
    cluster.server(2).pause();
    let waits = async { run(&one, WILD).await };
    let go_on = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(ask(&two, "select known()").await, "1", "not visible yet");
        cluster.server(1).resume();
        cluster.server(2).resume();
    };
    tokio::join!(waits, go_on);
    for _ in 0..2 {
        assert_eq!(ask(&one, "select known()").await, "2");
        nothing_left(&cluster).await;
        run(&one, "reset work_mem").await;
        settled(&cluster).await;
    }

    // Right behind the answer, before anything can have been read.
    for _ in 0..5 {
        run(&one, TAME).await;
        settled(&cluster).await;
        run(&one, WILD).await;
        assert_eq!(ask(&one, "select known()").await, "2");
        nothing_left(&cluster).await;
        run(&one, "reset work_mem").await;
    }

    // A statement that was judged before the DDL and waits for its lock runs what the DDL brings.
    settled(&cluster).await;
    let trigger = "create function t_wild() returns trigger language plpgsql as \
                   $$ begin perform known(); return new; end $$; \
                   begin; create trigger t_wild before insert on t for each row execute function t_wild()";
    run(&one, trigger).await;
    settled(&cluster).await;
    let insert = async { run(&two, "insert into t values (1)").await };
    let commit = async {
        let node = cluster.node(0).await;
        let blocked = "select count(*) > 0 from pg_locks where not granted";
        until("the insert waits for the lock", || async {
            ask(&node, blocked).await == "t"
        })
        .await;
        run(&one, "commit").await;
    };
    tokio::join!(insert, commit);
    nothing_left(&cluster).await;
    assert_eq!(ask(&two, "show work_mem").await, "5MB");
    cluster.assert_nodes_equal().await;
}

/// On both connections.
async fn nothing_left(cluster: &TestCluster) {
    let (a, b) = (cluster.client().await, cluster.client().await);
    for client in [&a, &b] {
        run(client, "begin").await;
        assert_eq!(ask(client, "show work_mem").await, "4MB");
    }
    for client in [&a, &b] {
        run(client, "rollback").await;
    }
    gone(a).await;
    gone(b).await;
}

async fn gone(client: Client) {
    drop(client);
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Waits until the names have been read and are read no more.
async fn settled(cluster: &TestCluster) {
    let mut before = loads(cluster).await;
    loop {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let now = loads(cluster).await;
        if now == before {
            return;
        }
        before = now;
    }
}

async fn loads(cluster: &TestCluster) -> String {
    let (_, metrics) = crate::support::http::get(cluster.http_port(), "/metrics").await;
    let line = metrics
        .lines()
        .find(|line| line.starts_with("synapsedb_catalog_loads_total"));
    line.unwrap_or_default().to_owned()
}
