//! From a list of servers to a working cluster: what is there, what is missing, who writes.
//!
//! At first contact nodes that hold different data are refused, with what differs; afterwards each
//! node's own record says which cluster it belongs to and what it has seen. It makes what a node
//! needs and says so, and it never restarts a server (`wal_level` is the operator's to set).
//! Guards promise 2. It takes no decision once the cluster runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join, try_join_all};
use tokio_postgres::Client;

use super::alike;
use super::follower::Arming;
use super::keeper::Keeper;
use super::taking_office::Office;
use crate::config::Config;
use crate::ids::{Epoch, Lsn, NodeId, UnitId, origin_name, slot_name};
use crate::node::control::{self, Control, ControlError, ServerFacts, State};
use crate::node::spares::Spares;

/// For what a node is asked first.
const REACH: Duration = Duration::from_secs(10);

/// Why the cluster can't be brought up. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BringUpError {
    /// A node that is needed can't be reached.
    #[error("node {node} can't be reached: {error}. {mend}")]
    Unreachable {
        /// Its name.
        node: String,
        /// Why.
        error: ControlError,
        /// What to do.
        mend: String,
    },
    /// A node can't serve as it is.
    #[error("node {node}: {problem}. {mend}")]
    Unfit {
        /// Its name.
        node: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        mend: String,
    },
    /// The nodes are not copies of each other.
    #[error(
        "the nodes hold different data, so they can't become one cluster: {0}. Make them equal (or empty all but one, \
         dump that one and restore it to the others), then start again"
    )]
    Different(String),
    /// At the first contact every node is needed: nobody could say what an absent one holds.
    #[error(
        "node {node} can't be reached ({error}), and all nodes are needed for their first contact. Afterwards a \
         majority is enough"
    )]
    FirstContact {
        /// Its name.
        node: String,
        /// Why.
        error: ControlError,
    },
    /// A majority is missing.
    #[error("only {reachable} of {nodes} nodes can be reached; a majority is needed to start")]
    NoMajority {
        /// Nodes that answer.
        reachable: usize,
        /// Nodes configured.
        nodes: usize,
    },
    /// Nobody may be the writer.
    #[error(
        "{reachable} of {nodes} nodes can be reached, but none of them may write: whoever has everything that was \
         acknowledged can't be told from these. The log says what each has; start the nodes that are missing"
    )]
    Nobody {
        /// Nodes that answer.
        reachable: usize,
        /// Nodes configured.
        nodes: usize,
    },
    /// A node that was there stands still, or there is more to do than was thought.
    #[error("it took longer than {0:?}")]
    Slow(Duration),
    /// Something failed on a node.
    #[error("node {node}: {doing} failed: {error}")]
    Failed {
        /// Its name.
        node: String,
        /// What was being done.
        doing: String,
        /// Why.
        error: ControlError,
    },
}

/// A node that answered.
pub struct Reached {
    /// Which.
    pub node: NodeId,
    /// A superuser's connection to the admin database.
    pub client: Arc<Client>,
    /// What the server is.
    pub facts: ServerFacts,
    /// What it remembers of the cluster.
    pub state: Option<State>,
}

/// A cluster that has been prepared and can be run.
pub struct Prepared {
    /// Recorded on a majority for this run of the proxy.
    pub epoch: Epoch,
    /// When the writer took office.
    pub term: Epoch,
    /// Runs the writes.
    pub writer: NodeId,
    /// The writer's major version.
    pub version: u32,
    /// When the writer's terms of office began, by the end of its log.
    pub offices: BTreeMap<Epoch, Lsn>,
    /// By database: where its slot starts, and each follower's place.
    pub databases: BTreeMap<String, DatabasePlaces>,
    /// Followers whose place can't be known: they must be rebuilt.
    pub lost: BTreeMap<NodeId, String>,
    /// Set on every node that was reached; this process alone knows it.
    pub arming: Arming,
    /// The nodes that have been set up.
    pub armed: BTreeSet<NodeId>,
}

/// Where replication of one database goes on.
pub struct DatabasePlaces {
    /// The slot's.
    pub start: Lsn,
    /// Each follower's last durable unit.
    pub followers: BTreeMap<NodeId, UnitId>,
}

