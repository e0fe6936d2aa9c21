//! What a node says about itself, for `synapsedb check`.
//!
//! Questions only: nothing here changes a node or judges it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use tokio_postgres::Client;

use super::connect;
use crate::cli::demo::install::PgVersion;
use crate::config::{Config, Node};
use crate::node::control::{self, State};
use crate::node::office;

/// How many tables of one kind are named.
const NAMED_MAX: usize = 5;

/// One node.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub version: PgVersion,
    pub superuser: bool,
    pub in_recovery: bool,
    /// Seconds by which the node's clock is ahead of ours.
    pub clock_ahead_s: f64,
    /// Slots and origins that are not the proxy's, and senders to other standbys.
    pub foreign_slots: i64,
    pub foreign_origins: i64,
    pub foreign_senders: i64,
    pub settings: BTreeMap<String, String>,
    /// Settings that a role or database has been given and that matter here: whose, name, value.
    pub given: Vec<(String, String, String)>,
    /// What it remembers of a cluster.
    pub state: Option<State>,
    /// Whether it holds an office as the writer.
    pub in_office: bool,
    /// The proxy's slots.
    pub slots: Vec<Slot>,
    /// Extensions that could be made there.
    pub available: Vec<String>,
    pub databases: Vec<Database>,
}

/// A slot of the proxy's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub name: String,
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub status: String,
    /// Bytes of log it keeps from being removed.
    pub kept: i64,
}

/// One database of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Database {
    pub name: String,
    /// Encoding and collation.
    pub kind: String,
    /// Versions by name.
    pub extensions: BTreeMap<String, String>,
    pub large_objects: i64,
    /// Some tables without a key, and how many there are.
    pub keyless: Vec<String>,
    pub keyless_count: i64,
}

