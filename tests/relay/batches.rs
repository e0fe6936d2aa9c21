//! Batches sent in one go of which one fails: what is behind it runs what the client has by then, and nothing else.

use std::time::Duration;

use crate::deferred::{held, hold};
use crate::house::{House, rows, value};
use crate::raw::Raw;

/// What a client sends in one go.
type Say = fn(&mut Raw) -> &mut Raw;

const INSERT: &str = "insert into t values (1) returning a";
const READY: &[u8] = b"Z";

/// Runs what a statement stands for.
fn run<'a>(raw: &'a mut Raw, name: &str) -> &'a mut Raw {
    raw.bind("", name, &[]).execute("", 0).sync()
}

/// Fails, and skips what follows until Sync.
fn fail(raw: &mut Raw) -> &mut Raw {
    raw.describe_portal("nosuch")
}

/// Each is sent in one go; beforehand, `s2` is `select 2`.
#[rustfmt::skip]
const SCRIPTS: &[Say] = &[
    // Names that a batch behind has and has not.
    |c| run(fail(c).parse("s3", INSERT).sync(), "s3"),
    |c| run(fail(c).close("s2").parse("s2", "select 22").sync(), "s2"),
    |c| run(fail(c).close("s2").sync(), "s2"),
    |c| run(run(fail(c).parse("s3", "select 3").sync(), "s3").parse("s3", "select 33").sync(), "s3"),
    |c| run(fail(c).parse("s3", "select 3").close("s3").sync().parse("s3", "select 33").sync(), "s3"),
    |c| run(fail(c).parse("s3", "select 3").close("s3").parse("s3", "select 4").sync(), "s3"),
    |c| fail(c).close("s2").sync().parse("s2", "select 22").sync().describe("s2").sync().close("s2").sync().describe("s2").sync(),
    |c| run(run(fail(c), "s2"), "s2"),
    |c| run(c.parse("", "select 1/0").bind("", "", &[]).execute("", 0).close("s2").parse("s2", "select 22").bind("", "s2", &[]).execute("", 0).sync(), "s2"),
    |c| run(c.parse("s3", "select 3").sync().parse("s4", "select 4").sync(), "s3").bind("", "s4", &[]).execute("", 0).sync(),
    // COPY between them.
    |c| run(c.parse("s3", "copy t from stdin").bind("", "s3", &[]).execute("", 0).copy("1\n").copy_done().sync(), "s2"),
    |c| run(fail(c).parse("s3", "select 3").sync().query("copy t from stdin").copy("1\n").copy_done(), "s3"),
    |c| run(run(c.parse("s3", "copy t from stdin").sync(), "s3").copy("1\n").copy_done().sync(), "s2"),
    // Texts that drop them.
    |c| run(run(fail(c).parse("", "deallocate s2").bind("", "", &[]).execute("", 0).sync(), "s2").query("deallocate s2"), "s2"),
    |c| run(fail(c).close("s2").sync().query("deallocate s2"), "s2"),
    |c| run(run(fail(c).parse("s3", "select 3").sync().parse("", "deallocate s3").bind("", "", &[]).execute("", 0).sync(), "s3"), "s2"),
    |c| run(c.query("deallocate all"), "s2"),
    |c| run(c.query("discard all").parse("s2", "select 22").sync(), "s2"),
    |c| run(c.query("begin").query("select 1/0").query("deallocate s2").query("rollback"), "s2"),
    // The unnamed one.
    |c| run(run(c.parse("", "select 5").sync().describe_portal("nosuch").parse("", "select 6").sync(), ""), ""),
    |c| run(c.parse("", "select 5").sync().describe_portal("nosuch").close("").sync(), ""),
    |c| run(run(c.parse("", "select 5").sync().describe_portal("nosuch").parse("", "select 6").sync().parse("", "select 7"), ""), ""),
    |c| run(fail(c).parse("", "select 5").sync().describe_portal("nosuch").parse("", "select 6").sync(), ""),
    |c| run(c.parse("", "select 5").sync().describe_portal("nosuch").query("select 6").sync(), ""),
    |c| run(c.parse("", "select 5").sync().parse("", "select nonsense").sync(), ""),
    |c| run(run(fail(c).bind("", "", &[]).sync(), ""), ""),
    // A Query in a batch that has failed is skipped with it.
    |c| fail(c).query("select 1").sync(),
    |c| fail(c).query(INSERT).query("begin").sync().query("select 1"),
    |c| c.bind("", "nosuch", &[]).query("select 1").flush().sync(),
    |c| c.parse("", "select 1/0").bind("", "", &[]).execute("", 0).query("select 11").sync(),
    |c| c.parse("", "frobnicate").bytes(crate::deferred::NOW).sync(),
    |c| c.query("begin").describe_portal("nosuch").query("select 1").sync().query("rollback"),
    |c| c.parse("", "select 1").bind("", "", &[]).execute("", 0).query("select 11").sync(),
    // A Parse that is refused.
    |c| run(c.parse("", "select 7").sync().parse("s2", "select 3").sync(), ""),
    |c| run(c.query("begin").parse("", "select 7").sync().query("savepoint a").parse("", "select 8").sync().parse("s2", "select 3").sync(), "").query("rollback"),
    |c| c.query("begin").query("select 1/0").parse("s2", "select 3").sync().parse("s2", "frobnicate").sync().query("rollback"),
    |c| run(c.query("begin").query("select 1/0").parse("s3", "select 3").sync(), "s3").query("rollback").bind("", "s3", &[]).sync(),
    |c| run(c.query("begin").query("select 1/0").query("rollback").parse("s3", "select 3").sync(), "s3"),
];

