//! Tests of `node/cut.rs` and of the assembler around it: logs are put together byte by byte.

use bytes::{BufMut, Bytes, BytesMut};

use super::*;
use crate::ids::{Lsn, origin_name};
use crate::node::assemble::{AssembleError, Assembled, Assembler};
use crate::node::unit::{Changes, Unit};

const T: u32 = 20_001;
const PLACES: u32 = 20_002;
const LOG: u32 = 20_003;
const LINES: u32 = 20_004;

fn name(term: u64, lsn: u64) -> UnitId {
    UnitId {
        term: Epoch(term),
        lsn: Lsn(lsn),
    }
}

/// A node's log as pgoutput sends it.
struct Log {
    assembler: Assembler,
    /// The transaction that is streamed, if one is.
    top: Option<u32>,
    /// Of whom what is streamed is: the transaction, or a part of it.
    part: u32,
}

impl Log {
    /// Of a node that is the writer of term 2 since 0/1000, with some tables described.
    fn new() -> Self {
        Self::of(vec![(Epoch(2), Lsn(0x1000))])
    }

    fn of(offices: Vec<(Epoch, Lsn)>) -> Self {
        let mut log = Self {
            assembler: Assembler::new(offices, std::env::temp_dir()),
            top: None,
            part: 700,
        };
        log.describe(T, "public", "t", &["v"]);
        log.describe(PLACES, SYNAPSEDB, "applied_places", &["origin", "lsn"]);
        log.describe(LOG, SYNAPSEDB, "ddl_log", &["role"]);
        log.describe(LINES, SYNAPSEDB, "view_rows", &["id", "lines"]);
        log
    }

    fn describe(&mut self, oid: u32, namespace: &str, name: &str, columns: &[&str]) {
        self.send(b'R', |out| {
            out.put_u32(oid);
            cstring(out, namespace);
            cstring(out, name);
            out.put_u8(b'd');
            out.put_u16(u16::try_from(columns.len()).expect("few"));
            for column in columns {
                out.put_u8(1);
                cstring(out, column);
                out.put_u32(25);
                out.put_i32(-1);
            }
        });
    }

    fn put(
        &mut self,
        tag: u8,
        body: impl FnOnce(&mut BytesMut),
    ) -> Result<Option<Assembled>, AssembleError> {
        let mut out = BytesMut::new();
        out.put_u8(tag);
        if self.top.is_some() && b"RIM".contains(&tag) {
            out.put_u32(self.part);
        }
        body(&mut out);
        self.assembler.take(&out.freeze())
    }

    fn send(&mut self, tag: u8, body: impl FnOnce(&mut BytesMut)) {
        let got = self.put(tag, body).expect("it can be read");
        assert!(got.is_none() || matches!(got, Some(Assembled::Running(_))));
    }

    fn begin(&mut self) {
        self.send(b'B', |out| {
            out.put_u64(0);
            out.put_i64(0);
            out.put_u32(700);
        });
    }

    /// From here on it is streamed.
    fn stream(&mut self) {
        self.send(b'S', |out| {
            out.put_u32(700);
            out.put_u8(1);
        });
        self.top = Some(700);
    }

    fn open(&mut self, streamed: bool) {
        if streamed {
            self.stream();
        } else {
            self.begin();
        }
    }

    fn row(&mut self, relation: u32, values: &[Option<&str>]) {
        self.send(b'I', |out| {
            out.put_u32(relation);
            out.put_u8(b'N');
            out.put_u16(u16::try_from(values.len()).expect("few"));
            for value in values {
                let Some(value) = value else {
                    out.put_u8(b'n');
                    continue;
                };
                out.put_u8(b't');
                out.put_i32(i32::try_from(value.len()).expect("short"));
                out.extend_from_slice(value.as_bytes());
            }
        });
    }

    fn rows(&mut self, values: &[&str]) {
        for value in values {
            self.row(T, &[Some(value)]);
        }
    }

    fn message(&mut self, transactional: bool, prefix: &str, content: &str) {
        self.send(b'M', |out| {
            out.put_u8(u8::from(transactional));
            out.put_u64(0);
            cstring(out, prefix);
            out.put_u32(u32::try_from(content.len()).expect("short"));
            out.extend_from_slice(content.as_bytes());
        });
    }

    fn mark(&mut self, unit: UnitId, number: u64) {
        let mark = Mark { unit, number }.to_string();
        self.message(true, "synapsedb unit", &mark);
    }

    fn place(&mut self, unit: UnitId) {
        let origin = origin_name(unit.term, "app");
        self.row(PLACES, &[Some(&origin), Some(&unit.lsn.to_string())]);
    }

    /// The transaction's end, by the end of its commit record.
    fn commit(&mut self, end: u64) -> Result<Option<Assembled>, AssembleError> {
        let streamed = self.top.take();
        let tag = if streamed.is_some() { b'c' } else { b'C' };
        if streamed.is_some() {
            self.send(b'E', |_| ());
        }
        self.put(tag, |out| {
            if let Some(top) = streamed {
                out.put_u32(top);
            }
            out.put_u8(0);
            out.put_u64(end - 8);
            out.put_u64(end);
            out.put_i64(77);
        })
    }
}

