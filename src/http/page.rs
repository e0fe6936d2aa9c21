//! `GET /`: the status as a page of plain HTML, for a first look without tools.
//!
//! Everything that comes from nodes or configuration is escaped.

use std::fmt::Write as _;

use super::status::{Node, Report};

const HEAD: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
<meta http-equiv=\"refresh\" content=\"5\"><meta name=\"viewport\" content=\"width=device-width\">\
<title>SynapseDB</title><style>\
body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3em .8em .3em 0;border-bottom:1px solid #ddd}\
.n{text-align:right}.good{color:#176b2c}.bad{color:#a8201a}</style>";

/// The page.
pub fn render(report: &Report) -> String {
    let mut page = HEAD.to_owned();
    let verdict = match &report.reason {
        None => "<p class=\"good\">Writes are acknowledged.</p>".to_owned(),
        Some(why) => format!(
            "<p class=\"bad\">Writes are not acknowledged: {}.</p>",
            text(why)
        ),
    };
    // A string takes all that is written to it.
    let _ = write!(
        page,
        "<h1>SynapseDB {}</h1>{verdict}<p>Epoch {}, writer {}, {} of {} nodes in sync, up for {} s.<br>\
         {} of at most {} clients, {} transactions not yet everywhere.</p>\
         <table><tr><th>Node<th>Address<th>Status<th class=\"n\">Latency, ms<th class=\"n\">In flight\
         <th class=\"n\">Lag, bytes<th class=\"n\">Lag, s<th class=\"n\">Queue, bytes<th>Problem</tr>",
        report.version,
        report.epoch,
        text(&report.writer),
        report.in_sync,
        report.nodes.len(),
        report.uptime_s,
        report.clients.connected,
        report.clients.limit,
        report.pending_units,
    );
    for node in &report.nodes {
        page.push_str(&row(node));
    }
    page.push_str("</table><p>Databases: ");
    page.push_str(&text(&report.databases.join(", ")));
    page.push_str(
        "</p><p><a href=\"/status\">status as JSON</a> · <a href=\"/healthz\">health</a> · \
         <a href=\"/metrics\">metrics</a></p></html>\n",
    );
    page
}

fn row(node: &Node) -> String {
    let class = if node.status == "in_sync" {
        "good"
    } else {
        "bad"
    };
    let writer = if node.is_writer { " (writer)" } else { "" };
    let latency = node
        .latency_ms
        .map_or("-".to_owned(), |ms| format!("{ms:.2}"));
    format!(
        "<tr><td>{}{writer}<td>{}:{}<td class=\"{class}\">{}<td class=\"n\">{latency}<td class=\"n\">{}\
         <td class=\"n\">{}<td class=\"n\">{:.1}<td class=\"n\">{}<td>{}</tr>",
        text(&node.name),
        text(&node.host),
        node.port,
        node.status,
        node.in_flight,
        node.lag_bytes,
        node.lag_seconds,
        node.queue_bytes,
        text(node.problem.as_deref().unwrap_or_default()),
    )
}

fn text(raw: &str) -> String {
    raw.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{health, status};

    #[test]
    fn the_page_shows_every_node_and_escapes() {
        let mut view = health::tests::good();
        view.nodes[1].problem = Some("<script>".to_owned());
        let page = render(&Report::of(&view, &status::tests::around()));
        for name in ["node1", "node2", "node3", "&lt;script&gt;", "&lt;host&gt;"] {
            assert!(page.contains(name), "{name}: {page}");
        }
        assert!(!page.contains("<script>"));
    }
}
