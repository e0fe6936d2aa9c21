//! Tests of `engine/council`: single rules; all of them together are held by `tests/simulation`.

use super::*;

const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);
const C: NodeId = NodeId(2);

struct Case {
    council: Council,
    said: Vec<Command>,
}

impl Case {
    /// A writes in term 3; B and C are live; everything has been decoded.
    fn new() -> Self {
        let record = Record {
            epoch: Epoch(5),
            term: Epoch(3),
            writer: A,
        };
        let parts = BTreeMap::from([(A, Part::Writer), (B, Part::Live), (C, Part::Live)]);
        let council = Council::new(record, &parts, &BTreeSet::from([A, B, C]), false);
        let mut case = Self {
            council,
            said: Vec::new(),
        };
        assert_eq!(case.tell(Event::Began), []);
        assert_eq!(case.tell(Event::Decoded), []);
        case
    }

    fn tell(&mut self, event: Event) -> Vec<Command> {
        self.council.handle(event, &mut self.said);
        std::mem::take(&mut self.said)
    }

    fn part(&self, node: NodeId) -> Part {
        self.council.part(node).expect("configured")
    }
}

fn copy(of: NodeId, on: NodeId) -> Command {
    Command::Copy { of, on }
}

fn met(node: NodeId, strays: bool) -> Event {
    Event::Met { node, strays }
}

#[test]
fn a_follower_that_is_lost_is_held_by_copies_and_joins_from_them() {
    let mut case = Case::new();
    let said = case.tell(Event::Lost(C));
    assert_eq!(said, [Command::Out(C), copy(C, A), copy(C, B)]);
    assert_eq!(case.council.standing(C), Some(Standing::Leaving));
    assert!(case.council.is_owed(C) && case.council.takes_writes());
    assert_eq!(case.tell(Event::Copied { of: C, on: A }), []);
    assert_eq!(case.tell(Event::Reached(C)), [Command::Meet(C)]);
    assert_eq!(
        case.tell(met(C, false)),
        [],
        "not before every copy is there"
    );
    assert!(
        case.council.may_move(B),
        "its slot holds what C lacks, so C's place decides"
    );
    assert_eq!(
        case.tell(Event::Copied { of: C, on: B }),
        [Command::Join(C)]
    );
    assert_eq!(case.council.standing(C), Some(Standing::Out));
    assert!(!case.council.is_owed(C));
    assert_eq!(case.tell(Event::Joined(C)), []);
    assert_eq!(case.part(C), Part::Live);
    let drop = |on| Command::Drop { of: C, on };
    assert_eq!(case.tell(Event::Settled(C)), [drop(A), drop(B)]);
}

#[test]
fn copies_are_made_again_only_when_their_drop_was_answered() {
    let mut case = Case::new();
    case.tell(Event::Lost(C));
    case.tell(Event::Reached(C));
    case.tell(met(C, false));
    case.tell(Event::Copied { of: C, on: A });
    case.tell(Event::Copied { of: C, on: B });
    case.tell(Event::Joined(C));
    case.tell(Event::Settled(C));
    assert_eq!(case.tell(Event::Lost(C)), [Command::Out(C)]);
    assert_eq!(case.tell(Event::Dropped { of: C, on: B }), [copy(C, B)]);
    assert_eq!(case.tell(Event::Dropped { of: C, on: A }), [copy(C, A)]);
}

#[test]
fn a_slot_moves_only_where_those_who_are_away_have_copies() {
    let mut case = Case::new();
    case.tell(Event::Lost(C));
    case.tell(Event::Copied { of: C, on: A });
    case.tell(Event::Copied { of: C, on: B });
    assert_eq!(case.part(C), Part::Away);
    assert!(case.council.may_move(B));
    // What B did of that is not known any more.
    case.tell(Event::Lost(B));
    case.tell(Event::Copied { of: B, on: A });
    case.tell(Event::Reached(B));
    case.tell(met(B, false));
    assert_eq!(case.tell(Event::Joined(B)), [copy(C, B)]);
    assert!(!case.council.may_move(B));
    case.tell(Event::Copied { of: C, on: B });
    assert!(case.council.may_move(B));
}

