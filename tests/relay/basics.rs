//! Plain work: simple and extended queries, transactions, errors, several clients on one connection.

use crate::house::{House, code, rows, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_work() {
    let house = House::open(1).await;
    let (a, b) = (house.client().await, house.client().await);
    assert_eq!(value(&a, "select 1").await, "1");
    assert_eq!(value(&b, "select 2").await, "2");
    a.batch_execute("create table t (a int primary key, b text)")
        .await
        .expect("made");
    // Named statements of two clients on one connection.
    let insert = a
        .prepare("insert into t values ($1, $2)")
        .await
        .expect("prepared");
    let select = b
        .prepare("select b from t where a = $1")
        .await
        .expect("prepared");
    for n in 0..20 {
        a.execute(&insert, &[&n, &format!("row {n}")])
            .await
            .expect("inserted");
        let row = b.query_one(&select, &[&n]).await.expect("there");
        assert_eq!(row.get::<_, String>(0), format!("row {n}"));
    }
    // A transaction holds the connection; the other waits for it.
    a.batch_execute("begin; insert into t values (100, 'x')")
        .await
        .expect("begun");
    let waiting = tokio::spawn(async move {
        let seen = value(&b, "select count(*) from t where a = 100").await;
        (b, seen)
    });
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    a.batch_execute("rollback").await.expect("rolled back");
    let (b, seen) = waiting.await.expect("served");
    assert_eq!(seen, "0");
    // Errors, also inside a transaction, and several statements of which the second fails.
    assert_eq!(code(b.batch_execute("select 1/0").await), "22012");
    assert_eq!(
        code(
            b.batch_execute("insert into t values (200, ''); select 1/0")
                .await
        ),
        "22012"
    );
    assert_eq!(rows(&b, "select a from t where a = 200").await.len(), 0);
    assert_eq!(code(b.batch_execute("begin; nonsense").await), "42601");
    assert_eq!(code(b.batch_execute("begin").await), "00000");
    assert_eq!(code(b.batch_execute("select nothing").await), "42703");
    assert_eq!(code(b.batch_execute("select 1").await), "25P02");
    b.batch_execute("rollback").await.expect("rolled back");
    assert_eq!(value(&b, "select 3").await, "3");
    assert_eq!(rows(&a, "").await.len(), 0);
}
