//! What is known of the server's own functions by name, without asking a catalog.
//!
//! Lists, each sorted for binary search and each saying what it may be used for. A name that is on
//! none of them is unknown, and so never harmless.

use super::statement::Effects;

/// What a function of the server itself does to its session, where it does anything.
pub fn named_effects(name: &str) -> Option<Effects> {
    let none = Effects::default();
    let has = |list: &[&str]| list.binary_search(&name).is_ok();
    if name == "set_config" {
        return Some(Effects {
            may_change_settings: true,
            ..none
        });
    }
    if name == "nextval" || has(PINS) {
        return Some(Effects {
            may_pin: true,
            draws_sequence: matches!(name, "nextval" | "setval"),
            ..none
        });
    }
    if matches!(name, "currval" | "lastval") {
        return Some(Effects {
            may_pin: true,
            uses_sequence_state: true,
            ..none
        });
    }
    has(RUNS_OTHERS).then_some(Effects {
        uses_sequence_state: false,
        ..Effects::ALL
    })
}

/// Leave something in the session: an advisory lock, a place in a sequence, a seed, an origin, a
/// temporary slot, a backup.
#[rustfmt::skip]
pub const PINS: &[&str] = &[
    "pg_advisory_lock", "pg_advisory_lock_shared", "pg_advisory_unlock", "pg_advisory_unlock_all",
    "pg_advisory_unlock_shared", "pg_backup_start", "pg_backup_stop",
    "pg_copy_logical_replication_slot", "pg_copy_physical_replication_slot",
    "pg_create_logical_replication_slot", "pg_create_physical_replication_slot",
    "pg_replication_origin_session_reset", "pg_replication_origin_session_setup",
    "pg_replication_origin_xact_reset", "pg_replication_origin_xact_setup", "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared", "setseed", "setval",
];

/// Run what they are not seen to run: a text, a view, a type's checks.
#[rustfmt::skip]
pub const RUNS_OTHERS: &[&str] = &[
    "array_in", "array_recv", "crosstab", "cursor_to_xml", "cursor_to_xmlschema", "database_to_xml",
    "database_to_xml_and_xmlschema", "database_to_xmlschema", "domain_in", "domain_recv",
    "multirange_in", "multirange_recv", "query_to_xml", "query_to_xml_and_xmlschema",
    "query_to_xmlschema", "range_in", "range_recv", "record_in", "record_recv", "schema_to_xml",
    "schema_to_xml_and_xmlschema", "schema_to_xmlschema", "table_to_xml",
    "table_to_xml_and_xmlschema", "table_to_xmlschema", "ts_rewrite", "ts_stat", "xpath_table",
];

/// Words that the grammar keeps from being a function's name, so that one before a parenthesis is no
/// call.
pub fn is_reserved(word: &str) -> bool {
    RESERVED.binary_search(&word).is_ok()
}

/// Words that a parenthesis may follow in the grammar, and that may be a function's name as well.
pub fn may_be_syntax(word: &str) -> bool {
    AMBIGUOUS.binary_search(&word).is_ok()
}

/// Functions of the server that change nothing in their session and are not volatile.
pub fn is_harmless(name: &str) -> bool {
    HARMLESS.binary_search(&name).is_ok()
}

/// Reserved words and those that only a column or type may be called by, in every version since 15.
#[rustfmt::skip]
const RESERVED: &[&str] = &[
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "between",
    "bigint", "bit", "boolean", "both", "case", "cast", "char", "character", "check", "coalesce",
    "collate", "column", "constraint", "create", "dec", "decimal", "default", "deferrable", "desc",
    "distinct", "do", "else", "end", "except", "exists", "extract", "false", "fetch", "float",
    "for", "foreign", "from", "grant", "greatest", "group", "grouping", "having", "in", "initially",
    "inout", "int", "integer", "intersect", "interval", "into", "lateral", "leading", "least",
    "limit", "national", "nchar", "none", "normalize", "not", "null", "nullif", "numeric", "offset",
    "on", "only", "or", "order", "out", "overlay", "placing", "position", "precision", "primary",
    "real", "references", "returning", "row", "select", "setof", "smallint", "some", "substring",
    "symmetric", "table", "then", "time", "timestamp", "to", "trailing", "treat", "trim", "true",
    "union", "unique", "user", "using", "values", "varchar", "variadic", "when", "where", "window",
    "with", "xmlattributes", "xmlconcat", "xmlelement", "xmlexists", "xmlforest", "xmlnamespaces",
    "xmlparse", "xmlpi", "xmlroot", "xmlserialize", "xmltable",
];

#[rustfmt::skip]
const AMBIGUOUS: &[&str] = &[
    "by", "cluster", "columns", "conflict", "copy", "cube", "escape", "explain", "filter", "first",
    "full", "ilike", "inner", "insert", "is", "join", "json", "json_array", "json_arrayagg",
    "json_exists", "json_object", "json_objectagg", "json_query", "json_scalar", "json_serialize",
    "json_table", "json_value", "key", "like", "materialized", "merge_action", "next", "operator",
    "over", "passing", "reindex", "repeatable", "rollup", "set", "sets", "similar", "stdin",
    "stdout", "vacuum", "zone",
];

