//! A cluster for one test: real servers on free ports, and the proxy as a real child process.
//!
//! Dropping it kills and reaps everything. Where the test failed, the logs stay and are named.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use synapsedb::cli::demo::account::{Account, place};
use synapsedb::cli::demo::install::{PgInstall, Wanted};
use synapsedb::cli::demo::server::{DATABASE, PASSWORD, Server, Spec, USER};
use synapsedb::cli::demo::signal::DieWithUs;
use tokio_postgres::{Client, NoTls};

use super::compare;
use super::ports::{self, Port};

/// How long the proxy may take until it answers its first query.
const PROXY_PATIENCE: Duration = Duration::from_secs(60);
/// How long followers may take until they are equal.
const LEVEL_PATIENCE: Duration = Duration::from_secs(60);

/// What a cluster is to be; `TestCluster::start()` is three nodes with the proxy.
pub struct Builder {
    nodes: usize,
    settings: Vec<(String, String)>,
    config: String,
    environment: Vec<(String, String)>,
    proxy: bool,
}

impl Builder {
    /// So many servers.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// A line for every server's configuration.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sections for proxy.toml, beyond `[listen]`, `[admin]` and `[[node]]`.
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// A variable of the proxy's environment, e.g. `RUST_LOG`.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Servers only; [`TestCluster::start_proxy`] may follow.
    pub fn without_proxy(mut self) -> Self {
        self.proxy = false;
        self
    }

    /// Starts it all.
    pub async fn start(self) -> TestCluster {
        let wants_proxy = self.proxy;
        let cluster = tokio::task::spawn_blocking(move || TestCluster::start_servers(self)).await;
        let mut cluster = cluster.expect("servers start");
        cluster.spread_oids().await;
        if wants_proxy {
            cluster.start_proxy().await;
        }
        cluster
    }
}

/// Servers, and mostly the proxy before them.
pub struct TestCluster {
    folder: Option<tempfile::TempDir>,
    servers: Vec<Server>,
    proxy: Option<(Child, DieWithUs)>,
    environment: Vec<(String, String)>,
    read_write: Port,
    read_only: Port,
    http: Port,
    _node_ports: Vec<Port>,
}

impl TestCluster {
    /// Three nodes with the proxy before them, ready for queries.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// For anything but the usual.
    pub fn builder() -> Builder {
        Builder {
            nodes: 3,
            settings: Vec::new(),
            config: String::new(),
            environment: Vec::new(),
            proxy: true,
        }
    }

    /// Starts the proxy and waits until it answers.
    pub async fn start_proxy(&mut self) {
        self.spawn_proxy();
        self.wait_for_proxy().await;
    }

