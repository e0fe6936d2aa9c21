//! What a session does when its server is idle and everything is answered: it looks at what was left behind, and keeps
//! the connection or lets it go.
//!
//! Guards that no connection goes back with anything of the session's on it.

use crate::cluster::office;
use crate::session::pipeline::Own;
use crate::session::probe;
use crate::session::relay::{End, Session};
use crate::session::state::Hold;

impl Session {
    /// The server is idle and everything is answered: looks at what was left behind, or lets go.
    pub(super) async fn rest(&mut self) -> Result<(), End> {
        let busy = !self.pipeline.is_empty() || self.in_batch || self.passing > 0;
        if self.lease.is_none() || busy || !self.node_is_idle() {
            return Ok(());
        }
        if self.names() != self.shared.relay.service().catalog_generation() {
            self.briefs();
        }
        if self.state.doubt.probe && !self.probe_failed {
            let sql = probe::question(self.state.placeholders.iter());
            self.send_own_query(&sql, Own::Probe);
            self.state.look();
            return Ok(());
        }
        let keep = match self.state.hold() {
            _ if self.state.doubt.probe => true,
            Hold::None => false,
            Hold::Soft => self.pool.waiting() == 0 && self.hear().state != office::State::Closing,
            Hold::Hard => true,
        };
        if !keep {
            self.give_back().await;
            return Ok(());
        }
        if self.reading.is_some() {
            self.end_follower().await;
            return Ok(());
        }
        // Kept although settings differ from what is wanted: the read-only port, a level put back.
        let left = self.left();
        let lease = self.lease.as_mut();
        if let Some(lease) = lease.filter(|lease| lease.carried.settings != self.state.wanted) {
            let adopted = tokio::select! {
                biased;
                adopted = lease.adopt(&self.state.wanted) => adopted.map_err(|e| e.to_string()),
                () = left => Err("the writer has left".to_owned()),
            };
            adopted.map_err(End::Lost)?;
            lease.carried.unnamed = None;
            self.tell_parameters();
        }
        if self.is_resting() {
            self.rest_on_lease();
        }
        Ok(())
    }
}
