//! One real server: made, started, watched, frozen, killed, stopped.
//!
//! All calls block; callers in an async task use `spawn_blocking`. A server that this program
//! started is reaped when it dies and is never started again by itself: that is for the operator.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::account::Account;
use super::install::PgInstall;
use super::signal;

/// The superuser of servers made here, and the database it finds.
pub const USER: &str = "synapsedb";
/// Its password: the demo's, known to everyone; the servers listen on this machine alone.
pub const PASSWORD: &str = "changeme123";
/// The database made at initdb.
pub const DATABASE: &str = "synapsedb";

/// How long a server may take to start (crash recovery included) or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// What went wrong with a server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A file or a process could not be had.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program of `PostgreSQL` failed.
    #[error("{what} failed:\n{output}")]
    Failed {
        /// Which.
        what: String,
        /// Its last lines.
        output: String,
    },
    /// Someone else has the port.
    #[error("port {0} is taken")]
    PortTaken(u16),
    /// It did not come up, or did not go down, in time.
    #[error("{what} took more than {} s; its log is {log}", PATIENCE.as_secs(), log = .log.display())]
    Slow {
        /// What was waited for.
        what: String,
        /// Where to look.
        log: PathBuf,
    },
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> ServerError {
    let what = what.into();
    move |source| ServerError::Io { what, source }
}

/// How a server is to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Ends sessions, rolls back, writes a checkpoint. Commits that wait for a majority end their
    /// wait and become visible: stop the proxy's clients first.
    Fast,
    /// As after a power cut, but through the postmaster; recovery at the next start.
    Immediate,
}

/// What a server is made of.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name in messages.
    pub name: String,
    /// The programs.
    pub install: PgInstall,
    /// Its own folder: `data`, `log` and the socket are in it.
    pub folder: PathBuf,
    /// The TCP port on 127.0.0.1.
    pub port: u16,
    /// As whom it runs.
    pub account: Option<Account>,
    /// Lines for its configuration, beyond what the demo needs: (name, value).
    pub settings: Vec<(String, String)>,
}

#[derive(Debug)]
enum Process {
    /// Started here, to be reaped here.
    Child(Child),
    /// Started by an earlier program that was killed.
    Adopted(i32),
}

/// One server. Dropping it leaves the process alone, except where [`Server::kill_on_drop`] was set.
#[derive(Debug)]
pub struct Server {
    spec: Spec,
    process: Option<Process>,
    kill_on_drop: bool,
    watchdog: Option<signal::DieWithUs>,
}

impl Server {
    /// A server whose data may or may not be there yet.
    pub fn new(spec: Spec) -> Self {
        Self {
            spec,
            process: None,
            kill_on_drop: false,
            watchdog: None,
        }
    }

    /// From its next start on the process dies with this value, and with this program.
    pub fn kill_on_drop(&mut self) {
        self.kill_on_drop = true;
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.spec.port
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.spec.folder.join("data")
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.spec.folder.join("log")
    }

    /// The programs it runs.
    pub fn install(&self) -> &PgInstall {
        &self.spec.install
    }

    /// Where a superuser finds it: a URL for psql and libpq.
    pub fn url(&self) -> String {
        let port = self.port();
        format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/{DATABASE}")
    }

    /// Whether initdb has been run to its end.
    pub fn is_initialised(&self) -> bool {
        self.data().join("synapsedb.conf").is_file()
    }

    /// Runs initdb and makes the database. What an interrupted run left behind is cleared away.
    pub fn init(&self) -> Result<(), ServerError> {
        let folder = &self.spec.folder;
        let data = self.data();
        let account = self.spec.account.as_ref();
        Account::make_private_folder(account, folder).map_err(io_error(show(folder)))?;
        if data.exists() {
            std::fs::remove_dir_all(&data).map_err(io_error(show(&data)))?;
        }
        let secret = folder.join("initial-password");
        write_private(&secret, PASSWORD, account).map_err(io_error(show(&secret)))?;
        let mut initdb = Account::command(account, &self.spec.install.program("initdb"));
        initdb
            .args([
                "--username",
                USER,
                "--encoding",
                "UTF8",
                "--locale",
                "C.UTF-8",
            ])
            .args([
                "--auth-host",
                "scram-sha-256",
                "--auth-local",
                "scram-sha-256",
            ])
            .arg("--pwfile")
            .arg(&secret)
            .arg("--pgdata")
            .arg(&data)
            .env("TZ", "UTC")
            .current_dir(folder);
        let made = finish(&mut initdb, "initdb", None);
        std::fs::remove_file(&secret).map_err(io_error(show(&secret)))?;
        made?;
        let mut single = Account::command(account, &self.spec.install.program("postgres"));
        single.arg("--single").arg("-D").arg(&data).arg("postgres");
        single.current_dir(folder);
        // The role's name is also that of the proxy's schema, which "$user" would put first.
        let create =
            format!("create database {DATABASE}\nalter role {USER} set search_path = public\n");
        finish(&mut single, "creating the database", Some(&create))?;
        let main = data.join("postgresql.conf");
        let mut conf = File::options()
            .append(true)
            .open(&main)
            .map_err(io_error(show(&main)))?;
        conf.write_all(
            b"\n# Written anew at each start by synapsedb.\ninclude = 'synapsedb.conf'\n",
        )
        .map_err(io_error(show(&main)))?;
        self.write_settings()
    }

