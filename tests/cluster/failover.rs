//! The writer killed and frozen: another follows, nothing acknowledged is lost, nothing is done
//! twice, and no node out of office writes.
//!
//! `SEED=n` replays a run. With `SYNAPSEDB_TEST_ALL` runs take minutes.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::faults::{Fault, LINES, Run, time};
use crate::support::cluster::TestCluster;
use crate::tools::{
    self, PATIENCE, ask, in_the_background, is_all, seed, status, still_waits, try_ask, until,
    until_status, within,
};

/// Within this time a killed node is shown as down.
const KILL_SEEN: Duration = Duration::from_secs(1);
/// Within this time a frozen one is.
const FREEZE_SEEN: Duration = Duration::from_millis(2500);
/// What "at once" is on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(1);

fn seen_within(fault: Fault) -> Duration {
    match fault {
        Fault::Killed => KILL_SEEN,
        Fault::Frozen => FREEZE_SEEN,
    }
}

/// The node that the proxy shows as writer, if it shows exactly one.
pub async fn writer(cluster: &TestCluster) -> Option<usize> {
    let sql =
        "select case when count(*) = 1 then min(node_id) end from cluster_nodes where is_writer";
    let number: usize = try_ask(cluster, sql).await?.parse().ok()?;
    number.checked_sub(1)
}

/// Waits until there is a writer, and gives it.
pub async fn some_writer(cluster: &TestCluster) -> usize {
    until("there is one writer", || async {
        writer(cluster).await.is_some()
    })
    .await;
    writer(cluster).await.expect("there was one")
}

/// Waits until somebody else writes.
pub async fn until_followed(cluster: &TestCluster, before: usize) -> usize {
    until("another node writes", || async {
        writer(cluster).await.is_some_and(|now| now != before)
    })
    .await;
    some_writer(cluster).await
}

/// A node is back: it serves, or it holds what was never acknowledged and is out. Whether it serves.
pub async fn is_back(cluster: &TestCluster, node: usize) -> bool {
    until("the node is in sync or fenced", || async {
        let status = status(cluster, node).await;
        matches!(status.as_deref(), Some("in_sync" | "fenced"))
    })
    .await;
    status(cluster, node).await.as_deref() == Some("in_sync")
}

