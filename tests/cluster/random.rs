//! Random transactions from a seed: what sixteen clients do to a database at the same time.
//!
//! Everything that makes copies drift elsewhere is in here: volatile values, triggers, savepoints rolled
//! back, tables without keys, deferrable constraints, rows that move between partitions, large values
//! left alone, DDL in the middle. Errors that such a crowd must meet are counted, others are returned.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::SinkExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::random_ddl;

/// The tables, functions and triggers that the crowd works on. `{vector}` is a column where pgvector is there.
pub const TABLES: &str = include_str!("random.sql");

/// How often what happened: SQLSTATEs, `commit`, `rollback`, `savepoint rolled back`.
pub type Counts = BTreeMap<String, u64>;

/// Makes the tables through the proxy.
pub async fn set_up(client: &Client, pgvector: bool) {
    if pgvector {
        client
            .batch_execute(
                "create extension vector;
                 create table items (id serial primary key, v vector(3), h halfvec(2), s sparsevec(5));
                 create index on items using hnsw (v vector_l2_ops)",
            )
            .await
            .expect("pgvector's types");
    }
    client.batch_execute(TABLES).await.expect("the tables");
}

/// One thing a client sends.
#[derive(Clone, Debug)]
pub enum Step {
    /// A simple query.
    Sql(String),
    /// An extended query whose parameters are text.
    Extended(String, Vec<String>),
    /// `COPY ... FROM STDIN` and its data.
    Copy(String, String),
}

impl Step {
    /// Its statement.
    pub fn sql(&self) -> &str {
        match self {
            Self::Sql(sql) | Self::Extended(sql, _) | Self::Copy(sql, _) => sql,
        }
    }

    async fn run(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        match self {
            Self::Sql(sql) => client.batch_execute(sql).await,
            Self::Extended(sql, values) => {
                let parameters: Vec<(&(dyn tokio_postgres::types::ToSql + Sync), Type)> = values
                    .iter()
                    .map(|value| (value as _, Type::TEXT))
                    .collect();
                client.query_typed(sql, &parameters).await.map(|_| ())
            }
            Self::Copy(sql, data) => {
                let sink = client.copy_in::<_, Bytes>(sql.as_str()).await?;
                let mut sink = std::pin::pin!(sink);
                sink.send(Bytes::copy_from_slice(data.as_bytes())).await?;
                sink.finish().await.map(|_| ())
            }
        }
    }
}

/// One client of the crowd.
pub struct Worker {
    rng: StdRng,
    number: usize,
    pgvector: bool,
    /// What it met so far.
    pub counts: Counts,
}

/// What a client met that nothing explains.
#[derive(Debug)]
pub struct Unexpected {
    /// While doing what.
    pub step: String,
    /// What.
    pub error: tokio_postgres::Error,
}

impl std::fmt::Display for Unexpected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n  ", self.step)?;
        match self.error.as_db_error() {
            Some(db) => write!(
                f,
                "{} {} {}",
                db.code().code(),
                db.message(),
                db.where_().unwrap_or("")
            ),
            None => write!(f, "{:?}", self.error),
        }
    }
}

impl Unexpected {
    /// Whether the connection is gone, rather than a statement refused.
    pub fn is_broken(&self) -> bool {
        let code = self.error.code().map_or("", |code| code.code());
        self.error.is_closed()
            || self.error.as_db_error().is_none()
            || code.starts_with("57P")
            || code.starts_with("08")
    }
}

