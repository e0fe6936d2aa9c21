//! A GET of HTTP/1.1, for the operators' door.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The status code and the body; code 0 where nobody answers.
pub async fn get(port: u16, path: &str) -> (u16, String) {
    let asked = tokio::time::timeout(Duration::from_secs(10), ask(port, path)).await;
    asked.ok().and_then(Result::ok).unwrap_or_default()
}

async fn ask(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.unwrap_or_default(), body.to_owned()))
}
