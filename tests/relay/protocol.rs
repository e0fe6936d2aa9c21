//! The extended protocol byte by byte: portals, pipelines, errors until Sync, names, COPY.

use crate::house::House;
use crate::raw::Raw;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extended_protocol() {
    let house = House::open(1).await;
    let client = house.client().await;
    client
        .batch_execute("create table t (a int primary key); insert into t select generate_series(1, 100); create table c (a int, b text)")
        .await
        .expect("made");
    portals(&mut house.raw().await).await;
    errors_until_sync(&mut house.raw().await).await;
    names(&house).await;
    unnamed(&house).await;
    local_answers_in_order(&house).await;
    simple(&mut house.raw().await).await;
    copies(&mut house.raw().await).await;
    refusals(&mut house.raw().await).await;
    many_parameters(&mut house.raw().await).await;
    many_statements(&house).await;
    deallocation(&house).await;
    after_ddl(&house).await;
    goodbyes(&house).await;
}

/// A goodbye without the Sync of what was asked before: nothing of it happens, and the connection is free again.
async fn goodbyes(house: &House) {
    for begin in ["", "begin", "begin; select 1"] {
        let mut raw = house.raw().await;
        raw.query(begin).ask().await;
        raw.parse("", "insert into t values (500)")
            .bind("", "", &[])
            .execute("", 0)
            .bytes(b"X\0\0\0\x04")
            .go()
            .await;
        let mut next = house.raw().await;
        let count = next.query("select count(*) from t where a = 500").ask();
        assert_eq!(count.await, "TD(0)CZ", "{begin}");
    }
}

/// A statement whose result has another shape now is refused to those who prepared it before, as on one
/// server; who prepares the same text anew gets a new one, whether he knew the old one or not.
async fn after_ddl(house: &House) {
    let (mut a, mut b) = (house.raw().await, house.raw().await);
    let text = "select * from shape";
    assert_eq!(a.query("create table shape (a int)").ask().await, "CZ");
    assert_eq!(a.query("insert into shape values (1)").ask().await, "CZ");
    let made = a.parse("old", text).bind("", "old", &[]).execute("", 0);
    assert_eq!(made.sync().ask().await, "12D(1)CZ");
    let altered = b.query("alter table shape alter a type text using a || '!'");
    assert_eq!(altered.ask().await, "CZ");
    for _ in 0..2 {
        let refused = a.bind("", "old", &[]).execute("", 0).sync();
        assert_eq!(refused.ask().await, "E(0A000)Z");
    }
    for raw in [&mut a, &mut b] {
        let anew = raw.parse("new", text).bind("", "new", &[]).execute("", 0);
        assert_eq!(anew.sync().ask().await, "12D(1!)CZ");
    }
}

/// Parse, Bind, Describe, Flush, then Execute again and again: the portal survives without a Sync.
async fn portals(raw: &mut Raw) {
    raw.parse("", "select a from t order by a")
        .bind("p", "", &[])
        .describe_portal("p")
        .flush()
        .go()
        .await;
    assert_eq!(raw.hear_until(b"T").await, "12T");
    for round in 0..3 {
        raw.execute("p", 2).flush().go().await;
        let (a, b) = (round * 2 + 1, round * 2 + 2);
        assert_eq!(raw.hear_until(b"s").await, format!("D({a})D({b})s"));
    }
    assert_eq!(
        raw.execute("p", 0)
            .close_portal("p")
            .sync()
            .ask()
            .await
            .matches('D')
            .count(),
        94
    );
    // A portal of one transaction outlives its Syncs.
    assert_eq!(raw.query("begin").ask().await, "CZ");
    assert_eq!(
        raw.parse("s", "select a from t order by a")
            .bind("p", "s", &[])
            .sync()
            .ask()
            .await,
        "12Z"
    );
    assert_eq!(raw.execute("p", 1).sync().ask().await, "D(1)sZ");
    assert_eq!(raw.execute("p", 1).sync().ask().await, "D(2)sZ");
    assert_eq!(raw.query("commit").ask().await, "CZ");
    assert_eq!(raw.execute("p", 1).sync().ask().await, "E(34000)Z");
    assert_eq!(
        raw.bind("", "s", &[]).execute("", 1).sync().ask().await,
        "2D(1)sZ"
    );
    assert_eq!(raw.close("s").sync().ask().await, "3Z");
    assert_eq!(raw.bind("", "s", &[]).sync().ask().await, "E(26000)Z");
    assert_eq!(
        raw.parse("", "")
            .bind("", "", &[])
            .execute("", 0)
            .sync()
            .ask()
            .await,
        "12IZ"
    );
}