/// The same frame by frame, each sent when the one before is answered.
const TURNS: &[&[Say]] = &[
    &[
        |c| c.query("begin"),
        |c| c.query("select 1/0"),
        |c| c.parse("s2", "select 3").sync(),
        |c| c.parse("s3", "select 3").sync(),
        |c| c.bind("", "s3", &[]).sync(),
        |c| c.parse("s3", "rollback").sync(),
        |c| run(c, "s3"),
        |c| run(c, "s2"),
        |c| c.parse("s3", "select 3").sync(),
    ],
    &[
        |c| c.query("begin"),
        |c| c.query("select 1/0"),
        |c| c.parse("s4", INSERT).sync(),
        |c| c.query("rollback"),
        |c| run(c, "s4"),
        |c| run(c.parse("s4", INSERT), "s4"),
    ],
    &[
        |c| c.parse("", "select 7").sync(),
        |c| c.parse("s2", "select 3").sync(),
        |c| run(c, ""),
        |c| c.describe_portal("nosuch").parse("", "select 8").sync(),
        |c| run(c, ""),
    ],
];

/// All that is heard up to the answer to a last question.
async fn hear(raw: &mut Raw) -> String {
    raw.query("select 'over'").go().await;
    let mut all = String::new();
    while !all.contains("over") {
        all += &raw.hear_all_until(READY).await;
        all.push('\n');
    }
    all
}

/// One plain server and the relay: with texts that the connection has already, and with such as are new to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_behind_a_batch_that_failed_meets_what_the_client_has() {
    let house = House::open(1).await;
    let node = house.cluster.node(0).await;
    let scripts = SCRIPTS.iter().map(std::slice::from_ref);
    for (number, script) in scripts.chain(TURNS.iter().copied()).enumerate() {
        let mut shown = Vec::new();
        for way in ["server", "new", "known"] {
            let table = "drop table if exists t; create table t (a int)";
            node.batch_execute(table).await.expect("made");
            let mut raw = match way {
                "server" => Raw::login(house.cluster.node_port(0), &[]).await,
                _ => house.raw().await,
            };
            if way == "new" {
                assert_eq!(raw.query("deallocate all").ask().await, "CZ");
            }
            if way == "known" {
                for text in [INSERT, "select 22", "select 3", "select 33", "select 4"] {
                    raw.parse("known", text).close("known").sync();
                    assert_eq!(raw.ask().await, "13Z");
                }
            }
            assert_eq!(raw.parse("s2", "select 2").sync().ask().await, "1Z");
            let mut seen = String::new();
            for (turn, say) in script.iter().enumerate() {
                say(&mut raw);
                if turn + 1 < script.len() {
                    raw.go().await;
                    seen += &raw.hear_all_until(READY).await;
                    seen.push('\n');
                }
            }
            seen += &hear(&mut raw).await;
            shown.push((seen, rows(&node, "select a from t").await));
        }
        assert_eq!(shown[0], shown[1], "script {number}, new texts");
        assert_eq!(shown[0], shown[2], "script {number}, known texts");
    }
}

