//! A node with the doors and the relay before it, in this process.

use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use synapsedb::config::Config;
use synapsedb::node::pool::Pool;
use synapsedb::session::listener::{self, Door};
use synapsedb::session::shared::Shared;
use synapsedb::session::{offices, relay};
use tokio_util::task::TaskTracker;

use crate::raw::Raw;
use crate::support::cluster::TestCluster;

/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// One node with the relay before it.
pub struct House {
    pub cluster: TestCluster,
    pub shared: Arc<Shared>,
    pub port: u16,
    pub read_only_port: u16,
}

impl House {
    /// With pools of so many connections.
    pub async fn open(connections: usize) -> Self {
        Self::open_with(&format!("max_connections = {connections}"), |_| {}).await
    }

    /// With these keys for the pools, and changes to the whole once the node is there.
    pub async fn open_with(pool: &str, change: impl FnOnce(&mut Config)) -> Self {
        Self::open_nodes(1, pool, change).await
    }

    /// The same before so many servers that know nothing of each other; the first is the writer.
    pub async fn open_nodes(nodes: usize, pool: &str, change: impl FnOnce(&mut Config)) -> Self {
        let config = format!("[pool]\n{pool}\n");
        let builder = TestCluster::builder().nodes(nodes).without_proxy();
        let builder = builder
            .setting("max_connections", "80")
            .setting("log_statement", "all")
            .config(&config);
        let cluster = builder.start().await;
        let file = cluster.folder().join("proxy.toml");
        let text = std::fs::read_to_string(&file).expect("the cluster wrote it");
        let password = |_: &str| Some(PASSWORD.to_owned());
        let mut config = Config::parse(&text, &file, &password).expect("a good configuration");
        change(&mut config);
        let shared = Arc::new(Shared::new(Arc::new(config)).expect("set up"));
        tokio::spawn(offices::attend(Arc::clone(&shared)));
        let clients = TaskTracker::new();
        let mut ports = [0; 2];
        for (port, read_only) in ports.iter_mut().zip([false, true]) {
            let listener = listener::bind("127.0.0.1:0").await.expect("a free port");
            *port = listener.local_addr().expect("bound").port();
            let door = Door {
                listener,
                read_only,
            };
            tokio::spawn(door.serve(Arc::clone(&shared), clients.clone(), relay::run));
        }
        Self {
            cluster,
            shared,
            port: ports[0],
            read_only_port: ports[1],
        }
    }

    /// The superuser's session.
    pub async fn client(&self) -> tokio_postgres::Client {
        self.client_at(self.port, USER).await
    }

    /// Somebody's session by one of the doors.
    pub async fn client_at(&self, port: u16, user: &str) -> tokio_postgres::Client {
        let client = crate::support::cluster::connect(port, user, PASSWORD, DATABASE).await;
        client.expect("the door is open")
    }

    /// A session that logs in though somebody has the only connection: he lends it meanwhile.
    pub async fn client_beside(&self, holder: &tokio_postgres::Client) -> tokio_postgres::Client {
        holder.batch_execute("commit").await.expect("committed");
        let client = self.client().await;
        holder.batch_execute("begin; select").await.expect("begun");
        client
    }

    /// The pool in which the superuser's sessions find their connections.
    pub fn pool(&self) -> Arc<Pool> {
        let pool = self.shared.pools.pool(self.shared.writer(), USER, DATABASE);
        pool.expect("a node")
    }

    /// Waits until somebody is in line for one of those connections.
    pub async fn until_in_line(&self) {
        let pool = self.pool();
        until("somebody waits", async || pool.waiting() > 0).await;
    }

    /// Waits until the sessions of all but so many clients have ended.
    pub async fn until_left(&self, clients: usize) {
        let seats = &self.shared.seats;
        until("the others have left", async || seats.taken() == clients).await;
    }

    /// A session byte by byte, logged in.
    pub async fn raw(&self) -> Raw {
        Raw::login(self.port, &[]).await
    }

    /// Runs one of the server's programs against the relay and waits for its end.
    pub async fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let path: PathBuf = self.cluster.program(program);
        let output = tokio::process::Command::new(path)
            .args(arguments)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", USER)
            .env("PGPASSWORD", PASSWORD)
            .env("PGDATABASE", DATABASE)
            .env("PSQLRC", "/dev/null")
            .kill_on_drop(true)
            .output();
        let limit = std::time::Duration::from_secs(120);
        let output = tokio::time::timeout(limit, output).await;
        output.expect("it ends").expect("it runs")
    }
}

/// Waits until it is so.
pub async fn until(what: &str, question: impl AsyncFn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !question().await {
        assert!(Instant::now() < end, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a simple query gave, row by row, columns joined by `|`.
pub async fn rows(client: &tokio_postgres::Client, sql: &str) -> Vec<String> {
    let messages = client
        .simple_query(sql)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let row = |message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            let column = |at| row.get(at).unwrap_or("null").to_owned();
            Some((0..row.len()).map(column).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

/// The one value of a simple query.
pub async fn value(client: &tokio_postgres::Client, sql: &str) -> String {
    let rows = rows(client, sql).await;
    assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
    rows[0].clone()
}

/// The SQLSTATE of a failed query, 00000 for success.
pub fn code<T>(result: Result<T, tokio_postgres::Error>) -> String {
    match result {
        Ok(_) => "00000".to_owned(),
        Err(error) => error
            .code()
            .map_or_else(|| error.to_string(), |code| code.code().to_owned()),
    }
}
