//! What a client was told of a statement holds for every connection that runs it, or it is told 0A000.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::house::House;
use crate::raw::Raw;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_described_statement_keeps_its_shape_or_is_refused() {
    let house = House::open(2).await;
    let mut ddl = house.raw().await;
    for (round, told) in [TOLD_BY_STATEMENT, TOLD_BY_PORTAL].into_iter().enumerate() {
        let name = format!("named{round}");
        changed(&house, &mut ddl, "kept", &name, told).await;
        changed(&house, &mut ddl, "", &name, told).await;
        unchanged(&house, &mut ddl, "kept", told).await;
        unchanged(&house, &mut ddl, "", told).await;
    }
    portal_each_time(&house, &mut ddl).await;
    never_told(&house, &mut ddl).await;
    parameters(&house, &mut ddl).await;
    own_ddl(&house, &mut ddl).await;
    search_path(&house, &mut ddl).await;
    pipelined(&house, &mut ddl).await;
    prepared_anew_on_the_same_connection(&house, &mut ddl).await;
}

/// How a client hears what its statement returns, and the server's answer.
type Told = fn(&mut Raw, &str) -> &'static str;

const TOLD_BY_STATEMENT: Told = |raw, name| {
    raw.describe(name).sync();
    "tTZ"
};
const TOLD_BY_PORTAL: Told = |raw, name| {
    let bound = raw.bind("", name, &[]).describe_portal("");
    bound.execute("", 0).sync();
    "2TD(7)CZ"
};

/// A text of its own each time: what is prepared by text knows nothing of the rounds before.
fn text() -> String {
    static ROUND: AtomicU64 = AtomicU64::new(0);
    let round = ROUND.fetch_add(1, Ordering::Relaxed);
    format!("select n from shape -- {round}")
}

/// A table `shape` with one row, and a session that is told what its statement `name` returns.
async fn told(house: &House, ddl: &mut Raw, name: &str, told: Told) -> (Raw, String, String) {
    fresh(ddl).await;
    let (mut raw, text) = (house.raw().await, text());
    raw.query("begin").parse(name, &text);
    let answer = told(&mut raw, name);
    raw.query("select pg_backend_pid()")
        .query("commit")
        .go()
        .await;
    assert_eq!(raw.hear().await, "CZ");
    // A simple query is the end of the unnamed statement.
    assert_eq!(raw.hear().await, format!("1{answer}"));
    let pid = raw.hear().await;
    assert_eq!(raw.hear().await, "CZ");
    if name.is_empty() {
        raw.parse("", &text);
        let answer = told(&mut raw, "");
        assert_eq!(raw.ask().await, format!("1{answer}"));
    }
    (raw, pid, text)
}

async fn fresh(ddl: &mut Raw) {
    let made =
        "drop table if exists shape; create table shape (n int); insert into shape values (7)";
    let heard = ddl.query(made).ask().await;
    assert!(heard.ends_with("CCCZ"), "{heard}");
}

/// Somebody who holds the connection of this process, so that the others have the other one.
async fn holder(house: &House, pid: &str) -> Raw {
    let (mut one, mut two) = (house.raw().await, house.raw().await);
    for raw in [&mut one, &mut two] {
        assert_eq!(raw.query("begin").ask().await, "CZ");
    }
    // BEGIN takes no connection yet; what is asked behind it does.
    let mine = one.query("select pg_backend_pid()").ask().await == pid;
    let (keep, mut free) = if mine { (one, two) } else { (two, one) };
    let mut keep = keep;
    assert!(mine || keep.query("select pg_backend_pid()").ask().await == pid);
    assert_eq!(free.query("rollback").ask().await, "CZ");
    keep
}

const TO_TEXT: &str = "alter table shape alter n type text using n || '!'";

async fn alter(ddl: &mut Raw) {
    assert_eq!(ddl.query(TO_TEXT).ask().await, "CZ");
}

async fn run(raw: &mut Raw, name: &str) -> String {
    raw.bind("", name, &[]).execute("", 0).sync().ask().await
}