/// Whoever waits for a connection in vain with his BEGIN has nothing run that he sent along with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_begin_that_gets_no_connection_fails_its_transaction() {
    const FULL: &str = "E(53300)Z";
    let (_house, mut raw, holder) = held("queue_timeout_ms = 200").await;
    let batch = |raw: &mut Raw, text: &str| {
        raw.parse("", text).bind("", "", &[]).execute("", 0).sync();
    };
    for begin in ["begin", "start transaction", "select 1; begin; select 2"] {
        raw.query(begin).query("insert into t values (1)");
        raw.query("rollback").query("begin; commit");
        assert_eq!(raw.ask().await, FULL, "{begin}");
        assert_eq!(raw.hear().await, "E(25P02)Z", "{begin}");
        assert_eq!(raw.hear_all_until(READY).await, "C(ROLLBACK)Z(I)");
        assert_eq!(raw.hear().await, FULL);
    }
    batch(&mut raw, "begin");
    batch(&mut raw, "insert into t values (2)");
    batch(&mut raw, "commit");
    assert_eq!(raw.ask().await, FULL);
    assert_eq!(raw.hear().await, "E(25P02)Z");
    assert_eq!(raw.hear_all_until(READY).await, "1()2()C(ROLLBACK)Z(I)");
    // What is prepared begins nothing.
    raw.parse("b", "begin").sync().go().await;
    assert!(raw.hear_all_until(READY).await.ends_with("Z(I)"));
    holder.batch_execute("commit").await.expect("committed");
    assert_eq!(raw.parse("b", "begin").sync().ask().await, "1Z");
    hold(&holder).await;
    raw.bind("", "b", &[]).execute("", 0).sync();
    batch(&mut raw, "insert into t values (3)");
    raw.query("commit");
    assert_eq!(raw.ask().await, FULL);
    assert_eq!(raw.hear().await, "E(25P02)Z");
    assert_eq!(raw.hear_all_until(READY).await, "C(ROLLBACK)Z(I)");
    holder.batch_execute("commit").await.expect("committed");
    assert_eq!(value(&holder, "select count(*) from t").await, "0");
    assert_eq!(raw.query("select 1").ask().await, "TD(1)CZ");
}

/// Who prepares once, or always anew, does not wait for one batch before the next goes out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_without_new_names_wait_for_nothing() {
    let (house, tap) = crate::tap::tapped(|_| {}).await;
    let mut raw = house.raw().await;
    raw.parse("s", "select 'named'");
    assert_eq!(run(&mut raw, "s").ask().await, "12D(named)CZ");
    tokio::time::sleep(Duration::from_millis(50)).await;
    for number in 0..20 {
        run(&mut raw, "s");
        raw.parse("", &format!("select 'text {number}'"));
        run(&mut raw, "");
    }
    raw.go().await;
    for number in 0..20 {
        assert_eq!(raw.hear().await, "2D(named)CZ");
        assert_eq!(raw.hear().await, format!("12D(text {number})CZ"));
    }
    let pieces = tap.with("text 0");
    assert!(pieces.len() == 1 && crate::tap::contains(&pieces[0], "text 19"));
}
