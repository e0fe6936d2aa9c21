//! Reads from every node: what they reach, what they never miss and never show, and what a node's death does to them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::raw::Raw;
use crate::support::cluster::{TestCluster, connect};
use crate::support::http;
use crate::tools::{PATIENCE, is_all, until, within};

/// Rows that everybody fights for.
const ROWS: usize = 4;
/// Clients that write, and clients that read.
const WRITERS: usize = 8;
const READERS: usize = 16;

/// The first column of a simple query's rows.
async fn column(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await;
    let messages = messages.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let first = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("null").to_owned()),
        _ => None,
    };
    messages.into_iter().filter_map(first).collect()
}

async fn value(client: &Client, sql: &str) -> String {
    column(client, sql).await.pop().unwrap_or_default()
}

fn code(error: &tokio_postgres::Error) -> &str {
    error.code().map_or("", |code| code.code())
}

/// A function that tells which node runs it, harmless as far as anybody knows, and all nodes at work.
async fn ready(cluster: &TestCluster) -> Client {
    let client = followers_ready(cluster).await;
    reaches(&client, "select port_here()", &everyone(cluster)).await;
    client
}

/// The same for the followers alone, by the port for reads.
async fn followers_ready(cluster: &TestCluster) -> Client {
    let client = cluster.client().await;
    client
        .batch_execute(
            "create function port_here() returns int language sql stable as 'select inet_server_port()'",
        )
        .await
        .expect("made");
    let reader = cluster.reader().await;
    until("every node answers reads", async || {
        !ports(&reader, "select port_here()", 20)
            .await
            .contains(&cluster.node_port(0))
    })
    .await;
    reaches(&reader, "select port_here()", &followers(cluster)).await;
    client
}

/// The nodes that answer a query, asked so often.
async fn ports(client: &Client, sql: &str, times: usize) -> BTreeSet<u16> {
    let mut seen = BTreeSet::new();
    for _ in 0..times {
        seen.insert(value(client, sql).await.parse().expect("a port"));
    }
    seen
}

/// Waits until the read-only port leaves the writer alone with reads of this table.
async fn until_followers_answer(cluster: &TestCluster, reader: &Client, table: &str) {
    let sql = format!("select port_here() from {table} limit 1");
    until("rows come from followers", async || {
        !ports(reader, &sql, 20)
            .await
            .contains(&cluster.node_port(0))
    })
    .await;
}

/// A query is answered by these nodes, each of them at times, and by no other.
async fn reaches(client: &Client, sql: &str, nodes: &BTreeSet<u16>) {
    let (mut seen, end) = (BTreeSet::new(), Instant::now() + PATIENCE);
    while seen != *nodes {
        seen.append(&mut ports(client, sql, 10).await);
        assert!(seen.is_subset(nodes), "{sql}: {seen:?}, not {nodes:?}");
        assert!(Instant::now() < end, "{sql}: {seen:?} of {nodes:?}");
    }
}

fn everyone(cluster: &TestCluster) -> BTreeSet<u16> {
    (0..cluster.nodes())
        .map(|node| cluster.node_port(node))
        .collect()
}

fn followers(cluster: &TestCluster) -> BTreeSet<u16> {
    (1..cluster.nodes())
        .map(|node| cluster.node_port(node))
        .collect()
}

