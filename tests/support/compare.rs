//! The comparison of copies: roles, schema and every row of every table in every database.
//!
//! Rows are compared as text of the whole row, as multisets, so a table needs no key. Quick sums are
//! compared first, to see when the copies are level; then the rows themselves. It writes nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::cluster::connect;

/// Past so many rows only the sums of a table are compared (two independent 64-bit hashes a row).
const ROWS_MAX: u64 = 200_000;
/// How many differences of one table are printed.
const SHOWN: usize = 5;

/// One of the servers to be compared.
pub struct Copy {
    pub name: String,
    pub port: u16,
    pub pg_dump: PathBuf,
}

/// Compares until all is equal, or says what differs at the end of `patience`.
pub async fn until_equal(copies: &[Copy], patience: Duration) -> Result<(), String> {
    let until = Instant::now() + patience;
    let mut pause = Duration::from_millis(20);
    loop {
        let found = differences(copies).await;
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(found);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// The first differences between copies, as text; empty where there are none.
async fn differences(copies: &[Copy]) -> String {
    let mut found = String::new();
    let globals = gather(copies, DATABASE, GLOBALS).await;
    report(&mut found, "roles and databases", copies, &globals);
    for database in databases(&copies[0]).await {
        let tables = gather(copies, &database, TABLES).await;
        report(
            &mut found,
            &format!("tables of {database}"),
            copies,
            &tables,
        );
        let indexes = gather(copies, &database, INVALID).await;
        report(
            &mut found,
            &format!("invalid indexes of {database}"),
            copies,
            &indexes,
        );
        if found.is_empty() {
            compare_rows(&mut found, copies, &database, &tables[0]).await;
        }
        if found.is_empty() {
            let schemas: Vec<Vec<String>> =
                copies.iter().map(|copy| schema(copy, &database)).collect();
            report(
                &mut found,
                &format!("schema of {database}"),
                copies,
                &schemas,
            );
        }
    }
    found
}

/// Roles with their attributes and verifiers, memberships, databases, settings of both. The applier's
/// role is the proxy's own affair: its password may differ.
const GLOBALS: &str = "
    select format('role %s %s %s', rolname, (to_jsonb(r) - 'oid' - 'rolname' - 'rolpassword'),
             case when rolname like 'synapsedb\\_%' then '' else rolpassword end) as line
      from pg_authid r where rolname !~ '^pg_'
    union all
    select format('member %s of %s %s', m.member::regrole, m.roleid::regrole, m.admin_option)
      from pg_auth_members m
    union all
    select format('database %s %s %s', datname, datdba::regrole, datacl::text)
      from pg_database where datallowconn
    union all
    select format('setting of %s in %s: %s', case when setrole = 0 then 'all' else setrole::regrole::text end,
             coalesce((select datname from pg_database d where d.oid = setdatabase), 'all'), setconfig::text)
      from pg_db_role_setting
    order by 1";

/// Everything that holds rows; the proxy's own tables are left out.
const TABLES: &str = "
    select c.oid::regclass::text as line
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'm') and c.relispopulated
       and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'synapsedb')
     order by 1";

const INVALID: &str = "
    select i.indexrelid::regclass::text as line from pg_index i
     where not (indisvalid and indisready and indislive) order by 1";

async fn open(copy: &Copy, database: &str) -> Client {
    let client = connect(copy.port, USER, PASSWORD, database).await;
    let client = client.unwrap_or_else(|error| panic!("{} ({database}): {error:?}", copy.name));
    let fixed = "set search_path = pg_catalog; set datestyle = 'ISO, YMD'; set intervalstyle = postgres; \
                 set timezone = 'UTC'; set extra_float_digits = 3; set bytea_output = hex; set lc_monetary = 'C'; \
                 set xmloption = content; set row_security = on; set default_transaction_read_only = on; \
                 set statement_timeout = 0; set client_min_messages = warning";
    client.batch_execute(fixed).await.expect("a superuser may");
    client
}

/// One column of one query, from each copy.
async fn gather(copies: &[Copy], database: &str, query: &str) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for copy in copies {
        let client = open(copy, database).await;
        all.push(lines(copy, &client, query).await);
    }
    all
}

