//! DDL that would give other values on each node, and DDL between rows, through the whole cluster: the
//! copies end equal (rules 13, 16, 20 and 21).

use crate::house::{code, run};
use crate::support::cluster::TestCluster;

/// Rows whose places in the file differ from the order of their keys, and a table of each kind.
const TABLES: &str = "
    create table keyed (id int primary key, v text, big text);
    create table keyless (a int, v text);
    create table wide (id int primary key, v text);
    create table parent (id int primary key, v text);
    create table kid (id int primary key, parent int references parent deferrable initially deferred);
    create table parts (id int, v text, primary key (id)) partition by range (id);
    create table parts1 partition of parts for values from (0) to (50);
    create table parts2 partition of parts for values from (50) to (1000);
    insert into keyed select i, 'v' || i, repeat(md5(i::text), 300) from generate_series(100, 1, -1) i;
    insert into keyless select i / 2, 'k' || i / 2 from generate_series(1, 60) i;
    insert into wide select i, 'w' || i from generate_series(1, 30) i;
    insert into parent select i, 'p' from generate_series(1, 30) i;
    insert into kid select i, i from generate_series(1, 30) i;
    insert into parts select i, 'x' from generate_series(1, 99) i;
    delete from keyed where id % 3 = 0; update keyed set v = v || '!' where id % 5 = 0; delete from keyless where a = 7";

/// Each in a Query of its own; the copies are compared after each.
const COMMANDS: &[&str] = &[
    // One stored value for all old rows.
    "alter table keyed add column at timestamptz not null default now()",
    "alter table parts add column at timestamptz default clock_timestamp(), add column who name default session_user",
    "create domain moment as timestamptz default now(); alter table wide add column m moment",
    // A value for each row.
    "alter table keyed add column u uuid default gen_random_uuid()",
    "alter table keyed add column n bigserial",
    "alter table keyed add column always bigint generated always as identity",
    "alter table keyless add column u uuid default gen_random_uuid()",
    "alter table keyless add column id bigserial primary key",
    "alter table parent add column u uuid not null unique default gen_random_uuid()",
    "alter table parent add column n bigint generated always as identity",
    "alter table parts add column r float8 default random()",
    "alter table wide alter column v type text using v || repeat(random()::text, 400)",
    "alter table wide alter column v type varchar(9000) using v, add column late timestamptz default now()",
    "begin; create table fresh (id int primary key, v text); insert into fresh select i, i::text from generate_series(1, 9) i; \
     alter table fresh add column u uuid default gen_random_uuid(); insert into fresh values (10, 'ten'); commit",
    "begin; create table family (id int primary key); insert into family values (1), (2); \
     create table member (f int references family); insert into member values (1); commit; \
     begin; alter table family add column u uuid default gen_random_uuid(); insert into family values (3); commit",
    // Made from queries, of temporary and of changing things.
    "create temp table source as select i, random() as r from generate_series(1, 20) i; \
     create table made as select * from source; select now() as at, * into made2 from source; insert into made values (0, 0)",
    "create unlogged table made3 as select random() as r from generate_series(1, 10)",
    "create unlogged table calm (id int primary key); insert into calm values (1); alter table calm set unlogged; \
     insert into calm values (2)",
    "do $$ declare n int := 3; begin create table made4 as select n as n, random() as r; insert into made4 values (4, 4); end $$",
    "create materialized view seen as select id, v from keyed; refresh materialized view seen",
    // DDL between rows.
    "begin; insert into keyless values (1000, 'x'); alter table keyless rename v to vv; insert into keyless (a, vv) values (1001, 'y'); \
     savepoint s; alter table keyless drop column vv; insert into keyless (a) values (1002); rollback to s; \
     update keyless set vv = 'z' where a = 1001; commit",
    "create type mood as enum ('a'); create table moods (m mood primary key); insert into moods values ('a')",
    "alter type mood add value 'b'",
    "insert into moods values ('b')",
    "alter table keyless drop constraint keyless_pkey; update keyless set vv = 'nokey' where a = 3; delete from keyless where a = 4",
    "create index concurrently on keyed (v)",
    "alter table parts detach partition parts2 concurrently",
    "insert into parts2 (id) values (500)",
    "truncate parent, kid",
    "drop table made, made2 cascade; create table made (a int primary key); insert into made values (1)",
];

