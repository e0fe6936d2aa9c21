//! What a startup packet asks for: user, database, settings. Text only, no socket.
//!
//! Reads `options` as `PostgreSQL` splits it; everything that is not the proxy's own to decide
//! becomes a setting that the node will judge.

use crate::error::{ClientError, Refusal};
use crate::node::carried::Settings;
use crate::wire::startup::SessionRequest;

/// `PostgreSQL` cuts longer names off (`NAMEDATALEN`).
const NAME_BYTES: usize = 63;

/// A startup packet, understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Wish {
    /// The role.
    pub user: String,
    /// The database; the role's name where none was given.
    pub database: String,
    /// What to set, names in lower case.
    pub settings: Settings,
}

impl Wish {
    /// Reads the parameters of a startup packet.
    pub fn read(request: &SessionRequest) -> Result<Self, ClientError> {
        let user = request.get("user").filter(|user| !user.is_empty());
        let user = cut(user.ok_or(ClientError::NoUser)?);
        let database = request
            .get("database")
            .filter(|database| !database.is_empty());
        let database = database.map_or_else(|| user.clone(), cut);
        if request.get("replication").is_some_and(asks_for_replication) {
            return Err(ClientError::Refused(Refusal::Replication));
        }
        let mut settings = Settings::new();
        if let Some(options) = request.get("options") {
            read_options(options, &mut settings)?;
        }
        let own = |name: &str| matches!(name, "user" | "database" | "replication" | "options");
        for (name, value) in &request.parameters {
            if !own(name) && !name.starts_with("_pq_.") {
                settings.insert(name.to_ascii_lowercase(), value.clone());
            }
        }
        Ok(Self {
            user,
            database,
            settings,
        })
    }
}

fn cut(name: &str) -> String {
    let mut end = name.len().min(NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

/// Anything but a plain no; `PostgreSQL` takes unambiguous beginnings of its boolean words too.
fn asks_for_replication(value: &str) -> bool {
    let value = value.trim().to_ascii_lowercase();
    let begins = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    !(value == "0" || begins("false", 1) || begins("no", 1) || begins("off", 2))
}

/// `-c name=value`, `-cname=value` and `--name=value`; in names, `-` means `_`.
fn read_options(options: &str, settings: &mut Settings) -> Result<(), ClientError> {
    let mut words = split(options).into_iter();
    while let Some(word) = words.next() {
        let bad = || ClientError::StartupOptions {
            switch: word.clone(),
        };
        let pair = if let Some(long) = word.strip_prefix("--") {
            long.to_owned()
        } else if word == "-c" {
            words.next().ok_or_else(bad)?
        } else if let Some(pair) = word.strip_prefix("-c") {
            pair.to_owned()
        } else {
            return Err(bad());
        };
        let (name, value) = pair
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(bad)?;
        settings.insert(
            name.replace('-', "_").to_ascii_lowercase(),
            value.to_owned(),
        );
    }
    Ok(())
}

/// Splits at white space; a backslash takes the next character as it is.
fn split(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        if character.is_ascii_whitespace() || character == '\x0b' {
            words.extend(word.take());
            continue;
        }
        let taken = if character == '\\' {
            characters.next()
        } else {
            Some(character)
        };
        word.get_or_insert_default().extend(taken);
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parameters: &[(&str, &str)]) -> Result<Wish, ClientError> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Wish::read(&SessionRequest {
            major: 3,
            minor: 0,
            parameters: parameters.iter().map(owned).collect(),
        })
    }

    #[test]
    fn names_have_their_defaults_and_length() {
        assert_eq!(read(&[("database", "d")]), Err(ClientError::NoUser));
        assert_eq!(read(&[("user", "")]), Err(ClientError::NoUser));
        let wish = read(&[("user", "ann")]).expect("complete");
        assert_eq!((wish.user.as_str(), wish.database.as_str()), ("ann", "ann"));
        let long = "ü".repeat(40);
        let wish = read(&[("user", &long)]).expect("complete");
        assert_eq!(wish.user, "ü".repeat(31));
    }

    #[test]
    fn replication_is_refused_in_all_its_spellings() {
        for value in ["true", "on", "1", "database", "yes", "t", "o", ""] {
            let refused = Err(ClientError::Refused(Refusal::Replication));
            assert_eq!(
                read(&[("user", "a"), ("replication", value)]),
                refused,
                "{value:?}"
            );
        }
        for value in ["false", "off", "0", "no", "n", "f", "of"] {
            assert!(
                read(&[("user", "a"), ("replication", value)]).is_ok(),
                "{value:?}"
            );
        }
    }

    #[test]
    fn options_are_split_as_the_server_does() {
        let options = r"-c search_path=a,b --Work-Mem=1MB  -cdatestyle=ISO,\ MDY -c x.y=\\";
        let wish = read(&[
            ("user", "a"),
            ("options", options),
            ("DateStyle", "SQL"),
            ("_pq_.z", "1"),
        ]);
        let wish = wish.expect("readable");
        let settings: Vec<_> = wish
            .settings
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        let expected = [
            ("datestyle", "SQL"),
            ("search_path", "a,b"),
            ("work_mem", "1MB"),
            ("x.y", "\\"),
        ];
        assert_eq!(settings, expected);
        for options in ["-d 1", "-c", "-c name", "--name", "--=x", "word"] {
            let read = read(&[("user", "a"), ("options", options)]);
            assert!(
                matches!(read, Err(ClientError::StartupOptions { .. })),
                "{options:?}"
            );
        }
    }
}
