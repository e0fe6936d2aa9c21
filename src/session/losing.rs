//! A session whose writer is lost or has left: what was under way gets its last words, and the session goes on.
//!
//! It guards that no session waits for a node that nobody believes in any more, that what had reached the proxy before
//! counts (an acknowledged COMMIT is one), and that what lived on one node only is not lost silently. What a client
//! sends outside of transactions is kept while it may be run again: short reads of which it has had no byte.

use std::time::Instant;

use bytes::BytesMut;

use crate::cluster::commits::Fate;
use crate::cluster::office::{Office, State};
use crate::error::ClientError;
use crate::session::client;
use crate::session::counts::Tally;
use crate::session::deferred::Stage;
use crate::session::loss::{Last, Word, last_words};
use crate::session::offices::{self, Offices, Outcome, over, told};
use crate::session::pipeline::Risk;
use crate::session::relay::{End, Session};
use crate::session::state::Hold;
use crate::wire::frame::Header;
use crate::wire::message::backend::{self, Status};

/// A read up to this length can be run again.
const KEPT_BYTES_MAX: usize = 4096;
/// What a session holds that did not come to know what it holds.
pub(super) const LEFT_BEHIND: &str = "what a function or a setting may have left";
/// So often: it may be what the server dies of.
const AGAIN_MAX: u32 = 2;

/// What the client has sent and had no byte of an answer to, where all of it may be run again.
#[derive(Debug, Default)]
pub struct Kept {
    bytes: BytesMut,
    /// Some of it can't be.
    spoilt: bool,
    /// How often it was.
    again: u32,
}

impl Kept {
    /// It can't be run again any more.
    pub fn spoil(&mut self) {
        self.spoilt = true;
    }

    /// Something has been answered to its end.
    pub fn done(&mut self) {
        self.spoilt = true;
        self.again = 0;
    }

    fn begin(&mut self) {
        self.bytes.clear();
        self.spoilt = false;
    }

    fn keep(&mut self, message: &[u8]) -> bool {
        self.spoilt |= self.bytes.len() + message.len() > KEPT_BYTES_MAX;
        if !self.spoilt {
            self.bytes.extend_from_slice(message);
        }
        !self.spoilt
    }

    /// The last message was not sent after all.
    pub fn take_back(&mut self, length: usize) {
        let rest = self.bytes.len().saturating_sub(length);
        self.bytes.truncate(rest);
    }

    fn take(&mut self) -> Option<BytesMut> {
        let whole = !self.spoilt && !self.bytes.is_empty() && self.again < AGAIN_MAX;
        self.spoilt = true;
        self.again += 1;
        whole.then(|| std::mem::take(&mut self.bytes))
    }
}

impl Session {
    /// Who writes, as was told last.
    pub(super) fn hear(&mut self) -> Office {
        if self.heard.has_changed().unwrap_or(false) {
            let office = *self.heard.borrow_and_update();
            let other = office.term != self.office.term;
            self.office = office;
            if other && (self.lease.is_none() || self.reading.is_some()) {
                self.shared.offices.count(Outcome::Moved);
            }
        }
        self.office
    }

    /// There are news of the writer.
    pub(super) async fn office_changed(&mut self) -> Result<(), End> {
        let office = self.hear();
        if self.lease.is_none() || self.reading.is_some() {
            return Ok(());
        }
        if office.is_over(self.term) {
            return self.lose("the writer has left").await;
        }
        let soft = self.state.hold() < Hold::Hard && !self.state.doubt.probe;
        if office.state == State::Closing && soft && self.is_resting() {
            self.give_back().await;
        }
        Ok(())
    }

    /// Whether nothing of the client's is under way.
    pub(super) fn is_resting(&self) -> bool {
        self.pipeline.is_empty() && !self.in_batch && self.status == Status::Idle
    }

    /// The connection is kept while the session does nothing.
    pub(super) fn rest_on_lease(&mut self) {
        if self.rest.is_none() {
            self.rest = Some(Offices::rest(&self.shared));
        }
    }

    /// Work begins anew on a connection that was kept. False: nothing may begin now.
    pub(super) fn resume(&mut self) -> bool {
        if self.rest.take().is_none() {
            return true;
        }
        let closing = self.heard.borrow().state == State::Closing;
        if closing {
            self.rest_on_lease();
        }
        !closing
    }

    /// Until something may begin at the writer. Dropped midway, the session is at its end.
    pub(super) async fn wait_for_office(&mut self) -> Result<(), ClientError> {
        self.wait_until(Office::serves).await
    }

    /// Until something may begin at the writer, or it is known that nobody will write so soon.
    pub(super) async fn wait_for_word(&mut self) -> Result<(), ClientError> {
        self.wait_until(|office| !office.waits()).await
    }

