//! A bound on the operators' door: so many connections at once, and none that idles for long.
//!
//! Whoever holds connections open without asking anything must not take the file descriptors that clients
//! need. Guards no promise; a connection that is closed for idling is opened again by any scraper.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// The most connections at once; the next waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// A connection that asks nothing for so long is closed.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// The rest after the system is out of file descriptors.
const REST: Duration = Duration::from_millis(50);

/// A listener that lets in so many.
pub struct Limited {
    listener: TcpListener,
    places: Arc<Semaphore>,
    idle: Duration,
}

impl Limited {
    /// Over a bound socket.
    pub fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            idle: IDLE_LIMIT,
        }
    }
}

impl axum::serve::Listener for Limited {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        loop {
            // The semaphore is never closed, so there is always a place in the end.
            let place = Arc::clone(&self.places).acquire_owned().await.ok();
            match self.listener.accept().await {
                Ok((stream, peer)) => return (Guest::new(stream, self.idle, place), peer),
                Err(error) => {
                    tracing::debug!(%error, "an operator's connection could not be accepted");
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with its place, and the moment at which it has idled too long.
pub struct Guest {
    stream: TcpStream,
    idle: Duration,
    until: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Guest {
    fn new(stream: TcpStream, idle: Duration, place: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            stream,
            idle,
            until: Box::pin(tokio::time::sleep(idle)),
            _place: place,
        }
    }

    /// Something moved, or the time is over.
    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        moved: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if moved.is_ready() {
            let until = Instant::now() + self.idle;
            self.until.as_mut().reset(until);
            return moved;
        }
        match self.until.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.judge(cx, moved)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, moved)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_asks_nothing_is_closed_and_gives_its_place_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut limited = Limited::new(listener);
        limited.idle = Duration::from_millis(20);
        let _client = TcpStream::connect(address).await.expect("let in");
        let (mut guest, _) = axum::serve::Listener::accept(&mut limited).await;
        assert_eq!(limited.places.available_permits(), CONNECTIONS_MAX - 1);
        let error = guest.read_u8().await.expect_err("nothing comes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(guest);
        assert_eq!(limited.places.available_permits(), CONNECTIONS_MAX);
    }
}
