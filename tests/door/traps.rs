//! Malformed, oversized, half-open and odd beginnings of a connection.

use std::time::{Duration, Instant};

use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use synapsedb::wire::message::backend;
use synapsedb::wire::scram::client::Binding;

use crate::house::House;
use crate::raw::{self, GSS_REQUEST, SSL_REQUEST, connect, packet, startup};

const GOOD: [(&str, &str); 2] = [("user", USER), ("database", DATABASE)];

async fn refused(port: u16, bytes: &[u8]) -> (String, String) {
    let mut client = connect(port).await;
    client.send(bytes).await;
    client.refusal().await
}

#[tokio::test]
async fn odd_beginnings() {
    let house = House::open_with("[limits]\nhandshake_timeout_ms = 1500\n", |_| {}).await;
    malformed_packets(&house).await;
    versions(&house).await;
    encryption_is_declined(&house).await;
    half_open(&house).await;
    long_nonces(&house).await;
    startup_parameters(&house).await;
    house
        .client()
        .await
        .simple_query("select 1")
        .await
        .expect("the door still works");
    assert_eq!(house.shared.seats.taken(), 1, "only that last one is in");
}

async fn malformed_packets(house: &House) {
    let port = house.port;
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &10_005u32.to_be_bytes(),
        &u32::MAX.to_be_bytes(),
        &[0, 0, 0, 7, 0, 3, 0],
        &packet(b"\0\x03\0\0user\0ann"),
        &packet(b"\0\x03\0\0user"),
    ] {
        assert_eq!(refused(port, bytes).await.0, "08P01", "{bytes:?}");
    }
    let not_text = refused(port, &packet(b"\0\x03\0\0user\0\xFF\0\0")).await;
    assert_eq!(not_text.0, "22021");
    let largest = startup(3, 0, &[("user", &"x".repeat(9_900))]);
    let mut client = connect(port).await;
    client.send(&largest).await;
    assert_eq!(client.frame().await.expect("a request")[0], b'R');
    // A password message where SASL is on: another type, too long, not SASL.
    for bytes in [
        &b"Q\0\0\0\x05\0"[..],
        b"p\x7f\0\0\0",
        b"p\0\0\0\x08abcd",
        b"p\0\0\0\x02",
    ] {
        let mut client = connect(port).await;
        client.send(&startup(3, 0, &GOOD)).await;
        client.frame().await.expect("the request for SASL");
        client.send(bytes).await;
        assert_eq!(client.refusal().await.0, "08P01", "{bytes:?}");
    }
}

async fn versions(house: &House) {
    let old = refused(house.port, &startup(2, 0, &[])).await;
    assert_eq!(old.0, "0A000");
    assert!(
        old.1.contains("unsupported frontend protocol 2.0"),
        "{}",
        old.1
    );
    for (minor, spoken, options, key) in [
        (0, None, &[][..], 4),
        (2, None, &[], 32),
        (9999, Some(2), &[], 32),
        (0, Some(0), &["_pq_.test_protocol_negotiation"], 4),
        (9999, Some(2), &["_pq_.a", "_pq_.b"], 32),
    ] {
        let mut parameters = GOOD.to_vec();
        parameters.extend(options.iter().map(|name| (*name, "on")));
        let mut client = connect(house.port).await;
        client.send(&startup(3, minor, &parameters)).await;
        if let Some(spoken) = spoken {
            let frame = client.frame().await.expect("a negotiation");
            let (version, unknown) = backend::read_negotiate(&frame).expect("readable");
            assert_eq!((version, unknown.as_slice()), (3 << 16 | spoken, options));
        }
        let frames = client.log_in(PASSWORD, Binding::None).await;
        let frame = frames.iter().find(|frame| frame[0] == b'K').expect("a key");
        assert_eq!(
            backend::read_key(frame).expect("readable").secret.len(),
            key
        );
        assert!(
            client
                .query("select 1")
                .await
                .iter()
                .any(|frame| frame[0] == b'D')
        );
    }
}

/// Without a certificate, TLS and GSSAPI are declined once each; bytes behind the request are not
/// taken for a later step, and a client that begins TLS unasked is not answered in clear.
async fn encryption_is_declined(house: &House) {
    let mut client = connect(house.port).await;
    for request in [GSS_REQUEST, SSL_REQUEST] {
        client.send(request).await;
        assert_eq!(client.byte().await, Some(b'N'));
    }
    client.send(SSL_REQUEST).await;
    assert_eq!(client.refusal().await.0, "08P01");
    for request in [GSS_REQUEST, SSL_REQUEST] {
        let behind = [request, &startup(3, 0, &GOOD)].concat();
        let (code, text) = refused(house.port, &behind).await;
        assert_eq!(code, "08P01");
        assert!(text.contains("received unencrypted data"), "{text}");
    }
    let mut client = connect(house.port).await;
    client.send(b"\x16\x03\x01\x02\0\x01\0").await;
    assert!(client.is_hung_up().await);
}

