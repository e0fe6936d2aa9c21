//! A BEGIN that is answered before the node hears of it: what clients see is what one server shows them.

use std::time::{Duration, Instant};

use synapsedb::cli::demo::server::USER;

use crate::house::{House, code, rows, value};
use crate::raw::Raw;
use crate::tap::{Tap, contains, tapped};

/// What a client sends in one go, and the frame up to which it listens then.
type Turn = (&'static [u8], fn(&mut Raw) -> &mut Raw);
const READY: &[u8] = b"Z";

macro_rules! script {
    ($($until:expr => $turn:expr),+ $(,)?) => { vec![$(($until, $turn as fn(&mut Raw) -> &mut Raw)),+] };
}

/// `now()` as text, by its number.
pub const NOW: &[u8] = b"F\0\0\0\x0e\0\0\x05\x13\0\0\0\0\0\0";

/// Says nothing more.
fn listen(raw: &mut Raw) -> &mut Raw {
    raw
}

/// What drivers, tools and odd clients send around a BEGIN of their own.
#[rustfmt::skip]
fn scripts() -> Vec<Vec<Turn>> {
    vec![
        // Queries, modes, ends.
        script![READY => |c| c.query("begin"), READY => |c| c.query("insert into t values (1)"), READY => |c| c.query("commit")],
        script![READY => |c| c.query("START TRANSACTION"), READY => |c| c.query("insert into t values (2)"), READY => |c| c.query("ABORT"),
            READY => |c| c.query("select count(*) from t")],
        script![READY => |c| c.query(" BeGin Work ISOLATION LEVEL serializable, read only deferrable ;; -- x"),
            READY => |c| c.query("show transaction_isolation; show transaction_read_only; show transaction_deferrable"),
            READY => |c| c.query("insert into t values (3)"), READY => |c| c.query("select 1"), READY => |c| c.query("end")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("set transaction isolation level repeatable read"),
            READY => |c| c.query("show transaction_isolation"), READY => |c| c.query("commit and chain"),
            READY => |c| c.query("show transaction_isolation"), READY => |c| c.query("rollback")],
        script![READY => |c| c.query("begin read only"), READY => |c| c.query("rollback and chain"),
            READY => |c| c.query("show transaction_read_only"), READY => |c| c.query("rollback")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("begin"), READY => |c| c.query("commit"), READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("commit; select 5"), READY => |c| c.query("select 6")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("select 1; select 2; commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("COMMIT"), READY => |c| c.query("start transaction read only"),
            READY => |c| c.query("rollback work"), READY => |c| c.query("begin"), READY => |c| c.query("end;"), READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("")],
        script![READY => |c| c.query("begin /* grün */"), READY => |c| c.query("select 1"), READY => |c| c.query("commit /* grün */")],
        script![READY => |c| c.bytes(b"Q\0\0\0\x0cbegin\0x\0"), READY => |c| c.query("select 1"), READY => |c| c.query("rollback")],
        script![READY => |c| c.query("begin"), READY => |c| c.bytes(b"Q\0\0\0\x0cend\0end\0"), READY => |c| c.query("rollback")],
        // Savepoints, errors and where they are, what no transaction may hold.
        script![READY => |c| c.query("begin"), READY => |c| c.query("savepoint a"), READY => |c| c.query("select 1, nothing from t"),
            READY => |c| c.query("select 1"), READY => |c| c.query("rollback to a"), READY => |c| c.query("insert into t values (4)"),
            READY => |c| c.query("release a"), READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("select 'grün', nothing from t"), READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("frobnicate"), READY => |c| c.query("rollback")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("rollback to nothing"), READY => |c| c.query("end")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("discard all"), READY => |c| c.query("rollback")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("vacuum t"), READY => |c| c.query("rollback")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("set local work_mem = '5MB'"), READY => |c| c.query("show work_mem"),
            READY => |c| c.query("commit"), READY => |c| c.query("show work_mem")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("declare c cursor for select generate_series(1, 9)"),
            READY => |c| c.query("fetch 2 from c"), READY => |c| c.query("commit"), READY => |c| c.query("fetch 2 from c")],
        // The extended protocol.
        script![READY => |c| c.query("begin"),
            READY => |c| c.parse("", "insert into t values ($1)").bind("", "", &["5"]).describe_portal("").execute("", 0).sync(),
            READY => |c| c.parse("", "commit").bind("", "", &[]).execute("", 0).sync()],
        script![READY => |c| c.query("begin"), b"T" => |c| c.parse("", "select generate_series(1, 9)").bind("p", "", &[]).describe_portal("p").flush(),
            b"s" => |c| c.execute("p", 2).flush(), READY => |c| c.execute("p", 2).sync(), READY => |c| c.execute("p", 3).sync(),
            READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), b"E" => |c| c.parse("", "select nothing").flush(), READY => |c| c.parse("", "select 1").sync(),
            READY => |c| c.query("select 1"), READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.parse("", "select 1").bind("", "", &[]).query("select 2"), READY => |c| c.query("commit")],
        script![READY => |c| c.parse("kept", "select 'kept'").sync(), READY => |c| c.query("begin"), READY => |c| c.parse("two", "select 2").sync(),
            READY => |c| c.describe("kept").bind("", "kept", &[]).execute("", 0).bind("", "two", &[]).execute("", 0).sync(),
            READY => |c| c.close("kept").close("two").sync(), READY => |c| c.bind("", "kept", &[]).sync(), READY => |c| c.query("rollback")],
        script![READY => |c| c.parse("gone", "select 1").sync(), READY => |c| c.query("begin"), READY => |c| c.query("deallocate gone"), READY => |c| c.query("commit")],
        // What BEGIN ends, and what it must not leave behind.
        script![READY => |c| c.parse("", "select 7").sync(), READY => |c| c.query("begin"), READY => |c| c.bind("", "", &[]).execute("", 0).sync(),
            READY => |c| c.query("commit")],
        script![READY => |c| c.parse("", "select 7").sync(), READY => |c| c.query("begin"), READY => |c| c.query("commit"),
            READY => |c| c.bind("", "", &[]).execute("", 0).sync()],
        script![READY => |c| c.query("begin"), READY => |c| c.describe("").sync(), READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.execute("", 0).sync(), READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.describe_portal("").sync(), READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.bytes(NOW).execute("", 0).sync(), READY => listen, READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.close("").close_portal("").close("never").sync(), READY => |c| c.query("commit")],
        // Sync, Flush and COPY data that nobody asked for.
        script![READY => |c| c.query("begin"), READY => |c| c.sync(), READY => |c| c.query("insert into t values (6)"), READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.flush().sync().sync(), READY => listen, READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.copy("x\n").copy_done().query("select 1"), READY => |c| c.query("commit")],
        // COPY, function calls, everything at once.
        script![READY => |c| c.query("begin"), b"G" => |c| c.query("copy t from stdin"), READY => |c| c.copy("7\n").copy_done(), READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("copy t from stdin").copy("8\n").copy_done().query("select count(*) from t"),
            READY => listen, READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("copy t from stdin").copy("x\n").copy_fail(), READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"),
            b"G" => |c| c.parse("", "copy t from stdin").bind("", "", &[]).execute("", 0).sync(),
            READY => |c| c.copy("9\n").copy_done().sync(), READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("copy t to stdout"), READY => |c| c.query("rollback")],
        script![b"V" => |c| c.query("begin").bytes(NOW), READY => listen, READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin"), b"V" => |c| c.bytes(NOW), READY => listen, READY => |c| c.query("commit")],
        script![READY => |c| c.query("begin").query("insert into t values (10)").query("commit"), READY => listen, READY => listen],
        script![READY => |c| c.query("begin").query("commit").query("begin"), READY => listen, READY => listen, READY => |c| c.query("rollback")],
        script![READY => |c| c.query("begin"), READY => |c| c.query("insert into t values (11)").query("select 1/0").query("commit"),
            READY => listen, READY => listen],
        script![READY => |c| c.query("begin"),
            READY => |c| c.parse("", "select 1").bind("", "", &[]).execute("", 0).sync().parse("", "commit").bind("", "", &[]).execute("", 0).sync(),
            READY => listen],
    ]
}

/// What a client sees of a script. With `patience` it goes on when the node has heard of its BEGIN.
async fn play(raw: &mut Raw, script: &[Turn], patience: Option<&tokio_postgres::Client>) -> String {
    let mut seen: Vec<String> = Vec::new();
    for (until, turn) in script {
        turn(raw);
        let begun = matches!(seen.as_slice(), [first] if first.ends_with("Z(T)"));
        if let Some(node) = patience.filter(|_| begun && raw.has_words()) {
            wait_for_idle_transaction(node).await;
        }
        raw.go().await;
        seen.push(raw.hear_all_until(until).await);
    }
    seen.join("\n")
}

const IN_TRANSACTION: &str = "select query from pg_stat_activity where state = 'idle in transaction' \
    and backend_type = 'client backend' and pid <> pg_backend_pid()";

async fn wait_for_idle_transaction(node: &tokio_postgres::Client) -> String {
    let begun = Instant::now();
    loop {
        if let [query] = rows(node, IN_TRANSACTION).await.as_slice() {
            return query.clone();
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "nobody is in a transaction"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One plain server and the relay, script by script: with a connection taken for what follows BEGIN, with one that the
/// session has already, and with a BEGIN that went out by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_sees_what_one_server_shows() {
    let house = House::open(2).await;
    let node = house.cluster.node(0).await;
    let table = "drop table if exists t; create table t (a int)";
    for script in scripts() {
        let mut shown = Vec::new();
        for way in ["server", "relay", "pinned", "patient"] {
            node.batch_execute(table).await.expect("made");
            let mut raw = match way {
                "server" => Raw::login(house.cluster.node_port(0), &[]).await,
                _ => house.raw().await,
            };
            if way == "pinned" {
                pin(&mut raw).await;
            }
            let patience = (way == "patient").then_some(&node);
            let seen = play(&mut raw, &script, patience).await;
            let left = rows(&node, "select a from t order by a").await;
            shown.push((way, seen, left));
        }
        let (_, seen, left) = shown[0].clone();
        for (way, also, rows) in &shown[1..] {
            assert_eq!(&(&seen, &left), &(also, rows), "{way}");
        }
    }
}

/// Ties a session to a connection, and has the relay know that.
pub async fn pin(raw: &mut Raw) {
    assert_eq!(raw.query("listen something").ask().await, "CZ");
    assert_eq!(raw.query("select 1").ask().await, "TD(1)CZ");
}

/// A pool of one, somebody who is logged in, and somebody who has the only connection until he is told.
pub async fn held(keys: &str) -> (House, Raw, tokio_postgres::Client) {
    let house = House::open_with(&format!("max_connections = 1\n{keys}"), |_| {}).await;
    let raw = house.raw().await;
    let holder = house.client().await;
    holder
        .batch_execute("create table t (a int)")
        .await
        .expect("made");
    hold(&holder).await;
    (house, raw, holder)
}

pub async fn hold(holder: &tokio_postgres::Client) {
    holder
        .batch_execute("begin; select from t")
        .await
        .expect("begun");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn begin_and_its_end_need_no_connection() {
    let (house, mut raw, holder) = held("").await;
    let pool = house.pool();
    for (begin, tag) in [
        ("BEGIN", &b"C\0\0\0\x0aBEGIN\0"[..]),
        (
            "begin transaction isolation level serializable;",
            b"C\0\0\0\x0aBEGIN\0",
        ),
        (
            "Start /* now */ Transaction Read Write",
            b"C\0\0\0\x16START TRANSACTION\0",
        ),
        ("/* a */ begin -- b", b"C\0\0\0\x0aBEGIN\0"),
    ] {
        for (end, ended) in [
            ("COMMIT", &b"C\0\0\0\x0bCOMMIT\0"[..]),
            ("end transaction", b"C\0\0\0\x0bCOMMIT\0"),
            ("rollback;", b"C\0\0\0\x0dROLLBACK\0"),
            ("abort and no chain", b"C\0\0\0\x0dROLLBACK\0"),
        ] {
            raw.query(begin).go().await;
            assert_eq!(raw.frame().await.expect("a frame"), tag, "{begin}");
            assert_eq!(raw.frame().await.expect("a frame"), &b"Z\0\0\0\x05T"[..]);
            raw.query(end).go().await;
            assert_eq!(raw.frame().await.expect("a frame"), ended, "{end}");
            assert_eq!(raw.frame().await.expect("a frame"), &b"Z\0\0\0\x05I"[..]);
        }
    }
    assert_eq!((pool.size(), pool.waiting()), ((1, 0), 0));
    // Nor does one that thinks take a place in line from those who work.
    assert_eq!(raw.query("begin").ask().await, "CZ");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(pool.waiting(), 0);
    // It has a connection as soon as one is free.
    let node = house.cluster.node(0).await;
    holder.batch_execute("commit").await.expect("committed");
    assert_eq!(wait_for_idle_transaction(&node).await, "begin");
    assert_eq!(raw.query("insert into t values (1)").ask().await, "CZ");
    assert_eq!(raw.query("commit").ask().await, "CZ");
    assert_eq!(value(&holder, "select count(*) from t").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_begin_that_nothing_follows_is_sent_by_itself() {
    let house = House::open(1).await;
    let node = house.cluster.node(0).await;
    let mut raw = house.raw().await;
    let text = "begin isolation level repeatable read /* and think */";
    assert_eq!(raw.query(text).ask().await, "CZ");
    assert_eq!(wait_for_idle_transaction(&node).await, text);
    let show = "show transaction_isolation";
    assert_eq!(raw.query(show).ask().await, "TD(repeatable read)CZ");
    assert_eq!(raw.query("create table t (a int)").ask().await, "CZ");
    assert_eq!(raw.query("commit").ask().await, "CZ");
    // Its end finds it on the node.
    assert_eq!(raw.query("begin").ask().await, "CZ");
    wait_for_idle_transaction(&node).await;
    raw.query("commit").go().await;
    assert_eq!(raw.hear_all_until(b"Z").await, "C(COMMIT)Z(I)");
    assert_eq!(rows(&node, IN_TRANSACTION).await.len(), 0);
    // The node's limit for idle transactions runs.
    let limit = "set idle_in_transaction_session_timeout = '100ms'";
    assert_eq!(raw.query(limit).ask().await, "CZ");
    assert_eq!(raw.query("begin").ask().await, "CZ");
    assert_eq!(raw.hear().await, "E(25P03).");
}

/// What goes to the node, and in which pieces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn begin_goes_out_in_one_piece_with_what_follows() {
    let (house, tap) = tapped(|_| {}).await;
    let mut raw = house.raw().await;
    assert_eq!(raw.query("create table t (a int)").ask().await, "CZ");
    assert_eq!(raw.query("select 1").ask().await, "TD(1)CZ");
    for extended in [false, true] {
        go_on_at_once(&mut raw, &tap, extended).await;
    }
    // A client that leaves, in whichever way, a transaction that nothing was done in, has done nothing on any node.
    for goodbye in [&b"X\0\0\0\x04"[..], b""] {
        for pinned in [false, true] {
            leave_at_once(&house, &tap, goodbye, pinned).await;
        }
    }
}

/// How soon something has to follow a BEGIN here for a test that must not see it sent by itself.
const AT_ONCE: Duration = Duration::from_millis(8);

/// Says BEGIN and goes on; again, where this machine was so slow that it had been sent by itself.
async fn go_on_at_once(raw: &mut Raw, tap: &Tap, extended: bool) {
    for number in 0..50 {
        let begin = format!("begin /* {number} {extended} */");
        let insert = format!("insert into t values ({number})");
        let since = Instant::now();
        assert_eq!(raw.query(&begin).ask().await, "CZ");
        if extended {
            raw.parse("", &insert).bind("", "", &[]).execute("", 0);
            raw.sync().go().await;
        } else {
            raw.query(&insert).go().await;
        }
        let quick = since.elapsed() < AT_ONCE;
        assert!(raw.hear().await.ends_with("CZ"));
        assert_eq!(raw.query("commit").ask().await, "CZ");
        if quick {
            let pieces = tap.with(&begin);
            assert!(
                pieces.len() == 1 && contains(&pieces[0], &insert),
                "{begin}"
            );
            return;
        }
    }
    panic!("this machine is too slow");
}

/// Says BEGIN and leaves before it is sent by itself; again, where this machine was too slow for that.
async fn leave_at_once(house: &House, tap: &Tap, goodbye: &[u8], pinned: bool) {
    for number in 0..50 {
        let mut raw = house.raw().await;
        if pinned {
            pin(&mut raw).await;
        }
        let text = format!("begin /* {number} {} {pinned} */", goodbye.len());
        let begun = Instant::now();
        assert_eq!(raw.query(&text).ask().await, "CZ");
        raw.bytes(goodbye).go().await;
        drop(raw);
        let quick = begun.elapsed() < AT_ONCE;
        // The connection is as good as new for the next.
        let mut next = house.raw().await;
        assert_eq!(next.query("select 1").ask().await, "TD(1)CZ");
        if quick {
            assert_eq!(tap.with(&text).len(), 0, "{text}");
            return;
        }
    }
    panic!("this machine is too slow");
}

/// The read-only port, refusals and doubts are as ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_at_begin_is_refused_there() {
    let house = House::open(1).await;
    let client = house.client().await;
    client
        .batch_execute("create table t (a int)")
        .await
        .expect("made");
    let reader = house.client_at(house.read_only_port, USER).await;
    assert_eq!(
        code(reader.batch_execute("begin read write").await),
        "25006"
    );
    assert_eq!(
        code(reader.batch_execute("start transaction read write").await),
        "25006"
    );
    reader.batch_execute("begin").await.expect("begun");
    assert_eq!(value(&reader, "show transaction_read_only").await, "on");
    assert_eq!(
        code(reader.batch_execute("insert into t values (1)").await),
        "25006"
    );
    reader.batch_execute("rollback").await.expect("rolled back");
    // Settings that the session has made are in force in its next transaction, and stay.
    client
        .batch_execute("set default_transaction_isolation = 'serializable'")
        .await
        .expect("set");
    client.batch_execute("begin").await.expect("begun");
    assert_eq!(
        value(&client, "show transaction_isolation").await,
        "serializable"
    );
    client
        .batch_execute("set work_mem = '5MB'")
        .await
        .expect("set");
    client.batch_execute("commit").await.expect("committed");
    client
        .batch_execute("begin; commit")
        .await
        .expect("nothing");
    client.batch_execute("begin").await.expect("begun");
    assert_eq!(value(&client, "show work_mem").await, "5MB");
    client.batch_execute("commit").await.expect("committed");
    assert_eq!(value(&reader, "show work_mem").await, "4MB");
}

/// A proxy that stops lets a transaction end, also one that no node has heard of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_a_transaction_end_that_has_hardly_begun() {
    let (house, mut raw, holder) = held("").await;
    assert_eq!(raw.query("begin").ask().await, "CZ");
    house.shared.stop.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    holder.batch_execute("commit").await.expect("committed");
    assert_eq!(raw.query("insert into t values (1)").ask().await, "CZ");
    assert_eq!(raw.query("commit").ask().await, "CZ");
    assert_eq!(raw.hear().await, "E(57P01).");
}

/// What is counted is what clients asked, wherever it was answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_and_transactions_are_counted_once() {
    let Some(counts) = synapsedb::http::metrics::install() else {
        return; // Not in a process of its own: others count too.
    };
    let counted = |name: &str| -> u64 {
        let text = counts.render();
        let mut lines = text.lines();
        let number = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        number.map_or(0, |number| number.parse().expect("a number"))
    };
    let names = [
        "synapsedb_statements_total",
        "synapsedb_transactions_total",
        "synapsedb_commit_seconds_count",
        "synapsedb_autocommit_seconds_count",
    ];
    let (_house, mut raw, holder) = held("").await;
    for (texts, more) in [
        // While another has the connection, so that these are surely answered without one.
        (&["begin", "commit"][..], [2, 1, 0, 0]),
        (&["begin", "rollback"], [2, 1, 0, 0]),
        (
            &["begin", "insert into t values (1)", "commit"],
            [3, 1, 1, 0],
        ),
        (&["begin", "select 1/0", "select 1", "commit"], [4, 1, 1, 0]),
    ] {
        if texts.len() > 2 {
            let _ = holder.batch_execute("rollback").await;
        }
        let before = names.map(counted);
        for text in texts {
            raw.query(text).ask().await;
        }
        let after = names.map(counted);
        let counted = [0, 1, 2, 3].map(|at| after[at] - before[at]);
        assert_eq!(counted, more, "{texts:?}");
    }
}
