//! Messages of a real server (`PostgreSQL` 16.14, taken down as they came), made-up ones, and nonsense.

use super::outer::{Outer, StandbyStatus};
use super::tuple::Value;
use super::*;
use crate::wire::message::backend::read_copy_data;
use bytes::{BufMut, BytesMut};
use proptest::prelude::*;

fn hex(text: &str) -> Bytes {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

fn decode(text: &str) -> Message {
    Decoder::new().decode(&hex(text)).unwrap()
}

fn change(text: &str) -> Change {
    match decode(text) {
        Message::Change { xid: None, change } => change,
        other => panic!("{other:?}"),
    }
}

fn text(text: &str) -> Value<'_> {
    Value::Text(text.as_bytes())
}

fn tuple(values: &[Value<'_>]) -> Tuple {
    Tuple::of(values).unwrap()
}

#[test]
fn real_transaction_borders() {
    let begin = Message::Begin {
        commit_lsn: Lsn(0x014B_0DC0),
        commit_time: 0x0003_03F2_0A2B_8752,
        xid: Xid(735),
    };
    assert_eq!(decode("4200000000014b0dc0000303f20a2b8752000002df"), begin);
    let commit = Commit {
        commit_lsn: Lsn(0x014B_0DC0),
        end_lsn: Lsn(0x014B_0DF0),
        commit_time: 0x0003_03F2_0A2B_8752,
    };
    let golden = "430000000000014b0dc000000000014b0df0000303f20a2b8752";
    assert_eq!(decode(golden), Message::Commit(commit));
    let name = Bytes::from_static(b"synapsedb_1_a");
    let origin = Message::Origin {
        lsn: Lsn(0x00AB_CDEF),
        name,
    };
    assert_eq!(
        decode("4f0000000000abcdef73796e6170736564625f315f6100"),
        origin
    );
}

#[test]
fn a_real_relation_and_its_type() {
    let column = |key, name: &str, type_oid| Column {
        key,
        name: name.to_owned(),
        type_oid,
        modifier: -1,
    };
    let relation = Relation {
        oid: 16391,
        namespace: "public".to_owned(),
        name: "t".to_owned(),
        identity: Identity::Default,
        columns: vec![
            column(true, "id", 23),
            column(false, "v", 25),
            column(false, "m", 16386),
            column(false, "b", 17),
        ],
    };
    let golden = "52000040077075626c69630074006400040169640000000017ffffffff00760000000019\
                  ffffffff006d0000004002ffffffff00620000000011ffffffff";
    assert_eq!(change(golden), Change::Relation(relation));
    let mood = TypeName {
        oid: 16386,
        namespace: "public".to_owned(),
        name: "mood".to_owned(),
    };
    assert_eq!(
        change("59000040027075626c6963006d6f6f6400"),
        Change::Type(mood)
    );
}

#[test]
fn real_rows() {
    let golden = "49000040074e000474000000013174000000036f6e6574000000026f6b74000000065c7830306666";
    let new = tuple(&[text("1"), text("one"), text("ok"), text("\\x00ff")]);
    assert_eq!(
        change(golden),
        Change::Insert {
            relation: 16391,
            new
        }
    );

    let golden = "55000040074b00047400000001326e6e6e4e00047400000001336e74000000037361646e";
    let old = Old::Key(tuple(&[text("2"), Value::Null, Value::Null, Value::Null]));
    let new = tuple(&[text("3"), Value::Null, text("sad"), Value::Null]);
    assert_eq!(
        change(golden),
        Change::Update {
            relation: 16391,
            old,
            new
        }
    );

    let golden = "55000040074e00047400000001397574000000037361646e";
    let new = tuple(&[text("9"), Value::Unchanged, text("sad"), Value::Null]);
    let old = Old::Absent;
    assert_eq!(
        change(golden),
        Change::Update {
            relation: 16391,
            old,
            new
        }
    );

    let golden = "550000400e4f00027400000001317400000001784e0002740000000131740000000179";
    let old = Old::Row(tuple(&[text("1"), text("x")]));
    let new = tuple(&[text("1"), text("y")]);
    assert_eq!(
        change(golden),
        Change::Update {
            relation: 16398,
            old,
            new
        }
    );

    let golden = "44000040074b00047400000001336e6e6e";
    let old = Old::Key(tuple(&[text("3"), Value::Null, Value::Null, Value::Null]));
    assert_eq!(
        change(golden),
        Change::Delete {
            relation: 16391,
            old
        }
    );

    let golden = "440000400e4f0002740000000131740000000179";
    let old = Old::Row(tuple(&[text("1"), text("y")]));
    assert_eq!(
        change(golden),
        Change::Delete {
            relation: 16398,
            old
        }
    );

    let golden = "490000400e4e000262000000040000000162000000026f6b";
    let new = tuple(&[Value::Binary(&[0, 0, 0, 1]), Value::Binary(b"ok")]);
    assert_eq!(
        change(golden),
        Change::Insert {
            relation: 16398,
            new
        }
    );
}

#[test]
fn a_real_truncate_and_real_emitted_messages() {
    let truncate = Change::Truncate {
        relations: vec![16391, 16398],
        cascade: true,
        restart_identity: true,
    };
    assert_eq!(change("540000000203000040070000400e"), truncate);
    let emitted = |transactional, lsn, content: &'static str| {
        Change::Emitted(Emitted {
            transactional,
            lsn: Lsn(lsn),
            prefix: Bytes::from_static(b"synapsedb"),
            content: Bytes::from_static(content.as_bytes()),
        })
    };
    let golden = "4d0100000000014b116873796e617073656462000000000b312f302f31364233373438";
    assert_eq!(change(golden), emitted(true, 0x014B_1168, "1/0/16B3748"));
    let golden = "4d0000000000014b11e073796e61707365646200000000056c6f6f7365";
    assert_eq!(change(golden), emitted(false, 0x014B_11E0, "loose"));
}

