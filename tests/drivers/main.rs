//! Real drivers through the proxy on a real cluster: psycopg 3, asyncpg and node-postgres, a script each.
//!
//! `scripts/get-drivers` gets them; `SYNAPSEDB_TEST_DRIVERS` names their folder, which is
//! `.synapsedb/drivers` without it. Nothing is left out here: a driver that is not there is a failure, and
//! `scripts/test` names those that could not be had. The scripts print each case by its name and try all;
//! afterwards all copies are compared row by row.

#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use support::cluster::TestCluster;
use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use synapsedb::cli::demo::signal::DieWithUs;

/// Connections to a node for each user and database: fewer than the clients that the scripts start.
const POOL: usize = 8;

#[tokio::test]
async fn psycopg_3() {
    let cluster = cluster().await;
    for script in ["psycopg_values.py", "psycopg_sessions.py"] {
        run(&cluster, "python/bin/python", script).await;
    }
    cluster.assert_nodes_equal().await;
}

#[tokio::test]
async fn asyncpg() {
    let cluster = cluster().await;
    run(&cluster, "python/bin/python", "asyncpg_all.py").await;
    cluster.assert_nodes_equal().await;
}

#[tokio::test]
async fn node_postgres() {
    let cluster = cluster().await;
    run(&cluster, "node/bin/node", "node_postgres.mjs").await;
    cluster.assert_nodes_equal().await;
}

/// Three nodes, and a proxy with a small pool and a certificate for `localhost`.
async fn cluster() -> TestCluster {
    let mut cluster = TestCluster::builder()
        .without_proxy()
        .config(&format!(
            "[pool]\nmax_connections = {POOL}\n\
             [tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\""
        ))
        .start()
        .await;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(names).expect("a certificate");
    for (name, text) in [
        ("tls.crt", cert.pem()),
        ("tls.key", signing_key.serialize_pem()),
    ] {
        std::fs::write(cluster.folder().join(name), text).expect("our own folder");
    }
    cluster.start_proxy().await;
    cluster
}

/// Runs one script to its end, and shows all that it said where it failed.
async fn run(cluster: &TestCluster, program: &str, script: &str) {
    let drivers = drivers();
    let program = drivers.join(program);
    assert!(
        program.is_file(),
        "{} is not there: run scripts/get-drivers",
        program.display()
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/drivers/{script}"));
    let mut command = Command::new(program);
    command
        .arg(&script)
        .env("NODE_MODULES_FOLDER", drivers.join("node"))
        .env("PROXY_HOST", "127.0.0.1")
        .env("PROXY_PORT", cluster.port().to_string())
        .env("PROXY_USER", USER)
        .env("PROXY_PASSWORD", PASSWORD)
        .env("PROXY_DATABASE", DATABASE)
        .env("PROXY_CERTIFICATE", cluster.folder().join("tls.crt"))
        .env("PROXY_POOL", POOL.to_string())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONIOENCODING", "utf-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // The user's own settings for libpq are no part of this.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    let output = tokio::task::spawn_blocking(move || {
        let child = command.spawn().expect("the driver's program runs");
        let pid = i32::try_from(child.id()).expect("small");
        let _watchdog = DieWithUs::new(pid).expect("a watchdog");
        child.wait_with_output().expect("our child")
    });
    let output = output.await.expect("no panic");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{} ended with {}:\n{said}\n{errors}",
        script.display(),
        output.status
    );
    println!("{said}");
}

/// Where the drivers are.
fn drivers() -> PathBuf {
    std::env::var_os("SYNAPSEDB_TEST_DRIVERS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".synapsedb/drivers"),
        PathBuf::from,
    )
}
