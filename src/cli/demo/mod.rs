//! The demo: real servers on this machine with the proxy in front.
//!
//! What starts, stops and finds servers is a library, because the tests use it too. This file is the
//! order of events; it stops all it has started, on Ctrl-C and on every failure.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use self::account::Account;
use self::install::{NoInstall, PgInstall, Wanted};
use self::server::{PASSWORD, Server, ServerError, Spec, Stop, USER, port_is_free};
use super::serve::{self, ServeError};
use crate::config::Config;
use crate::config::read::ConfigError;

pub mod account;
pub mod install;
pub mod sample;
pub mod server;
pub mod signal;

/// The arguments of `demo`.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// The first node's port; the others follow.
    #[arg(long, value_name = "PORT", default_value_t = 5432)]
    pub port_base: u16,
    /// Where clients connect; the next port is for reads only.
    #[arg(long, value_name = "PORT", default_value_t = 5000)]
    pub listen_port: u16,
    /// Status, health and metrics.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub http_port: u16,
    /// So many servers; an odd number.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=15))]
    pub nodes: u16,
}

/// Why there is no demo.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// No servers to be had.
    #[error(transparent)]
    NoInstall(#[from] NoInstall),
    /// A server did not start or stop.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The proxy did not start.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The arguments make a configuration that is not allowed.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A file could not be had.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another demo is at work in this folder.
    #[error("a demo runs from this folder already; stop it with Ctrl-C where it was started")]
    Running,
    /// Someone else's programs have the ports.
    #[error(
        "ports taken: {}.\nChoose others: --port-base PORT (nodes), --listen-port PORT (clients, and the next one for reads), \
         --http-port PORT; with make: make demo ARGS=\"--port-base 6432\"",
        list(.0)
    )]
    PortsTaken(Vec<(u16, String)>),
    /// The data was made by other servers than those found.
    #[error(
        "the demo's data is of PostgreSQL {data}, see: {reason}\nOr remove {folder} and start afresh."
    )]
    OtherVersion {
        /// Its major version.
        data: u32,
        /// Why no such server is there.
        reason: NoInstall,
        /// Where the data is.
        folder: String,
    },
    /// The proxy is up and the sample could not be made through it.
    #[error("the proxy does not answer as it should: {0}")]
    Sample(String),
}

fn list(taken: &[(u16, String)]) -> String {
    let items: Vec<String> = taken
        .iter()
        .map(|(port, what)| format!("{port} ({what})"))
        .collect();
    items.join(", ")
}

fn io_error(what: &Path) -> impl FnOnce(std::io::Error) -> DemoError {
    let what = what.display().to_string();
    move |source| DemoError::Io { what, source }
}

/// The configuration of the demo that runs from this folder, where one does.
pub fn running_config(folder: &Path) -> Option<PathBuf> {
    let own = folder.join(".synapsedb/demo");
    let lock = File::open(own.join("lock")).ok()?;
    match lock.try_lock_shared() {
        Err(std::fs::TryLockError::WouldBlock) => Some(own.join("proxy.toml")),
        _ => None,
    }
}

/// Runs the demo until `stop` is cancelled, then stops everything.
pub async fn run(arguments: &Arguments, stop: CancellationToken) -> Result<(), DemoError> {
    let own = PathBuf::from(".synapsedb/demo");
    std::fs::create_dir_all(&own).map_err(io_error(&own))?;
    let lock = own.join("lock");
    let lock = File::create(&lock).map_err(io_error(&lock))?;
    if lock.try_lock().is_err() {
        return Err(DemoError::Running);
    }
    let account = Account::for_servers().map_err(io_error(Path::new("users")))?;
    let here = Path::new(".");
    let place = account::place(here, account.as_ref()).map_err(io_error(here))?;
    if let Some(account) = &account {
        println!(
            "PostgreSQL does not run as root: the servers run as user {}.",
            account.name
        );
    }
    println!(
        "The servers' files are in {}.",
        place.join("demo").display()
    );
    let servers = prepare(arguments, &place, account.as_ref())?;
    let config = write_config(arguments, &own)?;

    let (mut servers, started) = tokio::task::spawn_blocking(move || start_all(servers))
        .await
        .map_err(|error| DemoError::Sample(error.to_string()))?;
    let result = match started {
        Ok(()) => with_proxy(config, &mut servers, &stop).await,
        Err(error) => Err(error.into()),
    };
    println!("Stopping the servers ...");
    let stopped = tokio::task::spawn_blocking(move || stop_all(&mut servers))
        .await
        .map_err(|error| DemoError::Sample(error.to_string()))?;
    result?;
    stopped?;
    println!("All stopped. The data stays for the next start.");
    Ok(())
}