async fn half_open(house: &House) {
    let begun = Instant::now();
    let mut silent = connect(house.port).await;
    let mut halfway = connect(house.port).await;
    halfway.send(&startup(3, 0, &GOOD)[..9]).await;
    let mut unproved = connect(house.port).await;
    unproved.send(&startup(3, 0, &GOOD)).await;
    for client in [&mut silent, &mut halfway, &mut unproved] {
        assert_eq!(client.refusal().await.0, "57014");
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    // One that leaves in the middle is forgotten.
    drop(connect(house.port).await);
    let mut client = connect(house.port).await;
    client.send(&startup(3, 0, &GOOD)).await;
    client.frame().await.expect("the request for SASL");
    drop(client);
}

async fn long_nonces(house: &House) {
    for nonce in [
        "x".repeat(400),
        "x".repeat(1_500),
        String::new(),
        "a b".to_owned(),
    ] {
        let mut client = connect(house.port).await;
        client.send(&startup(3, 0, &GOOD)).await;
        client.frame().await.expect("the request for SASL");
        let data = format!("n,,n=,r={nonce}");
        let length = u32::try_from(data.len()).expect("small");
        let body = [
            b"SCRAM-SHA-256\0",
            &length.to_be_bytes()[..],
            data.as_bytes(),
        ]
        .concat();
        client.send(&[b"p", &packet(&body)[..]].concat()).await;
        assert_eq!(client.refusal().await.0, "08P01", "{}", nonce.len());
    }
}

/// The node judges them, and its parameters are the client's.
async fn startup_parameters(house: &House) {
    let told = |frames: &[bytes::BytesMut], wanted: &str| {
        let pairs = frames
            .iter()
            .filter_map(|frame| backend::read_parameter_status(frame).ok());
        let mut values = pairs.filter(|(name, _)| *name == wanted.as_bytes());
        values
            .next()
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    };
    let wishes = [
        ("DateStyle", "SQL, DMY"),
        ("application_name", "it's \\me"),
        ("client_encoding", "LATIN1"),
        ("extra_float_digits", "2"),
        (
            "options",
            r"-c search_path=pg_temp,public --timezone=Asia/Tokyo -c work_mem=3MB",
        ),
    ];
    let mut client = connect(house.port).await;
    client
        .send(&startup(3, 0, &[&GOOD[..], &wishes].concat()))
        .await;
    let frames = client.log_in(PASSWORD, Binding::None).await;
    for (name, value) in [
        ("DateStyle", "SQL, DMY"),
        ("application_name", "it's \\me"),
        ("client_encoding", "LATIN1"),
        ("TimeZone", "Asia/Tokyo"),
        ("default_transaction_read_only", "off"),
        ("server_encoding", "UTF8"),
    ] {
        assert_eq!(told(&frames, name).as_deref(), Some(value), "{name}");
    }
    let shown = client
        .query("select current_setting('search_path'), current_setting('work_mem')")
        .await;
    let row = shown.iter().find(|frame| frame[0] == b'D').expect("a row");
    assert!(row.windows(14).any(|text| text == b"pg_temp,public"));
    // Nothing of it is left for the next one on the same connection.
    let mut next = connect(house.port).await;
    next.send(&startup(3, 0, &GOOD)).await;
    let frames = next.log_in(PASSWORD, Binding::None).await;
    assert_eq!(told(&frames, "DateStyle").as_deref(), Some("ISO, MDY"));
    assert_eq!(told(&frames, "application_name").as_deref(), Some(""));
    for (name, value, code) in [
        ("no_such_setting", "1", "42704"),
        ("work_mem", "a lot", "22023"),
        ("options", "-c geqo=perhaps", "22023"),
        ("options", "-x", "42601"),
        ("wal_level", "minimal", "55P02"),
        ("replication", "database", "0A000"),
    ] {
        let mut client = connect(house.port).await;
        client
            .send(&startup(3, 0, &[&GOOD[..], &[(name, value)]].concat()))
            .await;
        let frames = client.log_in(PASSWORD, Binding::None).await;
        assert_eq!(raw::sqlstate(&frames).as_deref(), Some(code), "{name}");
    }
    let mut reader = connect(house.read_only_port).await;
    reader.send(&startup(3, 0, &GOOD)).await;
    let frames = reader.log_in(PASSWORD, Binding::None).await;
    assert_eq!(
        told(&frames, "default_transaction_read_only").as_deref(),
        Some("on")
    );
    let written = reader.query("create table t ()").await;
    assert_eq!(raw::sqlstate(&written).as_deref(), Some("25006"));
}