fn cstring(out: &mut BytesMut, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.put_u8(0);
}

fn changes(unit: &Unit) -> Vec<Change> {
    match &unit.changes {
        Changes::Memory(changes) => changes.clone(),
        Changes::Spilled(spill) => {
            let mut reader = spill.reader();
            std::iter::from_fn(|| reader.next_change().expect("it can be read")).collect()
        }
    }
}

/// The first value of each new row.
fn values(unit: &Unit) -> String {
    let value = |change: &Change| match change {
        Change::Insert { new, .. } => match new.iter().next() {
            Some(Value::Text(text)) => String::from_utf8_lossy(text).into_owned(),
            _ => "?".to_owned(),
        },
        _ => "?".to_owned(),
    };
    changes(unit)
        .iter()
        .map(value)
        .collect::<Vec<_>>()
        .join(" ")
}

fn pieces(found: Result<Option<Assembled>, AssembleError>) -> Vec<(UnitId, String, bool)> {
    let Ok(Some(Assembled::Repeated(units))) = found else {
        panic!("no units of others: {found:?}");
    };
    let (last, ends) = (units.len() - 1, units.first().map(|unit| unit.end));
    for (at, unit) in units.iter().enumerate() {
        assert_eq!(unit.closes, at == last);
        assert_eq!(Some(unit.end), ends);
        assert_eq!((unit.xid, unit.committed_at), (700, 77));
    }
    let piece = |unit: &Unit| (unit.id, values(unit), unit.has_ddl);
    units.iter().map(piece).collect()
}

fn one(id: UnitId, values: &str) -> (UnitId, String, bool) {
    (id, values.to_owned(), false)
}

fn own(found: Result<Option<Assembled>, AssembleError>) -> (UnitId, String) {
    let Ok(Some(Assembled::Unit(unit))) = found else {
        panic!("no unit of its own: {found:?}");
    };
    assert!(unit.closes && unit.end == unit.id.lsn);
    (unit.id, values(&unit))
}

#[test]
fn merged_units_are_cut_at_their_marks_in_memory_and_on_disk() {
    for streamed in [false, true] {
        let mut log = Log::new();
        log.open(streamed);
        log.rows(&["a", "b"]);
        log.mark(name(1, 0x50), 9);
        log.mark(name(1, 0x60), 9);
        log.rows(&["c"]);
        log.row(LOG, &[Some("ddl")]);
        log.mark(name(1, 0x70), 9);
        log.rows(&["d"]);
        log.mark(name(1, 0x80), 9);
        log.place(name(1, 0x80));
        let expected = [
            one(name(1, 0x50), "a b"),
            one(name(1, 0x60), ""),
            (name(1, 0x70), "c ddl".to_owned(), true),
            one(name(1, 0x80), "d"),
        ];
        assert_eq!(pieces(log.commit(0x900)), expected, "streamed: {streamed}");
    }
}

#[test]
fn own_commits_are_named_by_the_office_held_then() {
    let mut log = Log::of(vec![(Epoch(1), Lsn(0)), (Epoch(4), Lsn(0x2000))]);
    for (end, term) in [(0x100, 1), (0x2000, 1), (0x2001, 4)] {
        log.begin();
        log.rows(&["mine"]);
        assert_eq!(own(log.commit(end)), (name(term, end), "mine".to_owned()));
    }
    let mut log = Log::new();
    log.begin();
    log.rows(&["astray"]);
    let found = log.commit(0x900);
    assert!(
        matches!(found, Ok(Some(Assembled::Nothing(Lsn(0x900), None)))),
        "{found:?}"
    );
}

#[test]
fn nobody_forges_a_mark() {
    for streamed in [false, true] {
        // In a transaction of one's own: no place is there.
        let mut log = Log::new();
        log.message(false, "synapsedb unit", "1/0/10 0000000000000009");
        log.open(streamed);
        log.rows(&["a"]);
        log.mark(name(1, 0x10), 9);
        log.message(true, "other", "1/0/10 0000000000000009");
        log.rows(&["b"]);
        let found = own(log.commit(0x2000));
        assert_eq!(found, (name(2, 0x2000), "a b".to_owned()));
        // From code that a row sets off in an applier's: the number is not known there.
        log.open(streamed);
        log.rows(&["a"]);
        log.mark(name(1, 0x10), 8);
        log.mark(name(1, 0x90), 7);
        log.rows(&["b"]);
        log.message(false, "synapsedb unit", "1/0/11 0000000000000009");
        log.message(true, "synapsedb unit", "1/0/11");
        log.mark(name(1, 0x80), 9);
        log.mark(name(1, 0x81), 8);
        log.rows(&["c"]);
        log.mark(name(1, 0x90), 9);
        log.place(name(1, 0x90));
        let expected = [one(name(1, 0x80), "a b"), one(name(1, 0x90), "c")];
        assert_eq!(pieces(log.commit(0x3000)), expected);
    }
}

