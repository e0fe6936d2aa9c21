//! What is built is read again; what is bent is refused; names and positions are spliced exactly.

use super::backend::{self, Authentication, Status};
use super::frontend::{self, Bind, Parse, Target};
use super::names::{portal_range, rename_portal, rename_statement, statement_range};
use super::report::{self, Report, Severity, edit_position, field, shift_position};
use super::rows::{self, Column};
use super::*;
use crate::wire::startup::{self, CancelKey, Startup};
use proptest::prelude::*;

type Built = Result<(), WireError>;

fn built(fill: impl FnOnce(&mut BytesMut) -> Built) -> BytesMut {
    let mut out = BytesMut::from(&b"before"[..]);
    fill(&mut out).unwrap();
    out.split_off(6)
}

fn with(fill: impl FnOnce(&mut BytesMut)) -> BytesMut {
    built(|out| {
        fill(out);
        Ok(())
    })
}

/// Gives every parser the same bytes.
fn read_all(frame: &[u8]) {
    let _ = frontend::read_query(frame);
    let _ = Parse::read(frame).map(|parse| parse.types.iter().count());
    let _ = Bind::read(frame).map(|bind| {
        let formats = bind.parameter_formats.iter().count() + bind.result_formats.iter().count();
        formats + bind.parameters.count()
    });
    let _ = frontend::read_describe(frame);
    let _ = frontend::read_close(frame);
    let _ = frontend::read_execute(frame);
    let _ = frontend::read_copy_fail(frame);
    let _ = frontend::read_password(frame);
    let _ = frontend::read_sasl_initial(frame);
    let _ = frontend::read_sasl_response(frame);
    let _ = Authentication::read(frame);
    let _ = backend::read_parameter_status(frame);
    let _ = backend::read_key(frame);
    let _ = backend::read_ready(frame);
    let _ = backend::read_complete(frame);
    let _ = backend::read_negotiate(frame);
    let _ = backend::read_notification(frame);
    let _ = backend::read_copy_data(frame);
    let _ = rows::read_description(frame);
    let _ = rows::read_parameters(frame).map(|oids| oids.iter().count());
    let _ = rows::read_row(frame).map(Iterator::count);
    let _ = Report::read(frame);
    let mut out = BytesMut::new();
    let _ = shift_position(frame, -3, &mut out);
    let _ = rename_statement(frame, "other", &mut out);
    let _ = rename_portal(frame, "other", &mut out);
}

fn a_parse() -> BytesMut {
    built(|out| frontend::parse(out, "s1", "select $1", &[23, 0]))
}

fn a_bind() -> BytesMut {
    let values = [Some(&b"one"[..]), None, Some(b"")];
    built(|out| frontend::bind(out, "p", "s1", &[1], values.into_iter(), &[0, 1]))
}

#[test]
fn frontend_messages_are_read_as_built() {
    assert_eq!(
        frontend::read_query(&built(|out| frontend::query(out, "x"))),
        Ok(&b"x"[..])
    );
    let frame = a_parse();
    let parse = Parse::read(&frame).unwrap();
    assert_eq!((parse.name, parse.sql), (&b"s1"[..], &b"select $1"[..]));
    assert_eq!(parse.types.iter().collect::<Vec<_>>(), [23, 0]);
    let frame = a_bind();
    let bind = Bind::read(&frame).unwrap();
    assert_eq!((bind.portal, bind.statement), (&b"p"[..], &b"s1"[..]));
    let values: Vec<_> = bind.parameters.collect();
    assert_eq!(values, [Some(&b"one"[..]), None, Some(b"")]);
    assert_eq!([0, 2, 9].map(|i| bind.parameter_formats.of(i)), [1, 1, 1]);
    assert_eq!([0, 1, 9].map(|i| bind.result_formats.of(i)), [0, 1, 0]);
    let frame = built(|out| frontend::describe(out, Target::Portal, "p"));
    assert_eq!(
        frontend::read_describe(&frame),
        Ok((Target::Portal, &b"p"[..]))
    );
    let frame = built(|out| frontend::close(out, Target::Statement, "s"));
    assert_eq!(
        frontend::read_close(&frame),
        Ok((Target::Statement, &b"s"[..]))
    );
    let frame = built(|out| frontend::execute(out, "p", 10));
    assert_eq!(frontend::read_execute(&frame), Ok((&b"p"[..], 10)));
    let frame = built(|out| frontend::copy_fail(out, "no"));
    assert_eq!(frontend::read_copy_fail(&frame), Ok(&b"no"[..]));
    let frame = built(|out| frontend::password(out, b"pw"));
    assert_eq!(frontend::read_password(&frame), Ok(&b"pw"[..]));
    let frame = built(|out| frontend::sasl_initial(out, "SCRAM", b"n,,"));
    assert_eq!(
        frontend::read_sasl_initial(&frame),
        Ok(("SCRAM", Some(&b"n,,"[..])))
    );
    let frame = built(|out| frontend::sasl_response(out, b"c="));
    assert_eq!(frontend::read_sasl_response(&frame), Ok(&b"c="[..]));
    assert_eq!(&with(frontend::sync)[..], b"S\0\0\0\x04");
}

