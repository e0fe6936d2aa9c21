//! The commands as an operator types them: check, release, and what they say to a wrong configuration.

use std::process::{Command, Output};

use synapsedb::node::schema;

use crate::support::cluster::TestCluster;

fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    out + &String::from_utf8_lossy(&output.stderr)
}

fn run(command: &mut Command) -> (bool, String) {
    let output = tokio::task::block_in_place(|| command.output()).expect("the program runs");
    (output.status.success(), text(&output))
}

#[tokio::test(flavor = "multi_thread")]
async fn check_has_nothing_to_say_about_good_nodes_and_names_each_fault_with_its_mend() {
    let mut cluster = TestCluster::builder().without_proxy().start().await;
    let (good, said) = run(&mut cluster.command("check"));
    assert!(good, "{said}");
    assert!(said.contains("Nothing to mend"), "{said}");

    // A node with the wrong wal_level and too few slots, one without rights, one that is down.
    let first = cluster.node(0).await;
    for setting in ["wal_level = replica", "max_replication_slots = 1"] {
        first
            .batch_execute(&format!("alter system set {setting}"))
            .await
            .expect("a superuser may");
    }
    // The demo's own file stands last and would win.
    let conf = cluster.server_ref(0).data().join("postgresql.conf");
    let old = std::fs::read_to_string(&conf).expect("its configuration");
    std::fs::write(
        &conf,
        old + "wal_level = replica\nmax_replication_slots = 1\n",
    )
    .expect("ours");
    tokio::task::block_in_place(|| {
        let server = cluster.server(0);
        server
            .stop(synapsedb::cli::demo::server::Stop::Fast)
            .expect("stops");
        server.start().expect("starts");
        cluster.server(2).kill9();
    });
    let second = cluster.node(1).await;
    let other = "create role other superuser; set role other; alter role synapsedb nosuperuser";
    // PostgreSQL keeps its bootstrap superuser what it is; then the fault cannot be planted.
    let planted = second.batch_execute(other).await.is_ok();
    let (good, said) = run(&mut cluster.command("check"));
    assert!(!good, "{said}");
    assert!(
        said.contains("alter system set wal_level = 'logical'"),
        "{said}"
    );
    assert!(said.contains("max_replication_slots is 1"), "{said}");
    assert!(
        said.contains("node3") && said.contains("cannot be reached"),
        "{said}"
    );
    assert!(!planted || said.contains("is no superuser"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_a_refused_login_needs() {
    let cluster = TestCluster::builder()
        .nodes(1)
        .without_proxy()
        .start()
        .await;
    let (good, said) = run(cluster
        .command("check")
        .env("SYNAPSEDB_ADMIN_PASSWORD", "wrong"));
    assert!(
        !good && said.contains("is the password in SYNAPSEDB_ADMIN_PASSWORD right?"),
        "{said}"
    );
    let (good, said) = run(cluster
        .command("check")
        .env_remove("SYNAPSEDB_ADMIN_PASSWORD"));
    assert!(
        !good && said.contains("put it into the environment"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn release_takes_everything_off_the_nodes() {
    let cluster = TestCluster::builder().without_proxy().start().await;
    for index in 0..cluster.nodes() {
        let node = cluster.node(index).await;
        node.batch_execute("set synchronous_commit = local; create table kept as select 1 as a")
            .await
            .expect("made");
        node.batch_execute(schema::INSTALL)
            .await
            .expect("installed");
        for sql in [
            "alter system set synchronous_standby_names = 'synapsedb'",
            "select pg_reload_conf()",
            "select pg_create_logical_replication_slot('synapsedb_synapsedb', 'pgoutput')",
            "select pg_replication_origin_create('synapsedb_1_synapsedb')",
        ] {
            node.batch_execute(sql).await.expect(sql);
        }
    }
    let (good, said) = run(cluster.command("release").args(["--node", "nosuch"]));
    assert!(!good && said.contains("node1, node2, node3"), "{said}");
    let (good, said) = run(&mut cluster.command("release"));
    assert!(good, "{said}");
    for index in 0..cluster.nodes() {
        let node = cluster.node(index).await;
        // Would wait for ever, were the setting still there.
        node.batch_execute("insert into kept values (2)")
            .await
            .expect("commits");
        let left = "select (select count(*) from pg_namespace where nspname = 'synapsedb')
                         + (select count(*) from pg_event_trigger)
                         + (select count(*) from pg_publication)
                         + (select count(*) from pg_replication_slots)
                         + (select count(*) from pg_replication_origin)
                         + (select count(*) from pg_roles where rolname like 'synapsedb\\_%')";
        let row = node.query_one(left, &[]).await.expect("a catalog query");
        assert_eq!(row.get::<_, i64>(0), 0);
    }
    let (good, said) = run(&mut cluster.command("release"));
    assert!(good, "may be run again: {said}");
    cluster.assert_nodes_equal().await;
}

#[test]
fn a_wrong_configuration_is_refused_with_file_and_line_by_every_command() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, "[listen]\nread_write = \"nowhere\"\nspeed = 1\n").expect("written");
    for command in ["serve", "check", "release"] {
        let output = Command::new(env!("CARGO_BIN_EXE_synapsedb"))
            .args([command, "--config"])
            .arg(&file)
            .output()
            .expect("the program runs");
        let said = text(&output);
        assert!(!output.status.success(), "{command}: {said}");
        assert!(
            said.contains("bad.toml:3: unknown key `speed`"),
            "{command}: {said}"
        );
    }
    let output = Command::new(env!("CARGO_BIN_EXE_synapsedb"))
        .arg("serve")
        .current_dir(folder.path())
        .output()
        .expect("the program runs");
    assert!(text(&output).contains("--config FILE"), "{}", text(&output));
}
