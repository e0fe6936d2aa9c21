//! A COMMIT whose writer dies is told the truth, wherever the stream shows it.

use synapsedb::cli::demo::server::DATABASE;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use crate::failover::{some_writer, until_followed};
use crate::raw::Raw;
use crate::support::cluster::TestCluster;
use crate::tools::{Hold, ask, rows, run, signal, until};

const WAITING: &str = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";

/// How something is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// COMMIT as a simple query.
    Commit,
    /// A prepared COMMIT.
    Prepared,
    /// A statement by itself, by Parse, Bind, Execute and Sync.
    Alone,
    /// A statement by itself, as a simple query.
    Simple,
}

const WAYS: [Way; 4] = [Way::Commit, Way::Prepared, Way::Alone, Way::Simple];

async fn commit(client: Client, way: Way, value: i32) -> Result<(), Error> {
    let insert = format!("insert into t values ({value})");
    match way {
        Way::Commit | Way::Prepared => {
            client.batch_execute("begin").await?;
            client.batch_execute(&insert).await?;
            if way == Way::Commit {
                client.batch_execute("commit").await?;
            } else {
                let commit = client.prepare("commit").await?;
                client.execute(&commit, &[]).await?;
            }
        }
        Way::Alone => {
            let insert = client.prepare(&insert).await?;
            client.execute(&insert, &[]).await?;
        }
        Way::Simple => client.batch_execute(&insert).await?,
    }
    // The session goes on.
    client.batch_execute("select 1 from t").await
}

fn told(outcome: Result<(), Error>) -> String {
    let Err(error) = outcome else {
        return "committed".to_owned();
    };
    let Some(error) = error.as_db_error() else {
        return format!("{error:?}");
    };
    match error.code() {
        code if *code == SqlState::T_R_SERIALIZATION_FAILURE => "rolled back".to_owned(),
        _ if error.message().starts_with("the transaction was committed") => {
            "answer lost".to_owned()
        }
        code => code.code().to_owned(),
    }
}

