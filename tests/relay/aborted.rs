//! A transaction whose BEGIN was answered and never ran: it has failed, and whatever its client says, nothing runs.

use std::time::{Duration, Instant};

use crate::deferred::{NOW, held, hold, pin};
use crate::house::code;
use crate::raw::Raw;
use crate::tap::{Tap, tapped};

/// Whichever way a client goes on whose BEGIN the node refuses after it was answered, it is in a failed transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_begin_that_fails_late_fails_its_transaction() {
    // The node is sent another word, which it does not know.
    let (house, tap) = tapped(|piece| {
        let word = ODD_BEGIN.as_bytes();
        if let Some(at) = piece.windows(word.len()).position(|part| part == word) {
            piece[at..at + 5].copy_from_slice(b"begim");
        }
    })
    .await;
    let client = house.client().await;
    client
        .batch_execute("create table t (a int)")
        .await
        .expect("made");
    for pinned in [false, true] {
        let mut raw = house.raw().await;
        if pinned {
            pin(&mut raw).await;
        }
        late_failures(&mut raw).await;
        by_itself(&mut raw, &tap).await;
        let left = raw.query("select count(*) from t");
        left.says("T()D(0)C(SELECT 1)Z(I)").await;
    }
}

const ODD_BEGIN: &str = "begin /* odd */";
const FAILED: &str = "E(ERROR 42601 syntax error at or near \"begim\" 1)";

async fn late_failures(raw: &mut Raw) {
    let (failed, aborted) = (format!("{FAILED}Z(E)"), format!("{ABORTED}Z(E)"));
    // A Query, and what was sent right behind it.
    raw.query(ODD_BEGIN).says("C(BEGIN)Z(T)").await;
    raw.query("insert into t values (1)")
        .query("insert into t values (2)");
    raw.query("commit").says(&failed).await;
    raw.says(&aborted).await;
    raw.says("C(ROLLBACK)Z(I)").await;
    raw.query("select 1").says("T()D(1)C(SELECT 1)Z(I)").await;
    // Batches.
    raw.query(ODD_BEGIN).says("C(BEGIN)Z(T)").await;
    for text in [
        "insert into t values (3)",
        "insert into t values (4)",
        "rollback",
    ] {
        raw.parse("", text).bind("", "", &[]).execute("", 0).sync();
    }
    raw.says(&failed).await;
    raw.says(&aborted).await;
    raw.says("1()2()C(ROLLBACK)Z(I)").await;
    // An error that is heard before the Sync is sent.
    raw.query(ODD_BEGIN).says("C(BEGIN)Z(T)").await;
    raw.parse("", "insert into t values (5)").flush().go().await;
    assert_eq!(raw.hear_all_until(b"E").await, FAILED);
    raw.bind("", "", &[]).execute("", 0);
    raw.query("insert into t values (6)")
        .sync()
        .sync()
        .says("Z(E)")
        .await;
    raw.says("Z(E)").await;
    raw.query("rollback").says("C(ROLLBACK)Z(I)").await;
    // COPY with its data, and a function call.
    raw.query(ODD_BEGIN).says("C(BEGIN)Z(T)").await;
    raw.query("copy t from stdin").copy("7\n").copy_done();
    raw.query("commit").says(&failed).await;
    raw.says("C(ROLLBACK)Z(I)").await;
    raw.query(ODD_BEGIN).says("C(BEGIN)Z(T)").await;
    raw.bytes(NOW).query("commit").says(&failed).await;
    raw.says("C(ROLLBACK)Z(I)").await;
}

/// Nobody waits for a BEGIN that goes out by itself: the client hears of its failure when it goes on, and it is tried
/// again until then.
async fn by_itself(raw: &mut Raw, tap: &Tap) {
    raw.query(ODD_BEGIN).says("C(BEGIN)Z(T)").await;
    let tries = tap.with(ODD_BEGIN).len();
    let begun = Instant::now();
    while tap.with(ODD_BEGIN).len() < tries + 2 {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "it is tried once"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let query = raw.query("insert into t values (8)");
    query.says(&format!("{FAILED}Z(E)")).await;
    raw.query("commit").says("C(ROLLBACK)Z(I)").await;
}

const ABORTED: &str = "E(ERROR 25P02 current transaction is aborted, commands ignored until end of transaction block )";
const NO_CONNECTION: &str = "E(ERROR 53300 no connection to a node became free within 200 ms )";

/// Begins, and waits in vain for a connection.
async fn begin_in_vain(raw: &mut Raw, begin: &str) {
    raw.query(begin).says("C(BEGIN)Z(T)").await;
    let query = raw.query("insert into t values (1)");
    query.says(&format!("{NO_CONNECTION}Z(E)")).await;
}

/// Whoever waits in vain for a connection behind a BEGIN is in a failed transaction until he ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_connection_the_transaction_has_failed_until_it_is_ended() {
    let (_house, mut raw, holder) = held("queue_timeout_ms = 200").await;
    for end in ["commit", "END;", "rollback", "abort work"] {
        begin_in_vain(&mut raw, "begin").await;
        for other in [
            "insert into t values (1)",
            "begin",
            "savepoint a",
            "select 1; commit",
        ] {
            raw.query(other).says(&format!("{ABORTED}Z(E)")).await;
        }
        raw.query(" ;; ").says("I()Z(E)").await;
        raw.query(end).says("C(ROLLBACK)Z(I)").await;
        raw.query("select 1")
            .says(&format!("{NO_CONNECTION}Z(I)"))
            .await;
    }
    raw.query("begin").says("C(BEGIN)Z(T)").await;
    raw.bytes(NOW).says(&format!("{NO_CONNECTION}Z(E)")).await;
    raw.bytes(NOW).says(&format!("{ABORTED}Z(E)")).await;
    raw.copy("x").copy_done().flush().sync().says("Z(E)").await;
    ended_by_batches(&mut raw).await;
    chained_and_behind(&mut raw, &holder).await;
}

