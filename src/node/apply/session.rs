//! The settings of an applier's connection (REPLICATION rule 12), and texts that it sends. No setting of a role
//! or a database may have a say in how values are read and written.

use super::facts::TABLE_FACTS;

/// Set after connecting, so that no ALTER ROLE or ALTER DATABASE has a say (rule 12).
pub const SESSION: &str = "
set session_replication_role = 'replica';
set synchronous_commit = 'local';
set datestyle = 'ISO'; set intervalstyle = 'postgres'; set extra_float_digits = 3; set timezone = 'UTC';
set lc_monetary = 'C'; set xmloption = 'content'; set row_security = on; set bytea_output = 'hex';
set standard_conforming_strings = on; set default_transaction_read_only = off; set default_transaction_isolation = 'read committed';
set default_transaction_deferrable = off; set transform_null_equals = off; set array_nulls = on;
set statement_timeout = 0; set lock_timeout = 0; set idle_in_transaction_session_timeout = 0; set idle_session_timeout = 0;
set client_min_messages = 'error'; set plan_cache_mode = 'force_generic_plan'; set jit = off";

/// Values and names are UTF-8 on the way, whatever the database keeps; where it does not say what it keeps, they
/// are left as they are.
pub const ENCODING: &str = "select pg_catalog.set_config('client_encoding', \
     case pg_catalog.getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end, false)";

/// Kept out of error contexts, which foreign code could read.
pub const HIDE_PARAMETERS: &str =
    "select pg_catalog.set_config('log_parameter_max_length_on_error', '0', false)";

/// An index that is built beside the stream.
pub const NOTE_BUILD: &str = "insert into synapsedb.pending_indexes (command, settings) \
     values ($1::pg_catalog.text, $2::pg_catalog.jsonb)";

/// How the schema calls a role's runner.
pub const RUNNER_NAME: &str = "select 'synapsedb.' operator(pg_catalog.||) pg_catalog.quote_ident(synapsedb.runner_name($1::pg_catalog.name)::pg_catalog.text)";

/// A literal, with `standard_conforming_strings` on.
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Prepared once per connection.
pub const STATEMENTS: [(&str, &str); 4] = [
    (
        "mark",
        "select pg_catalog.pg_logical_emit_message(true, 'synapsedb', $1::pg_catalog.text)",
    ),
    (
        "place",
        "insert into synapsedb.applied_places (origin, lsn) select $1::pg_catalog.text, $2::pg_catalog.pg_lsn \
         from pg_catalog.pg_replication_origin_xact_setup($2::pg_catalog.pg_lsn, \
         '2000-01-01 00:00:00+00'::pg_catalog.timestamptz operator(pg_catalog.+) \
         ($3::pg_catalog.int8 operator(pg_catalog.*) '1 microsecond'::pg_catalog.interval))",
    ),
    (
        "forget",
        "delete from synapsedb.applied_places where origin operator(pg_catalog.=) $1::pg_catalog.text \
         and lsn operator(pg_catalog.<) $2::pg_catalog.pg_lsn",
    ),
    ("facts", TABLE_FACTS),
];
