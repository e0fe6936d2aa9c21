//! Tests of `engine/horizon.rs`: single rules; all of them together are held by `tests/simulation`.

use super::*;

const WRITER: NodeId = NodeId(0);
const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

/// A term that began at 100; both followers have that.
fn begun() -> Horizon {
    let mut horizon = Horizon::begin(WRITER, Epoch(3), Lsn(100), Lsn(100));
    horizon.applied(ONE, Lsn(100));
    horizon.applied(TWO, Lsn(100));
    horizon
}

/// The same, with nothing in doubt.
fn settled() -> Horizon {
    let mut horizon = begun();
    horizon.written(Lsn(100));
    horizon.shown(Lsn(100));
    horizon
}

#[test]
fn nothing_is_read_before_the_past_is_on_a_majority_and_shown() {
    let mut horizon = begun();
    let mark = horizon.answer(ONE);
    for _ in 0..2 {
        assert!(!horizon.may_read(WRITER) && !horizon.may_read(ONE) && !horizon.may_go(mark));
        assert_eq!(horizon.to_ask(), Some(Lsn(100)));
        horizon.written(Lsn(100));
    }
    // Commits of an earlier office may still wait there unseen.
    horizon.shown(Lsn(99));
    assert!(!horizon.trusts_writer());
    horizon.shown(Lsn(100));
    assert!(horizon.may_read(WRITER) && horizon.may_read(ONE) && horizon.may_go(mark));
    assert_eq!(horizon.to_ask(), None);
}

#[test]
fn a_followers_answer_waits_for_what_it_may_have_shown_when_it_arrived() {
    let mut horizon = settled();
    horizon.decoded_unit(Lsn(110));
    let before = horizon.answer(ONE);
    horizon.gave(ONE, Lsn(110));
    let after = horizon.answer(ONE);
    assert!(horizon.may_go(before) && !horizon.may_go(after));
    horizon.written(Lsn(110));
    assert!(!horizon.may_go(after));
    horizon.shown(Lsn(110));
    assert!(horizon.may_go(after));
}

#[test]
fn a_read_begins_where_everything_acknowledged_is() {
    let mut horizon = settled();
    horizon.decoded_unit(Lsn(110));
    horizon.decoded_unit(Lsn(120));
    horizon.applied(ONE, Lsn(110));
    assert!(horizon.may_read(ONE) && horizon.may_read(TWO));
    horizon.written(Lsn(115));
    assert!(horizon.may_read(ONE) && !horizon.may_read(TWO));
    // What is shown is not forgotten before it is written.
    horizon.shown(Lsn(120));
    horizon.written(Lsn(125));
    assert_eq!(horizon.acknowledged().lsn, Lsn(120));
    assert!(!horizon.may_read(ONE));
}

#[test]
fn what_a_restarted_writer_shows_is_no_majority() {
    let mut horizon = settled();
    horizon.decoded_unit(Lsn(110));
    horizon.applied(ONE, Lsn(110));
    horizon.vacate();
    horizon.resume(Lsn(110));
    horizon.shown(Lsn(110));
    let mark = horizon.answer(ONE);
    assert!(!horizon.may_go(mark) && !horizon.may_read(WRITER));
    horizon.written(Lsn(110));
    assert!(horizon.may_go(mark) && horizon.may_read(WRITER));
}

#[test]
fn without_a_writer_a_majoritys_word_is_enough_and_the_writer_keeps_it() {
    let mut horizon = settled();
    horizon.decoded_unit(Lsn(110));
    horizon.decoded_unit(Lsn(120));
    horizon.applied(ONE, Lsn(110));
    horizon.vacate();
    let mark = horizon.answer(ONE);
    assert!(!horizon.may_go(mark) && !horizon.may_read(WRITER));
    horizon.written(Lsn(110));
    assert!(horizon.may_go(mark));
    horizon.resume(Lsn(100));
    assert!(!horizon.may_read(WRITER));
    horizon.shown(Lsn(110));
    assert!(horizon.may_read(WRITER));
}

#[test]
fn an_answer_of_an_earlier_term_waits_for_the_end_of_the_doubt() {
    let mut old = settled();
    old.decoded_unit(Lsn(110));
    old.gave(ONE, Lsn(110));
    let mark = old.answer(ONE);
    let mut horizon = Horizon::begin(TWO, Epoch(4), Lsn(70), Lsn(70));
    assert!(!horizon.may_go(mark));
    horizon.written(Lsn(70));
    horizon.shown(Lsn(70));
    assert!(horizon.may_go(mark));
    horizon.doubt(Lsn(90));
    assert!(!horizon.may_go(mark));
}

#[test]
fn an_answer_of_a_node_that_is_ahead_of_the_live_stream_waits_for_it() {
    let mut horizon = settled();
    horizon.gave(ONE, Lsn(130));
    let mark = horizon.answer(ONE);
    horizon.written(Lsn(130));
    assert!(!horizon.may_go(mark));
    horizon.decoded_unit(Lsn(130));
    assert!(!horizon.may_go(mark));
    horizon.shown(Lsn(130));
    assert!(horizon.may_go(mark));
}

#[test]
fn a_node_that_has_become_the_writer_is_read_as_one() {
    let mut horizon = settled();
    let mark = horizon.answer(WRITER);
    assert!(horizon.may_go(mark));
    horizon.doubt(Lsn(150));
    assert!(!horizon.may_go(mark));
}
