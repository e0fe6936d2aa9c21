//! A large transaction applied while the writer still runs it, so that its commit need not wait for all of it.
//!
//! It has a connection of its own on the follower, which takes the origin over to commit in the transaction's
//! turn (REPLICATION rule 8). What the writer sent is applied only when every unit that was complete before
//! is durable, so each row meets what its writer met, and locks that the writer held keep others off here too.
//! Where a follower could differ in that, the work is given up: it is rolled back, and the transaction is
//! applied from its file when it has committed, as if this did not exist. Given up are transactions that hold
//! DDL, TRUNCATE or code of users, that find rows of tables without a key, or of which a part was rolled back.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::applier::Applier;
use super::error::ApplyError;
use super::start::ApplierSettings;
use crate::ids::{Epoch, UnitId};
use crate::node::spill::{Running, SoFar, Spill};
use crate::node::unit::{Change, Changes, Unit};
use crate::wire::pgoutput::Identity;

/// The work on one such transaction on one follower. Dropping it rolls it back there.
#[derive(Debug)]
pub struct Ahead {
    spill: Spill,
    term: Epoch,
    work: AbortOnDropHandle<Result<Applier, ApplyError>>,
    given_up: CancellationToken,
}

impl Ahead {
    /// Begins; `place` tells what this follower has durable.
    pub fn start(
        settings: ApplierSettings,
        running: Running,
        place: watch::Receiver<UnitId>,
    ) -> Self {
        let (spill, term) = (running.borrow().spill.clone(), settings.term);
        let given_up = CancellationToken::new();
        let tell = given_up.clone();
        let work = tokio::spawn(async move {
            let applied = apply(settings, running, place).await;
            if applied.is_err() {
                tell.cancel();
            }
            applied
        });
        Self {
            spill,
            term,
            work: AbortOnDropHandle::new(work),
            given_up,
        }
    }

    /// Waits until it is given up. Dropping the future is harmless.
    pub async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    /// Whether `unit` is the transaction that this applies.
    pub fn is_of(&self, unit: &Unit) -> bool {
        matches!(&unit.changes, Changes::Spilled(spill) if spill.is_same(&self.spill))
    }

    /// When every unit before `unit` is durable: applies what is left, and commits. Answers the applier that goes
    /// on in the place of `before`; none where the work was given up, and `before` must apply the unit itself.
    /// After an error, which says nothing about the unit, `before` is not to be used either.
    pub async fn finish(
        self,
        before: &mut Applier,
        unit: &Arc<Unit>,
    ) -> Result<Option<Applier>, ApplyError> {
        if unit.id.term != self.term {
            // It was begun as one of the present writer's office.
            return Ok(None);
        }
        let mut applier = match self.work.await {
            Ok(Ok(applier)) => applier,
            Ok(Err(error)) => {
                tracing::info!(%error, unit = %unit.id, "a transaction that was applied ahead begins anew");
                return Ok(None);
            }
            // It never panics, and nobody else can abort it.
            Err(_) => return Ok(None),
        };
        let handed_over = async {
            before.release_origin().await?;
            applier.take_over(unit).await
        };
        match handed_over.await {
            Ok(()) => Ok(Some(applier)),
            Err(error) => {
                tracing::warn!(%error, unit = %unit.id, "a transaction that was applied ahead could not commit");
                Err(ApplyError::GivenUp("it could not commit"))
            }
        }
    }
}

async fn apply(
    settings: ApplierSettings,
    mut running: Running,
    mut place: watch::Receiver<UnitId>,
) -> Result<Applier, ApplyError> {
    let mut applier = Applier::connect(&settings).await?;
    let mut at = 0;
    loop {
        let SoFar {
            spill,
            after,
            undone,
            committed,
        } = running.borrow_and_update().clone();
        if undone {
            return Err(ApplyError::GivenUp(
                "a part of it was rolled back, or it is no single unit",
            ));
        }
        let waited = place.wait_for(|place| *place >= after).await;
        waited.map_err(|_| ApplyError::GivenUp("nobody applies what is before it"))?;
        applier.apply_ahead(&spill, at).await?;
        at = spill.length();
        if committed {
            return Ok(applier);
        }
        let more = running.changed().await;
        more.map_err(|_| ApplyError::GivenUp("it did not commit"))?;
    }
}

impl Applier {
    /// The changes of `spill` from `at` on.
    async fn apply_ahead(&mut self, spill: &Spill, at: u64) -> Result<(), ApplyError> {
        let mut reader = spill.reader_from(at);
        while let Some(chunk) = Self::next_chunk(&mut reader)? {
            for change in &chunk {
                self.may_go_ahead(change).await?;
            }
            self.changes(None, &chunk).await?;
            // The stream must be heard meanwhile, and it may have the same thread.
            tokio::task::yield_now().await;
        }
        self.flush().await
    }

    /// Whether the follower does with this change what the writer did, whatever commits before it: no code of
    /// users runs, and it locks the very rows that it locked there.
    async fn may_go_ahead(&mut self, change: &Change) -> Result<(), ApplyError> {
        if change.is_ddl() || change.is_contents() {
            return Err(ApplyError::GivenUp("it holds DDL"));
        }
        let (table, finds) = match change {
            Change::Insert { table, .. } => (table, false),
            Change::Update { table, .. } | Change::Delete { table, .. } => (table, true),
            Change::Truncate { .. } => return Err(ApplyError::GivenUp("it empties tables")),
        };
        if finds && table.identity == Identity::Full {
            return Err(ApplyError::GivenUp("it changes rows without a key"));
        }
        if self.known(table).await?.user_code {
            return Err(ApplyError::GivenUp("it runs code of users"));
        }
        Ok(())
    }
}
