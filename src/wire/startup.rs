//! The packets that open a connection, which carry no type byte.
//!
//! Only reads what is there: bytes behind an `SSLRequest` are left in the buffer, and refusing them
//! is the caller's duty, for they were sent in clear.

use crate::wire::error::WireError;
use crate::wire::read::Reader;

/// The longest startup packet `PostgreSQL` takes, its length word not counted.
const MAX_BODY_BYTES: u32 = 10_000;
/// 1234 in the high half, 5678 and onwards in the low one.
pub(super) const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// What a client opens with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Startup {
    /// The first byte of a TLS handshake, sent without asking; no byte belongs to this step.
    DirectTls,
    /// May TLS begin?
    Ssl,
    /// May GSSAPI encryption begin?
    Gss,
    /// Cancel what another connection does.
    Cancel(CancelKey),
    /// A session is asked for.
    Session(SessionRequest),
}

/// Names a connection for cancelling; the key has 4 bytes, or up to 256 since protocol 3.2.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CancelKey {
    /// The backend's process number.
    pub pid: u32,
    /// Its secret.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelKey")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// A startup message: version and parameters in the order sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRequest {
    /// 3 for all that can be served.
    pub major: u16,
    /// 0, or 2 since `PostgreSQL` 18; anything else is to be negotiated.
    pub minor: u16,
    /// Names and values, `_pq_.` options included.
    pub parameters: Vec<(String, String)>,
}

impl SessionRequest {
    /// A parameter's value; of several the last, as `PostgreSQL` takes it.
    pub fn get(&self, name: &str) -> Option<&str> {
        let named = |(key, _): &&(String, String)| key == name;
        self.parameters
            .iter()
            .rfind(named)
            .map(|(_, value)| value.as_str())
    }

    /// The names of protocol options (`_pq_.` and more), all of which are to be negotiated.
    pub fn protocol_options(&self) -> impl Iterator<Item = &str> {
        let names = self.parameters.iter().map(|(name, _)| name.as_str());
        names.filter(|name| name.starts_with("_pq_."))
    }
}

/// The packet at the front of `buf` and its length, or None while it is not all there.
pub fn peek(buf: &[u8]) -> Result<Option<(Startup, usize)>, WireError> {
    if buf.first() == Some(&0x16) {
        return Ok(Some((Startup::DirectTls, 0)));
    }
    let Some(word) = buf.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*word);
    if !(8..=MAX_BODY_BYTES + 4).contains(&length) {
        return Err(WireError::StartupLength(length));
    }
    let len = length as usize;
    let Some(packet) = buf.get(..len) else {
        return Ok(None);
    };
    Ok(Some((parse(&packet[4..])?, len)))
}

fn parse(body: &[u8]) -> Result<Startup, WireError> {
    let mut reader = Reader::new(body, "startup packet");
    let code = reader.u32()?;
    let packet = match code {
        SSL => Startup::Ssl,
        GSS => Startup::Gss,
        CANCEL => Startup::Cancel(cancel(&mut reader)?),
        version => Startup::Session(session(version, &mut reader)?),
    };
    reader.end()?;
    Ok(packet)
}

fn cancel(reader: &mut Reader<'_>) -> Result<CancelKey, WireError> {
    let pid = reader.u32()?;
    let secret = reader.take(reader.rest().len())?.to_vec();
    if !(4..=256).contains(&secret.len()) {
        return Err(reader.fault());
    }
    Ok(CancelKey { pid, secret })
}

fn session(version: u32, reader: &mut Reader<'_>) -> Result<SessionRequest, WireError> {
    let [a, b, c, d] = version.to_be_bytes();
    let (major, minor) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let mut parameters = vec![];
    if major != 3 {
        // Its layout is not known; the version is all that the refusal needs.
        reader.take(reader.rest().len())?;
        return Ok(SessionRequest {
            major,
            minor,
            parameters,
        });
    }
    loop {
        let name = reader.text()?;
        if name.is_empty() {
            return Ok(SessionRequest {
                major,
                minor,
                parameters,
            });
        }
        parameters.push((name.to_owned(), reader.text()?.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 8).unwrap();
        [&length.to_be_bytes(), &code.to_be_bytes(), body].concat()
    }

    fn session_of(bytes: &[u8]) -> SessionRequest {
        match peek(bytes) {
            Ok(Some((Startup::Session(session), len))) if len == bytes.len() => session,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_are_told_apart() {
        let mut ssl = packet(SSL, b"");
        ssl.extend(b"behind");
        assert_eq!(peek(&ssl), Ok(Some((Startup::Ssl, 8))));
        assert_eq!(peek(&packet(GSS, b"")), Ok(Some((Startup::Gss, 8))));
        assert_eq!(peek(b"\x16\x03\x01"), Ok(Some((Startup::DirectTls, 0))));
        assert!(peek(&packet(SSL, b"x")).is_err());
        assert_eq!(peek(b"\0\0\0"), Ok(None));
    }

    #[test]
    fn cancel_keys_may_be_long() {
        for length in [4, 32, 256] {
            let secret = vec![9; length];
            let bytes = packet(CANCEL, &[&7u32.to_be_bytes(), &secret[..]].concat());
            let key = CancelKey { pid: 7, secret };
            assert_eq!(peek(&bytes), Ok(Some((Startup::Cancel(key), bytes.len()))));
        }
        for length in [0, 3, 257] {
            let bytes = packet(CANCEL, &vec![0; length + 4]);
            assert!(peek(&bytes).is_err());
        }
    }

    #[test]
    fn parameters_and_options_are_read() {
        let body = b"user\0ann\0database\0a\0_pq_.x\0on\0user\0bob\0\0";
        let session = session_of(&packet(0x0003_270F, body));
        assert_eq!((session.major, session.minor), (3, 9999));
        assert_eq!(session.get("user"), Some("bob"));
        assert_eq!(session.get("options"), None);
        assert_eq!(session.protocol_options().collect::<Vec<_>>(), ["_pq_.x"]);
    }

    #[test]
    fn bad_packets_are_refused() {
        for body in [
            &b"user\0ann\0"[..],
            b"user\0",
            b"",
            b"user\0\xFF\0\0",
            b"a\0b\0\0x",
        ] {
            assert!(peek(&packet(3 << 16, body)).is_err(), "{body:?}");
        }
        assert_eq!(session_of(&packet(2 << 16, b"whatever")).major, 2);
        assert_eq!(peek(b"\0\0\0\x07abc"), Err(WireError::StartupLength(7)));
        assert_eq!(
            peek(b"GET / HTTP"),
            Err(WireError::StartupLength(0x4745_5420))
        );
        assert_eq!(
            peek(&10_005u32.to_be_bytes()),
            Err(WireError::StartupLength(10_005))
        );
        assert_eq!(peek(&10_004u32.to_be_bytes()), Ok(None));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn arbitrary_bytes_do_no_harm(body in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = peek(&body);
            for code in [SSL, GSS, CANCEL, 3 << 16] {
                let _ = peek(&packet(code, &body));
            }
        }
    }
}
