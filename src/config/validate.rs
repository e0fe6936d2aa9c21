//! What a value must be beyond its type. Returns all faults, each with the key it concerns.

use std::collections::BTreeSet;
use std::net::ToSocketAddrs;

use super::Config;

/// A key such as `node[1].port`, and what is wrong with its value and what is allowed.
type KeyFault = (String, String);

impl Config {
    /// All faults of the values; empty where the configuration can be used.
    pub(super) fn faults(&self) -> Vec<KeyFault> {
        let mut faults = Vec::new();
        self.check_addresses(&mut faults);
        self.check_files(&mut faults);
        self.check_nodes(&mut faults);
        self.check_numbers(&mut faults);
        for (key, value) in [
            ("admin.user", &self.admin.user),
            ("admin.database", &self.admin.database),
            ("admin.password_env", &self.admin.password_env),
        ] {
            if value.is_empty() {
                faults.push((key.into(), "must not be empty".into()));
            }
        }
        faults
    }

    fn check_addresses(&self, faults: &mut Vec<KeyFault>) {
        let listen = [
            ("listen.read_write", &self.listen.read_write),
            ("listen.read_only", &self.listen.read_only),
            ("listen.http", &self.listen.http),
        ];
        let mut taken = BTreeSet::new();
        for (key, address) in listen {
            if !address_is_good(address) {
                let text = format!(
                    "{address:?} is no address; allowed is \"host:port\", e.g. \"127.0.0.1:5000\""
                );
                faults.push((key.into(), text));
            } else if !address.ends_with(":0") && !taken.insert(address) {
                let text = format!("{address:?} is in use by another key of [listen]");
                faults.push((key.into(), text));
            }
        }
    }

    fn check_files(&self, faults: &mut Vec<KeyFault>) {
        let tls = [
            ("tls.certificate", &self.tls.certificate),
            ("tls.key", &self.tls.key),
        ];
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            let text = "certificate and key belong together: give both or neither";
            faults.push(("tls".into(), text.into()));
        }
        for (key, path) in tls {
            if let Some(path) = path
                && let Err(error) = std::fs::File::open(path)
            {
                faults.push((key.into(), format!("{}: {error}", path.display())));
            }
        }
        let spill = &self.replication.spill_directory;
        if !spill.is_dir() {
            let text = format!("{} is not a directory", spill.display());
            faults.push(("replication.spill_directory".into(), text));
        }
    }

    fn check_nodes(&self, faults: &mut Vec<KeyFault>) {
        if self.nodes.len().is_multiple_of(2) || self.nodes.len() > 15 {
            let text = format!(
                "{} given; a majority needs an odd number of [[node]] sections, 1 to 15 (usually 3)",
                self.nodes.len()
            );
            faults.push(("node".into(), text));
        }
        let mut names = BTreeSet::new();
        let mut places = BTreeSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let key = |name: &str| format!("node[{index}].{name}");
            let simple = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            if node.name.is_empty() || node.name.len() > 63 || !node.name.chars().all(simple) {
                let text = "allowed are 1 to 63 of the characters a-z, A-Z, 0-9, '_', '-', '.'";
                faults.push((key("name"), text.into()));
            } else if !names.insert(&node.name) {
                faults.push((key("name"), format!("{:?} is used twice", node.name)));
            }
            if node.host.is_empty() {
                faults.push((key("host"), "must be a host name or an IP address".into()));
            }
            if node.port == 0 {
                faults.push((key("port"), "must be 1 to 65535".into()));
            } else if !places.insert((&node.host, node.port)) {
                let text = format!("{}:{} is used twice", node.host, node.port);
                faults.push((key("port"), text));
            }
        }
    }

    fn check_numbers(&self, faults: &mut Vec<KeyFault>) {
        let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let day_ms = 86_400_000;
        let ranges = [
            (
                "pool.max_connections",
                wide(self.pool.max_connections),
                1,
                10_000,
            ),
            ("pool.queue_max", wide(self.pool.queue_max), 0, 1_000_000),
            (
                "pool.queue_timeout_ms",
                self.pool.queue_timeout_ms,
                1,
                day_ms,
            ),
            ("pool.idle_timeout_s", self.pool.idle_timeout_s, 1, 86_400),
            (
                "replication.queue_max_mib",
                self.replication.queue_max_mib,
                1,
                1 << 20,
            ),
            (
                "replication.report_interval_ms",
                self.replication.report_interval_ms,
                1,
                1000,
            ),
            (
                "replication.wal_sender_timeout_ms",
                self.replication.wal_sender_timeout_ms,
                500,
                60_000,
            ),
            (
                "limits.max_clients",
                wide(self.limits.max_clients),
                1,
                1_000_000,
            ),
            (
                "limits.handshake_timeout_ms",
                self.limits.handshake_timeout_ms,
                100,
                day_ms,
            ),
            (
                "limits.startup_max_bytes",
                u64::from(self.limits.startup_max_bytes),
                1000,
                1 << 20,
            ),
            (
                "limits.commit_wait_ms",
                self.limits.commit_wait_ms,
                100,
                day_ms,
            ),
            (
                "health.probe_interval_ms",
                self.health.probe_interval_ms,
                10,
                60_000,
            ),
            (
                "health.probe_failures",
                u64::from(self.health.probe_failures),
                1,
                100,
            ),
        ];
        for (key, value, low, high) in ranges {
            if value < low || value > high {
                faults.push((
                    key.into(),
                    format!("{value} given; allowed is {low} to {high}"),
                ));
            }
        }
        let report = self.replication.report_interval_ms;
        if report.saturating_mul(2) > self.replication.wal_sender_timeout_ms {
            let text = "must be at least twice replication.report_interval_ms, else a stream is cut off between two reports";
            faults.push(("replication.wal_sender_timeout_ms".into(), text.into()));
        }
    }
}

/// `host:port`, where the host is not looked up unless it is an address already.
fn address_is_good(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    if host.is_empty() || port.parse::<u16>().is_err() {
        return false;
    }
    if host.starts_with('[') || host.contains(':') {
        return address.to_socket_addrs().is_ok();
    }
    true
}
