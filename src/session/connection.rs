//! The connection that a session works on: taken, dressed in its settings, and given back.
//!
//! A connection is taken at the first message that needs a node: the writer's here, a follower's in `reading.rs`. It
//! guards the promise that a session meets its own settings and nothing of another's on whichever node it works.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use crate::cluster::office::Office;
use crate::error::{ClientError, Severity};
use crate::node::backend::BackendError;
use crate::node::pool::{Lease, Pool};
use crate::node::pooled::node_error;
use crate::session::offices::{is_away, over, patience};
use crate::session::pipeline::Own;
use crate::session::relay::{End, Session};
use crate::wire::frame::{Header, Scanner};
use crate::wire::message::backend::{self, Status};

/// How often a connection that turns out dead on first use is replaced by another.
const ACQUIRE_TRIES: usize = 3;
/// What a follower's connections say otherwise, whatever the session has set.
pub(super) const NOT_TOLD: &str = "default_transaction_read_only";

impl Session {
    /// Gives the connection back, once no cancel can reach it any more.
    pub(super) async fn give_back(&mut self) {
        while !self.cancel.detach() {
            self.cancel.settled().await;
        }
        self.rest = None;
        if let Some(lease) = self.lease.take() {
            lease.release();
        }
        self.end_reading();
    }

    /// Takes a connection to the writer for the message at the front, unless there is one, or answers that there is
    /// none. False: answered. `opens`: it begins a transaction.
    pub(super) async fn at_writer(&mut self, header: Header, opens: bool) -> Result<bool, End> {
        // Aside, as all that is large and not taken by every message: the frame of each message's future would be
        // copied through all the functions around it.
        while self.lease.is_some() && !self.resume() {
            match Box::pin(self.wait_on_lease()).await {
                Err(End::Error(error)) => return self.denied(header, opens, &error),
                waited => waited?,
            }
        }
        if self.lease.is_none()
            && !self.take_idle()
            && let Err(error) = Box::pin(self.acquire()).await
        {
            return self.denied(header, opens, &error);
        }
        if self.deferred.waits() {
            self.put_begin(header.tag);
        }
        Ok(true)
    }

    /// There is no connection for the message at the front. Always false: it is answered.
    pub(super) fn denied(
        &mut self,
        header: Header,
        opens: bool,
        error: &ClientError,
    ) -> Result<bool, End> {
        if error.report().severity == Severity::Fatal {
            return Err(End::Error(error.clone()));
        }
        self.fail_deferred();
        // What comes next may be answered elsewhere.
        self.ways.at_writer();
        self.metadata.stale = None;
        if opens {
            self.deny_begin(header.tag);
        }
        self.refuse(header, error);
        Ok(false)
    }

    /// Takes an idle connection to the writer on which nothing has to be undone or set, if there is one.
    pub(super) fn take_idle(&mut self) -> bool {
        let office = self.hear();
        let fits = self.pool.node() == office.writer && self.pool.term() == office.term;
        if !fits || !office.serves() || self.ways.is_ahead() {
            return false;
        }
        let Some(lease) = self.idle_of(&Arc::clone(&self.pool)) else {
            return false;
        };
        if !self.still_serves(office) {
            lease.release();
            return false;
        }
        self.term = office.term;
        self.settle_in(lease);
        self.ways.at_writer();
        true
    }

    /// An idle connection of a pool that carries what this session wants, if there is one.
    pub(super) fn idle_of(&self, pool: &Arc<Pool>) -> Option<Lease> {
        let lease = pool.acquire_idle()?;
        if !self.is_same_role() {
            lease.release();
            return None;
        }
        let stranger = lease.carried.last_session != self.id;
        if lease.suits(&self.state.wanted, stranger) {
            return Some(lease);
        }
        lease.release();
        None
    }

    /// Whether the role's name still stands for what this session logged in as. Looked at once a connection is there:
    /// those opened as another came after the change was noted.
    pub(super) fn is_same_role(&self) -> bool {
        self.pool.epoch() == self.epoch
    }

    pub(super) fn other_role(&self) -> ClientError {
        let user = self.user.clone();
        ClientError::OtherRole { user }
    }

    /// Takes a connection and puts the session's settings in force on it. An error leaves the session
    /// without one, and nothing awaited.
    pub(super) async fn acquire(&mut self) -> Result<(), ClientError> {
        self.take_connection(true).await.map(drop)
    }

    /// The same where one is free now. False: there is none.
    pub(super) async fn acquire_free(&mut self) -> Result<bool, ClientError> {
        self.take_connection(false).await
    }

