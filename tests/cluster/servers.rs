//! The servers that the demo and the tests start: what they do when killed, frozen and left behind.

use std::time::Duration;

use synapsedb::cli::demo::server::{Server, ServerError, Spec, Stop, accepts_connections};

use synapsedb::cli::demo::signal::DieWithUs;

use crate::support::cluster::TestCluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_stopped_killed_frozen_and_started_again_with_its_data() {
    let mut cluster = TestCluster::builder()
        .nodes(1)
        .without_proxy()
        .start()
        .await;
    let client = cluster.node(0).await;
    client
        .batch_execute("create table kept (a int); insert into kept values (1)")
        .await
        .expect("made");

    tokio::task::block_in_place(|| cluster.server(0).stop(Stop::Fast)).expect("stops");
    assert!(!cluster.server(0).is_running());
    tokio::task::block_in_place(|| cluster.server(0).start()).expect("starts");

    let client = cluster.node(0).await;
    client
        .batch_execute("insert into kept values (2)")
        .await
        .expect("made");
    tokio::task::block_in_place(|| cluster.server(0).kill9());
    assert!(!cluster.server(0).is_running());
    assert!(!accepts_connections(cluster.node_port(0)));
    tokio::task::block_in_place(|| cluster.server(0).start()).expect("recovers");
    let client = cluster.node(0).await;
    let row = client
        .query_one("select sum(a) from kept", &[])
        .await
        .expect("kept");
    assert_eq!(row.get::<_, i64>(0), 3);

    cluster.server(0).pause();
    let frozen = client.simple_query("select 1");
    assert!(
        tokio::time::timeout(Duration::from_millis(300), frozen)
            .await
            .is_err()
    );
    cluster.server(0).resume();
    client.simple_query("select 1").await.expect("goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_left_running_is_taken_over_and_its_death_is_noticed() {
    let mut cluster = TestCluster::builder()
        .nodes(1)
        .without_proxy()
        .start()
        .await;
    let port = cluster.node_port(0);
    let spec = |port| Spec {
        name: "second look".to_owned(),
        install: cluster.server_ref(0).install().clone(),
        folder: cluster.folder().join("node1"),
        port,
        account: synapsedb::cli::demo::account::Account::for_servers().expect("an account"),
        settings: Vec::new(),
    };
    let mut second = Server::new(spec(port));
    assert!(!second.is_running());
    let mut elsewhere = Server::new(spec(port + 1));
    assert!(!elsewhere.adopt(), "it runs on another port");
    assert!(second.adopt());
    assert!(second.is_running());
    assert_eq!(second.pid(), cluster.server(0).pid());
    tokio::task::block_in_place(|| {
        cluster.server(0).kill9();
        assert!(!second.is_running());
        assert!(
            !second.adopt(),
            "what is left of postmaster.pid names a dead process"
        );
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_and_a_broken_setting_are_named() {
    let mut cluster = TestCluster::builder()
        .nodes(1)
        .without_proxy()
        .start()
        .await;
    tokio::task::block_in_place(|| {
        let server = cluster.server(0);
        server.stop(Stop::Fast).expect("stops");
        let taken = std::net::TcpListener::bind(("127.0.0.1", server.port())).expect("free now");
        let error = server.start().expect_err("taken");
        assert!(matches!(error, ServerError::PortTaken(port) if port == server.port()));
        drop(taken);
        let auto = server.data().join("postgresql.auto.conf");
        std::fs::write(&auto, "shared_buffers = 'plenty'\n").expect("written");
        let error = server.start().expect_err("a setting is wrong").to_string();
        assert!(
            error.contains("shared_buffers"),
            "its log is shown: {error}"
        );
    });
}

#[test]
fn what_must_die_with_us_does_and_is_spared_when_called_off() {
    let sleeper = || {
        let child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep");
        (i32::try_from(child.id()).expect("small"), child)
    };
    let (pid, mut child) = sleeper();
    drop(DieWithUs::new(pid).expect("a watchdog"));
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().expect("ours").is_none(), "called off");
    let mut watchdog = DieWithUs::new(pid).expect("a watchdog");
    watchdog.let_go();
    let status = child.wait().expect("ours");
    assert!(!status.success());
}