/// Brings nodes up, one step after the other.
pub struct BringUp<'a> {
    pub(super) config: &'a Config,
    pub(super) control: &'a Control,
    pub(super) how: &'a How,
}

/// What differs between the start of a proxy and a change of writer while it runs.
#[derive(Default)]
pub struct How {
    /// For what a node is asked first.
    pub patience: Duration,
    /// Nodes that did not answer a moment ago: nobody waits long for them.
    pub absent: BTreeSet<NodeId>,
    /// Who wrote until now: where its processes have crashed, and it is on its way back, it is waited for.
    pub former: Option<NodeId>,
    /// Who is to be the writer, of those who can.
    pub wanted: Option<NodeId>,
    /// This process's secrets, where there are some.
    pub arming: Option<Arming>,
    /// The nodes that have been set up by this process.
    pub armed: BTreeSet<NodeId>,
    /// Connections that are kept for a moment.
    pub keeper: Arc<Keeper>,
    /// Connections that were opened ahead.
    pub spares: Arc<Spares>,
}

impl How {
    /// A proxy starts.
    pub fn start() -> Self {
        Self {
            patience: REACH,
            ..Self::default()
        }
    }
}

impl<'a> BringUp<'a> {
    /// With the configuration and a way to the nodes.
    pub fn new(config: &'a Config, control: &'a Control, how: &'a How) -> Self {
        Self {
            config,
            control,
            how,
        }
    }

    /// A superuser's connection that is kept for a moment.
    pub(super) async fn client(
        &self,
        node: NodeId,
        database: &str,
    ) -> Result<Arc<Client>, ControlError> {
        self.how.keeper.client(self.control, node, database).await
    }

    pub(super) fn name(&self, node: NodeId) -> String {
        self.config.nodes[node.0].name.clone()
    }

