//! Nobody but the event triggers writes `ddl_log`, and nobody without the secret runs anything as another.

use synapsedb::node::schema;

use crate::house::{ann, code, log, run, servers};

#[tokio::test]
async fn ddl_log_cannot_be_written_read_or_silenced_by_hand() {
    let cluster = servers(1).await;
    let root = cluster.node(0).await;
    let ann = ann(&cluster).await;
    let values = "(role, tag, ordinal, nested, query, settings, command, detail, logged_at) \
                  values (current_user, 'x', 1, false, null, '{}', 'drop table t', null, now())";
    run(&ann, &format!(
        "create function \"synapsedb.on_ddl_end()\"() returns void language plpgsql as \
         $$ begin insert into synapsedb.ddl_log {values}; end $$; \
         create function on_ddl_end() returns void language plpgsql as $$ \
         declare v_tag text = 'x'; v_ordinal int = 1; v_nested bool = false; v_query text; v_settings jsonb = '{{}}'; v_command text = 'x'; v_detail jsonb; \
         begin insert into synapsedb.ddl_log (role, tag, ordinal, nested, query, settings, command, detail, logged_at) \
           values (current_user, v_tag, v_ordinal, v_nested, v_query, v_settings, v_command, v_detail, clock_timestamp()); end $$"
    )).await;
    let before = log(&root, 0).await.len();
    for sql in [
        &format!("insert into synapsedb.ddl_log {values}"),
        "select \"synapsedb.on_ddl_end()\"()",
        "select on_ddl_end()",
        "set search_path = public, synapsedb; select public.on_ddl_end()",
        "select * from synapsedb.ddl_log",
        "delete from synapsedb.ddl_log",
        "truncate synapsedb.ddl_log",
        "select * from synapsedb.node_key",
        "select synapsedb.signature('extension', '1')",
        "select synapsedb.remember('extension', '1')",
        "do $$ begin perform synapsedb.remember('extension', '1'); end $$",
        "do $$ begin perform synapsedb.mend('{1}', 'ALTER TABLE', ''); end $$",
        "do $$ begin perform synapsedb.empty_table(1); end $$",
        "do $$ begin perform synapsedb.pause_table(1, 'ann', true); end $$",
        "do $$ begin perform synapsedb.send_contents('pg_authid'::regclass); end $$",
        "select synapsedb.open_view('public', 'v')",
        "select synapsedb.seal_view('public', 'v')",
        "insert into synapsedb.view_rows (lines) values (null)",
        "select synapsedb.make_runner('synapsedb', 'x')",
        "select synapsedb.follow_up('{}')",
        "select synapsedb.prune_ddl_log('0')",
        "create function synapsedb.mine() returns int language sql as 'select 1'",
        "grant bob to ann; grant all on schema synapsedb to ann; create table synapsedb.x (a int)",
    ] {
        assert_eq!(code(&ann, sql).await, "42501", "{sql}");
        run(&ann, "rollback; reset search_path").await;
    }
    assert_eq!(log(&root, 0).await.len(), before);
    // What the triggers remember in settings holds only with their signature.
    run(
        &ann,
        "set synapsedb.extension = '1'; create table seen (a int primary key)",
    )
    .await;
    run(&ann, "do $$ begin perform set_config('synapsedb.drops', 'temporary', false); drop table seen; end $$").await;
    let tags: Vec<String> = log(&root, before)
        .await
        .into_iter()
        .map(|row| row.tag)
        .collect();
    assert_eq!(tags, ["CREATE TABLE", "DROP TABLE"]);
}

