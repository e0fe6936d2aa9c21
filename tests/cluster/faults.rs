//! Nodes killed and frozen under load: nothing acknowledged is lost, nothing is there twice, and clients hear of it
//! only in the words that are meant for it.
//!
//! `SEED=n` replays a run. With `SYNAPSEDB_TEST_ALL` runs take minutes.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::ledger::{self, Books, Crowd, Ledger};
use crate::support::cluster::TestCluster;
use crate::tools::{PATIENCE, is_all, rows, run, seed, until_status};

/// How long the workload runs in `make test`: with followers, with writers killed and with writers frozen, so that it
/// is two minutes in all.
const SHORT: Duration = Duration::from_secs(40);
/// How long each takes in `make test-all`.
const LONG: Duration = Duration::from_secs(600);
/// So many lines are acknowledged between two faults at least, however slow the machine is.
pub const LINES: usize = 40;

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// All its processes are killed at once, until it is started again.
    Killed,
    /// All its processes stand still, with their connections open, until they go on.
    Frozen,
}

/// A cluster with clients at work on it, and chance to choose moments.
pub struct Run {
    pub cluster: TestCluster,
    pub crowd: Crowd<Ledger>,
    pub rng: StdRng,
    end: Instant,
}

impl Run {
    /// For so long.
    pub async fn start(seed: u64, time: Duration) -> Self {
        println!("SEED={seed}, {time:?}");
        let cluster = TestCluster::builder()
            .setting("log_statement", "none")
            .start()
            .await;
        ledger::set_up(&cluster.client().await).await;
        let crowd = ledger::writers(cluster.port(), seed);
        crowd.lines(LINES).await;
        Self {
            cluster,
            crowd,
            rng: StdRng::seed_from_u64(seed),
            end: Instant::now() + time,
        }
    }

    /// Whether there is time for more.
    pub fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }

    /// Waits for the next moment at which something may happen: lines are acknowledged, and the seed chooses how long
    /// after that, up to here.
    pub async fn moment(&mut self, most: Duration) {
        self.crowd.lines(LINES).await;
        let pause = self.rng.random_range(0..most.as_millis());
        let pause = u64::try_from(pause).expect("milliseconds");
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// One of the two.
    pub fn choose_fault(&mut self) -> Fault {
        [Fault::Killed, Fault::Frozen][self.rng.random_range(0..2)]
    }

    /// The fault begins. A killed server is reaped.
    pub fn strike(&mut self, node: usize, fault: Fault) {
        tokio::task::block_in_place(|| match fault {
            Fault::Killed => self.cluster.server(node).kill9(),
            Fault::Frozen => self.cluster.server(node).pause(),
        });
    }

    /// The fault ends.
    pub fn mend(&mut self, node: usize, fault: Fault) {
        tokio::task::block_in_place(|| match fault {
            Fault::Killed => self.cluster.server(node).start().expect("starts again"),
            Fault::Frozen => self.cluster.server(node).resume(),
        });
    }

    /// Ends the work and looks at every copy. All nodes get level but for the one that is `out` of service, which
    /// may lack lines, and holds nothing that others were told of otherwise.
    pub async fn finish(self, out: Option<usize>) -> (TestCluster, Books) {
        let books = Books::new(self.crowd.disperse().await);
        check(&self.cluster, &books, out).await;
        (self.cluster, books)
    }
}

/// The nodes are equal and hold what clients were told, and clients were told nothing else.
async fn check(cluster: &TestCluster, books: &Books, out: Option<usize>) {
    println!("{:?}; the longest took {:?}", books.counts, books.longest());
    let nodes = 0..cluster.nodes();
    let serving: Vec<usize> = nodes.clone().filter(|node| out != Some(*node)).collect();
    for node in &serving {
        until_status(cluster, *node, "in_sync").await;
    }
    let mut faults = books.faults();
    if let Err(differences) = cluster.compare_some(&serving, PATIENCE).await {
        faults.push(differences);
    }
    for node in nodes {
        let name = cluster.server_ref(node).name().to_owned();
        let client = cluster.node(node).await;
        let found = books.faults_on(&client, out == Some(node)).await;
        faults.extend(found.iter().map(|fault| format!("{name}: {fault}")));
    }
    let shown: Vec<&String> = faults.iter().take(30).collect();
    assert!(faults.is_empty(), "{} faults: {shown:#?}", faults.len());
    assert!(books.count("Acknowledged") > 100, "{:?}", books.counts);
}

/// How long runs take.
pub fn time() -> Duration {
    if is_all() { LONG } else { SHORT }
}

/// One follower after the other, the writer and the other one always at work.
async fn followers_come_and_go(seed: u64, time: Duration) {
    let mut run = Run::start(seed, time).await;
    let mut struck = 0;
    while run.goes_on() {
        run.moment(Duration::from_millis(500)).await;
        let (node, fault) = (run.rng.random_range(1..3), run.choose_fault());
        run.strike(node, fault);
        // Shorter and longer than it takes to notice that nobody answers.
        run.moment(Duration::from_secs(4)).await;
        run.mend(node, fault);
        until_status(&run.cluster, node, "in_sync").await;
        struck += 1;
    }
    let (cluster, books) = run.finish(None).await;
    println!("{struck} times");
    assert!(struck > 2, "{struck}");
    // A majority was there all the time, and the writer was never touched.
    let told = ["Acknowledged", "Refused"];
    let errors = books
        .counts
        .keys()
        .filter(|what| !told.contains(&what.as_str()));
    assert_eq!(errors.collect::<Vec<_>>(), [""; 0], "{:?}", books.counts);
    lies_are_found(&cluster, &books).await;
}

/// What was lost, doubled and written by nobody shows, or all of this proves nothing.
async fn lies_are_found(cluster: &TestCluster, books: &Books) {
    let client = cluster.client().await;
    let two = "select client, n from ledger group by 1, 2 order by 1, 2 limit 2";
    let two: Vec<String> = rows(&client, two).await;
    let (lost, doubled) = (two[0].replace('|', ", "), two[1].replace('|', ", "));
    let more = format!(
        "insert into ledger values ({doubled}); insert into ledger_wide (client, n, filler) values (999, 0, '')"
    );
    run(&client, &more).await;
    for table in ledger::TABLES {
        let less = format!("delete from {table} where (client, n) = ({lost})");
        run(&client, &less).await;
    }
    cluster.assert_nodes_equal().await;
    for node in 0..cluster.nodes() {
        let node = cluster.node(node).await;
        let found = books.faults_on(&node, false).await;
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[2].starts_with("nobody wrote"), "{found:?}");
        let found = books.faults_on(&node, true).await;
        assert_eq!(found.len(), 2, "what is merely lacking may be: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_killed_and_frozen_under_load_are_no_clients_problem() {
    followers_come_and_go(seed(), time()).await;
}
