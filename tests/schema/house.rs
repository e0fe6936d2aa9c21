//! Two servers with the schema on them; reading `ddl_log`, and running it again as an applier would.

use serde_json::Value;
use sha2::{Digest, Sha256};
use synapsedb::node::schema;
use synapsedb::sql::pieces;
use tokio_postgres::Client;

use crate::support::cluster::TestCluster;

const SECRET: &str = "5ec2e7";

/// Servers with the schema, and on each the roles that the tests use.
pub async fn servers(nodes: usize) -> TestCluster {
    let cluster = TestCluster::builder()
        .nodes(nodes)
        .without_proxy()
        .start()
        .await;
    for index in 0..nodes {
        let node = cluster.node(index).await;
        run(&node, "create role ann login; create role bob nologin; create role eve login; \
                    grant bob to ann; grant all on schema public to ann, bob; grant create on database synapsedb to ann").await;
        for _ in 0..2 {
            run(&node, schema::INSTALL).await;
        }
    }
    cluster
}

/// A session of ann, who owns nothing and may create in `public`.
pub async fn ann(cluster: &TestCluster) -> Client {
    let client = cluster.node(0).await;
    run(
        &client,
        "set session authorization ann; set search_path = public",
    )
    .await;
    client
}

/// Runs a text as one Query and panics with the server's words where it fails.
pub async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        panic!("{sql}\n{error:?}");
    }
}

/// The SQLSTATE with which a text fails.
pub async fn code(client: &Client, sql: &str) -> String {
    match client.batch_execute(sql).await {
        Ok(()) => "00000".to_owned(),
        Err(error) => error.code().map_or("none", |code| code.code()).to_owned(),
    }
}

/// A row of `ddl_log`.
#[derive(Clone, Debug)]
pub struct Logged {
    pub role: String,
    pub tag: String,
    pub ordinal: u32,
    pub nested: bool,
    pub query: Option<String>,
    pub settings: Value,
    pub command: Option<String>,
    pub detail: Value,
}

impl Logged {
    /// `ann CREATE TABLE 1`, with what is special about it behind.
    pub fn line(&self) -> String {
        let mut line = format!("{} {} {}", self.role, self.tag, self.ordinal);
        if self.nested {
            line.push_str(" nested");
        }
        for (key, value) in self.detail.as_object().into_iter().flatten() {
            if key == "token" {
                continue;
            }
            line.push(' ');
            line.push_str(match (key.as_str(), value) {
                ("kind", Value::String(kind)) => kind,
                _ => key,
            });
        }
        line
    }
}

/// All rows from the `skip`-th on.
pub async fn log(client: &Client, skip: usize) -> Vec<Logged> {
    let rows = client
        .query(
            "select role::text, tag, ordinal, nested, query, settings, command, coalesce(detail, 'null') \
               from synapsedb.ddl_log order by logged_at",
            &[],
        )
        .await
        .expect("a superuser may read it");
    rows.iter()
        .skip(skip)
        .map(|row| Logged {
            role: row.get(0),
            tag: row.get(1),
            ordinal: u32::try_from(row.get::<_, i32>(2)).expect("not negative"),
            nested: row.get(3),
            query: row.get(4),
            settings: row.get(5),
            command: row.get(6),
            detail: row.get(7),
        })
        .collect()
}

/// The command of a row, found as its contract says.
pub fn command(row: &Logged, last: Option<&str>) -> String {
    let text = if let Some(command) = &row.command {
        command.clone()
    } else {
        let query = row.query.as_deref().or(last).expect("a text");
        let conforming = row.settings["standard_conforming_strings"] != "off";
        let piece = if row.detail["kind"] == "sql_function" {
            pieces::statement(query, row.ordinal, conforming)
        } else {
            pieces::piece(query, row.ordinal, &row.tag, row.nested, conforming)
        };
        piece
            .unwrap_or_else(|why| panic!("{row:?}: {why}"))
            .to_owned()
    };
    pieces::plain_form(&text).into_owned()
}

/// Runs what `from` has logged on `to`, in the replica role.
pub async fn replay(from: &Client, to: &Client) {
    let hash = format!("{:x}", Sha256::digest(SECRET.as_bytes()));
    run(to, "set session_replication_role = replica").await;
    let rows = log(from, 0).await;
    let mut last: Option<String> = None;
    for (at, row) in rows.iter().enumerate() {
        if !row.nested && row.query.is_some() {
            last.clone_from(&row.query);
        }
        if row.detail.get("at").is_some() {
            continue;
        }
        let row = if row.detail["kind"] == "place" {
            let token = &row.detail["token"];
            let made = rows[at..]
                .iter()
                .find(|later| later.detail.get("at") == Some(token));
            match made {
                Some(made) => made,
                None => continue,
            }
        } else {
            row
        };
        let command = command(row, last.as_deref());
        let made = to
            .query_one(schema::MAKE_RUNNER, &[&row.role.as_str(), &hash])
            .await
            .expect("a superuser may");
        let runner: String = made.get(0);
        let call = format!("select {runner}($1::text, $2::text, $3::jsonb)");
        if let Err(error) = to.execute(&call, &[&SECRET, &command, &row.settings]).await {
            panic!("{row:?}\n{command}\n{error:?}");
        }
        if row.detail.get("missing").is_some() || row.detail.get("extension").is_some() {
            to.execute("select synapsedb.follow_up($1)", &[&row.detail])
                .await
                .expect("the follow-up runs");
        }
    }
    run(to, "select synapsedb.drop_runners(null)").await;
}

/// What a database defines, a line for each object.
pub async fn fingerprint(client: &Client) -> Vec<String> {
    run(client, "set search_path = pg_catalog").await;
    let mut lines = Vec::new();
    for sql in [schema::FINGERPRINT, schema::CLUSTER_FINGERPRINT] {
        for row in client.query(sql, &[]).await.expect("a superuser may") {
            let part = |at: usize| row.get::<_, Option<String>>(at).unwrap_or_default();
            lines.push(format!("{} {}: {}", part(0), part(1), part(2)));
        }
    }
    run(client, "reset search_path").await;
    lines
}
