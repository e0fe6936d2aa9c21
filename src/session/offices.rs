//! Who writes, as sessions hear it: the steward's word, how long it is waited for, and what a change did to sessions.
//!
//! It guards that nothing begins at a writer that is about to leave, or has left: whoever takes a connection looks at
//! the office once more when he has it ([`Offices::under_way`] says why that is enough). A look is one atomic load.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use crate::cluster::office::{Heard, Office, Told, first};
use crate::cluster::service::Answer;
use crate::config::Config;
use crate::error::ClientError;
use crate::ids::{Epoch, NodeId};
use crate::session::shared::Shared;

/// How long after a change sessions are counted that were moved by it.
const SETTLED: Duration = Duration::from_millis(500);
/// What happened to sessions so long before a change counts as part of it: connections break before the steward speaks.
const BEFORE: Duration = Duration::from_secs(5);

/// What became of a session whose writer was lost, or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing of its was under way: it goes on, and its client notices nothing.
    Moved,
    /// Its read is run again.
    Again,
    /// Its transaction has failed (40001).
    Failed,
    /// Nobody knows whether its commit survived (08007).
    Unknown,
    /// It had to end (57P01, or an answer cut off in the middle of a row).
    Ended,
}

const OUTCOMES: [(Outcome, &str); 5] = [
    (Outcome::Moved, "moved"),
    (Outcome::Again, "again"),
    (Outcome::Failed, "failed"),
    (Outcome::Unknown, "unknown"),
    (Outcome::Ended, "ended"),
];

/// One for all sessions.
#[derive(Debug)]
pub struct Offices {
    told: Told,
    /// Sessions that hold a connection to the writer and do nothing with it.
    resting: AtomicUsize,
    counted: [AtomicU64; OUTCOMES.len()],
}

impl Default for Offices {
    fn default() -> Self {
        Self {
            told: Told::new(first(NodeId(0))),
            resting: AtomicUsize::new(0),
            counted: Default::default(),
        }
    }
}

impl Offices {
    /// Where the steward tells it. Only `send_replace` and its like arrive in any case.
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// A session's own ear.
    pub fn heard(&self) -> Heard {
        self.told.subscribe()
    }

    /// As it is now. Takes a lock for a moment; sessions look at what they have heard instead.
    pub fn now(&self) -> Office {
        *self.told.borrow()
    }

    /// A session keeps its connection and does nothing with it, until what is returned is dropped: ahead of its next
    /// work, and of the end of the connection.
    pub fn rest(shared: &Arc<Shared>) -> Rest {
        shared.offices.resting.fetch_add(1, Ordering::SeqCst);
        Rest(Arc::clone(shared))
    }

    /// How many have something under way at the writer. Once it is 0 after `Closing` was told, it stays so: whoever
    /// takes a connection, or takes his own up again, is counted first and looks at the office then.
    pub fn under_way(&self, in_flight: impl FnOnce(NodeId) -> usize) -> usize {
        let writer = self.now().writer;
        fence(Ordering::SeqCst);
        let resting = self.resting.load(Ordering::SeqCst);
        in_flight(writer).saturating_sub(resting)
    }

    /// A session was met by a change.
    pub fn count(&self, outcome: Outcome) {
        let found = OUTCOMES.iter().position(|(one, _)| *one == outcome);
        let Some(at) = found else { return };
        self.counted[at].fetch_add(1, Ordering::Relaxed);
        metrics::counter!("synapsedb_sessions_at_change_total", "outcome" => OUTCOMES[at].1)
            .increment(1);
    }

    fn counts(&self) -> [u64; OUTCOMES.len()] {
        self.counted
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed))
    }

    /// Asks the writer, and again the next one where it was lost meanwhile; where nobody can write so soon, a follower
    /// that has everything, if `reader` knows one. Dropping the future gives the question up.
    pub async fn ask<'a, T>(
        &self,
        config: &Config,
        reader: impl Fn() -> Option<NodeId>,
        ask: impl Fn(Desk) -> Answer<'a, Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let mut heard = self.heard();
        let until = Instant::now() + patience(config);
        loop {
            let mut office = told(&mut heard, config, |office| !office.waits()).await?;
            let mut node = office.writer;
            if office.is_headless() {
                if let Some(reader) = reader() {
                    node = reader;
                } else {
                    office = serving(&mut heard, config).await?;
                    node = office.writer;
                }
            }
            let desk = Desk { office, node };
            let answer = tokio::select! {
                biased;
                answer = ask(desk) => answer,
                () = other(&mut heard, office) => continue,
            };
            match answer {
                Err(error) if is_away(&error) && Instant::now() < until => {
                    news(&mut heard, office, config).await;
                }
                answer => return answer,
            }
        }
    }
}

