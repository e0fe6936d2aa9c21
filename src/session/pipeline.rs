//! The queue of answers that the messages already sent to a node will bring, in order.
//!
//! For each frame from the node it says whose answer it is and what becomes of it. It guards the promises
//! that answers reach the client in the order of its messages, that what the proxy put in between stays
//! unseen, and that after an error exactly one `ReadyForQuery` comes per Sync. Pure: no socket, no clock.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::node::carried::Noted;
use crate::session::global_ddl::After;
use crate::session::prepared::{Statement, Undo, UnnamedChange};

/// Which message's answer is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Query: everything until `ReadyForQuery`.
    Query,
    /// `FunctionCall`: likewise.
    Function,
    /// Parse.
    Parse,
    /// Bind.
    Bind,
    /// Describe of a statement or a portal.
    Describe,
    /// Execute.
    Execute,
    /// Close of a statement or a portal.
    Close,
    /// Sync: `ReadyForQuery`.
    Sync,
    /// `CopyDone` or `CopyFail`: no answer; tells which Syncs the server ignores.
    CopyEnd,
    /// No message at all: an answer of the proxy's own, given when its turn comes.
    Local,
}

impl Expect {
    /// Whether its answer ends with `ReadyForQuery`.
    pub fn ends(self) -> bool {
        matches!(self, Self::Query | Self::Function | Self::Sync)
    }
}

/// Why the proxy sent something itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Prepares or closes a statement ahead of the client's message. Its error is the client's.
    Statement,
    /// A step inside the client's transaction. Its error is the client's.
    Step,
    /// Puts the session's settings in force.
    Settings,
    /// Looks what a transaction left behind.
    Probe,
    /// Ahead of what commits: sends a token. Its error is the client's.
    Seal,
    /// The client's own BEGIN, which has been answered before.
    Begin,
}

/// What went ahead of what commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Which of the session's commits.
    pub count: u64,
    /// The message is a COMMIT and nothing else, so that its answer is known.
    pub plain: bool,
}

/// What an outstanding message could do, for the case that the connection is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Risk {
    /// It changes nothing.
    #[default]
    None,
    /// It may write.
    Write,
    /// It may commit.
    Commit,
}

/// Where a description is written down when it comes.
#[derive(Debug)]
pub struct Listener {
    /// Of the copy on the connection.
    pub copy: Arc<Noted>,
    /// Of what the session was told, where the client hears it.
    pub told: Option<Arc<Noted>>,
    /// It is a portal's.
    pub portal: bool,
}

impl Listener {
    /// Whether this frame is of the description.
    pub fn wants(tag: u8) -> bool {
        matches!(tag, b't' | b'T' | b'n')
    }

    /// Takes it in.
    pub fn hear(&self, frame: &[u8]) {
        for noted in self.told.iter().chain([&self.copy]) {
            noted.learn(frame, self.portal);
        }
    }
}

/// One awaited answer.
#[derive(Debug)]
pub struct Entry {
    /// To what.
    pub expect: Expect,
    /// Set where the message was the proxy's.
    pub own: Option<Own>,
    /// What its loss could mean.
    pub risk: Risk,
    /// Of a Describe: it is a portal's.
    pub portal: bool,
    /// By what its commit is found in the stream.
    pub seal: Option<Seal>,
    /// It ends the transaction without a trace, whatever becomes of it.
    pub rolls_back: bool,
    /// What to take back where the node never ran it.
    pub undo: Option<Box<Undo>>,
    /// Of a Parse, Bind or Describe: what the node has proved to understand once it answers.
    pub statement: Option<Arc<Statement>>,
    /// Of a Describe: who takes its answer down.
    pub listener: Option<Box<Listener>>,
    /// What the client gets: for a local answer the answer, else what stands in for the node's error.
    pub words: Option<Bytes>,
    /// To be done once it has succeeded.
    pub after: Option<After>,
    /// It belongs to the call that logs this command: nothing of its answer, and of an error no context, is the client's.
    pub logs: Option<Arc<str>>,
    /// Moves error positions: in which place how many characters were put in.
    pub splices: Option<Box<[(u32, u32)]>>,
}

impl Entry {
    /// The client's own message.
    pub fn client(expect: Expect) -> Self {
        Self {
            expect,
            own: None,
            risk: Risk::None,
            portal: false,
            seal: None,
            rolls_back: false,
            undo: None,
            statement: None,
            listener: None,
            words: None,
            after: None,
            logs: None,
            splices: None,
        }
    }

    /// A message of the proxy's.
    pub fn own(expect: Expect, own: Own) -> Self {
        Self {
            own: Some(own),
            ..Self::client(expect)
        }
    }

