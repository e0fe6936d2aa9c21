//! The operators' door: answers `/`, `/status`, `/healthz` and `/metrics` from snapshots.
//!
//! It is open before the cluster is up, so that a long first contact can be told from a dead program.
//! It asks no password for what changes nothing, and a key for orders (`orders.rs`): it belongs on an inside address. Guards no promise of the
//! cluster; when it fails, clients do not notice.

use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::limit::Limited;
use super::status::{Around, Report};
use super::{health, metrics, orders, page};
use crate::cluster::reigns::Cluster;
use crate::node::pool::Pools;

/// What there is to tell once the cluster is up.
pub struct Running {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Connections for clients' work.
    pub pools: Arc<Pools>,
    /// How many clients are connected, and how many may be.
    pub clients: Box<dyn Fn() -> (usize, usize) + Send + Sync>,
}

/// What the door knows.
pub struct Operators {
    started: Instant,
    handle: Option<PrometheusHandle>,
    running: OnceLock<Running>,
    /// What orders must bring along.
    key: Option<String>,
    /// Cancelled when the proxy begins to stop.
    stopping: CancellationToken,
}

impl Operators {
    /// Before the cluster is up.
    pub fn new(
        handle: Option<PrometheusHandle>,
        key: Option<String>,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            key,
            started: Instant::now(),
            handle,
            running: OnceLock::new(),
            stopping,
        })
    }

    /// The cluster is up.
    pub fn set_running(&self, running: Running) {
        // A second one would be a fault of the caller's; the first stays.
        let _ = self.running.set(running);
    }

    /// What orders must bring along.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The cluster, once it is up.
    pub fn cluster(&self) -> Option<Arc<Cluster>> {
        self.running
            .get()
            .map(|running| Arc::clone(&running.cluster))
    }

    fn health(&self) -> Result<(), String> {
        if self.stopping.is_cancelled() {
            return Err("the proxy is shutting down".to_owned());
        }
        let running = self.running.get().ok_or(STARTING)?;
        health::judge(&running.cluster.steward().view())
    }

    fn around(&self, running: &Running) -> Around {
        Around {
            uptime: self.started.elapsed(),
            now: SystemTime::now(),
            clients: (running.clients)(),
            pools: running.pools.status(),
        }
    }

    fn report(&self) -> Option<Report> {
        let running = self.running.get()?;
        let mut report = Report::of(&running.cluster.steward().view(), &self.around(running));
        if let Err(why) = self.health() {
            report.healthy = false;
            report.reason = Some(why);
        }
        Some(report)
    }

    fn render_metrics(&self) -> Option<String> {
        if let Some(running) = self.running.get() {
            let view = running.cluster.steward().view();
            metrics::refresh(&view, &self.around(running), self.health().is_ok());
        }
        self.handle.as_ref().map(PrometheusHandle::render)
    }
}

const STARTING: &str = "the proxy is starting: the cluster is not up yet";

/// Answers until `stop`. Dropping it closes the door.
pub async fn serve(listener: TcpListener, operators: Arc<Operators>, stop: CancellationToken) {
    let router = Router::new()
        .route("/", get(index))
        .route("/status", get(status))
        .route("/healthz", get(healthz))
        .route("/metrics", get(scrape))
        .route("/promote/{node}", post(orders::promote))
        .fallback(nothing_here)
        .with_state(Arc::clone(&operators));
    let upkeep = async {
        loop {
            tokio::time::sleep(metrics::UPKEEP).await;
            if let Some(handle) = &operators.handle {
                handle.run_upkeep();
            }
        }
    };
    let service = router.into_make_service_with_connect_info::<orders::Peer>();
    let serving = axum::serve(Limited::new(listener), service);
    tokio::select! {
        ended = serving => {
            if let Err(error) = ended {
                tracing::error!(%error, "the door for operators has closed");
            }
        }
        () = upkeep => {}
        () = stop.cancelled() => {}
    }
}

async fn index(State(operators): State<Arc<Operators>>) -> Response {
    match operators.report() {
        Some(report) => Html(page::render(&report)).into_response(),
        None => unavailable(STARTING),
    }
}

async fn status(State(operators): State<Arc<Operators>>) -> Response {
    match operators.report() {
        Some(report) => Json(report).into_response(),
        None => unavailable(STARTING),
    }
}

/// Whether writes can be acknowledged; with `?live` only whether the program answers.
async fn healthz(State(operators): State<Arc<Operators>>, uri: Uri) -> Response {
    if uri.query() == Some("live") {
        return "alive\n".into_response();
    }
    match operators.health() {
        Ok(()) => "ok\n".into_response(),
        Err(why) => unavailable(&why),
    }
}

async fn scrape(State(operators): State<Arc<Operators>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    match operators.render_metrics() {
        Some(text) => (kind, text).into_response(),
        None => unavailable("metrics are counted by another part of this process"),
    }
}

async fn nothing_here() -> Response {
    let text = "nothing here; there are /, /status, /healthz, /healthz?live and /metrics\n";
    (StatusCode::NOT_FOUND, text).into_response()
}

fn unavailable(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}