    pub(super) fn failed<'b>(
        &self,
        node: NodeId,
        doing: &'b str,
    ) -> impl FnOnce(ControlError) -> BringUpError + use<'b> {
        let node = self.name(node);
        move |error| BringUpError::Failed {
            node,
            doing: doing.to_owned(),
            error,
        }
    }

    /// Everything, until streams and appliers can be started.
    pub async fn run(&self) -> Result<Prepared, BringUpError> {
        let (reached, absent) = self.reach().await?;
        tracing::debug!(nodes = reached.len(), "nodes are reached");
        for node in &reached {
            self.check_fit(node)?;
        }
        let nodes = self.config.nodes.len();
        let known = reached
            .iter()
            .filter_map(|r| r.state.clone())
            .max_by_key(|s| s.epoch);
        let first = known.is_none();
        let state = match known {
            Some(state) => {
                self.check_one_cluster(&reached, &state)?;
                with_all_fenced(state, &reached)
            }
            None if reached.len() == nodes => self.first_contact(&reached).await?,
            None => {
                let reachable = reached.len();
                let majority = BringUpError::NoMajority { reachable, nodes };
                return Err(
                    absent.map_or(majority, |(node, error)| BringUpError::FirstContact {
                        node: self.name(node),
                        error,
                    }),
                );
            }
        };
        let arming = self.how.arming.clone().unwrap_or_else(new_arming);
        let unarmed = |node: &&Reached| !self.how.armed.contains(&node.node);
        let installs = reached.iter().filter(unarmed);
        let installs = installs.map(|node| self.install(node, &arming));
        for installed in join_all(installs).await {
            installed?;
        }
        let office = if first {
            self.first_office(&reached, state).await?
        } else {
            self.office(&reached, state).await?
        };
        tracing::debug!("an office is taken");
        let (databases, mut lost) = self.places(&reached, &office, first).await?;
        for (node, why) in office.outcast {
            lost.entry(node).or_insert(why);
        }
        let settles = reached.iter().filter(unarmed);
        let settles = settles.map(|node| self.settle(node));
        for settled in join_all(settles).await {
            settled?;
        }
        let version = reached
            .iter()
            .find(|r| r.node == office.writer)
            .map_or(0, |r| r.facts.version / 10_000);
        Ok(Prepared {
            epoch: office.epoch,
            term: office.term,
            writer: office.writer,
            offices: office.starts,
            version,
            databases,
            lost,
            arming,
            armed: reached.iter().map(|r| r.node).collect(),
        })
    }

    /// Nodes that remember different clusters are not copies of each other, whatever they hold.
    fn check_one_cluster(&self, reached: &[Reached], known: &State) -> Result<(), BringUpError> {
        let stranger = reached.iter().find(|node| {
            let state = node.state.as_ref();
            state.is_some_and(|state| state.cluster != known.cluster)
        });
        let Some(stranger) = stranger else {
            return Ok(());
        };
        let node = self.name(stranger.node);
        Err(BringUpError::Unfit {
            mend: format!("`synapsedb release --node {node}` makes it nobody's"),
            node,
            problem: "it belongs to another cluster".to_owned(),
        })
    }

    /// Nothing is known anywhere: all must be equal, and the first one writes.
    async fn first_contact(&self, reached: &[Reached]) -> Result<State, BringUpError> {
        alike::check(self.config, self.control, reached).await?;
        tracing::info!("first contact: the nodes hold the same data");
        self.level_verifiers(reached).await?;
        Ok(State {
            epoch: Epoch(0),
            term: Epoch(1),
            writer: self.name(NodeId(0)),
            cluster: random_secret().chars().take(16).collect(),
            fenced: Vec::new(),
        })
    }

    /// A password has another salt on each node, so a proof made for one would not open another: the
    /// first node's verifiers become everyone's.
    async fn level_verifiers(&self, reached: &[Reached]) -> Result<(), BringUpError> {
        let doing = "making the roles' passwords the same";
        let mut known: Option<BTreeMap<String, Option<String>>> = None;
        for node in reached {
            let theirs = control::verifiers(&node.client).await;
            let theirs = theirs.map_err(self.failed(node.node, doing))?;
            let Some(ours) = &known else {
                known = Some(theirs);
                continue;
            };
            for (role, verifier) in ours {
                if theirs.get(role) == Some(verifier) {
                    continue;
                }
                let set = control::set_verifier(&node.client, role, verifier.as_deref()).await;
                set.map_err(self.failed(node.node, doing))?;
                tracing::info!(node = %self.name(node.node), role, "gave the role the first node's password verifier");
            }
        }
        Ok(())
    }

    async fn install(&self, node: &Reached, arming: &Arming) -> Result<(), BringUpError> {
        let databases = control::databases(&node.client).await;
        for database in databases.map_err(self.failed(node.node, "listing databases"))? {
            let client = self.client(node.node, &database).await;
            let client = client.map_err(self.failed(node.node, "connecting"))?;
            let installed = control::install(&client).await;
            installed.map_err(self.failed(node.node, "installing schema synapsedb"))?;
            let armed = arming.arm(&client, self.control).await;
            armed.map_err(self.failed(node.node, "setting up the applier's role"))?;
        }
        if node.state.is_none() {
            tracing::info!(
                node = %self.name(node.node),
                "made schema synapsedb, its publication, event triggers and role on this node"
            );
        }
        Ok(())
    }

    /// Slots on the writer and places on the followers; made where this is the first contact.
    async fn places(
        &self,
        reached: &[Reached],
        office: &Office,
        first: bool,
    ) -> Result<(BTreeMap<String, DatabasePlaces>, BTreeMap<NodeId, String>), BringUpError> {
        let writer = office.writer;
        let Some(at_writer) = reached.iter().find(|r| r.node == writer) else {
            return Err(self.unreachable(writer, ControlError::Timeout));
        };
        let names = control::databases(&at_writer.client).await;
        let names = names.map_err(self.failed(writer, "listing databases"))?;
        let mut lost = BTreeMap::new();
        let mut databases = BTreeMap::new();
        let slots = async {
            let mut starts = Vec::new();
            for name in &names {
                starts.push(self.slot(at_writer, name, first, &mut lost).await?);
            }
            Ok(starts)
        };
        let places = try_join_all(
            reached
                .iter()
                .map(|node| self.places_on(node, office, &names, first)),
        );
        let (starts, places) = try_join(slots, places).await?;
        for (at, (name, start)) in names.into_iter().zip(starts).enumerate() {
            let places = reached.iter().zip(&places);
            let followers = places.filter_map(|(node, places)| Some((node.node, *places.get(at)?)));
            let followers = followers.collect();
            databases.insert(name, DatabasePlaces { start, followers });
        }
        Ok((databases, lost))
    }

    /// A follower's place in each of these databases; none for the writer.
    async fn places_on(
        &self,
        node: &Reached,
        office: &Office,
        names: &[String],
        first: bool,
    ) -> Result<Vec<UnitId>, BringUpError> {
        if !office.outcast.contains_key(&node.node) {
            // Places are kept in rows; an origin of a term that is over would only take room that new ones need.
            let keep: Vec<String> = names
                .iter()
                .map(|name| origin_name(office.term, name))
                .collect();
            let dropped = control::drop_origins(&node.client, &keep).await;
            dropped.map_err(self.failed(node.node, "dropping origins of former terms"))?;
        }
        if node.node == office.writer {
            return Ok(Vec::new());
        }
        let places = names
            .iter()
            .map(|name| self.place(node, office.term, name, first));
        try_join_all(places).await
    }

    /// A follower's place in a database, with what it needs to go on from there and to be the writer some day.
    async fn place(
        &self,
        node: &Reached,
        term: Epoch,
        database: &str,
        first: bool,
    ) -> Result<UnitId, BringUpError> {
        let client = self.client(node.node, database).await;
        let client = client.map_err(self.failed(node.node, "connecting"))?;
        let places = control::applied_places(&client, database).await;
        let places = places.map_err(self.failed(node.node, "reading its place"))?;
        let made = control::create_origin(&client, &origin_name(term, database)).await;
        made.map_err(self.failed(node.node, "making a replication origin"))?;
        if first {
            let made = control::ensure_slot(&client, &slot_name(database)).await;
            made.map_err(self.failed(node.node, "making a logical slot"))?;
        }
        Ok(places.last().unwrap_or_default())
    }

    async fn slot(
        &self,
        writer: &Reached,
        database: &str,
        first: bool,
        lost: &mut BTreeMap<NodeId, String>,
    ) -> Result<Lsn, BringUpError> {
        let slot = slot_name(database);
        let place = control::slot_place(&writer.client, &slot).await;
        if let Some(place) = place.map_err(self.failed(writer.node, "reading its slots"))? {
            return Ok(place);
        }
        if !first {
            // What was committed since is in no slot: nobody can be told what it lacks.
            for at in 0..self.config.nodes.len() {
                if NodeId(at) != writer.node {
                    lost.insert(NodeId(at), format!("the writer's slot {slot} is gone"));
                }
            }
        }
        let client = self.client(writer.node, database).await;
        let client = client.map_err(self.failed(writer.node, "connecting"))?;
        let made = control::create_slot(&client, &slot).await;
        let place = made.map_err(self.failed(writer.node, "making a logical slot"))?;
        tracing::info!(%slot, %place, "made a logical slot on the writer");
        Ok(place)
    }

    /// From here on the server's commits wait for the proxy.
    async fn settle(&self, node: &Reached) -> Result<(), BringUpError> {
        let changed = control::require_quorum_commits(&node.client).await;
        if changed.map_err(self.failed(node.node, "setting synchronous_standby_names"))? {
            tracing::info!(
                node = %self.name(node.node),
                "set synchronous_standby_names = 'synapsedb' and synchronous_commit = 'remote_write' (reloaded, not restarted)"
            );
        }
        Ok(())
    }
}

/// The newest state with every node that anyone of the same epoch knows as fenced.
fn with_all_fenced(mut state: State, reached: &[Reached]) -> State {
    let states = reached.iter().filter_map(|node| node.state.as_ref());
    for other in states.filter(|other| other.epoch == state.epoch) {
        for name in &other.fenced {
            if !state.fenced.contains(name) {
                state.fenced.push(name.clone());
            }
        }
    }
    state
}

pub(super) fn new_arming() -> Arming {
    Arming {
        applier_password: random_secret(),
        runner_secret: random_secret(),
        log_secret: random_secret(),
    }
}

fn random_secret() -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}