#[test]
fn a_writer_that_is_lost_is_followed_by_a_level_follower() {
    let mut case = Case::new();
    assert_eq!(case.tell(Event::Lost(A)), [Command::Level]);
    assert_eq!(
        (case.council.phase(), case.council.writer()),
        (Phase::Vacant, None)
    );
    assert_eq!(case.tell(Event::Level(C)), []);
    let promise = |node| Command::Promise {
        node,
        epoch: Epoch(6),
    };
    assert_eq!(case.tell(Event::Level(B)), [promise(B), promise(C)]);
    assert_eq!(case.tell(Event::Promised(C)), []);
    let record = Record {
        epoch: Epoch(6),
        term: Epoch(6),
        writer: B,
    };
    let note = |node| Command::Record { node, record };
    assert_eq!(case.tell(Event::Promised(B)), [note(B), note(C)]);
    // The former writer is asked to record who follows it, not to go on.
    assert_eq!(case.tell(Event::Reached(A)), [note(A)]);
    assert_eq!(case.tell(Event::Recorded(A)), []);
    let take = Command::TakeOffice {
        node: B,
        term: Epoch(6),
    };
    assert_eq!(case.tell(Event::Recorded(B)), [take]);
    let said = case.tell(Event::TookOffice(Lsn(70)));
    let serve = Command::Serve {
        writer: B,
        term: Epoch(6),
        start: Lsn(70),
    };
    assert_eq!(said, [serve, Command::Meet(A), copy(A, B), copy(A, C)]);
    assert_eq!(case.council.record(), record);
    case.tell(met(A, true));
    assert_eq!(
        (case.part(A), case.part(B), case.part(C)),
        (Part::Fenced, Part::Writer, Part::Live)
    );
}

#[test]
fn a_writer_that_returns_before_another_was_attempted_goes_on() {
    let mut case = Case::new();
    case.tell(Event::Lost(A));
    case.tell(Event::Level(B));
    assert_eq!(case.tell(Event::Reached(A)), [Command::Meet(A)]);
    assert_eq!(case.tell(Event::Level(C)), [], "it is being met");
    assert_eq!(case.tell(met(A, false)), [Command::Resume]);
    assert_eq!(case.council.writer(), Some(A));
}

#[test]
fn nobody_follows_a_writer_whose_log_was_not_read() {
    let mut case = Case::new();
    case.council.decoded = false;
    let said = case.tell(Event::Lost(A));
    assert_eq!(said, [Command::Conclude(Why::Undecoded)]);
    assert_eq!(case.tell(Event::Reached(A)), []);
}

#[test]
fn a_change_that_can_not_be_finished_begins_anew_from_facts() {
    let mut case = Case::new();
    case.tell(Event::Lost(A));
    case.tell(Event::Level(B));
    case.tell(Event::Level(C));
    let said = case.tell(Event::Lost(B));
    assert_eq!(said, [Command::Out(B), Command::Conclude(Why::Unfinished)]);
    let mut case = Case::new();
    assert_eq!(case.tell(Event::Outrun), [Command::Conclude(Why::Outrun)]);
}

#[test]
fn without_a_majority_nothing_changes_until_nodes_return() {
    let mut case = Case::new();
    case.tell(Event::Lost(B));
    assert!(case.council.takes_writes());
    case.tell(Event::Lost(C));
    assert!(!case.council.takes_writes());
    case.tell(Event::Lost(A));
    assert_eq!(case.council.phase(), Phase::Vacant);
    assert_eq!(case.tell(Event::Reached(B)), []);
    // A majority, but none of them is known to have everything.
    assert_eq!(
        case.tell(Event::Reached(C)),
        [Command::Conclude(Why::NobodyLevel)]
    );
}

#[test]
fn a_planned_change_drains_and_leaves_the_former_writer_live() {
    let mut case = Case::new();
    assert_eq!(case.tell(Event::Promote(C)), [Command::Hold]);
    assert!(!case.council.takes_writes());
    assert_eq!(case.tell(Event::Abandon), [Command::Resume]);
    assert!(case.council.takes_writes());
    case.tell(Event::Promote(C));
    assert_eq!(case.tell(Event::Drained), [Command::Level]);
    case.tell(Event::Level(C));
    assert_eq!(case.tell(Event::Level(B)).len(), 3);
    for node in [A, B, C] {
        case.tell(Event::Promised(node));
    }
    case.tell(Event::Recorded(A));
    case.tell(Event::Recorded(C));
    assert_eq!(case.council.phase(), Phase::Taking { to: C });
    let said = case.tell(Event::TookOffice(Lsn(9)));
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(
        (case.part(A), case.part(B), case.part(C)),
        (Part::Live, Part::Live, Part::Writer)
    );
}

#[test]
fn whoever_differs_is_owed_nothing_until_it_is_mended() {
    let mut case = Case::new();
    assert_eq!(case.tell(Event::Differs(B)), [Command::Out(B)]);
    assert_eq!(case.council.standing(B), Some(Standing::Out));
    assert_eq!(case.tell(Event::Lost(B)), []);
    assert_eq!(case.tell(Event::Reached(B)), []);
    assert_eq!(
        case.tell(Event::Mend(B)),
        [Command::Meet(B), copy(B, A), copy(B, C)]
    );
    assert!(case.council.is_owed(B));
}
