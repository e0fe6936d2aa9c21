//! `synapsedb serve`: the proxy itself, from its configuration to the end.
//!
//! The only place where the replicator, the relay and the operators' door are started, in the order
//! in which they need each other, and stopped, in the opposite order. The demo runs it too.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::cluster::bring_up::BringUpError;
use crate::cluster::steward::Steward;
use crate::config::Config;

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
    let Some(steward) = stop
        .run_until_cancelled(Steward::start(Arc::clone(&config)))
        .await
    else {
        return Ok(());
    };
    let steward = steward?;
    stop.cancelled().await;
    steward.stop().await;
    tracing::info!("stopped");
    Ok(())
}
