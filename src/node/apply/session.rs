//! The settings of an applier's connection (REPLICATION rule 12), and texts that it sends. No setting of a role
//! or a database may have a say in how values are read and written.

use super::facts::TABLE_FACTS;

/// So that no ALTER ROLE or ALTER DATABASE has a say (rule 12).
const SETTINGS: [(&str, &str); 24] = [
    ("synapsedb.found", ""),
    ("session_replication_role", "replica"),
    ("synchronous_commit", "local"),
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("timezone", "UTC"),
    ("lc_monetary", "C"),
    ("xmloption", "content"),
    ("row_security", "on"),
    ("bytea_output", "hex"),
    ("standard_conforming_strings", "on"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("transform_null_equals", "off"),
    ("array_nulls", "on"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("client_min_messages", "error"),
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
];

/// Sets them, after connecting.
pub fn session() -> String {
    SETTINGS
        .map(|(name, value)| format!("set {name} = '{value}';"))
        .concat()
}

/// Sets them again behind code that may have set others; `$1` is the search path, `$2` the client's encoding.
pub fn restore() -> String {
    let set = SETTINGS
        .map(|(name, value)| format!(", pg_catalog.set_config('{name}', '{value}', false)"));
    format!(
        "select pg_catalog.set_config('search_path', $1::pg_catalog.text, false), \
         pg_catalog.set_config('client_encoding', $2::pg_catalog.text, false){}",
        set.concat()
    )
}

/// Values and names are UTF-8 on the way, whatever the database keeps; where it does not say what it keeps, they
/// are left as they are.
pub const ENCODING: &str = "select pg_catalog.set_config('client_encoding', \
     case pg_catalog.getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end, false)";

/// What the database and the role say of them.
pub const CONNECTION_SETTINGS: &str = "select pg_catalog.current_setting('search_path'), \
     pg_catalog.current_setting('client_encoding')";

/// One process at a time has an origin.
pub const TAKE_ORIGIN: &str =
    "select pg_catalog.pg_replication_origin_session_setup($1::pg_catalog.text)";

/// See [`TAKE_ORIGIN`].
pub const RELEASE_ORIGIN: &str = "select pg_catalog.pg_replication_origin_session_reset()";

/// Up to where the node has the history of each origin's writer.
pub const PLACES: &str =
    "select origin, pg_catalog.max(lsn)::pg_catalog.text from synapsedb.applied_places group by 1";

/// Kept out of error contexts, which foreign code could read.
pub const HIDE_PARAMETERS: &str =
    "select pg_catalog.set_config('log_parameter_max_length_on_error', '0', false)";

/// An index that is built beside the stream.
pub const NOTE_BUILD: &str = "insert into synapsedb.pending_indexes (command, settings, role) \
     values ($1::pg_catalog.text, $2::pg_catalog.jsonb, $3::pg_catalog.name)";

/// Locks a table against indexes that come into use unseen.
pub const HOLD_STILL: &str =
    "select synapsedb.hold_still($1::pg_catalog.text, $2::pg_catalog.text)";

/// How a table's checks are lifted and put back (`schema/checks.sql`). Parameters: schema, table (both text).
pub const CHECKS: &str =
    "select * from synapsedb.checks_to_lift($1::pg_catalog.text, $2::pg_catalog.text)";

/// How the schema calls a role's runner.
pub const RUNNER_NAME: &str = "select 'synapsedb.' operator(pg_catalog.||) pg_catalog.quote_ident(synapsedb.runner_name($1::pg_catalog.name)::pg_catalog.text)";

/// Behind a statement that must find one row: counts it, by one more dot. A transaction that counted another number
/// than it should can't set its place ([`STATEMENTS`]), so nobody need wait for the statements' answers before it
/// commits.
pub const COUNT: &str = " returning pg_catalog.set_config('synapsedb.found', \
     pg_catalog.current_setting('synapsedb.found') operator(pg_catalog.||) '.'::pg_catalog.text, false)";

/// How a count of so many rows reads.
pub fn count(rows: u32) -> String {
    (0..rows).map(|_| '.').collect()
}

/// The same check before foreign code runs, which could count for itself. Its count begins anew.
pub const FOUND: &str = "select case when pg_catalog.current_setting('synapsedb.found') operator(pg_catalog.=) $1::pg_catalog.text \
     then pg_catalog.set_config('synapsedb.found', '', false) \
     else synapsedb.not_found(pg_catalog.current_setting('synapsedb.found'), $1::pg_catalog.text) end";

/// A literal, with `standard_conforming_strings` on.
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The last unit's mark, and the place of the writer's history that is durable with this transaction: it goes into
/// a row, and moves the origin, if as many rows were found as should be. One expression and no subquery, since each
/// transaction runs it; what returns nothing counts as NULL.
const PLACE: &str = "insert into synapsedb.applied_places (origin, lsn) values ($1::pg_catalog.text, case \
       when pg_catalog.current_setting('synapsedb.found') operator(pg_catalog.<>) $4::pg_catalog.text \
       then synapsedb.not_found(pg_catalog.current_setting('synapsedb.found'), $4::pg_catalog.text)::pg_catalog.pg_lsn \
       when pg_catalog.set_config('synapsedb.found', '', false) is not null \
       and pg_catalog.pg_logical_emit_message(true, 'synapsedb unit', $5::pg_catalog.text) is not null \
       and (pg_catalog.pg_replication_origin_xact_setup($2::pg_catalog.pg_lsn, \
       '2000-01-01 00:00:00+00'::pg_catalog.timestamptz operator(pg_catalog.+) \
       ($3::pg_catalog.int8 operator(pg_catalog.*) '1 microsecond'::pg_catalog.interval)) is null) is not null \
       then $2::pg_catalog.pg_lsn end)";

/// Prepared once per connection. `mark` stands behind the rows of each unit of a transaction but the last.
pub const STATEMENTS: [(&str, &str); 4] = [
    (
        "mark",
        "select pg_catalog.pg_logical_emit_message(true, 'synapsedb unit', $1::pg_catalog.text)",
    ),
    ("place", PLACE),
    (
        "forget",
        "delete from synapsedb.applied_places where origin operator(pg_catalog.=) $1::pg_catalog.text \
         and lsn operator(pg_catalog.<) $2::pg_catalog.pg_lsn",
    ),
    ("facts", TABLE_FACTS),
];
