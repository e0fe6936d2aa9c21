//! Whether writes can be acknowledged now, and if not, why: one line for `/healthz`, the page and alerts.
//!
//! Pure. It fails closed: what is not known is not healthy.

use crate::cluster::view::{Status, View};

/// Why a write would not be acknowledged; `Ok` where one would.
pub fn judge(view: &View) -> Result<(), String> {
    let writer = &view.nodes[view.writer.0];
    if writer.status != Status::InSync {
        let (name, status) = (&writer.name, writer.status.name());
        return Err(format!("the writer, {name}, is {status}"));
    }
    if let Some(held) = &view.held {
        return Err(format!(
            "commits wait: no follower can apply a unit ({held})"
        ));
    }
    if let Some(missing) = &view.missing {
        return Err(missing.clone());
    }
    if !view.quorum {
        let (in_sync, nodes) = (view.in_sync, view.nodes.len());
        return Err(format!(
            "write quorum lost: {in_sync} of {nodes} nodes in sync"
        ));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cluster::view::NodeView;
    use crate::ids::{Epoch, Lsn, NodeId};

    /// Three nodes, all well.
    pub fn good() -> View {
        let node = |at: usize| NodeView {
            id: NodeId(at),
            name: format!("node{}", at + 1),
            host: "<host>".to_owned(),
            port: 5432,
            status: Status::InSync,
            is_writer: at == 0,
            last_heartbeat: None,
            latency_ms: Some(0.5),
            lag_bytes: 0,
            lag_seconds: 0.0,
            indexes_owed: 0,
            queue_units: 0,
            queue_bytes: 0,
            problem: None,
        };
        View {
            nodes: (0..3).map(node).collect(),
            writer: NodeId(0),
            epoch: Epoch(7),
            quorum: true,
            in_sync: 3,
            written: Lsn(16),
            everywhere: Lsn(16),
            pending_units: 0,
            databases: vec!["app".to_owned()],
            asleep: Vec::new(),
            held: None,
            missing: None,
        }
    }

    #[test]
    fn each_reason_is_said() {
        assert_eq!(judge(&good()), Ok(()));
        let mut view = good();
        view.quorum = false;
        view.in_sync = 1;
        assert_eq!(
            judge(&view),
            Err("write quorum lost: 1 of 3 nodes in sync".to_owned())
        );
        let mut view = good();
        view.held = Some("duplicate key".to_owned());
        assert!(judge(&view).is_err_and(|why| why.contains("duplicate key")));
        let mut view = good();
        view.nodes[0].status = Status::Down;
        assert_eq!(judge(&view), Err("the writer, node1, is down".to_owned()));
    }
}