/// Who is asked what only the writer knows for certain, or a follower where there is none.
#[derive(Clone, Copy, Debug)]
pub struct Desk {
    /// As it was told.
    pub office: Office,
    /// The node that is asked.
    pub node: NodeId,
}

impl Desk {
    /// Whether it is a follower.
    pub fn is_follower(&self) -> bool {
        self.node != self.office.writer
    }
}

/// Kept while a session does nothing with the connection that it keeps.
pub struct Rest(Arc<Shared>);

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.offices.resting.fetch_sub(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}

/// Waits until something may begin at the writer, as long as a client would wait for a connection. Cancel-safe.
pub async fn serving(heard: &mut Heard, config: &Config) -> Result<Office, ClientError> {
    told(heard, config, Office::serves).await
}

/// The same for other news.
pub async fn told(
    heard: &mut Heard,
    config: &Config,
    good: fn(&Office) -> bool,
) -> Result<Office, ClientError> {
    let limit = config.pool.queue_timeout();
    match tokio::time::timeout(limit, heard.wait_for(good)).await {
        Ok(Ok(office)) => Ok(*office),
        // Whoever tells is gone, and so is the proxy.
        Ok(Err(_)) => Err(ClientError::ShuttingDown),
        Err(_) => Err(ClientError::NoWriter { waited: limit }),
    }
}

/// Ends when what was begun in this term has lost its writer. Cancel-safe.
pub async fn over(heard: &mut Heard, term: Epoch) {
    if heard.wait_for(|office| office.is_over(term)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Ends when this is not what holds any more: what was begun has lost its writer, or there is one again. Cancel-safe.
async fn other(heard: &mut Heard, office: Office) {
    let other = |now: &Office| {
        if office.is_headless() {
            !now.is_headless()
        } else {
            now.is_over(office.term)
        }
    };
    if heard.wait_for(other).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Until there are news. Whoever tells them outlives all sessions.
pub async fn changed(mut heard: Heard) {
    if heard.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// For how long a writer that can't be reached is tried: as long as the steward may need to find it dead, and a server
/// that restarts by itself to be back.
pub fn patience(config: &Config) -> Duration {
    let health = &config.health;
    let probes = u64::from(health.probe_failures) + 1;
    Duration::from_millis(health.probe_interval_ms.saturating_mul(probes))
}

/// Waits for other news than this, or for the moment at which a node that could not be reached is tried again.
pub async fn news(heard: &mut Heard, office: Office, config: &Config) {
    let limit = Duration::from_millis(config.health.probe_interval_ms);
    let other = heard.wait_for(|now| *now != office);
    // Either is a reason to look again.
    let _ = tokio::time::timeout(limit, other).await;
}

/// Whether an error says that the node is not there to be asked, or about to go.
pub fn is_away(error: &ClientError) -> bool {
    match error {
        ClientError::NodeUnreachable { .. } => true,
        ClientError::Node(words) => matches!(words.sqlstate.as_str(), "57P01" | "57P02" | "57P03"),
        _ => false,
    }
}

/// Closes what is left of connections to a writer that has left, and writes one line for each change, until the proxy
/// ends.
pub async fn attend(shared: Arc<Shared>) {
    let mut heard = shared.offices.heard();
    let mut office = *heard.borrow_and_update();
    let mut before = shared.offices.counts();
    // Of the change that is under way.
    let mut since = None;
    let mut logged = office;
    let end = shared.abort.clone();
    loop {
        let next = tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(if since.is_some() { SETTLED } else { BEFORE }) => None,
            changed = heard.changed() => match changed {
                Ok(()) => Some(*heard.borrow_and_update()),
                Err(_) => return,
            },
        };
        let Some(now) = next else {
            let settled = office.serves();
            if let Some(begun) = since.filter(|_| settled) {
                tell(&shared, logged, office, begun, &before);
                (since, logged) = (None, office);
            }
            if settled {
                before = shared.offices.counts();
            }
            continue;
        };
        if now.is_over(office.term) {
            shared.pools.close_node(office.writer);
        }
        since = since.or_else(|| Some(Instant::now()));
        office = now;
    }
}

fn tell(
    shared: &Shared,
    former: Office,
    office: Office,
    begun: Instant,
    before: &[u64; OUTCOMES.len()],
) {
    let now = shared.offices.counts();
    let met = |outcome: Outcome| {
        let found = OUTCOMES.iter().position(|(one, _)| *one == outcome);
        found.map_or(0, |at| now[at].saturating_sub(before[at]))
    };
    tracing::info!(
        former = shared.node_name(former.writer),
        writer = shared.node_name(office.writer),
        term = office.term.0,
        read_only = office.lacks_majority().is_some(),
        ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        moved = met(Outcome::Moved),
        again = met(Outcome::Again),
        failed = met(Outcome::Failed),
        unknown = met(Outcome::Unknown),
        ended = met(Outcome::Ended),
        "sessions have followed the office"
    );
}