#[test]
fn what_can_not_be_cut_is_an_error_and_never_a_unit() {
    let cut = |marks: &[UnitId], place| {
        let mut log = Log::new();
        log.begin();
        log.rows(&["a"]);
        for mark in marks {
            log.mark(*mark, 1);
        }
        log.place(place);
        matches!(log.commit(0x2000), Err(AssembleError::Cut(_)))
    };
    assert!(cut(&[], name(1, 5)));
    assert!(cut(&[name(1, 4)], name(1, 5)));
    assert!(cut(&[name(1, 6), name(1, 5)], name(1, 5)));
    assert!(cut(&[name(1, 5), name(1, 5)], name(1, 5)));
    assert!(cut(&[name(0, 4), name(1, 5)], name(1, 5)));
    assert!(!cut(&[name(1, 4), name(1, 5)], name(1, 5)));
    // An origin's first row is no unit.
    let mut log = Log::new();
    log.begin();
    log.place(name(1, 0));
    let found = log.commit(0x2000);
    assert!(
        matches!(found, Ok(Some(Assembled::Nothing(_, _)))),
        "{found:?}"
    );
}

#[test]
fn rows_of_a_view_come_only_with_the_lines_that_hold_them() {
    for streamed in [false, true] {
        let mut log = Log::new();
        log.open(streamed);
        log.row(LOG, &[Some("ddl")]);
        log.row(LINES, &[Some("1"), Some("{(x),(y)}")]);
        log.rows(&["x", "y"]);
        log.row(LINES, &[Some("2"), Some("{(z)}")]);
        log.rows(&["z"]);
        log.row(LINES, &[Some("3"), None]);
        log.rows(&["other"]);
        log.mark(name(1, 0x80), 9);
        log.place(name(1, 0x80));
        let expected = (name(1, 0x80), "ddl 1 2 3 other".to_owned(), true);
        assert_eq!(
            pieces(log.commit(0x900)),
            [expected],
            "streamed: {streamed}"
        );
    }
}

#[test]
fn parts_that_were_not_said_to_be_rolled_back_are_asked_for() {
    for (rolled_back, expected) in [(vec![702], "a b d"), (vec![], "a b c d")] {
        let mut log = Log::new();
        log.stream();
        for (part, row) in [(700, "a"), (701, "b"), (702, "c"), (703, "no"), (700, "d")] {
            log.part = part;
            log.rows(&[row]);
        }
        let Ok(Some(Assembled::Running(running))) = log.put(b'E', |_| ()) else {
            panic!("it is told of");
        };
        log.send(b'A', |out| {
            out.put_u32(700);
            out.put_u32(703);
        });
        log.stream();
        let Ok(Some(Assembled::Doubtful(doubtful))) = log.commit(0x2000) else {
            panic!("it is in doubt");
        };
        assert_eq!(doubtful.parts, [701, 702]);
        assert!(!running.borrow().committed);
        let settled = log
            .assembler
            .settle(*doubtful, &rolled_back.into_iter().collect());
        let unit = own(settled.map(Some));
        assert_eq!(unit, (name(2, 0x2000), expected.to_owned()));
        assert!(running.borrow().undone);
    }
    // Nobody commits what he applied of it before that was known.
    let mut log = Log::new();
    log.stream();
    log.part = 701;
    log.rows(&["b"]);
    let Ok(Some(Assembled::Running(running))) = log.put(b'E', |_| ()) else {
        panic!("it is told of");
    };
    log.stream();
    let Ok(Some(Assembled::Doubtful(doubtful))) = log.commit(0x2000) else {
        panic!("it is in doubt");
    };
    let settled = log.assembler.settle(*doubtful, &[701].into());
    assert!(settled.is_ok(), "{settled:?}");
    assert!(running.borrow().undone && running.borrow().committed);
}

#[test]
fn who_applies_a_streamed_transaction_ahead_hears_that_it_is_an_appliers() {
    let mut log = Log::new();
    log.stream();
    log.rows(&["a"]);
    let told = log.put(b'E', |_| ());
    let Ok(Some(Assembled::Running(running))) = told else {
        panic!("it is told of: {told:?}");
    };
    assert!(!running.borrow().undone);
    log.top = None;
    log.stream();
    log.mark(name(1, 0x80), 9);
    log.place(name(1, 0x80));
    assert_eq!(pieces(log.commit(0x900)), [one(name(1, 0x80), "a")]);
    assert!(running.borrow().undone);
}

#[test]
fn any_bytes_in_a_mark_do_no_harm() {
    for content in [
        "",
        " ",
        "1/0/1",
        "1/0/1 ",
        "1/0/1 g",
        "x 1",
        "1/0/1 1 1",
        "\u{1F600} 1",
    ] {
        let emitted = Emitted {
            transactional: true,
            lsn: Lsn(0),
            prefix: Bytes::from_static(PREFIX),
            content: Bytes::copy_from_slice(content.as_bytes()),
        };
        assert_eq!(Mark::read(&emitted), None, "{content}");
    }
}
