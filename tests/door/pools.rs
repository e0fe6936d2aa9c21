//! Pools: bounds, queues, pressure, dead connections, and nothing left behind by anybody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use synapsedb::node::pooled::PoolError;
use synapsedb::session::listener;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::house::{House, code, each};
use crate::raw::{connect, startup};

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn bounds_and_queues() {
    let config =
        "[pool]\nmax_connections = 2\nqueue_max = 2\nqueue_timeout_ms = 400\nidle_timeout_s = 1\n";
    let house = House::open_with(config, |_| {}).await;
    drop(house.client().await);
    let pool = house
        .shared
        .pools
        .pool(house.shared.writer(), USER, DATABASE)
        .expect("a node");
    let first = pool.acquire().await.expect("free");
    let second = pool.acquire().await.expect("free");
    let pids = [first.backend.process_id, second.backend.process_id];
    let begun = Instant::now();
    let waited = pool.acquire().await.err().expect("none free");
    assert!(matches!(
        waited,
        PoolError::Timeout {
            max_connections: 2,
            ..
        }
    ));
    assert!(begun.elapsed() >= Duration::from_millis(400));
    // Two may wait, the third may not; the one who waits longest is served first.
    let mut waiting = JoinSet::new();
    for number in 0..2 {
        let place = Arc::clone(&pool);
        waiting.spawn(async move { (number, place.acquire().await) });
        until("a place in line", || pool.waiting() == number + 1).await;
    }
    assert!(matches!(
        pool.acquire().await,
        Err(PoolError::QueueFull { queue_max: 2 })
    ));
    let pressed = tokio::time::timeout(Duration::from_secs(1), pool.pressure()).await;
    assert!(pressed.is_ok(), "whoever holds one softly is told");
    first.release();
    let (number, lease) = waiting.join_next().await.expect("two").expect("no panic");
    assert_eq!(number, 0);
    let lease = lease.expect("served");
    assert!(pids.contains(&lease.backend.process_id));
    waiting.shutdown().await;
    assert_eq!(pool.waiting(), 0, "who gives up leaves the line");
    let relaxed = tokio::time::timeout(Duration::from_millis(100), pool.pressure()).await;
    assert!(relaxed.is_err());
    // LIFO, so that the others can grow old; and a lease that is dropped is a connection closed.
    let last = lease.backend.process_id;
    second.release();
    lease.release();
    let lease = pool.acquire().await.expect("free");
    assert_eq!(lease.backend.process_id, last);
    lease.discard();
    assert_eq!(pool.size(), (1, 1));
    until("idle ones close", || pool.size() == (0, 0)).await;
    drop(pool);
    until("an unused pool is forgotten", || {
        house.shared.pools.status().is_empty()
    })
    .await;
}

/// What a backend said while it was idle decides whether it is used again.
#[tokio::test]
async fn connections_that_changed_while_idle() {
    let house = House::open().await;
    let node = house.cluster.node(0).await;
    drop(house.client().await);
    let pool = house
        .shared
        .pools
        .pool(house.shared.writer(), USER, DATABASE)
        .expect("a node");
    let lease = pool.acquire().await.expect("free");
    let pid = lease.backend.process_id;
    lease.release();
    each(
        &node,
        &[
            "alter system set datestyle = 'SQL, DMY'",
            "select pg_reload_conf()",
        ],
    )
    .await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let mut lease = pool.acquire().await.expect("free");
    assert_eq!(lease.backend.process_id, pid, "a new default does no harm");
    // Since version 14 the server tells of it with the next answer.
    lease.backend.query("select 1").await.expect("alive");
    assert_eq!(lease.backend.parameters["DateStyle"], "SQL, DMY");
    lease.release();
    node.execute("select pg_terminate_backend($1)", &[&pid.cast_signed()])
        .await
        .expect("may");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let lease = pool.acquire().await.expect("another");
    assert_ne!(lease.backend.process_id, pid);
    let pid = lease.backend.process_id;
    pool.renew();
    lease.release();
    let lease = pool.acquire().await.expect("another");
    assert_ne!(lease.backend.process_id, pid, "of an older generation");
    lease.release();
    a_node_that_is_away(house, &pool).await;
}

