//! A follower becomes the writer, and whoever lags is levelled from that one's log: units keep their names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::support::cluster::TestCluster;
use crate::support::http;
use crate::tools::{Hold, PATIENCE, ask, in_the_background, run, until};
use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use synapsedb::engine::confirm::Report;
use synapsedb::ids::{Epoch, Lsn, UnitId, origin_name, slot_name};
use synapsedb::node::apply::applier::Applier;
use synapsedb::node::apply::start::ApplierSettings;
use synapsedb::node::backend::{Address, Login, Secret};
use synapsedb::node::control;
use synapsedb::node::queue::Queue;
use synapsedb::node::spill::Running;
use synapsedb::node::stream::{Sink, Stream, StreamSettings, Voice};
use synapsedb::node::token::Token;
use synapsedb::node::unit::{Change, Changes, Unit};
use tokio::sync::watch;
use tokio_postgres::Client;

/// The slot made on the follower before it is ahead of the other one.
const SLOT: &str = "levelling";
/// Fits into the writer's memory, and into a follower's no longer when it stands behind what [`LITTLE`] made.
const MUCH: &str =
    "insert into big select g, 'much', repeat('x', 300) from generate_series(1, 17000) g";
const LITTLE: &str = "insert into big select g, 'little', repeat('x', 300) from generate_series(-1150, -1) g; \
    insert into big select g, 'little', repeat('x', 300) from generate_series(-2300, -1151) g";
/// Too large for any of them.
const STREAMED: &str =
    "insert into big select g, 'streamed', repeat('x', 300) from generate_series(100001, 122000) g";

fn lsn(text: &str) -> Lsn {
    text.parse().expect("an LSN")
}

async fn end_of_log(node: &Client) -> Lsn {
    lsn(&ask(node, "select pg_current_wal_insert_lsn()").await)
}

fn secret(password: &str) -> Secret {
    Secret::Password(password.to_owned())
}

fn login(user: &str, password: &str) -> Login {
    Login {
        user: user.to_owned(),
        database: DATABASE.to_owned(),
        secret: secret(password),
        parameters: Vec::new(),
    }
}

fn address(cluster: &TestCluster, node: usize) -> Address {
    Address {
        host: "127.0.0.1".to_owned(),
        port: cluster.node_port(node),
    }
}

/// Keeps what a stream brings.
struct Kept {
    units: Vec<Arc<Unit>>,
    read: watch::Sender<Lsn>,
}

impl Sink for Kept {
    fn unit(&mut self, unit: Unit) {
        let end = unit.end;
        self.units.push(Arc::new(unit));
        self.read.send_replace(end);
    }
    fn shown(&mut self, _: Token) {}
    fn progress(&mut self, lsn: Lsn) {
        self.read.send_modify(|read| *read = (*read).max(lsn));
    }
    fn running(&mut self, _: Running) {}
}

/// All units in a node's log from the slot on, up to now.
async fn read(
    cluster: &TestCluster,
    at: usize,
    slot: &str,
    offices: Vec<(Epoch, Lsn)>,
) -> Vec<Arc<Unit>> {
    let node = cluster.node(at).await;
    let end = end_of_log(&node).await;
    // A commit behind it: what is in the log must be flushed to be read, and somebody must tell that it was.
    run(
        &node,
        "set synchronous_commit = local; select pg_logical_emit_message(true, 'behind it', '')",
    )
    .await;
    let settings = StreamSettings {
        address: address(cluster, at),
        login: login(USER, PASSWORD),
        slot: slot.to_owned(),
        offices,
        version: cluster.major(),
        spill_directory: cluster.folder().to_owned(),
        report_interval: Duration::from_millis(100),
        sender_timeout: Duration::from_secs(60),
        timeout: PATIENCE,
        spares: Arc::default(),
    };
    let (reports, mut told) = watch::channel(Report::default());
    let (sender, mut reading) = watch::channel(Lsn(0));
    let mut kept = Kept {
        units: Vec::new(),
        read: sender,
    };
    let mut stream = Stream::open(&settings, Voice::MovesSlot)
        .await
        .expect("the slot is free");
    tokio::select! {
        ended = stream.run(&mut kept, &mut told) => panic!("the stream ended: {ended:?}"),
        _ = reading.wait_for(|read| *read >= end) => {}
        () = tokio::time::sleep(PATIENCE) => panic!("the log is not read up to its end"),
    }
    drop((stream, reports));
    kept.units
}

