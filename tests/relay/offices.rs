//! A change of writer, as sessions meet it: two servers that know nothing of each other, and a steward who is told what
//! to say. Everybody has his one outcome: the truth where it is known, 08007 where it is not, and nothing at all where
//! nothing was under way.

use std::time::{Duration, Instant};

use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use synapsedb::cluster::office::{Office, State};
use synapsedb::ids::{Epoch, NodeId};
use tokio_postgres::Client;

use crate::house::{House, rows, value};
use crate::raw::Raw;

/// Much less than any wait in vain, and enough for a slow machine.
const SOON: Duration = Duration::from_secs(4);

/// The house with its steward.
struct Change {
    house: House,
    term: u64,
}

impl Change {
    async fn open(pool: &str) -> Self {
        let house = House::open_nodes(3, pool, |_| {}).await;
        for node in 0..2 {
            let client = house.cluster.node(node).await;
            let made = client
                .batch_execute(
                    "create table t (a int); create table counted (id int primary key, n int);
                     insert into counted select i, 0 from generate_series(1, 40) i;
                     create sequence s;",
                )
                .await;
            made.expect("made");
        }
        Self { house, term: 1 }
    }

    fn say(&self, writer: usize, state: State) {
        let (writer, term) = (NodeId(writer), Epoch(self.term));
        self.house.shared.office().send_replace(Office {
            writer,
            term,
            state,
        });
    }

    /// Another takes office.
    fn next(&mut self, writer: usize) {
        self.term += 1;
        self.say(writer, State::Open);
    }

