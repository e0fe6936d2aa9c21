//! Clients that write numbered lines while something is broken, what each was told of every line, and whether the
//! copies agree with that afterwards.
//!
//! A line's rows go into some of three tables in one of the ways in which people write. None of the tables refuses a
//! second row of the same number, so what was done twice shows.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use tokio::task::JoinHandle;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::{Client, Error, SimpleQueryMessage, Statement};

use crate::random::{self, Counts};
use crate::support::cluster::connect;
use crate::tools::{PATIENCE, rows, run, until};

/// How many clients write at once.
pub const CLIENTS: usize = 16;
/// Where lines go.
pub const TABLES: [&str; 3] = ["ledger", "ledger_keyed", "ledger_wide"];
/// The errors that a fault of nodes may bring to clients. Any other is the proxy's.
const ALLOWED: [&str; 6] = ["40001", "08007", "57P01", "25006", "57P03", "25P02"];
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(50);

/// What a client was told of one of its writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is committed.
    Acknowledged,
    /// It is not.
    Refused,
    /// It was lost with its writer, which may have it still.
    Lost,
    /// Nothing certain.
    Unknown,
}

/// What an error says of a statement; `commits`: with it, the transaction could have been committed.
pub fn told(error: &Error, commits: bool) -> Told {
    let says = |text| {
        error
            .as_db_error()
            .is_some_and(|db| db.message().starts_with(text))
    };
    match error.code().map(SqlState::code) {
        Some("08007") if says("the transaction was committed") => Told::Acknowledged,
        Some("08007" | "08006") => Told::Unknown,
        Some("40001") if commits => Told::Lost,
        None if commits => Told::Unknown,
        _ => Told::Refused,
    }
}

/// What clients and the test tell each other.
#[derive(Default)]
pub struct Signals {
    stop: AtomicBool,
    acknowledged: AtomicUsize,
    refused: AtomicUsize,
}

impl Signals {
    /// Whether clients are to go on.
    pub fn go_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// One more line is acknowledged.
    pub fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

/// Clients at work, each of which gives a `T` at its end.
pub struct Crowd<T> {
    signals: Arc<Signals>,
    tasks: Vec<JoinHandle<T>>,
}

impl<T: Send + 'static> Crowd<T> {
    /// So many of them, by number.
    pub fn gather<F>(size: usize, client: impl Fn(usize, Arc<Signals>) -> F) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        let signals = Arc::<Signals>::default();
        let start = |number| tokio::spawn(client(number, Arc::clone(&signals)));
        let tasks = (0..size).map(start).collect();
        Self { signals, tasks }
    }

    /// Waits for so many more acknowledged lines.
    pub async fn lines(&self, more: usize) {
        let acknowledged = || self.signals.acknowledged.load(Ordering::Relaxed);
        let goal = acknowledged() + more;
        until("lines are acknowledged", || async {
            acknowledged() >= goal
        })
        .await;
    }

    /// Waits until one more is refused, since no majority would have it.
    pub async fn refusal(&self) {
        let refused = || self.signals.refused.load(Ordering::Relaxed);
        let before = refused();
        until("a line is refused", || async { refused() > before }).await;
    }

    /// Ends their work.
    pub async fn disperse(self) -> Vec<T> {
        self.signals.stop.store(true, Ordering::Relaxed);
        let mut ends = Vec::new();
        for task in self.tasks {
            let ended = tokio::time::timeout(PATIENCE * 2, task).await;
            ends.push(ended.expect("every client ends").expect("no panic"));
        }
        ends
    }
}

/// Makes the tables.
pub async fn set_up(client: &Client) {
    run(
        client,
        "create table ledger (client int not null, n int not null);
         create table ledger_keyed (id bigint generated always as identity primary key, client int not null, n int not null);
         create table ledger_wide (client int not null, n int not null, filler text not null);
         create index on ledger (client, n); create index on ledger_keyed (client, n);
         create index on ledger_wide (client, n)",
    )
    .await;
}

/// Sixteen clients that write lines.
pub fn writers(port: u16, seed: u64) -> Crowd<Ledger> {
    Crowd::gather(CLIENTS, |number, signals| {
        Writer::new(seed, number).work(port, signals)
    })
}

/// One line.
#[derive(Clone, Copy, Debug)]
struct Line {
    /// In which tables it has a row where it is committed.
    tables: [bool; TABLES.len()],
    told: Told,
}

/// What one client did and heard.
#[derive(Default)]
pub struct Ledger {
    lines: Vec<Line>,
    counts: Counts,
    faults: Vec<String>,
    longest: Duration,
    /// How often there was no majority.
    refused: usize,
}

impl Ledger {
    fn count(&mut self, what: String) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Counts an error by its kind. `doing`: what was tried.
    fn hear(&mut self, doing: &str, error: &Error) {
        let code = error.code().map_or("lost", SqlState::code);
        self.refused += usize::from(code == "25006");
        if code != "lost" && !ALLOWED.contains(&code) {
            self.faults.push(format!("{doing}: {error:?}"));
        }
        self.count(format!("{doing} {code}"));
    }
}

