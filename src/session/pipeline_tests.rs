//! The queue of answers, played by hand: who gets what, and what an error takes with it.

use super::*;
use crate::session::prepared::Prepared;

fn queue(entries: Vec<Entry>) -> Pipeline {
    let mut pipeline = Pipeline::default();
    for entry in entries {
        pipeline.push(entry);
    }
    pipeline
}

/// Plays frames from the node and writes down what the client sees (`E` for an error, `|` for locals).
fn play(pipeline: &mut Pipeline, frames: &[u8]) -> String {
    let mut seen = String::new();
    for tag in frames {
        let mut local = BytesMut::new();
        pipeline.settle(&mut local);
        seen.push_str(std::str::from_utf8(&local).unwrap());
        match pipeline.answer(*tag).unwrap() {
            Verdict::Pass | Verdict::Ready | Verdict::Aside => seen.push(char::from(*tag)),
            Verdict::Error(_) => seen.push('E'),
            Verdict::Swallow(_) | Verdict::OwnReady(_) => {}
        }
        local.clear();
        pipeline.settle(&mut local);
        seen.push_str(std::str::from_utf8(&local).unwrap());
    }
    seen
}

fn clients(expects: &[Expect]) -> Vec<Entry> {
    expects.iter().map(|e| Entry::client(*e)).collect()
}

const BATCH: [Expect; 5] = [
    Expect::Parse,
    Expect::Bind,
    Expect::Describe,
    Expect::Execute,
    Expect::Sync,
];

#[test]
fn a_batch_is_answered_in_order() {
    let mut pipeline = queue(clients(&BATCH));
    assert_eq!(play(&mut pipeline, b"12TDDNCZ"), "12TDDNCZ");
    assert!(pipeline.is_empty());
}

#[test]
fn ours_is_swallowed_and_local_answers_wait_their_turn() {
    let mut pipeline = queue(vec![
        Entry::client(Expect::Bind),
        Entry::client(Expect::Execute),
        Entry::local(Bytes::from_static(b"p")),
        Entry::own(Expect::Parse, Own::Statement),
        Entry::client(Expect::Bind),
        Entry::client(Expect::Execute),
        Entry::client(Expect::Sync),
    ]);
    assert_eq!(play(&mut pipeline, b"2DC12CZ"), "2DCp2CZ");
}

#[test]
fn an_error_drops_all_until_sync_and_no_more() {
    let mut entries = clients(&[Expect::Parse, Expect::Bind]);
    entries.push(Entry::local(Bytes::from_static(b"p")));
    entries.extend(clients(&[Expect::Execute, Expect::Sync]));
    entries.extend(clients(&BATCH));
    let mut pipeline = queue(entries);
    assert_eq!(play(&mut pipeline, b"1EZ12TCZ"), "1EZ12TCZ");
    assert!(pipeline.is_empty() && !pipeline.skipping());
}

#[test]
fn after_an_error_without_sync_the_server_skips() {
    let mut pipeline = queue(clients(&[Expect::Parse, Expect::Bind]));
    assert_eq!(play(&mut pipeline, b"E"), "E");
    assert!(pipeline.skipping() && pipeline.is_empty());
    pipeline.push(Entry::client(Expect::Sync));
    assert!(!pipeline.skipping());
    assert_eq!(play(&mut pipeline, b"Z"), "Z");
}

#[test]
fn an_error_of_a_sync_or_query_leaves_its_ready() {
    for expect in [Expect::Sync, Expect::Query] {
        let mut pipeline = queue(clients(&[expect, Expect::Query]));
        assert_eq!(play(&mut pipeline, b"EZTDCZ"), "EZTDCZ");
        assert!(pipeline.is_empty());
    }
}

