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
    let look = Look::open(copies, DATABASE).await;
    look.compare(&mut found, "roles and databases", GLOBALS)
        .await;
    let databases = look.ask(0, DATABASES).await;
    drop(look);
    for database in databases {
        // Connections are kept no longer than needed: they would be in the way of DROP DATABASE.
        if !found.is_empty() {
            break;
        }
        let look = Look::open(copies, &database).await;
        let tables = look.compare(&mut found, "tables", TABLES).await;
        look.compare(&mut found, "invalid indexes", INVALID).await;
        if found.is_empty() {
            look.compare_rows(&mut found, &tables).await;
        }
        if found.is_empty() {
            let schemas: Vec<Vec<String>> = std::thread::scope(|scope| {
                let database = &database;
                let dump = |copy| scope.spawn(move || schema(copy, database));
                let dumps: Vec<_> = copies.iter().map(dump).collect();
                dumps
                    .into_iter()
                    .map(|dump| dump.join().expect("no panic"))
                    .collect()
            });
            look.report(&mut found, "schema", &schemas);
        }
    }
    found
}

const DATABASES: &str =
    "select datname from pg_database where datallowconn and not datistemplate order by 1";

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

const FIXED: &str = "
    set search_path = pg_catalog; set datestyle = 'ISO, YMD'; set intervalstyle = postgres; set timezone = 'UTC';
    set extra_float_digits = 3; set bytea_output = hex; set lc_monetary = 'C'; set xmloption = content;
    set row_security = on; set default_transaction_read_only = on; set statement_timeout = 0;
    set client_min_messages = warning";

/// One look at one database of all copies.
struct Look<'a> {
    copies: &'a [Copy],
    database: String,
    clients: Vec<Result<Client, tokio_postgres::Error>>,
}

impl<'a> Look<'a> {
    async fn open(copies: &'a [Copy], database: &str) -> Self {
        let mut clients = Vec::new();
        for copy in copies {
            let client = connect(copy.port, USER, PASSWORD, database).await;
            clients.push(match client {
                Ok(client) => client.batch_execute(FIXED).await.map(|()| client),
                Err(error) => Err(error),
            });
        }
        Self {
            copies,
            database: database.to_owned(),
            clients,
        }
    }

    /// One column of a query on one copy. An error becomes a line with the copy's name in it, so that
    /// it never passes for equality.
    async fn ask(&self, index: usize, query: &str) -> Vec<String> {
        let answer = match &self.clients[index] {
            Ok(client) => client.simple_query(query).await,
            Err(error) => return vec![format!("{}: {error:?}", self.copies[index].name)],
        };
        let messages = match answer {
            Ok(messages) => messages,
            Err(error) => {
                return vec![format!("{}: {error:?}: {query}", self.copies[index].name)];
            }
        };
        messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_owned()),
                _ => None,
            })
            .collect()
    }

    async fn ask_all(&self, query: &str) -> Vec<Vec<String>> {
        let mut all = Vec::new();
        for index in 0..self.clients.len() {
            all.push(self.ask(index, query).await);
        }
        all
    }

    /// Compares one query's answers, and gives the first copy's.
    async fn compare(&self, found: &mut String, what: &str, query: &str) -> Vec<String> {
        let mut all = self.ask_all(query).await;
        self.report(found, what, &all);
        all.swap_remove(0)
    }

    async fn compare_rows(&self, found: &mut String, tables: &[String]) {
        for table in tables {
            let sums = format!(
                "select format('%s %s %s', count(*), sum(hashtextextended(row(r.*)::text, 1)::numeric),
                        sum(hashtextextended(row(r.*)::text, 2)::numeric)) from only {table} as r"
            );
            let sums = self.ask_all(&sums).await;
            let first = sums[0].concat();
            let count: u64 = first
                .split(' ')
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0);
            let what = format!("rows of {table}");
            // Unequal sums of a large table say enough: its rows are not fetched.
            if count > ROWS_MAX {
                self.report(found, &what, &sums);
                continue;
            }
            let rows = format!(
                "select row(r.*)::text from only {table} as r order by row(r.*)::text collate \"C\""
            );
            self.compare(found, &what, &rows).await;
            if found.is_empty() {
                // Between the two looks the copies became equal, or the sums lie: look again.
                self.report(found, &what, &sums);
            }
        }
    }

    /// Writes down which lines the first copy has and another lacks, and the other way round.
    fn report(&self, found: &mut String, what: &str, all: &[Vec<String>]) {
        let reference = count(&all[0]);
        for (copy, lines) in self.copies.iter().zip(all).skip(1) {
            if *lines == all[0] || found.len() > 20_000 {
                continue;
            }
            let other = count(lines);
            let (first, database) = (&self.copies[0].name, &self.database);
            writeln!(found, "{what} of {database}: {first} against {}", copy.name)
                .expect("a string");
            let missing = surplus(&reference, &other);
            let more = surplus(&other, &reference);
            for (sign, list) in [("only on the first", missing), ("only on the other", more)] {
                writeln!(found, "  {} {sign}", list.len()).expect("a string");
                for line in list.iter().take(SHOWN) {
                    let line: String = line.chars().take(300).collect();
                    writeln!(found, "    {line}").expect("a string");
                }
            }
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