    async fn wait_until(&mut self, good: fn(&Office) -> bool) -> Result<(), ClientError> {
        self.cancel.wait();
        let shared = &self.shared;
        let mut heard = self.heard.clone();
        tokio::select! {
            office = told(&mut heard, &shared.config, good) => office.map(drop)?,
            () = self.cancel.requested() => return Err(ClientError::Cancelled),
            () = shared.abort.cancelled() => return Err(ClientError::ShuttingDown),
        }
        self.hear();
        Ok(())
    }

    /// The same on a connection that the session keeps, where a planned change is under way: after it there is none.
    pub(super) async fn wait_on_lease(&mut self) -> Result<(), End> {
        let process = self
            .lease
            .as_ref()
            .map(|l| (l.node(), l.backend.process_id));
        self.wait_for_word().await.map_err(End::Error)?;
        if self.office.is_over(self.term) {
            return self.lose("the writer has left").await;
        }
        if let Some((node, pid)) = process {
            self.cancel.attach(node, pid);
        }
        self.rest = None;
        Ok(())
    }

    /// Waits before the writer is tried again, which can't be reached.
    pub(super) async fn patient(&mut self, office: Office) -> Result<(), ClientError> {
        self.cancel.wait();
        let shared = &self.shared;
        let mut heard = self.heard.clone();
        tokio::select! {
            () = offices::news(&mut heard, office, &shared.config) => Ok(()),
            () = self.cancel.requested() => Err(ClientError::Cancelled),
            () = shared.abort.cancelled() => Err(ClientError::ShuttingDown),
        }
    }

    /// Ends when the writer on whose connection the session works has left.
    pub(super) fn left(&self) -> impl Future<Output = ()> + use<> {
        let (mut heard, term) = (self.heard.clone(), self.term);
        async move { over(&mut heard, term).await }
    }

    /// Why something needs the majority that there is not, if so.
    pub(super) fn without_quorum(&self, risk: Risk, commits: bool) -> Option<ClientError> {
        let (in_sync, total) = self.office.lacks_majority()?;
        let writes = risk > Risk::None && !commits && self.status != Status::Failed;
        writes.then_some(ClientError::NoQuorum { in_sync, total })
    }

    /// Keeps the message at the front, where it may have to be run again. Whether it did.
    pub(super) fn keep(&mut self, header: Header) -> bool {
        if self.status != Status::Idle || self.reading.is_some() {
            self.repeat.spoil();
            return false;
        }
        if self.pipeline.is_empty() && !self.in_batch {
            self.repeat.begin();
        }
        if self.repeat.spoilt || self.input.len() < header.len {
            // What is not there yet is looked at again once it is, unless it passes unseen.
            let passes = matches!(header.tag, b'B' | b'E' | b'S') || header.len > KEPT_BYTES_MAX;
            self.repeat.spoilt |= passes;
            return false;
        }
        self.repeat.keep(&self.input[..header.len])
    }

    /// The connection to the writer is gone, or nobody believes in it any more.
    pub(super) async fn lose(&mut self, why: &str) -> Result<(), End> {
        self.hear_the_last();
        if self.told_end {
            return Err(End::Lost(why.to_owned()));
        }
        let office = self.hear();
        let same = !office.is_over(self.term);
        tracing::debug!(
            why,
            node = self.pool.node().0,
            "a session lost its connection"
        );
        let held = self.holds();
        let asked = !self.pipeline.is_empty() || self.in_batch;
        let elsewhere = self.after.is_some() || self.pipeline.awaits_elsewhere();
        let cut = self.scanner.left() > 0 && asked;
        let quiet = self.pipeline.risk() == Risk::None && self.status == Status::Idle;
        let again = if quiet && asked && !cut && held.is_none() && !elsewhere {
            self.repeat.take()
        } else {
            None
        };
        let (mut words, mut state) = self.last_words(None);
        let mut unknown = is_unknown(&words) || elsewhere;
        if unknown && same {
            self.hold_the_others();
        }
        if unknown && let Some(fate) = self.fate().await {
            (words, state) = self.last_words(Some(fate));
            unknown = is_unknown(&words) || elsewhere;
        }
        let outcome = match &again {
            Some(_) => Outcome::Again,
            None if unknown => Outcome::Unknown,
            None if held.is_some() || cut => Outcome::Ended,
            None if words.iter().any(|(word, _)| matches!(word, Word::Error(_))) => Outcome::Failed,
            None if self.status == Status::Open && self.deferred.stage() != Stage::Waiting => {
                Outcome::Failed
            }
            None => Outcome::Moved,
        };
        self.shared.offices.count(outcome);
        if unknown && (held.is_some() || cut || elsewhere) {
            return Err(End::Error(ClientError::CommitUnknown));
        }
        if let Some(what) = held {
            return Err(End::Error(ClientError::Held { what }));
        }
        if cut {
            // In the middle of a row there is no place for an error.
            let open = self.status != Status::Idle;
            let error = if open {
                ClientError::TransactionLost
            } else {
                ClientError::ReadBroken
            };
            return Err(End::Error(error));
        }
        self.drop_lease().await;
        self.settle_loss(state, words, again);
        Ok(())
    }