#[test]
fn opening_packets_are_read_as_built() {
    let pairs = [("user", "ann"), ("database", "a")];
    let packet = built(|out| frontend::startup(out, pairs));
    let Ok(Some((Startup::Session(session), _))) = startup::peek(&packet) else {
        panic!("{packet:?}");
    };
    assert_eq!(
        (session.major, session.minor, session.get("database")),
        (3, 0, Some("a"))
    );
    let key = CancelKey {
        pid: 4,
        secret: vec![1; 32],
    };
    let packet = built(|out| frontend::cancel_request(out, &key));
    assert_eq!(
        startup::peek(&packet),
        Ok(Some((Startup::Cancel(key.clone()), 44)))
    );
    assert_eq!(
        backend::read_key(&built(|out| backend::key(out, &key))),
        Ok(key)
    );
    assert_eq!(
        startup::peek(&with(frontend::ssl_request)),
        Ok(Some((Startup::Ssl, 8)))
    );
}

#[test]
fn what_cannot_be_sent_leaves_the_buffer_alone() {
    let mut out = BytesMut::from(&b"kept"[..]);
    assert!(frontend::query(&mut out, "a\0b").is_err());
    assert!(frontend::parse(&mut out, "s", "x", &vec![0; 65_536]).is_err());
    let values = vec![None; 65_536];
    assert!(frontend::bind(&mut out, "", "", &[], values.into_iter(), &[]).is_err());
    assert!(backend::complete(&mut out, "a\0b").is_err());
    assert_eq!(&out[..], b"kept");
    let values = vec![None; 65_535];
    let frame = built(|out| frontend::bind(out, "", "", &[], values.into_iter(), &[]));
    assert_eq!(Bind::read(&frame).unwrap().parameters.len(), 65_535);
}