#[rustfmt::skip]
const HARMLESS: &[&str] = &[
    "abs", "age", "array_agg", "array_append", "array_cat", "array_dims", "array_length",
    "array_lower", "array_position", "array_positions", "array_prepend", "array_remove",
    "array_replace", "array_to_json", "array_to_string", "array_upper", "ascii", "avg", "bit_and",
    "bit_length", "bit_or", "bool_and", "bool_or", "btrim", "cardinality", "cbrt", "ceil",
    "ceiling", "char_length", "character_length", "chr", "clock_timestamp", "col_description",
    "concat", "concat_ws", "convert_from", "convert_to", "corr", "cos", "count", "covar_pop",
    "covar_samp", "cume_dist", "current_database", "current_schema", "current_schemas",
    "current_setting", "date", "date_bin", "date_part", "date_trunc", "decode", "degrees",
    "dense_rank", "div", "encode", "every", "exp", "factorial", "first_value", "floor", "format",
    "format_type", "gcd", "gen_random_uuid", "generate_series", "generate_subscripts", "get_bit",
    "get_byte", "has_schema_privilege", "has_table_privilege", "initcap", "isfinite", "json_agg",
    "json_array_elements", "json_array_elements_text", "json_array_length", "json_build_array",
    "json_build_object", "json_each", "json_each_text", "json_extract_path",
    "json_extract_path_text", "json_object_agg", "json_object_keys", "json_populate_record",
    "json_populate_recordset", "json_strip_nulls", "json_to_record", "json_to_recordset",
    "json_typeof", "jsonb_agg", "jsonb_array_elements", "jsonb_array_elements_text",
    "jsonb_array_length", "jsonb_build_array", "jsonb_build_object", "jsonb_each",
    "jsonb_each_text", "jsonb_extract_path", "jsonb_extract_path_text", "jsonb_insert",
    "jsonb_object_agg", "jsonb_object_keys", "jsonb_path_exists", "jsonb_path_query",
    "jsonb_path_query_array", "jsonb_path_query_first", "jsonb_populate_record", "jsonb_pretty",
    "jsonb_set", "jsonb_strip_nulls", "jsonb_to_record", "jsonb_to_recordset", "jsonb_typeof",
    "justify_days", "justify_hours", "justify_interval", "lag", "last_value", "lcm", "lead",
    "length", "ln", "log", "log10", "lower", "lpad", "ltrim", "make_date", "make_interval",
    "make_time", "make_timestamp", "make_timestamptz", "max", "md5", "min", "mod", "mode", "now",
    "nth_value", "ntile", "num_nonnulls", "num_nulls", "obj_description", "octet_length",
    "parse_ident", "percent_rank", "percentile_cont", "percentile_disc", "pg_backend_pid",
    "pg_column_size", "pg_encoding_to_char", "pg_function_is_visible", "pg_get_constraintdef",
    "pg_get_expr", "pg_get_functiondef", "pg_get_indexdef", "pg_get_partkeydef",
    "pg_get_serial_sequence", "pg_get_triggerdef", "pg_get_userbyid", "pg_get_viewdef",
    "pg_is_in_recovery", "pg_sleep", "pg_table_is_visible", "pg_type_is_visible", "pg_typeof",
    "phraseto_tsquery", "pi", "plainto_tsquery", "power", "quote_ident", "quote_literal",
    "quote_nullable", "radians", "random", "range_agg", "rank", "regexp_count", "regexp_instr",
    "regexp_like", "regexp_match", "regexp_matches", "regexp_replace", "regexp_split_to_array",
    "regexp_split_to_table", "regexp_substr", "repeat", "replace", "reverse", "round", "row_number",
    "row_to_json", "rpad", "rtrim", "set_bit", "set_byte", "setweight", "sha224", "sha256",
    "sha384", "sha512", "shobj_description", "sign", "sin", "split_part", "sqrt", "starts_with",
    "statement_timestamp", "stddev", "stddev_pop", "stddev_samp", "string_agg", "string_to_array",
    "string_to_table", "strip", "strpos", "substr", "sum", "tan", "timeofday", "timezone",
    "to_char", "to_date", "to_hex", "to_json", "to_jsonb", "to_number", "to_regclass", "to_regtype",
    "to_timestamp", "to_tsquery", "to_tsvector", "transaction_timestamp", "translate", "trim_array",
    "trunc", "ts_headline", "ts_rank", "ts_rank_cd", "unnest", "upper", "var_pop", "var_samp",
    "variance", "version", "websearch_to_tsquery", "width_bucket", "xmlagg",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted() {
        for list in [RESERVED, AMBIGUOUS, HARMLESS, PINS, RUNS_OTHERS] {
            for pair in list.windows(2) {
                assert!(pair[0] < pair[1], "{pair:?}");
            }
        }
    }

    #[test]
    fn nothing_harmless_has_an_effect() {
        for name in HARMLESS {
            assert!(named_effects(name).is_none(), "{name}");
        }
    }
}