/// An error becomes a line with the copy's name in it, so that it never passes for equality.
async fn lines(copy: &Copy, client: &Client, query: &str) -> Vec<String> {
    let messages = match client.simple_query(query).await {
        Ok(messages) => messages,
        Err(error) => return vec![format!("{}: {error:?}: {query}", copy.name)],
    };
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_owned()),
            _ => None,
        })
        .collect()
}

async fn databases(copy: &Copy) -> Vec<String> {
    let query =
        "select datname from pg_database where datallowconn and not datistemplate order by 1";
    let client = open(copy, DATABASE).await;
    lines(copy, &client, query).await
}

async fn compare_rows(found: &mut String, copies: &[Copy], database: &str, tables: &[String]) {
    let mut clients = Vec::new();
    for copy in copies {
        clients.push((copy, open(copy, database).await));
    }
    for table in tables {
        let sums = format!(
            "select format('%s %s %s', count(*), sum(hashtextextended(row(r.*)::text, 1)::numeric),
                    sum(hashtextextended(row(r.*)::text, 2)::numeric)) from only {table} as r"
        );
        let mut all = Vec::new();
        for (copy, client) in &clients {
            all.push(lines(copy, client, &sums).await);
        }
        let first = all[0].concat();
        let count: u64 = first
            .split(' ')
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        let equal = all.iter().all(|sum| *sum == all[0]);
        // Unequal sums of a large table say enough: its rows are not fetched.
        if count <= ROWS_MAX {
            let rows = format!(
                "select row(r.*)::text from only {table} as r order by row(r.*)::text collate \"C\""
            );
            all.clear();
            for (copy, client) in &clients {
                all.push(lines(copy, client, &rows).await);
            }
        }
        let what = format!("rows of {table} in {database}");
        report(found, &what, copies, &all);
        if !equal && found.is_empty() {
            // Between the two looks the copies became equal, or the sums lie: look again.
            writeln!(found, "{what}: the sums differ").expect("a string");
        }
    }
}

/// The schema as `pg_dump` sees it, without what differs from run to run.
fn schema(copy: &Copy, database: &str) -> Vec<String> {
    let output = std::process::Command::new(&copy.pg_dump)
        .args([
            "--schema-only",
            "--exclude-schema=synapsedb",
            "--host=127.0.0.1",
        ])
        .args(["--port", &copy.port.to_string(), "--username", USER])
        .args(["--dbname", database])
        .env("PGPASSWORD", PASSWORD)
        .output()
        .expect("pg_dump runs");
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        text = format!("{}: pg_dump failed: {words}", copy.name);
    }
    text.lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
        .map(str::to_owned)
        .collect()
}

/// Writes down which lines the first copy has and another lacks, and the other way round.
fn report(found: &mut String, what: &str, copies: &[Copy], all: &[Vec<String>]) {
    let reference = count(&all[0]);
    for (copy, lines) in copies.iter().zip(all).skip(1) {
        if *lines == all[0] {
            continue;
        }
        let other = count(lines);
        writeln!(found, "{what}: {} against {}", copies[0].name, copy.name).expect("a string");
        let missing = surplus(&reference, &other);
        let more = surplus(&other, &reference);
        for (sign, list) in [("only on the first", missing), ("only on the other", more)] {
            writeln!(found, "  {} {sign}", list.len()).expect("a string");
            for line in list.iter().take(SHOWN) {
                writeln!(found, "    {}", line.chars().take(300).collect::<String>())
                    .expect("a string");
            }
        }
        if found.len() > 20_000 {
            return;
        }
    }
}

fn count(lines: &[String]) -> BTreeMap<&str, usize> {
    let mut counted = BTreeMap::new();
    for line in lines {
        *counted.entry(line.as_str()).or_default() += 1;
    }
    counted
}

fn surplus(left: &BTreeMap<&str, usize>, right: &BTreeMap<&str, usize>) -> Vec<String> {
    left.iter()
        .filter_map(|(line, n)| {
            let more = n.saturating_sub(right.get(line).copied().unwrap_or(0));
            (more > 0).then(|| format!("{more} x {line}"))
        })
        .collect()
}
