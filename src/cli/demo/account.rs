//! As whom servers run, and where their files can be.
//!
//! `PostgreSQL` refuses to run as root. Root starts it as `postgres` or `nobody`, and the files must
//! then be where that account can go.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::signal;
use crate::ids::fnv1a;

/// Another user of this machine, as which root starts servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its user number.
    pub uid: u32,
    /// Its group number.
    pub gid: u32,
}

impl Account {
    /// None where servers can run as ourselves; else `postgres` if it is there, else `nobody`.
    pub fn for_servers() -> io::Result<Option<Self>> {
        if !signal::is_root() {
            return Ok(None);
        }
        let users = std::fs::read_to_string("/etc/passwd")?;
        let found = find(&users, "postgres").or_else(|| find(&users, "nobody"));
        found.map(Some).ok_or_else(|| {
            io::Error::other(
                "PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody; \
                 start this as an ordinary user",
            )
        })
    }

    /// A command that runs as this account.
    pub fn command(account: Option<&Self>, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some(account) = account {
            command.uid(account.uid).gid(account.gid);
            command.env("HOME", "/").env("USER", &account.name);
        }
        command
    }

    /// What to put before a command line so that it runs as this account.
    pub fn prefix(account: Option<&Self>) -> String {
        account.map_or(String::new(), |account| {
            format!(
                "setpriv --reuid {} --regid {} --clear-groups ",
                account.name, account.gid
            )
        })
    }

    /// Gives a file or folder to the account.
    pub fn give(account: Option<&Self>, path: &Path) -> io::Result<()> {
        match account {
            Some(account) => std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid)),
            None => Ok(()),
        }
    }

    /// Makes a folder (and those above it) that only the account can open.
    pub fn make_private_folder(account: Option<&Self>, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)?;
        Self::give(account, path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
    }

    /// Whether the account may pass through every folder down to `path`, and enter `path` itself.
    pub fn can_reach(account: Option<&Self>, path: &Path) -> bool {
        let Some(account) = account else {
            return true;
        };
        let Ok(path) = path.canonicalize() else {
            return false;
        };
        path.ancestors().all(|folder| {
            folder.metadata().is_ok_and(|meta| {
                let bit = if meta.uid() == account.uid {
                    0o100
                } else if meta.gid() == account.gid {
                    0o010
                } else {
                    0o001
                };
                meta.mode() & bit != 0
            })
        })
    }
}

fn find(users: &str, name: &str) -> Option<Account> {
    let mut fields = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields[0] == name)?
        .into_iter()
        .skip(2);
    Some(Account {
        name: name.to_owned(),
        uid: fields.next()?.parse().ok()?,
        gid: fields.next()?.parse().ok()?,
    })
}

/// The folder for servers and their data that belongs to the project in `folder`: its `.synapsedb`,
/// or, where the account cannot go there, one under /var/tmp named after it. Makes it.
/// `scripts/get-postgres` follows the same rule.
pub fn place(folder: &Path, account: Option<&Account>) -> io::Result<PathBuf> {
    let folder = folder.canonicalize()?;
    let near = folder.join(".synapsedb");
    std::fs::create_dir_all(&near)?;
    if Account::can_reach(account, &near) {
        return Ok(near);
    }
    let hash = fnv1a(folder.as_os_str().as_encoded_bytes());
    let far = PathBuf::from(format!("/var/tmp/synapsedb-{hash:016x}"));
    match std::fs::create_dir(&far) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // /var/tmp is everybody's: a folder that someone else made there is not ours to use.
    let meta = far.symlink_metadata()?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        let text = format!("{} belongs to someone else; remove it", far.display());
        return Err(io::Error::other(text));
    }
    std::fs::set_permissions(&far, std::fs::Permissions::from_mode(0o755))?;
    Ok(far)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_from_the_list_of_users() {
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533:nobody:/:/bin/false\n";
        let nobody = find(users, "nobody").expect("is there");
        assert_eq!((nobody.uid, nobody.gid), (65534, 65533));
        assert_eq!(find(users, "postgres"), None);
    }

    #[test]
    fn a_closed_folder_above_cannot_be_passed() {
        let top = tempfile::tempdir().expect("a folder");
        let inner = top.path().join("inner");
        std::fs::create_dir(&inner).expect("a folder");
        let stranger = Account {
            name: "stranger".into(),
            uid: 4_000_000,
            gid: 4_000_000,
        };
        let closed = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(top.path(), closed).expect("ours");
        assert!(!Account::can_reach(Some(&stranger), &inner));
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(top.path(), open).expect("ours");
        assert!(Account::can_reach(Some(&stranger), &inner));
        assert!(Account::can_reach(None, &inner));
    }
}