/// What a unit did, with tables by name: their numbers differ from node to node.
fn content(unit: &Unit) -> Vec<String> {
    let text = |change: &Change| {
        let tables: Vec<_> = change
            .tables()
            .iter()
            .map(|t| format!("{}.{}", t.namespace, t.name))
            .collect();
        let rows: Vec<_> = match change {
            Change::Insert { new, .. } => vec![Some(new)],
            Change::Update { old, new, .. } => vec![old.as_ref(), Some(new)],
            Change::Delete { old, .. } => vec![Some(old)],
            Change::Truncate { .. } => Vec::new(),
        };
        let values: Vec<Vec<_>> = rows
            .into_iter()
            .flatten()
            .map(|row| {
                row.iter()
                    .map(|value| match value {
                        synapsedb::wire::pgoutput::tuple::Value::Text(text) => {
                            String::from_utf8_lossy(text).into_owned()
                        }
                        other => format!("{other:?}"),
                    })
                    .collect()
            })
            .collect();
        format!("{tables:?} {values:?}")
    };
    match &unit.changes {
        Changes::Memory(changes) => changes.iter().map(text).collect(),
        Changes::Spilled(spill) => {
            let mut reader = spill.reader();
            let changes = std::iter::from_fn(|| reader.next_change().expect("it can be read"));
            changes.map(|change| text(&change)).collect()
        }
    }
}

/// Lets this process apply on a node, as a proxy that starts would.
async fn arm(cluster: &TestCluster, at: usize, terms: &[u64]) -> Client {
    let node = cluster.node(at).await;
    run(
        &node,
        "set synchronous_commit = local; set session_replication_role = replica",
    )
    .await;
    control::arm(&node, USER, "applying", "secret", "log")
        .await
        .expect("the schema is there");
    for term in terms {
        let origin = origin_name(Epoch(*term), DATABASE);
        control::create_origin(&node, &origin)
            .await
            .expect("an origin");
    }
    node
}

/// Applies what the node lacks. Tells the names of what it took.
async fn level(
    cluster: &TestCluster,
    at: usize,
    place: UnitId,
    units: &[Arc<Unit>],
) -> Vec<UnitId> {
    let queue = Queue::new(usize::MAX);
    queue.done(place);
    for unit in units {
        queue.push(unit).expect("room");
    }
    let mut taken = Vec::new();
    let mut applier: Option<Applier> = None;
    while queue.depth().0 > 0 {
        let batch = queue.next_batch(false).await;
        let last = batch.last().map(|unit| unit.id).expect("at least one");
        if applier
            .as_ref()
            .is_none_or(|applier| applier.term() != last.term)
        {
            applier = Some(start(cluster, at, last.term).await.0);
        }
        let applier = applier.as_mut().expect("just made");
        applier.apply(&batch).await.expect("it can be applied");
        queue.done(last);
        taken.extend(batch.iter().map(|unit| unit.id));
    }
    taken
}

async fn start(cluster: &TestCluster, at: usize, term: Epoch) -> (Applier, UnitId) {
    let settings = ApplierSettings {
        address: address(cluster, at),
        login: login("synapsedb_applier", "applying"),
        term,
        superuser: USER.to_owned(),
        horizon: Arc::default(),
        runner_secret: "secret".to_owned(),
        timeout: PATIENCE,
        spares: Arc::default(),
    };
    Applier::start(&settings).await.expect("it is armed")
}

/// Commits that wait for one another's followers, so that they are merged there.
async fn together(cluster: &TestCluster, commits: &[&str]) {
    let hold = Hold::table(cluster, 1, DATABASE, "t").await;
    let writer = cluster.node(0).await;
    let mut waiting = Vec::new();
    for (at, sql) in commits.iter().enumerate() {
        waiting.push(in_the_background(cluster, sql).await);
        let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
        until("it waits for its majority", || async {
            ask(&writer, waits).await == (at + 1).to_string()
        })
        .await;
    }
    let queued = format!(
        "synapsedb_queue_units{{node=\"{}\"}} {}",
        cluster.server_ref(1).name(),
        commits.len()
    );
    until("all are decoded", || async {
        let (_, metrics) = http::get(cluster.http_port(), "/metrics").await;
        metrics.lines().any(|line| line == queued)
    })
    .await;
    hold.release().await;
    for commit in waiting {
        commit.await.expect("no panic").expect("committed");
    }
}

