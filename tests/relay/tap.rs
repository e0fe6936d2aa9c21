//! A wire between the relay and its node that writes down what the relay sends, and can change it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::house::House;

/// What went by, piece by piece as it was written.
#[derive(Clone, Default)]
pub struct Tap {
    pieces: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Tap {
    /// Leads from a free port to `node`; `change` sees each piece of the relay's before the node does.
    pub fn lay(node: u16, change: fn(&mut Vec<u8>)) -> (u16, Self) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let port = listener.local_addr().expect("bound").port();
        let listener = TcpListener::from_std(listener).expect("a socket");
        let tap = Self::default();
        let own = tap.clone();
        tokio::spawn(async move {
            while let Ok((relay, _)) = listener.accept().await {
                let Ok(node) = TcpStream::connect(("127.0.0.1", node)).await else {
                    continue;
                };
                let _ = node.set_nodelay(true);
                let (mut from_relay, mut to_relay) = relay.into_split();
                let (mut from_node, mut to_node) = node.into_split();
                let tap = own.clone();
                tokio::spawn(async move {
                    let mut piece = vec![0; 1 << 16];
                    while let Ok(read @ 1..) = from_relay.read(&mut piece).await {
                        let mut sent = piece[..read].to_vec();
                        tap.pieces().push(sent.clone());
                        change(&mut sent);
                        if to_node.write_all(&sent).await.is_err() {
                            return;
                        }
                    }
                });
                tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut from_node, &mut to_relay).await;
                });
            }
        });
        (port, tap)
    }

    fn pieces(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pieces in which this text went by.
    pub fn with(&self, text: &str) -> Vec<Vec<u8>> {
        let holds = |piece: &&Vec<u8>| contains(piece, text);
        self.pieces().iter().filter(holds).cloned().collect()
    }
}

/// Whether these bytes hold this text.
pub fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

/// A house with a tap before its node.
pub async fn tapped(change: fn(&mut Vec<u8>)) -> (House, Tap) {
    let mut tap = None;
    let house = House::open_with("max_connections = 1", |config| {
        let (port, laid) = Tap::lay(config.nodes[0].port, change);
        config.nodes[0].port = port;
        tap = Some(laid);
    });
    (house.await, tap.expect("laid"))
}