/// A metric's value, summed over its labels.
async fn metric(cluster: &TestCluster, name: &str) -> f64 {
    let (_, text) = http::get(cluster.http_port(), "/metrics").await;
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_reach_every_node_and_the_read_only_port_leaves_the_writer_alone() {
    let cluster = TestCluster::start().await;
    let client = ready(&cluster).await;
    // What is not proven, and a transaction that may write, stay with the writer.
    let writer = BTreeSet::from([cluster.node_port(0)]);
    assert_eq!(
        ports(&client, "select inet_server_port()", 20).await,
        writer
    );
    client.batch_execute("begin").await.expect("begun");
    assert_eq!(ports(&client, "select port_here()", 20).await, writer);
    client.batch_execute("commit").await.expect("committed");
    // So does one that tells of the server's own tables.
    let catalog = "select port_here() from pg_class limit 1";
    assert_eq!(ports(&client, catalog, 20).await, writer);

    let reader = cluster.reader().await;
    let statement = reader
        .prepare("select port_here()")
        .await
        .expect("prepared");
    for _ in 0..300 {
        let row = reader.query_one(&statement, &[]).await.expect("a row");
        let port = u16::try_from(row.get::<_, i32>(0)).expect("a port");
        assert!(followers(&cluster).contains(&port));
    }
    let refused = reader.batch_execute("create table refused (a int)").await;
    assert_eq!(code(&refused.expect_err("read-only")), "25006");
    assert!(metric(&cluster, "synapsedb_reads_total").await > 500.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_at_the_writer_go_to_no_follower_but_by_the_read_only_port() {
    let builder = TestCluster::builder().config("[reads]\nnodes = \"writer\"");
    let cluster = builder.start().await;
    let client = followers_ready(&cluster).await;
    client
        .batch_execute("create table t (a int); insert into t values (1)")
        .await
        .expect("made");
    let reader = cluster.reader().await;
    // From here on every follower could answer.
    until_followers_answer(&cluster, &reader, "t").await;
    let counted = "synapsedb_reads_total{node=\"node";
    let reads = metric(&cluster, counted).await;
    let writer = BTreeSet::from([cluster.node_port(0)]);
    let here = "select port_here() from t limit 1";
    for level in ["strict", "session", "eventual"] {
        let set = format!("set synapsedb.read_consistency = {level}");
        client.batch_execute(&set).await.expect("set");
        assert_eq!(ports(&client, here, 50).await, writer, "{level}");
        let statement = client.prepare(here).await.expect("prepared");
        for _ in 0..50 {
            let row = client.query_one(&statement, &[]).await.expect("a row");
            let port = u16::try_from(row.get::<_, i32>(0)).expect("a port");
            assert!(writer.contains(&port), "{level}: {port}");
        }
        for begin in [
            "begin read only",
            "begin isolation level repeatable read, read only",
        ] {
            for _ in 0..10 {
                client.batch_execute(begin).await.expect("begun");
                assert_eq!(ports(&client, here, 3).await, writer, "{level}, {begin}");
                client.batch_execute("commit").await.expect("ended");
            }
        }
    }
    // Nobody was so much as asked.
    assert!((metric(&cluster, counted).await - reads).abs() < 0.5);
    reaches(&reader, here, &followers(&cluster)).await;
    cluster.assert_nodes_equal().await;
}

/// The hot rows, and how far each is known to be.
struct Hot {
    acknowledged: Vec<AtomicI64>,
    pairs: AtomicUsize,
    older: AtomicUsize,
    missing: AtomicUsize,
    stop: AtomicBool,
}

async fn write_hot(port: u16, number: usize, hot: Arc<Hot>) {
    let client = connect(port, USER, PASSWORD, DATABASE).await.expect("in");
    let sql = "update hot set n = n + 1 where id = $1 returning n";
    let update = client.prepare(sql).await.expect("prepared");
    let mut row = number;
    while !hot.stop.load(Ordering::Relaxed) {
        row = (row * 7 + 3) % ROWS;
        let id = i32::try_from(row).expect("small");
        let told = client.query_one(&update, &[&id]).await.expect("updated");
        hot.acknowledged[row].fetch_max(told.get(0), Ordering::SeqCst);
    }
}

/// Pairs of a follower's answer and the writer's, until there are enough.
async fn read_hot(
    ports: (u16, u16),
    number: usize,
    consistency: &str,
    wanted: usize,
    hot: Arc<Hot>,
) {
    let follower = connect(ports.0, USER, PASSWORD, DATABASE)
        .await
        .expect("in");
    let writer = connect(ports.1, USER, PASSWORD, DATABASE)
        .await
        .expect("in");
    let set = format!("set synapsedb.read_consistency = {consistency}");
    follower.batch_execute(&set).await.expect("set");
    let read = "select n from hot where id = $1";
    let read = follower.prepare(read).await.expect("prepared");
    // No function of the server's that tells of the server is run elsewhere.
    let there = "select n, pg_backend_pid() from hot where id = $1";
    let there = writer.prepare(there).await.expect("prepared");
    let mut row = number;
    while hot.pairs.fetch_add(1, Ordering::Relaxed) < wanted {
        row = (row * 5 + 1) % ROWS;
        let id = i32::try_from(row).expect("small");
        let before = hot.acknowledged[row].load(Ordering::SeqCst);
        let first: i64 = follower
            .query_one(&read, &[&id])
            .await
            .expect("read")
            .get(0);
        let second: i64 = writer.query_one(&there, &[&id]).await.expect("read").get(0);
        if first < before {
            hot.missing.fetch_add(1, Ordering::Relaxed);
        }
        if second < first {
            hot.older.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How many answers missed an acknowledged write, and how many were newer than the writer's right after them.
async fn pairs(cluster: &TestCluster, consistency: &'static str, wanted: usize) -> (usize, usize) {
    let hot = Arc::new(Hot {
        acknowledged: (0..ROWS).map(|_| AtomicI64::new(0)).collect(),
        pairs: AtomicUsize::new(0),
        older: AtomicUsize::new(0),
        missing: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
    });
    let writing: Vec<_> = (0..WRITERS)
        .map(|number| tokio::spawn(write_hot(cluster.port(), number, Arc::clone(&hot))))
        .collect();
    let ports = (cluster.read_only_port(), cluster.port());
    let reading: Vec<_> = (0..READERS)
        .map(|number| {
            tokio::spawn(read_hot(
                ports,
                number,
                consistency,
                wanted,
                Arc::clone(&hot),
            ))
        })
        .collect();
    for task in reading {
        task.await.expect("no reader failed");
    }
    hot.stop.store(true, Ordering::Relaxed);
    for task in writing {
        task.await.expect("no writer failed");
    }
    (
        hot.missing.load(Ordering::Relaxed),
        hot.older.load(Ordering::Relaxed),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_follower_says_is_neither_older_nor_newer_than_the_writers_word() {
    let cluster = TestCluster::start().await;
    let client = ready(&cluster).await;
    client
        .batch_execute(
            "create table hot (id int primary key, n bigint not null);
             insert into hot select i, 0 from generate_series(0, 3) i",
        )
        .await
        .expect("made");
    let began = Instant::now();
    let wanted = if is_all() { 1_000_000 } else { 8_000 };
    assert_eq!(pairs(&cluster, "strict", wanted).await, (0, 0));
    let took = began.elapsed();
    let read = metric(&cluster, "synapsedb_reads_total").await;
    let held = metric(&cluster, "synapsedb_read_wait_seconds_count").await;
    println!("{wanted} pairs in {took:?}; {read} reads, {held} of them held");
    assert!(held > 0.0, "nothing was ever held");
    // The same finds the fault where nobody waits.
    let mut found = (0, 0);
    for _ in 0..40 {
        let more = pairs(&cluster, "eventual", 5_000).await;
        found = (found.0 + more.0, found.1 + more.1);
        if found.0 > 0 && found.1 > 0 {
            break;
        }
    }
    println!(
        "without waiting: {} missed a write, {} were too new",
        found.0, found.1
    );
    assert!(found.0 > 0 && found.1 > 0, "{found:?}");
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_writes_is_run_again_on_the_writer_and_goes_there_from_then_on() {
    let cluster = TestCluster::start().await;
    let client = ready(&cluster).await;
    client
        .batch_execute(
            "create table lines (a int);
             create function writes() returns int language sql as 'insert into lines values (1) returning a';
             create function lies() returns int language plpgsql stable as $$ begin return writes(); end $$",
        )
        .await
        .expect("made");
    let reader = cluster.reader().await;
    until("the function is taken for a read", async || {
        // The read-only port has it refused, whoever is asked.
        let refused = reader.simple_query("select lies()").await;
        assert_eq!(code(&refused.expect_err("read-only")), "25006");
        metric(&cluster, "synapsedb_reads_total").await > 0.0
    })
    .await;
    let mut raw = Raw::login(cluster.port(), &[]).await;
    let mut lines = 0;
    for round in 0..20 {
        // Another text each time, and what was written is everywhere, so that each may meet a follower.
        until_followers_answer(&cluster, &reader, "(select count(*) from lines) c").await;
        let name = format!("x{round}");
        assert_eq!(
            value(&client, &format!("select lies() as {name}")).await,
            "1"
        );
        let parsed = format!("select lies() as y{round}");
        raw.parse("", &parsed)
            .bind("", "", &[])
            .execute("", 0)
            .sync();
        assert_eq!(raw.ask().await, "12D(1)CZ");
        let named = format!("s{round}");
        raw.parse(&named, &format!("select lies() as z{round}"));
        raw.bind("", &named, &[]).execute("", 0).sync();
        assert_eq!(raw.ask().await, "12D(1)CZ");
        raw.bind("", &named, &[]).execute("", 0).sync();
        assert_eq!(raw.ask().await, "2D(1)CZ");
        lines += 4;
    }
    let again = metric(&cluster, "synapsedb_reruns_total{why=\"wrote\"}").await;
    assert!(again > 0.0, "{again}");
    for _ in 0..20 {
        assert_eq!(value(&client, "select lies() as x0").await, "1");
        lines += 1;
    }
    let after = metric(&cluster, "synapsedb_reruns_total{why=\"wrote\"}").await;
    assert!(after <= again + 1.0, "{again} {after}");
    assert_eq!(
        value(&client, "select count(*) from lines").await,
        lines.to_string()
    );
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_the_users_own_types_come_from_the_writer() {
    let cluster = TestCluster::start().await;
    let client = ready(&cluster).await;
    client
        .batch_execute(
            "create type mood as enum ('sad', 'ok'); create table moods (id int, m mood);
             create table plain (id int, name text); insert into plain values (1, 'a'); insert into moods values (1, 'ok')",
        )
        .await
        .expect("made");
    let writer = BTreeSet::from([cluster.node_port(0)]);
    let reader = cluster.reader().await;
    until_followers_answer(&cluster, &reader, "plain").await;
    assert_eq!(
        ports(&reader, "select port_here(), m from moods", 20).await,
        writer
    );
    assert_eq!(
        ports(&reader, "select port_here(), 'ok'::mood", 20).await,
        writer
    );
    // The server's own operators and aggregates stay what they are where others are called like them.
    client
        .batch_execute(
            "create function plus(mood, mood) returns mood language sql immutable as 'select $1';
             create operator + (leftarg = mood, rightarg = mood, function = plus);
             create operator * (leftarg = mood, rightarg = mood, function = plus);
             create aggregate sum(mood) (sfunc = plus, stype = mood)",
        )
        .await
        .expect("made");
    let plain = "select *, port_here() from (select port_here(), sum(id) + count(*) from plain where id * 1 > 0) s";
    until("operators are known again", async || {
        !ports(&reader, plain, 20)
            .await
            .contains(&cluster.node_port(0))
    })
    .await;
    reaches(&reader, plain, &followers(&cluster)).await;
    for foreign in ["m + m", "sum(m)"] {
        let sql = format!("select port_here(), {foreign} from moods group by m");
        assert_eq!(ports(&reader, &sql, 20).await, writer, "{sql}");
    }
    // A row's own type shows only in what the node says of its answer.
    for _ in 0..20 {
        assert_eq!(value(&client, "select p from plain p").await, "(1,a)");
    }
    assert_eq!(value(&reader, "select p from plain p").await, "(1,a)");
    let statement = client.prepare("select p.id, p from plain p").await;
    let statement = statement.expect("prepared");
    let oid = statement.columns()[1].type_().oid().to_string();
    let known = "select reltype::text from pg_class where relname = 'plain'";
    assert_eq!(value(&client, known).await, oid);
    assert!(metric(&cluster, "synapsedb_reruns_total{why=\"type\"}").await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn consistency_is_set_shown_and_refused_in_the_servers_words() {
    let cluster = TestCluster::start().await;
    let client = ready(&cluster).await;
    assert_eq!(
        value(&client, "show synapsedb.read_consistency").await,
        "strict"
    );
    let refused = client
        .batch_execute("set synapsedb.read_consistency = 'lax'")
        .await;
    let refused = refused.expect_err("no such value");
    let error = refused.as_db_error().expect("an error of the server's");
    assert_eq!(error.code().code(), "22023");
    assert_eq!(
        error.message(),
        "invalid value for parameter \"synapsedb.read_consistency\": \"lax\""
    );
    assert_eq!(
        error.hint(),
        Some("Available values: strict, session, eventual.")
    );
    for level in ["session", "eventual", "strict"] {
        let set = format!("set synapsedb.read_consistency to {level}");
        client.batch_execute(&set).await.expect("set");
        assert_eq!(
            value(&client, "show synapsedb.read_consistency").await,
            level
        );
        reaches(&client, "select port_here()", &everyone(&cluster)).await;
    }
    client
        .batch_execute("begin; set synapsedb.read_consistency = eventual; rollback")
        .await
        .expect("undone");
    assert_eq!(
        value(&client, "show synapsedb.read_consistency").await,
        "strict"
    );
    let other = Raw::login(cluster.port(), &[("synapsedb.read_consistency", "session")]);
    let mut other = other.await;
    other.query("show synapsedb.read_consistency");
    assert_eq!(other.ask().await, "TD(session)CZ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_sees_its_own_writes_and_relaxed_commits_are_missed_by_nobody() {
    let cluster = TestCluster::start().await;
    let client = ready(&cluster).await;
    let other = cluster.client().await;
    client
        .batch_execute("create table own (n int)")
        .await
        .expect("made");
    for (set, sees_all) in [
        ("set synapsedb.read_consistency = session", false),
        (
            "set synapsedb.read_consistency = strict; set synchronous_commit = off",
            true,
        ),
        ("set synchronous_commit = local", true),
    ] {
        client.batch_execute(set).await.expect("set");
        client.batch_execute("truncate own").await.expect("emptied");
        for n in 1..=150 {
            let insert = format!("insert into own values ({n})");
            client.batch_execute(&insert).await.expect("inserted");
            let here = value(&client, "select count(*) from own").await;
            assert_eq!(here, n.to_string(), "{set}");
            if sees_all {
                let there = value(&other, "select count(*) from own").await;
                assert_eq!(there, n.to_string(), "{set}, by another");
            }
        }
    }
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_a_follower_is_no_readers_problem() {
    let mut cluster = TestCluster::start().await;
    let client = ready(&cluster).await;
    // Those in the midst of a statement, and those whose session looks at itself behind one.
    let slow = "select port_here() from pg_sleep(0.3)";
    let quick = "select port_here()";
    let stop = Arc::new(AtomicBool::new(false));
    let mut busy = Vec::new();
    let mut answered = Vec::new();
    for number in 0..12 {
        let text = if number < 6 { slow } else { quick };
        let port = [cluster.port(), cluster.read_only_port()][number % 2];
        let reader = connect(port, USER, PASSWORD, DATABASE).await.expect("in");
        let (stop, count) = (Arc::clone(&stop), Arc::<AtomicUsize>::default());
        answered.push(Arc::clone(&count));
        busy.push(tokio::spawn(async move {
            let statement = reader.prepare(text).await.expect("prepared");
            while !stop.load(Ordering::Relaxed) {
                reader
                    .query_one(&statement, &[])
                    .await
                    .expect("no error by the protocol");
                reader.simple_query(text).await.expect("no error by Query");
                count.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    // Every reader goes on.
    let more = async || {
        let now = || answered.iter().map(|count| count.load(Ordering::Relaxed));
        let before: Vec<usize> = now().collect();
        until("everybody has answers", async || {
            now().zip(&before).all(|(now, before)| now > before + 1)
        })
        .await;
    };
    more().await;
    tokio::task::block_in_place(|| cluster.server(1).kill9());
    let killed = Instant::now();
    let state = "select status from cluster_nodes where node_id = 2";
    within(
        Duration::from_secs(1),
        "the dead node is down",
        async || value(&client, state).await == "down",
    )
    .await;
    println!("down after {:?}", killed.elapsed());
    more().await;
    // Nobody writes: the frozen one is missed by readers alone.
    tokio::task::block_in_place(|| cluster.server(1).start().expect("starts"));
    until("it is back", async || {
        value(&client, state).await == "in_sync"
    })
    .await;
    tokio::task::block_in_place(|| cluster.server(2).pause());
    let frozen = Instant::now();
    let state = "select status from cluster_nodes where node_id = 3";
    within(
        Duration::from_millis(2500),
        "the frozen node is down",
        async || value(&client, state).await == "down",
    )
    .await;
    println!("down after {:?}", frozen.elapsed());
    more().await;
    tokio::task::block_in_place(|| cluster.server(2).resume());
    until("it is back", async || {
        value(&client, state).await == "in_sync"
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for task in busy {
        task.await.expect("no reader failed");
    }
    assert!(metric(&cluster, "synapsedb_reruns_total{why=\"lost\"}").await > 0.0);
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_transaction_stays_with_one_follower_until_it_needs_the_writer() {
    let cluster = TestCluster::start().await;
    let client = ready(&cluster).await;
    client
        .batch_execute("create table t (a int); insert into t values (1), (2)")
        .await
        .expect("made");
    let reader = cluster.reader().await;
    until_followers_answer(&cluster, &reader, "t").await;
    let here = "select port_here() from t limit 1";
    let writer = BTreeSet::from([cluster.node_port(0)]);
    let mut seen = BTreeSet::new();
    for (reader, begin) in [
        (&reader, "begin"),
        (&reader, "begin isolation level repeatable read"),
        (&client, "begin read only"),
        (
            &client,
            "start transaction isolation level repeatable read, read only",
        ),
    ] {
        for _ in 0..10 {
            reader.batch_execute(begin).await.expect("begun");
            let one = ports(reader, here, 5).await;
            assert_eq!(one.len(), 1, "{begin}");
            assert_eq!(value(reader, "show transaction_read_only").await, "on");
            reader.batch_execute("savepoint a").await.expect("saved");
            let failed = reader.simple_query("select 1 / 0 from t").await;
            assert_eq!(code(&failed.expect_err("no number")), "22012");
            let failed = reader.simple_query("select 1").await;
            assert_eq!(code(&failed.expect_err("aborted")), "25P02");
            reader.batch_execute("rollback to a").await.expect("undone");
            assert_eq!(ports(reader, here, 2).await, one, "{begin}");
            reader.batch_execute("commit").await.expect("committed");
            seen.extend(one);
        }
    }
    // A session goes on with one node for a while.
    let mut tried = 0;
    while seen.len() < 2 {
        reader.batch_execute("begin").await.expect("begun");
        seen.append(&mut ports(&reader, here, 1).await);
        reader.batch_execute("commit").await.expect("committed");
        tried += 1;
        assert!(tried < 10_000, "one alone was chosen: {seen:?}");
    }
    // What needs the writer takes the transaction along where that can be done without a difference.
    client
        .batch_execute("begin read only")
        .await
        .expect("begun");
    assert_eq!(value(&client, "select count(*) from t").await, "2");
    assert_eq!(ports(&client, "select inet_server_port()", 1).await, writer);
    assert_eq!(ports(&client, here, 3).await, writer);
    let refused = client.batch_execute("insert into t values (3)").await;
    assert_eq!(code(&refused.expect_err("read-only")), "25006");
    client.batch_execute("rollback").await.expect("ended");
    let begin = "begin isolation level repeatable read, read only";
    client.batch_execute(begin).await.expect("begun");
    let mut tried = 0;
    while ports(&client, here, 1).await == writer {
        client.batch_execute("commit").await.expect("committed");
        client.batch_execute(begin).await.expect("begun");
        tried += 1;
        assert!(tried < 1000, "no follower was chosen");
    }
    let refused = client.simple_query("select inet_server_port()").await;
    assert_eq!(code(&refused.expect_err("another snapshot")), "40001");
    let refused = client.simple_query("select 1").await;
    assert_eq!(code(&refused.expect_err("aborted")), "25P02");
    client.batch_execute("rollback").await.expect("ended");
    // Run again it begins at the writer.
    client.batch_execute(begin).await.expect("begun");
    assert_eq!(ports(&client, here, 1).await, writer);
    assert_eq!(ports(&client, "select inet_server_port()", 1).await, writer);
    client.batch_execute("commit").await.expect("ended");
    // READ WRITE ahead of everything is what it is on one server.
    let other = cluster.client().await;
    other
        .batch_execute(
            "begin read only; set transaction read write; insert into t values (3); commit",
        )
        .await
        .expect("it may write");
    other.batch_execute("begin read only").await.expect("begun");
    other
        .batch_execute("set transaction read write")
        .await
        .expect("nothing was read");
    other
        .batch_execute("insert into t values (4)")
        .await
        .expect("it may write");
    other.batch_execute("commit").await.expect("committed");
    other.batch_execute("begin read only").await.expect("begun");
    assert_eq!(value(&other, "select count(*) from t").await, "4");
    let late = other.batch_execute("set transaction read write").await;
    assert_eq!(code(&late.expect_err("too late")), "25001");
    other.batch_execute("rollback").await.expect("ended");
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_batches_and_settings_work_whichever_node_answers() {
    let cluster = TestCluster::start().await;
    let client = ready(&cluster).await;
    client
        .batch_execute(
            "create table t (a int primary key, b text); insert into t select i, 'x' || i from generate_series(1, 100) i;
             create schema s; create table s.t (a int, b text); insert into s.t values (1, 'other')",
        )
        .await
        .expect("made");
    let reader = cluster.reader().await;
    until_followers_answer(&cluster, &reader, "t").await;
    for port in [cluster.port(), cluster.read_only_port()] {
        let mut raw = Raw::login(port, &[("extra_float_digits", "2")]).await;
        for _ in 0..15 {
            statements_and_portals(&mut raw).await;
            errors_and_pipelines(&mut raw).await;
            settings(&mut raw, port == cluster.port()).await;
        }
    }
    cluster.assert_nodes_equal().await;
}

/// Named, unnamed, described, again under the same name after it was closed; in pieces, with Flush between.
async fn statements_and_portals(raw: &mut Raw) {
    raw.parse("s", "select b from t where a = $1")
        .describe("s")
        .sync();
    assert_eq!(raw.ask().await, "1tTZ");
    raw.bind("", "s", &["7"]).execute("", 0).sync();
    assert_eq!(raw.ask().await, "2D(x7)CZ");
    raw.close("s").sync();
    assert_eq!(raw.ask().await, "3Z");
    raw.parse("", "select a from t where b = $1")
        .bind("", "", &["x9"]);
    raw.describe_portal("").execute("", 0).sync();
    assert_eq!(raw.ask().await, "12TD(9)CZ");
    raw.bind("", "", &["x8"]).execute("", 0).sync();
    assert_eq!(raw.ask().await, "2D(8)CZ");
    raw.parse("", "select a from t order by a")
        .bind("c", "", &[]);
    raw.execute("c", 2).flush().go().await;
    assert_eq!(raw.hear_until(b"s").await, "12D(1)D(2)s");
    raw.execute("c", 1).flush().go().await;
    assert_eq!(raw.hear_until(b"s").await, "D(3)s");
    raw.close_portal("c").sync();
    assert_eq!(raw.ask().await, "3Z");
}

/// Several in one Query, errors with their places and what follows them, batches one behind the other.
async fn errors_and_pipelines(raw: &mut Raw) {
    raw.query("select 1; select b from t where a = 3");
    assert_eq!(raw.ask().await, "TD(1)CTD(x3)CZ");
    raw.query("select b from t where a = 1 and nothing = 2");
    raw.says("E(ERROR 42703 column \"nothing\" does not exist 33)Z(I)")
        .await;
    raw.query("select 1; select 1 / (a - 1) from t; select 2");
    assert_eq!(raw.ask().await, "TD(1)CTE(22012)Z");
    raw.parse("", "select 1 / a from t where a = 0 or a = 1")
        .bind("", "", &[])
        .execute("", 0);
    raw.parse("", "select 1 / (a - a) from t")
        .bind("", "", &[])
        .execute("", 0);
    raw.parse("", "select 3")
        .bind("", "", &[])
        .execute("", 0)
        .sync();
    assert_eq!(raw.ask().await, "12D(1)C12E(22012)Z");
    raw.parse("", "select 5")
        .bind("", "", &[])
        .execute("", 0)
        .sync();
    raw.query("select 6");
    raw.parse("", "select 7")
        .bind("", "", &[])
        .execute("", 0)
        .sync();
    raw.go().await;
    assert_eq!(raw.hear().await, "12D(5)CZ");
    assert_eq!(raw.hear().await, "TD(6)CZ");
    assert_eq!(raw.hear().await, "12D(7)CZ");
}

/// They follow; and where something may be written, reads and writes of one batch are of one transaction.
async fn settings(raw: &mut Raw, writes: bool) {
    for (sql, heard) in [
        ("set search_path = s", "CZ"),
        ("select b from t", "TD(other)CZ"),
        ("show extra_float_digits", "TD(2)CZ"),
        ("reset search_path", "CZ"),
        (
            "copy (select a from t where a < 3 order by a) to stdout",
            "HddcCZ",
        ),
        (
            "show default_transaction_read_only",
            if writes { "TD(off)CZ" } else { "TD(on)CZ" },
        ),
    ] {
        raw.query(sql);
        assert_eq!(raw.ask().await, heard, "{sql}");
    }
    if writes {
        raw.parse("", "select count(*) from t")
            .bind("", "", &[])
            .execute("", 0);
        raw.parse("", "insert into t values (1000, 'new')")
            .bind("", "", &[])
            .execute("", 0);
        raw.parse("", "select count(*) from t")
            .bind("", "", &[])
            .execute("", 0)
            .sync();
        assert_eq!(raw.ask().await, "12D(100)C12C12D(101)CZ");
        raw.query("delete from t where a = 1000");
        assert_eq!(raw.ask().await, "CZ");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_read_on_a_follower_does_not_hold_up_ddl() {
    let cluster = TestCluster::start().await;
    let client = ready(&cluster).await;
    client
        .batch_execute("create table t (a int); insert into t values (1)")
        .await
        .expect("made");
    let reader = cluster.reader().await;
    until_followers_answer(&cluster, &reader, "t").await;
    // Enough of them for both followers.
    let mut long = Vec::new();
    for _ in 0..6 {
        let reader = cluster.reader().await;
        long.push(tokio::spawn(async move {
            value(&reader, "select count(*) from t, pg_sleep(8)").await
        }));
    }
    let idle = cluster.reader().await;
    idle.batch_execute("begin").await.expect("begun");
    assert_eq!(value(&idle, "select count(*) from t").await, "1");
    let nodes = [cluster.node(1).await, cluster.node(2).await];
    let busy = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    until("the reads run on followers", async || {
        let (one, two) = (value(&nodes[0], busy).await, value(&nodes[1], busy).await);
        let number = |text: String| text.parse::<usize>().expect("a number");
        number(one) + number(two) == long.len()
    })
    .await;
    let began = Instant::now();
    client
        .batch_execute("alter table t add column b int")
        .await
        .expect("altered");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    for read in long {
        assert_eq!(read.await.expect("no error"), "1");
    }
    let lost = idle.simple_query("select count(*) from t").await;
    assert_eq!(code(&lost.expect_err("it was in the way")), "40001");
    idle.batch_execute("rollback").await.expect("ended");
    assert_eq!(value(&idle, "select count(*) from t").await, "1");
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_describes_and_asks_by_either_port() {
    let cluster = TestCluster::start().await;
    let client = ready(&cluster).await;
    client
        .batch_execute(
            "create type mood as enum ('sad', 'ok');
             create table t (a int primary key, m mood default 'ok', n numeric[]); insert into t values (1)",
        )
        .await
        .expect("made");
    for port in [cluster.port(), cluster.read_only_port()] {
        for _ in 0..5 {
            let output = tokio::process::Command::new(cluster.program("psql"))
                .args([
                    "-h",
                    "127.0.0.1",
                    "-p",
                    &port.to_string(),
                    "-U",
                    USER,
                    "-d",
                    DATABASE,
                ])
                .args(["-v", "ON_ERROR_STOP=1", "-c", "\\d t", "-c", "\\dT mood"])
                .args([
                    "-c",
                    "select a, n from t",
                    "-c",
                    "select m from t",
                    "-c",
                    "\\copy (table t) to stdout",
                ])
                .env("PGPASSWORD", PASSWORD)
                .env("PSQLRC", "/dev/null")
                .output()
                .await
                .expect("it runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{output:?}");
            assert!(
                text.contains("'ok'::mood") && text.contains("t_pkey"),
                "{text}"
            );
            assert!(
                text.contains("public | mood") && text.ends_with("1\tok\t\\N\n"),
                "{text}"
            );
        }
    }
}

/// A read that takes its time, by a session of its own, and the port of the node that answers it.
async fn slow_read(cluster: &TestCluster) -> JoinHandle<u16> {
    let reader = cluster.reader().await;
    tokio::spawn(async move {
        let port = value(&reader, "select port_here() from pg_sleep(6)").await;
        port.parse().expect("a port")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_works_where_is_shown() {
    let cluster = TestCluster::start().await;
    let client = ready(&cluster).await;
    let mut busy = Vec::new();
    for _ in 0..5 {
        busy.push(slow_read(&cluster).await);
    }
    let count = "select sum(in_flight) from cluster_nodes where not is_writer";
    until("all five are at work", async || {
        value(&client, count).await == "5"
    })
    .await;
    let quick = "select bool_and(latency_ms < 1000) from cluster_nodes";
    assert_eq!(value(&client, quick).await, "t");
    // Busy ones are passed by: nobody has it all, however much quicker it is.
    let least = "select min(in_flight) > 0 from cluster_nodes where not is_writer";
    let end = Instant::now() + PATIENCE;
    while value(&client, least).await != "t" {
        assert!(Instant::now() < end, "one alone was chosen");
        busy.push(slow_read(&cluster).await);
    }
    for read in busy {
        let port = read.await.expect("no error");
        assert!(followers(&cluster).contains(&port));
    }
    assert_eq!(value(&client, count).await, "0");
}
