//! What the steward asks of a node and makes on it, over the superuser's connection.
//!
//! Every function is one small question or one idempotent act. Connections of this module run with
//! the replica role, so that what the proxy makes for itself is never taken for a client's DDL, and
//! with `synchronous_commit=local`, so that setting up never waits for the quorum it is about to
//! build. It decides nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::backend::{Address, Secret};
use super::places::Places;
use super::schema;
use crate::config::Config;
use crate::ids::{Epoch, Lsn, NodeId, SYNAPSEDB, UnitId, fnv1a, origin_name, term_of_origin};

/// How long opening a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Settings of every connection of this module, where no ALTER ROLE or ALTER DATABASE reaches (rule 12).
pub(super) const OPTIONS: &str = "-c search_path=pg_catalog -c synchronous_commit=local -c session_replication_role=replica \
    -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0 -c row_security=on \
    -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0 -c standard_conforming_strings=on \
    -c datestyle=ISO -c timezone=UTC -c client_min_messages=warning";

/// A node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The server refused, or the connection broke.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// No connection in time.
    #[error("no connection within {CONNECT:?}")]
    Timeout,
    /// No answer in time.
    #[error("no answer in time")]
    Slow,
    /// An answer that can't be read.
    #[error("the node's answer to {0} can't be read")]
    Answer(&'static str),
}

impl ControlError {
    /// The SQLSTATE of a server's error.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Postgres(error) => error.code().map(tokio_postgres::error::SqlState::code),
            _ => None,
        }
    }
}

fn describe(error: &tokio_postgres::Error) -> String {
    use std::error::Error;
    if let Some(db) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", db.message(), db.code().code());
    }
    let cause = error.source();
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Opens superuser connections.
#[derive(Clone, Debug)]
pub struct Control {
    addresses: Vec<Address>,
    user: String,
    password: Option<String>,
    /// The database connected to first.
    pub database: String,
}

impl Control {
    /// From the configuration.
    pub fn new(config: &Config) -> Self {
        let address = |node: &crate::config::Node| Address {
            host: node.host.clone(),
            port: node.port,
        };
        Self {
            addresses: config.nodes.iter().map(address).collect(),
            user: config.admin.user.clone(),
            password: config
                .admin
                .password
                .as_ref()
                .map(|p| p.expose().to_owned()),
            database: config.admin.database.clone(),
        }
    }

    /// Where a node is.
    pub fn address(&self, node: NodeId) -> &Address {
        &self.addresses[node.0]
    }

    /// The superuser's name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// What the superuser logs in with.
    pub fn secret(&self) -> Secret {
        let password = self.password.clone();
        password.map_or(Secret::None, Secret::Password)
    }

    /// A connection of its own, which ends when the client is dropped.
    pub async fn connect(&self, node: NodeId, database: &str) -> Result<Client, ControlError> {
        let address = self.address(node);
        let mut login = tokio_postgres::Config::new();
        login
            .host(&address.host)
            .port(address.port)
            .user(&self.user)
            .dbname(database)
            .application_name("synapsedb control")
            .options(OPTIONS)
            .connect_timeout(CONNECT);
        if let Some(password) = &self.password {
            login.password(password);
        }
        let connecting = tokio::time::timeout(CONNECT, login.connect(NoTls));
        let (client, connection) = connecting.await.map_err(|_| ControlError::Timeout)??;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "control connection ended");
            }
        });
        Ok(client)
    }
}

/// What a server is and has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// `server_version_num`.
    pub version: u32,
    /// `wal_level`.
    pub wal_level: String,
    /// Whether the admin role is a superuser.
    pub superuser: bool,
    /// `max_replication_slots`, and how many are in use.
    pub slots: (u32, u32),
    /// `max_wal_senders`, and how many are in use.
    pub senders: (u32, u32),
    /// Origins that may exist at once, and how many there are.
    pub origins: (u32, u32),
    /// Milliseconds since 1970 by its clock.
    pub clock_ms: i64,
    /// Whether it is in recovery.
    pub in_recovery: bool,
}

/// Reads them.
pub async fn server_facts(client: &Client) -> Result<ServerFacts, ControlError> {
    let row = client
        .query_one(
            "select current_setting('server_version_num')::int4, current_setting('wal_level'),
                    (select rolsuper from pg_roles where rolname = current_user),
                    current_setting('max_replication_slots')::int4, (select count(*)::int4 from pg_replication_slots),
                    current_setting('max_wal_senders')::int4, (select count(*)::int4 from pg_stat_replication),
                    coalesce(current_setting('max_active_replication_origins', true),
                             current_setting('max_replication_slots'))::int4,
                    (select count(*)::int4 from pg_replication_origin),
                    (extract(epoch from clock_timestamp()) * 1000)::int8, pg_is_in_recovery()",
            &[],
        )
        .await?;
    let number = |at: usize| u32::try_from(row.get::<_, i32>(at)).unwrap_or_default();
    Ok(ServerFacts {
        version: number(0),
        wal_level: row.get(1),
        superuser: row.get(2),
        slots: (number(3), number(4)),
        senders: (number(5), number(6)),
        origins: (number(7), number(8)),
        clock_ms: row.get(9),
        in_recovery: row.get(10),
    })
}

