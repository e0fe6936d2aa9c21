//! `synapsedb check`: what the nodes are like, what must be mended, and how. Changes nothing.
//!
//! What a node says is gathered into [`Facts`]; [`judge`] is pure.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use tokio_postgres::{Client, NoTls};

use super::demo::install::PgVersion;
use crate::config::{Config, Node, Secret};

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clocks further apart than this are a fault.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(1);

/// What one node says about itself.
#[derive(Debug, Clone, PartialEq)]
struct Facts {
    version: PgVersion,
    superuser: bool,
    in_recovery: bool,
    /// Seconds by which the node's clock is ahead of ours.
    clock_ahead_s: f64,
    databases: i64,
    /// Slots and origins that are not the proxy's, and senders to other standbys.
    foreign_slots: i64,
    foreign_origins: i64,
    foreign_senders: i64,
    settings: Vec<(String, String)>,
}

impl Facts {
    fn text(&self, name: &str) -> &str {
        let found = self.settings.iter().find(|(setting, _)| setting == name);
        found.map_or("", |(_, value)| value)
    }

    fn number(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or(0)
    }
}

/// Looks at every node and prints what it finds; fails where something must be mended.
pub async fn run(config: &Config) -> ExitCode {
    let mut faults = 0;
    let mut encodings = Vec::new();
    for node in &config.nodes {
        let place = format!("{} ({}:{})", node.name, node.host, node.port);
        match gather(config, node).await {
            Ok(facts) => {
                let found = judge(&facts, config);
                let more = if facts.text("in_use").is_empty() {
                    ""
                } else {
                    ", set up"
                };
                println!(
                    "{place}: PostgreSQL {}, {} databases{more}",
                    facts.version, facts.databases
                );
                for fault in &found {
                    println!("  - {fault}");
                }
                faults += found.len();
                encodings.push((node.name.clone(), facts.text("databases").to_owned()));
            }
            Err(text) => {
                println!("{place}: {text}");
                faults += 1;
            }
        }
    }
    for (name, list) in &encodings {
        if *list != encodings[0].1 {
            println!(
                "{name} and {} differ in their databases, encodings or collations:\n  {list}\n  {}\n  \
                 make them the same before the first start",
                encodings[0].0, encodings[0].1
            );
            faults += 1;
        }
    }
    if faults == 0 {
        println!("Nothing to mend.");
        return ExitCode::SUCCESS;
    }
    println!("{faults} to mend.");
    ExitCode::FAILURE
}