    /// Makes the data a copy of `template`'s, which must be initialised and stopped.
    pub fn init_from(&self, template: &Self) -> Result<(), ServerError> {
        let account = self.spec.account.as_ref();
        let folder = &self.spec.folder;
        Account::make_private_folder(account, folder).map_err(io_error(show(folder)))?;
        let mut copy = Account::command(account, Path::new("cp"));
        copy.args(["-R", "-p"])
            .arg(template.data())
            .arg(self.data());
        finish(&mut copy, "copying the template", None)?;
        self.write_settings()
    }

    /// Starts it and waits until it answers.
    pub fn start(&mut self) -> Result<(), ServerError> {
        self.start_without_waiting()?;
        self.wait_ready()
    }

    /// Starts it; [`Server::wait_ready`] must follow.
    pub fn start_without_waiting(&mut self) -> Result<(), ServerError> {
        if self.is_running() {
            return Ok(());
        }
        if !port_is_free(self.spec.port) {
            return Err(ServerError::PortTaken(self.spec.port));
        }
        self.write_settings()?;
        let path = self.log();
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(io_error(show(&path)))?;
        Account::give(self.spec.account.as_ref(), &path).map_err(io_error(show(&path)))?;
        let errors = log.try_clone().map_err(io_error(show(&path)))?;
        let mut command = Account::command(
            self.spec.account.as_ref(),
            &self.spec.install.program("postgres"),
        );
        command
            .arg("-D")
            .arg(self.data())
            .current_dir(&self.spec.folder)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Its own group: a terminal's Ctrl-C reaches us alone, and we stop things in order.
            .process_group(0);
        let child = command.spawn().map_err(io_error("starting postgres"))?;
        let pid = i32::try_from(child.id()).ok();
        self.process = Some(Process::Child(child));
        if let (true, Some(pid)) = (self.kill_on_drop, pid) {
            let watchdog = signal::DieWithUs::new(pid).map_err(io_error("starting a watchdog"))?;
            self.watchdog = Some(watchdog);
        }
        Ok(())
    }