/// Nothing hangs while it is away, and nothing of its former life is used when it is back.
async fn a_node_that_is_away(mut house: House, pool: &Arc<synapsedb::node::pool::Pool>) {
    house.cluster.server(0).kill9();
    let begun = Instant::now();
    assert_eq!(code(house.login(USER, PASSWORD, DATABASE).await), "57P03");
    let refused = pool
        .acquire()
        .await
        .err()
        .map(synapsedb::error::ClientError::from);
    let code_of = |error: synapsedb::error::ClientError| error.report().sqlstate;
    assert_eq!(refused.map(code_of).as_deref(), Some("57P03"));
    assert!(begun.elapsed() < Duration::from_secs(4));
    house.cluster.server(0).start().expect("it recovers");
    assert_eq!(
        code(house.client().await.simple_query("select 1").await),
        "00000"
    );
}

/// Ten thousand come and go; no place, key, connection or descriptor stays with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_come_and_go() {
    let house = House::open_with("[limits]\nmax_clients = 200\n", |_| {}).await;
    drop(house.client().await);
    let descriptors = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let before = descriptors();
    let port = house.port;
    let mut tasks = JoinSet::new();
    for worker in 0..20 {
        tasks.spawn(async move {
            for round in 0..500 {
                let mut client = connect(port).await;
                // Some leave at once, some halfway, some at the door, and some go in.
                let first = startup(3, 0, &[("user", USER), ("database", DATABASE)]);
                match (round + worker) % 40 {
                    0..=15 => {}
                    16..=29 => client.send(&first[..6]).await,
                    30..=34 => client.send(&first).await,
                    35..=38 => {
                        client.send(&first).await;
                        client.frame().await.expect("the request for SASL");
                    }
                    _ => {
                        client.send(&first).await;
                        let binding = synapsedb::wire::scram::client::Binding::None;
                        let frames = client.log_in(PASSWORD, binding).await;
                        assert_eq!(frames.last().expect("some")[0], b'Z');
                    }
                }
                let _ = client.stream.shutdown().await;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    until("all have left", || house.clients.is_empty()).await;
    assert_eq!(house.shared.seats.taken(), 0);
    assert!(house.shared.cancels.is_empty());
    let pools = house.shared.pools.status();
    assert!(
        pools
            .iter()
            .all(|pool| pool.size == pool.idle && pool.waiting == 0),
        "{pools:?}"
    );
    let open: usize = pools.iter().map(|pool| pool.size).sum();
    assert!(
        descriptors() <= before + open + 8,
        "{before} {open} {}",
        descriptors()
    );
    assert_eq!(
        code(house.client().await.simple_query("select 1").await),
        "00000"
    );
}

#[tokio::test]
async fn too_many_clients_and_the_end() {
    let house = House::open_with("[limits]\nmax_clients = 2\n", |_| {}).await;
    let first = house.client().await;
    let second = house.client().await;
    assert_eq!(code(house.login(USER, PASSWORD, DATABASE).await), "53300");
    drop(second);
    until("a place", || house.shared.seats.taken() == 1).await;
    let second = house.client().await;
    let mut halfway = connect(house.port).await;
    halfway.send(b"\0").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let working = tokio::spawn(async move { second.simple_query("select pg_sleep(1)").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    listener::drain(&house.shared, &house.clients, Duration::from_secs(10)).await;
    assert_eq!(halfway.refusal().await.0, "57P01");
    assert_eq!(
        code(working.await.expect("no panic")),
        "00000",
        "work in hand is finished"
    );
    assert!(house.clients.is_empty());
    until("the idle one is gone", || first.is_closed()).await;
    let refused = tokio::net::TcpStream::connect(("127.0.0.1", house.port)).await;
    assert!(refused.is_err(), "the door is closed");
}

/// What a plain transaction pays for having a pool.
#[tokio::test]
async fn acquiring_is_cheap() {
    let house = House::open().await;
    drop(house.client().await);
    let pool = house
        .shared
        .pools
        .pool(house.shared.writer(), USER, DATABASE)
        .expect("a node");
    pool.acquire().await.expect("free").release();
    let rounds = 20_000;
    let begun = Instant::now();
    for _ in 0..rounds {
        pool.acquire().await.expect("free").release();
    }
    let each = begun.elapsed() / rounds;
    println!("acquire and release: {each:?}");
    assert!(each < Duration::from_micros(50), "{each:?}");
}