    /// An answer of the proxy's.
    pub fn local(answer: Bytes) -> Self {
        Self {
            words: Some(answer),
            ..Self::client(Expect::Local)
        }
    }
}

/// What becomes of a frame.
#[derive(Debug)]
pub enum Verdict {
    /// To the client as it is.
    Pass,
    /// To nobody: an answer to the proxy's own message.
    Swallow(Own),
    /// An error for the client.
    Error(Fault),
    /// `ReadyForQuery` of the client's Query, `FunctionCall` or Sync.
    Ready,
    /// `ReadyForQuery` of the proxy's.
    OwnReady(Own),
    /// Notice, notification or parameter: not an answer.
    Aside,
}

/// An error with what has to be done about it.
#[derive(Debug, Default)]
pub struct Fault {
    /// Sent to the client in place of the node's words.
    pub words: Option<Bytes>,
    /// Moves its position.
    pub splices: Option<Box<[(u32, u32)]>>,
    /// The command that was being logged.
    pub logs: Option<Arc<str>>,
    /// What was to be done after the message that failed.
    pub after: Option<After>,
    /// The named statement of the message that failed.
    pub statement: Option<Arc<Statement>>,
    /// A Query was skipped with it, whose Sync has to be sent now.
    pub resync: bool,
    /// Why the proxy sent what failed, if it did.
    pub own: Option<Own>,
    /// To be taken back, in this order; the first with `failed` set where the message itself failed.
    pub undo: Vec<Box<Undo>>,
}

/// A frame that answers nothing that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node sent {:?} while {awaited:?} was awaited", char::from(*.tag))]
pub struct OutOfStep {
    /// The frame's type.
    pub tag: u8,
    /// What was awaited.
    pub awaited: Option<Expect>,
}

/// How many changes of what names stand for are among what is awaited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Changes {
    named: usize,
    unnamed: usize,
}

impl Changes {
    fn of(undo: Option<&Undo>) -> Self {
        undo.map_or_else(Self::default, |undo| Self {
            named: usize::from(undo.named.is_some() || undo.on_connection.is_some()),
            unnamed: usize::from(undo.unnamed.is_some()),
        })
    }

    fn add(&mut self, more: Self) {
        self.named += more.named;
        self.unnamed += more.unnamed;
    }

    /// Takes off as many as there are, and gives the rest.
    fn take_off(&mut self, less: Self) -> Self {
        let here = Self {
            named: less.named.min(self.named),
            unnamed: less.unnamed.min(self.unnamed),
        };
        self.named -= here.named;
        self.unnamed -= here.unnamed;
        Self {
            named: less.named - here.named,
            unnamed: less.unnamed - here.unnamed,
        }
    }
}

/// The awaited answers.
#[derive(Debug, Default)]
pub struct Pipeline {
    queue: VecDeque<Entry>,
    /// An extended message failed and its Sync has not been sent yet: the server skips all until then.
    skipping: bool,
    /// The server reads COPY data.
    copying: bool,
    /// What has been answered may have to be taken back.
    keeps: bool,
    /// What it takes.
    kept: Vec<Undo>,
    /// Changes of names in the batch that is being sent, and in those before, which may fail by themselves.
    changes: Changes,
    earlier: Changes,
}

impl Pipeline {
    /// Whether what is answered from now on may have to be taken back as well.
    pub fn keep(&mut self, keeps: bool) {
        self.keeps = keeps;
        self.kept.clear();
    }

    /// Adds what was just sent (or a local answer).
    pub fn push(&mut self, entry: Entry) {
        if entry.expect == Expect::Sync {
            self.skipping = false;
        }
        if entry.expect == Expect::CopyEnd {
            self.copying = false;
        }
        self.changes.add(Changes::of(entry.undo.as_deref()));
        if matches!(entry.expect, Expect::Sync | Expect::Query) {
            // A Query too fails without what follows it.
            self.earlier.add(std::mem::take(&mut self.changes));
        }
        self.queue.push_back(entry);
    }

    /// Whether a batch before the one that is being sent may still fail, and with it a change of what names stand for.
    pub fn names_are_open(&self) -> bool {
        self.earlier.named > 0
    }

    /// The same of the unnamed statement, unless the batch that is being sent has made one.
    pub fn unnamed_is_open(&self) -> bool {
        self.earlier.unnamed > 0 && self.changes.unnamed == 0
    }

    /// The next change of the unnamed statement that is awaited.
    pub fn next_unnamed(&mut self) -> Option<&mut UnnamedChange> {
        let mut undos = self.queue.iter_mut().filter_map(|e| e.undo.as_mut());
        undos.find_map(|undo| undo.unnamed.as_mut())
    }

    /// What these changes are is certain now; they are the oldest.
    fn closed(&mut self, undo: Option<&Undo>) {
        let rest = self.earlier.take_off(Changes::of(undo));
        self.changes.take_off(rest);
    }

