//! Which `PostgreSQL` installations there are and which of them can be used.
//!
//! A version in which commits just after a start may not wait for a majority is never offered
//! (docs/guarantees.md, versions).

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::account::Account;

/// A folder with `postgres`, `initdb` and `psql` that this machine can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgInstall {
    /// The folder.
    pub bin: PathBuf,
    /// What `postgres --version` says.
    pub version: PgVersion,
    /// Whether the extension `vector` can be made.
    pub pgvector: bool,
}

/// Major and minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgVersion {
    /// 16 of 16.9.
    pub major: u32,
    /// 9 of 16.9.
    pub minor: u32,
}

impl fmt::Display for PgVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl PgVersion {
    /// What is supported, in words.
    pub const SUPPORTED: &'static str = "15.13, 16.9, 17.5 or newer";

    /// Whether commits wait on this version from its first moment on.
    pub fn is_supported(self) -> bool {
        match self.major {
            0..15 => false,
            15 => self.minor >= 13,
            16 => self.minor >= 9,
            17 => self.minor >= 5,
            _ => true,
        }
    }

    /// Reads `postgres (PostgreSQL) 16.14 (Debian ...)`.
    pub fn parse(text: &str) -> Option<Self> {
        let number = text
            .split_whitespace()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let mut parts = number.split('.');
        let digits = |part: &str| {
            let end = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            part[..end].parse().ok()
        };
        Some(Self {
            major: digits(parts.next()?)?,
            minor: parts.next().and_then(digits).unwrap_or(0),
        })
    }
}

/// Why no installation can be used: every place that was looked at, with its reason.
#[derive(Debug, thiserror::Error)]
#[error("no usable PostgreSQL ({wanted}) found{}\nGet one with scripts/get-postgres, or name its folder of programs in SYNAPSEDB_PG_BIN.", reasons(.looked))]
pub struct NoInstall {
    wanted: String,
    looked: Vec<(PathBuf, String)>,
}

fn reasons(looked: &[(PathBuf, String)]) -> String {
    let lines: Vec<String> = looked
        .iter()
        .map(|(path, reason)| format!("\n  {}: {reason}", path.display()))
        .collect();
    lines.concat()
}

/// What is asked of an installation.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Only this major version.
    pub major: Option<u32>,
    /// Only one that has pgvector.
    pub pgvector: bool,
}

impl PgInstall {
    /// The first usable one of: `named` (from `SYNAPSEDB_PG_BIN`; then nothing else is looked at), PATH,
    /// /usr/lib/postgresql, what `scripts/get-postgres` put under `places`. `account` is who will run it.
    pub fn find(
        wanted: &Wanted,
        named: Option<&Path>,
        places: &[PathBuf],
        account: Option<&Account>,
    ) -> Result<Self, NoInstall> {
        let candidates = match named {
            Some(bin) => vec![bin.to_owned()],
            None => candidates(places),
        };
        let mut looked = Vec::new();
        for bin in candidates {
            match Self::examine(&bin, account).and_then(|found| found.suits(wanted)) {
                Ok(found) => return Ok(found),
                Err(reason) => looked.push((bin, reason)),
            }
        }
        let mut words = match wanted.major {
            Some(major) => format!("version {major}"),
            None => PgVersion::SUPPORTED.to_owned(),
        };
        if wanted.pgvector {
            words.push_str(", with pgvector");
        }
        Err(NoInstall {
            wanted: words,
            looked,
        })
    }

    /// Looks at one folder of programs.
    pub fn examine(bin: &Path, account: Option<&Account>) -> Result<Self, String> {
        for program in ["postgres", "initdb"] {
            if !bin.join(program).is_file() {
                return Err(format!("has no {program}"));
            }
        }
        if !Account::can_reach(account, bin) {
            let name = account.map_or("", |account| account.name.as_str());
            return Err(format!(
                "user {name}, as which servers run here, cannot go there"
            ));
        }
        let text = run(&bin.join("postgres"), "--version")?;
        let version = PgVersion::parse(&text).ok_or_else(|| format!("says {text:?}"))?;
        let share = run(&bin.join("pg_config"), "--sharedir").unwrap_or_default();
        let shares = [
            PathBuf::from(share.trim()),
            bin.join("../share/postgresql"),
            bin.join("../share"),
        ];
        let pgvector = shares
            .iter()
            .any(|share| share.is_absolute() && share.join("extension/vector.control").is_file());
        Ok(Self {
            bin: bin.canonicalize().map_err(|error| error.to_string())?,
            version,
            pgvector,
        })
    }

    /// The path of one of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    fn suits(self, wanted: &Wanted) -> Result<Self, String> {
        if !self.version.is_supported() {
            return Err(format!(
                "is {}; needed is {}",
                self.version,
                PgVersion::SUPPORTED
            ));
        }
        if wanted
            .major
            .is_some_and(|major| major != self.version.major)
        {
            return Err(format!("is {}", self.version));
        }
        if wanted.pgvector && !self.pgvector {
            return Err(format!("is {} without pgvector", self.version));
        }
        Ok(self)
    }
}

fn run(program: &Path, argument: &str) -> Result<String, String> {
    let output = Command::new(program)
        .arg(argument)
        .output()
        .map_err(|error| format!("{} does not run: {error}", program.display()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(format!("{} fails: {words}", program.display()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn candidates(places: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Some(path) = std::env::var_os("PATH") {
        found.extend(std::env::split_paths(&path).filter(|folder| folder.join("initdb").is_file()));
    }
    let debian = Path::new("/usr/lib/postgresql");
    found.extend(folders_with_bin(debian));
    for place in places {
        for version in folders(&place.join("pg")) {
            found.extend(folders_with_bin(&version));
            for package in folders(&version) {
                found.extend(folders_with_bin(&package));
            }
        }
    }
    found
}

/// `bin` of each folder in `place` that has servers in it; for numbered folders the newest first.
fn folders_with_bin(place: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = folders(place)
        .into_iter()
        .map(|folder| folder.join("bin"))
        .filter(|bin| bin.join("initdb").is_file())
        .collect();
    if place.starts_with("/usr/lib/postgresql") {
        found.reverse();
    }
    found
}

fn folders(place: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(place) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_the_fix_are_refused() {
        let read = |text| PgVersion::parse(text).expect("a version");
        for (text, good) in [
            ("postgres (PostgreSQL) 14.20", false),
            (
                "postgres (PostgreSQL) 15.12 (Debian 15.12-0+deb12u1)",
                false,
            ),
            ("postgres (PostgreSQL) 15.13", true),
            ("postgres (PostgreSQL) 16.8", false),
            ("postgres (PostgreSQL) 16.14", true),
            ("postgres (PostgreSQL) 17.4", false),
            ("postgres (PostgreSQL) 17.5", true),
            ("postgres (PostgreSQL) 18.0", true),
            ("postgres (PostgreSQL) 19devel", true),
        ] {
            assert_eq!(read(text).is_supported(), good, "{text}");
        }
        assert_eq!(PgVersion::parse("nothing"), None);
    }

    #[test]
    fn a_folder_without_servers_is_named_with_its_reason() {
        let empty = tempfile::tempdir().expect("a folder");
        let error = PgInstall::find(&Wanted::default(), Some(empty.path()), &[], None)
            .expect_err("nothing there");
        assert!(error.to_string().contains("has no postgres"), "{error}");
        assert!(error.to_string().contains("get-postgres"), "{error}");
    }
}
