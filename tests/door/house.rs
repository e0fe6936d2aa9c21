//! A node, the door before it in this process, and a relay just good enough to answer queries.

use std::sync::Arc;

use bytes::BytesMut;
use synapsedb::cli::demo::server::{PASSWORD, USER};
use synapsedb::config::Config;
use synapsedb::error::ClientError;
use synapsedb::node::pool::Lease;
use synapsedb::session::client::{Client, dismiss, put_error};
use synapsedb::session::listener::{self, Door};
use synapsedb::session::shared::Shared;
use synapsedb::wire::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::task::TaskTracker;

use crate::support::cluster::TestCluster;

/// One node with the door before it.
pub struct House {
    pub cluster: TestCluster,
    pub shared: Arc<Shared>,
    pub clients: TaskTracker,
    pub port: u16,
    pub read_only_port: u16,
}

impl House {
    /// With the default configuration.
    pub async fn open() -> Self {
        Self::open_with("", |_| {}).await
    }

    /// With more of a configuration, and changes to it.
    pub async fn open_with(config: &str, change: impl FnOnce(&mut Config)) -> Self {
        let builder = TestCluster::builder().nodes(1).without_proxy();
        let builder = builder.setting("max_connections", "60").config(config);
        let cluster = builder.start().await;
        Self::before(cluster, change).await
    }

    /// Before a node that is there already.
    pub async fn before(cluster: TestCluster, change: impl FnOnce(&mut Config)) -> Self {
        let file = cluster.folder().join("proxy.toml");
        let text = std::fs::read_to_string(&file).expect("the cluster wrote it");
        let password = |_: &str| Some(PASSWORD.to_owned());
        let mut config = Config::parse(&text, &file, &password).expect("a good configuration");
        change(&mut config);
        let shared = Arc::new(Shared::new(Arc::new(config)).expect("set up"));
        let clients = TaskTracker::new();
        let mut ports = [0; 2];
        for (port, read_only) in ports.iter_mut().zip([false, true]) {
            let listener = listener::bind("127.0.0.1:0").await.expect("a free port");
            *port = listener.local_addr().expect("bound").port();
            let door = Door {
                listener,
                read_only,
            };
            tokio::spawn(door.serve(Arc::clone(&shared), clients.clone(), relay));
        }
        let pools = Arc::clone(&shared.pools);
        tokio::spawn(pools.tend(shared.stop.clone()));
        Self {
            cluster,
            shared,
            clients,
            port: ports[0],
            read_only_port: ports[1],
        }
    }

    /// Logs in through the door.
    pub async fn login(
        &self,
        user: &str,
        password: &str,
        database: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        crate::support::cluster::connect(self.port, user, password, database).await
    }

    /// The superuser's session through the door.
    pub async fn client(&self) -> tokio_postgres::Client {
        let client = self.login(USER, PASSWORD, "synapsedb").await;
        client.expect("the door is open")
    }
}

/// Runs statements one by one: some refuse to share a transaction.
pub async fn each(node: &tokio_postgres::Client, statements: &[&str]) {
    for statement in statements {
        node.batch_execute(statement).await.expect(statement);
    }
}

/// The SQLSTATE of a failed login or query.
pub fn code<T>(result: Result<T, tokio_postgres::Error>) -> String {
    match result {
        Ok(_) => "00000".to_owned(),
        Err(error) => error
            .code()
            .map_or_else(|| error.to_string(), |code| code.code().to_owned()),
    }
}

/// Simple queries only, a connection for each transaction.
async fn relay(mut client: Client, shared: Arc<Shared>) {
    let mut held: Option<Lease> = None;
    loop {
        let frame = tokio::select! {
            frame = next(&mut client) => frame,
            () = shared.stop.cancelled() => return dismiss(client.io, &ClientError::ShuttingDown).await,
        };
        let Some(frame) = frame.filter(|frame| frame[0] == b'Q') else {
            return;
        };
        let lease = match held.take() {
            Some(lease) => Ok(lease),
            None => client.pool.acquire().await,
        };
        let outcome = match lease {
            Ok(lease) => answer(&mut client, lease, &frame).await,
            Err(error) => {
                let report = ClientError::from(error).report();
                let mut out = BytesMut::new();
                put_error(&mut out, &report);
                out.extend_from_slice(b"Z\0\0\0\x05I");
                client.io.write_all(&out).await.ok().map(|()| None)
            }
        };
        match outcome {
            Some(lease) => held = lease,
            None => return,
        }
    }
}

async fn next(client: &mut Client) -> Option<BytesMut> {
    loop {
        if let Some(length) = frame::whole(&client.input).ok()?.map(<[u8]>::len) {
            return Some(client.input.split_to(length));
        }
        if client.io.read_buf(&mut client.input).await.ok()? == 0 {
            return None;
        }
    }
}

/// None: the session is over.
async fn answer(client: &mut Client, mut lease: Lease, frame: &[u8]) -> Option<Option<Lease>> {
    lease.adopt(&client.settings).await.ok()?;
    client.cancel.attach(lease.node(), lease.backend.process_id);
    lease.backend.send(frame).await.ok()?;
    loop {
        let (tag, frame) = lease.backend.frame().await.ok()?;
        client.io.write_all(&frame).await.ok()?;
        if tag == b'Z' && frame[5] == b'I' {
            while !client.cancel.detach() {
                client.cancel.settled().await;
            }
            lease.release();
            return Some(None);
        }
        if tag == b'Z' {
            return Some(Some(lease));
        }
    }
}
