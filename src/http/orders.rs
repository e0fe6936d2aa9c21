//! Orders of operators over HTTP: what changes something needs a key that only who knows the admin's password has.
//!
//! The key is derived from that password with the salt and the iterations below, so that whoever reads it on the way
//! has neither the password nor a proof for a node. Where no password is configured, orders are taken from this machine
//! alone.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use subtle::ConstantTimeEq;

use super::door::Operators;
use super::limit::Limited;
use crate::cluster::reigns::Cluster;
use crate::config::Config;
use crate::ids::NodeId;
use crate::node::control;
use crate::wire::scram::verifier::Verifier;

const SALT: &[u8] = b"synapsedb orders";
const ITERATIONS: u32 = 100_000;

/// What an order must bring along; none where there is no password.
pub fn key(config: &Config) -> Option<String> {
    let password = config.admin.password.as_ref()?;
    let verifier = Verifier::of_password(password.expose().as_bytes(), SALT, ITERATIONS).ok()?;
    Some(control::secret_hash(&verifier.reveal()))
}

/// Whether an order from there may be carried out.
pub fn may_order(key: Option<&str>, headers: &HeaderMap, from: IpAddr) -> bool {
    let Some(key) = key else {
        return from.is_loopback();
    };
    let brought = headers.get(header::AUTHORIZATION);
    let brought = brought.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    brought.is_some_and(|brought| bool::from(brought.ct_eq(key.as_bytes())))
}

/// From where somebody asks.
#[derive(Clone, Copy, Debug)]
pub struct Peer(SocketAddr);

impl Connected<IncomingStream<'_, Limited>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Limited>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// Has a node become the writer; answers when it is, or with why it is not.
pub async fn promote(
    State(operators): State<Arc<Operators>>,
    ConnectInfo(from): ConnectInfo<Peer>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    if !may_order(operators.key(), &headers, from.0.ip()) {
        let text = "orders need the key of whoever knows the admin's password\n";
        return (StatusCode::UNAUTHORIZED, text).into_response();
    }
    let Some(cluster) = operators.cluster() else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "the cluster is not up yet\n",
        )
            .into_response();
    };
    let view = cluster.steward().view();
    let node = view.nodes.iter().find(|node| node.name == name);
    let Some(node) = node.map(|node| node.id) else {
        let names: Vec<&str> = view.nodes.iter().map(|node| node.name.as_str()).collect();
        let text = format!("there is no node {name}; there are {}\n", names.join(", "));
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    carry_out(&cluster, node, &name).await
}

async fn carry_out(cluster: &Cluster, node: NodeId, name: &str) -> Response {
    match cluster.promote(node).await {
        Ok(()) => format!("{name} is the writer\n").into_response(),
        Err(error) => (StatusCode::CONFLICT, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_needs_the_key_or_this_machine() {
        let (here, there) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([192, 0, 2, 1]));
        let mut headers = HeaderMap::new();
        assert!(may_order(None, &headers, here) && !may_order(None, &headers, there));
        assert!(!may_order(Some("abc"), &headers, here));
        headers.insert(
            header::AUTHORIZATION,
            header::HeaderValue::from_static("Bearer abd"),
        );
        assert!(!may_order(Some("abc"), &headers, here));
        headers.insert(
            header::AUTHORIZATION,
            header::HeaderValue::from_static("Bearer abc"),
        );
        assert!(may_order(Some("abc"), &headers, there));
    }
}
