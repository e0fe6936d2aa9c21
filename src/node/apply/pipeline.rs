//! Extended-protocol messages in a row, answered later: the mechanics under the applier.
//!
//! Everything up to [`Pipeline::commit`] is one implicit transaction of the server (manual, "Pipelining").
//! It promises that neither side can block the other however much is sent, and that after any error
//! the connection is not used again (REPLICATION rule 7). It knows nothing of units or tables.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use crate::node::backend::{Backend, BackendError, data_row, server_error};

/// What goes out at once; larger pipelines are sent in such pieces.
const SEND_BYTES: usize = 64 * 1024;

/// A parameter or a result column as text; none is NULL.
pub type Value<'a> = Option<&'a [u8]>;

/// Why a pipeline failed.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The connection or the server failed; `at` says in the midst of what.
    #[error("{error} ({at})")]
    Failed {
        /// The failure.
        error: BackendError,
        /// What was being done.
        at: String,
    },
    /// A statement that must change exactly one row changed another number of rows.
    #[error("{at}: {tag:?} where one row was expected")]
    Rows {
        /// The server's command tag.
        tag: String,
        /// What was being done.
        at: String,
    },
}

/// What an `Execute` that was sent must answer.
#[derive(Debug)]
struct Expected {
    /// Exactly one row must have changed.
    one_row: bool,
    /// Index into `notes`: what to say when it fails.
    note: usize,
}

/// A connection and what is under way on it.
#[derive(Debug)]
pub struct Pipeline {
    backend: Backend,
    out: BytesMut,
    expected: VecDeque<Expected>,
    /// Rows of the query being waited for.
    rows: Vec<Vec<Option<String>>>,
    collecting: bool,
    notes: Vec<String>,
    ready: bool,
}

impl Pipeline {
    /// Takes over an idle connection.
    pub fn new(backend: Backend) -> Self {
        Self {
            backend,
            out: BytesMut::with_capacity(SEND_BYTES + 4096),
            expected: VecDeque::new(),
            rows: Vec::new(),
            collecting: false,
            notes: vec!["begin".to_owned()],
            ready: true,
        }
    }

    /// The server process behind the connection.
    pub fn process_id(&self) -> u32 {
        self.backend.process_id
    }

    /// Says what the following statements are for, should one fail.
    pub fn note(&mut self, note: impl FnOnce() -> String) {
        // Notes are kept per batch; the caller adds one per unit, not per row.
        self.notes.push(note());
    }

    /// Adds a `Parse` of a named statement with parameter types left to the server.
    pub fn prepare(&mut self, name: &str, sql: &str) {
        self.message(b'P', |out| {
            cstring(out, name);
            cstring(out, sql);
            out.put_u16(0);
        });
    }

    /// Adds a `Close` of a named statement; one that is not there is no error.
    pub fn close(&mut self, name: &str) {
        self.message(b'C', |out| {
            out.put_u8(b'S');
            cstring(out, name);
        });
    }

