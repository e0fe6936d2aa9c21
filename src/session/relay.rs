//! One session: its loop, and the connection it works on while it needs one.
//!
//! A connection is taken at the first message that needs a node and given back when the node is idle,
//! nothing is awaited and nothing ties the session to it. One task owns both sockets. It guards the
//! promises that a connection is given back clean or closed, that a client is told of a commit only what
//! is certain, and that no session's memory grows with what passes through it.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use crate::cluster::commits::Ticket;
use crate::cluster::jumps::Jump;
use crate::cluster::office::{Heard, Office};
use crate::cluster::relaxed::RelaxedWrite;
use crate::cluster::service::{Alone, Service};
use crate::config::ReadNodes;
use crate::error::ClientError;
use crate::ids::{Epoch as Term, fnv1a};
use crate::node::backend::Parameters;
use crate::node::identity::Epoch;
use crate::node::pool::{Lease, Pool};
use crate::session::brief::Briefs;
use crate::session::cancel::CancelHandle;
use crate::session::client::Client;
use crate::session::counts::{Counts, Tally};
use crate::session::deferred::Deferred;
use crate::session::doubts::{Doubt, Doubts};
use crate::session::global_ddl::After;
use crate::session::losing::Kept;
use crate::session::metadata::Metadata;
use crate::session::offices::{Rest, changed};
use crate::session::pipeline::{Entry, Expect, Own, Pipeline, Risk, Seal};
use crate::session::prepared::{Prepared, Shelf, Statement};
use crate::session::pump::{self, Moved, Side};
use crate::session::reading::{Again, Reading};
use crate::session::shapes::Bound;
use crate::session::shared::Shared;
use crate::session::state::{Hold, State};
use crate::session::tls::ClientIo;
use crate::session::ways::Ways;
use crate::wire::frame::Scanner;
use crate::wire::message::backend::Status;
use crate::wire::message::frontend;

/// What may wait to be written to either side before the other is no longer read.
pub const OUTPUT_BYTES_MAX: usize = 32 * 1024;

/// What the relays of all sessions share.
#[derive(Default)]
pub struct Common {
    /// Prepared statements.
    pub shelf: Shelf,
    /// What is known of texts, by database.
    briefs: Mutex<BTreeMap<String, Arc<Briefs>>>,
    /// What operators want to know.
    pub counts: Counts,
    /// Commits whose wait was broken off.
    pub doubts: Arc<Doubts>,
    service: OnceLock<Arc<dyn Service>>,
    sessions: AtomicU64,
}

impl Common {
    /// Gives the sessions their cluster; once, before the first client.
    pub fn set_service(&self, service: Arc<dyn Service>) {
        // A second one would be a fault of the caller's; the first stays.
        let _ = self.service.set(service);
    }

    /// The cluster.
    pub fn service(&self) -> &dyn Service {
        match self.service.get() {
            Some(service) => service.as_ref(),
            None => &Alone,
        }
    }

    /// The briefs that go by the newest snapshot of a database's names.
    fn briefs(&self, database: &str) -> Arc<Briefs> {
        let catalog = self.service().catalog(database);
        let mut known = self.briefs.lock().unwrap_or_else(PoisonError::into_inner);
        let current = |briefs: &&Arc<Briefs>| briefs.generation() == catalog.generation();
        if let Some(briefs) = known.get(database).filter(current) {
            return Arc::clone(briefs);
        }
        let briefs = Arc::new(Briefs::new(catalog));
        known.insert(database.to_owned(), Arc::clone(&briefs));
        briefs
    }
}

/// Why a session ends.
#[derive(Debug)]
pub enum End {
    /// The client said goodbye or is gone.
    Client,
    /// The client is told.
    Error(ClientError),
    /// The connection to the node is gone.
    Lost(String),
    /// The node talks nonsense.
    Nonsense(String),
}

impl From<ClientError> for End {
    fn from(error: ClientError) -> Self {
        Self::Error(error)
    }
}

