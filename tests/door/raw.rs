//! A client that says exactly what it is told to, byte by byte.

use std::time::Duration;

use bytes::BytesMut;
use synapsedb::wire::frame;
use synapsedb::wire::message::backend::Authentication;
use synapsedb::wire::message::{frontend, report};
use synapsedb::wire::scram::client::{Binding, Client, Secret};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

pub const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
pub const GSS_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 48];

/// How long an answer may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection and what has arrived on it.
pub struct Raw<S = TcpStream> {
    pub stream: S,
    input: BytesMut,
}

/// Connects and says nothing.
pub async fn connect(port: u16) -> Raw {
    let stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("the door listens");
    Raw::over(stream)
}

/// A startup packet of the given version.
pub fn startup(major: u16, minor: u16, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = [major.to_be_bytes(), minor.to_be_bytes()].concat();
    for (name, value) in parameters {
        body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    packet(&body)
}

/// A packet without a type byte.
pub fn packet(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("small");
    [&length.to_be_bytes(), body].concat()
}

/// A request to cancel what `pid` does.
pub fn cancel(pid: u32, secret: &[u8]) -> Vec<u8> {
    packet(&[&80_877_102u32.to_be_bytes(), &pid.to_be_bytes(), secret].concat())
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub fn over(stream: S) -> Self {
        let input = BytesMut::new();
        Self { stream, input }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("sent");
    }

    /// One byte, as encryption requests are answered.
    pub async fn byte(&mut self) -> Option<u8> {
        assert!(self.input.is_empty());
        let mut byte = [0];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut byte)).await;
        (read.expect("an answer").unwrap_or(0) == 1).then_some(byte[0])
    }

    /// The next frame; None when the other side has closed.
    pub async fn frame(&mut self) -> Option<BytesMut> {
        loop {
            if let Some(length) = frame::whole(&self.input).expect("frames").map(<[u8]>::len) {
                return Some(self.input.split_to(length));
            }
            let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await;
            if read.expect("an answer in time").unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// SQLSTATE and message of the error that comes next, after which the connection must end.
    pub async fn refusal(&mut self) -> (String, String) {
        loop {
            let frame = self.frame().await.expect("an error before the end");
            if frame[0] == b'E' {
                let report = report::Report::read(&frame).expect("readable");
                assert_eq!(report.text(b'V').as_deref(), Some("FATAL"));
                assert!(self.frame().await.is_none(), "nothing behind a fatal error");
                return (report.code().to_owned(), report.message());
            }
        }
    }

    /// Whether the other side ends the stream, whatever bytes come first.
    pub async fn stream_ends(&mut self) -> bool {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await;
        end.is_ok()
    }

    /// Whether the other side closes without a word.
    pub async fn is_hung_up(&mut self) -> bool {
        self.frame().await.is_none()
    }

    /// Goes through SCRAM, and gives the frames up to `ReadyForQuery` or the error.
    pub async fn log_in(&mut self, password: &str, binding: Binding) -> Vec<BytesMut> {
        let request = loop {
            let frame = self.frame().await.expect("a request");
            match frame[0] {
                b'v' => {}
                b'R' => break frame,
                _ => return vec![frame],
            }
        };
        let Ok(Authentication::Sasl(mechanisms)) = Authentication::read(&request) else {
            panic!("not SASL");
        };
        let mechanism = match binding {
            Binding::Done(_) => "SCRAM-SHA-256-PLUS",
            _ => "SCRAM-SHA-256",
        };
        assert!(mechanisms.contains(&mechanism), "{mechanisms:?}");
        let secret = Secret::Password(password.as_bytes().to_vec());
        let (exchange, first) =
            Client::new(secret, binding, "fyko+d2lbbFgONRv9qkxdawL").expect("good");
        let mut out = BytesMut::new();
        frontend::sasl_initial(&mut out, mechanism, first.as_bytes()).expect("fits");
        self.send(&out).await;
        let frame = self.frame().await.expect("a challenge");
        let Ok(Authentication::SaslContinue(challenge)) = Authentication::read(&frame) else {
            return vec![frame];
        };
        let (waiting, last) = exchange.answer(challenge).expect("a good challenge");
        out.clear();
        frontend::sasl_response(&mut out, last.as_bytes()).expect("fits");
        self.send(&out).await;
        let frame = self.frame().await.expect("the outcome");
        let Ok(Authentication::SaslFinal(signature)) = Authentication::read(&frame) else {
            return vec![frame];
        };
        waiting
            .verify(signature)
            .expect("the proxy knows the verifier");
        self.until_ready().await
    }

    /// All frames up to and including `ReadyForQuery`, or the end.
    pub async fn until_ready(&mut self) -> Vec<BytesMut> {
        let mut frames = Vec::new();
        while let Some(frame) = self.frame().await {
            let last = frame[0] == b'Z';
            frames.push(frame);
            if last {
                break;
            }
        }
        frames
    }

    /// Runs a simple query; its frames.
    pub async fn query(&mut self, sql: &str) -> Vec<BytesMut> {
        let mut out = BytesMut::new();
        frontend::query(&mut out, sql).expect("fits");
        self.send(&out).await;
        self.until_ready().await
    }
}

/// The SQLSTATE of the error among these frames.
pub fn sqlstate(frames: &[BytesMut]) -> Option<String> {
    let error = frames.iter().find(|frame| frame[0] == b'E')?;
    let report = report::Report::read(error).expect("readable");
    Some(report.code().to_owned())
}