    async fn take_connection(&mut self, in_line: bool) -> Result<bool, ClientError> {
        if self.ways.is_ahead() {
            Box::pin(self.catch_writer_up()).await;
        }
        let mut tries = 0;
        let mut until = None;
        loop {
            let office = self.hear();
            if !office.serves() {
                if !in_line {
                    return Ok(false);
                }
                self.wait_for_office().await?;
                until = None;
                continue;
            }
            self.join(office)?;
            if !self.is_same_role() {
                return Err(self.other_role());
            }
            tries += 1;
            self.cancel.wait();
            let mut heard = self.heard.clone();
            let found = tokio::select! {
                // A free connection is there at the first look, and then nothing else is looked at.
                biased;
                found = self.dressed(in_line) => found,
                () = self.cancel.requested() => return Err(ClientError::Cancelled),
                () = self.shared.abort.cancelled() => return Err(ClientError::ShuttingDown),
                () = over(&mut heard, office.term) => continue,
            };
            let lease = match found {
                Ok(Some(lease)) => lease,
                Ok(None) => return Ok(false),
                Err(Dressing::Io(_)) if tries < ACQUIRE_TRIES => continue,
                Err(error) => {
                    let error = self.dressing_error(error);
                    let until = *until
                        .get_or_insert_with(|| Instant::now() + patience(&self.shared.config));
                    if in_line && is_away(&error) && Instant::now() < until {
                        self.patient(office).await?;
                        tries = 0;
                        continue;
                    }
                    return Err(error);
                }
            };
            if !self.still_serves(office) {
                lease.release();
                continue;
            }
            self.term = office.term;
            self.settle_in(lease);
            self.ways.at_writer();
            return Ok(true);
        }
    }

    /// The session's pool is the writer's.
    fn join(&mut self, office: Office) -> Result<(), ClientError> {
        if self.pool.node() != office.writer {
            let pools = &self.shared.pools;
            self.pool = pools.pool(office.writer, &self.user, &self.database)?;
        }
        self.pool.begin_term(office.term);
        Ok(())
    }

    /// A connection is taken, and counted: whether it may be worked on is looked at only then.
    fn still_serves(&mut self, office: Office) -> bool {
        fence(Ordering::SeqCst);
        if !self.heard.has_changed().unwrap_or(false) {
            return true;
        }
        let now = self.hear();
        now.serves() && now.term == office.term
    }

    /// A connection of the session's pool in its settings; none where it takes no place in line and none is free.
    async fn dressed(&self, in_line: bool) -> Result<Option<Lease>, Dressing> {
        let found = if in_line {
            self.pool.acquire().await.map(Some)
        } else {
            self.pool.acquire_free().await
        };
        let Some(mut lease) = found.map_err(|error| Dressing::Told(error.into()))? else {
            return Ok(None);
        };
        if !self.is_same_role() {
            lease.release();
            return Err(Dressing::Told(self.other_role()));
        }
        match self.dress(&mut lease).await {
            Ok(()) => Ok(Some(lease)),
            Err(error @ BackendError::Io(_)) => Err(Dressing::Io(error)),
            Err(error) => {
                let node = self.shared.node_name(lease.node());
                Err(Dressing::Told(node_error(node, error)))
            }
        }
    }

    fn dressing_error(&self, error: Dressing) -> ClientError {
        match error {
            Dressing::Io(error) => node_error(self.shared.node_name(self.pool.node()), error),
            Dressing::Told(error) => error,
        }
    }

    /// Begins to work on a connection that has been dressed.
    pub(super) fn settle_in(&mut self, mut lease: Lease) {
        self.cancel.attach(lease.node(), lease.backend.process_id);
        let foreign = lease.carried.last_session != self.id && lease.carried.drawn;
        lease.carried.last_session = self.id;
        self.lease = Some(lease);
        if foreign {
            // Ahead of the client's message in the same packet; it does not fail.
            self.send_own_query("discard sequences", Own::Settings);
            if let Some(lease) = &mut self.lease {
                lease.carried.drawn = false;
            }
        }
        self.status = Status::Idle;
        self.scanner = Scanner::new();
        self.probe_failed = false;
        self.tell_parameters();
    }

    /// Undoes what another session left on the connection and this one must not find.
    pub(super) async fn dress(&self, lease: &mut Lease) -> Result<(), BackendError> {
        let stranger = lease.carried.last_session != self.id;
        if stranger {
            lease.cleanse().await?;
        }
        lease.adopt(&self.state.wanted).await
    }

    /// Tells the client which parameters differ from what it was told last.
    pub(super) fn tell_parameters(&mut self) {
        let reading = self.reading.is_some();
        let Some(lease) = &mut self.lease else { return };
        let theirs = &mut lease.backend.parameters;
        if Arc::ptr_eq(theirs, &self.told) {
            return;
        }
        if *theirs == self.told {
            // One map for all who say the same, so that the next look is a short one.
            *theirs = Arc::clone(&self.told);
            return;
        }
        for (name, value) in theirs.iter() {
            if self.told.get(name) != Some(value) && !(reading && name == NOT_TOLD) {
                // They came from a frame, so they fit one.
                let _ = backend::parameter_status(
                    &mut self.to_client,
                    name.as_bytes(),
                    value.as_bytes(),
                );
                Arc::make_mut(&mut self.told).insert(name.clone(), value.clone());
            }
        }
        if reading {
            // They differ in nothing that is told.
            *theirs = Arc::clone(&self.told);
        }
    }
}

/// Why there is no dressed connection.
enum Dressing {
    /// It turned out dead; the next may be alive.
    Io(BackendError),
    /// What the client is told.
    Told(ClientError),
}