#[test]
fn a_real_stream_with_a_subtransaction_rolled_back() {
    let mut decoder = Decoder::new();
    let mut decode = |text: &str| decoder.decode(&hex(text)).unwrap();
    let xid = Xid(0x2ED);
    assert_eq!(
        decode("53000002ed01"),
        Message::StreamStart { xid, first: true }
    );
    let inside = |message: Message| match message {
        Message::Change {
            xid: Some(xid),
            change,
        } => (xid, change),
        other => panic!("{other:?}"),
    };
    let golden =
        "52000002ed0000400e7075626c6963006b0066000201610000000017ffffffff01620000000019ffffffff";
    let (belongs, change) = inside(decode(golden));
    assert!(belongs == xid && matches!(change, Change::Relation(relation) if relation.name == "k"));
    let (belongs, _) = inside(decode("49000002ee0000400e4e0002740000000131740000000173"));
    assert_eq!(belongs, Xid(0x2EE), "the subtransaction's own number");
    // Said in the subtransaction too, and yet it carries the whole transaction's number.
    let golden =
        "4d000002ed0100000000014c76f073796e617073656462000000000e696e2061626f7274656420737562";
    assert_eq!(inside(decode(golden)).0, xid);
    assert_eq!(decode("45"), Message::StreamStop);
    let subxid = Xid(0x2EE);
    assert_eq!(
        decode("41000002ed000002ee"),
        Message::StreamAbort { xid, subxid }
    );
    assert_eq!(
        decode("53000002ed00"),
        Message::StreamStart { xid, first: false }
    );
    assert_eq!(decode("45"), Message::StreamStop);
    let commit = Commit {
        commit_lsn: Lsn(0x0150_DF68),
        end_lsn: Lsn(0x0150_DFA0),
        commit_time: 0x0003_03F2_0A2D_F5DE,
    };
    let golden = "63000002ed00000000000150df68000000000150dfa0000303f20a2df5de";
    assert_eq!(decode(golden), Message::StreamCommit { xid, commit });
}

#[test]
fn blocks_are_kept_apart() {
    for first in ["53000002ed01", ""] {
        let refused: &[&str] = match first {
            "" => &["45"],
            _ => &[
                first,
                "41000002ed000002ee",
                "4200000000014b0dc0000303f20a2b8752000002df",
            ],
        };
        for text in refused {
            let mut decoder = Decoder::new();
            if !first.is_empty() {
                decoder.decode(&hex(first)).unwrap();
            }
            let error = decoder.decode(&hex(text));
            assert!(matches!(error, Err(WireError::Unexpected { .. })), "{text}");
        }
    }
}

