//! The full-duplex pump: moves what is ready between two sockets and their buffers, and waits for neither
//! alone.
//!
//! Both directions are looked at on each wake, so a client that sends while the server sends, or that
//! stops reading, blocks only itself. Buffers are bounded by their reader: it is asked to read only while
//! what it read before has gone on. One write and one read per socket and wake.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// What one read may bring.
pub const READ_BYTES: usize = 16 * 1024;
/// Buffers that grew for one large message are given back above this.
const KEEP_BYTES: usize = 64 * 1024;

/// One socket with what came from it and what goes to it.
pub struct Side<'a, S> {
    /// The socket.
    pub socket: &'a mut S,
    /// Bytes read and not yet looked at.
    pub input: &'a mut BytesMut,
    /// Bytes to be written.
    pub output: &'a mut BytesMut,
    /// Whether more may be read now.
    pub read: bool,
    /// Whether somebody waits for the output to be written.
    pub awaited: bool,
    /// Bytes were given to the socket that it may still hold back (TLS).
    pub unflushed: &'a mut bool,
}

/// What came of a wait.
#[derive(Debug, Default)]
pub struct Moved {
    /// Bytes read from the client, 0 at its end.
    pub from_client: Option<io::Result<usize>>,
    /// Bytes read from the server, 0 at its end.
    pub from_server: Option<io::Result<usize>>,
    /// Writing to the client failed.
    pub client_gone: bool,
    /// Writing to the server failed; what it said before may still be read.
    pub server_deaf: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Side<'_, S> {
    /// Writes what can be written now. True if a buffer became empty that was not.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let had = !self.output.is_empty();
        while !self.output.is_empty() {
            match Pin::new(&mut *self.socket).poll_write(cx, self.output) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    self.output.advance(written);
                    *self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(false),
            }
        }
        if had {
            shrink(self.output);
        }
        if *self.unflushed {
            match Pin::new(&mut *self.socket).poll_flush(cx) {
                Poll::Ready(result) => {
                    result?;
                    *self.unflushed = false;
                }
                Poll::Pending => return Ok(had),
            }
        }
        Ok(had)
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Option<io::Result<usize>> {
        if !self.read {
            return None;
        }
        if self.input.capacity() - self.input.len() < READ_BYTES / 4 {
            self.input.reserve(READ_BYTES);
        }
        match pin!(self.socket.read_buf(self.input)).poll(cx) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }
}

/// Waits until something moved, and moves what it can. Cancel-safe: what was moved is in the buffers or on
/// the wire, and a failure comes again.
pub async fn pump<C, S>(client: &mut Side<'_, C>, mut server: Option<&mut Side<'_, S>>) -> Moved
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    std::future::poll_fn(|cx| {
        let mut moved = Moved::default();
        let mut progress = false;
        match client.write(cx) {
            Ok(emptied) => progress |= emptied && client.awaited,
            Err(_) => moved.client_gone = true,
        }
        if let Some(server) = &mut server {
            match server.write(cx) {
                Ok(emptied) => progress |= emptied && server.awaited,
                Err(_) => moved.server_deaf = true,
            }
            moved.from_server = server.read(cx);
        }
        moved.from_client = client.read(cx);
        progress |= moved.client_gone || moved.server_deaf;
        progress |= moved.from_client.is_some() || moved.from_server.is_some();
        if progress {
            Poll::Ready(moved)
        } else {
            Poll::Pending
        }
    })
    .await
}

/// Gives back what a large message made a buffer grow to.
pub fn shrink(buffer: &mut BytesMut) {
    if buffer.capacity() > KEEP_BYTES {
        *buffer = BytesMut::with_capacity(READ_BYTES);
    }
}
