//! Each DDL command leaves its own line, and what cannot be replicated is refused (rules 16, 17, 19 to 21).

use crate::commands::COMMANDS;
use crate::house::{ann, code, command, log, run, servers};

#[tokio::test]
async fn each_command_leaves_its_line() {
    let cluster = servers(1).await;
    let root = cluster.node(0).await;
    let ann = ann(&cluster).await;
    let mut seen = 0;
    let mut faults = Vec::new();
    for (who, sql, expected) in COMMANDS {
        let client = if *who == "ann" { &ann } else { &root };
        run(client, sql).await;
        let rows = log(&root, seen).await;
        seen += rows.len();
        let lines: Vec<String> = rows.iter().map(crate::house::Logged::line).collect();
        let at_most: Vec<String> = lines.iter().map(|l| l.replace(" missing", "")).collect();
        if at_most != *expected {
            faults.push(format!(
                "{sql}\n  expected {expected:?}\n  logged   {lines:?}"
            ));
        }
        let mut last = None;
        for row in &rows {
            if row.detail["kind"] == "place" {
                continue;
            }
            if row.query.is_some() && !row.nested {
                last.clone_from(&row.query);
            }
            command(row, last.as_deref());
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[tokio::test]
async fn settings_and_stored_defaults_are_those_of_the_moment() {
    let cluster = servers(1).await;
    let root = cluster.node(0).await;
    let ann = ann(&cluster).await;
    run(
        &ann,
        "create table t (id int primary key); insert into t values (1)",
    )
    .await;
    run(&ann, "set search_path = \"$user\", public; set timezone = 'Asia/Tokyo'; set xmloption = document").await;
    run(
        &ann,
        "alter table t add column at timestamptz default now()",
    )
    .await;
    let row = log(&root, 1).await.remove(0);
    assert_eq!(row.settings["search_path"], "\"$user\", public");
    assert_eq!(row.settings["TimeZone"], "Asia/Tokyo");
    assert_eq!(row.settings["xmloption"], "document");
    assert_eq!(row.settings.as_object().map(serde_json::Map::len), Some(12));
    assert_eq!(row.detail["missing"][0][2], "at");
    // One that is the same everywhere needs nothing.
    run(&ann, "alter table t add column five int default 5").await;
    assert_eq!(log(&root, 2).await[0].detail, serde_json::Value::Null);
}

#[tokio::test]
async fn a_long_text_is_logged_once_in_a_transaction() {
    let cluster = servers(1).await;
    let root = cluster.node(0).await;
    let filler = "-".repeat(9000);
    let text = format!(
        "create table a (i int primary key); create table b (i int primary key); commit; create table c (i int primary key); --{filler}"
    );
    run(&root, &text).await;
    let rows = log(&root, 0).await;
    let there: Vec<bool> = rows.iter().map(|row| row.query.is_some()).collect();
    assert_eq!(there, [true, false, true]);
    assert!(command(&rows[1], rows[0].query.as_deref()).starts_with("create table b"));
}

#[tokio::test]
async fn what_cannot_be_replicated_is_refused() {
    let cluster = servers(1).await;
    let root = cluster.node(0).await;
    let ann = ann(&cluster).await;
    run(
        &ann,
        "create temp table tt (a int); create table t (a int primary key)",
    )
    .await;
    let before = log(&root, 0).await.len();
    for sql in [
        "create table l (like tt including all)",
        "create table l (like pg_temp.tt)",
        "create table l (a tt)",
        "create function l(tt) returns int language sql as 'select 1'",
        "grant select on t to session_user",
        "alter table t owner to session_user",
        "grant select on tt, t to bob",
    ] {
        assert_eq!(code(&ann, sql).await, "0A000", "{sql}");
    }
    assert_eq!(
        code(
            &root,
            "create subscription s connection 'host=/nowhere' publication p with (connect = false)"
        )
        .await,
        "0A000"
    );
    // Namesakes: which one ran is not known.
    run(&ann, "create function same() returns void language sql as 'create table same1 (a int primary key)'; \
               create function same(int) returns void language sql as 'create table same2 (a int primary key)'").await;
    assert_eq!(code(&ann, "select same()").await, "0A000", "namesakes");
    // A new column that is itself the only key, under a foreign key.
    run(&ann, "create table parent (u int unique); create table kid (u int references parent (u)); insert into parent values (1)").await;
    assert_eq!(
        code(
            &ann,
            "alter table parent add column id uuid primary key default gen_random_uuid()"
        )
        .await,
        "0A000"
    );
    assert_eq!(log(&root, 0).await.len(), before + 6);
}

#[tokio::test]
async fn nothing_is_logged_in_the_replica_role_nor_by_installing_again() {
    let cluster = servers(1).await;
    let root = cluster.node(0).await;
    run(&root, "set session_replication_role = replica; create table quiet (a int); reset session_replication_role").await;
    run(&root, synapsedb::node::schema::INSTALL).await;
    assert_eq!(log(&root, 0).await.len(), 0);
    run(&root, "drop table quiet").await;
    assert_eq!(log(&root, 0).await.len(), 1);
}

#[tokio::test]
async fn what_was_there_before_is_adopted() {
    let cluster = crate::support::cluster::TestCluster::builder()
        .nodes(1)
        .without_proxy()
        .start()
        .await;
    let root = cluster.node(0).await;
    run(&root, "create table keyless (a int); insert into keyless values (1); create unlogged table u (a int primary key); \
                insert into u values (1); create unlogged sequence s; create table t (a int primary key); \
                create function f() returns trigger language plpgsql as 'begin return new; end'; \
                create trigger always before insert on t for each row execute function f(); \
                alter table t enable always trigger always").await;
    for _ in 0..2 {
        run(&root, synapsedb::node::schema::INSTALL).await;
    }
    run(
        &root,
        "update keyless set a = 2; delete from keyless; update u set a = 2",
    )
    .await;
    let row = root
        .query_one("select (select string_agg(concat(relname, relpersistence, relreplident), ' ' order by relname) from pg_class \
                       where relname in ('keyless', 'u', 't', 's')), (select tgenabled::text from pg_trigger where tgname = 'always')", &[])
        .await
        .expect("a row");
    assert_eq!(row.get::<_, &str>(0), "keylesspf spn tpd upd");
    assert_eq!(row.get::<_, &str>(1), "O");
    assert_eq!(log(&root, 0).await.len(), 0);
}