/// Where a follower cannot follow, the commit waits: that is not to hang a test.
async fn within(work: impl Future<Output = ()>) {
    let patience = std::time::Duration::from_secs(60);
    tokio::time::timeout(patience, work)
        .await
        .expect("the followers follow");
}

#[tokio::test]
async fn values_that_differ_by_node_travel_as_rows() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    within(run(&client, TABLES)).await;
    cluster.assert_nodes_equal().await;
    for sql in COMMANDS {
        within(run(&client, sql)).await;
        if let Err(differences) = cluster
            .compare_nodes(std::time::Duration::from_secs(20))
            .await
        {
            panic!("{sql}\n{differences}\n{}", cluster.proxy_log_text());
        }
    }
    // What old rows hold was not disturbed: the first values, in the order of the rows, from 1.
    let row = client
        .query_one("select min(n), max(n), count(distinct n), count(distinct at), count(distinct u) from keyed", &[])
        .await
        .expect("a row");
    let rows = 100 - 33;
    assert_eq!(
        (
            row.get::<_, i64>(0),
            row.get::<_, i64>(1),
            row.get::<_, i64>(2)
        ),
        (1, rows, rows)
    );
    assert_eq!((row.get::<_, i64>(3), row.get::<_, i64>(4)), (1, rows));
}

#[tokio::test]
async fn an_extension_and_its_rows_are_everywhere() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    if cluster.has_pgvector() {
        run(&client, "create extension vector; create table items (id serial primary key, e vector(3)); \
                      insert into items (e) select array[i, i, i]::vector from generate_series(1, 5) i; \
                      create index on items using hnsw (e vector_l2_ops)").await;
        cluster.assert_nodes_equal().await;
        run(&client, "drop extension vector cascade").await;
        cluster.assert_nodes_equal().await;
    }
}

#[tokio::test]
async fn a_rewrite_runs_no_trigger_and_lends_nobody_rights() {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    for index in 0..cluster.nodes() {
        run(&cluster.node(index).await, "create role ann").await;
    }
    cluster.start_proxy().await;
    let client = cluster.client().await;
    run(&client, "grant all on schema public to ann; set session authorization ann; \
        create table t (id int primary key, v text); create table noticed (what text primary key); \
        insert into t select i from generate_series(1, 5) i; \
        create function notice() returns trigger language plpgsql as $$ begin insert into noticed values (tg_op || new.id || random()); return new; end $$; \
        create trigger n after insert or update on t for each row execute function notice(); \
        create function whoami(int) returns bool language plpgsql immutable as \
          $$ begin if current_user <> 'ann' then raise 'run as %', current_user; end if; return true; end $$; \
        alter table t add check (whoami(id)); alter table t force row level security; alter table t enable row level security; \
        create policy p on t using (id > 2)").await;
    run(
        &client,
        "alter table t add column u uuid default gen_random_uuid()",
    )
    .await;
    run(&client, "reset session authorization").await;
    cluster.assert_nodes_equal().await;
    let row = client
        .query_one("select (select count(*) from noticed), count(distinct u), \
            (select string_agg(tgenabled::text, '') from pg_trigger where tgrelid = 't'::regclass), \
            (select relforcerowsecurity from pg_class where oid = 't'::regclass) from t", &[])
        .await
        .expect("a row");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (0, 5));
    assert_eq!((row.get::<_, &str>(2), row.get::<_, bool>(3)), ("O", true));
    assert_eq!(
        code(&client, "select 1 from pg_temp.synapsedb_copy").await,
        "42P01"
    );
}