#[test]
fn the_real_envelope() {
    let read = |text: &str| Outer::read(&hex(text));
    let keepalive = Outer::Keepalive {
        end: Lsn(0x014B_3CF0),
        clock: 0x0003_03F2_13F8_58CA,
        reply: false,
    };
    assert_eq!(read("6b00000000014b3cf0000303f213f858ca00"), Ok(keepalive));
    let data = Outer::Data {
        start: Lsn(0x014B_3D30),
        end: Lsn(0x014B_3D30),
        clock: 0x0003_03F2_13F8_5CD0,
        message: hex("53000002ed01"),
    };
    let golden = "7700000000014b3d3000000000014b3d30000303f213f85cd053000002ed01";
    assert_eq!(read(golden), Ok(data));
    assert!(read("7a00").is_err());
    assert!(read("").is_err());
    assert!(read("6b00000000014b3cf0000303f213f858ca").is_err());
}

#[test]
fn the_status_is_laid_out_as_documented() {
    let mut out = BytesMut::new();
    let status = StandbyStatus {
        write: Lsn(3),
        flush: Lsn(2),
        apply: Lsn(1),
        clock: -1,
        reply: true,
    };
    status.put(&mut out);
    let content = read_copy_data(&out).unwrap();
    let mut expected = b"r".to_vec();
    for word in [3u64, 2, 1, u64::MAX] {
        expected.extend(word.to_be_bytes());
    }
    expected.push(1);
    assert_eq!(content, expected);
}

#[test]
fn a_row_prints_none_of_its_values() {
    let printed = format!("{:?}", tuple(&[text("secret"), Value::Null]));
    assert_eq!(printed, "Tuple(2 columns, 12 bytes)");
}

#[test]
fn claims_beyond_the_bytes_are_refused() {
    for text in [
        "",
        "5a",
        "54ffffffff00",
        "540000000203000040070000",
        "49000040074e0001747fffffff00",
        "49000040074effff",
        "49000040074e0001780000000100",
        "49000040074e0001756e",
        "49000040074b0000",
        "44000040074e0000",
        "4d0100000000014b116861",
        "4d0100000000014b11686100ffffffff",
        "5200004007610061007800",
        "5200004007ff0061006400",
    ] {
        assert!(Decoder::new().decode(&hex(text)).is_err(), "{text}");
    }
}

fn any_value() -> impl Strategy<Value = (u8, Vec<u8>)> {
    (0u8..4, prop::collection::vec(any::<u8>(), 0..30))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn rows_are_read_as_made(
        parts in prop::collection::vec(any_value(), 0..20),
        relation in any::<u32>(),
        xid in prop::option::of(any::<u32>()),
    ) {
        let values: Vec<Value<'_>> = parts
            .iter()
            .map(|(kind, bytes)| match kind {
                0 => Value::Null,
                1 => Value::Unchanged,
                2 => Value::Text(bytes),
                _ => Value::Binary(bytes),
            })
            .collect();
        let new = tuple(&values);
        prop_assert_eq!(new.iter().collect::<Vec<_>>(), values);
        let mut message = BytesMut::from(&b"I"[..]);
        message.extend(xid.map(u32::to_be_bytes).into_iter().flatten());
        message.put_u32(relation);
        message.put_u8(b'N');
        message.put_u16(u16::try_from(new.len()).unwrap());
        message.put_slice(new.raw());
        let mut decoder = Decoder { in_block: xid.is_some() };
        let decoded = decoder.decode(&message.freeze()).unwrap();
        let change = Change::Insert { relation, new };
        prop_assert_eq!(decoded, Message::Change { xid: xid.map(Xid), change });
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(
        tag in prop::sample::select(&b"BCORYIUDTMSEcAwk"[..]),
        in_block in any::<bool>(),
        body in prop::collection::vec(prop::sample::select(&[0u8, 1, 2, 4, 78, 75, 79, 110, 116, 117, 255][..]), 0..60),
    ) {
        let message = Bytes::from([&[tag], &body[..]].concat());
        let _ = Decoder { in_block }.decode(&message);
        let _ = Outer::read(&message);
    }

    #[test]
    fn bent_messages_do_no_harm(at in 0usize..36, with in any::<u8>(), cut in 0usize..36) {
        let golden = hex("55000040074b00047400000001326e6e6e4e00047400000001336e74000000037361646e");
        let mut bent = golden.to_vec();
        bent[at] = with;
        if let Ok(Message::Change { change: Change::Update { new, .. }, .. }) =
            Decoder::new().decode(&Bytes::from(bent.clone()))
        {
            prop_assert_eq!(new.iter().count(), new.len());
        }
        prop_assert!(Decoder::new().decode(&golden.slice(..cut)).is_err());
    }
}