/// A cancel ends the wait in line, and a node that is gone ends it too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_wait_and_a_dead_node_fail_the_transaction_too() {
    let (mut house, mut raw, holder) = held("").await;
    let waiting = house.client_beside(&holder).await;
    waiting.batch_execute("begin").await.expect("begun");
    let (cancel, insert) = (waiting.cancel_token(), "insert into t values (1)");
    let pool = house.pool();
    let asks = async {
        while pool.waiting() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let asked = cancel.cancel_query(tokio_postgres::NoTls).await;
        asked.expect("the door is open");
    };
    let (cancelled, ()) = tokio::join!(waiting.batch_execute(insert), asks);
    assert_eq!(code(cancelled), "57014");
    assert_eq!(code(waiting.batch_execute(insert).await), "25P02");
    waiting.batch_execute("rollback").await.expect("ended");

    drop(holder);
    tokio::task::block_in_place(|| house.cluster.server(0).kill9());
    raw.query("begin").says("C(BEGIN)Z(T)").await;
    let gone = "E(ERROR 57P03 node \"node1\" can't be reached )Z(E)";
    raw.query("insert into t values (2)").says(gone).await;
    raw.query("select 1").says(&format!("{ABORTED}Z(E)")).await;
    raw.query("commit").says("C(ROLLBACK)Z(I)").await;
    raw.query("begin").says("C(BEGIN)Z(T)").await;
    raw.query("commit").says("C(COMMIT)Z(I)").await;
}

async fn ended_by_batches(raw: &mut Raw) {
    // All until Sync is skipped.
    raw.parse("", "select 1").bind("", "", &[]).execute("", 0);
    raw.sync().says(&format!("{ABORTED}Z(E)")).await;
    let never = "E(ERROR 26000 prepared statement \"never\" does not exist )Z(E)";
    raw.bind("", "never", &[]).sync().says(never).await;
    let unnamed = "E(ERROR 26000 unnamed prepared statement does not exist )Z(E)";
    raw.describe("").sync().says(unnamed).await;
    let portal = "E(ERROR 34000 portal \"p\" does not exist )Z(E)";
    raw.describe_portal("p").sync().says(portal).await;
    raw.execute("p", 0).sync().says(portal).await;
    raw.close("")
        .close("x")
        .close_portal("p")
        .sync()
        .says("3()3()3()Z(E)")
        .await;
    // Its end, step by step, and by a name.
    raw.parse("", "commit").describe("").bind("", "", &[]);
    raw.sync().says("1()t()n()2()Z(E)").await;
    let end = raw.describe_portal("").execute("", 0).sync();
    end.says("n()C(ROLLBACK)Z(I)").await;
    raw.query("begin").says("C(BEGIN)Z(T)").await;
    raw.parse("", "select 1").bind("", "", &[]).execute("", 0);
    raw.sync().says(&format!("{NO_CONNECTION}Z(E)")).await;
    raw.parse("end", "rollback").bind("p", "end", &[]);
    raw.execute("p", 0)
        .sync()
        .says("1()2()C(ROLLBACK)Z(I)")
        .await;
    begin_in_vain(raw, "begin").await;
    let exists = "E(ERROR 42P05 prepared statement \"end\" already exists )Z(E)";
    raw.parse("end", "rollback").sync().says(exists).await;
    // The name is known by now, and behind the end nothing is skipped.
    raw.bind("", "end", &[]).execute("", 0);
    let behind = raw.parse("", "select 3").sync();
    behind
        .says(&format!("2()C(ROLLBACK){NO_CONNECTION}Z(I)"))
        .await;
}

async fn chained_and_behind(raw: &mut Raw, holder: &tokio_postgres::Client) {
    // AND CHAIN begins the next in the same mode.
    begin_in_vain(raw, "begin read only").await;
    raw.query("commit and chain").says("C(ROLLBACK)Z(T)").await;
    raw.query("rollback").says("C(ROLLBACK)Z(I)").await;
    begin_in_vain(raw, "begin read only").await;
    holder.batch_execute("commit").await.expect("committed");
    // It stays a failed one though there is a connection again.
    raw.query("select 1").says(&format!("{ABORTED}Z(E)")).await;
    raw.query("rollback and chain")
        .says("C(ROLLBACK)Z(T)")
        .await;
    let show = raw.query("show transaction_read_only");
    show.says("T()D(on)C(SHOW)Z(T)").await;
    raw.query("commit").says("C(COMMIT)Z(I)").await;
    // What stands behind the end runs, and errors are where they were.
    for (text, heard) in [
        (
            " commit; select nothing",
            "C(ROLLBACK)E(ERROR 42703 column \"nothing\" does not exist 17)Z(I)",
        ),
        ("rollback;select 5", "C(ROLLBACK)T()D(5)C(SELECT 1)Z(I)"),
        ("end; begin read only", "C(ROLLBACK)C(BEGIN)Z(T)"),
    ] {
        hold(holder).await;
        begin_in_vain(raw, "begin").await;
        holder.batch_execute("commit").await.expect("committed");
        raw.query(text).says(heard).await;
    }
    raw.query("select count(*) from t")
        .says("T()D(0)C(SELECT 1)Z(T)")
        .await;
    raw.query("commit").says("C(COMMIT)Z(I)").await;
}
