//! `synapsedb serve`: the proxy itself, from its configuration to the end.
//!
//! The only place where the replicator, the relay and the operators' door are started, in the order
//! in which they need each other, and stopped, in the opposite order. The demo runs it too.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::threads::Threads;
use crate::cluster::asked::Asked;
use crate::cluster::bring_up::BringUpError;
use crate::cluster::reigns::{Cluster, Served};
use crate::config::Config;
use crate::http::door::{Operators, Running};
use crate::http::{self, metrics, orders};
use crate::session::listener::{self, Door};
use crate::session::offices;
use crate::session::relay;
use crate::session::shared::{SetupError, Shared};

/// How long transactions under way have to end when the proxy stops.
const GRACE: Duration = Duration::from_secs(5);

/// Why the proxy could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket could not be opened.
    #[error("cannot listen on {key} = {address:?}: {source}")]
    Listen {
        /// The key in the configuration.
        key: &'static str,
        /// Its value.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The thread for replication could not be made.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The certificate or the connections to nodes.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The nodes are not what a cluster needs.
    #[error(transparent)]
    Cluster(#[from] BringUpError),
}

/// Runs the proxy until `stop` is cancelled and everything has ended.
///
/// Cancelling the future itself is safe at any point, as being killed is: what was acknowledged is on
/// a majority, and the next start resumes.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), ServeError> {
    tracing::info!(
        read_write = config.listen.read_write,
        read_only = config.listen.read_only,
        http = config.listen.http,
        nodes = config.nodes.len(),
        "starting"
    );
    let config = Arc::new(config);
    // Before anything counts: a handle registered earlier would count nowhere.
    let operators = Operators::new(metrics::install(), orders::key(&config), stop.clone());
    let listener = bind("listen.http", &config.listen.http).await?;
    let closed = CancellationToken::new();
    let _close = closed.clone().drop_guard();
    tokio::spawn(http::door::serve(listener, Arc::clone(&operators), closed));
    let replication = Threads::start("replication").map_err(ServeError::Thread)?;
    let shared = Arc::new(Shared::new(Arc::clone(&config))?);
    let begun = Cluster::start(
        Arc::clone(&config),
        Served {
            under_way: Box::new({
                let shared = Arc::clone(&shared);
                move || shared.under_way()
            }),
            office: shared.office(),
            canaries: Arc::clone(shared.pools.canaries()),
        },
    );
    let mut starting = replication.spawn(begun);
    let Some(started) = stop.run_until_cancelled(&mut starting).await else {
        starting.abort();
        return Ok(());
    };
    let cluster = started.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    let served = serve(&config, &shared, &cluster, &operators, stop).await;
    cluster.stop().await;
    tracing::info!("stopped");
    served
}

async fn bind(key: &'static str, address: &str) -> Result<TcpListener, ServeError> {
    let bound = listener::bind(address).await;
    bound.map_err(|source| ServeError::Listen {
        key,
        address: address.to_owned(),
        source,
    })
}

/// Opens the doors, and closes them again when `stop` is cancelled.
async fn serve(
    config: &Arc<Config>,
    shared: &Arc<Shared>,
    cluster: &Arc<Cluster>,
    operators: &Operators,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    shared.relay.set_service(Arc::new(Asked {
        cluster: Arc::clone(cluster),
        pools: Arc::clone(&shared.pools),
    }));
    let seats = Arc::clone(&shared.seats);
    let limit = config.limits.max_clients;
    operators.set_running(Running {
        cluster: Arc::clone(cluster),
        pools: Arc::clone(&shared.pools),
        clients: Box::new(move || (seats.taken(), limit)),
    });
    let clients = TaskTracker::new();
    let doors = [
        ("listen.read_write", &config.listen.read_write, false),
        ("listen.read_only", &config.listen.read_only, true),
    ];
    let work = TaskTracker::new();
    for (key, address, read_only) in doors {
        let listener = bind(key, address).await?;
        let door = Door {
            listener,
            read_only,
        };
        work.spawn(door.serve(Arc::clone(shared), clients.clone(), relay::run));
    }
    work.spawn(offices::attend(Arc::clone(shared)));
    let pools = Arc::clone(&shared.pools);
    let stop_tending = shared.abort.clone();
    work.spawn(async move { pools.tend(stop_tending).await });
    tracing::info!(
        read_write = config.listen.read_write,
        read_only = config.listen.read_only,
        "open for clients"
    );
    stop.cancelled().await;
    tracing::info!("stopping: clients are asked to leave");
    listener::drain(shared, &clients, GRACE).await;
    shared.abort.cancel();
    Ok(())
}
