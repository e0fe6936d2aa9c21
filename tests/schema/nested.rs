//! DDL that functions, DO blocks and EXECUTE run: each command is logged with its own text, or refused.

use crate::house::{ann, code, command, fingerprint, log, replay, run, servers};

#[tokio::test]
async fn several_commands_of_one_execute_are_told_apart() {
    let cluster = servers(2).await;
    let (root, other) = (cluster.node(0).await, cluster.node(1).await);
    let ann = ann(&cluster).await;
    for sql in [
        // The first has no key: what is done about that is DDL in between.
        "do $$ begin execute 'create table a (x int); create table b (y int); create table c (z int primary key)'; end $$",
        "create function inner_one() returns void language plpgsql as $$ begin execute 'create table i1 (x int); create table i2 (x int)'; end $$",
        // Another function's DDL in between.
        "do $$ begin execute 'create table d (x int); select inner_one(); create table e (y int); drop table d; create view v as select 1 as one'; end $$",
        "do $$ begin for i in 1..2 loop execute 'create table f (x int); drop table f; create table if not exists g (x int)'; end loop; end $$",
        "do $$ begin begin execute 'create table h (x int); create table h (x int)'; exception when others then null; end; \
         execute 'create table h (x int); alter table h add y int'; end $$",
    ] {
        run(&ann, sql).await;
    }
    for row in &log(&root, 0).await {
        command(row, None);
    }
    replay(&root, &other).await;
    let (ours, theirs) = (fingerprint(&root).await, fingerprint(&other).await);
    assert_eq!(ours, theirs);
    assert!(ours.iter().any(|line| line.contains("i2")));
}

#[tokio::test]
async fn a_text_that_looks_like_a_stack_is_refused_and_others_are_cut_whole() {
    let cluster = servers(1).await;
    let root = cluster.node(0).await;
    let ann = ann(&cluster).await;
    run(&ann, "create function runs(text) returns void language plpgsql as $$ begin execute $1; end $$; \
               create function calls(text) returns void language plpgsql as $$ begin perform runs($1); end $$; \
               create function xml_runs(text) returns void language plpgsql as \
               $$ declare x xml; begin x := query_to_xml($1, true, false, ''); end $$").await;
    let before = log(&root, 0).await.len();
    for text in [
        "create view vctx as select 1 \"\nPL/pgSQL function x\"",
        "create view vctx as select 1 \"\nPL/pgSQL function runs(text) line 1 at EXECUTE\nSQL statement \"",
        "create view vctx as select 'x\"\nPL/pgSQL function runs(text) line 1 at EXECUTE\nSQL statement '",
        "create table vctx as select 'x\"\nPL/pgSQL function runs(text) line 1 at EXECUTE\nSQL statement '",
    ] {
        let text = text.replace('\'', "''").replace('\n', "\\n");
        for sql in [
            format!("do $x$ begin execute E'{text}'; end $x$"),
            format!("select runs(E'{text}')"),
            format!("select calls(E'{text}')"),
        ] {
            assert_eq!(code(&ann, &sql).await, "0A000", "{sql}");
        }
        // Inside what runs texts without a line of its own in the stack.
        let inner = format!("select runs(E'{text}')")
            .replace('\'', "''")
            .replace('\\', "\\\\");
        for sql in [
            format!("select query_to_xml(E'{inner}', true, false, '')"),
            format!("select xml_runs(E'{inner}')"),
        ] {
            assert_eq!(code(&ann, &sql).await, "0A000", "{sql}");
        }
    }
    assert_eq!(log(&root, 0).await.len(), before);
    for text in [
        "create view ok1 as select 'a\"' as \"b\nPL\", '\"\n' as c",
        "create view ok2 as select 1 as \"a\"",
        "create view ok3 as select 1 -- \"\nSQL , 2 as b",
        "create view ok4 as select 1 -- \"\n+ 1 as b",
        "comment on view ok1 is '\"'",
    ] {
        run(
            &ann,
            &format!("select calls(E'{}')", text.replace('\'', "''")),
        )
        .await;
        let row = log(&root, 0).await.pop().expect("logged");
        assert_eq!(command(&row, None), text);
    }
    run(&ann, "create function trig() returns trigger language plpgsql as $$ begin execute format('create table t%s (x int primary key)', new.a); return new; end $$; \
               create table set_off (a int primary key); create trigger t before insert on set_off for each row execute function trig(); \
               do $$ begin insert into set_off select calls_two from generate_series(1, 2) calls_two; end $$; \
               create procedure p(a int) language plpgsql as $$ begin commit; execute format('create table p%s (x int primary key)', a); end $$; \
               create function g(a int) returns int language plpgsql as $$ begin execute format('create table g%s (x int primary key)', a); return a; end $$; \
               create function h(a int) returns int language sql as 'select g(a)'").await;
    for sql in [
        "call p(1)",
        "do $$ begin call p(2); end $$",
        "do $$ declare x int := g(1); begin x := h(2); perform h(3); for x in select g(4) loop null; end loop; end $$",
        "select h(5)",
    ] {
        run(&ann, sql).await;
    }
}
