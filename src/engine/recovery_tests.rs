//! Tests of `engine/recovery.rs`.

use super::*;

fn record(epoch: u64, term: u64, writer: usize) -> Record {
    Record {
        epoch: Epoch(epoch),
        term: Epoch(term),
        writer: NodeId(writer),
    }
}

fn facts(record: Record, offices: &[(u64, u64)], places: &[(u64, u64)], end: u64) -> Facts {
    let pairs = |pairs: &[(u64, u64)]| {
        let pair = |(term, lsn): &(u64, u64)| (Epoch(*term), Lsn(*lsn));
        pairs.iter().map(pair).collect()
    };
    Facts {
        promised: record.epoch,
        record,
        offices: pairs(offices),
        places: pairs(places),
        end: Lsn(end),
        copies: BTreeSet::new(),
    }
}

fn parts(plan: &Plan) -> Vec<Part> {
    match plan {
        Plan::GoOn { parts, .. } | Plan::Elect { parts, .. } => parts.values().copied().collect(),
        Plan::Wait => Vec::new(),
    }
}

fn decided(all: &[(usize, Facts)]) -> Plan {
    let all = all
        .iter()
        .map(|(node, facts)| (NodeId(*node), facts.clone()));
    decide(3, Epoch(9), &all.collect(), &BTreeSet::new())
}

#[test]
fn the_recorded_writer_goes_on_in_its_term() {
    let known = record(5, 4, 0);
    let writer = facts(known, &[(4, 100)], &[(3, 77)], 500);
    let follower = facts(known, &[], &[(3, 77), (4, 300)], 900);
    let late = facts(known, &[], &[(3, 70)], 20);
    let plan = decided(&[(0, writer.clone()), (1, follower), (2, late)]);
    let Plan::GoOn { record, start, .. } = &plan else {
        panic!("{plan:?}");
    };
    assert_eq!(
        (record.epoch, record.term, *start),
        (Epoch(9), Epoch(4), Lsn(100))
    );
    assert_eq!(parts(&plan), [Part::Writer, Part::Live, Part::Leaving]);
    let mut writer = writer;
    writer.copies.insert(NodeId(2));
    let plan = decided(&[(0, writer), (1, facts(known, &[], &[(4, 300)], 9))]);
    assert_eq!(parts(&plan), [Part::Writer, Part::Live, Part::Away]);
}

#[test]
fn the_newest_record_counts_and_a_superseded_writer_is_fenced() {
    let former = facts(record(4, 2, 0), &[(2, 10)], &[], 300);
    let writer = facts(record(5, 5, 1), &[(5, 800)], &[(2, 250)], 900);
    let plan = decided(&[(0, former), (1, writer)]);
    assert_eq!(parts(&plan), [Part::Fenced, Part::Writer, Part::Leaving]);
}

#[test]
fn without_the_writer_the_longest_history_takes_office() {
    let known = record(5, 4, 0);
    let shorter = facts(known, &[], &[(4, 280)], 900);
    let longer = facts(known, &[], &[(4, 300)], 100);
    let plan = decided(&[(1, shorter), (2, longer.clone())]);
    let Plan::Elect {
        record: elected, ..
    } = &plan
    else {
        panic!("{plan:?}");
    };
    assert_eq!(*elected, record(9, 9, 2));
    assert_eq!(parts(&plan), [Part::Leaving, Part::Leaving, Part::Writer]);
    let plan = decided(&[(1, longer.clone()), (2, longer)]);
    assert_eq!(parts(&plan), [Part::Leaving, Part::Live, Part::Writer]);
}

#[test]
fn a_writer_that_was_recorded_but_never_took_office_does_not_go_on() {
    let known = record(6, 6, 1);
    let former = facts(record(5, 4, 0), &[(4, 100)], &[], 500);
    let recorded = facts(known, &[], &[(4, 300)], 310);
    let plan = decided(&[(0, former), (1, recorded)]);
    let Plan::Elect {
        record: elected, ..
    } = &plan
    else {
        panic!("{plan:?}");
    };
    // What it has behind the others' end was never denied: no later term began.
    assert_eq!(*elected, record(9, 9, 0));
    assert_eq!(parts(&plan), [Part::Writer, Part::Leaving, Part::Leaving]);
}

