//! The proxy killed at any moment: what was acknowledged is there once, what was refused is not there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_postgres::Client;

use crate::ledger::{self, CLIENTS, Crowd, Signals, Told};
use crate::random::{self, Counts, Worker};
use crate::support::cluster::{TestCluster, connect};
use crate::tools::{Hold, ask, in_the_background, rows, run, seed, still_waits, until};
use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};

const KILLS: usize = 10;
/// So many lines are acknowledged between two kills at least, however slow the machine is.
const LINES_PER_KILL: usize = 12;

fn told(outcome: &Result<(), tokio_postgres::Error>) -> Told {
    match outcome {
        Ok(()) => Told::Acknowledged,
        Err(error) => ledger::told(error, true),
    }
}

/// One client: random transactions, and after each a numbered line in the ledger.
async fn client(port: u16, seed: u64, number: usize, signals: Arc<Signals>) -> Ledger {
    let mut worker = Worker::new(seed, number, false);
    let mut ledger = Ledger::default();
    while signals.go_on() {
        let Ok(connection) = connect(port, USER, PASSWORD, DATABASE).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while signals.go_on() {
            if let Err(unexpected) = worker.transaction(&connection).await {
                if !unexpected.is_broken() {
                    ledger.faults.push(unexpected.to_string());
                }
                break;
            }
            let n = ledger.told.len();
            let outcome = write(&connection, number, n).await;
            ledger.told.push(told(&outcome));
            if ledger.told[n] != Told::Acknowledged {
                break;
            }
            signals.acknowledge();
        }
    }
    ledger.counts = worker.counts;
    ledger
}

#[derive(Default)]
struct Ledger {
    told: Vec<Told>,
    faults: Vec<String>,
    counts: Counts,
}

/// One line of the ledger, in one of the ways in which clients write. Every seventh is refused.
async fn write(client: &Client, number: usize, n: usize) -> Result<(), tokio_postgres::Error> {
    let insert = format!("insert into ledger (client, n) values ({number}, {n})");
    match n % 7 {
        0 => client.query(&insert, &[]).await.map(|_| ()),
        1 => {
            client.batch_execute("begin").await?;
            client.batch_execute(&insert).await?;
            client.batch_execute("commit").await
        }
        2 => {
            let sql = format!("begin; savepoint a; {insert}; rollback to a; {insert}; commit");
            client.batch_execute(&sql).await
        }
        3 => {
            let sql = format!("{insert}; insert into ledger (client, n) values (null, 1)");
            client.batch_execute(&sql).await
        }
        _ => client.batch_execute(&insert).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_of_the_proxy_lose_nothing_acknowledged_and_double_nothing() {
    let seed = seed();
    println!("SEED={seed}");
    let mut cluster = TestCluster::builder()
        .setting("deadlock_timeout", "100ms")
        .start()
        .await;
    let first = cluster.client().await;
    random::set_up(&first, false).await;
    // Without a key, so that a line written twice stays.
    run(
        &first,
        "create table ledger (client int not null, n int, at timestamptz default now())",
    )
    .await;
    let port = cluster.port();
    let crowd = Crowd::gather(CLIENTS, |number, signals| {
        client(port, seed, number, signals)
    });
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..KILLS {
        crowd.lines(LINES_PER_KILL).await;
        // The moment of the kill is what the seed chooses.
        let pause = rng.random_range(0..1000);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        cluster.restart_proxy().await;
    }
    crowd.lines(LINES_PER_KILL).await;
    let ledgers = crowd.disperse().await;
    cluster.assert_nodes_equal().await;
    let node = cluster.node(0).await;
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for line in rows(&node, "select client, n from ledger").await {
        *found.entry(line).or_default() += 1;
    }
    let mut counts = Counts::new();
    let mut sums = [0; 3];
    let mut faults = Vec::new();
    for (number, ledger) in ledgers.iter().enumerate() {
        random::add(&mut counts, &ledger.counts);
        faults.extend(ledger.faults.iter().cloned());
        for (n, told) in ledger.told.iter().enumerate() {
            let times = found.get(&format!("{number}|{n}")).copied().unwrap_or(0);
            let (at, right) = match told {
                Told::Acknowledged => (0, times == 1),
                Told::Refused | Told::Lost => (1, times == 0),
                Told::Unknown => (2, times <= 1),
            };
            sums[at] += 1;
            if !right {
                faults.push(format!(
                    "line {n} of client {number}: {told:?}, there {times} times"
                ));
            }
        }
    }
    println!("acknowledged, refused, unknown: {sums:?}; {counts:?}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(sums[0] > 100 && sums[1] > 5, "{sums:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_waited_when_the_proxy_was_killed_are_completed_after_its_restart() {
    let mut cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(
        &client,
        "create table t (a int); create table other (a int); insert into t values (0)",
    )
    .await;
    cluster.assert_nodes_equal().await;
    let holds = [
        Hold::table(&cluster, 1, DATABASE, "t").await,
        Hold::table(&cluster, 2, DATABASE, "t").await,
    ];
    let mut waiting = Vec::new();
    for n in 1..=5 {
        waiting.push(in_the_background(&cluster, &format!("insert into t values ({n})")).await);
    }
    let writer = cluster.node(0).await;
    let in_wait = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    until("five commits wait", || async {
        ask(&writer, in_wait).await == "5"
    })
    .await;
    for task in &mut waiting {
        assert!(still_waits(task).await, "acknowledged without a majority");
    }
    cluster.kill_proxy();
    for task in waiting {
        let outcome = task.await.expect("no panic");
        assert_eq!(told(&outcome), Told::Unknown, "{outcome:?}");
    }
    // Unseen while nobody can confirm them.
    assert_eq!(ask(&writer, in_wait).await, "5");
    assert_eq!(ask(&writer, "select count(*) from t").await, "1");
    // One applier goes on before the new proxy comes, one after it.
    let [first, second] = holds;
    first.release().await;
    cluster.spawn_proxy();
    cluster.wait_for_proxy().await;
    until("the commits are completed", || async {
        ask(&writer, in_wait).await == "0"
    })
    .await;
    assert_eq!(ask(&writer, "select count(*), sum(a) from t").await, "6|15");
    second.release().await;
    cluster.assert_nodes_equal().await;
}