    /// Adds `Bind` (all parameters as text) and `Execute`.
    pub fn execute<'a>(
        &mut self,
        name: &str,
        parameters: impl ExactSizeIterator<Item = Value<'a>>,
        one_row: bool,
    ) {
        self.message(b'B', |out| {
            cstring(out, "");
            cstring(out, name);
            out.put_u16(0);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a table has at most 1,600 columns"
            )]
            out.put_u16(parameters.len() as u16);
            for value in parameters {
                put_value(out, value);
            }
            out.put_u16(0);
        });
        self.message(b'E', |out| {
            cstring(out, "");
            out.put_i32(0);
        });
        let note = self.notes.len() - 1;
        self.expected.push_back(Expected { one_row, note });
    }

    /// Adds rows of a COPY that has been executed just before, as a `CopyData` frame.
    pub fn copy_data(&mut self, lines: &[u8]) {
        self.message(b'd', |out| out.extend_from_slice(lines));
    }

    /// Ends the COPY.
    pub fn copy_done(&mut self) {
        self.message(b'c', |_| ());
    }

    fn message(&mut self, tag: u8, body: impl FnOnce(&mut BytesMut)) {
        let start = self.out.len();
        self.out.put_u8(tag);
        self.out.put_u32(0);
        body(&mut self.out);
        #[expect(clippy::cast_possible_truncation, reason = "no message is over 1 GiB")]
        let length = (self.out.len() - start - 1) as u32;
        self.out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
    }

    /// Sends what has gathered, when it is much. Not to be dropped midway: the connection is lost then.
    pub async fn relieve(&mut self) -> Result<(), PipelineError> {
        if self.out.len() < SEND_BYTES {
            return Ok(());
        }
        self.send().await
    }

    /// Sends what has gathered, and takes the answers that are there. As [`Pipeline::relieve`].
    pub async fn send(&mut self) -> Result<(), PipelineError> {
        self.push().await?;
        self.take_answers()
    }

    async fn push(&mut self) -> Result<(), PipelineError> {
        let out = self.out.split();
        self.ready = false;
        let sent = self.backend.send_while_reading(&out).await;
        self.out = out;
        self.out.clear();
        sent.map_err(|error| self.failed(error))
    }

    /// Runs a prepared query now, inside the transaction, and gives its rows.
    pub async fn query<'a>(
        &mut self,
        name: &str,
        parameters: impl ExactSizeIterator<Item = Value<'a>>,
    ) -> Result<Vec<Vec<Option<String>>>, PipelineError> {
        self.execute(name, parameters, false);
        self.message(b'H', |_| ());
        self.push().await?;
        self.collecting = true;
        while !self.expected.is_empty() {
            self.take_answer().await?;
        }
        self.collecting = false;
        Ok(std::mem::take(&mut self.rows))
    }

    /// Awaits all answers where a statement must change exactly one row, before anything that must not
    /// follow a missing one is sent.
    pub async fn settle(&mut self) -> Result<(), PipelineError> {
        if self.expected.iter().any(|expected| expected.one_row) {
            self.message(b'H', |_| ());
            self.push().await?;
            while !self.expected.is_empty() {
                self.take_answer().await?;
            }
        }
        Ok(())
    }

    /// Commits everything since the last commit and waits until it is durable.
    pub async fn commit(&mut self) -> Result<(), PipelineError> {
        self.message(b'S', |_| ());
        self.push().await?;
        while !self.ready {
            self.take_answer().await?;
        }
        if !self.expected.is_empty() {
            let error = BackendError::Protocol("fewer answers than statements".to_owned());
            return Err(self.failed(error));
        }
        self.notes.truncate(1);
        Ok(())
    }

    /// Ends when the idle connection does. Dropping it loses nothing.
    pub async fn broken(&mut self) -> PipelineError {
        loop {
            match self.backend.frame().await {
                Ok((b'E', frame)) => return self.failed(server_error(&frame)),
                Ok(_) => {}
                Err(error) => return self.failed(error),
            }
        }
    }

    fn take_answers(&mut self) -> Result<(), PipelineError> {
        while let Some((tag, frame)) = self.backend.buffered_frame().map_err(|e| self.failed(e))? {
            self.answer(tag, &frame)?;
        }
        Ok(())
    }

    async fn take_answer(&mut self) -> Result<(), PipelineError> {
        let (tag, frame) = match self.backend.frame().await {
            Ok(got) => got,
            Err(error) => return Err(self.failed(error)),
        };
        self.answer(tag, &frame)
    }

    fn answer(&mut self, tag: u8, frame: &Bytes) -> Result<(), PipelineError> {
        match tag {
            b'C' => {
                let Some(expected) = self.expected.pop_front() else {
                    return Ok(());
                };
                let text = frame.get(5..frame.len() - 1).unwrap_or_default();
                if expected.one_row && !text.ends_with(b" 1") {
                    let tag = String::from_utf8_lossy(text).into_owned();
                    let at = self.notes[expected.note].clone();
                    return Err(PipelineError::Rows { tag, at });
                }
            }
            // Only the query that is waited for has rows worth reading.
            b'D' if self.collecting && self.expected.len() == 1 => {
                let row = data_row(frame).map_err(|e| self.failed(e))?;
                self.rows.push(row);
            }
            b'E' => return Err(self.failed(server_error(frame))),
            b'Z' => self.ready = true,
            _ => {}
        }
        Ok(())
    }

    fn failed(&self, error: BackendError) -> PipelineError {
        let note = self
            .expected
            .front()
            .map_or(self.notes.len() - 1, |e| e.note);
        let at = self.notes.get(note).cloned().unwrap_or_default();
        PipelineError::Failed { error, at }
    }
}

fn cstring(out: &mut BytesMut, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.put_u8(0);
}

fn put_value(out: &mut BytesMut, value: Value<'_>) {
    match value {
        None => out.put_i32(-1),
        Some(bytes) => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_possible_wrap,
                reason = "no value is over 1 GiB"
            )]
            out.put_i32(bytes.len() as i32);
            out.extend_from_slice(bytes);
        }
    }
}