/// Databases that clients can connect to and that are no templates.
pub async fn databases(client: &Client) -> Result<Vec<String>, ControlError> {
    let rows = client
        .query("select datname::text from pg_database where datallowconn and not datistemplate order by 1", &[])
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What a node remembers of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The newest epoch it has seen.
    pub epoch: Epoch,
    /// The epoch in which the writer took office.
    pub term: Epoch,
    /// The writer's name.
    pub writer: String,
    /// The same on all nodes of a cluster.
    pub cluster: String,
    /// The names of nodes that were found wrong and are owed nothing.
    pub fenced: Vec<String>,
}

/// Reads it; none before first contact.
pub async fn read_state(client: &Client) -> Result<Option<State>, ControlError> {
    let there: bool = client
        .query_one(
            "select to_regclass('synapsedb.cluster_state') is not null",
            &[],
        )
        .await?
        .get(0);
    if !there {
        return Ok(None);
    }
    let row = client
        .query_opt(
            "select epoch, term_epoch, writer, cluster_id,
                    array(select jsonb_array_elements_text(to_jsonb(s) -> 'fenced')) from synapsedb.cluster_state s",
            &[],
        )
        .await?;
    let epoch = |value: i64| Epoch(u64::try_from(value).unwrap_or_default());
    Ok(row.map(|row| State {
        epoch: epoch(row.get(0)),
        term: epoch(row.get(1)),
        writer: row.get(2),
        cluster: row.get(3),
        fenced: row.get(4),
    }))
}

/// Records it, unless the node has seen a newer epoch; false then.
pub async fn write_state(client: &Client, state: &State) -> Result<bool, ControlError> {
    let number = |epoch: Epoch| i64::try_from(epoch.0).unwrap_or(i64::MAX);
    let written = client
        .execute(
            "insert into synapsedb.cluster_state as s (epoch, term_epoch, writer, cluster_id, fenced)
               values ($1, $2, $3, $4, $5)
             on conflict (only_row) do update
               set epoch = excluded.epoch, term_epoch = excluded.term_epoch, writer = excluded.writer,
                   cluster_id = excluded.cluster_id, fenced = excluded.fenced, written_at = now(),
                   promised = greatest(s.promised, excluded.epoch)
             where s.epoch < excluded.epoch and s.promised <= excluded.epoch",
            &[&number(state.epoch), &number(state.term), &state.writer, &state.cluster, &state.fenced],
        )
        .await?;
    Ok(written == 1)
}

/// Records that a node is owed nothing, unless a newer epoch has begun; false then.
pub async fn write_fence(client: &Client, epoch: Epoch, name: &str) -> Result<bool, ControlError> {
    let epoch = i64::try_from(epoch.0).unwrap_or(i64::MAX);
    let written = client
        .execute(
            "update synapsedb.cluster_state set fenced = array_append(array_remove(fenced, $2), $2)
              where epoch = $1",
            &[&epoch, &name],
        )
        .await?;
    Ok(written == 1)
}

/// Makes schema `synapsedb` and all that belongs to it in the client's database.
///
/// Where it is there already nothing is touched: its tables may be locked by commits that wait for the
/// very proxy that is being started.
pub async fn install(client: &Client) -> Result<(), ControlError> {
    let mark = format!(
        "made by SynapseDB, {:016x}",
        fnv1a(schema::INSTALL.as_bytes())
    );
    let there = client
        .query_one(
            "select coalesce(obj_description(to_regnamespace('synapsedb'), 'pg_namespace') = $1, false)",
            &[&mark],
        )
        .await?;
    let there: bool = there.get(0);
    if !there {
        let all = format!(
            "{}; comment on schema synapsedb is '{mark}'",
            schema::INSTALL
        );
        client.batch_execute(&all).await?;
    }
    Ok(client.batch_execute(LET_THE_APPLIER_IN).await?)
}