async fn errors_until_sync(raw: &mut Raw) {
    raw.parse("", "select 1").bind("", "", &[]).execute("", 0);
    raw.parse("", "select nonsense")
        .bind("", "", &[])
        .execute("", 0);
    raw.parse("", "select 3")
        .bind("", "", &[])
        .execute("", 0)
        .sync();
    raw.parse("", "select 4")
        .bind("", "", &[])
        .execute("", 0)
        .sync();
    assert_eq!(raw.ask().await, "12D(1)CE(42703)Z");
    assert_eq!(raw.hear().await, "12D(4)CZ");
    // What was skipped did not happen, whoever would have answered it.
    raw.parse("keep", "select 5").sync();
    assert_eq!(raw.ask().await, "1Z");
    raw.parse("", "select nonsense")
        .close("keep")
        .parse("never", "select 6")
        .sync();
    assert_eq!(raw.ask().await, "E(42703)Z");
    assert_eq!(
        raw.bind("", "keep", &[]).execute("", 0).sync().ask().await,
        "2D(5)CZ"
    );
    assert_eq!(raw.bind("", "never", &[]).sync().ask().await, "E(26000)Z");
    // An error that is heard before the Sync is sent.
    raw.parse("", "select nonsense").flush().go().await;
    assert_eq!(raw.hear_until(b"E").await, "E(42703)");
    raw.query("select 1").bind("", "keep", &[]).sync();
    assert_eq!(raw.ask().await, "Z");
    // In a transaction; and a Sync that commits and fails.
    assert_eq!(
        raw.query("begin; create table d (a int unique deferrable initially deferred)")
            .ask()
            .await,
        "CCZ"
    );
    assert_eq!(
        raw.query("insert into d values (1), (1); commit")
            .ask()
            .await,
        "CE(23505)Z"
    );
    assert_eq!(raw.sync().sync().ask().await, "Z");
    assert_eq!(raw.hear().await, "Z");
}

