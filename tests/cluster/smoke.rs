//! Does it live? The main job in one test, short enough to run on every version of `PostgreSQL`.

use futures_util::SinkExt;

use crate::support::cluster::TestCluster;

#[tokio::test(flavor = "multi_thread")]
async fn smoke_writes_ddl_copy_and_a_killed_proxy_end_with_equal_nodes() {
    let mut cluster = TestCluster::start().await;
    let client = cluster.client().await;
    client
        .batch_execute(
            "create table items (id bigint generated always as identity primary key, name text, at timestamptz default now());
             create table keyless (a int, b text);
             create function twice(int) returns int language sql as 'select $1 * 2';
             create index on items (name)",
        )
        .await
        .expect("ddl");
    client
        .batch_execute(
            "insert into items (name) select 'item ' || i from generate_series(1, 500) i;
             insert into keyless select i % 10, md5(random()::text) from generate_series(1, 100) i;
             update items set name = name || ' changed' where id % 3 = 0;
             delete from items where id % 50 = twice(3)",
        )
        .await
        .expect("writes");
    let rows = client
        .query("select name from items where id = $1", &[&3_i64])
        .await
        .expect("read");
    assert_eq!(rows[0].get::<_, &str>(0), "item 3 changed");
    if cluster.has_pgvector() {
        client
            .batch_execute(
                "create extension vector; create table vectors (id int primary key, v vector(3));
                 insert into vectors select i, array[i, i * 2, random()]::vector from generate_series(1, 50) i",
            )
            .await
            .expect("pgvector");
        // What may run unknown code costs a look at the session after each transaction.
        let index = "create index on vectors using hnsw (v vector_l2_ops)";
        client.batch_execute(index).await.expect("an index");
        let sql = format!(
            "select kind, name from ({}) known where hides and (kind = 'implicit' or name = 'vectors')",
            synapsedb::sql::catalog::LOAD_QUERY
        );
        let suspects = cluster.node(0).await.query(&sql, &[]).await.expect("read");
        assert!(suspects.is_empty(), "pgvector is taken for harmful");
    }
    let sink = client
        .copy_in("copy keyless from stdin")
        .await
        .expect("copy");
    let mut sink = std::pin::pin!(sink);
    let lines: Vec<String> = (0..1000).map(|i| format!("{i}\tline {i}\n")).collect();
    let data = lines.concat();
    sink.send(bytes::Bytes::from(data)).await.expect("data");
    assert_eq!(sink.as_mut().finish().await.expect("copied"), 1000);
    cluster.assert_nodes_equal().await;

    cluster.restart_proxy().await;
    let client = cluster.client().await;
    let row = client
        .query_one("select count(*) from items", &[])
        .await
        .expect("read");
    assert_eq!(row.get::<_, i64>(0), 490);
    client
        .batch_execute("alter table items add column n int default 7; truncate keyless")
        .await
        .expect("goes on");
    cluster.assert_nodes_equal().await;
}