/// What must be mended on a node, each with the mend.
fn judge(facts: &Facts, config: &Config) -> Vec<String> {
    let mut faults = Vec::new();
    if !facts.version.is_supported() {
        faults.push(format!(
            "the version is too old: on it commits just after a start may not wait for a majority. \
             Needed: {}",
            PgVersion::SUPPORTED
        ));
    }
    if !facts.superuser {
        faults.push(format!(
            "user {0} is no superuser. As one: alter role \"{0}\" superuser",
            config.admin.user
        ));
    }
    if facts.in_recovery {
        faults.push("it is a standby of another server: promote it, or name that server".into());
    }
    for (name, wanted) in [
        ("wal_level", "logical"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
    ] {
        let value = facts.text(name);
        if value != wanted {
            faults.push(format!(
                "{name} is {value}. alter system set {name} = '{wanted}', then restart the server"
            ));
        }
    }
    let standbys = facts.text("synchronous_standby_names");
    if !matches!(standbys, "" | "synapsedb") {
        faults.push(format!(
            "synchronous_standby_names is {standbys:?}: other standbys are waited for. \
             alter system reset synchronous_standby_names, then reload"
        ));
    }
    if !facts.text("password_encryption").starts_with("scram") {
        faults.push(
            "password_encryption is not scram-sha-256: new passwords would be of no use here. \
             alter system set password_encryption = 'scram-sha-256', reload, set the passwords again"
                .into(),
        );
    }
    faults.extend(too_few(facts, config));
    if facts.clock_ahead_s.abs() > CLOCKS_APART_MAX.as_secs_f64() {
        faults.push(format!(
            "its clock is {:.1} s {} this machine's: run a time service on both",
            facts.clock_ahead_s.abs(),
            if facts.clock_ahead_s > 0.0 {
                "ahead of"
            } else {
                "behind"
            }
        ));
    }
    faults
}

/// Bounds of the server that the proxy would run into.
fn too_few(facts: &Facts, config: &Config) -> Vec<String> {
    // One slot a database, and as many again while a node that left is remembered by copies.
    let slots = 2 * facts.databases + facts.foreign_slots;
    let senders = facts.databases + 2 + facts.foreign_senders;
    // One origin for each database and term of a writer; the term before is still needed for a while.
    let origins = 2 * facts.databases + facts.foreign_origins;
    // Before 18 origins are bounded by the same setting as slots.
    let origins_setting = if facts.version.major >= 18 {
        "max_active_replication_origins"
    } else {
        "max_replication_slots"
    };
    let pool = i64::try_from(config.pool.max_connections).unwrap_or(i64::MAX);
    let connections = pool.saturating_add(10 + 3 * facts.databases);
    let wanted = [
        ("max_replication_slots", slots),
        ("max_wal_senders", senders),
        (origins_setting, origins),
        ("max_connections", connections),
    ];
    let mut faults = Vec::new();
    for (name, least) in wanted {
        let value = facts.number(name);
        if value < least {
            faults.push(format!(
                "{name} is {value}, needed are {least}. alter system set {name} = {least}, then restart the server"
            ));
        }
    }
    faults
}

/// One connection as the proxy's superuser; a failure says what to do.
pub(super) async fn connect(
    config: &Config,
    node: &Node,
    database: &str,
) -> Result<Client, String> {
    let mut options = tokio_postgres::Config::new();
    options
        .host(&node.host)
        .port(node.port)
        .user(&config.admin.user)
        .dbname(database)
        .application_name("synapsedb check")
        .options("-c synchronous_commit=local -c statement_timeout=0 -c search_path=pg_catalog")
        .connect_timeout(PATIENCE);
    if let Some(password) = config.admin.password.as_ref().map(Secret::expose) {
        options.password(password);
    }
    let opened = tokio::time::timeout(PATIENCE, options.connect(NoTls)).await;
    let opened = opened.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?;
    let (client, connection) = opened.map_err(|error| advice(&error, config))?;
    tokio::spawn(connection);
    Ok(client)
}

/// The server's words, and what they usually mean.
fn advice(error: &tokio_postgres::Error, config: &Config) -> String {
    let user = &config.admin.user;
    let variable = &config.admin.password_env;
    let Some(database_error) = error.as_db_error() else {
        let cause = std::error::Error::source(error);
        let words = cause.map_or_else(|| error.to_string(), ToString::to_string);
        if config.admin.password.is_none() && words.contains("password missing") {
            return format!(
                "it asks for {user}'s password: put it into the environment as {variable}"
            );
        }
        return format!("cannot be reached: {words}. Is it up, and are host and port right?");
    };
    let hint = match database_error.code().code() {
        "28P01" => format!("is the password in {variable} right?"),
        "28000" => "pg_hba.conf must let the proxy's address in".to_owned(),
        "3D000" => "admin.database must exist on every node".to_owned(),
        "53300" => "raise max_connections".to_owned(),
        "57P03" => "it is starting or stopping: try again".to_owned(),
        _ => String::new(),
    };
    format!(
        "{} ({}); {hint}",
        database_error.message(),
        database_error.code().code()
    )
}

async fn gather(config: &Config, node: &Node) -> Result<Facts, String> {
    let client = connect(config, node, &config.admin.database).await?;
    let words = |error: tokio_postgres::Error| {
        let source = error.as_db_error().map(|e| e.message().to_owned());
        source.unwrap_or_else(|| error.to_string())
    };
    let asked = SystemTime::now();
    let row = client
        .query_one("select extract(epoch from clock_timestamp())::float8", &[])
        .await
        .map_err(words)?;
    let took = asked.elapsed().unwrap_or_default();
    let ours = (asked + took / 2)
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let clock_ahead_s = row.get::<_, f64>(0) - ours.as_secs_f64();
    let row = client.query_one(FACTS, &[]).await.map_err(words)?;
    let settings = client.query(SETTINGS, &[]).await.map_err(words)?;
    let version: String = row.get("version");
    Ok(Facts {
        version: PgVersion::parse(&version)
            .ok_or_else(|| format!("unknown version {version:?}"))?,
        superuser: row.get("superuser"),
        in_recovery: row.get("in_recovery"),
        clock_ahead_s,
        databases: row.get("databases"),
        foreign_slots: row.get("foreign_slots"),
        foreign_origins: row.get("foreign_origins"),
        foreign_senders: row.get("foreign_senders"),
        settings: settings
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect(),
    })
}

const FACTS: &str = "
    select current_setting('server_version') as version,
           (select rolsuper from pg_roles where rolname = current_user) as superuser,
           pg_is_in_recovery() as in_recovery,
           (select count(*) from pg_database where datallowconn and not datistemplate) as databases,
           (select count(*) from pg_replication_slots where slot_name !~ '^synapsedb_') as foreign_slots,
           (select count(*) from pg_replication_origin where roname !~ '^synapsedb_') as foreign_origins,
           (select count(*) from pg_stat_replication where application_name <> 'synapsedb') as foreign_senders";

const SETTINGS: &str = "
    select name, setting from pg_settings
     where name in ('wal_level', 'fsync', 'full_page_writes', 'synchronous_standby_names', 'password_encryption',
                    'max_replication_slots', 'max_wal_senders', 'max_connections',
                    'max_active_replication_origins')
    union all
    select 'in_use', coalesce(max(slot_name)::text, '') from pg_replication_slots where slot_name ~ '^synapsedb_'
    union all
    select 'databases', string_agg(format('%s %s %s %s', datname, pg_encoding_to_char(encoding),
                                          datcollate, datctype), ', ' order by datname)
      from pg_database where datallowconn and not datistemplate";

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        let settings = [
            ("wal_level", "logical"),
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("synchronous_standby_names", ""),
            ("password_encryption", "scram-sha-256"),
            ("max_replication_slots", "10"),
            ("max_wal_senders", "10"),
            ("max_connections", "100"),
        ];
        Facts {
            version: PgVersion {
                major: 16,
                minor: 14,
            },
            superuser: true,
            in_recovery: false,
            clock_ahead_s: 0.01,
            databases: 2,
            foreign_slots: 0,
            foreign_origins: 0,
            foreign_senders: 0,
            settings: settings.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec(),
        }
    }

    fn set(facts: &mut Facts, name: &str, value: &str) {
        facts.settings.retain(|(setting, _)| setting != name);
        facts.settings.push((name.into(), value.into()));
    }

    #[test]
    fn a_good_node_has_nothing_to_mend() {
        assert_eq!(judge(&good(), &Config::default()), Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_named_with_its_mend() {
        let config = Config::default();
        for (name, value, sign) in [
            (
                "wal_level",
                "replica",
                "alter system set wal_level = 'logical'",
            ),
            ("fsync", "off", "fsync is off"),
            ("synchronous_standby_names", "other", "other standbys"),
            ("password_encryption", "md5", "scram-sha-256"),
            ("max_replication_slots", "3", "needed are 4"),
            ("max_wal_senders", "2", "max_wal_senders is 2"),
            ("max_connections", "20", "max_connections is 20"),
        ] {
            let mut facts = good();
            set(&mut facts, name, value);
            let text = judge(&facts, &config).join("\n");
            assert!(text.contains(sign), "{name} = {value}: {text}");
        }
        let mut facts = good();
        facts.superuser = false;
        facts.version = PgVersion {
            major: 16,
            minor: 8,
        };
        facts.clock_ahead_s = -3.0;
        facts.in_recovery = true;
        assert_eq!(judge(&facts, &config).len(), 4);
    }

    #[test]
    fn version_18_bounds_origins_by_their_own_setting() {
        let mut facts = good();
        facts.version = PgVersion {
            major: 18,
            minor: 4,
        };
        set(&mut facts, "max_active_replication_origins", "1");
        let faults = judge(&facts, &Config::default());
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains("max_active_replication_origins"));
    }
}