/// Sets the applier's password and the superuser's runner to this process's secrets.
pub async fn arm(
    client: &Client,
    admin: &str,
    password_verifier: &str,
    secret: &str,
    log_secret: &str,
) -> Result<(), ControlError> {
    // The password comes last: whoever gets in by it finds the runner.
    client.batch_execute(LET_THE_APPLIER_IN).await?;
    client
        .query_one(schema::MAKE_RUNNER, &[&admin, &secret_hash(secret)])
        .await?;
    client
        .query_one(schema::SET_LOG_HASH, &[&secret_hash(log_secret)])
        .await?;
    let literal = password_verifier.replace('\'', "''");
    Ok(client
        .batch_execute(&format!(
            "alter role {} password '{literal}'",
            schema::APPLIER_ROLE
        ))
        .await?)
}

/// Where CONNECT has been taken from PUBLIC.
const LET_THE_APPLIER_IN: &str = "do $$ begin
  if not has_database_privilege('synapsedb_applier', current_database(), 'connect') then
    execute format('grant connect on database %I to synapsedb_applier', current_database());
  end if; end $$";

/// What `make_runner` keeps of a secret: SHA-256, hex.
pub fn secret_hash(secret: &str) -> String {
    use std::fmt::Write;
    Sha256::digest(secret.as_bytes())
        .iter()
        .fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

/// Each role's password as the server keeps it, by role; none for roles without one.
pub async fn verifiers(client: &Client) -> Result<BTreeMap<String, Option<String>>, ControlError> {
    let sql = "select rolname::text, rolpassword from pg_authid where rolname not like 'pg\\_%' and rolname <> $1";
    let rows = client.query(sql, &[&schema::APPLIER_ROLE]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Gives a role the password as another server keeps it.
pub async fn set_verifier(
    client: &Client,
    role: &str,
    verifier: Option<&str>,
) -> Result<(), ControlError> {
    let role = role.replace('"', "\"\"");
    let password = verifier.map_or("null".to_owned(), |v| {
        format!("'{}'", v.replace('\'', "''"))
    });
    Ok(client
        .batch_execute(&format!("alter role \"{role}\" password {password}"))
        .await?)
}

/// Whether the slot is there, and what it still holds.
pub async fn slot_place(client: &Client, slot: &str) -> Result<Option<Lsn>, ControlError> {
    let row = client
        .query_opt(
            "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = $1",
            &[&slot],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let text: Option<String> = row.get(0);
    let place = text.and_then(|text| text.parse().ok());
    place
        .map(Some)
        .ok_or(ControlError::Answer("confirmed_flush_lsn"))
}

/// Makes a logical slot in the client's database and gives the place it starts at.
pub async fn create_slot(client: &Client, slot: &str) -> Result<Lsn, ControlError> {
    let row = client
        .query_one(
            "select lsn::text from pg_create_logical_replication_slot($1, 'pgoutput')",
            &[&slot],
        )
        .await?;
    row.get::<_, String>(0)
        .parse()
        .map_err(|_| ControlError::Answer("slot creation"))
}

/// Makes a logical slot in the client's database where there is none.
pub async fn ensure_slot(client: &Client, slot: &str) -> Result<(), ControlError> {
    if slot_place(client, slot).await?.is_none() {
        create_slot(client, slot).await?;
    }
    Ok(())
}

/// Has a slot of the client's database forget what comes before `place`, if it is there and stands before.
pub async fn advance_slot(client: &Client, slot: &str, place: Lsn) -> Result<(), ControlError> {
    client
        .execute(
            "select pg_replication_slot_advance(slot_name, least($2::text::pg_lsn, pg_current_wal_flush_lsn()))
               from pg_replication_slots
              where slot_name = $1 and active_pid is null
                and confirmed_flush_lsn < least($2::text::pg_lsn, pg_current_wal_flush_lsn())",
            &[&slot, &place.to_string()],
        )
        .await?;
    Ok(())
}

/// Has the server note in its log which transactions run (version 16 and later): from there a slot can be read.
pub async fn log_running(client: &Client) -> Result<(), ControlError> {
    client
        .batch_execute("select pg_log_standby_snapshot()")
        .await?;
    Ok(())
}

/// What a server shows now, as it writes it: `xmin:xmax:those between that run`.
pub const SNAPSHOT: &str = "select pg_catalog.pg_current_snapshot()::pg_catalog.text";

/// What the server shows now.
pub async fn snapshot(client: &Client) -> Result<String, ControlError> {
    Ok(client.query_one(SNAPSHOT, &[]).await?.get(0))
}

/// Drops a slot if it is there, ending whoever reads it.
pub async fn drop_slot(client: &Client, slot: &str) -> Result<(), ControlError> {
    client
        .execute(
            "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots
              where slot_name = $1 and active_pid is not null",
            &[&slot],
        )
        .await?;
    client
        .execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1", &[&slot])
        .await?;
    Ok(())
}

/// Ends a process that still reads a slot: a killed proxy's, which the server has not noticed yet.
pub async fn end_slot_reader(client: &Client, slot: &str) -> Result<(), ControlError> {
    client
        .execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots
              where slot_name = $1 and active_pid is not null",
            &[&slot],
        )
        .await?;
    Ok(())
}

/// Ends stale appliers, which hold their origin.
pub async fn end_stale_appliers(client: &Client, database: &str) -> Result<(), ControlError> {
    client
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'synapsedb_applier' and datname = $1",
            &[&database],
        )
        .await?;
    Ok(())
}

/// Up to where the client's database has the history, by the terms of its writers. An origin without a row is of a
/// schema that kept none.
pub async fn applied_places(client: &Client, database: &str) -> Result<Places, ControlError> {
    let rows = client
        .query(
            "select p.origin, max(p.lsn)::text from synapsedb.applied_places p group by 1
             union all
             select o.roname, coalesce(pg_replication_origin_progress(o.roname, true), '0/0')::text
               from pg_replication_origin o
              where o.roname like 'synapsedb\\_%'
                and not exists (select from synapsedb.applied_places p where p.origin = o.roname)",
            &[],
        )
        .await?;
    let mut found: Vec<(String, String)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
    // The server's origins are those of all its databases.
    found.retain(|(origin, _)| {
        let of_this = |term| origin_name(term, database) == *origin;
        term_of_origin(origin).is_some_and(of_this)
    });
    let rows = found.iter();
    Ok(Places::read(
        rows.map(|(o, lsn)| (o.as_str(), lsn.as_str())),
    ))
}

/// Notes that the client's database has everything up to this unit. For a node that was the unit's writer and becomes a
/// follower: no applier brought it what it made itself.
pub async fn set_place(client: &Client, database: &str, place: UnitId) -> Result<(), ControlError> {
    let origin = origin_name(place.term, database);
    let insert = "insert into synapsedb.applied_places (origin, lsn) values ($1, $2::text::pg_lsn)";
    client
        .execute(insert, &[&origin, &place.lsn.to_string()])
        .await?;
    Ok(())
}

/// Makes an origin if it is not there, with the first row of its place in the client's database.
pub async fn create_origin(client: &Client, origin: &str) -> Result<(), ControlError> {
    client
        .execute(
            "select pg_replication_origin_create($1) where not exists
               (select from pg_replication_origin where roname = $1)",
            &[&origin],
        )
        .await?;
    client
        .execute(
            // It waits for whoever copies sequences there for an earlier term (`node/sequences.rs`).
            "insert into synapsedb.applied_places (origin, lsn)
             select $1, coalesce(pg_replication_origin_progress($1, true), '0/0')
              where not exists (select from synapsedb.applied_places where origin = $1)",
            &[&origin],
        )
        .await?;
    Ok(())
}

/// Drops every origin of the proxy's in the client's server that `keep` does not name.
pub async fn drop_origins(client: &Client, keep: &[String]) -> Result<(), ControlError> {
    let rows = client
        .query(
            "select roname from pg_replication_origin where roname like 'synapsedb\\_%'",
            &[],
        )
        .await?;
    for row in rows {
        let name: String = row.get(0);
        if !keep.contains(&name) {
            client
                .execute("select pg_replication_origin_drop($1)", &[&name])
                .await?;
        }
    }
    Ok(())
}

/// The settings by which a server's commits wait for the proxy; true where something had to be changed.
pub async fn require_quorum_commits(client: &Client) -> Result<bool, ControlError> {
    let row = client
        .query_one(
            "select (select reset_val from pg_settings where name = 'synchronous_standby_names') = $1
                and (select count(*) from pg_file_settings f
                      where f.name = 'synchronous_commit' and f.setting = 'remote_write' and f.applied) > 0",
            &[&SYNAPSEDB],
        )
        .await?;
    if row.get::<_, Option<bool>>(0) == Some(true) {
        return Ok(false);
    }
    client
        .batch_execute("alter system set synchronous_standby_names = 'synapsedb'")
        .await?;
    client
        .batch_execute("alter system set synchronous_commit = 'remote_write'")
        .await?;
    client.batch_execute("select pg_reload_conf()").await?;
    Ok(true)
}

/// The rows of a simple query as text, for questions whose columns the caller knows.
pub async fn rows(client: &Client, sql: &str) -> Result<Vec<Vec<Option<String>>>, ControlError> {
    let messages = client.simple_query(sql).await?;
    let mut rows = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            rows.push(
                (0..row.len())
                    .map(|at| row.get(at).map(str::to_owned))
                    .collect(),
            );
        }
    }
    Ok(rows)
}