#[test]
fn too_few_are_waited_for() {
    let known = record(5, 4, 0);
    assert_eq!(
        decided(&[(1, facts(known, &[], &[(4, 280)], 900))]),
        Plan::Wait
    );
    // One of the two strays, and the third may still be the writer.
    let former = facts(known, &[(3, 1)], &[], 77);
    let follower = facts(known, &[], &[(3, 50), (4, 280)], 900);
    assert_eq!(
        decided(&[(1, former.clone()), (2, follower.clone())]),
        Plan::Wait
    );
    // It is not: it was recorded as one that holds nothing.
    let all = BTreeMap::from([(NodeId(1), former), (NodeId(2), follower)]);
    let plan = decide(3, Epoch(9), &all, &BTreeSet::from([NodeId(0)]));
    assert_eq!(parts(&plan), [Part::Fenced, Part::Fenced, Part::Writer]);
}

#[test]
fn who_has_what_the_writer_lacks_strays() {
    let known = record(5, 5, 0);
    let writer = facts(known, &[(2, 10), (5, 800)], &[(3, 250)], 900);
    let node = |offices, places, end| facts(known, offices, places, end);
    assert!(!strays(&node(&[], &[(5, 850)], 1), &writer));
    assert!(
        !strays(&node(&[], &[(2, 700)], 1), &writer),
        "it had all of its own term"
    );
    assert!(!strays(&node(&[], &[(3, 250)], 1), &writer));
    assert!(strays(&node(&[], &[(3, 251)], 1), &writer));
    assert!(
        strays(&node(&[], &[(4, 1)], 1), &writer),
        "a term that it never saw"
    );
    assert!(
        strays(&node(&[(3, 100)], &[], 400), &writer),
        "a former writer's end"
    );
    assert!(
        !strays(&node(&[(3, 100)], &[(5, 800)], 400), &writer),
        "a planned change"
    );
}

#[test]
fn an_epoch_is_newer_than_all_that_were_heard_of() {
    assert_eq!(next_epoch(&[Epoch(3), Epoch(7)], Epoch(5)), Epoch(8));
    assert_eq!(next_epoch(&[], Epoch(5)), Epoch(6));
}

fn together(databases: &[&[(usize, Facts)]], fenced: &[usize], wanted: Option<usize>) -> Plan {
    let map = |all: &&[(usize, Facts)]| {
        let pair = |(node, facts): &(usize, Facts)| (NodeId(*node), facts.clone());
        all.iter().map(pair).collect::<BTreeMap<_, _>>()
    };
    let databases: Vec<_> = databases.iter().map(map).collect();
    let fenced = fenced.iter().copied().map(NodeId).collect();
    decide_together(3, Epoch(9), &databases, &fenced, wanted.map(NodeId))
}

#[test]
fn of_several_databases_whoever_has_most_in_all_of_them_takes_office() {
    let known = record(5, 4, 0);
    let at = |lsn| facts(known, &[], &[(4, lsn)], 900);
    let first = [(1, at(280)), (2, at(300))];
    let plan = together(&[&first, &[(1, at(70)), (2, at(70))]], &[], None);
    assert_eq!(parts(&plan), [Part::Fenced, Part::Live, Part::Writer]);
    // Each lacks something that the other has: neither may be called the one that has everything.
    let plan = together(&[&first, &[(1, at(80)), (2, at(70))]], &[], None);
    assert_eq!(plan, Plan::Wait);
    // Of equal ones the one that is wanted.
    let level: &[(usize, Facts)] = &[(1, at(300)), (2, at(300))];
    let Plan::Elect { record: chosen, .. } = together(&[level, level], &[], Some(2)) else {
        panic!("nobody");
    };
    assert_eq!(chosen, record(9, 9, 2));
    assert_eq!(together(&[level, level], &[1], None), Plan::Wait);
    assert_eq!(together(&[&level[..1]], &[], None), Plan::Wait);
}

#[test]
fn who_strays_in_one_database_is_out_in_all() {
    let known = record(5, 5, 1);
    let writer = || facts(known, &[(5, 800)], &[(4, 250)], 900);
    let at = |lsn| facts(known, &[], &[(4, lsn)], 900);
    let good: &[(usize, Facts)] = &[(1, writer()), (2, at(250))];
    let bad: &[(usize, Facts)] = &[(1, writer()), (2, at(251))];
    assert_eq!(parts(&together(&[good, good], &[], None))[2], Part::Leaving);
    assert_eq!(parts(&together(&[good, bad], &[], None))[2], Part::Fenced);
    // A planned change: the old writer left in order and is as long as the others.
    let left = facts(record(5, 4, 0), &[], &[(4, 300)], 900);
    let level = |node| (node, facts(record(5, 4, 0), &[], &[(4, 300)], 700));
    let plan = together(&[&[(0, left), level(1), level(2)]], &[], Some(1));
    assert_eq!(parts(&plan), [Part::Live, Part::Writer, Part::Live]);
}