/// Two clients, one connection: one name for different texts, one text with different types.
async fn names(house: &House) {
    let (mut a, mut b) = (house.raw().await, house.raw().await);
    assert_eq!(a.parse("s", "select 'a'").sync().ask().await, "1Z");
    assert_eq!(b.parse("s", "select 'b'").sync().ask().await, "1Z");
    for _ in 0..2 {
        assert_eq!(
            a.bind("", "s", &[]).execute("", 0).sync().ask().await,
            "2D(a)CZ"
        );
        assert_eq!(
            b.bind("", "s", &[]).execute("", 0).sync().ask().await,
            "2D(b)CZ"
        );
    }
    assert_eq!(a.parse("s", "select 'c'").sync().ask().await, "E(42P05)Z");
    assert_eq!(
        a.close("s")
            .parse("s", "select 'c'")
            .bind("", "s", &[])
            .execute("", 0)
            .sync()
            .ask()
            .await,
        "312D(c)CZ"
    );
    assert_eq!(
        b.bind("", "s", &[]).execute("", 0).sync().ask().await,
        "2D(b)CZ"
    );
    let text = "select $1::text || pg_typeof($1)";
    assert_eq!(a.parse_typed("t", text, &[25]).sync().ask().await, "1Z");
    assert_eq!(b.parse_typed("t", text, &[1043]).sync().ask().await, "1Z");
    assert_eq!(
        a.bind("", "t", &["x"]).execute("", 0).sync().ask().await,
        "2D(xtext)CZ"
    );
    assert_eq!(
        b.bind("", "t", &["x"]).execute("", 0).sync().ask().await,
        "2D(xcharacter varying)CZ"
    );
    assert_eq!(b.describe("t").sync().ask().await, "tTZ");
    // One text under two search paths.
    a.query("create schema one; create table one.u as select 1 as a; create schema two; create table two.u as select 'two' as a");
    assert!(a.ask().await.ends_with("CZ"));
    assert_eq!(a.query("set search_path = one").ask().await, "CZ");
    assert_eq!(b.query("set search_path = two").ask().await, "CZ");
    for (raw, row) in [(&mut a, "1"), (&mut b, "two")] {
        assert_eq!(raw.parse("u", "select a from u").sync().ask().await, "1Z");
        assert_eq!(
            raw.bind("", "u", &[]).execute("", 0).sync().ask().await,
            format!("2D({row})CZ")
        );
    }
    assert_eq!(
        a.bind("", "u", &[]).execute("", 0).sync().ask().await,
        "2D(1)CZ"
    );
}

/// The unnamed statement is used again after Sync, though others used the connection in between.
async fn unnamed(house: &House) {
    let (mut a, mut b) = (house.raw().await, house.raw().await);
    assert_eq!(a.parse("", "select 'a'").sync().ask().await, "1Z");
    assert_eq!(
        b.parse("", "select 'b'")
            .bind("", "", &[])
            .execute("", 0)
            .sync()
            .ask()
            .await,
        "12D(b)CZ"
    );
    assert_eq!(
        a.describe("")
            .bind("", "", &[])
            .execute("", 0)
            .sync()
            .ask()
            .await,
        "tT2D(a)CZ"
    );
    assert_eq!(
        b.bind("", "", &[]).execute("", 0).sync().ask().await,
        "2D(b)CZ"
    );
    // A simple query ends it.
    assert_eq!(b.query("select 1").ask().await, "TD(1)CZ");
    assert_eq!(
        b.bind("", "", &[]).execute("", 0).sync().ask().await,
        "E(26000)Z"
    );
    // A Parse that fails ends it too.
    assert_eq!(
        a.parse("", "select nonsense").sync().ask().await,
        "E(42703)Z"
    );
    assert_eq!(a.bind("", "", &[]).sync().ask().await, "E(26000)Z");
    // The table that it reads is gone when it has to be prepared again: the error is the Bind's.
    assert_eq!(b.query("create table gone (a int)").ask().await, "CZ");
    assert_eq!(a.parse("", "select a from gone").sync().ask().await, "1Z");
    assert_eq!(b.query("drop table gone").ask().await, "CZ");
    assert_eq!(
        a.bind("", "", &[]).execute("", 0).sync().ask().await,
        "E(42P01)Z"
    );
    assert_eq!(a.query("select 2").ask().await, "TD(2)CZ");
}

/// What the proxy answers itself keeps its place among the node's answers.
async fn local_answers_in_order(house: &House) {
    let (mut a, mut b) = (house.raw().await, house.raw().await);
    assert_eq!(
        a.parse("x", "select pg_sleep(0.1)::text || 'x'")
            .sync()
            .ask()
            .await,
        "1Z"
    );
    b.parse("y", "select 'y'").bind("", "y", &[]).execute("", 0);
    b.parse("x", "select pg_sleep(0.1)::text || 'x'")
        .bind("", "x", &[])
        .execute("", 0);
    b.close("y")
        .parse("z", "select pg_sleep(0.1)::text || 'x'")
        .close("z")
        .sync();
    assert_eq!(b.ask().await, "12D(y)C12D(x)C313Z");
    assert_eq!(
        b.close("x")
            .close("nothing")
            .close_portal("nothing")
            .sync()
            .ask()
            .await,
        "333Z"
    );
}

