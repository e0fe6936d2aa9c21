//! TLS: asked for, unasked, with channel binding, and what an attacker in between may try.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use rcgen::{CertifiedKey, KeyPair, PKCS_ECDSA_P384_SHA384, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use synapsedb::wire::scram::client::Binding;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::house::House;
use crate::raw::{Raw, SSL_REQUEST, connect, packet, sqlstate, startup};
use crate::support::cluster::TestCluster;

const GOOD: [(&str, &str); 2] = [("user", USER), ("database", DATABASE)];

async fn house(key: Option<KeyPair>) -> (House, CertificateDer<'static>) {
    let cluster = TestCluster::builder()
        .nodes(1)
        .without_proxy()
        .start()
        .await;
    let names = vec!["localhost".to_owned()];
    let CertifiedKey { cert, signing_key } = match key {
        None => generate_simple_self_signed(names).expect("a certificate"),
        Some(key) => {
            let cert = rcgen::CertificateParams::new(names)
                .expect("names")
                .self_signed(&key);
            CertifiedKey {
                cert: cert.expect("a certificate"),
                signing_key: key,
            }
        }
    };
    let (certificate, key) = (
        cluster.folder().join("tls.crt"),
        cluster.folder().join("tls.key"),
    );
    std::fs::write(&certificate, cert.pem()).expect("our own folder");
    std::fs::write(&key, signing_key.serialize_pem()).expect("our own folder");
    let house = House::before(cluster, |config| {
        config.tls.certificate = Some(certificate);
        config.tls.key = Some(key);
        config.limits.handshake_timeout_ms = 2000;
    });
    (house.await, cert.der().clone())
}

fn connector(certificate: &CertificateDer<'static>, alpn: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

async fn under_tls(
    connector: &TlsConnector,
    stream: TcpStream,
) -> std::io::Result<Raw<TlsStream<TcpStream>>> {
    let name = ServerName::try_from("localhost").expect("a name");
    Ok(Raw::over(connector.connect(name, stream).await?))
}

async fn asked(house: &House, connector: &TlsConnector) -> Raw<TlsStream<TcpStream>> {
    let mut client = connect(house.port).await;
    client.send(SSL_REQUEST).await;
    assert_eq!(client.byte().await, Some(b'S'));
    under_tls(connector, client.stream).await.expect("TLS")
}

#[tokio::test]
async fn encryption() {
    let (house, certificate) = house(None).await;
    let plain = connector(&certificate, &[]);
    let named = connector(&certificate, &[b"postgresql"]);
    let hash = Sha256::digest(&certificate).to_vec();
    for binding in [Binding::None, Binding::Done(hash.clone())] {
        for connector in [&plain, &named] {
            let mut client = asked(&house, connector).await;
            client.send(&startup(3, 0, &GOOD)).await;
            let frames = client.log_in(PASSWORD, binding.clone()).await;
            assert_eq!(sqlstate(&frames), None);
            assert!(
                client
                    .query("select 1")
                    .await
                    .iter()
                    .any(|frame| frame[0] == b'D')
            );
        }
    }
    // Another certificate's hash, and a client that was shown no offer though there is one.
    for binding in [Binding::Done(vec![7; 32]), Binding::NotOffered] {
        let mut client = asked(&house, &plain).await;
        client.send(&startup(3, 0, &GOOD)).await;
        let frames = client.log_in(PASSWORD, binding).await;
        assert_eq!(sqlstate(&frames).as_deref(), Some("28000"));
    }
    let mut direct = under_tls(&named, connect(house.port).await.stream)
        .await
        .expect("TLS");
    direct.send(&startup(3, 2, &GOOD)).await;
    assert_eq!(
        sqlstate(&direct.log_in(PASSWORD, Binding::Done(hash)).await),
        None
    );
    let mut nameless = under_tls(&plain, connect(house.port).await.stream)
        .await
        .expect("TLS");
    assert_eq!(nameless.refusal().await.0, "08P01");
    let other = connector(&certificate, &[b"http/1.1"]);
    assert!(
        under_tls(&other, connect(house.port).await.stream)
            .await
            .is_err()
    );
    in_between(&house, &plain).await;
    libpq(&house).await;
}

/// Bytes slipped in before encryption are refused, and encryption is not asked for twice.
async fn in_between(house: &House, connector: &TlsConnector) {
    let mut client = connect(house.port).await;
    client
        .send(&[SSL_REQUEST, &startup(3, 0, &GOOD)].concat())
        .await;
    let (code, text) = client.refusal().await;
    assert_eq!(code, "08P01");
    assert!(
        text.contains("received unencrypted data after SSL request"),
        "{text}"
    );
    let mut client = asked(house, connector).await;
    client.send(SSL_REQUEST).await;
    assert_eq!(client.refusal().await.0, "08P01");
    let mut client = connect(house.port).await;
    client.send(SSL_REQUEST).await;
    assert_eq!(client.byte().await, Some(b'S'));
    client.send(&packet(b"not TLS at all")).await;
    assert!(client.stream_ends().await);
    // A TLS handshake that never ends.
    let mut client = connect(house.port).await;
    client.send(SSL_REQUEST).await;
    assert_eq!(client.byte().await, Some(b'S'));
    client.send(b"\x16\x03\x01\x02").await;
    assert!(client.stream_ends().await);
}

async fn libpq(house: &House) {
    let Some(psql) = psql_with_tls() else {
        eprintln!("no psql with TLS here: left out");
        return;
    };
    for (options, works) in [
        ("sslmode=require channel_binding=require", true),
        ("sslmode=prefer", true),
        ("sslmode=disable", true),
        ("sslmode=disable channel_binding=require", false),
    ] {
        let url = format!(
            "host=127.0.0.1 port={} user={USER} dbname={DATABASE} {options}",
            house.port
        );
        let mut command = Command::new(&psql);
        command
            .args(["-X", "-At", "-c", "select 40 + 2", &url])
            .env("PGPASSWORD", PASSWORD);
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        let output = output.expect("no panic").expect("psql runs");
        let shown = String::from_utf8_lossy(&output.stdout).trim() == "42";
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(shown, works, "{options}: {errors}");
    }
}

/// Debian's: the one that comes with the tests' servers is built without TLS.
fn psql_with_tls() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let installed = versions
        .filter_map(Result::ok)
        .map(|version| version.path().join("bin/psql"));
    std::iter::once(PathBuf::from("psql"))
        .chain(installed)
        .find(|psql| {
            let mut command = Command::new(psql);
            command.args(["-X", "host=127.0.0.1 port=1 sslmode=require"]);
            let output = command.output();
            output.is_ok_and(|output| {
                !String::from_utf8_lossy(&output.stderr).contains("not compiled in")
            })
        })
}

/// The binding's hash follows the certificate's own.
#[tokio::test]
async fn a_certificate_signed_with_sha_384() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key");
    let (house, _) = house(Some(key)).await;
    libpq(&house).await;
}
