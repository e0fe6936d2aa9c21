//! `synapsedb demo` as a new user meets it: in an empty folder, stopped, started again, killed, taken over.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use synapsedb::cli::demo::account::Account;
use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};

use crate::support::cluster::{connect, find_install};
use crate::support::ports::{self, Port};

struct Demo {
    folder: tempfile::TempDir,
    base: u16,
    listen: u16,
    http: Port,
    _ports: Vec<Port>,
    child: Option<Child>,
}

impl Demo {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("synapsedb-test-demo-")
            .tempdir()
            .expect("a folder");
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("ours");
        let (base, mut held) = row_of(3);
        let (listen, more) = row_of(2);
        held.extend(more);
        Self {
            folder,
            base,
            listen,
            http: ports::take(),
            _ports: held,
            child: None,
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("demo.log")
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn command(&self) -> Command {
        let account = Account::for_servers().expect("an account");
        let mut command = Command::new(env!("CARGO_BIN_EXE_synapsedb"));
        command
            .arg("demo")
            .args(["--port-base", &self.base.to_string()])
            .args(["--listen-port", &self.listen.to_string()])
            .args(["--http-port", &self.http.number.to_string()])
            .env("SYNAPSEDB_PG_BIN", find_install(account.as_ref()).bin)
            .current_dir(self.folder.path());
        command
    }

    /// Starts it with a fresh log and waits for a line that begins so.
    fn start(&mut self, line: &str) {
        let log = std::fs::File::create(self.log()).expect("ours");
        let errors = log.try_clone().expect("another handle");
        let child = self
            .command()
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn();
        self.child = Some(child.expect("the program runs"));
        self.wait_for(line);
    }

    fn wait_for(&mut self, line: &str) {
        let until = Instant::now() + Duration::from_secs(120);
        while !self.said().lines().any(|said| said.starts_with(line)) {
            let ended = self
                .child
                .as_mut()
                .is_none_or(|child| child.try_wait().expect("ours").is_some());
            assert!(
                !ended && Instant::now() < until,
                "no {line:?}:\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn pid(&self) -> String {
        self.child.as_ref().expect("it runs").id().to_string()
    }

    /// As Ctrl-C does; it must say that all is stopped, and be right.
    fn interrupt(&mut self) {
        Command::new("kill")
            .args(["-INT", &self.pid()])
            .status()
            .expect("kill is everywhere");
        let status = self.child.take().expect("it runs").wait().expect("ours");
        let said = self.said();
        assert!(status.success(), "{status}: {said}");
        assert!(said.contains("All stopped"), "{said}");
        assert_eq!(self.server_pids(), [0; 0], "{said}");
    }

    fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("ours");
        child.wait().expect("ours");
    }

    /// The servers that run on the demo's data.
    fn server_pids(&self) -> Vec<i32> {
        (1..=3)
            .filter_map(|n| server_pid(self.folder.path(), n))
            .collect()
    }

    async fn items(&self, port: u16) -> i64 {
        let client = connect(port, USER, PASSWORD, DATABASE)
            .await
            .expect("it takes connections");
        let row = client
            .query_one("select count(*) from items", &[])
            .await
            .expect("the sample is there");
        row.get(0)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        for pid in self.server_pids() {
            let _ = Command::new("kill")
                .args(["-QUIT", &pid.to_string()])
                .status();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
    }
}

fn server_pid(folder: &Path, number: u32) -> Option<i32> {
    let path = folder.join(format!(".synapsedb/demo/node{number}/data/postmaster.pid"));
    let mut text = String::new();
    std::fs::File::open(path)
        .ok()?
        .read_to_string(&mut text)
        .ok()?;
    let pid: i32 = text.lines().next()?.parse().ok()?;
    synapsedb::cli::demo::signal::is_alive(pid).then_some(pid)
}

/// Ports in a row: the first, and all of them held.
fn row_of(count: usize) -> (u16, Vec<Port>) {
    loop {
        let row: Vec<Port> = (0..count).map(|_| ports::take()).collect();
        if row
            .windows(2)
            .all(|pair| pair[1].number == pair[0].number + 1)
        {
            return (row[0].number, row);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_is_made_stopped_found_again_killed_and_taken_over() {
    let mut demo = Demo::new();
    demo.start("Ready");
    let url = format!(
        "postgresql://synapsedb:changeme123@localhost:{}/synapsedb",
        demo.listen
    );
    assert!(demo.said().contains(&url), "{}", demo.said());
    assert_eq!(demo.items(demo.listen).await, 3);
    let client = connect(demo.listen, USER, PASSWORD, DATABASE)
        .await
        .expect("the proxy");
    client
        .batch_execute("insert into items (name) values ('plum')")
        .await
        .expect("a write");
    drop(client);

    // A second one in the same folder is refused, and check finds the running one's configuration.
    let second = demo.command().output().expect("runs");
    assert!(String::from_utf8_lossy(&second.stderr).contains("runs from this folder already"));
    let check = Command::new(env!("CARGO_BIN_EXE_synapsedb"))
        .arg("check")
        .current_dir(demo.folder.path())
        .output()
        .expect("runs");
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );

    // Stopped and started: the data is there.
    tokio::task::block_in_place(|| {
        demo.interrupt();
        demo.start("Ready");
    });
    assert_eq!(demo.items(demo.listen).await, 4);

    // Killed: its servers run on, and are taken over.
    let before = demo.server_pids();
    tokio::task::block_in_place(|| {
        demo.kill();
        demo.start("Ready");
    });
    assert!(
        demo.said()
            .contains("node2 still runs from an earlier start: taken over")
    );
    assert_eq!((before.len(), demo.server_pids()), (3, before));
    assert_eq!(demo.items(demo.listen).await, 4);
    for index in 0..3 {
        assert_eq!(demo.items(demo.base + index).await, 4);
    }

    // A server that dies stays dead; what starts it again is printed, and works.
    tokio::task::block_in_place(|| {
        let pid = server_pid(demo.folder.path(), 3).expect("it runs");
        Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .status()
            .expect("kill");
        demo.wait_for("node3 has died");
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(server_pid(demo.folder.path(), 3), None);
        let said = demo.said();
        let line = said
            .lines()
            .find(|line| line.ends_with(" start"))
            .expect("a command");
        let done = Command::new("sh").arg("-c").arg(line).output().expect("sh");
        assert!(done.status.success(), "{line}: {done:?}");
        demo.wait_for("node3 is back");
        demo.interrupt();
    });
}

#[test]
fn taken_ports_are_named_with_what_to_type() {
    let demo = Demo::new();
    let taken = std::net::TcpListener::bind(("127.0.0.1", demo.base + 1)).expect("free");
    let also = std::net::TcpListener::bind(("127.0.0.1", demo.http.number)).expect("free");
    let output = demo.command().output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        said.contains(&format!("{} (node2)", demo.base + 1)),
        "{said}"
    );
    assert!(
        said.contains(&format!("{} (HTTP)", demo.http.number)),
        "{said}"
    );
    assert!(
        said.contains("--port-base") && said.contains("make demo ARGS="),
        "{said}"
    );
    drop((taken, also));
}
