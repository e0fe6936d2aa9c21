//! REPLICATION's rules on applying, 7 to 14, each on real servers.

use std::time::Duration;

use crate::support::cluster::TestCluster;
use crate::tools::{
    Hold, PATIENCE, applier_pid, ask, in_the_background, rows, run, still_waits, until,
    until_status,
};
use synapsedb::cli::demo::server::DATABASE;

#[tokio::test(flavor = "multi_thread")]
async fn rule_7_appliers_ended_at_any_moment_lose_and_double_nothing() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(&client, "create table keyless (a int, b float8); create table keyed (a int primary key, n int default 0)").await;
    let writes = tokio::spawn(async move {
        for n in 0..200 {
            let sql = format!(
                "insert into keyless values ({n}, random()); insert into keyed values ({n}); \
                 update keyed set n = n + 1 where a > {n} - 5; delete from keyless where a = {n} - 20"
            );
            run(&client, &sql).await;
        }
    });
    let mut ended = 0;
    while !writes.is_finished() {
        for at in [1, 2] {
            let node = cluster.node(at).await;
            if let Some(pid) = applier_pid(&node).await {
                ask(&node, &format!("select pg_terminate_backend({pid})")).await;
                ended += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    writes.await.expect("every write is acknowledged");
    assert!(ended > 5, "only {ended} appliers were ended");
    cluster.assert_nodes_equal().await;
    assert!(!cluster.proxy_log_text().contains("fenced"));
}

/// An applier that is ended after it set its place and before it commits leaves its origin ahead of its rows.
#[tokio::test(flavor = "multi_thread")]
async fn rule_7_an_origin_that_ran_ahead_of_the_rows_skips_nothing() {
    let mut cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(&client, "create table t (a int primary key)").await;
    cluster.assert_nodes_equal().await;
    cluster.kill_proxy();
    let node = cluster.node(1).await;
    while applier_pid(&node).await.is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let ahead = "set synchronous_commit = local; \
                 select pg_replication_origin_advance(roname, 'FFFF/0') from pg_replication_origin \
                  where roname ~ '_synapsedb$'";
    run(&node, ahead).await;
    cluster.restart_proxy().await;
    let client = cluster.client().await;
    for n in 0..20 {
        run(&client, &format!("insert into t values ({n})")).await;
    }
    cluster.assert_nodes_equal().await;
}

/// What a slot of the follower's own would send: the marks, as (epoch, place) in order.
async fn marks(node: &tokio_postgres::Client, slot: &str) -> Vec<String> {
    let sql = format!(
        "select substring(convert_from(data, 'LATIN1') from 'synapsedb unit.{{5}}(\\d+/[0-9A-F]+/[0-9A-F]+)')
           from pg_logical_slot_peek_binary_changes('{slot}', null, null, 'proto_version', '1',
                'publication_names', 'synapsedb', 'messages', 'true')
          where get_byte(data, 0) = ascii('M')"
    );
    // NUL bytes can't be text: they are taken out first.
    let sql = sql.replace(
        "convert_from(data, 'LATIN1')",
        "convert_from(decode(replace(encode(data, 'hex'), '00', '01'), 'hex'), 'LATIN1')",
    );
    rows(node, &sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_8_to_10_each_unit_is_marked_ddl_stands_alone_and_runs_of_inserts_are_copied() {
    let cluster = TestCluster::builder()
        .setting("log_statement", "all")
        .start()
        .await;
    let client = cluster.client().await;
    run(
        &client,
        "create table t (id int primary key, v text); create type mood as enum ('a')",
    )
    .await;
    cluster.assert_nodes_equal().await;
    let follower = cluster.node(1).await;
    let hold = Hold::table(&cluster, 1, DATABASE, "t").await;
    run(&client, "insert into t values (0, 'held')").await;
    // Made while the applier stands, so that many units are merged behind it.
    let mut last = String::new();
    for n in 1..=30 {
        run(&client, &format!("insert into t values ({n}, 'x')")).await;
        if n % 10 == 0 {
            // In one transaction this pair fails: a unit with DDL is never merged with another.
            let value = format!("v{n}");
            run(&client, &format!("alter type mood add value '{value}'")).await;
            run(&client, &format!("create table m{n} (m mood default '{value}'); insert into m{n} values (default)")).await;
            last = value;
        }
    }
    run(
        &client,
        "insert into t select g, 'run ' || g from generate_series(100, 200) g",
    )
    .await;
    hold.release().await;
    cluster.assert_nodes_equal().await;
    assert_eq!(ask(&follower, "select m::text from m30").await, last);
    let log = std::fs::read_to_string(cluster.server_ref(1).log()).unwrap_or_default();
    let folder = cluster.server_ref(1).data().join("log");
    let more = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let log = more.fold(log, |all, file| {
        all + &std::fs::read_to_string(file.path()).unwrap_or_default()
    });
    assert!(
        log.contains("copy public.t (id, v) from stdin"),
        "no COPY in the follower's log"
    );

    // The follower's own log can be cut at each unit, and its ddl_log is the writer's.
    run(
        &follower,
        "select pg_create_logical_replication_slot('peek', 'pgoutput')",
    )
    .await;
    for n in 1000..1020 {
        run(&client, &format!("begin; insert into t values ({n}, 'marked'); update t set v = 'again' where id = {n}; commit")).await;
    }
    run(&client, "create table marked (a int)").await;
    cluster.assert_nodes_equal().await;
    let marks = marks(&follower, "peek").await;
    assert_eq!(marks.len(), 21, "{marks:?}");
    let mut sorted = marks.clone();
    sorted.sort_by_key(|mark| {
        mark.split('/')
            .map(|part| u64::from_str_radix(part, 16).unwrap())
            .collect::<Vec<_>>()
    });
    sorted.dedup();
    assert_eq!(sorted, marks, "in order, each once");
    run(&follower, "select pg_drop_replication_slot('peek')").await;
    let logged =
        "select role, tag, ordinal, query, command from synapsedb.ddl_log order by logged_at";
    let writer = cluster.node(0).await;
    assert_eq!(rows(&follower, logged).await, rows(&writer, logged).await);
}

/// What mallory's functions try when a row of hers is applied; each attempt alone, its outcome in the server's log.
const ESCALATE: &str = "
create function evil(v int) returns boolean language plpgsql as $f$
declare
  attempt text;
  context text;
begin
  raise log 'evil runs as % in a session of %', current_user, session_user;
  foreach attempt in array array[
      'alter role mallory superuser', 'create role planted superuser', 'grant pg_write_all_data to mallory',
      'reset role', 'set session authorization synapsedb', 'set role synapsedb',
      'update public.precious set v = ''stolen''', 'insert into public.precious values (''stolen'')',
      'select synapsedb.make_runner(''synapsedb'', ''00'')',
      'select synapsedb.run_as_synapsedb(''x'', ''alter role mallory superuser'', ''{}''::jsonb)',
      'insert into synapsedb.ddl_log values (''synapsedb'', ''ALTER ROLE'', 1, false, ''alter role mallory superuser'', ''{}'', null, null, now())',
      'deallocate all',
      'prepare mark as select 1', 'prepare place as select $1, $2', 'prepare facts as select 1', 'prepare r1 as select 1',
      'select pg_replication_origin_xact_setup(''F/0'', now())', 'select pg_replication_origin_session_reset()',
      'set search_path = mallory_s, pg_catalog'] loop
    begin
      -- On the writer it would only spoil its own session.
      if current_setting('session_replication_role') = 'replica' then
        execute attempt;
        raise log 'evil may %', attempt;
      end if;
    exception when others then null;
    end;
  end loop;
  begin
    raise exception 'x';
  exception when others then
    get stacked diagnostics context = pg_exception_context;
    raise log 'evil sees %', context;
  end;
  for attempt in select s.statement from pg_prepared_statements s loop
    raise log 'evil reads %', attempt;
  end loop;
  return true;
end $f$;
create function evil_text(v text) returns boolean language sql as 'select evil(1)';
create function evil_index(v int) returns int immutable language plpgsql as 'begin perform evil(v); return v; end';
create domain evil_domain as text check (evil_text(value));
create table checked (id int primary key, v int check (evil(v)));
create table indexed (id int primary key, v int); create index on indexed (evil_index(v));
create table made (id int primary key, v int, w int generated always as (evil_index(v)) stored);
create table typed (id int, v evil_domain);
create table typed_key (v evil_domain primary key, n int);
create table mixed_parts (id int check (evil(id)), v int) partition by list (id);
create table mixed_part partition of mixed_parts default;
create domain evil_elements as int[] check (evil(value[1]));
create type evil_pair as (a int, b evil_domain);
create table nested (id int, e evil_elements, p evil_pair, ps evil_pair[]);
";

#[tokio::test(flavor = "multi_thread")]
async fn rule_11_code_that_a_row_sets_off_has_no_more_rights_than_its_owner() {
    let cluster = TestCluster::start().await;
    let admin = cluster.client().await;
    let verifier = mallory_everywhere(&cluster).await;
    assert!(verifier.starts_with("SCRAM-SHA-256"));
    run(
        &admin,
        "grant all on schema public to mallory; create schema mallory_s authorization mallory; create table precious (v text); insert into precious values ('safe')",
    )
    .await;
    let mallory = cluster.client_as("mallory", "mallory", DATABASE).await;
    run(&mallory, ESCALATE).await;
    run(
        &mallory,
        "insert into checked select g, g from generate_series(1, 6) g; update checked set v = 9 where id = 1; update checked set id = 100 where id = 2; delete from checked where id = 3;
         insert into indexed values (1, 1), (2, 2); update indexed set v = 3; delete from indexed where id = 2;
         insert into made values (1, 1), (2, 2); update made set v = 5; delete from made where id = 1;
         insert into typed values (1, 'a'), (1, 'a'), (2, 'b'); update typed set v = 'c' where id = 2; delete from typed where ctid = '(0,1)';
         insert into typed_key values ('a', 1), ('b', 2); update typed_key set n = 3; delete from typed_key where v = 'b';
         insert into mixed_parts values (1, 1); update mixed_parts set v = 2; delete from mixed_parts;
         insert into nested values (1, '{1}', '(1,x)', '{\"(2,y)\"}'); update nested set id = 2; delete from nested;
         begin; create table mine (a int check (evil(a))); insert into mine values (1); insert into checked values (50, 1);
         alter table mine add b int; insert into mine values (2, 2); insert into checked values (51, 1); commit;
         truncate checked",
    )
    .await;
    // Afterwards the appliers must still be themselves.
    run(
        &admin,
        "insert into precious values ('also safe'); update precious set v = v || '.'",
    )
    .await;
    cluster.assert_nodes_equal().await;
    for at in 0..3 {
        let node = cluster.node(at).await;
        let roles = ask(&node, "select count(*) from pg_roles where rolname = 'planted' or (rolname = 'mallory' and rolsuper)").await;
        assert_eq!(roles, "0", "node {at}");
        assert_eq!(
            rows(&node, "select v from precious order by 1").await,
            ["also safe.", "safe."]
        );
        let log = server_log(&cluster, at);
        assert!(
            at == 0 || log.contains("evil runs as mallory"),
            "node {at}: it never ran"
        );
        for line in log.lines().filter(|line| line.contains("evil runs as")) {
            assert!(line.contains("evil runs as mallory"), "node {at}: {line}");
        }
        for line in log.lines().filter(|line| line.contains("evil may ")) {
            let harmless = [
                "deallocate all",
                "prepare ",
                "reset role",
                "set search_path",
                "grant pg_write",
                "set role",
            ];
            assert!(
                harmless.iter().any(|known| line.contains(known)),
                "node {at}: {line}"
            );
            assert!(
                !line.contains("evil may grant") && !line.contains("may set role"),
                "node {at}: {line}"
            );
        }
    }
    assert!(
        !cluster.proxy_log_text().contains("fenced"),
        "{}",
        cluster.proxy_log_text()
    );
}

/// Makes the role on each node, with the same verifier.
async fn mallory_everywhere(cluster: &TestCluster) -> String {
    let mut password = "mallory".to_owned();
    for at in 0..3 {
        let node = cluster.node(at).await;
        run(
            &node,
            &format!(
                "set synchronous_commit = local; create role mallory login password '{password}'"
            ),
        )
        .await;
        password = ask(
            &node,
            "select rolpassword from pg_authid where rolname = 'mallory'",
        )
        .await;
    }
    password
}

/// What a server has logged, wherever it logs to.
pub fn server_log(cluster: &TestCluster, at: usize) -> String {
    let server = cluster.server_ref(at);
    let mut text = std::fs::read(server.log()).unwrap_or_default();
    for file in std::fs::read_dir(server.data().join("log"))
        .into_iter()
        .flatten()
        .flatten()
    {
        text.extend(std::fs::read(file.path()).unwrap_or_default());
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_12_hostile_settings_of_roles_and_databases_change_no_value() {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    let hostile = [
        "datestyle = 'SQL, DMY'",
        "intervalstyle = 'sql_standard'",
        "extra_float_digits = -15",
        "bytea_output = 'escape'",
        "timezone = 'Asia/Kolkata'",
        "statement_timeout = '300ms'",
        "lock_timeout = '300ms'",
        "idle_in_transaction_session_timeout = '300ms'",
        "default_transaction_read_only = on",
        "xmloption = 'document'",
        "default_transaction_isolation = 'serializable'",
        "row_security = off",
        "quote_all_identifiers = on",
        "array_nulls = off",
        "standard_conforming_strings = off",
        "backslash_quote = off",
        "escape_string_warning = off",
        "transform_null_equals = on",
        "check_function_bodies = on",
        "session_replication_role = origin",
        "search_path = 'evil, public'",
        "client_min_messages = 'error'",
        "default_transaction_deferrable = on",
    ];
    for at in 0..3 {
        let node = cluster.node(at).await;
        run(&node, "create schema evil; create function evil.now() returns timestamptz language sql as 'select ''epoch''::timestamptz'").await;
        for setting in hostile {
            run(&node, &format!("alter database synapsedb set {setting}")).await;
            run(&node, &format!("alter role synapsedb set {setting}")).await;
        }
        run(&node, "create role synapsedb_applier").await;
        for setting in hostile {
            run(&node, &format!("alter role synapsedb_applier set {setting}; alter role synapsedb_applier in database synapsedb set {setting}")).await;
        }
    }
    cluster.start_proxy().await;
    let client = cluster.client().await;
    run(
        &client,
        "set default_transaction_read_only = off; set statement_timeout = 0; set idle_in_transaction_session_timeout = 0; set standard_conforming_strings = on; set lock_timeout = 0",
    )
    .await;
    run(
        &client,
        "create table public.t (id int primary key, d date, at timestamptz, i interval, f float8, f4 float4, b bytea, a int[], m money, s text);
         create table public.keyless (d date, at timestamptz, i interval, f float8, b bytea, s text)",
    )
    .await;
    run(
        &client,
        "insert into public.t select g, date '2003-02-01' + g, timestamptz '2003-02-01 12:34:56.789+00', interval '1 year -2 months 3 days -04:05:06', pi() * g, 1/3.0, '\\x5c00ff', array[1, null], 1.5, E'a\\\\b''\\n' from generate_series(1, 10) g;
         insert into public.keyless select d, at, i, f, b, s from public.t;
         update public.keyless set f = -f where d > '2003-02-05'; delete from public.keyless where f > 10;
         update public.t set d = d + 1, i = i * 2, f = f / 7 where id > 3",
    )
    .await;
    run(&client, "set datestyle = 'ISO, MDY'; set timezone = 'America/New_York'; create table public.defaults (a int, d date default '01/02/2003', at timestamptz default '2003-01-02 00:00'); insert into public.defaults values (1)").await;
    // Longer than the hostile timeouts.
    let holds = [
        Hold::table(&cluster, 1, DATABASE, "public.t").await,
        Hold::table(&cluster, 2, DATABASE, "public.t").await,
    ];
    let mut waits = tokio::spawn(async move {
        client
            .batch_execute("update public.t set f = 0 where id = 1")
            .await
    });
    assert!(still_waits(&mut waits).await);
    for hold in holds {
        hold.release().await;
    }
    waits.await.expect("no panic").expect("goes on");
    cluster.assert_nodes_equal().await;
    let log = cluster.proxy_log_text();
    assert!(
        !log.contains("broke off") && !log.contains("fenced"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_13_values_keys_and_triggers_that_other_appliers_get_wrong() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    for sql in VALUES {
        let done = tokio::time::timeout(PATIENCE, run(&client, sql)).await;
        assert!(done.is_ok(), "{sql}\n{}", cluster.proxy_log_text());
    }
    cluster.assert_nodes_equal().await;
    assert!(!cluster.proxy_log_text().contains("fenced"));
}

/// Each a family of its own.
const VALUES: [&str; 12] = [
    // Large values left alone, in SET, in the key's move and in a whole-row identity.
    "create table big (id int primary key, n int, v text, w text); alter table big alter v set storage external, alter w set storage external;
     insert into big select g, g, repeat('v', 5000), repeat('w', 9000) from generate_series(1, 5) g;
     update big set n = n + 1; update big set id = id + 10, n = 0 where id < 3; update big set v = 'short' where id = 4; delete from big where id = 5;
     create table big_keyless (n int, v text); alter table big_keyless alter v set storage external;
     insert into big_keyless select g % 2, repeat('v', 5000) from generate_series(1, 6) g;
     update big_keyless set n = 7 where ctid = '(0,1)'; delete from big_keyless where ctid = '(0,2)'",
    // Identity columns.
    "create table ident (id int generated always as identity primary key, v text);
     insert into ident (v) values ('a'), ('b'), ('c'); insert into ident overriding system value values (50, 'x');
     update ident set id = default where v = 'a'; update ident set v = 'bb' where v = 'b'; update ident set id = default, v = 'cc' where v = 'c';
     create table ident_aside (k int primary key, id int generated always as identity, v text);
     insert into ident_aside (k) values (1), (2); update ident_aside set v = repeat('z', 3000); update ident_aside set id = default where k = 1; update ident_aside set k = 9 where k = 2;
     create table ident_keyless (id int generated always as identity, v text); insert into ident_keyless (v) values ('a'), ('a');
     update ident_keyless set v = 'b'; update ident_keyless set id = default where id = 1; delete from ident_keyless where id = 2",
    // Generated columns, one of them in the key, one in a row that only its image finds.
    "create table gen (a int, b int generated always as (a * 2) stored primary key, c text); insert into gen (a) values (1), (2); update gen set a = 3 where a = 1; update gen set c = 'x'; delete from gen where a = 2;
     create table gen_keyless (a int, b int generated always as (a * 2) stored); insert into gen_keyless values (1), (1), (2); update gen_keyless set a = 5 where ctid = '(0,1)'; delete from gen_keyless where a = 2;
     create table gen_only (b int generated always as (7) stored); insert into gen_only default values; insert into gen_only default values; delete from gen_only where ctid = '(0,1)'",
    // No key at all, with what has no equality and what is equal without being the same.
    "create table k (j json, p point, f float8, n numeric, b box, c char(5), v text);
     insert into k values ('{\"a\": 1}', '(1,2)', '-0', '1.0', '(1,1),(0,0)', 'ab', null), ('{\"a\":1}', '(1,2)', '0', '1.00', '(1,1),(0,0)', 'ab ', ''), ('{\"a\": 1}', '(1,2)', 'NaN', 'NaN', null, null, null);
     insert into k select * from k; update k set v = 'neg' where f::text = '-0' and ctid = (select min(ctid) from k); update k set n = 2 where n::text = '1.00'; delete from k where ctid = (select max(ctid) from k); delete from k where f::text = '-0'",
    "create table empty_row (); insert into empty_row default values; insert into empty_row default values; delete from empty_row where ctid = '(0,1)'",
    // Deferrable keys, a key dropped, a key by index, a key made later.
    "create table dk (id int primary key deferrable initially deferred, u int unique deferrable); insert into dk select g, g from generate_series(1, 5) g;
     begin; update dk set id = id + 1, u = 6 - u; update dk set u = u + 10 where id = 3; delete from dk where id = 6; commit;
     create table dropped (id int primary key, v text); insert into dropped values (1, 'a'), (2, 'b'); alter table dropped drop constraint dropped_pkey; update dropped set v = 'c' where id = 1; insert into dropped values (1, 'c'); delete from dropped where ctid = '(0,1)' or ctid = '(0,2)';
     create table by_index (a int not null, b text not null, v text); create unique index by_index_key on by_index (b, a); alter table by_index replica identity using index by_index_key; insert into by_index values (1, 'x', 'v'), (2, 'y', 'w'); update by_index set v = 'z' where a = 1; update by_index set b = 'q' where a = 2; delete from by_index where a = 1;
     drop index by_index_key; update by_index set v = 'after' where a = 2; alter table by_index add primary key (a); update by_index set v = 'keyed' where a = 2",
    // Triggers that would fire twice, and rules.
    "create table src (id int primary key, v int); create table dst (id int, v int, r float8 default random());
     create function also() returns trigger language plpgsql as 'begin insert into dst values (new.id, new.v); return new; end';
     create trigger a_always after insert on src for each row execute function also(); create trigger b_replica after insert or update on src for each row execute function also();
     alter table src enable always trigger a_always; alter table src enable replica trigger b_replica;
     insert into src values (1, 1), (2, 2); update src set v = 3; insert into src select g, g from generate_series(10, 20) g;
     create function twist() returns trigger language plpgsql as 'begin new.v := new.v + 1; return new; end';
     create trigger c_twist before insert or update on src for each row execute function twist(); alter table src enable always trigger c_twist;
     insert into src values (3, 3); update src set v = 10 where id = 1",
    "create table ruled (id int primary key, v int); create table ruled_log (id int, r float8 default random()); create rule also as on insert to ruled do also insert into ruled_log (id) values (new.id);
     insert into ruled values (1, 1); create view seen as select * from ruled; create rule through as on update to seen do instead update ruled set v = new.v where id = old.id; update seen set v = 5 where id = 1",
    // Partitions of other shapes, rows that move, sub-partitions, attach and detach, truncate of all.
    "create table p (id int, r int, v text) partition by range (r); create table p1 partition of p for values from (0) to (10); create table p2 (v text, gone int, r int, id int); alter table p2 drop gone; alter table p attach partition p2 for values from (10) to (20);
     create table p3 partition of p for values from (20) to (30) partition by list (id); create table p3a partition of p3 default; insert into p select g, g, 'v' from generate_series(0, 29) g;
     update p set r = (r + 10) % 30; update p set v = 'w' where r < 12; delete from p where r = 15; alter table p detach partition p2; insert into p2 values ('alone', 99, 1); update p2 set v = 'x' where r = 99; truncate p; insert into p values (1, 25, 'again'); truncate p3; truncate p2, p1",
    // Foreign keys, cascades, self references, inheritance.
    "create table f1 (id int primary key, up int references f1 on delete set null); create table f2 (id int primary key, f1 int references f1 on delete cascade on update cascade); insert into f1 values (1, null), (2, 1), (3, 2); insert into f2 values (1, 1), (2, 2), (3, 3); update f1 set id = 20 where id = 3; delete from f1 where id = 1; truncate f1 cascade;
     create table base (id int, v text); create table kid (extra int default 5) inherits (base); insert into base values (1, 'b'); insert into kid values (1, 'k'); update base set v = 'all'; update only base set v = 'only'; delete from base where v = 'all'; insert into kid values (2, 'k2'); truncate only base",
    // Names that must be quoted, and many columns.
    "create schema \"Odd.schema\"; create table \"Odd.schema\".\"Order \"\"by\"\" $1\" (\"select\" int primary key, \"a$2\" text, \"$3\" text, \"user\" int); insert into \"Odd.schema\".\"Order \"\"by\"\" $1\" values (1, 'x', 'y', 2), (2, E'\\\\', '''', 3); update \"Odd.schema\".\"Order \"\"by\"\" $1\" set \"a$2\" = '$1', \"select\" = \"select\" + 10; delete from \"Odd.schema\".\"Order \"\"by\"\" $1\" where \"select\" = 12;
     create table \"Odd.schema\".k (\"A\" int, \"b c\" text, \"$1\" text check (length(\"$1\") >= 0)); insert into \"Odd.schema\".k values (1, '$1', '$2'), (1, '$1', '$2'); update \"Odd.schema\".k set \"A\" = 2 where ctid = '(0,1)'; delete from \"Odd.schema\".k where \"A\" = 1",
    "do $$ begin execute 'create table wide (id int primary key, ' || (select string_agg('c' || g || ' int default ' || g, ', ') from generate_series(1, 800) g) || ')'; end $$; insert into wide (id) select generate_series(1, 3); update wide set c800 = 0 where id = 1; alter table wide replica identity full; update wide set c1 = null, c799 = 1; delete from wide where id = 2",
];

#[tokio::test(flavor = "multi_thread")]
async fn rule_14_a_row_that_one_follower_cannot_apply_fences_it_alone() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(
        &client,
        "create table t (id int primary key, v int); insert into t select g, g from generate_series(1, 10) g",
    )
    .await;
    cluster.assert_nodes_equal().await;
    let third = cluster.node(2).await;
    run(
        &third,
        "set synchronous_commit = local; delete from t where id = 5",
    )
    .await;
    run(&client, "update t set v = 50 where id = 5").await;
    until_status(&cluster, 2, "fenced").await;
    for n in 20..40 {
        run(&client, &format!("insert into t values ({n}, {n})")).await;
    }
    assert_eq!(cluster.compare_some(&[0, 1], PATIENCE).await, Ok(()));
    let log = cluster.proxy_log_text();
    assert!(
        log.contains("node fenced") && log.contains("UPDATE 0"),
        "{log}"
    );
    until_status(&cluster, 1, "in_sync").await;
    assert_eq!(
        ask(&third, "select count(*) from t where id >= 20").await,
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_14_a_row_written_by_its_owner_that_is_missing_is_noticed_too() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(
        &client,
        "create function fine(v int) returns boolean language plpgsql as 'begin return true; end';
         create table t (id int primary key, v int check (fine(v))); insert into t select g, g from generate_series(1, 10) g",
    )
    .await;
    cluster.assert_nodes_equal().await;
    let second = cluster.node(1).await;
    run(
        &second,
        "set synchronous_commit = local; delete from t where id = 5",
    )
    .await;
    run(&client, "update t set v = 50 where id = 5").await;
    until_status(&cluster, 1, "fenced").await;
    assert_eq!(cluster.compare_some(&[0, 2], PATIENCE).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_14_a_unit_that_nobody_can_apply_holds_the_writer_and_fences_nobody() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(
        &client,
        "create table t (id int primary key, v int); insert into t values (1, 1)",
    )
    .await;
    cluster.assert_nodes_equal().await;
    let planted = "set synchronous_commit = local; set session_replication_role = replica;";
    for at in [1, 2] {
        run(
            &cluster.node(at).await,
            &format!("{planted} create unique index planted on t (v)"),
        )
        .await;
    }
    let mut commit = in_the_background(&cluster, "insert into t values (2, 1)").await;
    until("the writer holds", || async {
        cluster
            .proxy_log_text()
            .contains("no follower can apply a unit")
    })
    .await;
    assert!(still_waits(&mut commit).await, "nobody has it");
    let mut behind = in_the_background(&cluster, "insert into t values (3, 3)").await;
    assert!(still_waits(&mut behind).await, "its turn comes later");
    for at in [1, 2] {
        run(
            &cluster.node(at).await,
            &format!("{planted} drop index planted"),
        )
        .await;
    }
    commit.await.expect("no panic").expect("mended");
    behind.await.expect("no panic").expect("goes on");
    cluster.assert_nodes_equal().await;
    let log = cluster.proxy_log_text();
    assert!(
        !log.contains("node fenced") && log.contains("the writer goes on"),
        "{log}"
    );
}
