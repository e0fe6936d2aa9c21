//! What sessions ask of the steward, answered: the one implementation of [`Service`] with followers.

use std::sync::Arc;

use super::service::{Answer, Service};
use super::steward::Steward;
use crate::error::ClientError;
use crate::ids::NodeId;

/// The steward, as sessions know it.
pub struct Asked(pub Arc<Steward>);

impl Service for Asked {
    fn wait_quorum(&self, _: NodeId) -> Answer<'_, Result<(), ClientError>> {
        Box::pin(async {
            if self.0.wait_quorum().await {
                return Ok(());
            }
            Err(ClientError::CommitUnknown)
        })
    }

    fn refresh_metadata<'a>(&'a self, database: &'a str) -> Answer<'a, Result<(), ClientError>> {
        Box::pin(async move {
            self.0.refresh_metadata(database).await.map_err(|error| {
                tracing::warn!(database, %error, "metadata could not be refreshed");
                ClientError::NodeUnreachable {
                    node: self.0.view().nodes[self.0.writer().0].name.clone(),
                }
            })
        })
    }

    fn command_failed(&self, node: NodeId, database: &str, command: &str, why: &str) {
        self.0.fence(
            node,
            &format!("{command} failed there alone, in database {database}: {why}"),
        );
    }
}
