//! The node's answers on their way to the client: passed on in slices as they came, cut only at frames
//! that must be looked at or that nobody is to see.
//!
//! No frame is held but those that are read here (errors, notices, `ReadyForQuery`, answers to the proxy
//! itself). It guards rule 4: an answer that may speak of a commit without a majority is held back.

use std::sync::Arc;

use bytes::{Buf, BytesMut};

use crate::error::ClientError;
use crate::session::connection::NOT_TOLD;
use crate::session::counts::Tally;
use crate::session::global_ddl::After;
use crate::session::pipeline::{Entry, Expect, Fault, Listener, OutOfStep, Own, Risk, Verdict};
use crate::session::relay::{End, Session};
use crate::session::state;
use crate::wire::frame::{Header, Step, Stop, TagSet};
use crate::wire::message::backend::{self, Status};
use crate::wire::message::frontend;
use crate::wire::message::report::{self, Report, Severity, field};
use crate::wire::message::rows;

/// Frames up to this length are read; longer ones (a notice of megabytes) pass unread.
const READ_FRAME_MAX: usize = 1 << 20;

/// To be looked at in the answer to a client's Query.
const IN_QUERY: TagSet = TagSet::of(b"ENSZGWV");
/// The same where the command's tag matters.
const IN_WATCHED_QUERY: TagSet = TagSet::of(b"ENSZGWVC");
/// To be looked at in the answer to Execute.
const IN_EXECUTE: TagSet = TagSet::all_but(b"DdcA");
/// Everything.
const ALL: TagSet = TagSet::all_but(b"");

/// The routine in which the server says that a wait for its standby was broken off (rule 4).
const BROKEN_WAIT: &[u8] = b"SyncRepWaitForLSN";
/// The one in which it says that a prepared statement's result has another shape now.
const OUTDATED: &[u8] = b"RevalidateCachedQuery";

/// What becomes of the frame in hand.
enum Fate {
    /// It passes as it is.
    Pass,
    /// It goes to nobody, or something else took its place.
    Gone,
    /// More of it must arrive first, or nothing may pass now.
    Hold,
}

impl Session {
    /// Works off what the node has sent, as far as it may go on.
    pub(super) fn answers(&mut self) -> Result<(), End> {
        let Some(lease) = &mut self.lease else {
            return Ok(());
        };
        if lease.backend.input.is_empty() {
            self.pipeline.settle(&mut self.to_client);
            self.after_answers();
            return Ok(());
        }
        let mut input = std::mem::take(&mut lease.backend.input);
        if let Some(since) = self.timing.take() {
            self.timed(since);
        }
        let result = self.scan(&mut input);
        self.after_answers();
        if input.is_empty() {
            super::pump::shrink(&mut input);
        }
        if let Some(lease) = &mut self.lease {
            lease.backend.input = input;
        }
        result
    }

    fn scan(&mut self, input: &mut BytesMut) -> Result<(), End> {
        // Bytes at the front that may go out.
        let mut passed = 0;
        loop {
            if matches!(
                self.pipeline.head().map(|head| head.expect),
                Some(Expect::Local | Expect::CopyEnd)
            ) {
                self.move_out(input, &mut passed);
                self.pipeline.settle(&mut self.to_client);
            }
            let look = self.look();
            let run = self
                .scanner
                .run(&input[passed..], look)
                .map_err(out_of_step)?;
            passed += run.passed;
            let Stop::Look(header) = run.stop else { break };
            match self.frame(header, input, &mut passed)? {
                Fate::Pass => {
                    let step = self.scanner.next(&input[passed..]).map_err(out_of_step)?;
                    if let Step::Start { here, .. } = step {
                        passed += here;
                    }
                }
                Fate::Gone => {
                    self.move_out(input, &mut passed);
                    input.advance(header.len);
                }
                Fate::Hold => break,
            }
        }
        self.move_out(input, &mut passed);
        Ok(())
    }

    /// Moves what may go out to the client's side; without a copy where that is all there is.
    fn move_out(&mut self, input: &mut BytesMut, passed: &mut usize) {
        if *passed == 0 {
            return;
        }
        self.repeat.spoil();
        if self.to_client.is_empty() && *passed == input.len() {
            std::mem::swap(&mut self.to_client, input);
            input.clear();
        } else {
            self.to_client.extend_from_slice(&input[..*passed]);
            input.advance(*passed);
        }
        *passed = 0;
    }