/// Finds the installation, and the servers' data or where it will be; sees that the ports are free.
fn prepare(
    arguments: &Arguments,
    place: &Path,
    account: Option<&Account>,
) -> Result<Vec<Server>, DemoError> {
    let folder = place.join("demo");
    let install = find_install(place, &folder, account)?;
    let vectors = if install.pgvector {
        "with pgvector"
    } else {
        "without pgvector"
    };
    println!(
        "PostgreSQL {} {vectors}, from {}.",
        install.version,
        install.bin.display()
    );
    let mut servers = Vec::new();
    for index in 0..arguments.nodes {
        let name = format!("node{}", index + 1);
        servers.push(Server::new(Spec {
            folder: folder.join(&name),
            name,
            install: install.clone(),
            port: arguments.port_base.saturating_add(index),
            account: account.cloned(),
            settings: Vec::new(),
        }));
    }
    let mut taken = Vec::new();
    for server in &mut servers {
        if server.adopt() {
            println!(
                "{} still runs from an earlier start: taken over.",
                server.name()
            );
        } else if let Some((pid, port)) = server.postmaster() {
            println!("{} still runs on port {port}: stopping it.", server.name());
            server::stop_foreign(pid);
        }
        if !server.is_running() && !port_is_free(server.port()) {
            taken.push((server.port(), server.name().to_owned()));
        }
    }
    let own = [
        (arguments.listen_port, "clients"),
        (
            arguments.listen_port.saturating_add(1),
            "clients, reads only",
        ),
        (arguments.http_port, "HTTP"),
    ];
    for (port, what) in own {
        if !port_is_free(port) {
            taken.push((port, what.to_owned()));
        }
    }
    if taken.is_empty() {
        return Ok(servers);
    }
    Err(DemoError::PortsTaken(taken))
}

/// The installation that fits the data, where there is data; else one with pgvector.
fn find_install(
    place: &Path,
    folder: &Path,
    account: Option<&Account>,
) -> Result<PgInstall, DemoError> {
    let named = std::env::var_os("SYNAPSEDB_PG_BIN").map(PathBuf::from);
    let places = [place.to_owned()];
    let find = |wanted: Wanted| PgInstall::find(&wanted, named.as_deref(), &places, account);
    let version = std::fs::read_to_string(folder.join("node1/data/PG_VERSION"));
    if let Some(major) = version.ok().and_then(|text| text.trim().parse().ok()) {
        return find(Wanted {
            major: Some(major),
            pgvector: false,
        })
        .map_err(|reason| DemoError::OtherVersion {
            data: major,
            reason,
            folder: folder.display().to_string(),
        });
    }
    // What someone named is taken as it is.
    let pgvector = named.is_none();
    Ok(find(Wanted {
        major: None,
        pgvector,
    })?)
}