/// A connection with what was prepared on it.
struct Session {
    client: Client,
    inserts: Vec<Statement>,
}

impl Session {
    async fn open(port: u16) -> Result<Self, Error> {
        let client = connect(port, USER, PASSWORD, DATABASE).await?;
        let mut inserts = Vec::new();
        for table in 0..TABLES.len() {
            inserts.push(client.prepare(&insert(table, "$1", "$2")).await?);
        }
        Ok(Self { client, inserts })
    }

    /// Whether it can be used after this error.
    fn outlives(&self, error: &Error) -> bool {
        let ends = |severity| matches!(severity, Severity::Fatal | Severity::Panic);
        let db = error.as_db_error();
        db.is_some_and(|db| !db.parsed_severity().is_some_and(ends)) && !self.client.is_closed()
    }
}

fn insert(table: usize, client: &str, n: &str) -> String {
    let (columns, more) = match TABLES[table] {
        "ledger_wide" => ("client, n, filler", ", repeat('wide', 100)"),
        _ => ("client, n", ""),
    };
    let table = TABLES[table];
    format!("insert into {table} ({columns}) values ({client}, {n}{more})")
}

/// One statement of a line.
enum Step {
    Sql(String),
    /// Into this table, prepared.
    Prepared(usize),
}

/// How a line is written.
#[derive(Default)]
struct Plan {
    tables: [bool; TABLES.len()],
    steps: Vec<Step>,
    /// The last step makes it happen; else nothing does.
    commits: bool,
}

struct Writer {
    number: usize,
    rng: StdRng,
    ledger: Ledger,
}

impl Writer {
    fn new(seed: u64, number: usize) -> Self {
        Self {
            number,
            rng: StdRng::seed_from_u64(seed.wrapping_mul(1000) + number as u64),
            ledger: Ledger::default(),
        }
    }

