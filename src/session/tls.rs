//! The client's side of the wire: plain TCP, or TLS on top of it, as one type.
//!
//! Reads the operator's certificate, and knows the hash of it that SCRAM binds a login to
//! (`tls-server-end-point`). It never sees what the bytes mean.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_certificate::{SignatureAlgorithm, X509Certificate};

/// The application protocol that `PostgreSQL` clients name; direct TLS is taken only with it.
pub const ALPN: &[u8] = b"postgresql";

/// A client's connection.
#[derive(Debug)]
pub enum ClientIo {
    /// Bytes in clear.
    Plain(TcpStream),
    /// Bytes under TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl ClientIo {
    /// Whether the bytes are encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Why the certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that can't be read, or holds no certificate or key.
    #[error("{path}: {fault}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A certificate and key that do not belong together, or of a kind that is not served.
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
}

/// The proxy's certificate, ready to be shown.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    /// What `SCRAM-SHA-256-PLUS` binds to; None where the certificate's signature names no hash, and
    /// then no binding is offered (as `PostgreSQL` does).
    pub endpoint: Option<Arc<[u8]>>,
}

impl Tls {
    /// Reads a certificate chain and its key, both PEM.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let fault = |path: &Path, fault: String| TlsError::File {
            path: path.display().to_string(),
            fault,
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect)
            .map_err(|e| fault(certificate, e.to_string()))?;
        let Some(leaf) = chain.first() else {
            return Err(fault(certificate, "holds no certificate".to_owned()));
        };
        let endpoint = endpoint(leaf);
        let key = PrivateKeyDer::from_pem_file(key).map_err(|e| fault(key, e.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self { acceptor, endpoint })
    }

    /// Does the TLS handshake. Dropping the future closes the socket; the caller sets the time limit.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }
}

/// RFC 5929: the certificate's hash by the hash of its own signature, but never by less than SHA-256.
fn endpoint(leaf: &CertificateDer<'_>) -> Option<Arc<[u8]>> {
    let parsed = X509Certificate::from_der(leaf.as_ref()).ok()?;
    let hash = match parsed.signature_algorithm()? {
        SignatureAlgorithm::RsaSha1
        | SignatureAlgorithm::RsaSha256
        | SignatureAlgorithm::EcdsaSha256 => Sha256::digest(leaf).to_vec(),
        SignatureAlgorithm::RsaSha384 | SignatureAlgorithm::EcdsaSha384 => {
            Sha384::digest(leaf).to_vec()
        }
        SignatureAlgorithm::RsaSha512 => Sha512::digest(leaf).to_vec(),
        _ => return None,
    };
    Some(hash.into())
}