#[test]
fn undo_comes_latest_first_and_says_which_failed() {
    let undo = |name: &'static [u8]| {
        Some(Box::new(Undo {
            named: Some((Bytes::from_static(name), None)),
            ..Undo::default()
        }))
    };
    let mut entries = clients(&[Expect::Parse, Expect::Parse, Expect::Close]);
    for (entry, name) in entries.iter_mut().zip([b"a", b"b", b"c"]) {
        entry.undo = undo(name);
    }
    let mut pipeline = queue(entries);
    assert!(matches!(pipeline.answer(b'1'), Ok(Verdict::Pass)));
    let Ok(Verdict::Error(fault)) = pipeline.answer(b'E') else {
        panic!("an error");
    };
    let names: Vec<_> = fault
        .undo
        .iter()
        .map(|u| u.named.clone().unwrap().0)
        .collect();
    assert_eq!(names, [&b"c"[..], &b"b"[..]]);
    assert_eq!(
        fault.undo.iter().map(|u| u.failed).collect::<Vec<_>>(),
        [false, true]
    );
}

#[test]
fn names_are_open_while_an_earlier_batch_may_fail() {
    let named = || Undo {
        named: Some((Bytes::from_static(b"s"), None)),
        ..Undo::default()
    };
    let parse = |undo: Undo| {
        let mut entry = Entry::client(Expect::Parse);
        entry.undo = Some(Box::new(undo));
        entry
    };
    let unnamed = || Prepared::default().end_unnamed(None);
    let (sync, bind) = (
        || Entry::client(Expect::Sync),
        || Entry::client(Expect::Bind),
    );
    // Of the batch that is being sent everything stands or falls together.
    let mut pipeline = queue(vec![parse(named()), bind()]);
    assert!(!pipeline.names_are_open());
    pipeline.push(sync());
    assert!(pipeline.names_are_open() && !pipeline.unnamed_is_open());
    assert_eq!(play(&mut pipeline, b"1"), "1");
    assert!(!pipeline.names_are_open());
    // It fails, and what failed with it is known; a later batch's stays open.
    let two = vec![bind(), parse(named()), sync(), parse(named()), sync()];
    let mut pipeline = queue(two);
    assert_eq!(play(&mut pipeline, b"EZ"), "EZ");
    assert!(pipeline.names_are_open());
    assert_eq!(play(&mut pipeline, b"1Z"), "1Z");
    assert!(!pipeline.names_are_open());
    // A new unnamed statement does not care for the one before.
    let mut pipeline = queue(vec![parse(unnamed()), sync()]);
    assert!(pipeline.unnamed_is_open() && !pipeline.names_are_open());
    pipeline.push(parse(unnamed()));
    assert!(!pipeline.unnamed_is_open());
    pipeline.push(sync());
    assert_eq!(play(&mut pipeline, b"1Z"), "1Z");
    assert!(pipeline.unnamed_is_open() && pipeline.next_unnamed().is_some());
    pipeline.abandon();
    assert!(!pipeline.unnamed_is_open());
}

#[test]
fn a_query_is_skipped_with_the_batch_that_failed_before_it() {
    let mut pipeline = queue(clients(&[Expect::Describe, Expect::Query]));
    let Ok(Verdict::Error(fault)) = pipeline.answer(b'E') else {
        panic!("an error");
    };
    assert!(!fault.resync && pipeline.skipping() && pipeline.is_empty());
    pipeline.push(Entry::client(Expect::Sync));
    assert_eq!(play(&mut pipeline, b"Z"), "Z");
}

#[test]
fn syncs_ahead_of_copy_data_are_ignored_by_the_server() {
    use Expect::{Bind, CopyEnd, Execute, Sync};
    // All at once: the Sync between Execute and the data is not answered.
    let mut pipeline = queue(clients(&[Bind, Execute, Sync, CopyEnd, Sync]));
    assert_eq!(play(&mut pipeline, b"2GCZ"), "2GCZ");
    assert!(pipeline.is_empty());
    // Step by step.
    let mut pipeline = queue(clients(&[Bind, Execute, Sync]));
    assert_eq!(play(&mut pipeline, b"2G"), "2G");
    assert!(pipeline.copying());
    pipeline.push(Entry::client(CopyEnd));
    assert!(!pipeline.copying());
    pipeline.push(Entry::client(Sync));
    assert_eq!(play(&mut pipeline, b"CZ"), "CZ");
    assert!(pipeline.is_empty());
}