    /// When the client is told that nobody knows: it commits, or may, and there is no majority.
    pub(super) fn commit_overdue(&mut self) -> Option<Instant> {
        let commits =
            |risk| risk == Risk::Commit || risk == Risk::Write && self.status == Status::Idle;
        let waits = matches!(self.office.state, State::ReadOnly { .. })
            && self.is_at_writer()
            && commits(self.pipeline.risk());
        if !waits {
            self.waits_since = None;
            return None;
        }
        let since = self.waits_since.get_or_insert_with(Instant::now);
        Some(*since + self.shared.config.limits.commit_wait())
    }

    /// There has been no majority for so long that the client is told that nobody knows. The node's end of it waits on,
    /// unseen, until there is one, and nobody else is told anything of it before.
    pub(super) async fn give_up_commit(&mut self) -> Result<(), End> {
        self.hear_the_last();
        if self.commit_overdue().is_none() {
            return Ok(());
        }
        self.waits_since = None;
        self.shared.offices.count(Outcome::Unknown);
        let cut = self.scanner.left() > 0;
        if cut || self.holds().is_some() || self.pipeline.awaits_elsewhere() {
            return Err(End::Error(ClientError::CommitUnknown));
        }
        let (words, state) = self.last_words(None);
        self.drop_lease().await;
        self.settle_loss(state, words, None);
        Ok(())
    }

    fn last_words(&self, fate: Option<Fate>) -> (Vec<Last>, Status) {
        last_words(self.status, self.pipeline.awaited(), self.in_batch, fate)
    }

    /// Tells what there is to tell, and begins anew.
    fn settle_loss(&mut self, state: Status, words: Vec<Last>, again: Option<BytesMut>) {
        let before = self.status;
        let waits = self.deferred.stage() == Stage::Waiting;
        self.forget_lost();
        if let Some(kept) = again {
            self.wanted_bytes = 0;
            let rest = std::mem::replace(&mut self.input, kept);
            self.input.unsplit(rest);
            return;
        }
        let told = !words.is_empty();
        for (word, ready) in words {
            match word {
                Word::Error(error) => client::put_error(&mut self.to_client, &error.report()),
                // A tag of our own, so it fits.
                Word::RolledBack => {
                    let _ = backend::complete(&mut self.to_client, "ROLLBACK");
                }
                Word::Committed(answers) => self.to_client.extend_from_slice(&answers),
                Word::Nothing => {}
            }
            match ready {
                Some(status) => backend::ready(&mut self.to_client, status),
                None => self.pipeline.skip(),
            }
        }
        if waits && !told {
            // No node had heard of it.
            self.status = before;
        } else if state == Status::Idle {
            self.deferred.end_lost();
            self.status = Status::Idle;
        } else {
            let tell = !told && before == Status::Open;
            if self.deferred.stage() != Stage::Failed || told {
                self.deferred
                    .lose(tell.then_some(ClientError::TransactionLost));
            }
            self.status = Status::Failed;
        }
    }

    /// All that belonged to the connection.
    fn forget_lost(&mut self) {
        self.forget_asked();
        self.state.lose_connection();
        self.portals.clear();
        self.own_rows.clear();
        self.tally = Tally::default();
        (self.relaxed, self.timing, self.doubt, self.after) = (None, None, None, None);
        (self.uncertain, self.certain, self.undone) = (false, false, false);
        (self.own_failed, self.watch_drops, self.told_end) = (false, false, false);
        self.bound_risk = Risk::None;
        if let Some(jump) = self.jump.take() {
            jump.linger();
        }
        // What is still to come of a message that was being passed on goes nowhere.
        self.passing_on = false;
    }

    /// What had arrived from the node before counts.
    fn hear_the_last(&mut self) {
        while !self.uncertain && self.after.is_none() {
            let Some(lease) = &mut self.lease else { return };
            let backend = &mut lease.backend;
            let heard = backend.stream.try_read_buf(&mut backend.input);
            if !matches!(heard, Ok(1..)) || self.answers().is_err() {
                return;
            }
        }
    }

    /// What the session holds on its connection and would miss, if anything.
    fn holds(&self) -> Option<&'static str> {
        let resting = self.is_resting() || self.state.looking();
        let unsure = resting && (self.state.doubt.probe || self.state.looking());
        let tie = self.state.tie();
        tie.or_else(|| unsure.then_some(LEFT_BEHIND))
    }
}

fn is_unknown(words: &[Last]) -> bool {
    let unknown = Word::Error(ClientError::CommitUnknown);
    words.iter().any(|(word, _)| *word == unknown)
}
