//! A client that says exactly what it is told to, and writes down what it hears in one letter a frame.

use std::time::Duration;

use bytes::BytesMut;
use synapsedb::cli::demo::server::{DATABASE, PASSWORD, USER};
use synapsedb::wire::frame;
use synapsedb::wire::message::backend::Authentication;
use synapsedb::wire::message::frontend::Target;
use synapsedb::wire::message::{frontend, report};
use synapsedb::wire::scram::client::{Binding, Client, Secret};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an answer may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection, what has arrived on it, and what is to be sent.
pub struct Raw {
    pub stream: TcpStream,
    input: BytesMut,
    out: BytesMut,
}

impl Raw {
    /// Connects and logs in, with further startup parameters.
    pub async fn login(port: u16, parameters: &[(&str, &str)]) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("open");
        stream.set_nodelay(true).expect("a socket");
        let (input, out) = (BytesMut::new(), BytesMut::new());
        let mut raw = Self { stream, input, out };
        let own = [("user", USER), ("database", DATABASE)];
        let all = own.into_iter().chain(parameters.iter().copied());
        frontend::startup(&mut raw.out, all).expect("fits");
        raw.go().await;
        raw.frame().await.expect("SASL");
        let secret = Secret::Password(PASSWORD.as_bytes().to_vec());
        let (exchange, first) =
            Client::new(secret, Binding::None, "fyko+d2lbbFgONRv9qkx").expect("good");
        frontend::sasl_initial(&mut raw.out, "SCRAM-SHA-256", first.as_bytes()).expect("fits");
        raw.go().await;
        let challenge = raw.frame().await.expect("a challenge");
        let Ok(Authentication::SaslContinue(challenge)) = Authentication::read(&challenge) else {
            panic!("no challenge");
        };
        let (_, last) = exchange.answer(challenge).expect("good");
        frontend::sasl_response(&mut raw.out, last.as_bytes()).expect("fits");
        raw.go().await;
        let heard = raw.hear().await;
        assert!(heard.ends_with('Z'), "{heard}");
        raw
    }

    pub fn parse(&mut self, name: &str, sql: &str) -> &mut Self {
        frontend::parse(&mut self.out, name, sql, &[]).expect("fits");
        self
    }

    pub fn parse_typed(&mut self, name: &str, sql: &str, types: &[u32]) -> &mut Self {
        frontend::parse(&mut self.out, name, sql, types).expect("fits");
        self
    }

    /// Parameters and results as text.
    pub fn bind(&mut self, portal: &str, name: &str, parameters: &[&str]) -> &mut Self {
        let values = parameters.iter().map(|value| Some(value.as_bytes()));
        frontend::bind(&mut self.out, portal, name, &[], values, &[]).expect("fits");
        self
    }

    pub fn describe_portal(&mut self, name: &str) -> &mut Self {
        frontend::describe(&mut self.out, Target::Portal, name).expect("fits");
        self
    }

    pub fn describe(&mut self, name: &str) -> &mut Self {
        frontend::describe(&mut self.out, Target::Statement, name).expect("fits");
        self
    }

    pub fn execute(&mut self, portal: &str, rows: i32) -> &mut Self {
        frontend::execute(&mut self.out, portal, rows).expect("fits");
        self
    }

    pub fn close(&mut self, name: &str) -> &mut Self {
        frontend::close(&mut self.out, Target::Statement, name).expect("fits");
        self
    }

    pub fn close_portal(&mut self, name: &str) -> &mut Self {
        frontend::close(&mut self.out, Target::Portal, name).expect("fits");
        self
    }

    pub fn flush(&mut self) -> &mut Self {
        frontend::flush(&mut self.out);
        self
    }

    pub fn sync(&mut self) -> &mut Self {
        frontend::sync(&mut self.out);
        self
    }

    pub fn query(&mut self, sql: &str) -> &mut Self {
        frontend::query(&mut self.out, sql).expect("fits");
        self
    }

    pub fn copy(&mut self, data: &str) -> &mut Self {
        frontend::copy_data(&mut self.out, data.as_bytes()).expect("fits");
        self
    }

    pub fn copy_done(&mut self) -> &mut Self {
        frontend::copy_done(&mut self.out);
        self
    }

    pub fn copy_fail(&mut self) -> &mut Self {
        frontend::copy_fail(&mut self.out, "enough").expect("fits");
        self
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// Whether something was put together and not sent.
    pub fn has_words(&self) -> bool {
        !self.out.is_empty()
    }

    /// Sends what was put together.
    pub async fn go(&mut self) {
        self.stream.write_all(&self.out).await.expect("sent");
        self.out.clear();
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

    /// The types of all frames up to `ReadyForQuery`, `.` for the end; of D the first column, of E the code.
    pub async fn hear(&mut self) -> String {
        self.hear_until(b"Z").await
    }

    /// The same up to a frame of one of these types.
    pub async fn hear_until(&mut self, last: &[u8]) -> String {
        let mut heard = String::new();
        loop {
            let Some(frame) = self.frame().await else {
                heard.push('.');
                return heard;
            };
            if !matches!(frame[0], b'S' | b'K') {
                heard.push(char::from(frame[0]));
            }
            match frame[0] {
                b'D' => {
                    let length = usize::try_from(u32::from_be_bytes([
                        frame[7], frame[8], frame[9], frame[10],
                    ]));
                    let text = &frame[11..][..length.expect("small").min(40)];
                    heard = format!("{heard}({})", String::from_utf8_lossy(text));
                }
                b'E' => {
                    let code = report::get(&frame, b'C').expect("a code");
                    heard = format!("{heard}({})", String::from_utf8_lossy(code));
                }
                _ => {}
            }
            if last.contains(&frame[0]) {
                return heard;
            }
        }
    }

    /// Sends, and hears up to `ReadyForQuery`.
    pub async fn ask(&mut self) -> String {
        self.go().await;
        self.hear().await
    }

    /// Sends, and hears exactly this up to `ReadyForQuery`, in full.
    pub async fn says(&mut self, heard: &str) {
        self.go().await;
        assert_eq!(self.hear_all_until(b"Z").await, heard);
    }

    /// The same as `hear_until` with the tags of commands, the state that `ReadyForQuery` tells, and errors in full.
    pub async fn hear_all_until(&mut self, last: &[u8]) -> String {
        let mut heard = String::new();
        loop {
            let Some(frame) = self.frame().await else {
                heard.push('.');
                return heard;
            };
            let text = |from: usize| String::from_utf8_lossy(&frame[from..]).into_owned();
            let told = match frame[0] {
                b'S' | b'K' => continue,
                b'C' => text(5).trim_end_matches('\0').to_owned(),
                b'Z' => text(5),
                b'D' => text(11),
                b'E' | b'N' => {
                    let part = |field| report::get(&frame, field).unwrap_or_default();
                    let parts = [part(b'S'), part(b'C'), part(b'M'), part(b'P')];
                    String::from_utf8_lossy(&parts.join(&b' ')).into_owned()
                }
                _ => String::new(),
            };
            heard = format!("{heard}{}({told})", char::from(frame[0]));
            if last.contains(&frame[0]) {
                return heard;
            }
        }
    }
}