#[test]
fn an_error_in_copy_data_waits_for_the_sync_behind_it() {
    use Expect::{CopyEnd, Execute, Sync};
    let mut pipeline = queue(clients(&[Execute]));
    assert_eq!(play(&mut pipeline, b"GE"), "GE");
    assert!(!pipeline.copying() && pipeline.skipping());
    let mut pipeline = queue(clients(&[Execute, CopyEnd, Sync]));
    assert_eq!(play(&mut pipeline, b"GEZ"), "GEZ");
    assert!(pipeline.is_empty());
}

#[test]
fn a_settings_query_fails_unseen() {
    let mut pipeline = queue(vec![
        Entry::own(Expect::Query, Own::Settings),
        Entry::client(Expect::Query),
    ]);
    assert_eq!(play(&mut pipeline, b"TDCEZTDCZ"), "TDCZ");
}

#[test]
fn what_a_skipped_command_was_to_be_followed_by_is_told() {
    let mut dropping = Entry::client(Expect::Query);
    dropping.after = Some(After::Upkeep(vec!["vacuum".to_owned()]));
    let mut pipeline = queue(vec![Entry::own(Expect::Parse, Own::Step), dropping]);
    let Ok(Verdict::Error(fault)) = pipeline.answer(b'E') else {
        panic!("an error");
    };
    assert!(fault.after.is_some() && fault.resync);
}

#[test]
fn a_begin_that_was_answered_before_is_unseen_and_its_error_is_the_next_ones() {
    use Expect::{Bind, Execute, Parse, Query, Sync};
    let begin = |behind: &[Expect]| {
        let own = [Parse, Bind, Execute].map(|expect| Entry::own(expect, Own::Begin));
        queue(own.into_iter().chain(clients(behind)).collect())
    };
    let mut pipeline = begin(&[Query]);
    assert_eq!(play(&mut pipeline, b"12CTDCZ"), "TDCZ");
    let mut pipeline = begin(&[Query]);
    let Ok(Verdict::Error(fault)) = pipeline.answer(b'E') else {
        panic!("an error");
    };
    assert!(fault.own == Some(Own::Begin) && fault.resync && pipeline.is_empty());
    let mut pipeline = begin(&[Parse, Bind, Execute, Sync]);
    let Ok(Verdict::Error(fault)) = pipeline.answer(b'E') else {
        panic!("an error");
    };
    assert!(fault.own == Some(Own::Begin) && !fault.resync);
    assert_eq!(play(&mut pipeline, b"Z"), "Z");
    let mut pipeline = begin(&[Query]);
    assert_eq!(play(&mut pipeline, b"12C"), "");
    let Ok(Verdict::Error(fault)) = pipeline.answer(b'E') else {
        panic!("an error");
    };
    assert!(fault.own != Some(Own::Begin));
    // By itself it is a Query, of which the client sees nothing at all.
    let mut pipeline = queue(vec![Entry::own(Query, Own::Begin)]);
    assert_eq!(play(&mut pipeline, b"EZ"), "");
}

#[test]
fn what_was_not_asked_is_out_of_step() {
    let mut pipeline = queue(clients(&[Expect::Bind]));
    assert!(pipeline.answer(b'Z').is_err());
    assert!(queue(vec![]).answer(b'D').is_err());
    assert!(matches!(queue(vec![]).answer(b'S'), Ok(Verdict::Aside)));
    assert!(matches!(queue(vec![]).answer(b'E'), Ok(Verdict::Error(_))));
}
