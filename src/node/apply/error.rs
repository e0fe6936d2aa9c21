//! Why a unit could not be applied, and whether trying again may help.

use super::ddl::DdlError;
use super::pipeline::PipelineError;
use super::sql::PlanError;
use crate::node::backend::BackendError;

/// Why a unit could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The connection or a statement failed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// Opening the connection or taking the origin failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The stream and the follower's catalog do not agree.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A DDL row can't be carried out.
    #[error(transparent)]
    Ddl(#[from] DdlError),
    /// The follower has no such table.
    #[error("there is no table {0} on this node")]
    NoTable(String),
    /// The node does not say up to where it has the writer's history.
    #[error("synapsedb.applied_places has no row for {0} on this node")]
    NoPlace(String),
    /// DDL waits for an index that can't be built.
    #[error("an index that comes before it can't be built: {0}")]
    Index(String),
    /// It can't be applied before it has committed.
    #[error("not applied ahead: {0}")]
    GivenUp(&'static str),
    /// A spilled unit could not be read back.
    #[error("reading a spilled transaction failed: {0}")]
    Spill(#[from] std::io::Error),
}

impl ApplyError {
    /// The SQLSTATE of a server's error.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Pipeline(PipelineError::Failed { error, .. }) | Self::Backend(error) => {
                error.sqlstate()
            }
            _ => None,
        }
    }

    /// Whether the node says that it has no room for it: on its disk, in its memory, for a connection.
    pub fn lacks_room(&self) -> bool {
        self.sqlstate().is_some_and(|code| code.starts_with("53"))
    }

    /// Whether the node itself may be well and a new connection may go on where this one ended:
    /// the socket broke, the server is starting or ending, the transaction lost a deadlock.
    pub fn is_passing(&self) -> bool {
        if matches!(self, Self::GivenUp(_)) {
            return true;
        }
        let (Self::Pipeline(PipelineError::Failed { error, .. }) | Self::Backend(error)) = self
        else {
            return false;
        };
        match error {
            BackendError::Io(_) | BackendError::Timeout(_) => true,
            BackendError::Server(fields) => {
                let code = fields.code();
                code.starts_with("57P")
                    || code.starts_with("08")
                    || code.starts_with("53")
                    || matches!(code, "40P01" | "40001" | "57014" | "55006" | "55P03")
            }
            _ => false,
        }
    }
}
