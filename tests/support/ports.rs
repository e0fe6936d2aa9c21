//! Ports that no other test of this machine has, for as long as the value lives.

use std::fs::File;
use std::sync::atomic::{AtomicU16, Ordering};

use synapsedb::cli::demo::server::port_is_free;

/// Below the range from which systems take ports for outgoing connections: a server that is
/// stopped and started again must find its port free.
const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;

/// A port, and the lock that keeps other tests off it.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    _lock: File,
}

/// Takes a free port.
pub fn take() -> Port {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Each user has a folder of locks; between users the look at the port itself must do.
    let user = rustix::process::geteuid().as_raw();
    let folder = std::env::temp_dir().join(format!("synapsedb-test-ports-{user}"));
    let _ = std::fs::create_dir(&folder);
    let start = u16::try_from(std::process::id() % 997).expect("small") * 12;
    for _ in FIRST..LAST {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let number = FIRST + start.wrapping_add(step) % (LAST - FIRST);
        let path = folder.join(number.to_string());
        let Ok(lock) = File::options().create(true).append(true).open(&path) else {
            continue;
        };
        if lock.try_lock().is_ok() && port_is_free(number) {
            return Port {
                number,
                _lock: lock,
            };
        }
    }
    panic!("no free port between {FIRST} and {LAST}");
}