/// A session with all that belongs to it.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, set and read in different places"
)]
pub struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) id: u64,
    pub(super) user: String,
    pub(super) database: String,
    /// Tells statements of other users and databases apart.
    pub(super) scope: u64,
    /// What is known of texts, and the generation of names at which that was the newest.
    briefs: (u64, Arc<Briefs>),
    pub(super) read_only: bool,
    /// Whether the database's rows reach other nodes; where they do not, nothing is written.
    pub(super) replicated: bool,
    pub(super) cancel: CancelHandle,
    pub(super) pool: Arc<Pool>,
    /// For whom the role's name stood at login.
    pub(super) epoch: Epoch,
    /// What the client was told in `ParameterStatus`.
    pub(super) told: Parameters,
    pub(super) state: State,
    pub(super) prepared: Prepared,
    pub(super) pipeline: Pipeline,
    pub(super) lease: Option<Lease>,
    /// Where the session hears who writes, and what it heard last.
    pub(super) heard: Heard,
    pub(super) office: Office,
    /// The term in which the connection to the writer was taken.
    pub(super) term: Term,
    /// It is kept, and nothing is done with it.
    pub(super) rest: Option<Rest>,
    /// What may be run again.
    pub(super) repeat: Kept,
    /// The read that is under way on a follower.
    pub(super) reading: Option<Box<Reading>>,
    /// The session's ways to the nodes that it may read from.
    pub(super) ways: Ways,
    /// A commit of its that waits for nobody may be under way.
    pub(super) relaxed: Option<RelaxedWrite>,
    /// Its role or database has a `synchronous_commit` of its own.
    pub(super) relaxes: bool,
    /// Since when the writer works on a read.
    pub(super) timing: Option<Instant>,
    /// From the client, not yet looked at.
    pub(super) input: BytesMut,
    pub(super) to_client: BytesMut,
    pub(super) to_server: BytesMut,
    /// The length of the client's message that is awaited whole; 0 for none.
    pub(super) wanted_bytes: usize,
    /// Bytes of the client's current frame that are still to come and pass unseen.
    pub(super) passing: usize,
    /// Whether those go to the server or nowhere.
    pub(super) passing_on: bool,
    pub(super) scanner: Scanner,
    /// The state of the client's transaction.
    pub(super) status: Status,
    /// Its BEGIN, while the node has not got it.
    pub(super) deferred: Deferred,
    /// Extended messages were sent to the node since the last Sync.
    pub(super) in_batch: bool,
    /// What losing what was bound last would leave open.
    pub(super) bound_risk: Risk,
    /// The transaction may have written something.
    pub(super) wrote: bool,
    /// Since when it commits without a majority.
    pub(super) waits_since: Option<Instant>,
    /// While its transaction may move a sequence.
    pub(super) jump: Option<Jump>,
    /// The batch that is being sent holds more than statements about rows.
    pub(super) batch_more: bool,
    /// Where the stream notes which commits it has shown, once there was one to note.
    pub(super) ticket: Option<Ticket>,
    /// What went ahead of the COMMIT that was bound last.
    pub(super) bound_seal: Option<Seal>,
    /// The server became idle in this round.
    pub(super) idle: bool,
    /// Rows of an answer to ourselves.
    pub(super) own_rows: Vec<(String, Option<String>)>,
    pub(super) own_failed: bool,
    /// Statements that may drop all prepared ones are under way.
    pub(super) watch_drops: bool,
    /// The next answer is held until the majority is known to have what the writer has.
    pub(super) uncertain: bool,
    /// It was made certain for the answer that comes now.
    pub(super) certain: bool,
    /// The server said that a wait was broken off: the others must not see what they could see now.
    pub(super) doubt: Option<Doubt>,
    /// Already known to be at work on the probe that failed; the next transaction tries again.
    pub(super) probe_failed: bool,
    /// To be done before the answer in hand goes out.
    pub(super) after: Option<After>,
    /// The client has been told that the command whose `CommandComplete` comes now has failed.
    pub(super) undone: bool,
    /// A database that was about to be dropped and was not.
    pub(super) kept: Option<String>,
    /// Nothing more is sent until all is answered.
    pub(super) barrier: bool,
    /// Portals of statements that have to be logged or followed up when they are executed.
    pub(super) portals: BTreeMap<Bytes, Arc<Statement>>,
    /// The portal bound last.
    pub(super) bound: Option<Bound>,
    /// The client has had the node's own last words.
    pub(super) told_end: bool,
    /// The client said goodbye; what it asked before is still being done.
    pub(super) leaving: bool,
    pub(super) tally: Tally,
    pub(super) metadata: Metadata,
}