/// What the new writer commits by itself, the setting aside.
const OWN: [&str; 5] = [
    "set synchronous_commit = local",
    "insert into t values (200, 'mine')",
    "create table mine (a int primary key)",
    "insert into mine values (1)",
    "begin; update t set v = 'mine' where id < 5; insert into forged values (200, 'x'); commit",
];

const TABLES: &str = "create table t (id int primary key, v text);
    create table big (id int primary key, v text, filler text);
    create table keyless (a int, b text);
    create function forges(v text) returns bool language plpgsql as $$ begin
      perform pg_logical_emit_message(true, 'synapsedb unit', n || ' ' || m)
        from unnest(array['1/0/10', '1/FFFF/0', '2/0/10']) n, unnest(array['0', '0000000000000001', '']) m;
      return true; end $$;
    create table forged (id int primary key, v text check (forges(v)))";

/// What the one follower gets and the other does not. Among it each way in which a unit gets into a log.
async fn write(cluster: &TestCluster) {
    let client = cluster.client().await;
    run(&client, "insert into t values (0, 'alone')").await;
    let merged: Vec<String> = (1..=20)
        .map(|n| format!("begin; insert into t values ({n}, 'merged'); insert into keyless values ({n}, 'x'); \
            update t set v = v || '!' where id = {n}; delete from keyless where a = {n}; \
            insert into forged values ({n}, 'x'); commit"))
        .collect();
    let merged: Vec<&str> = merged.iter().map(String::as_str).collect();
    together(cluster, &merged).await;
    run(
        &client,
        "create type mood as enum ('a'); alter type mood add value 'b'",
    )
    .await;
    run(&client, "begin; alter table t add column m mood default 'b'; insert into t values (100, 'ddl'); \
        alter table t add column r float8 default random(); update t set m = 'a' where id = 100; commit").await;
    run(
        &client,
        "create materialized view seen as select id, random() r from t",
    )
    .await;
    run(
        &client,
        "begin; insert into t values (101, 'before'); refresh materialized view seen; \
        insert into t values (102, 'after'); commit",
    )
    .await;
    run(&client, STREAMED).await;
    run(
        &client,
        &format!(
            "begin; savepoint s; delete from big; rollback to s; update big set id = id + 100000; \
        alter table t add column last text; {STREAMED}; commit"
        ),
    )
    .await;
    let little: Vec<&str> = LITTLE.split(';').collect();
    let [first, second] = little.as_slice() else {
        panic!("two commits")
    };
    together(
        cluster,
        &["insert into t values (103, 'first')", first, second, MUCH],
    )
    .await;
    run(
        &client,
        "truncate keyless; insert into t values (104, repeat('toasted ', 100000))",
    )
    .await;
    run(&client, "update t set last = 'yes' where id = 104").await;
}