/// Writers struck one after the other, on a new cluster wherever one can't come back. How often.
async fn writers_come_and_go(fault: Fault, time: Duration) -> usize {
    let (end, mut seed, mut struck) = (Instant::now() + time, seed(), 0);
    while Instant::now() < end {
        let mut run = Run::start(seed, end - Instant::now()).await;
        let mut out = None;
        while run.goes_on() && out.is_none() {
            run.moment(Duration::from_millis(500)).await;
            let before = some_writer(&run.cluster).await;
            let began = Instant::now();
            run.strike(before, fault);
            let next = until_followed(&run.cluster, before).await;
            println!("node{} follows after {:?}", next + 1, began.elapsed());
            run.moment(Duration::from_secs(4)).await;
            run.mend(before, fault);
            // What the old one still holds in its hands comes to nothing while others write.
            run.crowd.lines(LINES).await;
            if !is_back(&run.cluster, before).await {
                out = Some(before);
            }
            struck += 1;
        }
        run.finish(out).await;
        seed = seed.wrapping_add(1);
    }
    struck
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_killed_under_load_is_followed_and_nothing_acknowledged_is_lost() {
    assert!(writers_come_and_go(Fault::Killed, time()).await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_frozen_under_load_does_no_harm_when_it_goes_on() {
    assert!(writers_come_and_go(Fault::Frozen, time()).await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_away_when_the_writer_died_gets_what_it_lacks() {
    let mut run = Run::start(seed(), Duration::ZERO).await;
    let dead = some_writer(&run.cluster).await;
    let mut followers = (0..run.cluster.nodes()).filter(|node| *node != dead);
    let away = followers.next().expect("three nodes");
    run.strike(away, Fault::Killed);
    // Acknowledged by the writer and the one follower that is left.
    run.moment(Duration::from_secs(1)).await;
    run.strike(dead, Fault::Killed);
    // That follower alone is no majority, and has what the one that comes back lacks.
    run.mend(away, Fault::Killed);
    until_followed(&run.cluster, dead).await;
    run.crowd.lines(LINES).await;
    run.mend(dead, Fault::Killed);
    let out = (!is_back(&run.cluster, dead).await).then_some(dead);
    run.finish(out).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_followers_writes_are_refused_at_once_and_reads_go_on() {
    let mut run = Run::start(seed(), Duration::ZERO).await;
    let client = run.cluster.client().await;
    let reader = run.cluster.reader().await;
    let table = "create table kept (a int); insert into kept values (0)";
    tools::run(&client, table).await;
    for fault in [Fault::Killed, Fault::Frozen] {
        let writer = some_writer(&run.cluster).await;
        let nodes = 0..run.cluster.nodes();
        let followers: Vec<usize> = nodes.filter(|node| *node != writer).collect();
        for node in &followers {
            run.strike(*node, fault);
        }
        for node in &followers {
            down(&run.cluster, *node, seen_within(fault)).await;
        }
        for n in 0..10 {
            writes_are_refused_at_once(&client, n).await;
            let count = "select count(*) from kept";
            assert_eq!(ask(&client, count).await, "1");
            assert_eq!(ask(&reader, count).await, "1");
        }
        // Whoever waited for a majority is told that nobody knows, and refused from then on.
        run.crowd.refusal().await;
        for node in &followers {
            run.mend(*node, fault);
            until_status(&run.cluster, *node, "in_sync").await;
        }
        run.crowd.lines(LINES).await;
    }
    let (_cluster, books) = run.finish(None).await;
    assert!(books.count("write 25006") > 0, "{:?}", books.counts);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_writer_and_a_follower_killed_reads_go_on_and_writes_are_refused_at_once() {
    one_follower_is_left(Fault::Killed, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_writer_frozen_and_a_follower_killed_reads_go_on_and_writes_are_refused_at_once() {
    one_follower_is_left(Fault::Frozen, None).await;
}

/// The writer and a follower are struck at once; the other follower has everything soon, and is read from.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_writer_killed_and_a_follower_while_another_is_to_write_reads_go_on() {
    let gaps: &[u64] = if is_all() { &[20, 45, 70] } else { &[45] };
    for gap in gaps.iter().copied() {
        one_follower_is_left(Fault::Killed, Some(Duration::from_millis(gap))).await;
    }
}

/// The follower dies first, or so long after the writer.
async fn one_follower_is_left(fault: Fault, after: Option<Duration>) {
    const COUNT: &str = "select count(*) from kept";
    let mut run = Run::start(seed(), Duration::ZERO).await;
    let client = run.cluster.client().await;
    let reader = run.cluster.reader().await;
    tools::run(&client, "create table kept (a int)").await;
    let writer = some_writer(&run.cluster).await;
    // Of equal ones the first is to write.
    let follower = (writer + 1 + usize::from(after.is_some())) % run.cluster.nodes();
    run.moment(Duration::from_secs(1)).await;
    for n in 0..20 {
        tools::run(&client, &format!("insert into kept values ({n})")).await;
    }
    if let Some(gap) = after {
        run.strike(writer, fault);
        tokio::time::sleep(gap).await;
        run.strike(follower, Fault::Killed);
    } else {
        run.strike(follower, Fault::Killed);
        run.strike(writer, fault);
    }
    until("writes are refused", || async {
        let sql = "update kept set a = 0 where false";
        refusal(&client, sql).await.as_deref() == Some("25006")
    })
    .await;
    for n in 0..10 {
        writes_are_refused_at_once(&client, n).await;
        assert_eq!(ask(&client, COUNT).await, "20");
        assert_eq!(ask(&reader, COUNT).await, "20");
        let came = Instant::now();
        let newcomer = run.cluster.client().await;
        assert_eq!(ask(&newcomer, COUNT).await, "20");
        assert!(came.elapsed() < AT_ONCE, "{:?}", came.elapsed());
        tools::run(&client, "begin").await;
        assert_eq!(ask(&client, COUNT).await, "20");
        tools::run(&client, "commit").await;
        // A transaction that has read is refused to write, and what comes behind it reads.
        tools::run(&client, "begin").await;
        assert_eq!(ask(&client, COUNT).await, "20");
        let insert = format!("insert into kept values ({n})");
        assert_eq!(refusal(&client, &insert).await.as_deref(), Some("25006"));
        let began = Instant::now();
        assert_eq!(ask(&client, COUNT).await, "20");
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    }
    run.mend(follower, Fault::Killed);
    until("somebody writes", || async {
        client
            .batch_execute("insert into kept values (20)")
            .await
            .is_ok()
    })
    .await;
    assert_eq!(ask(&client, COUNT).await, "21");
    run.mend(writer, fault);
    run.crowd.lines(LINES).await;
    let out = (!is_back(&run.cluster, writer).await).then_some(writer);
    run.finish(out).await;
}

/// Why a write is refused, if it is, in a session that goes on.
async fn refusal(client: &Client, sql: &str) -> Option<String> {
    let refused = client.batch_execute(sql).await.err()?;
    let code = refused.code().map(|code| code.code().to_owned());
    // A Query that failed midway leaves its transaction to be ended.
    tools::run(client, "rollback").await;
    code
}

/// Writes of every kind, since no majority would have them.
async fn writes_are_refused_at_once(client: &Client, n: i32) {
    for sql in [
        format!("insert into kept values ({n})"),
        format!("begin; insert into kept values ({n}); commit"),
        "create table never (a int)".to_owned(),
    ] {
        let began = Instant::now();
        let code = refusal(client, &sql).await;
        assert_eq!(code.as_deref(), Some("25006"), "{sql}");
        assert!(began.elapsed() < AT_ONCE, "{sql}: {:?}", began.elapsed());
    }
}

/// The proxy shows it as down within this time.
async fn down(cluster: &TestCluster, node: usize, limit: Duration) {
    let what = format!("node{} is shown as down", node + 1);
    let took = within(limit, &what, || async {
        status(cluster, node).await.as_deref() == Some("down")
    })
    .await;
    println!("{what} after {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_restarted_by_itself_shows_nothing_before_a_majority_has_it() {
    let mut cluster = TestCluster::start().await;
    let client = cluster.client().await;
    tools::run(&client, "create table t (a int); insert into t values (0)").await;
    cluster.assert_nodes_equal().await;
    let old = some_writer(&cluster).await;
    let nodes = 0..cluster.nodes();
    let mut holds = Vec::new();
    for node in nodes.filter(|node| *node != old) {
        // Readers are not in its way, only the applier.
        let hold = cluster.node(node).await;
        let lock = "set idle_in_transaction_session_timeout = 0; begin read write; \
                    lock table t in share row exclusive mode";
        tools::run(&hold, lock).await;
        holds.push(hold);
    }
    let mut waiting = in_the_background(&cluster, "insert into t values (1)").await;
    let straight = cluster.node(old).await;
    let in_wait = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    until("the commit waits", || async {
        ask(&straight, in_wait).await == "1"
    })
    .await;
    assert!(still_waits(&mut waiting).await, "no majority has it");
    // Its log holds the commit, and after recovery nobody on it waits any more.
    tokio::task::block_in_place(|| {
        cluster.server(old).kill9();
        cluster.server(old).start().expect("starts again");
    });
    let straight = cluster.node(old).await;
    assert_eq!(ask(&straight, "select count(*) from t").await, "2");
    let count = "select count(*) from t";
    let end = Instant::now() + Duration::from_secs(5);
    let mut answers = 0;
    while Instant::now() < end {
        // An answer may be waited for, as long as it is not the wrong one.
        let asked = tokio::time::timeout(Duration::from_millis(500), try_ask(&cluster, count));
        if let Ok(Some(answer)) = asked.await {
            assert_eq!(answer, "1", "read before a majority had it");
            answers += 1;
        }
    }
    println!("{answers} answers meanwhile");
    let told = waiting.await.expect("no panic");
    let told = told.expect_err("the node died");
    let code = told.code().map_or("lost", SqlState::code).to_owned();
    assert!(["08007", "lost"].contains(&code.as_str()), "{told:?}");
    for hold in holds {
        tools::run(&hold, "rollback").await;
    }
    let serves = is_back(&cluster, old).await;
    let nodes = (0..cluster.nodes()).filter(|node| serves || *node != old);
    let nodes: Vec<usize> = nodes.collect();
    let equal = cluster.compare_some(&nodes, PATIENCE).await;
    assert!(equal.is_ok(), "{equal:?}");
    // Once there it stays, and once gone it stays away.
    let first = try_ask(&cluster, count).await.expect("answered");
    for _ in 0..20 {
        assert_eq!(try_ask(&cluster, count).await, Some(first.clone()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_nodes_tells_the_truth_soon_after_a_kill_and_a_freeze() {
    for fault in [Fault::Killed, Fault::Frozen] {
        let mut run = Run::start(seed(), Duration::ZERO).await;
        let first = some_writer(&run.cluster).await;
        let nodes = run.cluster.nodes();
        // The writer comes last: it may have to stay out.
        let order = (0..nodes).filter(|node| *node != first).chain([first]);
        let mut out = None;
        for node in order.collect::<Vec<_>>() {
            run.strike(node, fault);
            down(&run.cluster, node, seen_within(fault)).await;
            if node == first {
                until_followed(&run.cluster, first).await;
            }
            run.mend(node, fault);
            if !is_back(&run.cluster, node).await {
                assert_eq!(node, first, "a follower has nothing of its own");
                out = Some(node);
            }
        }
        run.finish(out).await;
    }
}
