//! Sixteen clients at random, from several seeds: all copies are equal afterwards.
//!
//! `SYNAPSEDB_SEEDS` says how many seeds, `SEED` replays one.

use std::time::{Duration, Instant};

use crate::random::{self, Counts, Worker};
use crate::support::cluster::TestCluster;
use crate::tools::is_all;

/// How many clients at once.
const CLIENTS: usize = 16;
/// How many transactions each of them runs; more where there is time.
const TRANSACTIONS: usize = 25;
const TRANSACTIONS_ALL: usize = 40;

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    if let Some(seed) = number("SEED") {
        return vec![seed];
    }
    let count = number("SYNAPSEDB_SEEDS").unwrap_or(if is_all() { 20 } else { 5 });
    (1..=count).collect()
}

/// One seed on a new cluster. What went wrong is told, not thrown, so that the seed can be named.
async fn run(seed: u64) -> Result<Counts, String> {
    let cluster = TestCluster::builder()
        .setting("deadlock_timeout", "100ms")
        .setting("log_statement", "none")
        .start()
        .await;
    let pgvector = cluster.has_pgvector();
    random::set_up(&cluster.client().await, pgvector).await;
    let mut crowd = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let client = cluster.client().await;
        crowd.spawn(async move {
            let mut worker = Worker::new(seed, number, pgvector);
            let transactions = if is_all() {
                TRANSACTIONS_ALL
            } else {
                TRANSACTIONS
            };
            for _ in 0..transactions {
                worker
                    .transaction(&client)
                    .await
                    .map_err(|unexpected| format!("client {number}: {unexpected}"))?;
            }
            Ok::<_, String>(worker.counts)
        });
    }
    let mut counts = Counts::new();
    let mut faults = Vec::new();
    while let Some(ended) = crowd.join_next().await {
        match ended.expect("a client does not panic") {
            Ok(more) => random::add(&mut counts, &more),
            Err(fault) => faults.push(fault),
        }
    }
    if let Err(differences) = cluster.compare_nodes(Duration::from_secs(60)).await {
        faults.push(differences);
    }
    if faults.is_empty() {
        return Ok(counts);
    }
    let log = cluster.proxy_log_text();
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(30)..].join("\n");
    let kept = std::env::temp_dir().join(format!("synapsedb-seed-{seed}.log"));
    std::fs::write(&kept, log).expect("the folder for temporary files");
    Err(format!("{}\n{tail}", faults.join("\n")))
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_clients_at_random_leave_equal_copies() {
    let mut failed = Vec::new();
    let mut total = Counts::default();
    let several = seeds().len() > 1;
    for seed in seeds() {
        let began = Instant::now();
        match run(seed).await {
            Ok(counts) => {
                println!("seed {seed}: {:?} {counts:?}", began.elapsed());
                // A crowd that meets no conflict tests nothing.
                assert!(counts.get("commit").is_some_and(|n| *n > 50), "{counts:?}");
                let conflicts = ["23505", "40001", "40P01"];
                assert!(
                    conflicts.iter().any(|code| counts.contains_key(*code)),
                    "{counts:?}"
                );
                random::add(&mut total, &counts);
            }
            Err(fault) => {
                println!("SEED={seed} failed after {:?}:\n{fault}", began.elapsed());
                failed.push(seed);
            }
        }
    }
    assert!(
        failed.is_empty(),
        "failed: {failed:?}; replay with SEED={}",
        failed[0]
    );
    assert!(!several || total.contains_key("23505"), "{total:?}");
}