impl Worker {
    /// Client `number` of the crowd of `seed`.
    pub fn new(seed: u64, number: usize, pgvector: bool) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed.wrapping_mul(1000) + number as u64),
            number,
            pgvector,
            counts: Counts::new(),
        }
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        self.rng.random_range(0..end)
    }

    fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }

    /// An error that the crowd must expect is counted; any other is returned.
    fn judge(&mut self, step: &str, error: tokio_postgres::Error) -> Result<(), Unexpected> {
        let Some(db) = error.as_db_error() else {
            let step = step.to_owned();
            return Err(Unexpected { step, error });
        };
        if is_expected(db.code().code(), db.message()) {
            let code = db.code().code().to_owned();
            self.count(&code);
            return Ok(());
        }
        let step = step.to_owned();
        Err(Unexpected { step, error })
    }

    /// One transaction, explicit or not, to its end.
    pub async fn transaction(&mut self, client: &Client) -> Result<(), Unexpected> {
        if self.below(10) < 4 {
            let step = self.lone_step();
            match step.run(client).await {
                Ok(()) => self.count("autocommit"),
                Err(error) => self.judge(step.sql(), error)?,
            }
            return Ok(());
        }
        let level = match self.below(10) {
            0 | 1 => " isolation level repeatable read",
            2 => " isolation level serializable",
            _ => "",
        };
        self.plain(client, &format!("begin{level}")).await?;
        let mut savepoints = 0;
        for _ in 0..=self.below(6) {
            match self.below(10) {
                0 => {
                    savepoints += 1;
                    self.plain(client, &format!("savepoint s{savepoints}"))
                        .await?;
                }
                1 if savepoints > 0 => {
                    self.count("savepoint rolled back");
                    self.plain(client, &format!("rollback to s{savepoints}"))
                        .await?;
                }
                2 if savepoints > 0 => {
                    self.plain(client, &format!("release s{savepoints}"))
                        .await?;
                    savepoints -= 1;
                }
                _ => {
                    let step = self.step();
                    if let Err(error) = step.run(client).await {
                        self.judge(step.sql(), error)?;
                        if savepoints == 0 || self.below(4) == 0 {
                            self.count("rollback after an error");
                            return self.plain(client, "rollback").await;
                        }
                        self.count("savepoint rolled back");
                        self.plain(client, &format!("rollback to s{savepoints}"))
                            .await?;
                    }
                }
            }
        }
        if self.below(8) == 0 {
            self.count("rollback");
            return self.plain(client, "rollback").await;
        }
        match client.batch_execute("commit").await {
            Ok(()) => self.count("commit"),
            Err(error) => self.judge("commit", error)?,
        }
        Ok(())
    }

    /// A statement that must not fail.
    async fn plain(&mut self, client: &Client, sql: &str) -> Result<(), Unexpected> {
        let step = || sql.to_owned();
        client.batch_execute(sql).await.map_err(|error| Unexpected {
            step: step(),
            error,
        })
    }

    /// What may stand in a transaction.
    fn step(&mut self) -> Step {
        if self.below(12) == 0 {
            return Step::Sql(random_ddl::command(&mut self.rng, self.number));
        }
        self.row_step()
    }

    /// What may stand alone, a few things that must among them.
    fn lone_step(&mut self) -> Step {
        if self.below(25) == 0 {
            let command = random_ddl::lone_command(&mut self.rng, self.number);
            return Step::Sql(in_a_block(command));
        }
        match self.below(12) {
            0 => Step::Sql(format!("call churn({})", self.below(5))),
            1 => {
                let (one, two) = (self.row_sql(), self.row_sql());
                Step::Sql(format!("{one}; {two}"))
            }
            _ => match self.step() {
                Step::Sql(sql) => Step::Sql(in_a_block(sql)),
                other => other,
            },
        }
    }

    fn row_step(&mut self) -> Step {
        let n = self.below(12);
        match self.below(16) {
            0 => {
                let line = |i| format!("{n}\tcopied \\\\ {i}\t{{\"n\": {i}}}\t{i}.5\n");
                let data: String = (0..=n).map(line).collect();
                Step::Copy("copy keyless (a, b, c, d) from stdin".to_owned(), data)
            }
            1 => {
                let line = |i| format!("\"a \"\"quoted\"\" {i}\",{i},\"multi\nline\"\n");
                let data: String = (0..=n).map(line).collect();
                let sql = "copy serials (v, r, note) from stdin (format csv)";
                Step::Copy(sql.to_owned(), data)
            }
            2 => Step::Extended(
                "insert into keyless (a, b, d) values ($1::int, $2, random() + $3::float8)"
                    .to_owned(),
                vec![n.to_string(), "it's $1 \\ \"x\"".to_owned(), "0.1".to_owned()],
            ),
            3 => Step::Extended(
                "update accounts set owner = $2, touched = clock_timestamp() where id = $1::int returning *"
                    .to_owned(),
                vec![n.to_string(), format!("set by {}", self.number)],
            ),
            _ => Step::Sql(self.row_sql()),
        }
    }

    /// A statement that changes rows.
    fn row_sql(&mut self) -> String {
        let (a, b, n) = (self.below(40), self.below(40), self.below(6) + 1);
        let sql = match self.below(57) {
            0..=3 => format!("update accounts set balance = balance + {n} - random()::numeric(10,4), touched = clock_timestamp() where id = {a}"),
            4 | 5 => format!("select transfer({a}, {b}, {n})"),
            6 => format!("insert into accounts (id, owner, balance) values ({a}, gen_random_uuid()::text, random() * 100) on conflict (id) do update set balance = accounts.balance + excluded.balance"),
            7 => format!("insert into accounts (id) select g from generate_series({a}, {a} + {n}) g on conflict do nothing"),
            8 => format!("delete from accounts where id = {a}"),
            9 => format!("merge into accounts t using (select g as id, random()::numeric(8,2) as r from generate_series({a}, {a} + {n}) g) s on t.id = s.id \
                    when matched and s.r > 0.7 then delete when matched then update set balance = t.balance + s.r when not matched then insert (id, balance) values (s.id, s.r)"),
            10 => format!("update accounts set balance = balance + 1 where id in (select id from accounts order by random() limit {n} for update skip locked)"),
            11 => format!("update accounts set id = {b} + 100 * (random() * 9)::int where id = {a}"),
            12 => format!("with moved as (update accounts set balance = balance - 1 where id between {a} and {a} + 3 returning id, balance) insert into keyless (a, b) select id, balance from moved"),
            13 => format!("insert into keyless (a, b) select g % 3, 'same' from generate_series(1, {n}) g"),
            14 => format!("insert into keyless select {a}, md5(random()::text), json_build_object('r', random()), random() from generate_series(1, {n})"),
            15 | 16 => format!("update keyless set d = random() where ctid = any (array(select ctid from keyless where a = {} limit {n}))", a % 4),
            17 => format!("update keyless set b = b || '+', c = null where a = {} and length(b) < 20", a % 4),
            18 => format!("delete from keyless where ctid = any (array(select ctid from keyless where a = {} limit {n}))", a % 4),
            19 => "insert into keyless values (null, null, null, null), (null, null, null, null), (1, '', '[1, 2]', '-0'), (1, '', '[1, 2]', 'nan')".to_owned(),
            20 => "delete from keyless where a is null".to_owned(),
            21 => format!("with gone as (delete from keyless where a = {} returning *) insert into serials (v, r) select coalesce(b, 'null'), d from gone", a % 4),
            22 | 23 => format!("insert into serials select from generate_series(1, {n})"),
            24 => "insert into serials default values returning id, lastval()".to_owned(),
            25 => "update serials set id = nextval('serials_id_seq') where id = (select min(id) from serials)".to_owned(),
            26 => format!("delete from serials where id % 40 = {a}"),
            27 => format!("insert into identities (v) select random()::text from generate_series(1, {n})"),
            28 => format!("insert into identities (id, v) overriding system value values ({a} + 100000, 'given')"),
            29 => "update identities set id = default, v = v || '!' where id = (select min(id) from identities)".to_owned(),
            30 => format!("insert into loose (k, v) values ({a}, repeat('loose', 1000)) on conflict (k) do update set v = excluded.v || random()"),
            31 => format!("update loose set other = {n}, id = default where k = {a}"),
            32 => format!("insert into made (a, d) values ({a}, 'text ' || {b}) on conflict (a) do update set d = excluded.d || random()::text"),
            33 => format!("update made set a = {a} + 1000 * {n} where a = {b}"),
            34 | 35 => format!("insert into parts (id, region, v) select g, {n}, md5(random()::text) from generate_series({a}, {a} + 2) g on conflict do nothing"),
            36 | 37 => format!("update parts set region = {n}, v = v || '>' where id = {a}"),
            38 => format!("delete from parts where id = {a} and region <> {n}"),
            39 => format!("update ranks set rank = case rank when {} then {} else {} end where rank in ({}, {})", a % 10, b % 10, a % 10, a % 10, b % 10),
            40 => "update ranks set rank = rank + 1, place = place - 1".to_owned(),
            41 => format!("insert into children (id, parent, v) values ({a} + {b} * 100, {n}, 'child') on conflict do nothing; insert into parents (id) values ({n}) on conflict do nothing"),
            42 => format!("delete from parents where id = {n}"),
            43 => format!("update parents set id = {n} + 10 where id = {n}"),
            44 => format!("insert into big (id, big, bytes, doc) values ({a}, (select string_agg(md5(random()::text), '') from generate_series(1, 400)), decode(repeat(md5(random()::text), 300), 'hex'), jsonb_build_object('k', repeat('v', 20000), 'r', random())) on conflict (id) do nothing"),
            45 => format!("update big set small = coalesce(small, 0) + 1 where id between {a} and {a} + 5"),
            46 => format!("update big set id = {b} + 200 where id = {a}"),
            47 => format!("update big set doc = jsonb_set(doc, '{{r}}', to_jsonb(random())) where id = {a}"),
            48 | 49 => format!("insert into rich select * from rich_row({a}) on conflict (id) do update set tags = rich.tags || excluded.tags, during = excluded.during, feeling = excluded.feeling"),
            50 => format!("update rich set tags[{n}] = 'n' || {a}, who.b = 'changed {b}', doc = doc || jsonb_build_object('{a}', now()), span = span * 2, amount = amount / 3 where id between {a} and {b}"),
            51 => format!("insert into checked (id, v) values ({a}, {b} + random()) on conflict (id) do update set v = checked.v + 1"),
            52 => format!("update checked set id = {b}, v = random() * 2 where id = {a}"),
            53 => format!("delete from checked where id = {a}"),
            54 => format!("do $$ begin insert into serials (v) values ('kept'); begin insert into accounts (id) values ({a}); insert into keyless (a, b) values (1, 'maybe'); raise exception 'no'; exception when others then null; end; end $$"),
            55 => format!("set local datestyle = 'SQL, DMY'; set local intervalstyle = 'sql_standard'; set local extra_float_digits = -10; set local bytea_output = 'escape'; set local timezone = 'Asia/Kolkata'; \
                    insert into settings_seen values (clock_timestamp(), '01/02/2003', '1-2', random(), 'a\\\\b', {n})"),
            _ if self.pgvector => format!("insert into items (v, h, s) select array[random(), {a}, {b}]::vector(3), '[1,{n}]', '{{1:{n},3:2.5}}/5' from generate_series(1, {n}); \
                    update items set v = v + '[1,0.5,-2]' where id % 7 = {n}; delete from items where id % 20 = {a}"),
            _ => format!("select pg_advisory_xact_lock({n}), pg_notify('news', 'x')"),
        };
        if self.below(30) == 0 {
            format!(
                "create temp table if not exists aside (a int); insert into aside values ({n}); {sql}"
            )
        } else {
            sql
        }
    }
}

/// Savepoints need a transaction block.
fn in_a_block(sql: String) -> String {
    if sql.starts_with("savepoint") {
        return format!("begin; {sql}; commit");
    }
    sql
}

/// What such a crowd must meet.
fn is_expected(code: &str, message: &str) -> bool {
    match code {
        "40P01" | "40001" | "23505" | "23503" | "23514" | "23502" | "23P01" | "22003" | "42P01"
        | "42P07" | "42701" | "42703" | "42704" | "42710" | "42723" | "42883" | "2BP01"
        | "55P03" | "P0001" | "42P16" | "3F000" | "42P06" => true,
        "0A000" => message.contains("cached plan"),
        "XX000" => {
            message.contains("tuple concurrently")
                || message.contains("could not open relation with OID")
                || message.contains("cache lookup failed")
        }
        _ => false,
    }
}

/// Adds one client's counts to the crowd's.
pub fn add(all: &mut Counts, more: &Counts) {
    for (what, count) in more {
        *all.entry(what.clone()).or_default() += count;
    }
}