/// Commits in all ways, kills the writer in the midst of it, and gives what each was told, with what is there then.
async fn fates(shown: bool) -> Vec<(Way, String, bool)> {
    let mut cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(&client, "create table t (a int)").await;
    cluster.assert_nodes_equal().await;
    let old = some_writer(&cluster).await;
    let straight = cluster.node(old).await;
    let mut holds = Vec::new();
    if shown {
        for node in (0..cluster.nodes()).filter(|node| *node != old) {
            holds.push(Hold::table(&cluster, node, DATABASE, "t").await);
        }
    } else {
        let readers = "select pid::text from pg_stat_replication";
        for pid in rows(&straight, readers).await {
            signal(&pid, "-STOP");
        }
    }
    let mut clients = Vec::new();
    for _ in WAYS {
        clients.push(cluster.client().await);
    }
    let mut commits = Vec::new();
    for ((at, way), client) in WAYS.into_iter().enumerate().zip(clients) {
        let value = i32::try_from(at).expect("small");
        commits.push(tokio::spawn(commit(client, way, value)));
    }
    until("all commits wait", || async {
        ask(&straight, WAITING).await == WAYS.len().to_string()
    })
    .await;
    tokio::task::block_in_place(|| cluster.server(old).kill9());
    for hold in holds {
        hold.release().await;
    }
    until_followed(&cluster, old).await;
    let mut fates = Vec::new();
    for (at, (way, commit)) in WAYS.into_iter().zip(commits).enumerate() {
        let told = told(commit.await.expect("no panic"));
        let there = format!("select count(*) from t where a = {at}");
        let there = ask(&client, &there).await;
        fates.push((way, told, there == "1"));
    }
    fates
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_the_stream_showed_is_answered_though_its_writer_is_dead() {
    let wanted = [
        (Way::Commit, "committed".to_owned(), true),
        (Way::Prepared, "committed".to_owned(), true),
        (Way::Alone, "answer lost".to_owned(), true),
        (Way::Simple, "08007".to_owned(), true),
    ];
    assert_eq!(fates(true).await, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_died_with_its_writer_is_told_to_be_run_again() {
    let wanted = [
        (Way::Commit, "rolled back".to_owned(), false),
        (Way::Prepared, "rolled back".to_owned(), false),
        (Way::Alone, "rolled back".to_owned(), false),
        (Way::Simple, "08007".to_owned(), false),
    ];
    assert_eq!(fates(false).await, wanted);
}

/// Ways to move a sequence beyond what followers were raised to, and to use a value of it then.
const MOVES: [(&str, &str); 4] = [
    (
        "in_transaction",
        "begin; select setval('NAME', 5000000); insert into t values (nextval('NAME')); commit",
    ),
    (
        "alone",
        "select setval('NAME', 5000000); insert into t values (nextval('NAME'))",
    ),
    (
        "in_function",
        "do $$ begin perform moved('NAME'); end $$; insert into t values (nextval('NAME'))",
    ),
    (
        "by_ddl",
        "alter sequence NAME restart with 5000000; insert into t values (nextval('NAME'))",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_was_moved_stays_there_when_its_writer_dies() {
    let mut cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(
        &client,
        "create table t (a bigint); create function moved(s text) returns void language plpgsql as
         $$ begin perform setval(s::regclass, 5000000); end $$",
    )
    .await;
    for (name, _) in MOVES {
        run(
            &client,
            &format!("create sequence {name}; insert into t values (nextval('{name}'))"),
        )
        .await;
    }
    run(&client, "create sequence meanwhile; create table gone (id serial); create table emptied (id serial)").await;
    cluster.assert_nodes_equal().await;
    let old = some_writer(&cluster).await;
    // These hold sequences until they are confirmed, and hold nobody up.
    run(
        &client,
        "insert into gone default values; insert into emptied default values",
    )
    .await;
    run(&client, "drop table gone").await;
    run(&client, "truncate emptied restart identity").await;
    for (name, sql) in MOVES {
        run(&client, &sql.replace("NAME", name)).await;
    }
    // Somebody else uses it before whoever moves it has committed.
    let mover = cluster.client().await;
    run(&mover, "begin; select setval('meanwhile', 5000000)").await;
    run(&client, "insert into t values (nextval('meanwhile'))").await;
    tokio::task::block_in_place(|| cluster.server(old).kill9());
    until_followed(&cluster, old).await;
    // One that was being asked what it had left behind at that moment has ended.
    let client = cluster.client().await;
    assert_eq!(ask(&client, "select count(*) from emptied").await, "0");
    for name in MOVES.map(|(name, _)| name).into_iter().chain(["meanwhile"]) {
        let next: i64 = ask(&client, &format!("select nextval('{name}')"))
            .await
            .parse()
            .expect("a number");
        assert!(next > 5_000_000, "{name}: {next}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_has_waited_for_a_majority_in_vain_ends_and_completes_when_nodes_return() {
    let mut cluster = TestCluster::builder()
        .config("[limits]\ncommit_wait_ms = 1000")
        .start()
        .await;
    let client = cluster.client().await;
    run(&client, "create table t (a int)").await;
    cluster.assert_nodes_equal().await;
    let writer = some_writer(&cluster).await;
    let straight = cluster.node(writer).await;
    let followers: Vec<usize> = (0..cluster.nodes())
        .filter(|node| *node != writer)
        .collect();
    for node in &followers {
        cluster.server(*node).pause();
    }
    let mut commits = Vec::new();
    for (at, way) in WAYS.into_iter().enumerate() {
        let client = cluster.client().await;
        let value = i32::try_from(at).expect("small");
        commits.push((way, tokio::spawn(commit(client, way, value))));
    }
    for (way, commit) in commits {
        let told = told(commit.await.expect("no panic"));
        assert_eq!(told, "08007", "{way:?}");
    }
    // Nobody sees them, and they wait on.
    assert_eq!(ask(&client, "select count(*) from t").await, "0");
    assert_eq!(ask(&straight, WAITING).await, WAYS.len().to_string());
    for node in followers {
        cluster.server(node).resume();
    }
    until("all of them are there", || async {
        ask(&client, "select count(*) from t").await == WAYS.len().to_string()
    })
    .await;
    cluster.assert_nodes_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_touches_nothing_of_the_clients() {
    let cluster = TestCluster::start().await;
    let client = cluster.client().await;
    run(&client, "create table t (a int)").await;
    drop(client);
    // A portal that is bound ahead of the COMMIT and run behind it.
    let mut raw = Raw::login(cluster.port(), &[]).await;
    raw.query("begin").go().await;
    raw.hear().await;
    raw.parse("i", "insert into t values ($1::int4)")
        .parse("c", "commit")
        .sync()
        .go()
        .await;
    raw.hear().await;
    raw.query("insert into t values (1)").go().await;
    raw.hear().await;
    raw.bind("", "i", &["2"])
        .bind("c", "c", &[])
        .execute("", 0)
        .execute("c", 0)
        .sync()
        .go()
        .await;
    assert_eq!(
        raw.hear().await,
        "22CCZ",
        "what was asked, and nothing else"
    );
    let client = cluster.client().await;
    assert_eq!(ask(&client, "select count(*) from t").await, "2");
    // Code that drops prepared statements.
    run(&client, "begin; insert into t values (3); commit").await;
    for sql in [
        "begin",
        "insert into t values (4)",
        "commit",
        "do 'begin execute ''deallocate all''; end'",
        "begin",
        "insert into t values (5)",
        "commit",
    ] {
        run(&client, sql).await;
    }
    assert_eq!(ask(&client, "select count(*) from t").await, "5");
    cluster.assert_nodes_equal().await;
}