    /// Starts the proxy and waits for nothing.
    pub fn spawn_proxy(&mut self) {
        assert!(self.proxy.is_none(), "the proxy runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.proxy_log());
        let log = log.expect("the test's folder is ours");
        let errors = log.try_clone().expect("another handle");
        let child = self
            .command("serve")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn();
        let child = child.expect("the proxy's program runs");
        let pid = i32::try_from(child.id()).expect("small");
        self.proxy = Some((child, DieWithUs::new(pid).expect("a watchdog")));
    }

    /// Waits until a query through the proxy is answered.
    pub async fn wait_for_proxy(&mut self) {
        let until = Instant::now() + PROXY_PATIENCE;
        let mut last = String::new();
        while Instant::now() < until {
            if let Some(status) = self.proxy_exit() {
                panic!("the proxy ended with {status}:\n{}", self.proxy_log_tail());
            }
            match connect(self.read_write.number, USER, PASSWORD, DATABASE).await {
                Ok(client) => match client.simple_query("select 1").await {
                    Ok(_) => return,
                    Err(error) => last = format!("{error:?}"),
                },
                Err(error) => last = format!("{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!(
            "the proxy does not answer ({last}):\n{}",
            self.proxy_log_tail()
        );
    }

    /// How the proxy ended, where it has.
    pub fn proxy_exit(&mut self) -> Option<std::process::ExitStatus> {
        let (child, _) = self.proxy.as_mut()?;
        let status = child.try_wait().expect("our child");
        if status.is_some() {
            self.proxy = None;
        }
        status
    }

    /// SIGKILL to the proxy.
    pub fn kill_proxy(&mut self) {
        if let Some((mut child, _)) = self.proxy.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGKILL to the proxy, then a new one, ready for queries.
    pub async fn restart_proxy(&mut self) {
        self.kill_proxy();
        self.start_proxy().await;
    }

    /// The process number of the proxy, e.g. to measure its memory.
    pub fn proxy_pid(&self) -> u32 {
        self.proxy.as_ref().expect("the proxy runs").0.id()
    }

    /// The program with a subcommand and this cluster's configuration.
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_synapsedb"));
        command
            .arg(subcommand)
            .arg("--config")
            .arg(self.folder().join("proxy.toml"))
            .env("SYNAPSEDB_ADMIN_PASSWORD", PASSWORD)
            .envs(self.environment.iter().map(|(n, v)| (n, v)));
        command
    }

    /// A variable of the environment of every program that is started from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Takes all of these back.
    pub fn clear_env(&mut self) {
        self.environment.clear();
    }

    /// A client of the proxy, as superuser.
    pub async fn client(&self) -> Client {
        self.client_as(USER, PASSWORD, DATABASE).await
    }

    /// A client of the proxy.
    pub async fn client_as(&self, user: &str, password: &str, database: &str) -> Client {
        let client = connect(self.read_write.number, user, password, database).await;
        client.expect("the proxy takes connections")
    }

    /// A client of the port for reads.
    pub async fn reader(&self) -> Client {
        let client = connect(self.read_only.number, USER, PASSWORD, DATABASE).await;
        client.expect("the proxy takes connections")
    }

    /// A client of one node, past the proxy, as superuser.
    pub async fn node(&self, index: usize) -> Client {
        self.node_db(index, DATABASE).await
    }

    /// The same for another database.
    pub async fn node_db(&self, index: usize, database: &str) -> Client {
        let client = connect(self.servers[index].port(), USER, PASSWORD, database).await;
        client.expect("the node takes connections")
    }

    /// How many servers there are.
    pub fn nodes(&self) -> usize {
        self.servers.len()
    }

    /// A server, to be stopped, frozen or killed. Its calls block.
    pub fn server(&mut self, index: usize) -> &mut Server {
        &mut self.servers[index]
    }

    /// A server, to be looked at.
    pub fn server_ref(&self, index: usize) -> &Server {
        &self.servers[index]
    }

    /// A program of the servers' installation: psql, pgbench, `pg_dump`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.servers[0].install().program(name)
    }

    /// Whether the extension `vector` can be made.
    pub fn has_pgvector(&self) -> bool {
        self.servers[0].install().pgvector
    }

    /// The major version of the servers.
    pub fn major(&self) -> u32 {
        self.servers[0].install().version.major
    }

    /// The proxy's port for everything.
    pub fn port(&self) -> u16 {
        self.read_write.number
    }

    /// The proxy's port for reads.
    pub fn read_only_port(&self) -> u16 {
        self.read_only.number
    }

    /// The proxy's port for operators.
    pub fn http_port(&self) -> u16 {
        self.http.number
    }

    /// The port of a node.
    pub fn node_port(&self, index: usize) -> u16 {
        self.servers[index].port()
    }

    /// A libpq URL of the proxy.
    pub fn url(&self) -> String {
        let port = self.port();
        format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/{DATABASE}")
    }

    /// A folder of this test's own.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("until drop").path()
    }

    /// All that the proxy has logged.
    pub fn proxy_log_text(&self) -> String {
        std::fs::read_to_string(self.proxy_log()).unwrap_or_default()
    }

    /// Waits until all nodes hold the same and panics with the first differences where they never do.
    pub async fn assert_nodes_equal(&self) {
        if let Err(differences) = self.compare_nodes(LEVEL_PATIENCE).await {
            panic!("the nodes differ:\n{differences}");
        }
    }

    /// The same as a result.
    pub async fn compare_nodes(&self, patience: Duration) -> Result<(), String> {
        let nodes: Vec<usize> = (0..self.servers.len()).collect();
        self.compare_some(&nodes, patience).await
    }

    /// The same for some of the nodes: those that are up, say.
    pub async fn compare_some(&self, nodes: &[usize], patience: Duration) -> Result<(), String> {
        let copies: Vec<compare::Copy> = nodes
            .iter()
            .map(|index| compare::Copy {
                name: self.servers[*index].name().to_owned(),
                port: self.servers[*index].port(),
                pg_dump: self.program("pg_dump"),
            })
            .collect();
        compare::until_equal(&copies, patience).await
    }

    fn proxy_log(&self) -> PathBuf {
        self.folder().join("proxy.log")
    }

    fn proxy_log_tail(&self) -> String {
        let text = self.proxy_log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn start_servers(builder: Builder) -> Self {
        let account = Account::for_servers().expect("someone to run servers");
        let install = find_install(account.as_ref());
        let template = template(&install, account.as_ref());
        let folder = tempfile::Builder::new().prefix("synapsedb-test-").tempdir();
        let folder = folder.expect("a temporary folder");
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("our own folder");
        let node_ports: Vec<Port> = (0..builder.nodes).map(|_| ports::take()).collect();
        let mut settings = vec![("shared_buffers".to_owned(), "32MB".to_owned())];
        settings.extend(builder.settings);
        let mut servers: Vec<Server> = node_ports
            .iter()
            .enumerate()
            .map(|(index, port)| {
                Server::new(Spec {
                    name: format!("node{}", index + 1),
                    install: install.clone(),
                    folder: folder.path().join(format!("node{}", index + 1)),
                    port: port.number,
                    account: account.clone(),
                    settings: settings.clone(),
                })
            })
            .collect();
        std::thread::scope(|scope| {
            for server in &mut servers {
                let template = &template;
                scope.spawn(move || {
                    server.kill_on_drop();
                    server.init_from(template).expect("a copy of the template");
                    server.start().expect("the server starts");
                });
            }
        });
        let cluster = Self {
            folder: Some(folder),
            servers,
            proxy: None,
            environment: builder.environment,
            read_write: ports::take(),
            read_only: ports::take(),
            http: ports::take(),
            _node_ports: node_ports,
        };
        let config = cluster.config(&builder.config);
        std::fs::write(cluster.folder().join("proxy.toml"), config).expect("our own folder");
        cluster
    }

    fn config(&self, more: &str) -> String {
        let mut text = format!(
            "[listen]\nread_write = \"127.0.0.1:{}\"\nread_only = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{}\"\n\
             [admin]\nuser = \"{USER}\"\n",
            self.read_write.number, self.read_only.number, self.http.number
        );
        for server in &self.servers {
            let (name, port) = (server.name(), server.port());
            let node = format!("[[node]]\nname = \"{name}\"\nhost = \"127.0.0.1\"\nport = {port}");
            writeln!(text, "{node}").expect("a string takes all");
        }
        text + more
    }

    /// Nodes are copies of one template, yet in the field the same object has another OID on each:
    /// use up a different number of them.
    async fn spread_oids(&self) {
        for index in 1..self.servers.len() {
            let burn = format!(
                "do $$ begin for i in 1..{} loop create type burnt as enum (); drop type burnt; end loop; end $$",
                index * 7
            );
            let node = self.node(index).await;
            node.batch_execute(&burn).await.expect("a superuser may");
        }
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        self.kill_proxy();
        for server in &mut self.servers {
            server.kill9();
        }
        if std::thread::panicking() {
            for server in &self.servers {
                let _ = std::fs::remove_dir_all(server.data());
            }
            if let Some(folder) = self.folder.take() {
                eprintln!("logs are kept in {}", folder.keep().display());
            }
        }
    }
}

/// A connection, with its task.
pub async fn connect(
    port: u16,
    user: &str,
    password: &str,
    database: &str,
) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::Config::new()
        .host("127.0.0.1")
        .port(port)
        .user(user)
        .password(password)
        .dbname(database)
        .connect_timeout(Duration::from_secs(10))
        .connect(NoTls)
        .await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The installation to test on.
pub fn find_install(account: Option<&Account>) -> PgInstall {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    if let Some(bin) = variable("SYNAPSEDB_TEST_PG_BIN") {
        let found = PgInstall::find(&Wanted::default(), Some(&bin), &[], account);
        return found.unwrap_or_else(|error| panic!("SYNAPSEDB_TEST_PG_BIN: {error}"));
    }
    let wanted = Wanted {
        major: Some(16),
        pgvector: true,
    };
    let places = [place(Path::new(env!("CARGO_MANIFEST_DIR")), account).expect("a place")];
    let named = variable("SYNAPSEDB_PG_BIN");
    let found = PgInstall::find(&wanted, named.as_deref(), &places, account);
    found.unwrap_or_else(|error| panic!("{error}"))
}

/// A stopped server after initdb, made once for each installation and kept: copying is quicker.
fn template(install: &PgInstall, account: Option<&Account>) -> Server {
    let place = place(Path::new(env!("CARGO_MANIFEST_DIR")), account).expect("a place");
    let hash = synapsedb::ids::fnv1a(install.bin.as_os_str().as_encoded_bytes());
    let who = account.map_or("self", |account| account.name.as_str());
    // Raise the first number whenever `Server::init` makes something else than before.
    let name = format!("2-{}-{who}-{hash:016x}", install.version);
    let folder = place.join("test-templates").join(name);
    std::fs::create_dir_all(folder.parent().expect("has one")).expect("our own place");
    let lock = File::create(folder.with_extension("lock")).expect("our own place");
    lock.lock().expect("a lock");
    let server = Server::new(Spec {
        name: "template".to_owned(),
        install: install.clone(),
        folder,
        port: 1,
        account: account.cloned(),
        settings: Vec::new(),
    });
    if !server.is_initialised() {
        server.init().expect("initdb");
    }
    server
}