    /// Which frames are looked at in the answer that comes now.
    fn look(&self) -> &'static TagSet {
        let attentive = match &self.reading {
            Some(reading) if reading.looks_at_all() => return &ALL,
            Some(reading) => reading.is_several(),
            None => self.attentive(),
        };
        match self.pipeline.head() {
            Some(head) if head.own.is_none() => match head.expect {
                Expect::Query if attentive => &IN_WATCHED_QUERY,
                Expect::Query => &IN_QUERY,
                Expect::Execute => &IN_EXECUTE,
                _ => &ALL,
            },
            _ => &ALL,
        }
    }

    /// Whether the server may keep quiet about a wait that was broken off.
    fn muted(&self) -> bool {
        let carried = self.lease.as_ref().map(|lease| &lease.carried.settings);
        self.state.muted() || carried.is_some_and(state::mutes)
    }

    /// Whether the tags of the commands that complete matter.
    fn attentive(&self) -> bool {
        let after = |head: &Entry| head.after.is_some();
        self.watch_drops || self.muted() || self.pipeline.head().is_some_and(after)
    }

    /// Deals with the frame at `passed`.
    fn frame(
        &mut self,
        header: Header,
        input: &mut BytesMut,
        passed: &mut usize,
    ) -> Result<Fate, End> {
        let own = self.pipeline.head().is_some_and(|head| head.own.is_some());
        let attentive = self.attentive();
        let listens = Listener::wants(header.tag)
            && self.pipeline.head().is_some_and(|h| h.listener.is_some());
        let reading = self.reading.is_some();
        let read = matches!(header.tag, b'E' | b'N' | b'S' | b'Z')
            || reading && matches!(header.tag, b'T' | b't')
            || own
            || listens
            || header.tag == b'C' && attentive;
        let here = input.len() - *passed;
        let readable = header.len <= READ_FRAME_MAX || own;
        if read && readable && here < header.len {
            input.reserve(header.len - here);
            return Ok(Fate::Hold);
        }
        if reading && (!own || header.tag == b'E') {
            let whole = &mut input[*passed..*passed + header.len.min(here)];
            if !self.may_pass(header.tag, whole) {
                return Ok(Fate::Hold);
            }
            if header.tag == b'T' {
                // Of tables too each node has OIDs of its own.
                rows::forget_tables(whole);
            }
        }
        if header.tag == b'E' && !reading && ends(&input[*passed..*passed + header.len.min(here)]) {
            self.move_out(input, passed);
            return Err(End::Lost("the node ended the connection".to_owned()));
        }
        let frame = &input[*passed..*passed + header.len.min(here)];
        let frame = if read && readable { frame } else { &[] };
        if self.must_be_certain(header.tag) {
            self.uncertain = true;
            return Ok(Fate::Hold);
        }
        if header.tag == b'C' && self.after.is_none() {
            self.after = self.pipeline.take_after();
            if self.after.is_some() {
                return Ok(Fate::Hold);
            }
        }
        if listens && let Some(listener) = self.pipeline.head().and_then(|h| h.listener.as_ref()) {
            listener.hear(frame);
        }
        let awaited = self.pipeline.len();
        let verdict = self.pipeline.answer(header.tag).map_err(stray)?;
        if let Some(reading) = &mut self.reading
            && (self.pipeline.len() != awaited || reading.is_several() && header.tag == b'C')
        {
            reading.shut();
        }
        match verdict {
            Verdict::Pass => {
                if header.tag == b'C' && self.watch_drops {
                    note_drop(frame, &mut self.prepared, self.lease.as_deref_mut());
                }
                if header.tag == b'C' && std::mem::take(&mut self.undone) {
                    return Ok(Fate::Gone);
                }
                Ok(Fate::Pass)
            }
            Verdict::Aside => Ok(self.aside(header.tag, frame)),
            Verdict::Swallow(own) => {
                self.own_answer(header.tag, frame, own);
                Ok(Fate::Gone)
            }
            Verdict::Error(fault) => {
                self.repeat.spoil();
                let frame = frame.to_vec();
                self.move_out(input, passed);
                self.error(fault, &frame)
            }
            Verdict::Ready => {
                self.probe_failed = false;
                self.repeat.done();
                let node = self.ready(frame);
                self.count_ready();
                if node == self.status {
                    return Ok(Fate::Pass);
                }
                self.move_out(input, passed);
                backend::ready(&mut self.to_client, self.status);
                Ok(Fate::Gone)
            }
            Verdict::OwnReady(own) => {
                self.ready(frame);
                match own {
                    Own::Probe => self.probed(),
                    Own::Begin if self.own_failed => self.not_begun(),
                    Own::Settings if self.own_failed => {
                        let what = "settings could not be put in force".into();
                        return Err(End::Error(ClientError::Internal(what)));
                    }
                    _ => {}
                }
                Ok(Fate::Gone)
            }
        }
    }

    /// Whether the frame may speak of a commit of which the server would not say that its wait was broken
    /// off, since the client had it say less.
    fn must_be_certain(&self, tag: u8) -> bool {
        let head = self.pipeline.head();
        matches!(tag, b'C' | b'Z')
            && !self.certain
            && self.reading.is_none()
            && self.muted()
            && head.is_some_and(|head| head.own.is_none() && head.risk > Risk::None)
    }

    /// Takes note of the node's state, and gives it: the client's is another where its BEGIN has not come so far.
    fn ready(&mut self, frame: &[u8]) -> Status {
        // A frame that can't be read leaves the transaction as open as can be: the connection is kept.
        let node = backend::read_ready(frame).unwrap_or(Status::Failed);
        self.status = self.deferred.status(node);
        self.certain = false;
        self.wrote &= self.status != Status::Idle;
        if self.pipeline.is_empty() {
            self.idle = true;
            if self.status == Status::Idle {
                self.jump = None;
            }
            self.watch_drops = false;
            if let Some(reading) = &mut self.reading {
                reading.next();
            }
        }
        node
    }

    /// Notices, notifications and parameters.
    fn aside(&mut self, tag: u8, frame: &[u8]) -> Fate {
        match tag {
            b'S' => {
                let Some(lease) = &mut self.lease else {
                    return Fate::Pass;
                };
                lease.backend.note_parameter(frame);
                let reading = self.reading.is_some();
                let Ok((name, value)) = backend::read_parameter_status(frame) else {
                    return Fate::Pass;
                };
                let (name, value) = (
                    String::from_utf8_lossy(name),
                    String::from_utf8_lossy(value),
                );
                let told = self.told.get(name.as_ref());
                if told.is_some_and(|told| *told == value) || reading && name == NOT_TOLD {
                    return Fate::Gone;
                }
                Arc::make_mut(&mut self.told).insert(name.into_owned(), value.into_owned());
                Fate::Pass
            }
            b'N' => {
                // A log of statements at the client's side tells what was bound, and a log of plans too.
                let hidden =
                    |own| matches!(own, Own::Probe | Own::Step | Own::Seal | Own::Settings);
                if self
                    .pipeline
                    .head()
                    .is_some_and(|head| head.own.is_some_and(hidden))
                {
                    return Fate::Gone;
                }
                if report::get(frame, field::ROUTINE) == Some(BROKEN_WAIT) {
                    if !self.certain {
                        self.uncertain = true;
                        self.doubt = Some(self.shared.relay.doubts.enter());
                        return Fate::Hold;
                    }
                    return Fate::Gone;
                }
                let severity = report::get(frame, field::SEVERITY_PLAIN).unwrap_or(b"NOTICE");
                if self.state.shows(severity) {
                    Fate::Pass
                } else {
                    Fate::Gone
                }
            }
            _ => Fate::Pass,
        }
    }

    /// An answer to the proxy itself.
    fn own_answer(&mut self, tag: u8, frame: &[u8], own: Own) {
        match tag {
            b'D' if own == Own::Probe => {
                let text =
                    |value: Option<&[u8]>| value.map(|v| String::from_utf8_lossy(v).into_owned());
                if let Ok(row) = rows::read_row(frame) {
                    let mut values = row.map(text);
                    if let (Some(Some(name)), Some(value)) = (values.next(), values.next()) {
                        self.own_rows.push((name, value));
                    }
                }
            }
            b'C' if own == Own::Begin => self.begun(),
            b'1' if own == Own::Seal => self.can_seal(true),
            b'E' => self.own_failed = true,
            _ => {}
        }
    }

    /// An error: what it undoes, and the words that the client gets.
    fn error(&mut self, fault: Fault, frame: &[u8]) -> Result<Fate, End> {
        let severity = report::get(frame, field::SEVERITY_PLAIN).unwrap_or_default();
        if matches!(severity, b"FATAL" | b"PANIC") {
            // The connection ends. What was committed is not known where it ends a wait.
            if self.pipeline.risk() > Risk::None && self.status == Status::Idle
                || self.pipeline.risk() == Risk::Commit
            {
                return Err(End::Error(ClientError::CommitUnknown));
            }
            self.told_end = true;
        }
        let routine = || report::get(frame, field::ROUTINE);
        if fault.own == Some(Own::Seal) {
            self.can_seal(false);
        }
        if fault.own == Some(Own::Begin) {
            self.fail_deferred();
        }
        if let Some(statement) = fault.statement.filter(|_| routine() == Some(OUTDATED)) {
            statement.outdate();
        }
        if fault.resync {
            frontend::sync(&mut self.to_server);
            self.pipeline.push(Entry::client(Expect::Sync));
        }
        // The server takes nothing but Sync, whatever was sent behind what failed.
        self.in_batch |= self.pipeline.skipping();
        if let Some(After::Elsewhere {
            drops: Some(name), ..
        }) = fault.after
        {
            self.kept = Some(name);
        }
        for undo in fault.undo {
            let carried = self.lease.as_deref_mut().map(|pooled| &mut pooled.carried);
            let later = self.pipeline.next_unnamed();
            self.prepared.undo(*undo, carried, later);
        }
        if let Some(words) = fault.words {
            self.tally = Tally::default();
            self.to_client.extend_from_slice(&words);
            return Ok(Fate::Gone);
        }
        self.count_error(frame);
        if let Some(command) = fault.logs {
            unlogged(frame, &command).put_error(&mut self.to_client);
            return Ok(Fate::Gone);
        }
        if let Some(splices) = fault.splices {
            let edit = |position: u32| Some(unspliced(position, &splices));
            report::edit_position(frame, edit, &mut self.to_client).map_err(out_of_step)?;
            return Ok(Fate::Gone);
        }
        if frame.is_empty() {
            return Ok(Fate::Pass);
        }
        self.to_client.extend_from_slice(frame);
        Ok(Fate::Gone)
    }
}