/// Serves a client until it leaves or must go. Dropped midway, its connection is closed.
pub async fn run(client: Client, shared: Arc<Shared>) {
    let Client {
        mut io,
        input,
        user,
        database,
        settings,
        told,
        read_only,
        pool,
        epoch,
        cancel,
        seat,
        guest,
        ..
    } = client;
    let replicated = shared.relay.service().replicates(&database);
    let read_only = read_only || !replicated;
    let generation = shared.relay.service().catalog_generation();
    let briefs = (generation, shared.relay.briefs(&database));
    let id = shared.relay.sessions.fetch_add(1, Ordering::Relaxed) + 1;
    let mut ways = Ways::new(shared.relay.service().reads(), &database, id);
    if !read_only && shared.config.reads.nodes == ReadNodes::Writer {
        ways.close();
    }
    let mut heard = shared.offices.heard();
    let office = *heard.borrow_and_update();
    let relaxes = pool.defaults_name("synchronous_commit");
    let mut session = Session {
        relaxes,
        briefs,
        id,
        state: State::new(settings, read_only),
        scope: fnv1a(format!("{user}\0{database}").as_bytes()),
        shared,
        user,
        database,
        read_only,
        replicated,
        cancel,
        pool,
        epoch,
        told,
        prepared: Prepared::default(),
        pipeline: Pipeline::default(),
        lease: None,
        heard,
        office,
        term: office.term,
        rest: None,
        repeat: Kept::default(),
        reading: None,
        ways,
        relaxed: None,
        timing: None,
        input,
        to_client: BytesMut::with_capacity(pump::READ_BYTES),
        to_server: BytesMut::with_capacity(pump::READ_BYTES),
        wanted_bytes: 0,
        passing: 0,
        passing_on: false,
        scanner: Scanner::new(),
        status: Status::Idle,
        deferred: Deferred::default(),
        in_batch: false,
        bound_risk: Risk::None,
        wrote: false,
        waits_since: None,
        jump: None,
        batch_more: false,
        ticket: None,
        bound_seal: None,
        idle: false,
        own_rows: Vec::new(),
        own_failed: false,
        watch_drops: false,
        uncertain: false,
        certain: false,
        doubt: None,
        probe_failed: false,
        after: None,
        undone: false,
        kept: None,
        barrier: false,
        portals: BTreeMap::new(),
        bound: None,
        told_end: false,
        leaving: false,
        tally: Tally::default(),
        metadata: Metadata::default(),
    };
    let end = session.serve(&mut io).await;
    session.finish(io, end).await;
    drop((seat, guest));
}

impl Session {
    /// What is known of texts in this database now.
    pub(super) fn briefs(&mut self) -> Arc<Briefs> {
        let generation = self.shared.relay.service().catalog_generation();
        if self.briefs.0 != generation {
            self.suspect();
            self.briefs = (generation, self.shared.relay.briefs(&self.database));
        }
        Arc::clone(&self.briefs.1)
    }

    /// The generation of names by which texts were judged last.
    pub(super) fn names(&self) -> u64 {
        self.briefs.0
    }

