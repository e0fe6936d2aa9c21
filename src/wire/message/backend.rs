//! What servers send, apart from rows and reports: builders for the proxy as a server, parsers for
//! the proxy as a client of nodes.

use super::{build, fixed, open, put_cstr};
use crate::wire::error::WireError;
use crate::wire::startup::CancelKey;
use bytes::{BufMut, BytesMut};

/// The state that `ReadyForQuery` reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// No transaction is open.
    Idle,
    /// A transaction is open.
    Open,
    /// A transaction is open and failed: only its end is accepted.
    Failed,
}

/// What the server wants to know, or that it knows enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// The client is who it says.
    Ok,
    /// The password in clear.
    Cleartext,
    /// The password hashed with this salt.
    Md5([u8; 4]),
    /// An exchange by one of these mechanisms.
    Sasl(Vec<&'a str>),
    /// The exchange goes on.
    SaslContinue(&'a [u8]),
    /// The exchange ends.
    SaslFinal(&'a [u8]),
    /// A way not spoken here (Kerberos, GSSAPI, SSPI).
    Other(u32),
}

impl<'a> Authentication<'a> {
    /// Reads a whole frame of type R.
    pub fn read(frame: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = open(frame, b'R', "Authentication")?;
        let kind = reader.u32()?;
        let read = match kind {
            0 => Self::Ok,
            3 => Self::Cleartext,
            5 => Self::Md5(reader.u32()?.to_be_bytes()),
            10 => {
                let mut mechanisms = vec![];
                loop {
                    match reader.text()? {
                        "" => break Self::Sasl(mechanisms),
                        mechanism => mechanisms.push(mechanism),
                    }
                }
            }
            11 => return Ok(Self::SaslContinue(reader.rest())),
            12 => return Ok(Self::SaslFinal(reader.rest())),
            other => return Ok(Self::Other(other)),
        };
        reader.end()?;
        Ok(read)
    }

    /// Appends it.
    pub fn put(&self, out: &mut BytesMut) -> Result<(), WireError> {
        build(out, b'R', |out| {
            match self {
                Self::Ok => out.put_u32(0),
                Self::Cleartext => out.put_u32(3),
                Self::Md5(salt) => {
                    out.put_u32(5);
                    out.put_slice(salt);
                }
                Self::Sasl(mechanisms) => {
                    out.put_u32(10);
                    for mechanism in mechanisms {
                        put_cstr(out, mechanism.as_bytes())?;
                    }
                    out.put_u8(0);
                }
                Self::SaslContinue(data) => {
                    out.put_u32(11);
                    out.put_slice(data);
                }
                Self::SaslFinal(data) => {
                    out.put_u32(12);
                    out.put_slice(data);
                }
                Self::Other(kind) => out.put_u32(*kind),
            }
            Ok(())
        })
    }
}

/// Reads a `ParameterStatus`: name and value.
pub fn read_parameter_status(frame: &[u8]) -> Result<(&[u8], &[u8]), WireError> {
    let mut reader = open(frame, b'S', "ParameterStatus")?;
    let pair = (reader.cstr()?, reader.cstr()?);
    reader.end()?;
    Ok(pair)
}

/// Appends a `ParameterStatus`.
pub fn parameter_status(out: &mut BytesMut, name: &[u8], value: &[u8]) -> Result<(), WireError> {
    build(out, b'S', |out| {
        put_cstr(out, name)?;
        put_cstr(out, value)
    })
}

/// Reads a `BackendKeyData`.
pub fn read_key(frame: &[u8]) -> Result<CancelKey, WireError> {
    let mut reader = open(frame, b'K', "BackendKeyData")?;
    let pid = reader.u32()?;
    let secret = reader.rest().to_vec();
    if (4..=256).contains(&secret.len()) {
        Ok(CancelKey { pid, secret })
    } else {
        Err(reader.fault())
    }
}

/// Appends a `BackendKeyData`.
pub fn key(out: &mut BytesMut, key: &CancelKey) -> Result<(), WireError> {
    build(out, b'K', |out| {
        out.put_u32(key.pid);
        out.put_slice(&key.secret);
        Ok(())
    })
}

/// Reads a `ReadyForQuery`.
pub fn read_ready(frame: &[u8]) -> Result<Status, WireError> {
    let mut reader = open(frame, b'Z', "ReadyForQuery")?;
    let status = match reader.u8()? {
        b'I' => Status::Idle,
        b'T' => Status::Open,
        b'E' => Status::Failed,
        _ => return Err(reader.fault()),
    };
    reader.end()?;
    Ok(status)
}

/// Appends a `ReadyForQuery`.
pub fn ready(out: &mut BytesMut, status: Status) {
    let code = match status {
        Status::Idle => b'I',
        Status::Open => b'T',
        Status::Failed => b'E',
    };
    fixed(out, b'Z', Some(code));
}

/// Reads a `CommandComplete`'s tag, such as `INSERT 0 1`.
pub fn read_complete(frame: &[u8]) -> Result<&[u8], WireError> {
    let mut reader = open(frame, b'C', "CommandComplete")?;
    let tag = reader.cstr()?;
    reader.end()?;
    Ok(tag)
}

/// Appends a `CommandComplete`.
pub fn complete(out: &mut BytesMut, tag: &str) -> Result<(), WireError> {
    build(out, b'C', |out| put_cstr(out, tag.as_bytes()))
}

/// Appends a `NegotiateProtocolVersion`: the newest version served, as major and minor in one word,
/// and the options not known.
pub fn negotiate<'a>(
    out: &mut BytesMut,
    version: u32,
    unknown: impl ExactSizeIterator<Item = &'a str>,
) -> Result<(), WireError> {
    build(out, b'v', |out| {
        out.put_u32(version);
        let count = u32::try_from(unknown.len());
        out.put_u32(count.map_err(|_| WireError::Unsendable("too many options"))?);
        for option in unknown {
            put_cstr(out, option.as_bytes())?;
        }
        Ok(())
    })
}

/// Reads a `NegotiateProtocolVersion`.
pub fn read_negotiate(frame: &[u8]) -> Result<(u32, Vec<&str>), WireError> {
    let mut reader = open(frame, b'v', "NegotiateProtocolVersion")?;
    let (version, count) = (reader.u32()?, reader.u32()?);
    let mut unknown = vec![];
    for _ in 0..count {
        unknown.push(reader.text()?);
    }
    reader.end()?;
    Ok((version, unknown))
}

/// A `NotificationResponse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification<'a> {
    /// The backend that notified.
    pub pid: u32,
    /// The channel.
    pub channel: &'a [u8],
    /// What it said.
    pub payload: &'a [u8],
}