    /// Leads error positions back in the answer to the client's text that was sent after the first
    /// `known` awaited answers.
    pub fn splice_since(&mut self, known: usize, splices: Box<[(u32, u32)]>) {
        let text = |entry: &&mut Entry| {
            entry.own.is_none() && matches!(entry.expect, Expect::Query | Expect::Parse)
        };
        if let Some(entry) = self.queue.iter_mut().skip(known).find(text) {
            entry.splices = Some(splices);
        }
    }

    /// Whether nothing is awaited.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether a batch or Query before the one that is being sent may still fail: all but settings put in force may.
    pub fn may_fail_before(&self) -> bool {
        let fails = |entry: &Entry| entry.expect.ends() && entry.own != Some(Own::Settings);
        self.queue.iter().any(fails)
    }

    /// Whether the client still awaits a `ReadyForQuery`.
    pub fn awaits_ready(&self) -> bool {
        self.asked().any(|entry| entry.expect.ends())
    }

    /// Whether the client still awaits anything, rather than the proxy alone.
    pub fn awaits_for_client(&self) -> bool {
        self.asked().next().is_some()
    }

    fn asked(&self) -> impl Iterator<Item = &Entry> {
        self.queue.iter().filter(|entry| entry.own.is_none())
    }

    /// What is awaited.
    pub fn awaited(&self) -> impl Iterator<Item = &Entry> {
        self.queue.iter()
    }

    /// How much is awaited.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether the server ignores all but Sync now.
    pub fn skipping(&self) -> bool {
        self.skipping
    }

    /// An extended message failed before it reached a node: all until Sync is ignored.
    pub fn skip(&mut self) {
        self.skipping = true;
    }

    /// Its Sync came.
    pub fn unskip(&mut self) {
        self.skipping = false;
    }

    /// Whether the server waits for COPY data.
    pub fn copying(&self) -> bool {
        self.copying
    }

    /// Takes what is to be done once the head has succeeded.
    pub fn take_after(&mut self) -> Option<After> {
        let head = self.queue.front_mut().filter(|head| head.own.is_none());
        head.and_then(|head| head.after.take())
    }

    /// Whether a command is under way that other nodes must run too once it has succeeded.
    pub fn awaits_elsewhere(&self) -> bool {
        let elsewhere = |entry: &Entry| matches!(entry.after, Some(After::Elsewhere { .. }));
        self.queue.iter().any(elsewhere)
    }

    /// What the next answer belongs to.
    pub fn head(&self) -> Option<&Entry> {
        self.queue.front()
    }

    /// What went ahead of the one commit that is under way; none where there are more, or anything else that could
    /// have committed.
    pub fn sole_seal(&self) -> Option<Seal> {
        let mut seals = self.queue.iter().filter_map(|entry| entry.seal);
        let ends = |entry: &&Entry| entry.expect.ends() && entry.risk > Risk::None;
        let ends = self.queue.iter().filter(ends).count();
        let seal = seals.next()?;
        (ends == 1 && seals.next().is_none()).then_some(seal)
    }

    /// The gravest that may be going on.
    pub fn risk(&self) -> Risk {
        let risks = self.queue.iter().map(|entry| entry.risk);
        risks.max().unwrap_or_default()
    }

    /// Forgets everything, as when the connection is gone; gives what has to be taken back.
    pub fn abandon(&mut self) -> Vec<Undo> {
        self.skipping = false;
        self.copying = false;
        (self.changes, self.earlier) = (Changes::default(), Changes::default());
        let entries = std::mem::take(&mut self.queue);
        let kept = std::mem::take(&mut self.kept);
        let undone = entries.into_iter().filter_map(|entry| entry.undo);
        let undone = undone.map(|undo| *undo);
        // The latest change is taken back first.
        let mut all: Vec<Undo> = kept.into_iter().chain(undone).collect();
        all.reverse();
        all
    }

    /// Gives out the local answers whose turn has come.
    pub fn settle(&mut self, out: &mut BytesMut) {
        while let Some(Expect::Local | Expect::CopyEnd) = self.head().map(|entry| entry.expect) {
            let Some(entry) = self.queue.pop_front() else {
                return;
            };
            self.closed(entry.undo.as_deref());
            if let Some(answer) = entry.words {
                out.extend_from_slice(&answer);
            }
            let undo = entry.undo.filter(|_| self.keeps);
            self.kept.extend(undo.map(|undo| *undo));
        }
    }

