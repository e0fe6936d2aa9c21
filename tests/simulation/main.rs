//! The replication, failover and restart protocol under seeded schedules with faults: the engine's own types decide;
//! servers, network, clients and the proxy's shell are models.
//!
//! `SEED=n` runs one schedule (`SEED=n..m` all before m), `TRACE=1` prints its steps, `SYNAPSEDB_TEST_ALL=1` runs five times as many.

mod begin;
mod chance;
mod clients;
mod faults;
mod oracle;
mod orders;
mod proxy;
mod server;
mod steps;
mod world;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use world::{Done, Planted, World};

/// Schedules in `make test`.
const SCHEDULES: u64 = 2_000;
/// Schedules where all are asked for.
const ALL_SCHEDULES: u64 = 10_000;
/// A planted fault is found within so many.
const PLANTED_SCHEDULES: u64 = 6_000;

fn schedule(seed: u64, planted: Option<Planted>) -> Done {
    let traces = std::env::var_os("TRACE").is_some();
    World::new(seed, planted, traces).run()
}

fn seeds() -> Range<u64> {
    if let Ok(seed) = std::env::var("SEED") {
        let number = |text: &str| text.parse::<u64>().expect("SEED is a number, or two: 5..8");
        let (first, end) = seed.split_once("..").map_or_else(
            || (number(&seed), number(&seed) + 1),
            |(first, end)| (number(first), number(end)),
        );
        return first..end;
    }
    match std::env::var_os("SYNAPSEDB_TEST_ALL") {
        Some(_) => 0..ALL_SCHEDULES,
        None => 0..SCHEDULES,
    }
}

fn run(seeds: impl Iterator<Item = u64>) -> Done {
    let mut all = Done::default();
    for seed in seeds {
        let run = catch_unwind(|| schedule(seed, None));
        let Ok(done) = run else {
            panic!("failing schedule: SEED={seed}");
        };
        all.add(done);
    }
    all
}

#[test]
fn nothing_acknowledged_is_lost_and_nobody_sees_time_run_backwards() {
    let halves = [0, 1].map(|rest| seeds().filter(move |seed| seed % 2 == rest));
    let done = std::thread::scope(|scope| {
        let threads = halves.map(|half| scope.spawn(|| run(half)));
        let mut all = Done::default();
        for thread in threads {
            match thread.join() {
                Ok(done) => all.add(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    println!("{done:?}");
    // That nothing goes wrong is worth little where little happens.
    let schedules = seeds().count();
    if schedules >= 1000 {
        assert!(done.acknowledged > 8 * schedules, "{done:?}");
        assert!(done.reads > 8 * schedules, "{done:?}");
        assert!(done.changes > schedules, "{done:?}");
    }
}

/// A proxy with this fault fails in some schedule.
fn is_found(planted: Planted) {
    let fails = |seed: &u64| {
        let run = AssertUnwindSafe(|| schedule(*seed, Some(planted)));
        catch_unwind(run).is_err()
    };
    let seed = (0..PLANTED_SCHEDULES).find(fails);
    assert!(seed.is_some(), "nobody notices {planted:?}");
    println!("{planted:?} is noticed by SEED={seed:?}");
}

macro_rules! planted {
    ($($test:ident: $fault:ident,)*) => {
        $(#[test] fn $test() { is_found(Planted::$fault); })*
    };
}

planted! {
    a_followers_answer_that_goes_out_at_once_is_found: ShowAtOnce,
    a_read_on_a_follower_that_is_behind_is_found: ReadBehind,
    confirming_what_only_the_writer_has_is_found: ConfirmAlone,
    flushing_what_a_majority_has_is_found: FlushTheMajority,
    forgetting_to_copy_the_slots_of_who_leaves_is_found: ForgetCopies,
    moving_a_slot_before_it_is_copied_is_found: MoveWithoutCopies,
    a_new_writer_that_is_not_level_is_found: SkipLevelling,
    using_a_writer_in_doubt_is_found: NoDoubt,
    joining_before_the_live_stream_is_reached_is_found: JoinEarly,
    taking_a_former_writers_own_end_back_is_found: TakeStraysBack,
    dropping_copies_before_their_node_has_all_is_found: DropEarly,
    going_on_by_an_older_record_is_found: AdoptTheOldest,
    a_killed_proxys_orders_that_are_still_obeyed_are_found: KeepOldConnections,
    judging_an_answer_by_what_was_given_when_it_was_asked_is_found: MarkEarly,
    electing_a_shorter_history_is_found: ElectAnybody,
    following_a_writer_whose_log_was_not_read_is_found: PretendDecoded,
    an_answer_that_goes_out_without_writer_and_majority_is_found: AnswerInVacancy,
    trusting_a_writer_that_does_not_show_all_yet_is_found: TrustUnshown,
    commits_left_waiting_on_a_former_writer_are_found: KeepWaits,
}
