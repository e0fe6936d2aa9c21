//! What belongs to a session follows it over connections, and nothing is left for the next.

use std::pin::pin;
use std::time::Duration;

use crate::house::{House, code, rows, until, value};
use crate::raw::Raw;

/// Everything a client could tell one connection from another by.
const FINGERPRINT: &str = "select name, setting from pg_settings where name not in ('application_name') \
    and name not like 'transaction%' and name not like 'plpgsql.%' \
    union all select 'user', current_user::text union all select 'session', session_user::text \
    union all select 'custom', coalesce(current_setting('my.own', true), '') \
    union all select 'lock', count(*)::text from pg_locks where locktype = 'advisory' \
    union all select 'cursor', count(*)::text from pg_cursors \
    union all select 'temp', count(*)::text from pg_class where relname = 'scratch' \
    union all select 'listen', count(*)::text from pg_listening_channels() order by 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_follow_and_nothing_leaks() {
    let house = House::open(1).await;
    let client = house.client().await;
    let roles =
        "create role plain login password 'changeme123'; create role other; grant other to plain";
    client.batch_execute(roles).await.expect("made");
    follow(&house).await;
    undone(&house).await;
    startup(&house).await;
    parameters(&house).await;
    leaks(&house).await;
    pins(&house).await;
    sequences(&house).await;
    vanished(&house).await;
    levels(&house).await;
    read_only(&house).await;
}

/// Two sessions with settings of their own take turns on one connection.
async fn follow(house: &House) {
    let (a, b) = (house.client().await, house.client().await);
    for (client, path) in [(&a, "one"), (&b, "two")] {
        client
            .batch_execute(&format!("set search_path = {path}"))
            .await
            .expect("set");
        let set = format!("select set_config('my.own', '{path}', false)");
        client.simple_query(&set).await.expect("set");
    }
    a.batch_execute("set role other; set timezone = 'Asia/Tokyo'")
        .await
        .expect("set");
    for _ in 0..3 {
        assert_eq!(value(&a, "show search_path").await, "one");
        assert_eq!(value(&b, "show search_path").await, "two");
        assert_eq!(value(&a, "select current_setting('my.own')").await, "one");
        assert_eq!(value(&b, "select current_setting('my.own')").await, "two");
        assert_eq!(value(&a, "select current_user").await, "other");
        assert_eq!(value(&b, "select current_user").await, "synapsedb");
    }
    assert_eq!(value(&a, "show timezone").await, "Asia/Tokyo");
    // Inside functions, which no text shows.
    let function = "create function public.quietly(v text) returns void language plpgsql as \
                    $$ begin perform set_config('work_mem', v, false); perform set_config('hidden.one', v, false); end $$";
    b.batch_execute(function).await.expect("made");
    b.simple_query("select public.quietly('5MB')")
        .await
        .expect("called");
    assert_eq!(value(&a, "show work_mem").await, "4MB");
    assert_eq!(
        value(
            &a,
            "select coalesce(current_setting('hidden.one', true), '')"
        )
        .await,
        ""
    );
    assert_eq!(value(&b, "show work_mem").await, "5MB");
    b.batch_execute("drop function public.quietly")
        .await
        .expect("dropped");
}

/// Rollback, savepoints, SET LOCAL and RESET are followed exactly.
async fn undone(house: &House) {
    let (a, b) = (house.client().await, house.client().await);
    a.batch_execute("set work_mem = '5MB'").await.expect("set");
    for (undone, expected) in [
        ("begin; set work_mem = '6MB'; rollback", "5MB"),
        ("begin; set local work_mem = '6MB'; commit", "5MB"),
        (
            "begin; set work_mem = '6MB'; savepoint s; set work_mem = '7MB'; rollback to s; commit",
            "6MB",
        ),
        (
            "begin; select set_config('work_mem', '8MB', true); commit",
            "6MB",
        ),
        (
            "begin; select set_config('work_mem', '8MB', false); commit",
            "8MB",
        ),
        ("set work_mem = '9MB'; select 1/0", "8MB"),
        ("reset work_mem", "4MB"),
        ("set work_mem = '9MB'; reset all", "4MB"),
        ("set work_mem = '9MB'; discard all", "4MB"),
    ] {
        for statement in undone.split("; ") {
            let _ = a.simple_query(statement).await;
            if statement.contains("9MB") && undone.contains("1/0") {
                let _ = a.simple_query(undone).await;
                let _ = a.simple_query("set work_mem = '8MB'").await;
            }
        }
        assert_eq!(value(&b, "show work_mem").await, "4MB");
        assert_eq!(value(&a, "show work_mem").await, expected, "{undone}");
    }
}