async fn simple(raw: &mut Raw) {
    assert_eq!(raw.query("").ask().await, "IZ");
    assert_eq!(raw.query(";;  -- nothing\n").ask().await, "IZ");
    assert_eq!(raw.query("select 1; select 2").ask().await, "TD(1)CTD(2)CZ");
    raw.query("select 1").query("select 1/0").query("select 3");
    assert_eq!(raw.ask().await, "TD(1)CZ");
    assert_eq!(raw.hear().await, "E(22012)Z");
    assert_eq!(raw.hear().await, "TD(3)CZ");
    // FunctionCall: now() as text.
    let now: &[u8] = b"F\0\0\0\x0e\0\0\x05\x13\0\0\0\0\0\0";
    assert_eq!(raw.bytes(now).ask().await, "VZ");
    // lo_creat by FunctionCall.
    let large: &[u8] = b"F\0\0\0\x0e\0\0\x03\xbd\0\0\0\0\0\0";
    assert_eq!(raw.bytes(large).ask().await, "E(0A000)Z");
}

async fn copies(raw: &mut Raw) {
    raw.query("copy c from stdin").go().await;
    assert_eq!(raw.hear_until(b"G").await, "G");
    assert_eq!(
        raw.copy("1\tone\n")
            .copy("2\ttwo\n")
            .copy_done()
            .ask()
            .await,
        "CZ"
    );
    assert_eq!(raw.query("copy c to stdout").ask().await, "HddcCZ");
    // Given up, and a row that the server refuses.
    assert_eq!(
        raw.query("copy c from stdin")
            .copy("3\tthree\n")
            .copy_fail()
            .ask()
            .await,
        "GE(57014)Z"
    );
    raw.query("copy c from stdin")
        .copy("x\tthree\n")
        .copy_done();
    assert_eq!(raw.ask().await, "GE(22P02)Z");
    // An empty copy.
    assert_eq!(
        raw.query("copy c from stdin").copy_done().ask().await,
        "GCZ"
    );
    // In the extended protocol, with a Sync in the middle, which the server ignores.
    raw.parse("", "copy c from stdin")
        .bind("", "", &[])
        .execute("", 0)
        .sync()
        .go()
        .await;
    assert_eq!(raw.hear_until(b"G").await, "12G");
    raw.copy("4\tfour\n")
        .sync()
        .copy("5\tfive\n")
        .copy_done()
        .sync();
    assert_eq!(raw.ask().await, "CZ");
    raw.bind("", "", &[])
        .execute("", 0)
        .sync()
        .copy("y\n")
        .copy_done()
        .sync();
    assert_eq!(raw.ask().await, "2GE(22P02)Z");
    raw.bind("", "", &[])
        .execute("", 0)
        .sync()
        .copy_fail()
        .sync();
    assert_eq!(raw.ask().await, "2GE(57014)Z");
    assert_eq!(raw.query("select count(*) from c").ask().await, "TD(4)CZ");
    // Copy data that nobody asked for is ignored.
    assert_eq!(
        raw.copy("z").copy_done().query("select 7").ask().await,
        "TD(7)CZ"
    );
}

async fn refusals(raw: &mut Raw) {
    assert_eq!(
        raw.query("prepare transaction 'x'").ask().await,
        "E(0A000)Z"
    );
    assert_eq!(raw.query("begin").ask().await, "CZ");
    assert_eq!(
        raw.query("insert into c values (9, 'nine'); prepare transaction 'x'")
            .ask()
            .await,
        "E(0A000)Z"
    );
    assert_eq!(raw.query("select 1").ask().await, "E(25P02)Z");
    assert_eq!(raw.query("rollback").ask().await, "CZ");
    raw.parse("", "select 1").bind("", "", &[]).execute("", 0);
    raw.parse("", "select lo_create(0)")
        .bind("", "", &[])
        .execute("", 0);
    raw.parse("", "select 2").sync();
    assert_eq!(raw.ask().await, "12D(1)CE(0A000)Z");
    let create = "create subscription s connection 'x' publication p";
    assert_eq!(raw.query(create).ask().await, "E(0A000)Z");
}