    /// A planned change, as the steward makes it.
    async fn promote(&mut self, from: usize, to: usize) {
        self.say(from, State::Closing);
        let until = Instant::now() + SOON;
        while self.house.shared.under_way() > 0 {
            assert!(Instant::now() < until, "it is not drained");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.next(to);
    }

    /// Which node answers.
    async fn answers(&self, raw: &mut Raw, node: usize) {
        let port = self.house.cluster.node_port(node);
        let length = port.to_string().len();
        assert_eq!(length, 5, "a usual port");
        let query = raw.query("select setting from pg_settings where name = 'port'");
        assert_eq!(query.ask().await, format!("TD({port})CZ"));
    }
}

/// Until the server at the other end shows so many of these.
async fn until(node: &Client, sql: &str, count: usize) {
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        let found = rows(node, sql).await;
        if found.len() == count {
            return;
        }
        assert!(Instant::now() < limit, "{sql}: {found:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What a session is at when the writer goes, and what it hears of that; empty: nothing.
struct Scene {
    what: &'static str,
    raw: Raw,
    heard: &'static str,
    /// Then it asks, and hears; in turn.
    then: Vec<(&'static str, &'static str)>,
}

const LOST: &str = "E(ERROR 40001 the connection to the writer was lost inside the transaction )";
const LOST_INSIDE: &str =
    "E(ERROR 40001 the connection to the writer was lost inside the transaction )Z(E)";
const LOST_AT_ITS_END: &str =
    "E(ERROR 40001 the connection to the writer was lost inside the transaction )Z(I)";
const UNKNOWN: &str = "E(ERROR 08007 it is not known whether the transaction was committed )Z(I)";
const BOTH_UNKNOWN: &str = "\
    E(ERROR 08007 it is not known whether the transaction was committed )Z(E)\
    E(ERROR 08007 it is not known whether the transaction was committed )Z(I)";
const FAILED: &str = "E(ERROR 25P02 current transaction is aborted, commands ignored until end of transaction block )Z(E)";
const ONE: (&str, &str) = ("select 1", "T()D(1)C(SELECT 1)Z(I)");

/// A table that somebody has locked.
const READ: &str = "select count(*) from t";
const WRITE: &str = "insert into t values (1)";

/// So many statements wait for the lock.
const BLOCKED: usize = 9;

#[allow(clippy::too_many_lines, reason = "one scene after the other")]
async fn scenes(house: &House, node: &Client) -> Vec<Scene> {
    let mut all = Vec::new();
    let mut add = |what, raw, heard: &'static str, then: Vec<_>| {
        all.push(Scene {
            what,
            raw,
            heard,
            then,
        });
    };
    let transaction = async |sql: &str| {
        let mut raw = house.raw().await;
        assert_eq!(raw.query("begin").ask().await, "CZ");
        assert!(raw.query(sql).ask().await.ends_with("CZ"), "{sql}");
        raw
    };
    let counted = "update counted set n = n + 1 where id = 39";
    let mut raw = house.raw().await;
    raw.parse("mine", "select 2").sync().says("1()Z(I)").await;
    raw.query("set application_name = 'kept'")
        .says("C(SET)Z(I)")
        .await;
    let named = ("show application_name", "T()D(kept)C(SHOW)Z(I)");
    add("idle", raw, "", vec![named, ONE]);

    // Transactions.
    let raw = transaction("insert into counted values (100, 1)").await;
    let goes_on = vec![
        ("select 1", LOST_INSIDE),
        ("select 1", FAILED),
        ("commit", "C(ROLLBACK)Z(I)"),
        ONE,
    ];
    add("idle in a transaction", raw, "", goes_on);
    let raw = transaction("insert into counted values (101, 1)").await;
    add(
        "idle, then commit",
        raw,
        "",
        vec![("commit", LOST_AT_ITS_END), ONE],
    );
    let raw = transaction("insert into counted values (102, 1)").await;
    add(
        "idle, then rollback",
        raw,
        "",
        vec![("rollback", "C(ROLLBACK)Z(I)"), ONE],
    );
    let mut raw = transaction("select 1").await;
    assert_eq!(raw.query("select 1/0").ask().await, "E(22012)Z");
    add(
        "failed already",
        raw,
        "",
        vec![("select 1", FAILED), ("rollback", "C(ROLLBACK)Z(I)"), ONE],
    );
    let mut raw = transaction("insert into counted values (103, 1)").await;
    raw.query(WRITE).go().await;
    add(
        "a statement of a transaction",
        raw,
        LOST_INSIDE,
        vec![("rollback", "C(ROLLBACK)Z(I)"), ONE],
    );
    let mut raw = transaction("insert into counted values (104, 1)").await;
    raw.parse("", WRITE)
        .bind("", "", &[])
        .execute("", 0)
        .sync()
        .go()
        .await;
    add(
        "a batch of a transaction",
        raw,
        LOST_INSIDE,
        vec![("rollback", "C(ROLLBACK)Z(I)"), ONE],
    );
    let mut raw = transaction("insert into counted values (105, 1)").await;
    raw.query("copy t from stdin").go().await;
    add(
        "copy",
        raw,
        LOST_INSIDE,
        vec![("rollback", "C(ROLLBACK)Z(I)"), ONE],
    );
    let mut raw = house.raw().await;
    raw.query("begin").says("C(BEGIN)Z(T)").await;
    raw.query(counted).says("C(UPDATE 1)Z(T)").await;
    raw.query("select count(*) from t")
        .query("commit")
        .go()
        .await;
    add(
        "a commit behind what is not answered",
        raw,
        BOTH_UNKNOWN,
        vec![ONE],
    );

    // Alone.
    let mut raw = house.raw().await;
    raw.query(WRITE).go().await;
    add("a write", raw, UNKNOWN, vec![ONE]);
    let mut raw = house.raw().await;
    raw.parse("", WRITE)
        .bind("", "", &[])
        .execute("", 0)
        .sync()
        .go()
        .await;
    add("a batch that writes", raw, UNKNOWN, vec![ONE]);
    let mut raw = house.raw().await;
    raw.parse("", WRITE)
        .bind("", "", &[])
        .execute("", 0)
        .flush()
        .go()
        .await;
    add("a batch without its end", raw, "", vec![]);
    let mut raw = house.raw().await;
    raw.query(READ).go().await;
    add("a read", raw, "T()D(0)C(SELECT 1)Z(I)", vec![ONE]);
    let mut raw = house.raw().await;
    raw.parse("r", READ)
        .bind("", "r", &[])
        .describe_portal("")
        .execute("", 0)
        .sync()
        .go()
        .await;
    add(
        "a batch that reads",
        raw,
        "1()2()T()D(0)C(SELECT 1)Z(I)",
        vec![ONE],
    );

    // What lives on one node.
    for (what, sql) in [
        ("a temporary table", "create temp table held (a int)"),
        ("a cursor", "declare c cursor with hold for select 1"),
        ("a lock", "select pg_advisory_lock(7)"),
        ("a channel", "listen somewhere"),
        ("a current value", "select nextval('s'), lastval()"),
    ] {
        let mut raw = house.raw().await;
        assert!(raw.query(sql).ask().await.ends_with("CZ"), "{sql}");
        add(what, raw, "E(57P01).", vec![]);
    }
    let waits = "select from pg_stat_activity where wait_event_type = 'Lock'";
    until(node, waits, BLOCKED).await;
    all
}

/// What a scene hears without asking.
async fn hears(scene: &mut Scene) {
    let what = scene.what;
    match scene.heard {
        "" => {}
        "E(57P01)." => assert_eq!(scene.raw.hear().await, "E(57P01).", "{what}"),
        heard => {
            let mut told = String::new();
            // Of what was refused in turn each has its state.
            for _ in 0..heard.matches("Z(").count() {
                told.push_str(&scene.raw.hear_all_until(b"Z").await);
            }
            assert_eq!(told, heard, "{what}");
        }
    }
}

async fn asks(scene: &mut Scene) {
    let what = scene.what;
    if what == "a batch without its end" {
        assert_eq!(
            scene.raw.hear_all_until(b"E").await.replace("1()2()", ""),
            LOST
        );
        scene.raw.sync().says("Z(I)").await;
    }
    for (sql, heard) in std::mem::take(&mut scene.then) {
        scene.raw.query(sql).go().await;
        assert_eq!(scene.raw.hear_all_until(b"Z").await, heard, "{what}: {sql}");
    }
    if what == "idle" {
        let raw = &mut scene.raw;
        let batch = raw.bind("", "mine", &[]).execute("", 0).sync();
        assert_eq!(batch.ask().await, "2D(2)CZ");
    }
}

/// Everybody has locked out everybody else.
async fn lock(change: &Change) -> Client {
    let holder = change.house.cluster.node(0).await;
    let lock = "begin; lock table t in access exclusive mode";
    holder.batch_execute(lock).await.expect("locked");
    holder
}

fn is_about_a_read(scene: &Scene) -> bool {
    matches!(scene.what, "a read" | "a batch that reads")
}

/// All states at once, and the writer is killed; they are told before the steward knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_writer_leaves_each_session_with_its_one_outcome() {
    let mut change = Change::open("max_connections = 40").await;
    let node = change.house.cluster.node(0).await;
    let _holder = lock(&change).await;
    let mut scenes = scenes(&change.house, &node).await;
    tokio::task::block_in_place(|| change.house.cluster.server(0).kill9());
    let since = Instant::now();
    for scene in scenes.iter_mut().filter(|scene| !is_about_a_read(scene)) {
        hears(scene).await;
    }
    assert!(since.elapsed() < SOON);
    change.say(0, State::Vacant);
    change.next(1);
    for scene in scenes.iter_mut().filter(|scene| is_about_a_read(scene)) {
        hears(scene).await;
    }
    for scene in &mut scenes {
        asks(scene).await;
    }
    let mut raw = change.house.raw().await;
    change.answers(&mut raw, 1).await;
}

/// The same with a writer that says nothing any more: all are woken by the steward's word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_writer_holds_nobody_once_its_office_is_vacant() {
    let mut change = Change::open("max_connections = 40").await;
    let node = change.house.cluster.node(0).await;
    let _holder = lock(&change).await;
    let mut scenes = scenes(&change.house, &node).await;
    tokio::task::block_in_place(|| change.house.cluster.server(0).pause());
    change.say(0, State::Vacant);
    let since = Instant::now();
    for scene in scenes.iter_mut().filter(|scene| !is_about_a_read(scene)) {
        hears(scene).await;
    }
    assert!(since.elapsed() < SOON);
    change.next(1);
    for scene in &mut scenes {
        if is_about_a_read(scene) {
            hears(scene).await;
        }
        asks(scene).await;
    }
    // What was taken for lost comes back as a stranger.
    tokio::task::block_in_place(|| change.house.cluster.server(0).resume());
    let mut raw = change.house.raw().await;
    change.answers(&mut raw, 1).await;
    change.say(1, State::Vacant);
    change.next(0);
    change.answers(&mut raw, 0).await;
}