#[tokio::test]
async fn a_runner_opens_only_to_the_secret_and_never_gives_more_than_its_role() {
    let cluster = servers(1).await;
    let root = cluster.node(0).await;
    run(
        &root,
        "alter role synapsedb_applier password 'x'; set session_replication_role = replica",
    )
    .await;
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"; // Of "secret".
    for role in ["ann", "synapsedb"] {
        root.execute(schema::MAKE_RUNNER, &[&role, &hash])
            .await
            .expect("a superuser may");
    }
    let applier = crate::support::cluster::connect(
        cluster.node_port(0),
        "synapsedb_applier",
        "x",
        "synapsedb",
    )
    .await;
    let applier = applier.expect("the applier may log in");
    run(&applier, "set session_replication_role = replica").await;
    let call = |role: &str, secret: &str, command: &str| {
        format!(
            "select synapsedb.run_as_{role}({secret}, $c${command}$c$, '{{\"search_path\": \"public\"}}')"
        )
    };
    run(
        &applier,
        &call("ann", "'secret'", "create table made (a int)"),
    )
    .await;
    let owner = root
        .query_one(
            "select tableowner::text from pg_tables where tablename = 'made'",
            &[],
        )
        .await;
    assert_eq!(owner.expect("it is there").get::<_, String>(0), "ann");
    for (role, secret, command) in [
        ("synapsedb", "'wrong'", "alter role ann superuser"),
        ("synapsedb", "null", "alter role ann superuser"),
        ("ann", "'secret'", "alter role ann superuser"),
        ("ann", "'secret'", "reset role"),
        ("ann", "'secret'", "set role synapsedb_applier"),
        ("ann", "'secret'", "set session authorization default"),
        (
            "ann",
            "'secret'",
            "do $$ begin execute 'reset role'; execute 'alter role ann superuser'; end $$",
        ),
        ("ann", "'secret'", "set session_replication_role = origin"),
        (
            "ann",
            "'secret'",
            "select synapsedb.run_as_synapsedb('secret', 'select 1', '{}')",
        ),
    ] {
        let code = code(&applier, &call(role, secret, command)).await;
        assert!(
            ["42501", "25001", "22023", "42601"].contains(&code.as_str()),
            "{command}: {code}"
        );
    }
    // The role cannot make its own runner run as the applier.
    let ann = ann(&cluster).await;
    let alter = "alter function synapsedb.run_as_ann(text, text, jsonb) security invoker";
    assert_eq!(code(&ann, alter).await, "42501");
    run(&root, alter).await;
    assert_eq!(
        code(&applier, &call("ann", "'secret'", "select 1")).await,
        "42501"
    );
    // Settings are back when the runner returns.
    run(
        &root,
        "alter function synapsedb.run_as_ann(text, text, jsonb) security definer",
    )
    .await;
    run(&applier, "set search_path = here; set timezone = 'UTC'").await;
    run(&applier, "select synapsedb.run_as_ann('secret', 'create table tokyo (at timestamptz default ''2020-01-01 00:00'')', \
                   '{\"search_path\": \"public\", \"TimeZone\": \"Asia/Tokyo\"}')").await;
    let row = applier.query_one("select current_setting('search_path'), current_setting('timezone'), \
        (select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = 'public.tokyo'::regclass)", &[]).await.expect("settings");
    assert_eq!(
        (row.get::<_, &str>(0), row.get::<_, &str>(1)),
        ("here", "UTC")
    );
    assert!(
        row.get::<_, &str>(2).contains("2019-12-31 15:00:00+00"),
        "{}",
        row.get::<_, &str>(2)
    );
}

#[tokio::test]
async fn the_proxy_logs_what_no_trigger_sees_by_its_secret_and_only_as_the_role_that_asks() {
    let cluster = servers(1).await;
    let root = cluster.node(0).await;
    let ann = ann(&cluster).await;
    let call = |secret: &str| {
        format!(
            "select synapsedb.log_command({secret}, 'CREATE ROLE', 'create role made', null, null)"
        )
    };
    // Before any secret is set none opens it.
    for secret in ["'secret'", "null", "''"] {
        assert_eq!(code(&ann, &call(secret)).await, "42501", "{secret}");
    }
    assert_eq!(
        code(&ann, "select synapsedb.set_log_hash('x')").await,
        "42501"
    );
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"; // Of "secret".
    run(&root, &format!("select synapsedb.set_log_hash('{hash}')")).await;
    for secret in ["'wrong'", "null", &format!("'{hash}'")] {
        assert_eq!(code(&ann, &call(secret)).await, "42501", "{secret}");
    }
    run(&ann, &call("'secret'")).await;
    run(&ann, &format!("begin; {}; rollback", call("'secret'"))).await;
    let rows = log(&root, 0).await;
    assert_eq!(rows.len(), 1, "a rollback takes its row back");
    assert_eq!(
        (rows[0].role.as_str(), rows[0].tag.as_str()),
        ("ann", "CREATE ROLE")
    );
    assert_eq!(rows[0].command.as_deref(), Some("create role made"));
}