    /// DDL was decoded since this session's texts were judged last: what runs by now on its connection may have
    /// met names that stand for something else.
    fn suspect(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.carried.drawn = true;
            self.state.suspect();
        }
    }

    async fn serve(&mut self, io: &mut ClientIo) -> End {
        let shared = Arc::clone(&self.shared);
        let mut stop = pin!(shared.stop.cancelled());
        let mut abort = pin!(shared.abort.cancelled());
        let mut news = pin!(changed(self.heard.clone()));
        let (mut unflushed, mut server_unflushed) = (false, false);
        loop {
            match self.round().await {
                Ok(()) => {}
                Err(End::Lost(why)) if self.is_at_writer() => {
                    if let Err(end) = Box::pin(self.lose(&why)).await {
                        return end;
                    }
                    continue;
                }
                Err(end) => return end,
            }
            if self.leaving && self.pipeline.is_empty() {
                return End::Client;
            }
            let resting = self.is_resting();
            let soft = resting && self.lease.is_some() && self.state.hold() == Hold::Soft;
            let begins = self.deferred.ticks();
            let overdue = self.commit_overdue();
            let gone = self.reading.as_ref().map(|reading| reading.gone());
            let held = self
                .reading
                .as_ref()
                .is_some_and(|reading| reading.is_held());
            let mut nothing = BytesMut::new();
            let pool = Arc::clone(&self.pool);
            let read_client = !self.leaving
                && self.to_server.len() < OUTPUT_BYTES_MAX
                && self.input.len() < self.input_max();
            let room = self.to_client.len() < OUTPUT_BYTES_MAX;
            let waiting = !self.input.is_empty();
            let mut client = Side {
                awaited: waiting || !room,
                socket: io,
                input: &mut self.input,
                output: if held {
                    &mut nothing
                } else {
                    &mut self.to_client
                },
                read: read_client,
                unflushed: &mut unflushed,
            };
            let mut server = self.lease.as_deref_mut().map(|pooled| Side {
                awaited: waiting || !read_client,
                socket: &mut pooled.backend.stream,
                input: &mut pooled.backend.input,
                output: &mut self.to_server,
                read: room,
                unflushed: &mut server_unflushed,
            });
            let moved = tokio::select! {
                biased;
                moved = pump::pump(&mut client, server.as_mut()) => moved,
                () = &mut abort => return End::Error(ClientError::ShuttingDown),
                () = &mut news => {
                    if let Err(end) = Box::pin(self.office_changed()).await {
                        return end;
                    }
                    news.set(changed(self.heard.clone()));
                    continue;
                }
                () = &mut stop, if resting => return End::Error(ClientError::ShuttingDown),
                () = gone_by(gone.as_ref()), if gone.is_some() => {
                    if let Err(end) = Box::pin(self.disturbed()).await {
                        return end;
                    }
                    continue;
                }
                () = at(overdue), if overdue.is_some() => {
                    if let Err(end) = Box::pin(self.give_up_commit()).await {
                        return end;
                    }
                    continue;
                }
                () = pool.pressure(), if soft => {
                    self.give_back().await;
                    continue;
                }
                () = self.deferred.due(), if begins => {
                    if let Err(end) = Box::pin(self.begin_alone()).await {
                        return end;
                    }
                    continue;
                }
            };
            if let Err(end) = self.heed(&moved).await {
                return end;
            }
        }
    }

    /// Takes what the sockets said: where the node's side is lost, the session goes on elsewhere if it can.
    async fn heed(&mut self, moved: &Moved) -> Result<(), End> {
        match self.judge(moved) {
            Err(End::Lost(_) | End::Nonsense(_)) if self.reading.is_some() => {
                self.run_again(Again::Lost).await
            }
            Err(End::Lost(why)) if self.is_at_writer() => Box::pin(self.lose(&why)).await,
            judged => judged,
        }
    }

    /// Whether the session has a connection to the writer, and goes on without: the node has not said why it must end.
    pub(super) fn is_at_writer(&self) -> bool {
        self.lease.is_some() && self.reading.is_none() && !self.told_end
    }

    /// How much of the client's input may wait: one read, or the one message that must be seen whole.
    fn input_max(&self) -> usize {
        self.wanted_bytes.max(OUTPUT_BYTES_MAX)
    }

    /// What the sockets said of themselves.
    fn judge(&mut self, moved: &Moved) -> Result<(), End> {
        let bytes = |read: &Option<std::io::Result<usize>>| match read {
            Some(Ok(bytes)) => *bytes,
            _ => 0,
        };
        let (from_client, from_server) = (bytes(&moved.from_client), bytes(&moved.from_server));
        self.shared.relay.counts.moved(from_client, from_server);
        if moved.client_gone || matches!(moved.from_client, Some(Ok(0) | Err(_))) {
            return Err(End::Client);
        }
        if moved.server_deaf {
            // Its last words may still be in the socket; what it is told no longer matters.
            self.to_server.clear();
        }
        match &moved.from_server {
            Some(Ok(0)) => {
                self.answers()?;
                Err(End::Lost("the node closed the connection".to_owned()))
            }
            Some(Err(error)) => Err(End::Lost(error.to_string())),
            _ => Ok(()),
        }
    }

    /// Works off what has arrived on both sides.
    async fn round(&mut self) -> Result<(), End> {
        if self.heard.has_changed().unwrap_or(false) {
            Box::pin(self.office_changed()).await?;
        }
        loop {
            let answered = !self.pipeline.is_empty();
            if answered && self.doubt.is_none() && self.shared.relay.doubts.any() {
                self.shared.relay.doubts.over().await;
            }
            match self.answers() {
                Err(End::Lost(_) | End::Nonsense(_)) if self.reading.is_some() => {
                    self.run_again(Again::Lost).await?;
                }
                answered => answered?,
            }
            if self
                .reading
                .as_ref()
                .is_some_and(|reading| reading.is_stuck())
            {
                Box::pin(self.unstick()).await?;
                if self.reading.is_none() {
                    break;
                }
            } else if let Some(after) = self.after.take() {
                Box::pin(self.follow_up(after)).await;
            } else if self.uncertain {
                Box::pin(self.make_certain()).await?;
            } else {
                break;
            }
        }
        if let Some(database) = self.kept.take() {
            self.shared
                .relay
                .service()
                .after_failed_drop(&database)
                .await;
        }
        self.barrier &= !self.pipeline.is_empty();
        if self.idle {
            self.idle = false;
            self.rest().await?;
        }
        self.requests().await
    }

    pub(super) fn send_own_query(&mut self, sql: &str, own: Own) {
        // Our own texts hold no zero byte.
        let _ = frontend::query(&mut self.to_server, sql);
        self.pipeline.push(Entry::own(Expect::Query, own));
        self.own_rows.clear();
        self.own_failed = false;
        if let Some(lease) = &mut self.lease {
            // A simple query ends the unnamed statement.
            lease.carried.unnamed = None;
        }
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}

async fn gone_by(gone: Option<&CancellationToken>) {
    match gone {
        Some(gone) => gone.cancelled().await,
        None => std::future::pending().await,
    }
}