/// A COMMIT that waits for its majority, and one that was answered a moment before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_in_flight_is_unknown_and_one_that_was_answered_is_not() {
    let mut change = Change::open("max_connections = 10").await;
    let node = change.house.cluster.node(0).await;
    let alone =
        "set synchronous_commit = local; alter system set synchronous_standby_names = 'nobody'";
    for sql in alone.split("; ").chain(["select pg_reload_conf()"]) {
        node.batch_execute(sql).await.expect("set");
    }
    let mut show = change.house.raw().await;
    while show.query("show synchronous_standby_names").ask().await != "TD(nobody)CZ" {}
    let mut commit = change.house.raw().await;
    assert_eq!(commit.query("begin").ask().await, "CZ");
    assert_eq!(commit.query(WRITE).ask().await, "CZ");
    commit.query("commit").go().await;
    let mut write = change.house.raw().await;
    write.query(WRITE).go().await;
    until(
        &node,
        "select from pg_stat_activity where wait_event = 'SyncRep'",
        2,
    )
    .await;
    change.say(0, State::Vacant);
    for raw in [&mut commit, &mut write] {
        raw.says(UNKNOWN).await;
    }
    change.next(1);
    commit.query(WRITE).says("C(INSERT 0 1)Z(I)").await;
    change.answers(&mut write, 1).await;
}