/// Or the test would show nothing.
fn assert_some_were_cut(units: &[Arc<Unit>]) {
    let cut = |spilled: bool| {
        let of_kind = |unit: &&Arc<Unit>| {
            !unit.closes && matches!(unit.changes, Changes::Spilled(_)) == spilled
        };
        units.iter().filter(of_kind).count()
    };
    let (merged, streamed) = (cut(false), cut(true));
    assert!(merged > 10, "{merged} units were cut out of transactions");
    assert!(
        streamed > 1,
        "{streamed} units were cut out of streamed transactions"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_25_who_lags_is_levelled_from_a_followers_log_under_the_old_names() {
    let mut cluster = TestCluster::start().await;
    run(&cluster.client().await, TABLES).await;
    cluster.assert_nodes_equal().await;
    let (b, c) = (cluster.node(1).await, cluster.node(2).await);
    for node in [&b, &c] {
        let make = format!("select pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
        run(node, &make).await;
    }
    run(
        &cluster.client().await,
        "insert into t values (-1, 'everywhere')",
    )
    .await;
    cluster.assert_nodes_equal().await;

    // Its applier ends before it can commit anything more.
    let hold = Hold::table(&cluster, 2, DATABASE, "t").await;
    write(&cluster).await;
    cluster
        .compare_some(&[0, 1], PATIENCE)
        .await
        .expect("the other one has everything");
    cluster.kill_proxy();
    let appliers = "select count(pg_terminate_backend(pid, 10000)) from pg_stat_activity where usename = 'synapsedb_applier'";
    ask(&c, appliers).await;
    hold.release().await;

    // The follower that has everything takes office, and writes.
    let office = end_of_log(&b).await;
    for own in OWN {
        run(&b, own).await;
    }
    let units = read(&cluster, 1, SLOT, vec![(Epoch(2), office)]).await;
    let writers = read(&cluster, 0, &slot_name(DATABASE), vec![(Epoch(1), Lsn(0))]).await;

    let first_term = |units: &[Arc<Unit>]| -> BTreeMap<UnitId, Vec<String>> {
        let units = units.iter().filter(|unit| unit.id.term == Epoch(1));
        units.map(|unit| (unit.id, content(unit))).collect()
    };
    let place = {
        let places = control::applied_places(&arm(&cluster, 2, &[1, 2]).await, DATABASE).await;
        places.expect("an answer").last().expect("a place")
    };
    let lacks = |units: &[Arc<Unit>]| {
        let mut all = first_term(units);
        all.retain(|unit, _| *unit > place);
        all
    };
    assert_eq!(place.term, Epoch(1));
    let (theirs, ours) = (lacks(&writers), lacks(&units));
    assert!(
        theirs.keys().eq(ours.keys()),
        "{:?} and {:?}",
        theirs.keys(),
        ours.keys()
    );
    for (unit, changes) in &theirs {
        assert!(
            ours.get(unit) == Some(changes),
            "{unit}: {:.2000} and {:.2000}",
            format!("{changes:?}"),
            format!("{:?}", ours.get(unit))
        );
    }
    let names: Vec<UnitId> = units.iter().map(|unit| unit.id).collect();
    assert!(
        names.is_sorted() && first_term(&units).len() > ours.len(),
        "what it has comes too: {names:?}"
    );
    assert_some_were_cut(&units);

    let all: Vec<UnitId> = names.iter().copied().filter(|unit| *unit > place).collect();
    assert_eq!(level(&cluster, 2, place, &units).await, all);
    let (_, at) = start(&cluster, 2, Epoch(1)).await;
    assert_eq!(Some(&at), names.last(), "the place counts over all terms");
    let last = *theirs.keys().next_back().expect("some");
    let former = arm(&cluster, 0, &[2]).await;
    let set = control::set_place(&former, DATABASE, last).await;
    set.expect("the schema is there");
    assert_eq!(start(&cluster, 0, Epoch(2)).await.1, last);
    let own = names.iter().filter(|unit| unit.term == Epoch(2)).count();
    assert_eq!(level(&cluster, 0, last, &units).await.len(), own);
    assert_eq!(own, OWN.len() - 1);
    cluster.assert_nodes_equal().await;

    // The log of one that was levelled tells the same of both writers.
    let levelled = read(&cluster, 2, SLOT, Vec::new()).await;
    let told = |units: &[Arc<Unit>]| -> Vec<_> {
        let units = units.iter().filter(|unit| unit.id > place);
        units.map(|unit| (unit.id, content(unit))).collect()
    };
    assert!(told(&levelled) == told(&units));
    for node in [&b, &c] {
        run(node, &format!("select pg_drop_replication_slot('{SLOT}')")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_a_user_forges_on_the_writer_does_nothing() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(&client, TABLES).await;
    let forge = |name: &str| {
        let number = "0000000000000001";
        format!(
            "select pg_logical_emit_message(true, 'synapsedb unit', '{name} {number}'), \
            pg_logical_emit_message(false, 'synapsedb unit', '{name} {number}')"
        )
    };
    for n in 0..5 {
        let (low, high) = (forge("1/0/10"), forge("1/FFFF/0"));
        run(
            &client,
            &format!(
                "begin; insert into t values ({n}, 'a'); {low}; update t set v = 'b'; {high}; \
            insert into forged values ({n}, 'x'); commit; {low}; {high}"
            ),
        )
        .await;
    }
    run(
        &client,
        &format!(
            "begin; {STREAMED}; {}; delete from big where id % 7 = 0; {}; commit",
            forge("1/0/10"),
            forge("9/0/1")
        ),
    )
    .await;
    run(&client, "insert into t values (100, 'after')").await;
    cluster.assert_nodes_equal().await;
    assert!(!cluster.proxy_log_text().contains("fenced"));
    assert!(
        !cluster
            .proxy_log_text()
            .contains("the writer's stream broke")
    );
}
