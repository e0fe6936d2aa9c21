//! The doors: accepts clients, bounds how many there are, and closes up in order.
//!
//! Accepting never waits for a client. Each connection is a task of its own in a tracker, so that
//! stopping can wait for all of them; the limits of the handshake are held here.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio_util::task::TaskTracker;

use crate::error::ClientError;
use crate::session::client::{self, Client};
use crate::session::handshake::{Admitted, Ended, Handshake};
use crate::session::shared::{Seats, Shared};

/// Connections that may be in their handshake beyond `limits.max_clients`: cancels, and refusals that
/// are told why. Past them a connection is closed at once.
const SPARE: usize = 64;
/// How many connections the kernel keeps waiting.
const BACKLOG: u32 = 1024;
/// The rest after the system is out of file descriptors.
const REST: Duration = Duration::from_millis(50);

/// Opens a listening socket on `host:port`. `SO_REUSEADDR` lets a restart have its port back at once.
pub async fn bind(address: &str) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in lookup_host(address).await? {
        match bind_one(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// One door: a listening socket and what comes in by it.
pub struct Door {
    /// Where clients knock.
    pub listener: TcpListener,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Door {
    /// Accepts until `shared.stop`, and hands every admitted client to `relay`. Dropping the future
    /// closes the door; clients inside go on.
    pub async fn serve<F, R>(self, shared: Arc<Shared>, clients: TaskTracker, relay: F)
    where
        F: Fn(Client, Arc<Shared>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let stop = shared.stop.clone();
        let places = Arc::new(Seats::new(
            shared.config.limits.max_clients.saturating_add(SPARE),
        ));
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a client could not be accepted");
                    tokio::time::sleep(REST).await;
                    continue;
                }
            };
            let Some(place) = places.take() else {
                tracing::debug!(%peer, "too many connections in their handshake");
                continue;
            };
            let (shared, relay) = (Arc::clone(&shared), relay.clone());
            let read_only = self.read_only;
            clients.spawn(async move {
                let _place = place;
                if let Some(client) = welcome(stream, peer, read_only, &shared).await {
                    relay(client, shared).await;
                }
            });
        }
    }
}

/// Brings one connection through its handshake, or tells it why not. Dropped midway, it is closed.
async fn welcome(
    stream: TcpStream,
    peer: SocketAddr,
    read_only: bool,
    shared: &Arc<Shared>,
) -> Option<Client> {
    if let Err(error) = tune(&stream) {
        tracing::debug!(%peer, %error, "client left at once");
        return None;
    }
    let mut handshake = Handshake::new(stream, peer, read_only, Arc::clone(shared));
    let outcome = tokio::select! {
        outcome = greet(&mut handshake, shared) => outcome,
        () = shared.stop.cancelled() => Err(Ended::Refused(ClientError::ShuttingDown)),
    };
    match outcome {
        Ok(admitted) => {
            metrics::counter!("synapsedb_logins_total").increment(1);
            handshake.into_client(admitted?)
        }
        Err(Ended::Silently) => None,
        Err(Ended::Refused(error)) => {
            let sqlstate = error.report().sqlstate.into_owned();
            metrics::counter!("synapsedb_logins_refused_total", "sqlstate" => sqlstate)
                .increment(1);
            tracing::debug!(%peer, %error, "client refused");
            client::dismiss(handshake.into_io()?, &error).await;
            None
        }
    }
}

/// The handshake within its limits: the client's part first, then the wait for a node, which the
/// pool bounds.
async fn greet(handshake: &mut Handshake, shared: &Shared) -> Result<Option<Admitted>, Ended> {
    let limit = shared.config.limits.handshake_timeout();
    let Some(identified) = within(limit, handshake.identify()).await? else {
        return Ok(None);
    };
    let limit = limit + shared.config.pool.queue_timeout();
    within(limit, handshake.admit(identified)).await.map(Some)
}

async fn within<T>(
    limit: Duration,
    step: impl Future<Output = Result<T, Ended>>,
) -> Result<T, Ended> {
    let late = |_| Err(Ended::Refused(ClientError::HandshakeTimeout));
    tokio::time::timeout(limit, step).await.unwrap_or_else(late)
}

/// Small packets go out at once, and a client that vanished is noticed.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Stops: no new clients, idle sessions end with 57P01, and after `grace` the others too. Returns when
/// all have ended. Dropped midway, the sessions still end at their next idle moment.
pub async fn drain(shared: &Shared, clients: &TaskTracker, grace: Duration) {
    shared.stop.cancel();
    clients.close();
    if tokio::time::timeout(grace, clients.wait()).await.is_err() {
        tracing::info!(
            clients = clients.len(),
            "ending sessions that are still at work"
        );
        shared.abort.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(5), clients.wait()).await;
    }
}
