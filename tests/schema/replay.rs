//! A second node becomes the same by what the first has logged, and all of it can be taken off again.

use crate::commands::COMMANDS;
use crate::house::{ann, fingerprint, replay, run, servers};

#[tokio::test]
async fn a_replayed_log_gives_the_same_definitions() {
    let cluster = servers(2).await;
    let (root, other) = (cluster.node(0).await, cluster.node(1).await);
    assert_eq!(fingerprint(&root).await, fingerprint(&other).await);
    let ann = ann(&cluster).await;
    for (who, sql, _) in COMMANDS {
        run(if *who == "ann" { &ann } else { &root }, sql).await;
    }
    replay(&root, &other).await;
    let (ours, theirs) = (fingerprint(&root).await, fingerprint(&other).await);
    for line in &ours {
        assert!(theirs.contains(line), "missing on the second node: {line}");
    }
    for line in &theirs {
        assert!(ours.contains(line), "only on the second node: {line}");
    }
    assert!(ours.len() > 100, "{}", ours.len());
}

#[tokio::test]
async fn the_fingerprint_finds_what_was_planted() {
    let cluster = servers(1).await;
    let root = cluster.node(0).await;
    run(&root, "create table t (id int primary key, v text); create sequence s; create function f() returns int language sql as 'select 1'; \
                create type e as enum ('a'); create schema x").await;
    let mut known = fingerprint(&root).await;
    for sql in [
        "alter table t alter column v set default 'x'",
        "alter table t alter column v set storage plain",
        "alter table t owner to bob",
        "grant select on t to eve",
        "comment on column t.v is 'c'",
        "create index on t (v)",
        "alter table t add constraint k check (id > 0) not valid",
        "alter table t validate constraint k",
        "create policy p on t",
        "alter table t replica identity full",
        "alter sequence s increment by 2",
        "create or replace function f() returns int language sql as 'select 2'",
        "alter function f() set work_mem = '1MB'",
        "alter type e add value 'b'",
        "alter default privileges grant select on tables to eve",
        "alter role eve set work_mem = '1MB'",
        "alter role eve password 'y'",
        "grant bob to eve",
        "alter database synapsedb connection limit 50",
        "drop schema x",
    ] {
        run(&root, sql).await;
        let now = fingerprint(&root).await;
        assert_ne!(known, now, "{sql}");
        known = now;
    }
}

#[tokio::test]
async fn everything_can_be_taken_off_again() {
    let cluster = servers(1).await;
    let root = cluster.node(0).await;
    run(&root, "create table t (a int)").await;
    run(&root, synapsedb::node::schema::TEARDOWN).await;
    run(&root, synapsedb::node::schema::TEARDOWN_ROLE).await;
    let left = root
        .query(
            "select evtname::text from pg_event_trigger union all select pubname from pg_publication \
             union all select nspname from pg_namespace where nspname = 'synapsedb' \
             union all select rolname from pg_roles where rolname = 'synapsedb_applier'",
            &[],
        )
        .await
        .expect("a superuser may");
    assert!(left.is_empty(), "{left:?}");
    run(&root, "drop table t").await;
}
