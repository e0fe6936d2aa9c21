//! The tools that people use: psql and pgbench.

use std::process::Output;

use crate::house::House;

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

fn well(output: &Output) -> String {
    let text = text(output);
    assert!(output.status.success(), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbench() {
    let house = House::open(8).await;
    well(&house.run("pgbench", &["-i", "-s", "1", "-q"]).await);
    for script in ["tpcb-like", "simple-update", "select-only"] {
        for mode in ["simple", "extended", "prepared"] {
            for clients in ["1", "8"] {
                let arguments = [
                    "-n", "-b", script, "-M", mode, "-c", clients, "-j", "1", "-t", "50",
                ];
                let said = well(&house.run("pgbench", &arguments).await);
                assert!(said.contains("failed transactions: 0"), "{said}");
            }
        }
    }
    // More clients than connections.
    for mode in ["simple", "prepared"] {
        let arguments = [
            "-n",
            "-b",
            "tpcb-like",
            "-M",
            mode,
            "-c",
            "64",
            "-j",
            "1",
            "-t",
            "5",
        ];
        let said = well(&house.run("pgbench", &arguments).await);
        assert!(
            said.contains("number of transactions actually processed: 320/320"),
            "{said}"
        );
    }
    let sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), \
                (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from pgbench_tellers)";
    let client = house.client().await;
    // Simple updates touch accounts and history only; so do the sums compared.
    assert_eq!(crate::house::value(&client, sums).await, "t|t");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql() {
    let house = House::open(2).await;
    let run = async |commands: &[&str]| {
        let mut arguments = vec!["-X", "-A", "-t"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        house.run("psql", &arguments).await
    };
    let made = "create table t (a int primary key, b text default 'x')";
    well(&run(&[made, "insert into t values (1, 'one'), (2, 'two')"]).await);
    let said = well(&run(&["\\d t", "\\dt", "\\l", "\\du", "\\df"]).await);
    assert!(
        said.contains("a|integer||not null|") && said.contains("public|t|table|"),
        "{said}"
    );
    // Positions of errors are the client's own.
    let said = text(&run(&["select a,\n  nonsense from t"]).await);
    assert!(
        said.contains("LINE 2:   nonsense from t\n          ^"),
        "{said}"
    );
    // \copy both ways, \watch, \gset, \bind, variables, several statements in one text.
    let file = house.cluster.folder().join("rows.txt");
    let path = file.to_str().expect("plain");
    well(
        &run(&[
            &format!("\\copy t to '{path}'"),
            "truncate t",
            &format!("\\copy t from '{path}'"),
        ])
        .await,
    );
    let script = "select count(*) from t \\watch i=0.1 c=3\nselect 7 as seven \\gset\nselect :seven \\bind \\g\n\
                  set work_mem = '3MB'; show work_mem;\nbegin; select 'in' \\; select 'side'; rollback;\n";
    let file = house.cluster.folder().join("script.sql");
    std::fs::write(&file, script).expect("written");
    let said = well(
        &house
            .run(
                "psql",
                &["-X", "-A", "-t", "-f", file.to_str().expect("plain")],
            )
            .await,
    );
    for part in ["2\n", "7\n", "3MB\n", "in\nside\n"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // pg_dump sets its search_path first, and what it writes can be read back.
    let dump = well(&house.run("pg_dump", &["--clean", "--if-exists"]).await);
    let file = house.cluster.folder().join("dump.sql");
    std::fs::write(&file, dump).expect("written");
    let restore = [
        "-X",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-f",
        file.to_str().expect("plain"),
    ];
    well(&house.run("psql", &restore).await);
    assert_eq!(well(&run(&["select count(*) from t"]).await), "2\n");
}

/// Stands there to be looked at by hand: `cargo test --test relay standing -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs until it is stopped"]
async fn standing() {
    let house = House::open(8).await;
    println!("port {} node {}", house.port, house.cluster.node_port(0));
    tokio::time::sleep(std::time::Duration::from_secs(1800)).await;
}
