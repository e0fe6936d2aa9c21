//! An applier's connection: opened, made master of the origin, and given up for another.
//!
//! The origin admits one process at a time (REPLICATION rule 7), so whoever has it is the one that writes the
//! writer's history here. It doesn't apply anything.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::applier::{Applier, PLACES_KEPT};
use super::error::ApplyError;
use super::pipeline::{Pipeline, Value};
use super::roles::Lent;
use super::session::{
    CONNECTION_SETTINGS, ENCODING, PLACES, RELEASE_ORIGIN, STATEMENTS, TAKE_ORIGIN, session,
};
use crate::engine::care::Care;
use crate::ids::{Epoch, UnitId, origin_name};
use crate::node::backend::{Address, Backend, Login};
use crate::node::places::Places;
use crate::node::spares::Spares;
use crate::node::unit::Unit;

/// What an applier needs to know once.
#[derive(Clone, Debug)]
pub struct ApplierSettings {
    /// The follower.
    pub address: Address,
    /// The applier role and the database.
    pub login: Login,
    /// The term of the writer whose units are repeated.
    pub term: Epoch,
    /// The superuser's name, whose runner the schema holds.
    pub superuser: String,
    /// Up to where the follower may let units be seen: moved ahead of each commit.
    pub horizon: Arc<AtomicU64>,
    /// Opens the superuser's runner on this node (rule 11: known to nobody but this process).
    pub runner_secret: String,
    /// For connecting.
    pub timeout: Duration,
    /// Where a connection may have been opened ahead.
    pub spares: Arc<Spares>,
}

impl Applier {
    /// Connects, takes the origin of the term and tells the place in the history, of whatever term, that is durable
    /// there.
    ///
    /// The origin admits one process at a time, so a stale applier (of a proxy that was killed) makes
    /// this fail with 55006 until it is gone.
    pub async fn start(settings: &ApplierSettings) -> Result<(Self, UnitId), ApplyError> {
        let spare = settings
            .spares
            .applier(&settings.address, &settings.login.database);
        if let Some(spare) = spare
            && let Ok(started) = spare.working_for(settings).begin().await
        {
            return Ok(started);
        }
        Self::connect(settings).await?.begin().await
    }

    async fn begin(self) -> Result<(Self, UnitId), ApplyError> {
        let mut applier = self;
        let place = applier.take_origin().await?;
        applier.pipeline.commit().await?;
        Ok((applier, place))
    }

    /// The same connection for another term.
    fn working_for(mut self, settings: &ApplierSettings) -> Self {
        self.term = settings.term;
        self.origin = origin_name(settings.term, &settings.login.database);
        self.horizon = Arc::clone(&settings.horizon);
        self
    }

    /// Connects, without the origin: what it commits so has no place.
    pub(in crate::node) async fn connect(settings: &ApplierSettings) -> Result<Self, ApplyError> {
        let mut backend =
            Backend::connect(&settings.address, &settings.login, settings.timeout).await?;
        backend.query(&session()).await?;
        backend.query(ENCODING).await?;
        let rows = backend.query(CONNECTION_SETTINGS).await?;
        let text = |at: usize| rows.first().and_then(|row| row.get(at).cloned().flatten());
        let mut pipeline = Pipeline::new(backend);
        for (name, text) in STATEMENTS {
            pipeline.prepare(name, text);
        }
        pipeline.commit().await?;
        Ok(Self {
            pipeline,
            tables: HashMap::new(),
            building: true,
            transaction: 0,
            names: 0,
            query: None,
            runners: HashMap::new(),
            counted: None,
            lent: Lent::default(),
            care: Care::default(),
            distrust: false,
            horizon: Arc::clone(&settings.horizon),
            term: settings.term,
            number: 0,
            origin: origin_name(settings.term, &settings.login.database),
            places: PLACES_KEPT,
            filling: None,
            superuser: settings.superuser.clone(),
            secret: settings.runner_secret.clone(),
            search_path: text(0).unwrap_or_default(),
            encoding: text(1).unwrap_or_default(),
        })
    }

    /// Takes the origin for this connection, and tells the place that is durable there.
    async fn take_origin(&mut self) -> Result<UnitId, ApplyError> {
        let origin = self.origin.clone();
        let name: [Value<'_>; 1] = [Some(origin.as_bytes())];
        self.pipeline.prepare("", TAKE_ORIGIN);
        self.pipeline.query("", name.into_iter()).await?;
        self.pipeline.prepare("", PLACES);
        let rows = self.pipeline.query("", std::iter::empty()).await?;
        let places = Places::read(rows.iter().filter_map(|row| match row.as_slice() {
            [Some(origin), Some(lsn)] => Some((origin.as_str(), lsn.as_str())),
            _ => None,
        }));
        match places.last() {
            Some(last) if places.has(self.term) => Ok(last),
            _ => Err(ApplyError::NoPlace(origin)),
        }
    }

    /// Leaves the origin to another connection, between two transactions.
    pub(super) async fn release_origin(&mut self) -> Result<(), ApplyError> {
        self.pipeline.prepare("", RELEASE_ORIGIN);
        self.pipeline.execute("", std::iter::empty(), false);
        Ok(self.pipeline.commit().await?)
    }

    /// Commits what was applied ahead as `unit`, when everything before it is durable and nobody has the origin.
    pub(super) async fn take_over(&mut self, unit: &Unit) -> Result<(), ApplyError> {
        let place = self.take_origin().await?;
        if place >= unit.id {
            return Err(ApplyError::GivenUp("it is there already"));
        }
        self.number = rand::random();
        self.begin_unit(unit.id);
        self.end(unit).await
    }
}
