//! Every built-in type as a column, with the values at its edges: by insert, update, delete, key and COPY.

use crate::support::cluster::TestCluster;
use crate::tools::{ask, rows, run};

/// Types and values of theirs, as SQL expressions.
const VALUES: &[(&str, &[&str])] = &[
    ("bool", &["true", "false"]),
    ("\"char\"", &["'a'", "''", "'\\'", "'\\377'"]),
    ("smallint", &["-32768", "32767"]),
    ("int", &["-2147483648", "2147483647", "0"]),
    ("bigint", &["-9223372036854775808", "9223372036854775807"]),
    (
        "real",
        &[
            "'-0'",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "1e-45",
            "3.4028235e38",
            "0.1",
            "1/3.0",
        ],
    ),
    (
        "double precision",
        &[
            "'-0'",
            "0",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "5e-324",
            "1.7976931348623157e308",
            "0.1",
            "1/3.0",
            "pi()",
        ],
    ),
    (
        "numeric",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "0",
            "1.0",
            "1.00",
            "1e130000",
            "-1e-16000",
            "123456789012345678901234567890.123456789",
        ],
    ),
    ("numeric(20, 5)", &["1.5", "-99999.99999"]),
    (
        "money",
        &["'-92233720368547758.08'", "'92233720368547758.07'", "1.005"],
    ),
    (
        "text",
        &[
            "''",
            "'null'",
            "'NULL'",
            "E'\\\\N'",
            "E'\\\\'",
            "E'tab\\there\\nnewline\\rreturn\\bback\\fform\\x01'",
            "E'\\\\x00'",
            "'quote '' and \"double\"'",
            "'$1 $$ $a$'",
            "U&'\\00fc\\20ac\\+01F600'",
            "repeat('long ', 100000)",
            "' padded '",
        ],
    ),
    ("varchar(10)", &["''", "'exactly10!'"]),
    ("char(5)", &["''", "'ab'", "'abcde'"]),
    ("name", &["''", "'Some name'"]),
    (
        "bytea",
        &[
            "''",
            "'\\x00'",
            "decode(string_agg_bytes(), 'hex')",
            "'\\x5c6e27'",
            "'\\x5c'",
        ],
    ),
    ("bit(3)", &["b'101'", "b'000'"]),
    ("bit varying", &["b''", "b'1'", "b'10101010101'"]),
    ("bit varying(20)", &["b''", "b'11111111111111111111'"]),
    (
        "date",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 BC'",
            "'5874897-12-31'",
            "'0001-01-01'",
            "'2000-02-29'",
        ],
    ),
    ("time", &["'00:00'", "'24:00:00'", "'23:59:59.999999'"]),
    (
        "timetz",
        &["'00:00+15:59'", "'24:00:00-15:59'", "'12:34:56.789+05:30'"],
    ),
    (
        "timestamp",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 00:00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
        ],
    ),
    (
        "timestamptz",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-11-24 00:00:00+00 BC'",
            "'294276-12-31 23:59:59.999999+00'",
            "'1969-12-31 23:59:59.999999+00'",
        ],
    ),
    (
        "interval",
        &[
            "'0'",
            "'1 year -2 months 3 days -04:05:06.789'",
            "'-178000000 years'",
            "'178000000 years'",
            "'-1 mon 1 day'",
        ],
    ),
    ("interval day to second(3)", &["'1 day 02:03:04.5678'"]),
    (
        "uuid",
        &[
            "'00000000-0000-0000-0000-000000000000'",
            "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
        ],
    ),
    (
        "json",
        &[
            "'{\"b\": 1, \"a\":  [1, 2.50, \"\\u0041\"], \"b\": 2}'",
            "'null'",
            "'\"\\\\ \\\" \\n\"'",
            "' [ ] '",
        ],
    ),
    (
        "jsonb",
        &[
            "'{\"b\": 1, \"a\": [1, 2.50, \"\\u0041\"], \"b\": 2}'",
            "'null'",
            "'1e1000'",
            "'\"\\\\ \\\" \\n\"'",
        ],
    ),
    (
        "jsonpath",
        &[
            "'$'",
            "'strict $.\"a b\"[*] ? (@ > 1 && @.c like_regex \"x\")'",
        ],
    ),
    (
        "xml",
        &[
            "''",
            "'<a b=\"c\">&lt;</a>'",
            "'text <b/> more'",
            "'<?xml version=\"1.0\"?><r/>'",
        ],
    ),
    (
        "inet",
        &[
            "'0.0.0.0/0'",
            "'192.168.0.1/24'",
            "'::1'",
            "'2001:db8::ff00:42:8329/64'",
        ],
    ),
    ("cidr", &["'10.0.0.0/8'", "'::/0'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("point", &["'(-0,NaN)'", "'(1e300,-Infinity)'"]),
    ("line", &["'{1,-1,0}'"]),
    ("lseg", &["'[(0,0),(1.5,-2)]'"]),
    ("box", &["'(1,1),(0,0)'"]),
    ("path", &["'[(0,0),(1,1)]'", "'((0,0),(1,1),(2,0))'"]),
    ("polygon", &["'((0,0),(1,1),(2,0))'"]),
    ("circle", &["'<(0,0),0.1>'"]),
    (
        "tsvector",
        &[
            "''",
            "'''it''''s'':1A,3 \\\\ ''a b'':2'",
            "to_tsvector('english', 'quick brown foxes')",
        ],
    ),
    ("tsquery", &["'a & !(b | c:*A) <-> d'", "''"]),
    ("pg_lsn", &["'0/0'", "'FFFFFFFF/FFFFFFFF'"]),
    ("pg_snapshot", &["'10:20:10,14,15'"]),
    ("xid8", &["'18446744073709551615'"]),
    ("xid", &["'4294967295'"]),
    ("cid", &["'7'"]),
    ("tid", &["'(4294967295,65535)'"]),
    ("oid", &["4294967295", "0"]),
    ("regclass", &["'pg_class'"]),
    ("regtype", &["'int'", "'timestamp with time zone'"]),
    ("regproc", &["'now'"]),
    ("regprocedure", &["'abs(int)'"]),
    ("regrole", &["'pg_read_all_data'"]),
    ("regnamespace", &["'pg_catalog'"]),
    ("oidvector", &["'1 2 3'", "''"]),
    ("int2vector", &["'-1 2'"]),
    ("refcursor", &["'a cursor'"]),
    ("int4range", &["'empty'", "'[1,5)'", "'(,)'", "'[5,]'"]),
    ("int8range", &["'[-9223372036854775808,0)'"]),
    ("numrange", &["'(0.1,1.10]'", "'[NaN,NaN]'"]),
    ("daterange", &["'[2000-01-01,infinity]'", "'(-infinity,)'"]),
    ("tsrange", &["'[\"2000-01-01 00:00:00.000001\",)'"]),
    ("tstzrange", &["'[\"2000-01-01 00:00+02\",\"2000-01-02\"]'"]),
    ("int4multirange", &["'{}'", "'{[1,2),[5,9)}'", "'{(,)}'"]),
    ("nummultirange", &["'{(0.1,1.10],[5,)}'"]),
    (
        "tstzmultirange",
        &["'{[\"2000-01-01 00:00+00\",\"2000-01-02 00:00+00\"),[2001-01-01,)}'"],
    ),
    (
        "int[]",
        &[
            "'{}'",
            "'{1,null,3}'",
            "'[-2:0]={1,2,3}'",
            "'[0:1][3:4][1:1]={{{1},{2}},{{3},{4}}}'",
            "'{{1,2},{3,4}}'",
        ],
    ),
    (
        "text[]",
        &[
            "'{}'",
            "array['', 'null', 'NULL', null, '{}', ',', '\"', E'\\\\', ' ', E'a\\nb', '''']",
        ],
    ),
    ("bytea[]", &["array['\\x00'::bytea, '\\x5c22', null]"]),
    (
        "float8[]",
        &["array['-0', 'NaN', 'infinity', 0.1]::float8[]"],
    ),
    (
        "timestamptz[]",
        &["array['infinity', '4713-11-24 00:00:00+00 BC']::timestamptz[]"],
    ),
    (
        "jsonb[]",
        &["array['{\"a\": \"b,\\\"c\"}', 'null']::jsonb[]"],
    ),
    ("box[]", &["'{(1,1),(0,0);(2,2),(1,1)}'"]),
    ("mood", &["'sad'", "'it''s \"ok\", \\'"]),
    (
        "mood[]",
        &["array['sad', null, 'it''s \"ok\", \\']::mood[]"],
    ),
    (
        "pair",
        &[
            "row(1, null)",
            "row(null, '')",
            "row(2, E'a\"b\\\\(),\\n''')",
            "row(null, null)",
        ],
    ),
    (
        "pair[]",
        &["array[row(1, 'x,\"y\"'), null, row(null, '{}')]::pair[]"],
    ),
    (
        "nest",
        &["row(row(1, 'in \"side\"'), array['sad']::mood[], array[row(2, 'z')]::pair[], '[1,2)')"],
    ),
    ("small", &["1", "null"]),
    ("small[]", &["array[1, 2, null]::small[]"]),
    ("ints", &["'{1,2}'", "'{}'"]),
    ("ints[]", &["array['{1}'::ints, '{2,3}'::ints]"]),
    ("floats", &["'[-0,NaN]'", "'(,1.5]'"]),
    ("floats_multi", &["'{[0,0.1],[0.2,0.3)}'"]),
    ("spaced \"type\"", &["'v'"]),
];

const TYPES: &str = "
    create type mood as enum ('sad', 'it''s \"ok\", \\');
    create type pair as (a int, b text);
    create domain small as int check (value < 10);
    create domain ints as int[] check (array_length(value, 1) is distinct from 3);
    create type floats as range (subtype = float8, multirange_type_name = floats_multi);
    create type nest as (p pair, moods mood[], pairs pair[], r int4range);
    create type \"spaced \"\"type\"\"\" as enum ('v');
    create function string_agg_bytes() returns text language sql immutable as
      'select string_agg(lpad(to_hex(g), 2, ''0''), '''' order by g) from generate_series(0, 255) g'";

fn quoted(type_name: &str) -> String {
    if type_name == "spaced \"type\"" {
        return "\"spaced \"\"type\"\"\"".to_owned();
    }
    type_name.to_owned()
}

#[expect(clippy::format_push_string, reason = "a test's text")]
#[tokio::test(flavor = "multi_thread")]
async fn every_built_in_type_keeps_its_edge_values() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(&client, TYPES).await;
    // Some servers are built without libxml.
    let has_xml = client.batch_execute("select xml '<a/>'").await.is_ok();
    for (at, (type_name, values)) in VALUES.iter().enumerate() {
        if *type_name == "xml" && !has_xml {
            continue;
        }
        let (t, type_name) = (format!("t{at}"), quoted(type_name));
        // By single rows, by a run that is copied, and found by its whole image.
        let mut sql = format!(
            "create table {t} (id int primary key, v {type_name}); create table {t}_keyless (v {type_name}, n int);"
        );
        for (n, value) in values.iter().enumerate() {
            sql += &format!(
                "insert into {t} values ({n}, {value}); insert into {t} values ({n} + 100, null);"
            );
        }
        sql += &format!(
            "insert into {t}_keyless select v, id % 3 from {t}; insert into {t}_keyless select v, id % 3 from {t};
             update {t} set v = (select v from {t} o where o.id = (t.id + 1) % {}) from (select id from {t}) t where t.id = {t}.id and t.id < 100;
             update {t}_keyless set n = n + 10 where ctid in (select min(ctid) from {t}_keyless group by v::text);
             delete from {t}_keyless where ctid in (select max(ctid) from {t}_keyless group by v::text);
             delete from {t} where id >= 100",
            values.len()
        );
        run(&client, &sql).await;
        // As a key, where the type can be one.
        let key = format!(
            "create table {t}_key (v {type_name} primary key, n int); insert into {t}_key select v, min(id) from {t} where v is not null group by v"
        );
        if client.batch_execute(&key).await.is_ok() {
            run(
                &client,
                &format!("update {t}_key set n = n + 1; delete from {t}_key where n > 2"),
            )
            .await;
        }
    }
    let client = cluster.client().await;
    cluster.assert_nodes_equal().await;
    assert!(!cluster.proxy_log_text().contains("fenced"));
    // Every type that a column can have and that PostgreSQL brings along is in the list above.
    let listed = rows(&client, "select distinct atttypid::regtype::text from pg_attribute a join pg_class c on c.oid = attrelid and relnamespace = 'public'::regnamespace where attnum > 0").await;
    let all = rows(
        &client,
        "select oid::regtype::text from pg_type where typnamespace = 'pg_catalog'::regnamespace and typtype in ('b', 'r', 'm')
            and typcategory <> 'A' and typname not like 'pg\\_%' and typname not like 'reg%' and typname not in ('gtsvector', 'aclitem', 'txid_snapshot')",
    )
    .await;
    let missing: Vec<_> = all.iter().filter(|name| !listed.contains(name)).collect();
    let rest = [
        "int8multirange",
        "datemultirange",
        "tsmultirange",
        if has_xml { "" } else { "xml" },
    ];
    assert!(
        missing.iter().all(|name| rest.contains(&name.as_str())),
        "not tested: {missing:?}"
    );
    assert_eq!(
        ask(
            &client,
            "select count(*) > 400 from pg_class where relname ~ '^t\\d'"
        )
        .await
        .len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_another_encoding_keeps_its_text() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(
        &client,
        "create database latin template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'",
    )
    .await;
    let latin = cluster.client_as("synapsedb", "changeme123", "latin").await;
    run(
        &latin,
        "create table t (id int primary key, v text, \"sp\u{e4}t\" int default 1); insert into t values (1, '\u{fc}ber'), (2, '\u{e4}\u{f6}');
         create function fine(v text) returns boolean language plpgsql as 'begin return true; end';
         create table owned (id int primary key, v text check (fine(v))); insert into owned values (1, 'gr\u{fc}n');
         update owned set v = 'wei\u{df}'; comment on table t is '\u{fc}bung';
         create table keyless (v text); insert into keyless values ('\u{fc}'), ('\u{fc}'), ('u'); delete from keyless where ctid = '(0,1)'; update keyless set v = '\u{ff}' where v = '\u{fc}';
         insert into t select g, '\u{e9}' || g from generate_series(10, 20) g; update t set v = v || '\u{e8}', \"sp\u{e4}t\" = 2",
    )
    .await;
    cluster.assert_nodes_equal().await;
}

/// Rows that were written before their type got an attribute are stored otherwise than the same values now.
#[tokio::test(flavor = "multi_thread")]
async fn rule_13_rows_of_a_composite_type_that_has_grown_are_found_without_a_key() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    let make = "create type pair as (a int, b text); create table kc (c pair, l pair[], n float8); \
        insert into kc select row(i, 'x')::pair, array[row(i, null)::pair], i / 3.0 from generate_series(1, 4) i; \
        insert into kc values (null, null, 0), (row(null, null), '{}', '-0')";
    let change = "alter type pair add attribute z timestamptz; insert into kc values (row(1, 'x', now()), null, 1); \
        delete from kc where n > 1.2; update kc set n = 7 where n <= 0; alter type pair drop attribute b; \
        delete from kc where (c).a = 1; update kc set c = row(5, now()) where c is null";
    let work = async {
        for sql in make.split("; ").chain(change.split("; ")) {
            run(&client, sql).await;
        }
    };
    tokio::time::timeout(crate::tools::PATIENCE, work)
        .await
        .expect("the followers follow");
    cluster.assert_nodes_equal().await;
    assert_eq!(
        ask(&cluster.node(1).await, "select count(*) from kc").await,
        "4"
    );
}
