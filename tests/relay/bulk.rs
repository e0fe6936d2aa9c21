//! Big things pass through little memory: results, fields, COPY, parameters, and clients that are slow.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::raw::Raw;
use crate::support::cluster::TestCluster;

/// What the proxy may have held at most at any time.
const RESIDENT_KIB_MAX: u64 = 100 * 1024;

/// The most memory the proxy has had resident so far.
fn peak(cluster: &TestCluster) -> u64 {
    let path = format!("/proc/{}/status", cluster.proxy_pid());
    let status = std::fs::read_to_string(path).expect("it runs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .expect("Linux says it");
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .expect("a number")
}

/// Reads until a `ReadyForQuery` stands at the end; how many bytes.
async fn drain(raw: &mut Raw) -> usize {
    let mut total = 0;
    let mut last = Vec::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read =
            tokio::time::timeout(Duration::from_secs(60), raw.stream.read(&mut buffer)).await;
        let read = read.expect("in time").expect("open");
        assert!(read > 0, "closed after {total}");
        total += read;
        last.extend_from_slice(&buffer[read.saturating_sub(6)..read]);
        last.drain(..last.len().saturating_sub(6));
        if last == b"Z\0\0\0\x05I" {
            return total;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_things_pass_through_little_memory() {
    let cluster = TestCluster::builder().nodes(1).start().await;
    let port = cluster.port();
    let mut raw = Raw::login(port, &[]).await;
    raw.query("select repeat('x', 1000000) from generate_series(1, 300)")
        .go()
        .await;
    assert!(drain(&mut raw).await > 300_000_000);
    raw.query("select repeat('x', 200000000)").go().await;
    assert!(drain(&mut raw).await > 200_000_000);
    raw.query("copy (select repeat('x', 100000) from generate_series(1, 1000)) to stdout")
        .go()
        .await;
    assert!(drain(&mut raw).await > 100_000_000);
    parameter(&mut raw).await;
    copy_in(&mut raw).await;
    slow_reader(port, &mut raw).await;
    both_ways(port).await;
    long_text(&mut raw).await;
    let peak = peak(&cluster);
    assert!(peak < RESIDENT_KIB_MAX, "{peak} KiB");
}

/// A parameter of 100 MB.
async fn parameter(raw: &mut Raw) {
    let value = "v".repeat(100_000_000);
    raw.parse("", "select length($1)")
        .bind("", "", &[&value])
        .execute("", 0)
        .sync();
    assert_eq!(raw.ask().await, "12D(100000000)CZ");
}

async fn copy_in(raw: &mut Raw) {
    assert_eq!(raw.query("create temp table c (a text)").ask().await, "CZ");
    raw.query("copy c from stdin").go().await;
    assert_eq!(raw.hear_until(b"G").await, "G");
    let row = format!("{}\n", "r".repeat(99_999));
    for _ in 0..1000 {
        raw.copy(&row).go().await;
    }
    assert_eq!(raw.copy_done().ask().await, "CZ");
    assert_eq!(
        raw.query("select sum(length(a)) from c").ask().await,
        "TD(99999000)CZ"
    );
    assert_eq!(raw.query("drop table c").ask().await, "CZ");
}

/// A client that asks and does not read holds up nobody else, and loses nothing.
async fn slow_reader(port: u16, other: &mut Raw) {
    let mut slow = Raw::login(port, &[]).await;
    slow.query("select repeat('x', 1000000) from generate_series(1, 100)")
        .go()
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(other.query("select 1").ask().await, "TD(1)CZ");
    assert!(drain(&mut slow).await > 100_000_000);
}

/// A client that goes on sending while the server sends.
async fn both_ways(port: u16) {
    let raw = Raw::login(port, &[]).await;
    let (mut reader, mut writer) = raw.stream.into_split();
    let asking = tokio::spawn(async move {
        let text = "select repeat('x', 20000)\0";
        let mut query = vec![b'Q', 0, 0, 0, u8::try_from(text.len() + 4).expect("short")];
        query.extend_from_slice(text.as_bytes());
        for _ in 0..5000 {
            writer.write_all(&query).await.expect("taken");
        }
        writer
    });
    let mut total = 0;
    let mut buffer = vec![0; 1 << 16];
    while total < 5000 * 20_000 {
        let read = tokio::time::timeout(Duration::from_secs(30), reader.read(&mut buffer)).await;
        total += read.expect("no deadlock").expect("open");
    }
    asking.await.expect("all was sent");
}

/// A text that is too long to be looked at, but not for the server.
async fn long_text(raw: &mut Raw) {
    let text = format!("select length('{}')", "t".repeat(40 << 20));
    assert_eq!(raw.query(&text).ask().await, "TD(41943040)CZ");
    raw.parse("", &text).bind("", "", &[]).execute("", 0).sync();
    assert_eq!(raw.ask().await, "12D(41943040)CZ");
    raw.parse("named", &text).sync();
    assert_eq!(raw.ask().await, "E(54000)Z");
}