/// Whether the frame says that the node, or somebody there, ends the connection: not for anything that the client did.
fn ends(frame: &[u8]) -> bool {
    let code = report::get(frame, field::CODE);
    matches!(code, Some(b"57P01" | b"57P02" | b"57P03"))
        && matches!(
            report::get(frame, field::SEVERITY_PLAIN),
            Some(b"FATAL" | b"PANIC")
        )
}

/// An error of the call that logs a command, as the command itself would have had it: without the context, which is
/// not the client's.
fn unlogged(frame: &[u8], command: &str) -> Report {
    let text =
        |code| report::get(frame, code).map(|text| String::from_utf8_lossy(text).into_owned());
    let code = text(field::CODE).unwrap_or_default();
    let severity = match report::get(frame, field::SEVERITY_PLAIN) {
        Some(b"FATAL") => Severity::Fatal,
        Some(b"PANIC") => Severity::Panic,
        _ => Severity::Error,
    };
    let message = if code == "25006" {
        format!("cannot execute {command} in a read-only transaction")
    } else {
        text(field::MESSAGE).unwrap_or_default()
    };
    let mut report = Report::new(severity, &code, message);
    for code in [field::DETAIL, field::HINT] {
        if let Some(text) = text(code) {
            report = report.with(code, text);
        }
    }
    report
}