/// What a startup packet asks for, and RESET back to it.
async fn startup(house: &House) {
    let parameters = [
        ("search_path", "mine, public"),
        ("options", "-c work_mem=3MB -c my.own=started"),
        ("DateStyle", "SQL, DMY"),
        ("extra_float_digits", "2"),
        ("application_name", "driver"),
    ];
    let mut raw = Raw::login(house.port, &parameters).await;
    let b = house.client().await;
    let ask = "select concat_ws('|', current_setting('search_path'), current_setting('work_mem'), \
               current_setting('my.own'), '2020-12-31'::date, current_setting('application_name'))";
    for _ in 0..2 {
        assert_eq!(value(&b, "show work_mem").await, "4MB");
        assert_eq!(
            raw.query(ask).ask().await,
            "TD(mine, public|3MB|started|31/12/2020|driv)CZ"
        );
    }
    assert_eq!(raw.query("set work_mem = '8MB'").ask().await, "CZ");
    assert_eq!(raw.query("reset work_mem").ask().await, "CZ");
    assert_eq!(value(&b, "show work_mem").await, "4MB");
    assert_eq!(raw.query("show work_mem").ask().await, "TD(3MB)CZ");
    // Nor does a query that comes right behind RESET meet the node's own value.
    for reset in ["reset work_mem", "reset all", "discard all"] {
        raw.query("set work_mem = '8MB'").query(reset);
        raw.query("show work_mem").go().await;
        for answer in ["CZ", "CZ", "TD(3MB)CZ"] {
            assert_eq!(raw.hear_until(b"Z").await, answer, "{reset}");
        }
    }
}

/// The client is told of parameters as one server would.
async fn parameters(house: &House) {
    let mut raw = Raw::login(house.port, &[("application_name", "teller")]).await;
    let b = house.client().await;
    raw.query("set datestyle = 'German'").go().await;
    let told = parameter(&mut raw, "DateStyle").await;
    assert_eq!(told.as_deref(), Some("German, DMY"));
    // Another session with other values in between says nothing to this one.
    assert_eq!(value(&b, "show datestyle").await, "ISO, MDY");
    raw.query("select 1").go().await;
    assert_eq!(parameter(&mut raw, "DateStyle").await, None);
    raw.query("reset datestyle").go().await;
    assert_eq!(
        parameter(&mut raw, "DateStyle").await.as_deref(),
        Some("ISO, MDY")
    );
}

/// The last value told of a parameter up to `ReadyForQuery`.
async fn parameter(raw: &mut Raw, name: &str) -> Option<String> {
    let mut told = None;
    loop {
        let frame = raw.frame().await.expect("an answer");
        if frame[0] == b'S' {
            let text = String::from_utf8_lossy(&frame[5..]).into_owned();
            let mut parts = text.split('\0');
            if parts.next() == Some(name) {
                told = parts.next().map(str::to_owned);
            }
        }
        if frame[0] == b'Z' {
            return told;
        }
    }
}

/// A session that did its worst and left: the next finds the connection as if new.
async fn leaks(house: &House) {
    let fresh = rows(&house.client().await, FINGERPRINT).await;
    for worst in [
        "set role other; set search_path = evil; set datestyle = 'German'; set work_mem = '1MB'",
        "set session authorization other; set statement_timeout = 100000",
        "select set_config('my.own', 'secret', false)",
        "begin; set work_mem = '1MB'; create table never (a int)",
        "create temp table scratch (a int); select pg_advisory_lock(7); listen channel",
        "begin; declare c cursor with hold for select 1; commit; set default_transaction_read_only = on",
        "do $$ begin perform set_config('my.own', 'hidden', false); perform set_config('work_mem', '1MB', false); end $$",
        "prepare p as select 1; set enable_seqscan = off",
        "begin; select nonsense",
        "set client_min_messages = error; set lock_timeout = 5; set transaction_isolation = 'serializable'",
    ] {
        let client = house.client().await;
        let _ = client.batch_execute(worst).await;
        drop(client);
        // But for the first client of all.
        house.until_left(1).await;
        let next = house.client().await;
        let found = rows(&next, FINGERPRINT).await;
        let differs: Vec<_> = found.iter().filter(|row| !fresh.contains(row)).collect();
        assert!(
            differs.is_empty() && found.len() == fresh.len(),
            "{worst}: {differs:?}"
        );
    }
}

/// What lives on one connection only ties the session to it, until it is gone.
async fn pins(house: &House) {
    for (make, ask, drop_it) in [
        (
            "create temp table scratch (a int)",
            "select count(*) from scratch",
            "drop table scratch",
        ),
        (
            "select pg_advisory_lock(7)",
            "select 1",
            "select pg_advisory_unlock(7)",
        ),
        (
            "begin; declare c cursor with hold for select 1; commit",
            "fetch 0 from c",
            "close c",
        ),
        ("listen channel", "select 1", "unlisten *"),
        (
            "select 1 as a into temp scratch",
            "select 1 from scratch",
            "drop table scratch",
        ),
    ] {
        let (a, b) = (house.client().await, house.client().await);
        a.batch_execute(make).await.expect("made");
        let waiting = tokio::spawn(async move { value(&b, "select 1").await });
        house.until_in_line().await;
        assert!(
            !waiting.is_finished(),
            "{make}: the only connection is held"
        );
        a.simple_query(ask).await.expect("still there");
        a.batch_execute(drop_it).await.expect("gone");
        let served = tokio::time::timeout(Duration::from_secs(5), waiting).await;
        assert_eq!(served.expect("let go").expect("served"), "1", "{drop_it}");
    }
}

