//! The one question to a connection that may carry something of its session: settings and ties.
//!
//! Every name and operator is qualified, for it runs under the client's own `search_path`; it changes
//! nothing. Rows whose name begins with `!` are no settings.

use std::fmt::Write;

use crate::node::settings::literal;
use crate::session::relay::Session;
use crate::session::state::Finding;

const FIXED: &str = "\
select name, setting from pg_catalog.pg_settings where source operator(pg_catalog.=) 'session' \
and context operator(pg_catalog.<>) 'internal' and name operator(pg_catalog.!~) '^(transaction_(isolation|read_only|deferrable)|seed)$' \
union all select '!role', pg_catalog.current_setting('role') \
union all select '!user', session_user::pg_catalog.text \
union all select '!temporary', '' where pg_catalog.pg_my_temp_schema() operator(pg_catalog.<>) 0 and (\
exists (select from pg_catalog.pg_class c where c.relnamespace operator(pg_catalog.=) pg_catalog.pg_my_temp_schema()) or \
exists (select from pg_catalog.pg_type t where t.typnamespace operator(pg_catalog.=) pg_catalog.pg_my_temp_schema()) or \
exists (select from pg_catalog.pg_proc p where p.pronamespace operator(pg_catalog.=) pg_catalog.pg_my_temp_schema())) \
union all select '!cursor', '' where exists (select from pg_catalog.pg_cursors) \
union all select '!lock', '' where exists (select from pg_catalog.pg_locks l where l.locktype operator(pg_catalog.=) 'advisory' \
and l.pid operator(pg_catalog.=) pg_catalog.pg_backend_pid()) \
union all select '!listen', '' where exists (select from pg_catalog.pg_listening_channels()) \
union all select '!prepared', '' where exists (select from pg_catalog.pg_prepared_statements s where s.from_sql)";

/// The question, with the custom settings that the session's texts named.
pub fn question<'a>(placeholders: impl Iterator<Item = &'a String>) -> String {
    let mut sql = FIXED.to_owned();
    for name in placeholders {
        let name = literal(name);
        // Writing to a String does not fail.
        let _ = write!(
            sql,
            " union all select {name}, pg_catalog.current_setting({name}, true) \
             where pg_catalog.current_setting({name}, true) operator(pg_catalog.<>) ''"
        );
    }
    sql
}

/// Reads the answer. `user` is who logged in.
pub fn read(rows: &[(String, Option<String>)], user: &str) -> Finding {
    let mut finding = Finding::default();
    for (name, value) in rows {
        let Some(value) = value else { continue };
        match name.as_str() {
            "!role" if value != "none" => {
                finding.settings.insert("role".to_owned(), value.clone());
            }
            "!user" if value != user => {
                let name = "session_authorization".to_owned();
                finding.settings.insert(name, value.clone());
            }
            "!role" | "!user" => {}
            tie if tie.starts_with('!') => {
                finding.pinned = true;
                finding.tie = Some(match tie {
                    "!temporary" => "a temporary object",
                    "!cursor" => "a cursor WITH HOLD",
                    "!lock" => "an advisory lock",
                    "!listen" => "a channel that it listens to",
                    _ => "a statement prepared by PREPARE",
                });
            }
            setting => {
                finding
                    .settings
                    .insert(setting.to_lowercase(), value.clone());
            }
        }
    }
    finding
}

impl Session {
    /// The answer to the probe is complete.
    pub(super) fn probed(&mut self) {
        let Some(lease) = &mut self.lease else { return };
        if self.own_failed {
            self.state.not_found();
            self.probe_failed = true;
        } else {
            let finding = read(&self.own_rows, &self.user);
            lease.carried.settings.clone_from(&finding.settings);
            lease.carried.tainted |= self.state.found(&finding);
        }
        self.own_rows.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_settings_and_ties() {
        let row = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        let rows = [
            row("TimeZone", "UTC"),
            row("!role", "none"),
            row("!user", "ann"),
        ];
        let found = read(&rows, "ann");
        assert_eq!(
            found.settings.get("timezone").map(String::as_str),
            Some("UTC")
        );
        assert_eq!((found.settings.len(), found.pinned), (1, false));
        let rows = [row("!role", "bob"), row("!user", "eve"), row("!lock", "")];
        let found = read(&rows, "ann");
        assert_eq!((found.settings.len(), found.pinned), (2, true));
    }

    #[test]
    fn custom_settings_are_asked_by_literal_name() {
        let names = ["a.b'c".to_owned()];
        assert!(question(names.iter()).contains("current_setting('a.b''c', true)"));
    }
}