/// Where a position in the text that was sent lies in the text that the client wrote. Each splice is
/// where it begins in the client's text, in characters from 1, and how many characters it put in.
fn unspliced(position: u32, splices: &[(u32, u32)]) -> u32 {
    let mut moved = 0;
    for (at, length) in splices {
        if position >= at + moved + length {
            moved += length;
        } else if position > at + moved {
            return *at;
        }
    }
    position - moved
}

/// DISCARD ALL and DEALLOCATE ALL drop the session's statements, and the connection's.
fn note_drop(
    frame: &[u8],
    prepared: &mut crate::session::prepared::Prepared,
    pooled: Option<&mut crate::node::pooled::Pooled>,
) {
    let dropped = matches!(
        backend::read_complete(frame),
        Ok(b"DISCARD ALL" | b"DEALLOCATE ALL")
    );
    if dropped {
        prepared.clear();
        if let Some(pooled) = pooled {
            pooled.carried.statements.clear();
            pooled.carried.seals = false;
        }
    }
}

fn out_of_step(error: crate::wire::error::WireError) -> End {
    End::Nonsense(error.to_string())
}

fn stray(error: OutOfStep) -> End {
    End::Nonsense(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::unspliced;

    #[test]
    fn positions_lead_back_to_the_clients_text() {
        // `select * from t, x`: 10 characters put in before t (15) and before x (18).
        let splices = [(15, 10), (18, 10)];
        for (sent, written) in [
            (1, 1),
            (15, 15),
            (20, 15),
            (25, 15),
            (26, 16),
            (28, 18),
            (38, 18),
            (39, 19),
        ] {
            assert_eq!(unspliced(sent, &splices), written, "{sent}");
        }
    }
}