/// `nextval` keeps the connection while nobody waits for it; `currval` keeps it.
async fn sequences(house: &House) {
    let (a, b) = (house.client().await, house.client().await);
    a.batch_execute("create sequence s").await.expect("made");
    assert_eq!(value(&a, "select nextval('s')").await, "1");
    assert_eq!(value(&b, "select 2").await, "2");
    // Another session's value never comes back.
    assert_eq!(code(b.simple_query("select currval('s')").await), "55000");
    drop(b);
    house.until_left(2).await;
    assert_eq!(value(&a, "select nextval('s')").await, "2");
    assert_eq!(value(&a, "select currval('s')").await, "2");
    assert_eq!(value(&a, "select lastval()").await, "2");
    let mut login = pin!(house.client());
    tokio::select! {
        _ = &mut login => panic!("not held"),
        () = house.until_in_line() => {}
    }
    drop(a);
    assert_eq!(value(&login.await, "select 3").await, "3");
}

/// A client gone in the middle of things frees its connection, and nothing goes on for it.
async fn vanished(house: &House) {
    let watcher = house.cluster.node(0).await;
    for what in [
        "select pg_sleep(60)",
        "begin; lock table pg_class; select pg_sleep(60)",
        "copy c from stdin",
    ] {
        let b = house.client().await;
        b.batch_execute("create table if not exists c (a int)")
            .await
            .expect("made");
        drop(b);
        let mut raw = house.raw().await;
        raw.query(what).go().await;
        let busy = "select count(*) from pg_stat_activity where state <> 'idle' and pid <> pg_backend_pid() \
                    and backend_type = 'client backend'";
        until("it runs", async || value(&watcher, busy).await == "1").await;
        drop(raw);
        let next = tokio::time::timeout(Duration::from_secs(8), house.client()).await;
        assert_eq!(value(&next.expect("free again"), "select 1").await, "1");
        assert_eq!(value(&watcher, busy).await, "0", "{what}");
    }
}

/// The client hears no less and no more than it asked for.
async fn levels(house: &House) {
    let mut raw = house.raw().await;
    let warn = "do $$ begin raise warning 'w'; raise notice 'n'; raise info 'i'; end $$";
    assert_eq!(raw.query(warn).ask().await, "NNNCZ");
    assert_eq!(
        raw.query("set client_min_messages = error").ask().await,
        "CZ"
    );
    assert_eq!(raw.query(warn).ask().await, "NCZ");
    let client = house.client().await;
    assert_eq!(value(&client, "show client_min_messages").await, "notice");
    assert_eq!(raw.query(warn).ask().await, "NCZ");
    assert_eq!(
        raw.query("set client_min_messages = warning").ask().await,
        "CZ"
    );
    assert_eq!(raw.query(warn).ask().await, "NNCZ");
    assert_eq!(raw.query("reset client_min_messages").ask().await, "CZ");
    assert_eq!(raw.query(warn).ask().await, "NNNCZ");
}

/// The read-only port refuses writes, however it is asked.
async fn read_only(house: &House) {
    let client = house.client_at(house.read_only_port, "synapsedb").await;
    let writer = house.client().await;
    writer
        .batch_execute("create table if not exists c (a int)")
        .await
        .expect("made");
    for text in [
        "insert into c values (1)",
        "begin read write",
        "begin; insert into c values (1)",
        "set transaction read write",
        "set default_transaction_read_only = off",
        "start transaction read write; insert into c values (1); commit",
    ] {
        assert_eq!(code(client.batch_execute(text).await), "25006", "{text}");
        let _ = client.batch_execute("rollback").await;
    }
    client.batch_execute("reset all").await.expect("may");
    assert_eq!(
        code(client.batch_execute("insert into c values (1)").await),
        "25006"
    );
    let mut raw = Raw::login(house.read_only_port, &[]).await;
    raw.query("discard all").query("insert into c values (1)");
    assert_eq!(raw.ask().await, "CZ");
    assert_eq!(raw.hear().await, "E(25006)Z");
    let set = "select set_config('default_transaction_read_only', 'off', false)";
    raw.query(set).query("insert into c values (1)");
    assert_eq!(raw.ask().await, "TD(off)CZ");
    assert_eq!(raw.hear().await, "E(25006)Z");
    assert_eq!(
        code(writer.batch_execute("insert into c values (1)").await),
        "00000"
    );
}