    /// Waits until it takes connections, or says from its log why it died.
    pub fn wait_ready(&mut self) -> Result<(), ServerError> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if !self.is_running() {
                return Err(ServerError::Failed {
                    what: format!("starting {}", self.spec.name),
                    output: tail(&self.log()),
                });
            }
            if accepts_connections(self.spec.port) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(self.slow("starting"))
    }

    /// Takes over a server that runs on this data already; false where there is none.
    pub fn adopt(&mut self) -> bool {
        if let Some((pid, port)) = self.postmaster()
            && port == self.spec.port
        {
            self.process = Some(Process::Adopted(pid));
            return true;
        }
        false
    }

    /// The number and port of the server that runs on this data, from its `postmaster.pid`.
    pub fn postmaster(&self) -> Option<(i32, u16)> {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        let mut lines = text.lines();
        let pid: i32 = lines.next()?.trim().parse().ok()?;
        let port: u16 = lines.nth(2)?.trim().parse().ok()?;
        // The number may belong to someone else by now: its working directory is the data.
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd"));
        let ours = cwd.map_or(true, |cwd| {
            self.data().canonicalize().is_ok_and(|data| data == cwd)
        });
        (ours && signal::is_alive(pid)).then_some((pid, port))
    }

    /// Whether it runs; one that died is reaped here.
    pub fn is_running(&mut self) -> bool {
        let alive = match &mut self.process {
            Some(Process::Child(child)) => matches!(child.try_wait(), Ok(None)),
            Some(Process::Adopted(pid)) => signal::is_alive(*pid),
            None => false,
        };
        if !alive {
            self.process = None;
            self.watchdog = None;
        }
        alive
    }

    /// The number of its first process, while it runs.
    pub fn pid(&mut self) -> Option<i32> {
        if !self.is_running() {
            return None;
        }
        match self.process.as_ref()? {
            Process::Child(child) => i32::try_from(child.id()).ok(),
            Process::Adopted(pid) => Some(*pid),
        }
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(&mut self, how: Stop) -> Result<(), ServerError> {
        self.ask_to_stop(how);
        self.wait_stopped()
    }

    /// Asks it to stop; [`Server::wait_stopped`] must follow.
    pub fn ask_to_stop(&mut self, how: Stop) {
        if let Some(pid) = self.pid() {
            let number = match how {
                Stop::Fast => Signal::INT,
                Stop::Immediate => Signal::QUIT,
            };
            self.resume();
            signal::send(pid, number);
        }
    }

    /// Waits until it has stopped and is reaped; past a bound it is killed, and that is an error.
    pub fn wait_stopped(&mut self) -> Result<(), ServerError> {
        let until = Instant::now() + PATIENCE;
        while self.is_running() {
            if Instant::now() > until {
                self.kill9();
                return Err(self.slow("stopping"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// SIGKILL to all its processes at once: a power cut, as far as software can make one.
    pub fn kill9(&mut self) {
        let Some(pid) = self.pid() else { return };
        let family = signal::children(pid);
        signal::send(pid, Signal::KILL);
        for child in &family {
            signal::send(*child, Signal::KILL);
        }
        let until = Instant::now() + PATIENCE;
        while (self.is_running() || family.iter().any(|pid| signal::is_alive(*pid)))
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Freezes it: connections stay open and nothing answers.
    pub fn pause(&mut self) {
        self.signal_all(Signal::STOP);
    }

    /// Lets it go on after [`Server::pause`].
    pub fn resume(&mut self) {
        self.signal_all(Signal::CONT);
    }

    /// What to type to start it again by hand.
    pub fn start_command(&self) -> String {
        format!(
            "{}{} -D {} -l {} start",
            Account::prefix(self.spec.account.as_ref()),
            show(&self.spec.install.program("pg_ctl")),
            show(&self.data()),
            show(&self.log())
        )
    }

    fn signal_all(&mut self, number: Signal) {
        if let Some(pid) = self.pid() {
            // The postmaster first: while it is frozen no new child appears.
            signal::send(pid, number);
            for child in signal::children(pid) {
                signal::send(child, number);
            }
        }
    }

    fn slow(&self, what: &str) -> ServerError {
        ServerError::Slow {
            what: format!("{what} {}", self.spec.name),
            log: self.log(),
        }
    }

    fn write_settings(&self) -> Result<(), ServerError> {
        let mut text = String::from("# Written anew at each start by synapsedb.\n");
        let port = self.spec.port.to_string();
        let folder = show(&self.spec.folder);
        let base = [
            ("listen_addresses", "127.0.0.1"),
            ("port", port.as_str()),
            // A socket's path may have 107 bytes; where the folder's is longer, TCP alone must do.
            (
                "unix_socket_directories",
                if folder.len() < 80 { &folder } else { "" },
            ),
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("max_connections", "200"),
            ("log_line_prefix", "%m [%p] %q%a %u@%d "),
            ("log_timezone", "UTC"),
            ("timezone", "UTC"),
        ];
        let more = self
            .spec
            .settings
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()));
        for (name, value) in base.into_iter().chain(more) {
            let line = [name, " = '", &value.replace('\'', "''"), "'\n"];
            text.push_str(&line.concat());
        }
        let path = self.data().join("synapsedb.conf");
        std::fs::write(&path, text).map_err(io_error(show(&path)))?;
        Account::give(self.spec.account.as_ref(), &path).map_err(io_error(show(&path)))
    }
}

/// Stops a server that this program did not start, and waits until it is gone.
pub fn stop_foreign(pid: i32) {
    signal::send(pid, Signal::INT);
    let until = Instant::now() + PATIENCE;
    while signal::is_alive(pid) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.kill_on_drop {
            self.kill9();
        }
    }
}

/// Whether something could listen on this port of 127.0.0.1 and of all addresses.
pub fn port_is_free(port: u16) -> bool {
    let busy = TcpStream::connect_timeout(
        &SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        Duration::from_millis(500),
    );
    busy.is_err() && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Whether a server at this port has finished starting. It is asked as `pg_isready` asks: any answer
/// to a startup packet but "still starting" (57P03) will do.
pub fn accepts_connections(port: u16) -> bool {
    let ask = || -> io::Result<bool> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let body = format!("user\0{USER}\0database\0{DATABASE}\0\0");
        let length = u32::try_from(body.len() + 8).map_err(io::Error::other)?;
        let mut packet = length.to_be_bytes().to_vec();
        packet.extend(196_608_u32.to_be_bytes());
        packet.extend(body.as_bytes());
        stream.write_all(&packet)?;
        let mut answer = [0; 512];
        let got = stream.read(&mut answer)?;
        let answer = &answer[..got];
        Ok(match answer.first() {
            Some(b'R') => true,
            Some(b'E') => !answer.windows(7).any(|field| field == b"C57P03\0"),
            _ => false,
        })
    };
    ask().unwrap_or(false)
}

fn finish(
    command: &mut std::process::Command,
    what: &str,
    input: Option<&str>,
) -> Result<(), ServerError> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(io_error(what))?;
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        pipe.write_all(input.as_bytes()).map_err(io_error(what))?;
    }
    let output = child.wait_with_output().map_err(io_error(what))?;
    if output.status.success() {
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(ServerError::Failed {
        what: what.to_owned(),
        output: text,
    })
}

fn write_private(path: &Path, text: &str, account: Option<&Account>) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    Account::give(account, path)
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
