//! Who is let in: passwords, roles that may not, names that do not exist, changes behind our back.

use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use synapsedb::config::AuthMode;
use synapsedb::wire::message::backend::Authentication;
use synapsedb::wire::scram::client::Binding;

use crate::house::{House, code, each};
use crate::raw::{connect, sqlstate, startup};

#[tokio::test]
async fn logins() {
    let house = House::open().await;
    let node = house.cluster.node(0).await;
    each(
        &node,
        &[
            "create role plain login password 'right'",
            "create role late login password 'right' valid until '2001-01-01'",
            "create role later login password 'right' valid until '2101-01-01'",
            "create role nologin password 'right'",
            "create role passwordless login",
            "set password_encryption = md5",
            "create role hashed login password 'right'",
            "reset password_encryption",
            "create role few login password 'right' connection limit 0",
            "create database closed",
            "revoke connect on database closed from public",
            "create database off allow_connections false",
        ],
    )
    .await;
    for (user, password, database, expected) in [
        ("plain", "right", DATABASE, "00000"),
        ("later", "right", DATABASE, "00000"),
        ("plain", "wrong", DATABASE, "28P01"),
        ("plain", "", DATABASE, "28P01"),
        ("late", "right", DATABASE, "28P01"),
        ("nobody", "right", DATABASE, "28P01"),
        ("passwordless", "right", DATABASE, "28P01"),
        ("hashed", "right", DATABASE, "28P01"),
        ("nologin", "right", DATABASE, "28000"),
        ("nologin", "wrong", DATABASE, "28P01"),
        ("few", "right", DATABASE, "53300"),
        ("plain", "right", "closed", "42501"),
        ("plain", "right", "off", "55000"),
        ("plain", "right", "nowhere", "3D000"),
        ("plain", "wrong", "nowhere", "28P01"),
        (USER, PASSWORD, "closed", "00000"),
    ] {
        let got = if password.is_empty() {
            empty_password(&house, user, database).await
        } else {
            code(house.login(user, password, database).await)
        };
        assert_eq!(got, expected, "{user} {password} {database}");
    }
    nobody_looks_like_anybody(&house).await;
    rights_taken_away(&house, &node).await;
    changed_passwords(&house, &node).await;
    changed_defaults(&house, &node).await;
}

/// A driver refuses to send one by itself.
async fn empty_password(house: &House, user: &str, database: &str) -> String {
    let mut client = connect(house.port).await;
    client
        .send(&startup(3, 0, &[("user", user), ("database", database)]))
        .await;
    sqlstate(&client.log_in("", Binding::None).await).unwrap_or_default()
}

/// The exchange for a role that does not exist is the same each time, like one that does.
async fn nobody_looks_like_anybody(house: &House) {
    let mut salts = Vec::new();
    for user in ["nobody", "nobody", "someone", "plain"] {
        let mut client = connect(house.port).await;
        client.send(&startup(3, 0, &[("user", user)])).await;
        let request = client.frame().await.expect("a request");
        assert!(matches!(
            Authentication::read(&request),
            Ok(Authentication::Sasl(_))
        ));
        let first = b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc";
        let mut message = vec![b'p'];
        message.extend_from_slice(&crate::raw::packet(first));
        client.send(&message).await;
        let challenge = client.frame().await.expect("a challenge");
        let text = String::from_utf8_lossy(&challenge[9..]).into_owned();
        let (_, salt) = text.split_once(",s=").expect("a salt");
        salts.push(salt.to_owned());
    }
    assert_eq!(salts[0], salts[1]);
    assert_ne!(salts[0], salts[2]);
    assert!(
        salts
            .iter()
            .all(|salt| salt.ends_with(",i=4096") && salt.len() == salts[3].len())
    );
}

/// A pooled connection does not let in someone who could not open one any more.
async fn rights_taken_away(house: &House, node: &tokio_postgres::Client) {
    assert_eq!(code(house.login("plain", "right", DATABASE).await), "00000");
    for (taken, back, expected) in [
        (
            "alter role plain nologin",
            "alter role plain login",
            "28000",
        ),
        (
            "alter role plain valid until '2001-01-01'",
            "alter role plain valid until 'infinity'",
            "28P01",
        ),
        (
            "revoke connect on database synapsedb from public",
            "grant connect on database synapsedb to public",
            "42501",
        ),
        (
            "drop role plain",
            "create role plain login password 'right'",
            "28P01",
        ),
    ] {
        each(node, &[taken]).await;
        assert_eq!(
            code(house.login("plain", "right", DATABASE).await),
            expected,
            "{taken}"
        );
        each(node, &[back]).await;
        assert_eq!(
            code(house.login("plain", "right", DATABASE).await),
            "00000",
            "{back}"
        );
    }
}

/// After a password change the old one opens nothing, the session that knows only the old one goes on
/// until it needs a new connection, and the new one opens everything again.
async fn changed_passwords(house: &House, node: &tokio_postgres::Client) {
    let old = house
        .login("plain", "right", DATABASE)
        .await
        .expect("the right password");
    each(node, &["alter role plain password 'changed'"]).await;
    assert_eq!(code(house.login("plain", "right", DATABASE).await), "28P01");
    assert_eq!(
        code(old.simple_query("select 1").await),
        "00000",
        "its connection is open"
    );
    house.shared.pools.close_node(house.shared.writer());
    let error = old
        .simple_query("select 1")
        .await
        .expect_err("no key opens the node");
    let error = error.as_db_error().expect("the proxy says it");
    assert_eq!(error.code().code(), "57P01");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("new password"))
    );
    let new = house
        .login("plain", "changed", DATABASE)
        .await
        .expect("the new password");
    assert_eq!(code(new.simple_query("select 1").await), "00000");
    house.shared.pools.close_node(house.shared.writer());
    assert_eq!(
        code(old.simple_query("select 1").await),
        "00000",
        "the newest key of the role serves"
    );
}

/// ALTER ROLE SET holds for the next login, though the pool has older connections.
async fn changed_defaults(house: &House, node: &tokio_postgres::Client) {
    for value in ["3MB", "5MB"] {
        each(
            node,
            &[&format!("alter role plain set work_mem = '{value}'")],
        )
        .await;
        let client = house
            .login("plain", "changed", DATABASE)
            .await
            .expect("the password");
        let rows = client.simple_query("show work_mem").await.expect("a query");
        let shown = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        assert_eq!(shown, Some(value));
    }
}

/// Nobody is asked, and the node's own refusals are passed on.
#[tokio::test]
async fn trust() {
    let house = House::open_with("", |config| config.auth.mode = AuthMode::Trust).await;
    let data = house.cluster.folder().join("node1/data");
    let hba = "host all synapsedb all scram-sha-256\nhost all all all trust\n";
    std::fs::write(data.join("pg_hba.conf"), hba).expect("our own server");
    let node = house.cluster.node(0).await;
    node.batch_execute("create role plain login; select pg_reload_conf()")
        .await
        .expect("a superuser may");
    for (user, database, expected) in [
        ("plain", DATABASE, None),
        ("plain", "nowhere", Some("3D000")),
        ("nobody", DATABASE, Some("28000")),
        (USER, DATABASE, Some("08001")),
    ] {
        let mut client = connect(house.port).await;
        client
            .send(&startup(3, 0, &[("user", user), ("database", database)]))
            .await;
        let frames = client.until_ready().await;
        assert_eq!(sqlstate(&frames).as_deref(), expected, "{user}");
    }
}