#[test]
fn authentication_is_read_as_built() {
    for message in [
        Authentication::Ok,
        Authentication::Cleartext,
        Authentication::Md5([1, 2, 3, 4]),
        Authentication::Sasl(vec!["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]),
        Authentication::SaslContinue(b"r="),
        Authentication::SaslFinal(b"v="),
        Authentication::Other(7),
    ] {
        assert_eq!(
            Authentication::read(&built(|out| message.put(out))),
            Ok(message)
        );
    }
}

#[test]
fn backend_messages_are_read_as_built() {
    for status in [Status::Idle, Status::Open, Status::Failed] {
        let frame = with(|out| backend::ready(out, status));
        assert_eq!(backend::read_ready(&frame), Ok(status));
    }
    let frame = built(|out| backend::parameter_status(out, b"TimeZone", b"UTC"));
    assert_eq!(
        backend::read_parameter_status(&frame),
        Ok((&b"TimeZone"[..], &b"UTC"[..]))
    );
    let frame = built(|out| backend::complete(out, "SELECT 1"));
    assert_eq!(backend::read_complete(&frame), Ok(&b"SELECT 1"[..]));
    let frame = built(|out| backend::negotiate(out, 3 << 16, ["_pq_.a"].into_iter()));
    assert_eq!(
        backend::read_negotiate(&frame),
        Ok((3 << 16, vec!["_pq_.a"]))
    );
    assert_eq!(&with(backend::parse_complete)[..], b"1\0\0\0\x04");
    let frame = built(|out| rows::parameters(out, &[25, 20_000]));
    let types: Vec<_> = rows::read_parameters(&frame).unwrap().iter().collect();
    assert_eq!(types, [25, 20_000]);
}

#[test]
fn tables_are_forgotten_and_nothing_else() {
    let known = Column {
        table: 16400,
        attribute: 2,
        modifier: 36,
        format: 1,
        ..Column::computed("b", 1043, -1)
    };
    let unknown = Column {
        table: 0,
        attribute: 0,
        ..known
    };
    let plain = Column::computed("a", 25, -1);
    let mut frame = built(|out| rows::description(out, &[known, plain, known]));
    rows::forget_tables(&mut frame);
    let expected = [unknown, plain, unknown];
    assert_eq!(rows::read_description(&frame).unwrap(), expected);
    // Cut short, it is left alone behind the cut.
    let cut = frame.len() - 20;
    rows::forget_tables(&mut frame[..cut]);
}

#[test]
fn rows_are_read_as_built() {
    let columns = [
        Column::computed("a", 25, -1),
        Column {
            table: 9,
            attribute: 2,
            modifier: 36,
            format: 1,
            ..Column::computed("b", 1043, -1)
        },
    ];
    let frame = built(|out| rows::description(out, &columns));
    assert_eq!(rows::read_description(&frame).unwrap(), columns);
    let values = [Some(&b"x"[..]), None];
    let frame = built(|out| rows::row(out, values.into_iter()));
    assert_eq!(rows::read_row(&frame).unwrap().collect::<Vec<_>>(), values);
}

#[test]
fn bent_frames_are_refused() {
    for frame in [a_parse(), a_bind()] {
        for cut in 0..frame.len() {
            let mut bent = frame[..cut].to_vec();
            read_all(&bent);
            if cut >= 5 {
                bent[1..5].copy_from_slice(&u32::try_from(cut - 1).unwrap().to_be_bytes());
                assert!(
                    Parse::read(&bent).is_err() && Bind::read(&bent).is_err(),
                    "{cut}"
                );
            }
        }
        let mut longer = frame.to_vec();
        longer.push(0);
        assert!(Parse::read(&longer).is_err() && Bind::read(&longer).is_err());
    }
    let mut bind = a_bind();
    let at = bind
        .windows(4)
        .position(|four| four == [0, 0, 0, 3])
        .unwrap();
    bind[at..at + 4].copy_from_slice(&(-2i32).to_be_bytes());
    assert!(Bind::read(&bind).is_err());
    let wanted = WireError::Unexpected {
        tag: b'P',
        wanted: "Bind",
    };
    assert_eq!(Bind::read(&a_parse()).err(), Some(wanted));
}

#[test]
fn statements_are_renamed_by_position() {
    let renamed = |frame: &[u8]| built(|out| rename_statement(frame, "longer_name", out));
    let frame = renamed(&a_parse());
    assert_eq!(Parse::read(&frame).unwrap().name, b"longer_name");
    assert_eq!(Parse::read(&frame).unwrap().sql, b"select $1");
    let frame = renamed(&a_bind());
    let bind = Bind::read(&frame).unwrap();
    assert_eq!(
        (bind.portal, bind.statement),
        (&b"p"[..], &b"longer_name"[..])
    );
    assert_eq!(bind.parameters.len(), 3);
    for target in [frontend::describe, frontend::close] {
        let frame = renamed(&built(|out| target(out, Target::Statement, "s1")));
        let expected = built(|out| target(out, Target::Statement, "longer_name"));
        assert_eq!(frame, expected);
        let portal = built(|out| target(out, Target::Portal, "s1"));
        assert_eq!(statement_range(&portal), Ok(None));
        assert_eq!(portal_range(&portal), Ok(Some(6..8)));
    }
    assert!(rename_statement(&a_parse(), "a\0b", &mut BytesMut::new()).is_err());
    let frame = built(|out| rename_portal(&a_bind(), "", out));
    assert_eq!(Bind::read(&frame).unwrap().portal, b"");
    let execute = built(|out| frontend::execute(out, "pp", 1));
    assert_eq!(portal_range(&execute), Ok(Some(5..7)));
}

#[test]
fn the_front_of_a_frame_is_enough_to_rename_it() {
    let whole = a_bind();
    let expected = built(|out| rename_statement(&whole, "other", out));
    for cut in 0..whole.len() {
        match statement_range(&whole[..cut]).unwrap() {
            None => assert!(cut < 10, "p, its zero, s1, its zero"),
            Some(range) => {
                assert_eq!(range, 7..9);
                let mut out = built(|out| rename_statement(&whole[..cut], "other", out));
                out.extend_from_slice(&whole[cut..]);
                assert_eq!(out, expected);
            }
        }
    }
    assert!(
        statement_range(b"P\0\0\0\x06ab\0").is_err(),
        "the name runs out of its frame"
    );
    assert!(statement_range(b"B\0\0\0\x06a\0").is_err());
}

#[test]
fn reports_are_read_as_built() {
    let report = Report::new(Severity::Error, "25006", "write quorum lost")
        .with(field::HINT, "wait")
        .with(field::POSITION, "15");
    let frame = with(|out| report.put_error(out));
    assert_eq!(Report::read(&frame), Ok(report.clone()));
    assert_eq!(report::get(&frame, field::HINT), Some(&b"wait"[..]));
    assert_eq!(
        (report.code(), report.message()),
        ("25006", "write quorum lost".to_owned())
    );
    assert_eq!(report::get(&frame, field::DETAIL), None);
    let notice = with(|out| Report::new(Severity::Notice, "00000", "a\0b").put_notice(out));
    assert_eq!(report::get(&notice, field::MESSAGE), Some(&b"a"[..]));
    let codes: Vec<_> = report::fields(&notice)
        .unwrap()
        .map(|(code, _)| code)
        .collect();
    assert_eq!(codes, b"SVCM");
}

#[test]
fn positions_move() {
    let report = |position: &str| {
        let report = Report::new(Severity::Error, "42601", "syntax").with(b'P', position);
        with(|out| report.with(b'R', "scanner_yyerror").put_error(out))
    };
    let shifted = |frame: &[u8], by| built(|out| shift_position(frame, by, out));
    assert_eq!(shifted(&report("95"), 10), report("105"));
    assert_eq!(shifted(&report("105"), -10), report("95"));
    let gone = shifted(&report("5"), -10);
    assert_eq!(report::get(&gone, b'P'), None);
    assert_eq!(report::get(&gone, b'R'), Some(&b"scanner_yyerror"[..]));
    assert_eq!(shifted(&report("odd"), 10), report("odd"));
    let without = with(|out| Report::new(Severity::Error, "1", "m").put_error(out));
    assert_eq!(shifted(&without, 10), without);
    let doubled = built(|out| edit_position(&report("7"), |at| Some(at * 2), out));
    assert_eq!(doubled, report("14"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_bodies_do_no_harm(
        tag in prop::sample::select(&b"QPBDCEfpRSKZTtDvANEdX"[..]),
        body in prop::collection::vec(prop::sample::select(&[0u8, 1, 2, 4, 65, 83, 80, 255][..]), 0..60),
    ) {
        let frame = built(|out| build(out, tag, |out| { out.put_slice(&body); Ok(()) }));
        read_all(&frame);
    }

    #[test]
    fn flipped_bytes_do_no_harm(at in 0usize..200, with in any::<u8>()) {
        for mut frame in [a_parse(), a_bind()] {
            let at = at % frame.len();
            frame[at] = with;
            read_all(&frame);
        }
    }

    #[test]
    fn binds_are_read_as_built(
        portal in "[^\0]{0,9}",
        statement in "[^\0]{0,9}",
        formats in prop::collection::vec(0i16..2, 0..5),
        values in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..20)), 0..9),
    ) {
        let borrowed = values.iter().map(Option::as_deref);
        let frame = built(|out| frontend::bind(out, &portal, &statement, &formats, borrowed, &formats));
        let bind = Bind::read(&frame).unwrap();
        prop_assert_eq!(bind.portal, portal.as_bytes());
        prop_assert_eq!(bind.statement, statement.as_bytes());
        prop_assert_eq!(bind.result_formats.iter().collect::<Vec<_>>(), formats);
        let read: Vec<_> = bind.parameters.map(|value| value.map(<[u8]>::to_vec)).collect();
        prop_assert_eq!(read, values);
    }
}