    async fn work(mut self, port: u16, signals: Arc<Signals>) -> Ledger {
        while signals.go_on() {
            let session = match Session::open(port).await {
                Ok(session) => session,
                Err(error) => {
                    self.ledger.hear("connect", &error);
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            while signals.go_on() {
                let before = self.ledger.refused;
                let told = self.line(&session).await;
                if self.ledger.refused > before {
                    signals.refused.fetch_add(1, Ordering::Relaxed);
                }
                if told == Ok(Told::Acknowledged) {
                    signals.acknowledge();
                }
                let n = self.ledger.lines.len() - 1;
                if told.is_err() || self.read_back(&session, n).await.is_err() {
                    break;
                }
            }
        }
        self.ledger
    }

    /// Writes the next line. An error: the connection can't be used any more.
    async fn line(&mut self, session: &Session) -> Result<Told, ()> {
        let n = self.ledger.lines.len();
        let plan = self.plan(n);
        let began = Instant::now();
        let mut outcome = Ok(if plan.commits {
            Told::Acknowledged
        } else {
            Told::Refused
        });
        let mut usable = true;
        for (at, step) in plan.steps.iter().enumerate() {
            let commits = plan.commits && at + 1 == plan.steps.len();
            let done = tokio::time::timeout(PATIENCE, self.run(session, step, n)).await;
            match done {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => {
                    self.ledger.hear("write", &error);
                    outcome = Err(told(&error, commits));
                    usable = session.outlives(&error);
                }
                Err(_) => {
                    let fault = format!("line {n} of client {}: no answer", self.number);
                    self.ledger.faults.push(fault);
                    outcome = Err(if commits {
                        Told::Unknown
                    } else {
                        Told::Refused
                    });
                    usable = false;
                }
            }
            if usable && let Err(error) = session.client.batch_execute("rollback").await {
                self.ledger.hear("rollback", &error);
                usable = session.outlives(&error);
            }
            break;
        }
        let told = outcome.unwrap_or_else(|told| told);
        if told == Told::Acknowledged {
            self.ledger.longest = self.ledger.longest.max(began.elapsed());
        }
        let tables = plan.tables;
        self.ledger.lines.push(Line { tables, told });
        usable.then_some(told).ok_or(())
    }

    async fn run(&self, session: &Session, step: &Step, n: usize) -> Result<(), Error> {
        match step {
            Step::Sql(sql) => session.client.batch_execute(sql).await,
            Step::Prepared(table) => {
                let whole = |n: usize| i32::try_from(n).expect("not so many");
                let (number, n) = (whole(self.number), whole(n));
                let insert = &session.inserts[*table];
                session.client.execute(insert, &[&number, &n]).await?;
                Ok(())
            }
        }
    }

    /// One of the ways in which people write.
    fn plan(&mut self, n: usize) -> Plan {
        let first = self.rng.random_range(0..TABLES.len());
        let other = (first + 1) % TABLES.len();
        let (client, n) = (self.number.to_string(), n.to_string());
        let text = |table| insert(table, &client, &n);
        let sql = |text: &str| Step::Sql(text.to_owned());
        let mut plan = Plan {
            commits: true,
            ..Plan::default()
        };
        plan.tables[first] = true;
        let way = self.rng.random_range(0..12);
        plan.steps = match way {
            0..=2 => vec![Step::Sql(text(first))],
            3..=5 => vec![Step::Prepared(first)],
            6 | 7 => {
                plan.tables = [true; TABLES.len()];
                let mut steps = vec![sql("begin")];
                for table in 0..TABLES.len() {
                    let prepared = self.rng.random_range(0..2) == 0;
                    steps.push(if prepared {
                        Step::Prepared(table)
                    } else {
                        Step::Sql(text(table))
                    });
                }
                steps.push(sql("commit"));
                steps
            }
            8 | 9 => {
                plan.tables[other] = true;
                let both = format!("{}; {}", text(first), text(other));
                vec![Step::Sql(if way == 8 {
                    both
                } else {
                    format!("begin; {both}; commit")
                })]
            }
            10 => vec![
                sql("begin"),
                Step::Prepared(first),
                sql("savepoint a"),
                Step::Prepared(other),
                sql("rollback to a"),
                sql("commit"),
            ],
            _ => {
                plan.commits = false;
                vec![sql("begin"), Step::Prepared(first), sql("rollback")]
            }
        };
        plan
    }

    /// What was acknowledged is there for who asks next. An error: the connection can't be used any more.
    async fn read_back(&mut self, session: &Session, n: usize) -> Result<(), ()> {
        let line = self.ledger.lines[n];
        if line.told != Told::Acknowledged || self.rng.random_range(0..4) > 0 {
            return Ok(());
        }
        for (table, there) in TABLES.iter().zip(line.tables) {
            let number = self.number;
            let sql = format!("select count(*) from {table} where client = {number} and n = {n}");
            match session.client.simple_query(&sql).await {
                Ok(messages) => {
                    let count = messages.iter().find_map(|message| match message {
                        SimpleQueryMessage::Row(row) => row.get(0),
                        _ => None,
                    });
                    if count != Some(if there { "1" } else { "0" }) {
                        let fault = format!("{table}: line {n} of client {number} read {count:?}");
                        self.ledger.faults.push(fault);
                    }
                }
                Err(error) => {
                    self.ledger.hear("read", &error);
                    if !session.outlives(&error) {
                        return Err(());
                    }
                }
            }
        }
        Ok(())
    }
}

/// What all clients were told.
pub struct Books {
    ledgers: Vec<Ledger>,
    /// Errors by what was tried and SQLSTATE (`lost`: the connection ended without a word), and lines by what was told.
    pub counts: Counts,
}

impl Books {
    /// Of clients that have ended.
    pub fn new(ledgers: Vec<Ledger>) -> Self {
        let mut counts = Counts::new();
        for ledger in &ledgers {
            random::add(&mut counts, &ledger.counts);
            for line in &ledger.lines {
                *counts.entry(format!("{:?}", line.told)).or_default() += 1;
            }
        }
        Self { ledgers, counts }
    }

    /// How often something was counted.
    pub fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// The longest time that an acknowledged line took.
    pub fn longest(&self) -> Duration {
        let longest = self.ledgers.iter().map(|ledger| ledger.longest);
        longest.max().unwrap_or_default()
    }

    /// What clients met that no fault of nodes explains.
    pub fn faults(&self) -> Vec<String> {
        let faults = self.ledgers.iter().flat_map(|ledger| &ledger.faults);
        faults.cloned().collect()
    }

    /// What a node holds that clients were told otherwise: an acknowledged line is there exactly once, a refused one
    /// is not, an unknown one is there wholly or not at all. `may_lack`: the node is out of service and may lack any.
    pub async fn faults_on(&self, node: &Client, may_lack: bool) -> Vec<String> {
        let mut found: BTreeMap<(usize, usize), [u64; TABLES.len()]> = BTreeMap::new();
        for (at, table) in TABLES.iter().enumerate() {
            for row in rows(node, &format!("select client, n from {table}")).await {
                let (client, n) = row.split_once('|').expect("two columns");
                let number = |text: &str| text.parse::<usize>().expect("a number");
                found.entry((number(client), number(n))).or_default()[at] += 1;
            }
        }
        let mut faults = Vec::new();
        for (client, ledger) in self.ledgers.iter().enumerate() {
            for (n, line) in ledger.lines.iter().enumerate() {
                let times = found.remove(&(client, n)).unwrap_or_default();
                let whole = line.tables.map(u64::from);
                let nothing = [0; TABLES.len()];
                let right = match line.told {
                    Told::Acknowledged => times == whole || may_lack && times == nothing,
                    Told::Refused => times == nothing,
                    Told::Lost => times == nothing || may_lack && times == whole,
                    Told::Unknown => times == whole || times == nothing,
                };
                if !right {
                    let told = line.told;
                    faults.push(format!(
                        "line {n} of client {client}: {told:?}, there {times:?} times, not {whole:?}"
                    ));
                }
            }
        }
        let unheard = found.keys().map(|line| format!("nobody wrote {line:?}"));
        faults.extend(unheard);
        faults
    }
}
