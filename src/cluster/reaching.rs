//! Which nodes answer, and whether they can serve as they are.
//!
//! Guards that nothing is begun with less than a majority, and that whoever stands in the way is named with what to do.

use std::time::{Duration, Instant};

use super::bring_up::{BringUp, BringUpError, Reached};
use crate::ids::NodeId;
use crate::node::control::{self, ControlError};

/// Of a node that did not answer a moment ago.
const ABSENT: Duration = Duration::from_millis(100);
/// Between two tries to reach a server that is starting.
const LOOK: Duration = Duration::from_millis(20);

impl BringUp<'_> {
    /// Those that answer, a majority at least, and why one that does not is not among them.
    pub(super) async fn reach(
        &self,
    ) -> Result<(Vec<Reached>, Option<(NodeId, ControlError)>), BringUpError> {
        let asked = (0..self.config.nodes.len()).map(|at| async move {
            let node = NodeId(at);
            let patience = if self.how.absent.contains(&node) {
                ABSENT.min(self.how.patience)
            } else {
                self.how.patience
            };
            let answer = self.reach_within(node, patience).await;
            if answer.is_err() {
                self.how.keeper.leave_node(node);
            }
            (node, answer)
        });
        let mut reached = Vec::new();
        let mut absent = None;
        for (node, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Ok(found) => reached.push(found),
                Err(error) => {
                    tracing::warn!(node = %self.name(node), %error, "node can't be reached");
                    absent = Some((node, error));
                }
            }
        }
        let (reachable, nodes) = (reached.len(), self.config.nodes.len());
        match absent {
            Some((node, error)) if reachable <= nodes / 2 => Err(self.unreachable(node, error)),
            absent => Ok((reached, absent)),
        }
    }

    pub(super) fn unreachable(&self, node: NodeId, error: ControlError) -> BringUpError {
        let mend = match error.sqlstate() {
            Some("28P01") => {
                let variable = &self.config.admin.password_env;
                format!("Is the password in {variable} right?")
            }
            Some("42501") => {
                let user = &self.config.admin.user;
                format!("The role {user} is no superuser; give admin.user one that is")
            }
            _ => "`synapsedb check` says what it needs".to_owned(),
        };
        BringUpError::Unreachable {
            node: self.name(node),
            error,
            mend,
        }
    }

    /// A server one of whose backends has crashed ends all of them and recovers, mostly within a moment: the writer is
    /// waited for then.
    async fn reach_within(&self, node: NodeId, limit: Duration) -> Result<Reached, ControlError> {
        let began = Instant::now();
        loop {
            let answer = tokio::time::timeout(limit, self.reach_one(node)).await;
            let answer = answer.unwrap_or(Err(ControlError::Timeout));
            let recovers = |error: &ControlError| error.sqlstate() == Some("57P03");
            let again = self.how.former == Some(node) && answer.as_ref().is_err_and(recovers);
            if !again || began.elapsed() > self.how.patience {
                return answer;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn reach_one(&self, node: NodeId) -> Result<Reached, ControlError> {
        let client = self.client(node, &self.control.database).await?;
        let facts = control::server_facts(&client).await?;
        let state = control::read_state(&client).await?;
        Ok(Reached {
            node,
            client,
            facts,
            state,
        })
    }

    pub(super) fn check_fit(&self, node: &Reached) -> Result<(), BringUpError> {
        let unfit = |problem: String, mend: &str| {
            Err(BringUpError::Unfit {
                node: self.name(node.node),
                problem,
                mend: mend.to_owned(),
            })
        };
        let facts = &node.facts;
        if !facts.superuser {
            let problem = format!("role {} is no superuser", self.control.user());
            return unfit(
                problem,
                "Give admin.user a superuser; it sets up slots, triggers and roles",
            );
        }
        if !version_is_supported(facts.version) {
            let problem = format!("PostgreSQL version {} is too old", facts.version);
            return unfit(problem, "15.13, 16.9, 17.5 or newer is needed");
        }
        if facts.in_recovery {
            return unfit(
                "the server is a standby".to_owned(),
                "Promote it or take it out of the configuration",
            );
        }
        if facts.wal_level != "logical" {
            let problem = format!("wal_level is {}", facts.wal_level);
            return unfit(
                problem,
                "Run ALTER SYSTEM SET wal_level = 'logical' on it and restart it",
            );
        }
        let free = |(max, used): (u32, u32)| max.saturating_sub(used);
        if node.state.is_none() && (free(facts.slots) < 2 || free(facts.senders) < 2) {
            let problem = "max_replication_slots or max_wal_senders is used up".to_owned();
            return unfit(
                problem,
                "Raise both to at least two for each database, and restart it",
            );
        }
        Ok(())
    }
}

fn version_is_supported(version: u32) -> bool {
    match version / 10_000 {
        15 => version >= 150_013,
        16 => version >= 160_009,
        17 => version >= 170_005,
        major => major >= 18,
    }
}
