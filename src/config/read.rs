//! Text to [`Config`]: every unknown key and every wrong value is found in one pass.
//!
//! serde stops at its first complaint. So the document is parsed into a table with spans, and after
//! each complaint the entry it points at is set aside and the rest is tried again. A configuration
//! with a fault is never returned.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Config, Secret};

/// One thing wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file, as it was named.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// What is wrong and what is allowed.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.text)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: {source}", file = .file.display())]
    Unreadable {
        /// The file, as it was named.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It can be read, and these are its faults, by line.
    #[error("{}", list(.0))]
    Faults(Vec<Fault>),
}

fn list(faults: &[Fault]) -> String {
    let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
    lines.join("\n")
}

impl Config {
    /// Reads a file, with secrets from this process's environment.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Unreadable {
            file: file.to_owned(),
            source,
        })?;
        Self::parse(&text, file, &|name| std::env::var(name).ok())
    }

    /// Reads text; `file` names it in faults and is where relative paths begin.
    pub fn parse(
        text: &str,
        file: &Path,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut found = Vec::new();
        let (mut table, syntax) = DeTable::parse_recoverable(text);
        for error in syntax {
            let at = error.span().map_or(0, |span| span.start);
            found.push((at, error.message().to_owned()));
        }
        let original = table.clone();
        let mut config = decode(&mut table, &mut found);
        // After a syntax error much may look missing that is there: say only what is certain.
        config.anchor_paths(file);
        if found.is_empty() {
            config.read_password(environment, &mut |key, fault| {
                found.push((place(&original, key), fault));
            });
            for (key, fault) in config.faults() {
                found.push((place(&original, &key), format!("{key}: {fault}")));
            }
        } else if !table.get_ref().is_empty() {
            let set_aside = |key: &str| place(&table, key) != place(&original, key);
            for (key, fault) in config.faults() {
                if !set_aside(&key) && place(&table, &key) != 0 {
                    found.push((place(&original, &key), format!("{key}: {fault}")));
                }
            }
        }
        if found.is_empty() {
            return Ok(config);
        }
        found.sort();
        found.dedup();
        Err(ConfigError::Faults(
            found
                .into_iter()
                .map(|(at, fault)| Fault {
                    file: file.to_owned(),
                    line: line_of(text, at),
                    text: fault,
                })
                .collect(),
        ))
    }

    /// Relative paths in the file are meant from the file's folder.
    fn anchor_paths(&mut self, file: &Path) {
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        let paths = [
            &mut self.tls.certificate,
            &mut self.tls.key,
            &mut self.admin.password_file,
        ];
        for path in paths.into_iter().flatten() {
            *path = folder.join(&*path);
        }
        self.replication.spill_directory = folder.join(&self.replication.spill_directory);
    }

    fn read_password(
        &mut self,
        environment: &dyn Fn(&str) -> Option<String>,
        fault: &mut dyn FnMut(&str, String),
    ) {
        if let Some(value) = environment(&self.admin.password_env) {
            self.admin.password = Some(Secret::new(value));
        } else if let Some(path) = &self.admin.password_file {
            match std::fs::read_to_string(path) {
                Ok(text) => self.admin.password = Some(Secret::new(text.trim_end_matches('\n'))),
                Err(error) => fault(
                    "admin.password_file",
                    format!("admin.password_file: {}: {error}", path.display()),
                ),
            }
        }
    }
}

/// Decodes, setting aside what serde refuses, until the rest is accepted.
fn decode(table: &mut Spanned<DeTable<'_>>, found: &mut Vec<(usize, String)>) -> Config {
    loop {
        match Config::deserialize(table.clone().into_deserializer()) {
            Ok(config) => return config,
            Err(error) => {
                let span = error.span().unwrap_or(0..0);
                found.push((span.start, readable(error.message())));
                if !set_aside(table.get_mut(), &span) {
                    return Config::default();
                }
            }
        }
    }
}

/// serde's words in ours: "unknown field `prot`, expected one of ..." becomes plain advice.
fn readable(message: &str) -> String {
    let message = message.replace("unknown field", "unknown key");
    let message = message.replace("unknown variant", "unknown value");
    message.replace("expected one of", "allowed are")
}

/// Removes the one entry whose key or value is at `span`; false where there is none.
fn set_aside(table: &mut DeTable<'_>, span: &Range<usize>) -> bool {
    let mut hit = None;
    for (key, value) in table.iter() {
        if key.span() == *span || value.span() == *span {
            hit = Some(key.clone());
            break;
        }
    }
    if let Some(key) = hit {
        table.remove(&key);
        return true;
    }
    let mut inner = Vec::new();
    for (key, value) in table.iter() {
        inner.push((key.clone(), value.clone()));
    }
    for (key, mut value) in inner {
        if set_aside_in(value.get_mut(), span) {
            table.insert(key, value);
            return true;
        }
    }
    false
}

fn set_aside_in(value: &mut DeValue<'_>, span: &Range<usize>) -> bool {
    match value {
        DeValue::Table(table) => set_aside(table, span),
        DeValue::Array(items) => {
            if items.iter().any(|item| item.span() == *span) {
                let kept = items.iter().filter(|item| item.span() != *span).cloned();
                *items = kept.collect();
                return true;
            }
            items
                .iter_mut()
                .any(|item| set_aside_in(item.get_mut(), span))
        }
        _ => false,
    }
}