/// While the writer closes, what is open goes on, and what would begin waits; logins too, and not for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_begin_waits_for_the_next_term() {
    let mut change = Change::open("max_connections = 10\nqueue_timeout_ms = 1500").await;
    let mut open = change.house.raw().await;
    assert_eq!(open.query("begin").ask().await, "CZ");
    assert_eq!(open.query(WRITE).ask().await, "CZ");
    let mut new = change.house.raw().await;
    let mut begun = change.house.raw().await;
    change.say(0, State::Closing);
    new.query(WRITE).go().await;
    begun.query("begin").says("C(BEGIN)Z(T)").await;
    begun.query(WRITE).go().await;
    let port = change.house.port;
    let login = tokio::spawn(async move { Raw::login(port, &[]).await });
    assert_eq!(change.house.shared.under_way(), 1, "the open transaction");
    change.answers(&mut open, 0).await;
    open.query("commit").says("C(COMMIT)Z(I)").await;
    change.promote(0, 1).await;
    new.says("C(INSERT 0 1)Z(I)").await;
    begun.says("C(INSERT 0 1)Z(T)").await;
    begun.query("commit").says("C(COMMIT)Z(I)").await;
    let mut late = login.await.expect("let in");
    for raw in [&mut open, &mut new, &mut late] {
        change.answers(raw, 1).await;
    }
    let first = change.house.cluster.node(0).await;
    assert_eq!(value(&first, "select count(*) from t").await, "1");
    // Nobody follows.
    change.say(1, State::Vacant);
    let none = "E(ERROR 57P03 the cluster has no writer )";
    new.query("select 1").says(&format!("{none}Z(I)")).await;
    let refused = crate::support::cluster::connect(port, USER, PASSWORD, DATABASE).await;
    assert_eq!(crate::house::code(refused), "57P03");
    // What would have begun a transaction fails all of it.
    begun.query("begin; select 1").query("commit");
    begun.says(&format!("{none}Z(E)")).await;
    begun.says("C(ROLLBACK)Z(I)").await;
    change.next(0);
    change.answers(&mut new, 0).await;
}

/// A session that keeps something on the writer holds nobody up, and is told when that is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_holds_something_does_not_hold_a_change_up() {
    let mut change = Change::open("max_connections = 10").await;
    let mut holder = change.house.raw().await;
    holder
        .query("create temp table held (a int)")
        .says("C(CREATE TABLE)Z(I)")
        .await;
    holder
        .query("insert into held values (1)")
        .says("C(INSERT 0 1)Z(I)")
        .await;
    let until = Instant::now() + SOON;
    while change.house.shared.under_way() > 0 {
        assert!(Instant::now() < until);
        tokio::task::yield_now().await;
    }
    // A change that comes to nothing.
    change.say(0, State::Closing);
    holder.query("select a from held").go().await;
    assert_eq!(change.house.shared.under_way(), 0);
    change.say(0, State::Open);
    assert_eq!(holder.hear().await, "TD(1)CZ");
    change.promote(0, 1).await;
    assert_eq!(holder.hear().await, "E(57P01).");
}