    /// Judges a frame of type `tag` from the node.
    pub fn answer(&mut self, tag: u8) -> Result<Verdict, OutOfStep> {
        if matches!(tag, b'N' | b'S' | b'A') {
            return Ok(Verdict::Aside);
        }
        let Some(head) = self.queue.front() else {
            // A node that ends the connection says so unasked.
            let unasked = OutOfStep { tag, awaited: None };
            return if tag == b'E' {
                Ok(Verdict::Error(Fault::default()))
            } else {
                Err(unasked)
            };
        };
        let (expect, own) = (head.expect, head.own);
        let mine = own.map_or(Verdict::Pass, Verdict::Swallow);
        let done = match (expect, tag) {
            (_, b'E') => return Ok(self.error()),
            (Expect::Query | Expect::Function | Expect::Sync, b'Z') => {
                let answered = self.queue.pop_front();
                self.closed(answered.and_then(|entry| entry.undo).as_deref());
                self.copying = false;
                return Ok(own.map_or(Verdict::Ready, Verdict::OwnReady));
            }
            (Expect::Query | Expect::Execute, b'G') => {
                self.copy_in();
                false
            }
            (Expect::Query, b'T' | b'D' | b'C' | b'I' | b'H' | b'd' | b'c')
            | (Expect::Execute, b'D' | b'H' | b'd' | b'c')
            | (Expect::Describe, b't')
            | (Expect::Function, b'V') => false,
            (Expect::Parse, b'1')
            | (Expect::Bind, b'2')
            | (Expect::Close, b'3')
            | (Expect::Describe, b'T' | b'n')
            | (Expect::Execute, b'C' | b'I' | b's') => true,
            _ => {
                let awaited = Some(expect);
                return Err(OutOfStep { tag, awaited });
            }
        };
        if done {
            if let Some(answered) = self.queue.pop_front() {
                if let Some(statement) = answered.statement {
                    statement.prove();
                }
                self.closed(answered.undo.as_deref());
                let undo = answered.undo.filter(|_| self.keeps);
                self.kept.extend(undo.map(|undo| *undo));
            }
            self.copying = false;
        }
        Ok(mine)
    }

    /// The server begins to read COPY data: it ignores the Syncs that were sent ahead of the data's end.
    fn copy_in(&mut self) {
        let end = self
            .queue
            .iter()
            .position(|entry| entry.expect == Expect::CopyEnd);
        self.copying = end.is_none();
        let mut index = 0;
        let end = end.unwrap_or(usize::MAX);
        self.queue.retain(|entry| {
            let ignored = entry.expect == Expect::Sync && index < end;
            index += 1;
            !ignored
        });
    }

    fn error(&mut self) -> Verdict {
        self.copying = false;
        let Some(head) = self.queue.front_mut() else {
            return Verdict::Error(Fault::default());
        };
        if head.expect.ends() {
            if let Some(own @ (Own::Settings | Own::Probe | Own::Begin)) = head.own {
                return Verdict::Swallow(own);
            }
            let mut undo = head.undo.take();
            if let Some(undo) = &mut undo {
                undo.failed = true;
            }
            let fault = Fault {
                words: head.words.take(),
                splices: head.splices.take(),
                after: head.after.take(),
                undo: undo.into_iter().collect(),
                ..Fault::default()
            };
            self.closed(fault.undo.first().map(AsRef::as_ref));
            return Verdict::Error(fault);
        }
        let sync = self
            .queue
            .iter()
            .position(|entry| entry.expect == Expect::Sync);
        self.skipping = sync.is_none();
        let until = sync.unwrap_or(self.queue.len());
        let dropped: Vec<Entry> = self.queue.drain(..until).collect();
        for entry in &dropped {
            self.closed(entry.undo.as_deref());
        }
        // Where what was put ahead of a Query fails, it fails alone; behind the client's own message that fails, the
        // server ignores a Query as it does all until Sync, which the client sends.
        let own = dropped.first().is_some_and(|entry| entry.own.is_some());
        let whose = dropped.iter().find(|entry| entry.own.is_none());
        let queries = |e: &Entry| matches!(e.expect, Expect::Query | Expect::Function);
        let resync = own && whose.is_some_and(queries);
        let mut dropped = dropped.into_iter();
        let mut fault = Fault {
            resync,
            ..Fault::default()
        };
        if let Some(mut failed) = dropped.next() {
            fault.words = failed.words.take();
            fault.logs = failed.logs.take();
            fault.splices = failed.splices.take();
            if let Some(undo) = &mut failed.undo {
                undo.failed = true;
            }
            fault.undo.extend(failed.undo);
            fault.after = failed.after;
            fault.statement = failed.statement;
            fault.own = failed.own;
        }
        for entry in dropped {
            fault.after = fault.after.or(entry.after);
            fault.undo.extend(entry.undo);
        }
        // The latest change is taken back first.
        fault.undo.reverse();
        Verdict::Error(fault)
    }
}

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
