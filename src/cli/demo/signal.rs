//! Processes by number: who is alive, who is whose child, and signals to them.
//!
//! Never signals a process that the caller did not name by its number.

use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Sends a signal; false where there is no such process (or it is not ours).
pub fn send(pid: i32, signal: Signal) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// Whether a process exists and is more than a dead one that nobody has fetched yet.
pub fn is_alive(pid: i32) -> bool {
    let Some(number) = Pid::from_raw(pid) else {
        return false;
    };
    match test_kill_process(number) {
        Ok(()) => !is_zombie(pid),
        Err(error) => error == rustix::io::Errno::PERM,
    }
}

/// The processes whose parent is `parent`; empty where /proc is not to be had.
pub fn children(parent: i32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| parent_of(*pid) == Some(parent))
        .collect()
}

/// Whether we are root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn is_zombie(pid: i32) -> bool {
    stat_fields(pid).is_some_and(|fields| fields.first().is_some_and(|state| state == "Z"))
}

fn parent_of(pid: i32) -> Option<i32> {
    stat_fields(pid)?.get(1)?.parse().ok()
}

/// What follows the name in /proc/PID/stat: state, parent, ... The name may hold spaces and brackets.
fn stat_fields(pid: i32) -> Option<Vec<String>> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let text = std::fs::read_to_string(path).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_alive_then_a_zombie_then_gone() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep is everywhere");
        let pid = i32::try_from(child.id()).expect("small");
        assert!(is_alive(pid));
        let me = i32::try_from(std::process::id()).expect("small");
        assert!(children(me).contains(&pid));
        assert!(send(pid, Signal::KILL));
        let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while is_alive(pid) && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(!is_alive(pid), "a zombie does not count as alive");
        child.wait().expect("reaped");
    }
}
