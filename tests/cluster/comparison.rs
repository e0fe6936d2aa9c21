//! The comparison itself: it finds what was planted, and nothing where nothing is.

use std::time::Duration;

use crate::support::cluster::TestCluster;

const NOW: Duration = Duration::ZERO;

async fn everywhere(cluster: &TestCluster, sql: &str) {
    for index in 0..cluster.nodes() {
        cluster
            .node(index)
            .await
            .batch_execute(sql)
            .await
            .expect(sql);
    }
}

/// What is done on one node, what takes it back, and what the report must then name.
const PLANTED: [(usize, &str, &str, &str); 11] = [
    // One row more, one less, one value, the last bit of a float, NULL against a value.
    (
        2,
        "insert into t values (0)",
        "delete from t where id = 0",
        "rows of public.t",
    ),
    (
        1,
        "delete from keyless where a = 2",
        "insert into keyless values (2)",
        "(2)",
    ),
    (
        1,
        "delete from keyless where ctid = '(0,1)'",
        "insert into keyless values (1)",
        "1 x (1)",
    ),
    (
        2,
        "update t set v = 0.33333333333333337 where id = 1",
        "update t set v = 1 / 3.0 where id = 1",
        "0.33333333333333337",
    ),
    (
        1,
        "update t set r = null where id = 7",
        "update t set r = 'r7' where id = 7",
        "rows of public.t",
    ),
    // Schema, comments, roles, settings, databases.
    (
        1,
        "create index late on t (r)",
        "drop index late",
        "schema of",
    ),
    (
        2,
        "comment on table t is 'x'",
        "comment on table t is null",
        "COMMENT ON TABLE",
    ),
    (
        1,
        "alter role reader createdb",
        "alter role reader nocreatedb",
        "role reader",
    ),
    (
        2,
        "alter role reader set work_mem = '1MB'",
        "alter role reader reset all",
        "work_mem",
    ),
    (
        1,
        "create table extra ()",
        "drop table extra",
        "tables of synapsedb",
    ),
    (
        1,
        "create database more",
        "drop database more",
        "database more",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_planted_difference_is_found() {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    assert_eq!(cluster.compare_nodes(NOW).await, Ok(()));
    everywhere(
        &cluster,
        "create table t (id int primary key, r text, v float8);
         create table keyless (a int); insert into keyless values (1), (1), (2);
         insert into t select i, 'r' || i, i / 3.0 from generate_series(1, 1000) i;
         create materialized view m as select count(*) from t;
         create role reader",
    )
    .await;
    everywhere(&cluster, "create database \"Other db\"").await;
    assert_eq!(cluster.compare_nodes(NOW).await, Ok(()));
    for (node, sql, undo, sign) in PLANTED {
        let client = cluster.node(node).await;
        client.batch_execute(sql).await.expect(sql);
        let found = cluster.compare_nodes(NOW).await.expect_err(sql);
        assert!(found.contains(sign), "{sql}: {found}");
        client.batch_execute(undo).await.expect(undo);
        let left = cluster.compare_nodes(NOW).await;
        assert_eq!(left, Ok(()), "after {undo}");
    }
    let other = cluster.node_db(2, "Other db").await;
    other
        .batch_execute("create table elsewhere (a int)")
        .await
        .expect("made");
    let found = cluster
        .compare_nodes(NOW)
        .await
        .expect_err("another database");
    assert!(found.contains("Other db"), "{found}");
    // A database that only the first has, and a node that is down, are differences as well.
    let first = cluster.node(0).await;
    first
        .batch_execute("create database first_only")
        .await
        .expect("made");
    let found = cluster
        .compare_nodes(NOW)
        .await
        .expect_err("a database more");
    assert!(found.contains("first_only"), "{found}");
    tokio::task::block_in_place(|| cluster.server(1).kill9());
    let found = cluster
        .compare_nodes(NOW)
        .await
        .expect_err("a node is down");
    assert!(found.contains("node2: "), "{found}");
}
