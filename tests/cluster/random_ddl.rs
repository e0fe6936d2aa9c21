//! Random DDL for the crowd: each client has tables of its own, and now and then touches everyone's.

use rand::Rng;
use rand::rngs::StdRng;

/// A command that may stand in a transaction.
pub fn command(rng: &mut StdRng, client: usize) -> String {
    let t = format!("own_{client}_{}", rng.random_range(0..2));
    let n = rng.random_range(0..4);
    match rng.random_range(0..44) {
        0..=5 => format!(
            "create table if not exists {t} (id int primary key, v text default md5(random()::text)); \
             insert into {t} (id) select g from generate_series(1, 20) g on conflict do nothing"
        ),
        6 => format!(
            "create table {t} as select g as id, random() as v from generate_series(1, 10) g"
        ),
        7 => format!("select id, owner, random() as r into {t} from accounts"),
        8 => format!("drop table if exists {t} cascade"),
        9 => format!("truncate {t}"),
        10 => "truncate audit, statements".to_owned(),
        11 => "truncate parents cascade".to_owned(),
        12 => format!("truncate {t} restart identity cascade"),
        13 => format!("alter table {t} add column if not exists r{n} float8 default random()"),
        14 => format!(
            "alter table {t} add column if not exists u{n} uuid not null default gen_random_uuid()"
        ),
        15 => format!("alter table {t} add column if not exists at{n} timestamptz default now()"),
        16 => format!(
            "alter table {t} add column if not exists c{n} timestamptz default clock_timestamp()"
        ),
        17 => format!("alter table {t} add column if not exists s{n} serial"),
        18 => format!(
            "alter table {t} add column if not exists plain{n} int default 7; update {t} set plain{n} = id"
        ),
        19 => format!("alter table {t} drop column if exists r{n}"),
        20 => format!("alter table {t} alter column v type varchar(100)"),
        21 => format!("alter table {t} alter column r{n} type numeric using random()::numeric"),
        22 => format!(
            "alter table {t} rename column v to w; insert into {t} (id, w) values (500 + {n}, 'renamed')"
        ),
        23 => format!("alter table {t} rename column w to v"),
        24 => format!("create index if not exists {t}_v{n} on {t} (id, v)"),
        25 => format!("drop index if exists {t}_v{n}"),
        26 => format!(
            "alter table {t} drop constraint if exists {t}_pkey; update {t} set v = 'keyless' where id < 3"
        ),
        27 => format!("alter table {t} add constraint {t}_pkey primary key (id)"),
        28 => format!("create or replace view {t}_view as select id from {t}"),
        29 => format!("create materialized view if not exists {t}_mat as select id, v from {t}"),
        30 => format!("refresh materialized view {t}_mat"),
        31 => format!(
            "create or replace function {t}_f(n int) returns void language plpgsql as \
             $f$ begin execute 'create table if not exists {t} (id int primary key, v text)'; \
             insert into {t} (id, v) values (n, random()::text) on conflict (id) do update set v = excluded.v; end $f$; \
             select {t}_f({n})"
        ),
        32 => format!(
            "do $$ begin create table if not exists {t} (id int primary key, v text); alter table {t} add column if not exists d{n} int default {n}; insert into {t} (id) values (1000 + {n}) on conflict do nothing; end $$"
        ),
        33 => format!(
            "create or replace trigger {t}_t before update on {t} for each row execute function suppress_redundant_updates_trigger(); \
             update {t} set v = 'triggered' where id = {n}"
        ),
        34 => format!(
            "comment on table {t} is 'comment {n}'; alter table {t} alter column id set statistics {n}00"
        ),
        35 => format!(
            "alter table {t} add constraint {t}_c{n} check (id > -{n}) not valid; alter table {t} validate constraint {t}_c{n}"
        ),
        36 => format!(
            "create schema if not exists side_{client}; create table if not exists side_{client}.t (like accounts including all); \
             insert into side_{client}.t (id) values ({n}) on conflict do nothing"
        ),
        37 => format!("drop schema if exists side_{client} cascade"),
        38 => format!(
            "set local search_path = side_{client}, public; create table if not exists bare (a int, b float8 default random()); insert into bare values ({n})"
        ),
        39 => format!(
            "create type {t}_e as enum ('a', 'b'); create table {t}_et (e {t}_e); insert into {t}_et values ('b')"
        ),
        40 => format!("drop table if exists {t}_et; drop type if exists {t}_e"),
        41 => format!(
            "savepoint d; create table {t}_x (a int); rollback to d; create table if not exists {t}_y (a int); insert into {t}_y values ({n})"
        ),
        42 => format!(
            "alter table accounts add column if not exists extra{n} text default md5(random()::text)"
        ),
        _ => format!("alter table accounts drop column if exists extra{n}"),
    }
}

/// A command that must stand alone, or is better alone.
pub fn lone_command(rng: &mut StdRng, client: usize) -> String {
    let t = format!("own_{client}_{}", rng.random_range(0..2));
    match rng.random_range(0..8) {
        0 => format!("create index concurrently if not exists {t}_conc on {t} (id)"),
        1 => format!("drop index concurrently if exists {t}_conc"),
        2 => format!(
            "alter type {t}_e add value if not exists 'c{}'",
            rng.random_range(0..3)
        ),
        3 => format!("vacuum {t}"),
        4 => format!("analyze {t}"),
        5 => format!(
            "create table if not exists {t} (id int primary key, v text); insert into {t} select g, random()::text from generate_series(1, 50) g on conflict do nothing; alter table {t} add column if not exists two float8 default random()"
        ),
        6 => format!("reindex table {t}"),
        _ => command(rng, client),
    }
}
