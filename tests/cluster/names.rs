//! What a role's name opens once it stands for another role, or for one with fewer rights; and what a client is told
//! of the calls that the proxy puts ahead of its commands.

use std::sync::{Arc, Mutex};

use synapsedb::cli::demo::server::DATABASE;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

use crate::support::cluster::TestCluster;
use crate::tools::{ask, run, until};

async fn code(client: &Client, sql: &str) -> String {
    let answer = client.simple_query(sql).await.map(drop);
    let Err(error) = answer else {
        return String::new();
    };
    let code = error.code().map(|code| code.code().to_owned());
    code.unwrap_or_else(|| error.to_string())
}

/// As many reads as leave no node out.
async fn every_node_says(client: &Client, sql: &str, what: &str) {
    for _ in 0..12 {
        assert_eq!(code(client, sql).await, what, "{sql}");
    }
}

/// It has not heard of the change by itself, and is told once it needs a connection.
async fn is_ended(client: &Client) {
    assert_eq!(code(client, "select 1").await, "57P01");
    until("the session has ended", || async { client.is_closed() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_another_role_bears_by_now_opens_nothing_of_the_former() {
    let cluster = TestCluster::start().await;
    let admin = cluster.client().await;
    let make = "create role rx login password 'x'; create role ry login password 'y';
        create table only_rx (a int); insert into only_rx values (1); grant select on only_rx to rx;
        create table only_ry (a int); grant select on only_ry to ry";
    run(&admin, make).await;
    let (old, busy) = (
        cluster.client_as("rx", "x", DATABASE).await,
        cluster.client_as("rx", "x", DATABASE).await,
    );
    every_node_says(&old, "select a from only_rx", "").await;
    run(&busy, "begin; lock table only_rx in access share mode").await;
    run(
        &admin,
        "alter role rx rename to rz; alter role ry rename to rx",
    )
    .await;
    let new = cluster.client_as("rx", "y", DATABASE).await;
    every_node_says(&new, "select a from only_rx", "42501").await;
    every_node_says(&new, "select a from only_ry", "").await;
    let who = "select oid = 'rx'::regrole from pg_roles where rolname = session_user";
    assert_eq!(ask(&new, who).await, "t");
    is_ended(&old).await;
    // What it holds it keeps, and nobody gets it afterwards.
    run(&busy, "select a from only_rx; commit").await;
    is_ended(&busy).await;
    for _ in 0..4 {
        let new = cluster.client_as("rx", "y", DATABASE).await;
        assert_eq!(code(&new, "begin; table only_rx").await, "42501");
    }
    let former = cluster.client_as("rz", "x", DATABASE).await;
    every_node_says(&former, "select a from only_rx", "").await;
    every_node_says(&new, "select a from only_ry", "").await;
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_no_more_is_none_in_any_new_session() {
    let cluster = TestCluster::start().await;
    let admin = cluster.client().await;
    run(&admin, "create role carl superuser login password 'c'").await;
    let login = || cluster.client_as("carl", "c", DATABASE);
    let old = login().await;
    assert_eq!(ask(&old, "show is_superuser").await, "on");
    every_node_says(&old, "select count(*) from pg_authid", "").await;
    run(&admin, "alter role carl nosuperuser").await;
    let new = login().await;
    let become_other = "set session authorization synapsedb";
    let no_superuser = async |client: &Client| {
        assert_eq!(ask(client, "show is_superuser").await, "off");
        assert_eq!(code(client, become_other).await, "42501");
        every_node_says(client, "select count(*) from pg_authid", "42501").await;
    };
    no_superuser(&new).await;
    is_ended(&old).await;
    // Whoever has gained a right goes on, and has it when it comes again.
    run(&admin, "alter role carl superuser").await;
    let super_again = login().await;
    assert_eq!(ask(&super_again, "show is_superuser").await, "on");
    assert_eq!(code(&new, "select 1").await, "");
    run(
        &admin,
        "drop role carl; create role carl login password 'c'",
    )
    .await;
    let remade = login().await;
    no_superuser(&remade).await;
    is_ended(&super_again).await;
    is_ended(&new).await;
    run(
        &admin,
        "drop role carl; create role carl login password 'c'",
    )
    .await;
    let remade_again = login().await;
    run(&admin, "create schema c authorization carl").await;
    run(
        &remade_again,
        "create table c.t (a int); insert into c.t values (1)",
    )
    .await;
    every_node_says(&remade_again, "select a from c.t", "").await;
    is_ended(&remade).await;
    cluster.assert_nodes_equal().await;
}

/// A plain role, and all that it has been told beside the answers.
async fn eavesdropper(cluster: &TestCluster) -> (Client, Arc<Mutex<String>>) {
    let mut config = Config::new();
    config.host("127.0.0.1").port(cluster.port()).user("alice");
    config.password("a").dbname(DATABASE);
    let (client, mut connection) = config.connect(NoTls).await.expect("may");
    let heard = Arc::new(Mutex::new(String::new()));
    let ear = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Some(Ok(message)) =
            std::future::poll_fn(|context| connection.poll_message(context)).await
        {
            if let AsyncMessage::Notice(notice) = message {
                let line = format!("{notice:?}\n");
                ear.lock().expect("not poisoned").push_str(&line);
            }
        }
    });
    (client, heard)
}

/// Whoever knew the secret by which the proxy logs commands could stop all writes with it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_calls_ahead_of_a_command_reaches_the_client() {
    let cluster = TestCluster::builder()
        .setting("log_min_duration_statement", "0")
        .setting("log_statement", "all")
        .start()
        .await;
    run(
        &cluster.client().await,
        "create role alice login password 'a'",
    )
    .await;
    let (alice, heard) = eavesdropper(&cluster).await;
    let loud = [
        "set log_parameter_max_length_on_error = -1",
        "set client_min_messages = debug5",
        "set debug_print_plan = on",
        "set debug_print_parse = on",
        "set debug_print_rewritten = on",
    ];
    for setting in loud {
        run(&alice, setting).await;
    }
    let told = |text: String| *heard.lock().expect("not poisoned") += &text;
    for (begin, command, code, message) in [
        (
            "begin read only",
            "create role zz",
            "25006",
            "cannot execute CREATE ROLE in a read-only transaction",
        ),
        (
            "begin read only",
            "grant alice to alice",
            "25006",
            "cannot execute GRANT ROLE in a read-only transaction",
        ),
        (
            "begin read only",
            "drop user alice",
            "25006",
            "cannot execute DROP ROLE in a read-only transaction",
        ),
        (
            "begin",
            "create role zz",
            "42501",
            "permission denied to create role",
        ),
        (
            "begin",
            "alter role alice superuser",
            "42501",
            "permission denied to alter role",
        ),
    ] {
        for extended in [false, true] {
            run(&alice, begin).await;
            let answer = if extended {
                alice.execute(command, &[]).await.map(drop)
            } else {
                alice.batch_execute(command).await
            };
            let error = answer.expect_err("refused");
            told(format!("{error:?}\n"));
            let error = error.as_db_error().expect("the node's");
            assert_eq!((error.code().code(), error.message()), (code, message));
            run(&alice, "rollback").await;
        }
    }
    let settings = "select string_agg(setting, ' ' order by name) from pg_settings
        where name ~ '^(client_min|log_parameter_max_length_on_error)'";
    run(
        &alice,
        "begin; set local log_parameter_max_length_on_error = 7",
    )
    .await;
    run(&alice, "alter role alice set work_mem = '3MB'").await;
    assert_eq!(ask(&alice, settings).await, "debug5 7");
    run(&alice, "commit").await;
    alice
        .execute("alter role alice set work_mem = '4MB'", &[])
        .await
        .expect("may");
    assert_eq!(ask(&alice, settings).await, "debug5 -1");
    let log = std::fs::read_to_string(cluster.server_ref(0).log()).expect("a log");
    // The server's own log has it, by the DBA's wish.
    let (_, behind) = log.split_once("synapsedb.log_command($1").expect("a call");
    let (_, behind) = behind.split_once("$1 = '").expect("its parameters");
    let secret = behind.split('\'').next().expect("a text");
    assert!(secret.len() > 16, "{secret}");
    let bytes = secret.bytes().map(|byte| byte.to_string());
    let bytes = bytes.collect::<Vec<_>>().join(" ");
    let heard = heard.lock().expect("not poisoned").clone();
    assert!(
        heard.contains("DEBUG") && heard.contains("LOG"),
        "nothing was heard: {heard}"
    );
    for part in [secret, &bytes, "synapsedb_log", "log_command", "ddl_log"] {
        assert!(!heard.contains(part), "{part} was told: {heard}");
    }
    cluster.assert_nodes_equal().await;
}