/// Reads a `NotificationResponse`.
pub fn read_notification(frame: &[u8]) -> Result<Notification<'_>, WireError> {
    let mut reader = open(frame, b'A', "NotificationResponse")?;
    let notification = Notification {
        pid: reader.u32()?,
        channel: reader.cstr()?,
        payload: reader.cstr()?,
    };
    reader.end()?;
    Ok(notification)
}

/// Reads a `CopyData`'s content, which node and client both send.
pub fn read_copy_data(frame: &[u8]) -> Result<&[u8], WireError> {
    Ok(open(frame, b'd', "CopyData")?.rest())
}

/// Appends a `ParseComplete`.
pub fn parse_complete(out: &mut BytesMut) {
    fixed(out, b'1', None);
}

/// Appends a `BindComplete`.
pub fn bind_complete(out: &mut BytesMut) {
    fixed(out, b'2', None);
}

/// Appends a `CloseComplete`.
pub fn close_complete(out: &mut BytesMut) {
    fixed(out, b'3', None);
}

/// Appends a `NoData`.
pub fn no_data(out: &mut BytesMut) {
    fixed(out, b'n', None);
}

/// Appends a `PortalSuspended`.
pub fn portal_suspended(out: &mut BytesMut) {
    fixed(out, b's', None);
}

/// Appends an `EmptyQueryResponse`.
pub fn empty_query(out: &mut BytesMut) {
    fixed(out, b'I', None);
}