/// Reads go on and writes are refused at once, by both protocols, inside transactions and out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_reads_go_on_and_writes_are_refused() {
    let change = Change::open("max_connections = 10").await;
    let mut written = change.house.raw().await;
    written.query("begin").says("C(BEGIN)Z(T)").await;
    written.query(WRITE).says("C(INSERT 0 1)Z(T)").await;
    let mut raw = change.house.raw().await;
    raw.parse("w", WRITE).sync().says("1()Z(I)").await;
    let (in_sync, nodes) = (1, 3);
    change.say(0, State::ReadOnly { in_sync, nodes });
    let lost = "E(ERROR 25006 write quorum lost: 1 of 3 nodes in sync )";
    assert_eq!(raw.query("select 1").ask().await, "TD(1)CZ");
    assert_eq!(raw.query(READ).ask().await, "TD(0)CZ");
    for write in [
        WRITE,
        "create table u (a int)",
        "select nextval('s')",
        "do $$ begin end $$",
        "begin; insert into t values (2); commit",
    ] {
        raw.query(write).says(&format!("{lost}Z(I)")).await;
    }
    raw.bind("", "w", &[])
        .execute("", 0)
        .sync()
        .says(&format!("{lost}Z(I)"))
        .await;
    raw.parse("", WRITE)
        .bind("", "", &[])
        .execute("", 0)
        .sync()
        .says(&format!("{lost}Z(I)"))
        .await;
    // A function call.
    raw.bytes(crate::deferred::NOW)
        .says(&format!("{lost}Z(I)"))
        .await;
    raw.query("begin").says("C(BEGIN)Z(T)").await;
    assert_eq!(raw.query(READ).ask().await, "TD(0)CZ");
    raw.query(WRITE).says(&format!("{lost}Z(E)")).await;
    raw.query("select 1").says(FAILED).await;
    raw.query("rollback").says("C(ROLLBACK)Z(I)").await;
    raw.query("begin").says("C(BEGIN)Z(T)").await;
    raw.query(WRITE).says(&format!("{lost}Z(E)")).await;
    raw.query("commit").says("C(ROLLBACK)Z(I)").await;
    // What was written before is committed when it may be.
    written.query("commit").says("C(COMMIT)Z(I)").await;
    change.say(0, State::Open);
    raw.query(WRITE).says("C(INSERT 0 1)Z(I)").await;
    raw.bind("", "w", &[])
        .execute("", 0)
        .sync()
        .says("2()C(INSERT 0 1)Z(I)")
        .await;
    assert_eq!(raw.query(READ).ask().await, "TD(3)CZ");
}

/// Planned changes, back and forth under load: no client hears of any, and everything is done once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_planned_changes_are_noticed_by_nobody() {
    let mut change = Change::open("max_connections = 6").await;
    let folder = change.house.cluster.folder().to_owned();
    let update = "\\set id random(1, 40)\nupdate counted set n = n + 1 where id = :id;\n";
    let block = format!(
        "\\set id random(1, 40)\nbegin;\nselect n from counted where id = :id;\n{update}end;\nselect count(*) from counted;\n"
    );
    let scripts = [("alone.sql", update), ("block.sql", &block)].map(|(name, text)| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("our own folder");
        path.to_str().expect("plain").to_owned()
    });
    let house = &change.house;
    let port = house.port.to_string();
    let mut running = Vec::new();
    for (protocol, clients) in [("simple", "3"), ("extended", "2"), ("prepared", "3")] {
        // A thread each: pgbench prepares with its whole thread, so a session that waits for the next term to prepare
        // something would hold the others of its thread in the middle of their transactions.
        let child = tokio::process::Command::new(house.cluster.program("pgbench"))
            .args([
                "-n", "-T", "8", "-c", clients, "-j", clients, "-M", protocol,
            ])
            .args(["-f", &scripts[0], "-f", &scripts[1]])
            .envs([("PGHOST", "127.0.0.1"), ("PGPORT", &port), ("PGUSER", USER)])
            .envs([("PGPASSWORD", PASSWORD), ("PGDATABASE", DATABASE)])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        running.push(child.expect("it runs"));
    }
    for turn in 0..20 {
        // As long as it takes for much to be under way: a change into silence shows nothing.
        let writer = change.house.cluster.node(turn % 2).await;
        let before: i64 = sum(&writer).await;
        let until = Instant::now() + Duration::from_secs(20);
        while sum(&writer).await < before + 20 {
            assert!(Instant::now() < until, "turn {turn}: nothing goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        change.promote(turn % 2, (turn + 1) % 2).await;
    }
    let mut done = 0;
    for child in running {
        let output = child.wait_with_output().await.expect("it ends");
        let (told, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(
            output.status.success() && told.contains("number of failed transactions: 0"),
            "{told}{errors}"
        );
        let number = told.split("actually processed: ").nth(1);
        let number = number.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        done += number
            .and_then(|number| number.parse::<i64>().ok())
            .expect("a number");
    }
    let (a, b) = (
        change.house.cluster.node(0).await,
        change.house.cluster.node(1).await,
    );
    assert_eq!(sum(&a).await + sum(&b).await, done);
}

async fn sum(node: &Client) -> i64 {
    let sum = value(node, "select sum(n) from counted").await;
    sum.parse().expect("a number")
}