impl Facts {
    pub fn text(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    pub fn number(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or(0)
    }

    /// One line.
    pub fn summary(&self) -> String {
        let databases = self.databases.len();
        let state = self
            .state
            .as_ref()
            .map_or("not set up yet".to_owned(), |s| {
                format!("set up, epoch {}, writer {}", s.epoch, s.writer)
            });
        format!(
            "PostgreSQL {}, {databases} databases, {state}",
            self.version
        )
    }
}

/// Asks a node everything; an error is in words for the operator.
pub async fn gather(config: &Config, node: &Node) -> Result<Facts, String> {
    let client = connect(config, node, &config.admin.database).await?;
    let clock_ahead_s = clock(&client).await?;
    let row = client.query_one(FACTS, &[]).await.map_err(|e| words(&e))?;
    let version: String = row.get("version");
    let superuser: bool = row.get("superuser");
    let settings = client.query(SETTINGS, &[]).await.map_err(|e| words(&e))?;
    let given = client.query(GIVEN, &[]).await.map_err(|e| words(&e))?;
    let mut facts = Facts {
        version: PgVersion::parse(&version)
            .ok_or_else(|| format!("its version {version:?} cannot be read"))?,
        superuser,
        in_recovery: row.get("in_recovery"),
        clock_ahead_s,
        foreign_slots: row.get("foreign_slots"),
        foreign_origins: row.get("foreign_origins"),
        foreign_senders: row.get("foreign_senders"),
        settings: settings.iter().map(|r| (r.get(0), r.get(1))).collect(),
        given: given
            .iter()
            .map(|r| (r.get(0), r.get(1), r.get(2)))
            .collect(),
        state: None,
        in_office: false,
        slots: slots(&client).await?,
        available: column(&client, AVAILABLE).await?,
        databases: Vec::new(),
    };
    if superuser {
        facts.state = control::read_state(&client)
            .await
            .map_err(|e| e.to_string())?;
        // A node that an older program set up keeps none.
        let offices = office::offices(&client).await;
        facts.in_office = offices.is_ok_and(|offices| !offices.held.is_empty());
    }
    for row in client.query(DATABASES, &[]).await.map_err(|e| words(&e))? {
        let (name, kind): (String, String) = (row.get(0), row.get(1));
        facts
            .databases
            .push(database(config, node, name, kind).await?);
    }
    Ok(facts)
}

async fn clock(client: &Client) -> Result<f64, String> {
    let asked = SystemTime::now();
    let row = client
        .query_one("select extract(epoch from clock_timestamp())::float8", &[])
        .await
        .map_err(|e| words(&e))?;
    let took = asked.elapsed().unwrap_or_default();
    let ours = (asked + took / 2)
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Ok(row.get::<_, f64>(0) - ours.as_secs_f64())
}

async fn slots(client: &Client) -> Result<Vec<Slot>, String> {
    let rows = client.query(SLOTS, &[]).await.map_err(|e| words(&e))?;
    let slot = |row: &tokio_postgres::Row| Slot {
        name: row.get(0),
        active: row.get(1),
        status: row.get(2),
        kept: row.get(3),
    };
    Ok(rows.iter().map(slot).collect())
}

async fn database(
    config: &Config,
    node: &Node,
    name: String,
    kind: String,
) -> Result<Database, String> {
    let client = connect(config, node, &name).await?;
    let extensions = client.query(EXTENSIONS, &[]).await.map_err(|e| words(&e))?;
    let keyless = client.query(KEYLESS, &[]).await.map_err(|e| words(&e))?;
    let large = client
        .query_one(LARGE_OBJECTS, &[])
        .await
        .map_err(|e| words(&e))?;
    Ok(Database {
        name,
        kind,
        extensions: extensions.iter().map(|r| (r.get(0), r.get(1))).collect(),
        large_objects: large.get(0),
        keyless: keyless.iter().take(NAMED_MAX).map(|r| r.get(0)).collect(),
        keyless_count: keyless.first().map_or(0, |row| row.get(1)),
    })
}

async fn column(client: &Client, sql: &str) -> Result<Vec<String>, String> {
    let rows = client.query(sql, &[]).await.map_err(|e| words(&e))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn words(error: &tokio_postgres::Error) -> String {
    let known = error.as_db_error().map(|e| e.message().to_owned());
    known.unwrap_or_else(|| error.to_string())
}

const FACTS: &str = "
    select current_setting('server_version') as version,
           (select rolsuper from pg_roles where rolname = current_user) as superuser,
           pg_is_in_recovery() as in_recovery,
           (select count(*) from pg_replication_slots where slot_name !~ '^synapsedb_') as foreign_slots,
           (select count(*) from pg_replication_origin where roname !~ '^synapsedb_') as foreign_origins,
           (select count(*) from pg_stat_replication where application_name not in ('synapsedb', 'synapsedb slot')) as foreign_senders";

const SETTINGS: &str = "
    select name, setting from pg_settings
     where name in ('wal_level', 'fsync', 'full_page_writes', 'synchronous_standby_names', 'password_encryption',
                    'max_replication_slots', 'max_wal_senders', 'max_connections', 'client_min_messages',
                    'max_active_replication_origins', 'max_slot_wal_keep_size')";

/// Whose settings would break a promise, or a commit's wait.
const GIVEN: &str = "
    select coalesce('role ' || quote_ident(pg_get_userbyid(nullif(s.setrole, 0))), 'database ' || quote_ident(d.datname), 'all'),
           split_part(c, '=', 1), substr(c, strpos(c, '=') + 1)
      from pg_db_role_setting s left join pg_database d on d.oid = s.setdatabase, unnest(s.setconfig) c
     where split_part(c, '=', 1) in ('synchronous_commit', 'client_min_messages') order by 1, 2";

const SLOTS: &str = "
    select slot_name::text, active, coalesce(wal_status, ''),
           coalesce(pg_wal_lsn_diff(case when pg_is_in_recovery() then null else pg_current_wal_lsn() end,
                                    restart_lsn), 0)::int8
      from pg_replication_slots where slot_name ~ '^synapsedb_' order by 1";

const AVAILABLE: &str = "select name::text from pg_available_extensions order by 1";

const DATABASES: &str = "
    select datname::text, format('%s %s %s', pg_encoding_to_char(encoding), datcollate, datctype)
      from pg_database where datallowconn and not datistemplate order by 1";

const EXTENSIONS: &str = "select extname::text, extversion from pg_extension order by 1";

const LARGE_OBJECTS: &str = "select count(*) from pg_largeobject_metadata";

const KEYLESS: &str = "
    select format('%I.%I', n.nspname, c.relname), count(*) over ()
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind = 'r' and c.relpersistence = 'p' and pg_get_replica_identity_index(c.oid) is null
       and n.nspname not in ('pg_catalog', 'information_schema', 'synapsedb') order by 1 limit 6";