/// Where `key` (`pool.queue_max`, `node[1].port`) stands: the byte of its value, else of the
/// nearest table around it that is there, else 0.
fn place(table: &Spanned<DeTable<'_>>, key: &str) -> usize {
    let mut at = 0;
    let mut here: Option<&DeTable<'_>> = Some(table.get_ref());
    for part in key.split('.') {
        let (name, index) = match part.split_once('[') {
            Some((name, rest)) => (name, rest.trim_end_matches(']').parse::<usize>().ok()),
            None => (part, None),
        };
        let Some(mut value) = here.and_then(|table| table.get(name)) else {
            return at;
        };
        if let (Some(index), DeValue::Array(items)) = (index, value.get_ref()) {
            let Some(item) = items.get(index) else {
                return at;
            };
            value = item;
        }
        at = value.span().start;
        here = value.get_ref().as_table();
    }
    at
}

fn line_of(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or(text).matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ReadNodes;

    const NODES: &str = "[[node]]\nname = \"a\"\nhost = \"h1\"\nport = 1\n";

    fn read(text: &str) -> Result<Config, Vec<(usize, String)>> {
        match Config::parse(text, Path::new("proxy.toml"), &|_| None) {
            Ok(config) => Ok(config),
            Err(ConfigError::Faults(faults)) => {
                Err(faults.into_iter().map(|f| (f.line, f.text)).collect())
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn the_sample_is_the_default_and_names_every_key() {
        let sample = include_str!("../../proxy.toml");
        let read_as_is = read(sample).expect("proxy.toml is valid");
        let expected = Config {
            nodes: read_as_is.nodes.clone(),
            ..Config::default()
        };
        assert_eq!(read_as_is, expected);
        // With the optional keys switched on, every key must be there.
        let all = sample.replace("\n#= ", "\n");
        let table: toml::Table = all.parse().expect("valid with every key");
        for (section, keys) in keys() {
            let there = match &table[section] {
                toml::Value::Array(items) => items[0].as_table(),
                value => value.as_table(),
            }
            .expect("a table");
            for key in keys {
                assert!(there.contains_key(&key), "proxy.toml lacks {section}.{key}");
            }
        }
    }

    /// All keys, asked from serde itself: an unknown one makes it list those it knows.
    fn keys() -> Vec<(&'static str, Vec<String>)> {
        let names = |text: &str| {
            let error = toml::from_str::<Config>(text).expect_err("an unknown key");
            let message = error.message().to_owned();
            let list: Vec<String> = message
                .split('`')
                .skip(3)
                .step_by(2)
                .map(str::to_owned)
                .collect();
            assert!(!list.is_empty(), "{message}");
            list
        };
        let sections = names("zzz = 1");
        assert_eq!(sections.len(), 10, "{sections:?}");
        [
            "listen",
            "tls",
            "auth",
            "admin",
            "node",
            "pool",
            "replication",
            "reads",
            "limits",
            "health",
        ]
        .into_iter()
        .map(|section| {
            assert!(sections.iter().any(|s| s == section));
            let header = if section == "node" {
                "[[node]]".into()
            } else {
                format!("[{section}]")
            };
            (section, names(&format!("{header}\nzzz = 1")))
        })
        .collect()
    }

    #[test]
    fn every_fault_is_reported_with_its_line() {
        let text = format!(
            "{NODES}[pool]\nqueue_max = \"many\"\nspeed = 3\n[auth]\nmode = \"ldap\"\n[health]\nprobe_failures = 0\n"
        );
        let faults = read(&text).expect_err("four faults");
        let lines: Vec<usize> = faults.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [6, 7, 9, 11], "{faults:?}");
        assert!(faults[1].1.contains("unknown key `speed`"), "{faults:?}");
        assert!(faults[1].1.contains("`max_connections`"), "{faults:?}");
        assert!(faults[2].1.contains("`scram`"), "{faults:?}");
        assert!(faults[3].1.contains("health.probe_failures"), "{faults:?}");
    }

    #[test]
    fn reads_come_from_all_nodes_or_from_the_writer() {
        let nodes = |value: &str| {
            let text = format!("{NODES}[reads]\nnodes = \"{value}\"\n");
            read(&text).map(|config| config.reads.nodes)
        };
        assert_eq!(nodes("all"), Ok(ReadNodes::All));
        assert_eq!(nodes("writer"), Ok(ReadNodes::Writer));
        assert_eq!(read(NODES).map(|config| config.reads.nodes), nodes("all"));
        let faults = nodes("followers").expect_err("no such value");
        assert_eq!(faults.len(), 1, "{faults:?}");
        let (line, text) = &faults[0];
        assert_eq!(*line, 6);
        for part in ["`followers`", "`all`", "`writer`"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_broken_line_is_named() {
        let faults = read("[pool\nqueue_max = 1\n").expect_err("syntax");
        assert_eq!(faults[0].0, 1, "{faults:?}");
    }

    #[test]
    fn nodes_must_differ_and_be_odd() {
        let faults = read(&format!("{NODES}{NODES}")).expect_err("twice the same");
        let text = format!("{faults:?}");
        assert!(text.contains("node[1].name"), "{text}");
        assert!(text.contains("odd"), "{text}");
        assert_eq!(faults.iter().map(|f| f.0).max(), Some(8), "{text}");
        assert!(read("").is_err(), "no node at all");
    }

    #[test]
    fn the_password_comes_from_the_environment_and_is_never_shown() {
        let environment =
            |name: &str| (name == "SYNAPSEDB_ADMIN_PASSWORD").then(|| "hush".to_owned());
        let config = Config::parse(NODES, Path::new("proxy.toml"), &environment).expect("valid");
        assert_eq!(
            config.admin.password.as_ref().map(Secret::expose),
            Some("hush")
        );
        assert!(!format!("{config:?}").contains("hush"));
    }
}
