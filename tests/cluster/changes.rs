//! Planned changes of writer: no client notices, no value of a sequence is handed out twice, and a node that stands still
//! in the middle of one holds nobody up.
//!
//! `SEED=n` replays a run. With `SYNAPSEDB_TEST_ALL` runs take minutes.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::failover::{is_back, some_writer, writer};
use crate::faults::{Fault, LINES, Run, time};
use crate::ledger::{CLIENTS, Crowd, Signals};
use crate::support::cluster::{TestCluster, connect};
use crate::tools::{self, is_all, seed, until, until_status};

/// Planned changes of writer in one test; in `make test` each node writes twice.
const PROMOTIONS: usize = 20;
const PROMOTIONS_SHORT: usize = 6;
/// Clients of the read-only port meanwhile.
const LOOKERS: usize = 6;
/// A change, with the program that asks for it, is over after so many milliseconds on most machines.
const CHANGE_MS: u64 = 700;

/// Ways to get a value that nobody else gets, by sequence.
const DRAWS: [(&str, &str); 5] = [
    ("serial", "insert into serials (v) values (1) returning id"),
    (
        "identity",
        "insert into identities (v) values (1) returning id",
    ),
    ("bare", "select nextval('bare')"),
    ("cached", "select nextval('cached')"),
    ("jumpy", "select nextval('jumpy')"),
];

/// The values that one client drew, and what went wrong.
#[derive(Default)]
struct Drawn {
    values: Vec<(usize, i64)>,
    errors: Vec<String>,
}

async fn draw(port: u16, number: usize, signals: Arc<Signals>) -> Drawn {
    let mut drawn = Drawn::default();
    let client = connect(port, USER, PASSWORD, DATABASE).await.expect("in");
    let mut jumps: i64 = 0;
    while signals.go_on() {
        for (at, (_, sql)) in DRAWS.iter().enumerate() {
            match one(&client, sql).await {
                Ok(value) => drawn.values.push((at, value)),
                Err(error) => {
                    drawn.errors.push(format!("{sql}: {error:?}"));
                    return drawn;
                }
            }
        }
        // One client alone sends it ahead, further than all draw in between.
        if number == 0 {
            jumps += 1;
            let jump = format!("select setval('jumpy', {})", jumps * 1_000_000);
            if let Err(error) = one(&client, &jump).await {
                drawn.errors.push(format!("{jump}: {error:?}"));
                return drawn;
            }
        }
        signals.acknowledge();
    }
    drawn
}

/// Read-only transactions by the read-only port, at followers for the most part: what they see never gets less.
async fn look_on(port: u16, number: usize, signals: Arc<Signals>) -> Vec<String> {
    const COUNT: &str = "select count(*) from serials";
    let client = connect(port, USER, PASSWORD, DATABASE).await.expect("in");
    let begin = [
        "begin read only",
        "begin isolation level repeatable read read only",
    ][number % 2];
    let mut seen = 0;
    let looks = async || {
        let mut counts = Vec::new();
        client.batch_execute(begin).await?;
        for _ in 0..3 {
            counts.push(one(&client, COUNT).await?);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        client.batch_execute("commit").await?;
        Ok::<_, tokio_postgres::Error>(counts)
    };
    while signals.go_on() {
        match looks().await {
            Ok(counts) => {
                let sorted = counts.is_sorted() && counts[0] >= seen;
                let same =
                    number.is_multiple_of(2) || counts.iter().all(|count| *count == counts[0]);
                if !sorted || !same {
                    return vec![format!("{begin}: {seen}, then {counts:?}")];
                }
                seen = counts[2];
            }
            Err(error) => return vec![format!("{begin}: {error:?}")],
        }
        signals.acknowledge();
    }
    Vec::new()
}

async fn one(client: &Client, sql: &str) -> Result<i64, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    let value = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(value.expect("a row").parse().expect("a number"))
}

/// `synapsedb promote NODE`, to its end.
fn promote(cluster: &TestCluster, node: usize) {
    let mut command = cluster.command("promote");
    command.arg(cluster.server_ref(node).name());
    let output = tokio::task::block_in_place(|| command.output());
    let output = output.expect("it runs");
    assert!(output.status.success(), "promote: {output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn planned_changes_of_writer_hand_out_no_value_twice_and_fail_no_client() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    tools::run(
        &client,
        "create table serials (id serial primary key, v int);
         create table identities (id bigint generated by default as identity primary key, v int);
         create sequence bare; create sequence cached cache 100; create sequence jumpy",
    )
    .await;
    let port = cluster.port();
    let crowd = Crowd::gather(CLIENTS, |number, signals| draw(port, number, signals));
    crowd.lines(LINES).await;
    let reader = cluster.read_only_port();
    let lookers = Crowd::gather(LOOKERS, |number, signals| look_on(reader, number, signals));
    let times = if is_all() {
        PROMOTIONS
    } else {
        PROMOTIONS_SHORT
    };
    for _ in 0..times {
        let next = (some_writer(&cluster).await + 1) % cluster.nodes();
        let began = Instant::now();
        promote(&cluster, next);
        until("the node writes", || async {
            writer(&cluster).await == Some(next)
        })
        .await;
        println!("node{} writes after {:?}", next + 1, began.elapsed());
        crowd.lines(LINES).await;
        lookers.lines(LOOKERS).await;
        for node in 0..cluster.nodes() {
            until_status(&cluster, node, "in_sync").await;
        }
    }
    let (mut seen, mut faults) = (BTreeSet::new(), Vec::new());
    for errors in lookers.disperse().await {
        faults.extend(errors);
    }
    for drawn in crowd.disperse().await {
        faults.extend(drawn.errors);
        for (at, value) in drawn.values {
            if !seen.insert((at, value)) {
                faults.push(format!("{}: {value} twice", DRAWS[at].0));
            }
        }
    }
    println!("{} values", seen.len());
    assert!(faults.is_empty(), "{faults:#?}");
    cluster.assert_nodes_equal().await;
}

/// The same, while other things go on.
fn promote_aside(cluster: &TestCluster, node: usize) -> Child {
    let mut command = cluster.command("promote");
    command.arg(cluster.server_ref(node).name());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("it runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stands_still_amid_a_planned_change_holds_nobody_up() {
    let (end, mut seed, mut struck) = (Instant::now() + time() / 4, seed(), 0);
    while Instant::now() < end {
        let mut run = Run::start(seed, end - Instant::now()).await;
        let mut out = None;
        while run.goes_on() && out.is_none() {
            for node in 0..run.cluster.nodes() {
                until_status(&run.cluster, node, "in_sync").await;
            }
            let next = (some_writer(&run.cluster).await + 1) % run.cluster.nodes();
            let frozen = run.rng.random_range(0..run.cluster.nodes());
            let pause = run.rng.random_range(0..CHANGE_MS);
            let mut asked = promote_aside(&run.cluster, next);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            run.strike(frozen, Fault::Frozen);
            let began = Instant::now();
            run.crowd.lines(LINES).await;
            println!(
                "node{} froze, lines after {:?}",
                frozen + 1,
                began.elapsed()
            );
            run.mend(frozen, Fault::Frozen);
            tokio::task::block_in_place(|| asked.wait()).expect("ours");
            run.crowd.lines(LINES).await;
            if !is_back(&run.cluster, frozen).await {
                out = Some(frozen);
            }
            struck += 1;
        }
        run.finish(out).await;
        seed = seed.wrapping_add(1);
    }
    println!("{struck} nodes froze");
}