async fn changed(house: &House, ddl: &mut Raw, name: &str, anew: &str, how: Told) {
    let (mut raw, pid, text) = told(house, ddl, name, how).await;
    alter(ddl).await;
    let mut holder = holder(house, &pid).await;
    for _ in 0..2 {
        assert_eq!(run(&mut raw, name).await, "E(0A000)Z", "{name}");
    }
    // Asked again it says so, or what is true now.
    let heard = raw.describe(name).sync().ask().await;
    assert!(heard == "tTZ" || heard == "E(0A000)Z", "{heard}");
    // Who prepares anew gets the new rows.
    raw.parse(anew, &text).sync();
    assert_eq!(raw.ask().await, "1Z");
    assert_eq!(run(&mut raw, anew).await, "2D(7!)CZ");
    assert_eq!(holder.query("rollback").ask().await, "CZ");
}

async fn unchanged(house: &House, ddl: &mut Raw, name: &str, how: Told) {
    let (mut raw, pid, _) = told(house, ddl, name, how).await;
    // DDL that changes nothing of what is returned.
    let other = "alter table shape add column more int; create index on shape (n)";
    assert_eq!(ddl.query(other).ask().await, "CCZ");
    for _ in 0..2 {
        let mut holder = holder(house, &pid).await;
        for _ in 0..2 {
            assert_eq!(run(&mut raw, name).await, "2D(7)CZ", "{name}");
        }
        assert_eq!(holder.query("rollback").ask().await, "CZ");
        assert_eq!(run(&mut raw, name).await, "2D(7)CZ", "{name}");
    }
}

/// libpq describes each portal: it hears of the new shape ahead of the rows.
async fn portal_each_time(house: &House, ddl: &mut Raw) {
    let (mut raw, pid, _) = told(house, ddl, "s", TOLD_BY_PORTAL).await;
    alter(ddl).await;
    let mut holder = holder(house, &pid).await;
    raw.bind("", "s", &[]).describe_portal("").execute("", 0);
    assert_eq!(raw.sync().ask().await, "2TD(7!)CZ");
    assert_eq!(run(&mut raw, "s").await, "2D(7!)CZ");
    assert_eq!(holder.query("rollback").ask().await, "CZ");
}

/// Who never asked has nothing to be wrong about.
async fn never_told(house: &House, ddl: &mut Raw) {
    let nothing: Told = |raw, name| {
        raw.bind("", name, &[]).execute("", 0).sync();
        "2D(7)CZ"
    };
    let (mut raw, pid, _) = told(house, ddl, "s", nothing).await;
    alter(ddl).await;
    let mut holder = holder(house, &pid).await;
    assert_eq!(run(&mut raw, "s").await, "2D(7!)CZ");
    assert_eq!(holder.query("rollback").ask().await, "CZ");
}

/// A parameter's type that was told is the one that the client sends.
async fn parameters(house: &House, ddl: &mut Raw) {
    fresh(ddl).await;
    let mut raw = house.raw().await;
    raw.query("begin")
        .query("select pg_backend_pid()")
        .parse("i", "insert into shape values ($1)")
        .describe("i")
        .sync()
        .query("commit");
    assert_eq!(raw.ask().await, "CZ");
    let pid = raw.hear().await;
    assert_eq!(raw.hear().await, "1tnZ");
    assert_eq!(raw.hear().await, "CZ");
    alter(ddl).await;
    let mut holder = holder(house, &pid).await;
    raw.bind("", "i", &["8"]).execute("", 0).sync();
    assert_eq!(raw.ask().await, "E(0A000)Z");
    // A description of the portal would come too late for what the Bind brings.
    raw.bind("", "i", &["8"]).describe_portal("").execute("", 0);
    assert_eq!(raw.sync().ask().await, "E(0A000)Z");
    let count = "select count(*)::text from shape";
    assert_eq!(raw.query(count).ask().await, "TD(1)CZ");
    assert_eq!(holder.query("rollback").ask().await, "CZ");
}