async fn many_parameters(raw: &mut Raw) {
    let places: Vec<String> = (1..=65_535).map(|n| format!("${n}::int")).collect();
    let text = format!("select cardinality(array[{}])", places.join(","));
    let values = vec!["1"; 65_535];
    raw.parse("many", &text)
        .bind("", "many", &values)
        .execute("", 0)
        .sync();
    assert_eq!(raw.ask().await, "12D(65535)CZ");
}

/// More statements than a connection may hold: the oldest are closed and prepared again when needed. What was refused
/// is none of them.
async fn many_statements(house: &House) {
    let mut raw = house.raw().await;
    for n in 0..600 {
        raw.parse(&format!("s{n}"), &format!("select {n} as many"))
            .sync();
        assert_eq!(raw.ask().await, "1Z");
    }
    for n in [0, 599, 3, 300] {
        raw.bind("", &format!("s{n}"), &[]).execute("", 0).sync();
        assert_eq!(raw.ask().await, format!("2D({n})CZ"));
    }
    assert_eq!(raw.parse("s0", "select 0").sync().ask().await, "E(42P05)Z");
    // Asked in the same session, which has had the only connection all the time.
    let count = raw.query("select count(*) from pg_prepared_statements");
    assert_eq!(count.ask().await, "TD(256)CZ");
}

/// SQL's own statements beside the protocol's.
async fn deallocation(house: &House) {
    let (mut a, mut b) = (house.raw().await, house.raw().await);
    assert_eq!(a.parse("s", "select 'mine'").sync().ask().await, "1Z");
    assert_eq!(b.parse("s", "select 'mine'").sync().ask().await, "1Z");
    assert_eq!(a.query("deallocate s").ask().await, "CZ");
    assert_eq!(a.bind("", "s", &[]).sync().ask().await, "E(26000)Z");
    assert_eq!(a.query("deallocate s").ask().await, "E(26000)Z");
    assert_eq!(
        b.bind("", "s", &[]).execute("", 0).sync().ask().await,
        "2D(mine)CZ"
    );
    assert_eq!(a.parse("s", "select 'mine'").sync().ask().await, "1Z");
    a.parse("", "deallocate s")
        .bind("", "", &[])
        .execute("", 0)
        .sync();
    assert_eq!(a.ask().await, "12CZ");
    assert_eq!(a.bind("", "s", &[]).sync().ask().await, "E(26000)Z");
    for all in ["deallocate all", "discard all"] {
        assert_eq!(a.parse("s", "select 'mine'").sync().ask().await, "1Z");
        assert_eq!(a.query(all).ask().await, "CZ");
        assert_eq!(a.bind("", "s", &[]).sync().ask().await, "E(26000)Z");
        assert_eq!(
            b.bind("", "s", &[]).execute("", 0).sync().ask().await,
            "2D(mine)CZ"
        );
    }
    // PREPARE ties the session to its connection until DEALLOCATE.
    assert_eq!(a.query("prepare p as select 'sql'").ask().await, "CZ");
    let waits = tokio::time::timeout(
        std::time::Duration::from_millis(300),
        b.query("select 1").ask(),
    );
    assert!(waits.await.is_err(), "the only connection is held");
    assert_eq!(a.query("execute p").ask().await, "TD(sql)CZ");
    assert_eq!(
        a.bind("", "p", &[]).execute("", 0).sync().ask().await,
        "2D(sql)CZ"
    );
    assert_eq!(a.query("deallocate p").ask().await, "CZ");
    assert_eq!(b.hear().await, "TD(1)CZ");
}
