//! Cancel requests: the right key, the wrong one, and nobody hit who was not meant.

use std::time::{Duration, Instant};

use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use synapsedb::wire::message::{backend, frontend};
use synapsedb::wire::scram::client::Binding;
use synapsedb::wire::startup::CancelKey;

use crate::house::{House, code, each};
use crate::raw::{self, Raw, connect, startup};

async fn session(house: &House, minor: u16) -> (Raw, CancelKey) {
    let mut client = connect(house.port).await;
    client
        .send(&startup(
            3,
            minor,
            &[("user", USER), ("database", DATABASE)],
        ))
        .await;
    let frames = client.log_in(PASSWORD, Binding::None).await;
    let key = frames.iter().find(|frame| frame[0] == b'K').expect("a key");
    (client, backend::read_key(key).expect("readable"))
}

/// Sends a cancel request and waits until it has been dealt with; libpq sends nothing behind it, others
/// send Terminate.
async fn cancel(house: &House, pid: u32, secret: &[u8], more: &[u8]) {
    let mut client = connect(house.port).await;
    client
        .send(&[&raw::cancel(pid, secret)[..], more].concat())
        .await;
    assert!(
        client.is_hung_up().await,
        "a cancel request is not answered"
    );
}

async fn start(client: &mut Raw, sql: &str) {
    let mut out = bytes::BytesMut::new();
    frontend::query(&mut out, sql).expect("fits");
    client.send(&out).await;
}

#[tokio::test]
async fn cancels() {
    let house = House::open().await;
    for minor in [0, 2] {
        let (mut client, key) = session(&house, minor).await;
        let begun = Instant::now();
        start(&mut client, "select pg_sleep(30)").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut wrong = key.secret.clone();
        wrong[0] ^= 1;
        cancel(&house, key.pid, &wrong, b"").await;
        cancel(&house, key.pid ^ 1, &key.secret, b"").await;
        let unhurt = tokio::time::timeout(Duration::from_millis(300), client.frame()).await;
        assert!(unhurt.is_err(), "a wrong key cancels nothing");
        cancel(&house, key.pid, &key.secret, b"X\0\0\0\x04").await;
        let frames = client.until_ready().await;
        assert_eq!(raw::sqlstate(&frames).as_deref(), Some("57014"));
        assert!(begun.elapsed() < Duration::from_secs(20));
        cancel(&house, key.pid, &key.secret, b"").await;
        let frames = client.query("select 1").await;
        assert_eq!(raw::sqlstate(&frames), None, "a cancel while idle is gone");
    }
    not_the_next_user(&house).await;
    not_while_waiting_for_the_quorum(&house).await;
}

/// Cancels sent around the end of each statement never reach whoever has the connection next.
async fn not_the_next_user(house: &House) {
    let pool = house.shared.pools.status();
    assert_eq!(
        pool.len(),
        1,
        "one pool, so that the connection is handed on"
    );
    let (mut first, key) = session(house, 0).await;
    let other = house.client().await;
    let victim = tokio::spawn(async move {
        for round in 0..150 {
            let result = other.simple_query("select pg_sleep(0.002)").await;
            assert_eq!(code(result), "00000", "round {round}");
        }
    });
    let mut hits = 0;
    while !victim.is_finished() {
        start(&mut first, "select pg_sleep(0.002)").await;
        let (frames, ()) = tokio::join!(
            first.until_ready(),
            cancel(house, key.pid, &key.secret, b"")
        );
        hits += u32::from(raw::sqlstate(&frames).is_some());
    }
    victim.await.expect("the other session was never cancelled");
    assert!(hits > 0, "some did reach their own session");
}

/// A commit that waits for its majority goes on waiting: broken off, it would be seen without one.
async fn not_while_waiting_for_the_quorum(house: &House) {
    let node = house.cluster.node(0).await;
    each(
        &node,
        &[
            "create table kept (a int)",
            "alter system set synchronous_standby_names = 'nobody'",
            "select pg_reload_conf()",
        ],
    )
    .await;
    let (mut client, key) = session(house, 0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    start(&mut client, "insert into kept values (1)").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    cancel(house, key.pid, &key.secret, b"").await;
    let waits = tokio::time::timeout(Duration::from_millis(500), client.frame()).await;
    assert!(waits.is_err(), "the commit still waits");
    each(
        &node,
        &[
            "alter system reset synchronous_standby_names",
            "select pg_reload_conf()",
        ],
    )
    .await;
    let frames = client.until_ready().await;
    assert_eq!(raw::sqlstate(&frames), None);
    assert!(
        frames.iter().all(|frame| frame[0] != b'N'),
        "no warning of a broken wait"
    );
}
