//! Processes by number: who is alive, who is whose child, and signals to them.
//!
//! Never signals a process that the caller did not name by its number.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};

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

/// Ends another process when this one ends in any way, by SIGKILL too. Dropped, it is called off.
#[derive(Debug)]
pub struct DieWithUs(Child);

impl DieWithUs {
    /// A shell waits for the end of a pipe that only we hold open.
    pub fn new(pid: i32) -> std::io::Result<Self> {
        let script = "cat >/dev/null; kill -CONT $1; kill -QUIT $1; sleep 5; kill -KILL $1";
        Command::new("sh")
            .args(["-c", script, "die-with-us", &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map(Self)
    }

    /// Closes our end of the pipe, as our death would.
    pub fn let_go(&mut self) {
        self.0.stdin = None;
    }
}

impl Drop for DieWithUs {
    fn drop(&mut self) {
        // The whole group: the shell and its cat.
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
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