/// In the transaction that has changed it itself, which fails as a whole.
async fn own_ddl(house: &House, ddl: &mut Raw) {
    let (mut raw, pid, _) = told(house, ddl, "s", TOLD_BY_STATEMENT).await;
    let mut holder = holder(house, &pid).await;
    raw.query("begin").query(TO_TEXT).bind("", "s", &[]);
    raw.execute("", 0)
        .sync()
        .query("select 1")
        .query("rollback");
    for answer in ["CZ", "CZ", "E(0A000)Z", "E(25P02)Z", "CZ"] {
        assert_eq!(raw.ask().await, answer);
    }
    assert_eq!(holder.query("rollback").ask().await, "CZ");
}

/// Without any DDL: the same text reads another table now.
async fn search_path(house: &House, ddl: &mut Raw) {
    let (mut raw, pid, _) = told(house, ddl, "s", TOLD_BY_STATEMENT).await;
    let other = "create schema other; create table other.shape as select 'o'::text as n";
    assert_eq!(ddl.query(other).ask().await, "CCZ");
    let mut holder = holder(house, &pid).await;
    assert_eq!(raw.query("set search_path = other").ask().await, "CZ");
    assert_eq!(run(&mut raw, "s").await, "E(0A000)Z");
    assert_eq!(holder.query("rollback").ask().await, "CZ");
    assert_eq!(ddl.query("drop schema other cascade").ask().await, "NCZ");
}

/// In the middle of a batch: what came before is answered, what comes behind is skipped up to the Sync.
async fn pipelined(house: &House, ddl: &mut Raw) {
    let (mut raw, pid, _) = told(house, ddl, "s", TOLD_BY_STATEMENT).await;
    alter(ddl).await;
    let mut holder = holder(house, &pid).await;
    raw.parse("one", "insert into shape values ('1') returning n")
        .bind("", "one", &[])
        .execute("", 0)
        .bind("", "s", &[])
        .execute("", 0)
        .parse("two", "select 2")
        .sync()
        .bind("", "one", &[])
        .execute("", 0)
        .sync();
    assert_eq!(raw.ask().await, "12D(1)CE(0A000)Z");
    assert_eq!(raw.hear().await, "2D(1)CZ");
    // The first Sync rolled back what stood ahead of the refusal.
    let count = "select count(*)::text from shape";
    assert_eq!(raw.query(count).ask().await, "TD(2)CZ");
    assert_eq!(raw.bind("", "two", &[]).sync().ask().await, "E(26000)Z");
    assert_eq!(holder.query("rollback").ask().await, "CZ");
}

/// The copy that was described has made place for others.
async fn prepared_anew_on_the_same_connection(house: &House, ddl: &mut Raw) {
    let (mut raw, _, _) = told(house, ddl, "s", TOLD_BY_STATEMENT).await;
    let (mut one, mut two) = (house.raw().await, house.raw().await);
    for other in [&mut one, &mut two] {
        assert_eq!(other.query("begin").ask().await, "CZ");
        for n in 0..300 {
            other.parse(&format!("s{n}"), &format!("select {n}"));
        }
        let heard = other.sync().ask().await;
        assert!(heard.ends_with("1Z"), "{heard}");
        assert_eq!(other.query("commit").ask().await, "CZ");
    }
    alter(ddl).await;
    for _ in 0..4 {
        assert_eq!(run(&mut raw, "s").await, "E(0A000)Z");
    }
}

/// The unnamed statement on a connection is never another session's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unnamed_statement_of_another_session_is_out_of_reach() {
    let house = House::open(1).await;
    let (mut a, mut b) = (house.raw().await, house.raw().await);
    let long = format!("select 'long' -- {}", "x".repeat(2 << 20));
    for text in ["select 'secret'", &long] {
        assert_eq!(a.parse("", text).sync().ask().await, "1Z");
        assert_eq!(run(&mut b, "").await, "E(26000)Z");
        let described = b.describe("").sync().ask().await;
        assert_eq!(described, "E(26000)Z");
    }
    assert_eq!(a.parse("", "select 'mine'").sync().ask().await, "1Z");
    assert_eq!(run(&mut b, "").await, "E(26000)Z");
    assert_eq!(run(&mut a, "").await, "2D(mine)CZ");
}
