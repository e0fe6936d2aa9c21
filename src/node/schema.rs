//! What the proxy installs in each database of each node, as SQL text.
//!
//! The texts are for a superuser's connection, one simple Query each, with
//! `synchronous_commit=local`; [`INSTALL`] may be run again at any time. The contract of
//! `synapsedb.ddl_log` stands at the top of `schema/tables.sql`. Nothing here talks to a server.

/// Makes schema `synapsedb`, the applier's role, the publication and the event triggers.
pub const INSTALL: &str = concat!(
    include_str!("schema/tables.sql"),
    include_str!("schema/sleep.sql"),
    include_str!("schema/stack.sql"),
    include_str!("schema/log.sql"),
    include_str!("schema/alike.sql"),
    include_str!("schema/mend.sql"),
    include_str!("schema/views.sql"),
    include_str!("schema/end.sql"),
    include_str!("schema/roles.sql"),
    include_str!("schema/facts.sql"),
    include_str!("schema/checks.sql"),
    include_str!("schema/replica.sql"),
    include_str!("schema/triggers.sql"),
);

/// Takes all of it off one database again, but for the role.
pub const TEARDOWN: &str = include_str!("schema/teardown.sql");

/// Drops the applier's role, after [`TEARDOWN`] has run in every database.
pub const TEARDOWN_ROLE: &str = include_str!("schema/teardown_role.sql");

/// The commands that give another server this one's roles and memberships, as rows (kind, identity, command).
pub const ROLE_COMMANDS: &str = include_str!("schema/role_commands.sql");

/// The role under which a follower's applier connects.
pub const APPLIER_ROLE: &str = "synapsedb_applier";

/// Makes the runner of role `$1` for the secret whose SHA-256 is `$2` (hex); answers its quoted name.
pub const MAKE_RUNNER: &str = "select synapsedb.make_runner($1::name, $2::text)";

/// What a database defines, as rows (kind, identity, definition) without OIDs, for a superuser whose
/// `search_path` is `pg_catalog`. Two nodes hold the same where these rows are the same.
pub const FINGERPRINT: &str = include_str!("schema/fingerprint.sql");

/// The same for what belongs to the whole server: roles, memberships, settings, databases.
pub const CLUSTER_FINGERPRINT: &str = include_str!("schema/cluster_fingerprint.sql");

/// The tables whose rows nodes must hold alike, quoted and qualified.
pub const TABLES_TO_COMPARE: &str = include_str!("schema/tables_to_compare.sql");

/// Number and hash of a table's rows, whatever their order; `table` as [`TABLES_TO_COMPARE`] gives it.
/// Values are compared as text, so the session's output settings must be the same everywhere.
pub fn table_hash(table: &str) -> String {
    format!(
        "select pg_catalog.count(*)::pg_catalog.text, \
         coalesce(pg_catalog.sum(pg_catalog.hashtextextended(t.*::pg_catalog.text, 0)), 0)::pg_catalog.text \
         from only {table} t"
    )
}

/// Has `log_command`, by which the proxy logs commands itself, ask for the secret whose SHA-256 is `$1` (hex).
pub const SET_LOG_HASH: &str = "select synapsedb.set_log_hash($1::text)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn teardown_names_every_event_trigger() {
        for line in INSTALL.lines().filter(|l| l.contains("('!synapsedb_")) {
            let name = line.split('\'').nth(1).expect("a quoted name");
            assert!(TEARDOWN.contains(&format!("\"{name}\"")), "{name}");
        }
    }
}
