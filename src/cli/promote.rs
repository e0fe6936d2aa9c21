//! `synapsedb promote NODE`: asks the running proxy for a planned change of writer, and says what became of it.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::ConfigFile;
use crate::config::Config;
use crate::http::orders;

/// Longer than a change of writer takes in all.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who is to write.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// The node's name.
    pub node: String,
    #[command(flatten)]
    pub file: ConfigFile,
}

/// Why the proxy could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// Nobody answers.
    #[error("the proxy does not answer at listen.http = {address:?}: {source}")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not in time.
    #[error("the proxy did not answer within {PATIENCE:?}; `cluster_nodes` shows who writes")]
    Timeout,
}

/// Carries it out: 0 when the node is the writer, 1 when it is not.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode, OrderError> {
    let path = format!("/promote/{}", encoded(&arguments.node));
    let asked = post(config, &path);
    let answer = tokio::time::timeout(PATIENCE, asked).await;
    let answer = answer.map_err(|_| OrderError::Timeout)?;
    let (code, body) = answer.map_err(|source| OrderError::Unreachable {
        address: config.listen.http.clone(),
        source,
    })?;
    if code == 200 {
        print!("{body}");
        return Ok(ExitCode::SUCCESS);
    }
    eprint!("{body}");
    Ok(ExitCode::FAILURE)
}

async fn post(config: &Config, path: &str) -> std::io::Result<(u16, String)> {
    let address = reachable(&config.listen.http);
    let mut stream = TcpStream::connect(&address).await?;
    let key = orders::key(config).map_or_else(String::new, |key| {
        format!("Authorization: Bearer {key}\r\n")
    });
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\n{key}Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.unwrap_or_default(), body.to_owned()))
}

/// An address that means every one of this machine's is reached by the one that it always has.
fn reachable(listen: &str) -> String {
    match listen.rsplit_once(':') {
        Some(("0.0.0.0" | "" | "*", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => listen.to_owned(),
    }
}

/// For a path: whatever is not plain goes as its bytes.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_written_for_http() {
        assert_eq!(reachable("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(reachable("[::]:8080"), "[::1]:8080");
        assert_eq!(reachable("10.0.0.1:8080"), "10.0.0.1:8080");
        assert_eq!(encoded("n 1&"), "n%201%26");
    }
}
