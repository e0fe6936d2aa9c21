//! What names stand for, at the moment when DDL changes it: code that comes under a known name is found out,
//! whether the snapshot of names has been read again yet or not.

use std::time::Duration;

use tokio_postgres::Client;

use crate::support::cluster::TestCluster;
use crate::tools::{ask, run, until};

/// A function that leaves the session alone, and under the same name one that does not.
const TAME: &str =
    "create or replace function known() returns int language sql immutable as 'select 1'";
const WILD: &str = "create or replace function known() returns int language plpgsql volatile as \
                    $$ begin perform set_config('work_mem', '5MB', false); return 2; end $$";

#[tokio::test(flavor = "multi_thread")]
async fn code_under_a_known_name_is_found_out_as_soon_as_its_commit_is_answered() {
    let mut cluster = TestCluster::builder()
        .config("[pool]\nmax_connections = 2")
        .start()
        .await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    run(&one, "create table t (a int)").await;

    // The commit waits long after it was decoded: what is read meanwhile does not show it.
    run(&one, TAME).await;
    settled(&cluster).await;
    cluster.server(1).pause();
    cluster.server(2).pause();
    let waits = async { run(&one, WILD).await };
    let go_on = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(ask(&two, "select known()").await, "1", "not visible yet");
        cluster.server(1).resume();
        cluster.server(2).resume();
    };
    tokio::join!(waits, go_on);
    for _ in 0..2 {
        assert_eq!(ask(&one, "select known()").await, "2");
        nothing_left(&cluster).await;
        run(&one, "reset work_mem").await;
        settled(&cluster).await;
    }

    // Right behind the answer, before anything can have been read.
    for _ in 0..5 {
        run(&one, TAME).await;
        settled(&cluster).await;
        run(&one, WILD).await;
        assert_eq!(ask(&one, "select known()").await, "2");
        nothing_left(&cluster).await;
        run(&one, "reset work_mem").await;
    }

    // A statement that was judged before the DDL and waits for its lock runs what the DDL brings.
    settled(&cluster).await;
    let trigger = "create function t_wild() returns trigger language plpgsql as \
                   $$ begin perform known(); return new; end $$; \
                   begin; create trigger t_wild before insert on t for each row execute function t_wild()";
    run(&one, trigger).await;
    settled(&cluster).await;
    let insert = async { run(&two, "insert into t values (1)").await };
    let commit = async {
        let node = cluster.node(0).await;
        let blocked = "select count(*) > 0 from pg_locks where not granted";
        until("the insert waits for the lock", || async {
            ask(&node, blocked).await == "t"
        })
        .await;
        run(&one, "commit").await;
    };
    tokio::join!(insert, commit);
    nothing_left(&cluster).await;
    assert_eq!(ask(&two, "show work_mem").await, "5MB");
    cluster.assert_nodes_equal().await;
}

/// On both connections.
async fn nothing_left(cluster: &TestCluster) {
    let (a, b) = (cluster.client().await, cluster.client().await);
    for client in [&a, &b] {
        run(client, "begin").await;
        assert_eq!(ask(client, "show work_mem").await, "4MB");
    }
    for client in [&a, &b] {
        run(client, "rollback").await;
    }
    gone(a).await;
    gone(b).await;
}

async fn gone(client: Client) {
    drop(client);
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Waits until the names have been read and are read no more.
async fn settled(cluster: &TestCluster) {
    let mut before = loads(cluster).await;
    loop {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let now = loads(cluster).await;
        if now == before {
            return;
        }
        before = now;
    }
}

async fn loads(cluster: &TestCluster) -> String {
    let (_, metrics) = crate::support::http::get(cluster.http_port(), "/metrics").await;
    let line = metrics
        .lines()
        .find(|line| line.starts_with("synapsedb_catalog_loads_total"));
    line.unwrap_or_default().to_owned()
}

/// What the catalog's query says of names as far as it decides where they are read.
#[tokio::test(flavor = "multi_thread")]
async fn the_tables_behind_a_name_and_types_with_other_oids_are_known() {
    let cluster = TestCluster::builder()
        .nodes(1)
        .without_proxy()
        .start()
        .await;
    let node = cluster.node(0).await;
    node.batch_execute(
        "create table base (a int); create table other (a int);
         create view v as select a from base where a in (select a from other); create view w as table v;
         create table parent (a int) partition by range (a);
         create table leaf partition of parent for values from (0) to (10);
         create table elder (a int); create table child () inherits (elder);
         create table secret (a int); alter table secret enable row level security;
         create policy p on secret using (a in (select a from other));
         create function asks() returns int stable language sql as 'select a from base';
         create view hidden as select asks() as a;
         create type mood as enum ('ok'); create domain small as int check (value < 10);
         create table moods (m mood); create table moodlists (m mood[]); create table smalls (s small);
         create function gives() returns mood immutable language sql as $$ select 'ok'::mood $$",
    )
    .await
    .expect("made");
    for (name, expected) in [
        ("base", "base"),
        ("v", "base other v"),
        ("w", "base other v w"),
        ("parent", "leaf parent"),
        ("elder", "child elder"),
        ("secret", "other secret"),
        ("hidden", "hidden anything"),
        ("moods", "moods elsewhere"),
        ("moodlists", "moodlists elsewhere"),
        ("smalls", "smalls"),
        ("asks", "anything"),
        ("gives", "anything elsewhere"),
        ("count", ""),
    ] {
        let sql = format!(
            "select anything, elsewhere, tables from ({}) known where name = '{name}' and kind <> 'foreign_type'",
            synapsedb::sql::catalog::LOAD_QUERY
        );
        let row = node.query_one(&sql, &[]).await.expect(name);
        let tables: Option<Vec<String>> = row.get(2);
        let mut found: Vec<String> = tables.unwrap_or_default();
        found = found.chunks_exact(2).map(|pair| pair[1].clone()).collect();
        found.sort_unstable();
        found.extend(row.get::<_, bool>(0).then(|| "anything".to_owned()));
        found.extend(row.get::<_, bool>(1).then(|| "elsewhere".to_owned()));
        assert_eq!(found.join(" "), expected, "{name}");
    }
}
