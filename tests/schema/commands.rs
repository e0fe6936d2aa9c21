//! DDL in all the ways that clients have of saying it, each with the lines that it must leave in `ddl_log`.

/// Who says it, what is said in one Query, what is logged (see `Logged::line`).
pub type Said = (&'static str, &'static str, &'static [&'static str]);

/// One after the other, each on what those before have left.
pub const COMMANDS: &[Said] = &[
    // Plain commands, one Query each.
    (
        "ann",
        "create table t (id int primary key, v text default ';--')",
        &["ann CREATE TABLE 1"],
    ),
    ("ann", "create table if not exists t (id int)", &[]),
    ("ann", "drop table if exists nothing_like_it", &[]),
    (
        "ann",
        "create table keyless (a int, b text)",
        &["ann CREATE TABLE 1", "synapsedb ALTER TABLE 1 nested"],
    ),
    ("ann", "create index on t (v)", &["ann CREATE INDEX 1"]),
    (
        "ann",
        "create unique index concurrently t_v on t (v, id)",
        &["ann CREATE INDEX 1 concurrently"],
    ),
    (
        "ann",
        "drop index concurrently t_v",
        &["ann DROP INDEX 1 concurrently"],
    ),
    (
        "ann",
        "alter table t add column n int not null default 5, add check (n > 0)",
        &["ann ALTER TABLE 1"],
    ),
    (
        "ann",
        "alter table t rename column n to m",
        &["ann ALTER TABLE 1"],
    ),
    (
        "ann",
        "alter table t alter column m type bigint",
        &["ann ALTER TABLE 1"],
    ),
    (
        "ann",
        "create view w as select v, m from t where m > 1",
        &["ann CREATE VIEW 1"],
    ),
    (
        "ann",
        "create materialized view mw as select v from t with no data",
        &["ann CREATE MATERIALIZED VIEW 1"],
    ),
    (
        "ann",
        "refresh materialized view mw",
        &["ann REFRESH MATERIALIZED VIEW 1 contents"],
    ),
    (
        "ann",
        "create sequence s cache 5",
        &["ann CREATE SEQUENCE 1"],
    ),
    (
        "ann",
        "alter sequence s increment by 3",
        &["ann ALTER SEQUENCE 1"],
    ),
    (
        "ann",
        "create table serials (id serial primary key, u bigint generated always as identity)",
        &["ann CREATE TABLE 1"],
    ),
    (
        "ann",
        "create type mood as enum ('sad', 'ok')",
        &["ann CREATE TYPE 1"],
    ),
    (
        "ann",
        "alter type mood add value 'happy' after 'ok'",
        &["ann ALTER TYPE 1"],
    ),
    (
        "ann",
        "create type pair as (a int, b mood)",
        &["ann CREATE TYPE 1"],
    ),
    (
        "ann",
        "alter type pair add attribute c text",
        &["ann ALTER TYPE 1"],
    ),
    (
        "ann",
        "create type span as range (subtype = int8)",
        &["ann CREATE TYPE 1"],
    ),
    (
        "ann",
        "create domain positive as int check (value > 0)",
        &["ann CREATE DOMAIN 1"],
    ),
    (
        "ann",
        "alter domain positive set default 1",
        &["ann ALTER DOMAIN 1"],
    ),
    (
        "ann",
        "create function f(int) returns int language sql immutable as 'select $1 + 1'",
        &["ann CREATE FUNCTION 1"],
    ),
    (
        "ann",
        "create function g() returns int language plpgsql set work_mem from current as $$ begin return 1; end $$",
        &["ann CREATE FUNCTION 1"],
    ),
    (
        "ann",
        "create procedure p() language plpgsql as $$ begin null; end $$",
        &["ann CREATE PROCEDURE 1"],
    ),
    (
        "ann",
        "create aggregate total(int) (sfunc = int4pl, stype = int, initcond = '0')",
        &["ann CREATE AGGREGATE 1"],
    ),
    (
        "ann",
        "create operator ### (function = int4pl, leftarg = int, rightarg = int)",
        &["ann CREATE OPERATOR 1"],
    ),
    (
        "ann",
        "create cast (mood as int) with inout",
        &["ann CREATE CAST 1"],
    ),
    (
        "ann",
        "create collation plain from \"C\"",
        &["ann CREATE COLLATION 1"],
    ),
    (
        "ann",
        "create text search configuration english_copy (copy = english)",
        &["ann CREATE TEXT SEARCH CONFIGURATION 1"],
    ),
    (
        "ann",
        "create statistics st on v, m from t",
        &["ann CREATE STATISTICS 1"],
    ),
    (
        "ann",
        "create function stamp() returns trigger language plpgsql as $$ begin return new; end $$",
        &["ann CREATE FUNCTION 1"],
    ),
    (
        "ann",
        "create trigger stamped before insert on t for each row execute function stamp()",
        &["ann CREATE TRIGGER 1"],
    ),
    (
        "ann",
        "alter table t enable always trigger stamped",
        &["ann ALTER TABLE 1", "synapsedb ALTER TABLE 1 nested"],
    ),
    (
        "ann",
        "create rule quiet as on delete to keyless do also notify gone",
        &["ann CREATE RULE 1"],
    ),
    (
        "ann",
        "alter table keyless enable replica rule quiet",
        &["ann ALTER TABLE 1", "synapsedb ALTER TABLE 1 nested"],
    ),
    (
        "ann",
        "create policy mine on t using (v = current_user)",
        &["ann CREATE POLICY 1"],
    ),
    (
        "ann",
        "alter table t enable row level security",
        &["ann ALTER TABLE 1"],
    ),
    (
        "ann",
        "comment on table t is $c$a; comment$c$",
        &["ann COMMENT 1"],
    ),
    ("ann", "comment on column t.v is 'v'", &["ann COMMENT 1"]),
    (
        "ann",
        "grant select (v), insert on t to bob",
        &["ann GRANT 1"],
    ),
    ("ann", "revoke insert on t from bob", &["ann REVOKE 1"]),
    (
        "ann",
        "grant execute on function f(int) to eve",
        &["ann GRANT 1"],
    ),
    (
        "ann",
        "alter default privileges in schema public grant select on tables to eve",
        &["ann ALTER DEFAULT PRIVILEGES 1"],
    ),
    (
        "ann",
        "alter table keyless owner to bob",
        &["ann ALTER TABLE 1"],
    ),
    // Partitions and inheritance.
    (
        "ann",
        "create table part (k int, v text, primary key (k)) partition by range (k)",
        &["ann CREATE TABLE 1"],
    ),
    (
        "ann",
        "create table part1 partition of part for values from (0) to (10)",
        &["ann CREATE TABLE 1"],
    ),
    (
        "ann",
        "create table part2 (k int not null, v text)",
        &["ann CREATE TABLE 1", "synapsedb ALTER TABLE 1 nested"],
    ),
    (
        "ann",
        "alter table part attach partition part2 for values from (10) to (20)",
        &["ann ALTER TABLE 1"],
    ),
    (
        "ann",
        "alter table part detach partition part1",
        &["ann ALTER TABLE 1"],
    ),
    (
        "ann",
        "alter table part detach partition part2 concurrently",
        &["ann ALTER TABLE 1 concurrently", "ann ALTER TABLE 1"],
    ),
    (
        "ann",
        "create table child (extra int) inherits (t)",
        &["ann CREATE TABLE 1", "synapsedb ALTER TABLE 1 nested"],
    ),
    // Keys that come and go.
    (
        "ann",
        "alter table child add primary key (id)",
        &["ann ALTER TABLE 1", "synapsedb ALTER TABLE 1 nested"],
    ),
    (
        "ann",
        "alter table child drop constraint child_pkey",
        &["ann ALTER TABLE 1", "synapsedb ALTER TABLE 1 nested"],
    ),
    (
        "ann",
        "create table late (id int primary key deferrable)",
        &["ann CREATE TABLE 1", "synapsedb ALTER TABLE 1 nested"],
    ),
    (
        "ann",
        "create table named (a int not null, b int); create unique index named_a on named (a)",
        &[
            "ann CREATE TABLE 1",
            "synapsedb ALTER TABLE 1 nested",
            "ann CREATE INDEX 2",
        ],
    ),
    (
        "ann",
        "alter table named replica identity using index named_a",
        &["ann ALTER TABLE 1"],
    ),
    (
        "ann",
        "drop index named_a",
        &["ann DROP INDEX 1", "synapsedb ALTER TABLE 1 nested"],
    ),
    (
        "ann",
        "alter table t replica identity nothing",
        &["ann ALTER TABLE 1", "synapsedb ALTER TABLE 1 nested"],
    ),
    (
        "ann",
        "create table typed (k mood primary key, v int); drop type mood cascade",
        &[
            "ann CREATE TABLE 1",
            "ann DROP TYPE 2",
            "synapsedb ALTER TABLE 1 nested",
        ],
    ),
    // Tables that would not be replicated.
    (
        "ann",
        "create unlogged table u (id int primary key)",
        &["ann CREATE TABLE 1", "synapsedb ALTER TABLE 1 nested"],
    ),
    (
        "ann",
        "alter table u set unlogged",
        &["ann ALTER TABLE 1", "synapsedb ALTER TABLE 1 nested"],
    ),
    (
        "ann",
        "create unlogged sequence us",
        &["ann CREATE SEQUENCE 1", "synapsedb ALTER SEQUENCE 1 nested"],
    ),
    // Several in one Query; what was taken back leaves no number.
    (
        "ann",
        "create table m1 (a int primary key); insert into m1 values (1); create table m2 (a int primary key)",
        &["ann CREATE TABLE 1", "ann CREATE TABLE 2"],
    ),
    (
        "ann",
        "begin; savepoint a; create table m3 (a int primary key); rollback to a; create table m4 (a int primary key); commit",
        &["ann CREATE TABLE 1"],
    ),
    (
        "ann",
        "begin; create table m5 (a int primary key); rollback; create table m6 (a int primary key); drop table m6",
        &["ann CREATE TABLE 1", "ann DROP TABLE 2"],
    ),
    (
        "ann",
        "create table m7 (a int primary key); commit; create table m8 (a int primary key)",
        &["ann CREATE TABLE 1", "ann CREATE TABLE 2"],
    ),
    (
        "ann",
        "create temp table tm (a int); create table m9 (a int primary key); drop table tm; drop table m9",
        &["ann CREATE TABLE 2", "ann DROP TABLE 4"],
    ),
    (
        "ann",
        "drop table m1, m2, m4, m7, m8",
        &["ann DROP TABLE 1"],
    ),
    // Temporary objects are nobody else's.
    (
        "ann",
        "create temp table tt (a serial primary key, b text)",
        &[],
    ),
    (
        "ann",
        "create index on tt (b); alter table tt add column c int; comment on table tt is 'x'",
        &[],
    ),
    (
        "ann",
        "create function pg_temp.tf() returns int language sql as 'select 1'; drop function pg_temp.tf()",
        &[],
    ),
    (
        "ann",
        "create temp view tv as select * from tt; grant select on tt to bob",
        &[],
    ),
    ("ann", "grant select on t to bob", &["ann GRANT 1"]),
    ("ann", "create temp table tas as select 1 as one", &[]),
    ("ann", "select 1 as one into temp table tinto", &[]),
    (
        "ann",
        "create table lasting (a int primary key); drop table tt, lasting cascade",
        &["ann CREATE TABLE 1", "ann DROP TABLE 2"],
    ),
    // Inside functions, blocks and triggers.
    (
        "ann",
        "do $$ begin create table d1 (a int primary key); execute 'create table d2 (a int primary key)'; end $$",
        &["ann CREATE TABLE 1 nested", "ann CREATE TABLE 1 nested"],
    ),
    (
        "ann",
        "do $$ begin execute 'create table d3 (a int primary key); create table d4 (a int primary key)'; end $$",
        &["ann CREATE TABLE 1 nested", "ann CREATE TABLE 2 nested"],
    ),
    (
        "ann",
        "do $$ begin for i in 1..2 loop execute format('create table d5_%s (a int primary key)', i); end loop; end $$",
        &["ann CREATE TABLE 1 nested", "ann CREATE TABLE 1 nested"],
    ),
    (
        "ann",
        "do $$ begin begin create table d6 (a int primary key); raise 'no'; exception when others then \
             create table d7 (a int primary key); end; end $$",
        &["ann CREATE TABLE 1 nested"],
    ),
    (
        "ann",
        "create function in_sql() returns void language sql as \
             $$ create table q1 (a int primary key); select 1; create table q2 (a int primary key); comment on table q2 is 'q' $$",
        &["ann CREATE FUNCTION 1"],
    ),
    (
        "ann",
        "select in_sql()",
        &[
            "ann CREATE TABLE 1 nested sql_function",
            "ann CREATE TABLE 3 nested sql_function",
            "ann COMMENT 4 nested sql_function",
        ],
    ),
    (
        "ann",
        "create function as_bob() returns void language plpgsql security definer as \
             $$ begin create table bobs (a int primary key); end $$; alter function as_bob() owner to bob",
        &["ann CREATE FUNCTION 1", "ann ALTER FUNCTION 2"],
    ),
    ("ann", "select as_bob()", &["bob CREATE TABLE 1 nested"]),
    (
        "ann",
        "set role bob; create table also_bobs (a int primary key); reset role",
        &["bob CREATE TABLE 1"],
    ),
    (
        "ann",
        "create procedure steps() language plpgsql as \
             $$ begin create table s1 (a int primary key); commit; create table s2 (a int primary key); rollback; end $$",
        &["ann CREATE PROCEDURE 1"],
    ),
    ("ann", "call steps()", &["ann CREATE TABLE 1 nested"]),
    (
        "ann",
        "create function by_row() returns trigger language plpgsql as \
             $$ begin execute format('create table row_%s (a int primary key)', new.a); return new; end $$; \
             create table maker (a int primary key); \
             create trigger make after insert on maker for each row execute function by_row()",
        &[
            "ann CREATE FUNCTION 1",
            "ann CREATE TABLE 2",
            "ann CREATE TRIGGER 3",
        ],
    ),
    (
        "ann",
        "insert into maker values (1), (2)",
        &["ann CREATE TABLE 1 nested", "ann CREATE TABLE 1 nested"],
    ),
    // Tables made from queries.
    (
        "ann",
        "create table made as select 1 as a, 'x'::text collate \"C\" as b, 2.50::numeric(5,2) as c",
        &[
            "ann CREATE TABLE AS 0 place",
            "ann CREATE TABLE AS 1 at",
            "synapsedb ALTER TABLE 1 nested",
        ],
    ),
    (
        "ann",
        "select * into made2 from made",
        &[
            "ann SELECT INTO 0 place",
            "ann SELECT INTO 1 at",
            "synapsedb ALTER TABLE 1 nested",
        ],
    ),
    (
        "ann",
        "create table if not exists made as select 2",
        &["ann CREATE TABLE AS 0 place"],
    ),
    (
        "ann",
        "do $$ declare n int := 7; begin create table made3 with (fillfactor = 70) as select n; end $$",
        &[
            "ann CREATE TABLE AS 0 nested place",
            "ann CREATE TABLE AS 1 nested at",
            "synapsedb ALTER TABLE 1 nested",
        ],
    ),
    // Values that differ by node.
    (
        "ann",
        "alter table made add column at timestamptz default now()",
        &["ann ALTER TABLE 1"],
    ),
    (
        "ann",
        "alter table made add column id uuid default gen_random_uuid()",
        &["ann ALTER TABLE 1"],
    ),
    // Names, settings and hostile surroundings.
    (
        "ann",
        "create schema \"Ä b\" create table \"T;\" (a int primary key) create view \"V\" as select * from \"T;\"",
        &["ann CREATE SCHEMA 1"],
    ),
    (
        "ann",
        "set search_path = \"Ä b\"; create table inside (a int primary key); reset search_path",
        &["ann CREATE TABLE 1"],
    ),
    (
        "ann",
        "set row_security = off; create table unguarded (a int primary key); reset row_security",
        &["ann CREATE TABLE 1"],
    ),
    (
        "ann",
        "set quote_all_identifiers = on; create table quoted (a int primary key); reset quote_all_identifiers",
        &["ann CREATE TABLE 1"],
    ),
    (
        "ann",
        "set datestyle = 'SQL, DMY'; create table dated (d date primary key default '03/04/2020'); reset datestyle",
        &["ann CREATE TABLE 1"],
    ),
    (
        "ann",
        "set transform_null_equals = on; create view nulls as select 1 as one where null = null; reset transform_null_equals",
        &["ann CREATE VIEW 1"],
    ),
    (
        "ann",
        "create schema bad; create function bad.lower(text) returns text language plpgsql as 'begin raise ''trap''; end'; \
             create function bad.strange(text, text) returns bool language plpgsql as 'begin raise ''trap''; end'; \
             create operator bad.= (function = bad.strange, leftarg = text, rightarg = text); \
             create operator bad.~ (function = bad.strange, leftarg = text, rightarg = text)",
        &[
            "ann CREATE SCHEMA 1",
            "ann CREATE FUNCTION 2",
            "ann CREATE FUNCTION 3",
            "ann CREATE OPERATOR 4",
            "ann CREATE OPERATOR 5",
        ],
    ),
    (
        "ann",
        "set search_path = bad, pg_catalog, public; create table bad.trapped (a int primary key); alter table bad.trapped add b int; \
             reset search_path",
        &["ann CREATE TABLE 1", "ann ALTER TABLE 2"],
    ),
    ("ann", "drop schema bad cascade", &["ann DROP SCHEMA 1"]),
    (
        "ann",
        "drop view w; drop function f(int); drop aggregate total(int); drop operator ### (int, int)",
        &[
            "ann DROP VIEW 1",
            "ann DROP FUNCTION 2",
            "ann DROP AGGREGATE 3",
            "ann DROP OPERATOR 4",
        ],
    ),
    // A superuser's.
    (
        "synapsedb",
        "create publication theirs for table t (id, v) where (id > 0)",
        &["synapsedb CREATE PUBLICATION 1"],
    ),
    (
        "synapsedb",
        "alter publication theirs add table part",
        &["synapsedb ALTER PUBLICATION 1"],
    ),
    (
        "synapsedb",
        "create foreign data wrapper fdw; create server far foreign data wrapper fdw options (a '1'); \
                   create foreign table ft (a int) server far",
        &[
            "synapsedb CREATE FOREIGN DATA WRAPPER 1",
            "synapsedb CREATE SERVER 2",
            "synapsedb CREATE FOREIGN TABLE 3",
        ],
    ),
    (
        "synapsedb",
        "create user mapping for ann server far options (p 'q')",
        &["synapsedb CREATE USER MAPPING 1"],
    ),
    (
        "synapsedb",
        "alter schema \"Ä b\" owner to bob",
        &["synapsedb ALTER SCHEMA 1"],
    ),
    (
        "synapsedb",
        "drop owned by eve",
        &["synapsedb DROP OWNED 1"],
    ),
];
