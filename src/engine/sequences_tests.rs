//! Tests of `engine/sequences.rs`: single rules, and a sequence on a model server against them.

use super::*;
use crate::engine::chance::Chance;

#[test]
fn a_block_covers_so_many_bytes_of_log() {
    let mut sequences = Sequences::default();
    assert!(!sequences.may_confirm(Lsn(1), true));
    // 33 values a record: 330 values are 10 records of 100 bytes.
    sequences.raised(
        Lsn(5000),
        [Block {
            ahead: 330,
            cache: 1,
        }],
    );
    assert!(sequences.may_confirm(Lsn(6000), true));
    assert!(!sequences.may_confirm(Lsn(6001), true));
    assert!(
        !sequences.may_confirm(Lsn(5001), false),
        "it may hold a setval"
    );
    assert!(sequences.may_confirm(Lsn(5000), false));
    assert!(!sequences.is_half_used(Lsn(5500)));
    assert!(sequences.is_half_used(Lsn(5501)));
    // The narrowest block counts.
    let narrow = Block {
        ahead: 132,
        cache: 100,
    };
    sequences.raised(
        Lsn(7000),
        [
            Block {
                ahead: 330,
                cache: 1,
            },
            narrow,
        ],
    );
    assert_eq!(sequences.limit(), Lsn(7100));
    assert_eq!(
        Block::for_bytes(1000, 100),
        Block {
            ahead: 1320,
            cache: 100
        }
    );
}

#[test]
fn behind_a_jump_only_a_later_reading_counts() {
    let mut sequences = Sequences::default();
    sequences.raised(Lsn(1000), []);
    assert!(sequences.may_confirm(Lsn(u64::MAX), true));
    sequences.jumped(Lsn(1500));
    assert!(sequences.may_confirm(Lsn(1499), true));
    assert!(!sequences.may_confirm(Lsn(1500), true));
    sequences.raised(Lsn(1400), []);
    assert!(!sequences.may_confirm(Lsn(1500), true));
    sequences.jumped(Lsn(1700));
    sequences.jumped(Lsn(1600));
    sequences.raised(Lsn(1500), []);
    assert!(sequences.may_confirm(Lsn(1599), true));
    assert!(
        !sequences.may_confirm(Lsn(1600), true),
        "the first jump hid no other"
    );
    sequences.raised(Lsn(1700), []);
    assert!(sequences.may_confirm(Lsn(9999), true));
}

#[test]
fn what_may_be_confirmed_ends_at_what_was_read_or_at_a_unit_that_is_covered() {
    let mut sequences = Sequences::default();
    assert_eq!(sequences.confirmable(Lsn(900), Lsn(800)), Lsn(0));
    let block = Block {
        ahead: 330,
        cache: 1,
    };
    sequences.raised(Lsn(1000), [block]);
    assert_eq!(sequences.confirmable(Lsn(900), Lsn(800)), Lsn(900));
    assert_eq!(sequences.confirmable(Lsn(1500), Lsn(1500)), Lsn(1500));
    assert_eq!(
        sequences.confirmable(Lsn(1500), Lsn(1400)),
        Lsn(1400),
        "no unit ends there"
    );
    sequences.suspect(true);
    assert_eq!(sequences.confirmable(Lsn(1500), Lsn(1500)), Lsn(1000));
    assert!(sequences.is_in_the_way(Lsn(1001)) && !sequences.is_in_the_way(Lsn(1000)));
    sequences.suspect(false);
    assert!(!sequences.is_in_the_way(Lsn(1500)));
    sequences.raised(Lsn(1300), []);
    assert_eq!(
        sequences.confirmable(Lsn(9000), Lsn(8000)),
        Lsn(9000),
        "there are none"
    );
    sequences.jumped(Lsn(8500));
    assert_eq!(sequences.confirmable(Lsn(9000), Lsn(8000)), Lsn(8000));
}

#[test]
fn a_follower_that_begins_to_count_must_be_raised_first() {
    let mut sequences = Sequences::default();
    sequences.raised(Lsn(1000), []);
    sequences.joined();
    assert!(!sequences.may_confirm(Lsn(1000), true));
}

/// Sessions that call `nextval` with CACHE, as the server does it: a backend takes CACHE values at once, and a record
/// is logged when those already logged do not suffice. Every commit that is confirmed has used no value that a
/// follower could hand out again.
fn schedule(seed: u64) {
    let mut chance = Chance::new(seed);
    let cache = [1, 1, 20, 100][usize::try_from(chance.below(4)).expect("small")];
    let mut sequences = Sequences::default();
    let (mut end, mut last, mut logged, mut follower) = (Lsn(0), 0_u64, 0_u64, 0_u64);
    let mut commits: Vec<(Lsn, u64, bool)> = Vec::new();
    for _ in 0..400 {
        match chance.below(20) {
            0 => {
                sequences.suspect(false);
                // What a crash of the writer would go on from is read: all that was logged.
                let ahead = 1 + chance.below(2000);
                follower = follower.max(logged + ahead);
                let block = Block {
                    ahead: follower - logged,
                    cache,
                };
                sequences.raised(end, [block]);
            }
            1 if chance.below(4) == 0 => {
                last += chance.below(100_000);
                logged = last;
                end.0 += 100 + chance.below(50);
                if chance.below(2) == 0 {
                    sequences.jumped(end);
                } else {
                    // Told before it is done.
                    sequences.suspect(true);
                }
                commits.push((end, last, chance.below(2) == 0));
            }
            _ => {
                last += cache;
                if last > logged {
                    logged = last + LOGGED_AHEAD;
                    end.0 += RECORD_BYTES;
                }
                end.0 += chance.below(60);
                commits.push((end, last, chance.below(3) > 0));
            }
        }
        for (place, used, holds_unit) in &commits {
            let confirmed = sequences.may_confirm(*place, *holds_unit);
            assert!(
                !confirmed || *used <= follower,
                "SEED={seed}: {place} is confirmed, has used {used}, and followers are at {follower}"
            );
        }
    }
}

#[test]
fn no_confirmed_commit_has_used_a_value_that_a_follower_may_hand_out() {
    for seed in 0..300 {
        schedule(seed);
    }
}
