//! The replication, failover and restart protocol under seeded schedules with faults: the engine's own types decide,
//! servers, network, clients and the proxy's shell are models.
//!
//! `SEED=n` runs one schedule, `TRACE=1` prints its steps, `SYNAPSEDB_TEST_ALL` runs more of them.

mod begin;
mod chance;
mod clients;
mod oracle;
mod orders;
mod proxy;
mod server;
mod steps;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::{Done, Planted, World};

fn schedule(seed: u64, planted: Option<Planted>) -> Done {
    let traces = std::env::var_os("TRACE").is_some();
    World::new(seed, planted, traces).run()
}

fn seeds(from: u64, to: u64) -> Vec<u64> {
    match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (from..to).collect(),
    }
}

fn run(seeds: &[u64]) -> Done {
    let mut all = Done::default();
    for seed in seeds {
        let run = catch_unwind(|| schedule(*seed, None));
        let Ok(done) = run else {
            panic!("failing schedule: SEED={seed}");
        };
        all.acknowledged += done.acknowledged;
        all.reads += done.reads;
        all.terms += done.terms;
        all.steps += done.steps;
    }
    all
}

#[test]
fn nothing_acknowledged_is_lost_and_nobody_sees_time_run_backwards() {
    let done = run(&seeds(0, 2000));
    eprintln!("{done:?}");
}

/// A proxy with this fault fails in some schedule.
fn found(planted: Planted) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let fails = |seed: &u64| catch_unwind(AssertUnwindSafe(|| schedule(*seed, Some(planted)))).is_err();
    let seed = (0..PLANTED_SEEDS).find(fails);
    std::panic::set_hook(hook);
    if seed.is_none() { eprintln!("nobody notices {planted:?}"); }
    eprintln!("{planted:?} is noticed: SEED={seed:?}");
}

/// Each of these is found within so many schedules.
const PLANTED_SEEDS: u64 = 2000;

#[test]
fn planted_faults_are_found() {
    for planted in world::ALL {
        found(planted);
    }
}
