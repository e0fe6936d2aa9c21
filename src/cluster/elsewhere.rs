//! Commands that every node must run itself, since no transaction may hold them (CREATE DATABASE) or since
//! they change a node's storage only (VACUUM): the writer has run them for a client, here the others do.
//!
//! Each runs as the client's role on a connection of its own. A node that fails at what the writer could do
//! differs from it and is fenced (rule 14); where all fail, the writer takes it back and nobody is fenced; upkeep that fails changes nothing and is only logged.

use std::time::Duration;

use tokio_postgres::Client;

use super::service::{Order, Outcome};
use super::steward::Steward;
use crate::ids::NodeId;
use crate::node::control::ControlError;
use crate::node::settings::literal;
use crate::sql::lexer::{is_word, lex};

/// Upkeep of what was just made waits until a follower has it: so often, so long each time.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// The `search_path` that a role begins with in this database.
const OWN_PATH: &str = "coalesce((select substr(c, 13) from pg_db_role_setting s, unnest(s.setconfig) c \
    where c like 'search_path=%' and s.setrole in (0, to_regrole(quote_ident($role))) \
    and s.setdatabase in (0, (select d.oid from pg_database d where d.datname = current_database())) \
    order by s.setrole <> 0 desc, s.setdatabase <> 0 desc limit 1), '\"$user\", public')";

impl Steward {
    /// Runs the order on all nodes but the writer, one after the other. Dropped midway, nodes may differ;
    /// the session sees to it that it is not.
    pub(super) async fn run_elsewhere(&self, order: &Order) -> Outcome {
        let mut nodes = Vec::new();
        for node in self.others() {
            let name = self.config.nodes[node.0].name.clone();
            let error = self
                .run_on(node, order)
                .await
                .err()
                .map(|error| error.to_string());
            nodes.push((name, error));
        }
        let undone = nodes.iter().all(|(_, error)| error.is_some())
            && !nodes.is_empty()
            && self.undo(order).await;
        if undone {
            return Outcome { nodes, undone };
        }
        for (node, (_, error)) in self.others().zip(&nodes) {
            if let Some(why) = error {
                let what = command_words(&order.command);
                let why = format!("{what} succeeded on the writer but failed here: {why}");
                self.fence(node, &why);
            }
        }
        if let Some(database) = &order.makes
            && let Err(error) = self.database_created(database).await
        {
            tracing::error!(database, %error, "a new database could not be taken into replication");
        }
        Outcome { nodes, undone }
    }

    /// Takes back on the writer what it alone could do, where that is possible.
    async fn undo(&self, order: &Order) -> bool {
        let Some(command) = opposite(&order.command) else {
            return false;
        };
        let undo = Order {
            command,
            ..order.clone()
        };
        match self.run_on(self.writer(), &undo).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "what failed on all other nodes could not be taken back on the writer");
                false
            }
        }
    }

    /// Has all other nodes do the upkeep, each at its own pace.
    pub(super) async fn upkeep_elsewhere(&self, order: &Order) {
        let all = self.others().map(|node| self.upkeep_on(node, order));
        futures_util::future::join_all(all).await;
    }

    async fn upkeep_on(&self, node: NodeId, order: &Order) {
        for _ in 0..TRIES {
            let work = self.cancel.run_until_cancelled(self.run_on(node, order));
            match work.await {
                None | Some(Ok(())) => return,
                Some(Err(error)) => {
                    tracing::debug!(node = node.0, %error, "upkeep on a follower failed");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn others(&self) -> impl Iterator<Item = NodeId> {
        let writer = self.writer();
        let all = (0..self.config.nodes.len()).map(NodeId);
        all.filter(move |node| *node != writer)
    }

    async fn run_on(&self, node: NodeId, order: &Order) -> Result<(), ControlError> {
        // A database is not made or dropped from inside itself.
        let client = self.control.connect(node, &order.database).await?;
        run(&client, order).await?;
        Ok(())
    }
}

/// The settings first, each in a Query of its own, since the command may stand in none with others. The command is
/// none, so that the server takes it for one command or refuses it: what followed it could give the role back.
/// (None of these commands evaluates anything of a user's but as the owner of what it works on.)
async fn run(client: &Client, order: &Order) -> Result<(), tokio_postgres::Error> {
    let role_name = literal(&order.role);
    let path = match &order.search_path {
        Some(path) => literal(path),
        None => OWN_PATH.replace("$role", &role_name),
    };
    let set = format!("select pg_catalog.set_config('search_path', {path}, false)");
    client.batch_execute(&set).await?;
    let role = format!("select pg_catalog.set_config('role', {role_name}, false)");
    client.batch_execute(&role).await?;
    client.execute(&*order.command, &[]).await?;
    Ok(())
}

/// What takes a CREATE DATABASE or CREATE TABLESPACE back.
fn opposite(command: &str) -> Option<String> {
    let tokens = lex(command, true).tokens;
    let word = |at: usize, text: &str| is_word(command, &tokens, at, text);
    let kind = ["database", "tablespace"]
        .into_iter()
        .find(|kind| word(0, "create") && word(1, kind))?;
    let name = tokens.get(2)?;
    Some(format!("drop {kind} {}", &command[name.start..name.end]))
}

/// The command's first words, which hold no secret.
fn command_words(command: &str) -> String {
    let words: Vec<_> = command.split_whitespace().take(3).collect();
    words.join(" ")
}
