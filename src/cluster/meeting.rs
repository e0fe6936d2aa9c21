//! Meeting a node that was away when the writer took office: whether it may go on from where it was.
//!
//! Guards promise 2: a node that holds something which the writer's history lacks is given nothing before it is mended.
//! It decides by `engine::recovery`'s rules, from what both keep durably.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use crate::engine::recovery::{Facts, Record, strays};
use crate::ids::{Epoch, Lsn, NodeId, origin_name};
use crate::node::control::{self, Control, ControlError};
use crate::node::office;
use crate::node::places::Places;

/// Why a node is given nothing.
pub(super) const NEW: &str = "it is new and holds nothing of the cluster's";
/// The same.
pub(super) const STRAYS: &str = "it was the writer, or has applied units that the writer has not: it may hold rows that no other node has";

/// The writer as those must know it who meet a node.
#[derive(Clone, Debug)]
pub struct Meeting {
    /// Who writes.
    pub writer: NodeId,
    /// In which term.
    pub term: Epoch,
}

impl Meeting {
    /// Sees to it that the node can go on in the writer's term; else says why it must not.
    pub async fn meet(
        &self,
        control: &Control,
        node: NodeId,
        database: &str,
    ) -> Result<Option<String>, ControlError> {
        let client = control.connect(node, database).await?;
        let admin = control.connect(node, &control.database).await?;
        if control::read_state(&admin).await?.is_none() {
            return Ok(Some(NEW.to_owned()));
        }
        let theirs = self.facts(&client, &admin, database).await?;
        let writer = control.connect(self.writer, database).await?;
        let writers_admin = control.connect(self.writer, &control.database).await?;
        let ours = self.facts(&writer, &writers_admin, database).await?;
        if strays(&theirs, &ours) {
            return Ok(Some(STRAYS.to_owned()));
        }
        control::create_origin(&client, &origin_name(self.term, database)).await?;
        Ok(None)
    }

    async fn facts(
        &self,
        client: &Client,
        admin: &Client,
        database: &str,
    ) -> Result<Facts, ControlError> {
        let places = control::applied_places(client, database).await?;
        Ok(Facts {
            promised: self.term,
            record: Record {
                epoch: self.term,
                term: self.term,
                writer: self.writer,
            },
            offices: office::offices(admin).await?.held,
            places: moved(places),
            end: office::end_of_log(admin).await?,
            copies: BTreeSet::new(),
        })
    }
}

/// Where nothing has come of a term there is no place in it, whatever was made ready.
pub(super) fn moved(places: Places) -> BTreeMap<Epoch, Lsn> {
    let places = places.0.into_iter();
    places.filter(|(_, lsn)| *lsn > Lsn::default()).collect()
}