/// Writes proxy.toml and the password's file, and reads them as any command would.
fn write_config(arguments: &Arguments, own: &Path) -> Result<Config, DemoError> {
    let secret = own.join("admin-password");
    let _ = std::fs::remove_file(&secret);
    File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&secret)
        .and_then(|mut file| file.write_all(PASSWORD.as_bytes()))
        .map_err(io_error(&secret))?;
    let (clients, http) = (arguments.listen_port, arguments.http_port);
    let mut text = format!(
        "# Written anew at each start by `synapsedb demo`. Every key is explained in ../../proxy.toml.\n\
         [listen]\nread_write = \"127.0.0.1:{clients}\"\nread_only = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{http}\"\n\n\
         [admin]\nuser = \"{USER}\"\npassword_env = \"SYNAPSEDB_DEMO_PASSWORD\"\npassword_file = \"admin-password\"\n",
        clients.saturating_add(1)
    );
    for index in 0..arguments.nodes {
        let node = [
            format!("\n[[node]]\nname = \"node{}\"\n", index + 1),
            format!(
                "host = \"127.0.0.1\"\nport = {}\n",
                arguments.port_base.saturating_add(index)
            ),
        ];
        text.push_str(&node.concat());
    }
    let file = own.join("proxy.toml");
    std::fs::write(&file, &text).map_err(io_error(&file))?;
    Ok(Config::load(&file)?)
}

/// Makes and starts all servers at once. They come back whatever happens, to be stopped.
fn start_all(mut servers: Vec<Server>) -> (Vec<Server>, Result<(), ServerError>) {
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = servers
            .iter_mut()
            .map(|server| scope.spawn(move || start_one(server)))
            .collect();
        threads
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect()
    });
    let mut outcome = Ok(());
    for result in results {
        match result {
            Ok(result) => outcome = outcome.and(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    (servers, outcome)
}

fn start_one(server: &mut Server) -> Result<(), ServerError> {
    if !server.is_initialised() {
        println!("{}: making its data ...", server.name());
        server.init()?;
    }
    server.start()?;
    println!("{}: ready on port {}.", server.name(), server.port());
    Ok(())
}

/// All are asked first, so that none waits for another.
fn stop_all(servers: &mut [Server]) -> Result<(), ServerError> {
    for server in servers.iter_mut() {
        server.ask_to_stop(Stop::Fast);
    }
    let mut outcome = Ok(());
    for server in servers.iter_mut() {
        outcome = outcome.and(server.wait_stopped());
    }
    outcome
}

/// Runs the proxy in this process, shows the sample, and watches the servers until the end.
async fn with_proxy(
    config: Config,
    servers: &mut [Server],
    stop: &CancellationToken,
) -> Result<(), DemoError> {
    println!("Starting the proxy ...");
    let stop_proxy = CancellationToken::new();
    let mut proxy = tokio::spawn(serve::run(config.clone(), stop_proxy.clone()));
    let pgvector = servers
        .first()
        .is_some_and(|server| server.install().pgvector);
    let result = tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = &mut proxy => return proxy_ended(ended),
        made = sample::make(&config, pgvector) => made,
    };
    if result.is_ok() && !stop.is_cancelled() {
        sample::show_what_to_type(&config, servers);
        tokio::select! {
            () = stop.cancelled() => {}
            () = watch(servers) => {}
            ended = &mut proxy => return proxy_ended(ended),
        }
    }
    println!("\nStopping the proxy ...");
    stop_proxy.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(15), &mut proxy).await;
    if ended.is_err() {
        proxy.abort();
    }
    result.and(ended.map_or(Ok(()), proxy_ended))
}

fn proxy_ended(
    ended: Result<Result<(), ServeError>, tokio::task::JoinError>,
) -> Result<(), DemoError> {
    match ended {
        Ok(result) => Ok(result?),
        Err(error) => Err(DemoError::Sample(format!("the proxy failed: {error}"))),
    }
}

/// Reaps a server that dies and says how to start it; notices one that was started by hand. For ever.
async fn watch(servers: &mut [Server]) {
    let mut was_up = vec![true; servers.len()];
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for (server, was_up) in servers.iter_mut().zip(&mut was_up) {
            let is_up = server.is_running() || server.adopt();
            if *was_up && !is_up {
                println!(
                    "{} has died and stays dead; its log is {}. Start it again with:\n  {}",
                    server.name(),
                    server.log().display(),
                    server.start_command()
                );
            } else if !*was_up && is_up {
                println!("{} is back.", server.name());
            }
            *was_up = is_up;
        }
    }
}
