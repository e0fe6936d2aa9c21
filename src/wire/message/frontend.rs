//! What clients send: builders for the proxy as a client of nodes, parsers for the proxy as a server.
//!
//! Builders that postgres-protocol has are its own, behind a wrapper that leaves the buffer as it
//! was when something cannot be sent.

use super::{Formats, Oids, Values, build, open, put_count, put_cstr, put_value};
use crate::wire::error::WireError;
use crate::wire::read::Reader;
use crate::wire::startup::{CANCEL, CancelKey};
use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend as theirs;

/// What Describe and Close name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A prepared statement.
    Statement,
    /// A portal.
    Portal,
}

impl Target {
    fn code(self) -> u8 {
        match self {
            Self::Statement => b'S',
            Self::Portal => b'P',
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        match reader.u8()? {
            b'S' => Ok(Self::Statement),
            b'P' => Ok(Self::Portal),
            _ => Err(reader.fault()),
        }
    }
}

/// Runs a builder of postgres-protocol's; on its error `out` is left as it was.
fn wrapped(
    out: &mut BytesMut,
    fill: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
) -> Result<(), WireError> {
    let start = out.len();
    fill(out).map_err(|_| {
        out.truncate(start);
        WireError::Unsendable("text with a zero byte, or too much of it")
    })
}

/// Asks for a session of protocol 3.0.
pub fn startup<'a>(
    out: &mut BytesMut,
    parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), WireError> {
    wrapped(out, |out| theirs::startup_message(parameters, out))
}

/// Asks for TLS, before the startup message.
pub fn ssl_request(out: &mut BytesMut) {
    theirs::ssl_request(out);
}

/// Asks, on a connection of its own, for the end of what `key` names.
pub fn cancel_request(out: &mut BytesMut, key: &CancelKey) -> Result<(), WireError> {
    let length = u32::try_from(key.secret.len() + 12);
    out.put_u32(length.map_err(|_| WireError::Unsendable("key too long"))?);
    out.put_u32(CANCEL);
    out.put_u32(key.pid);
    out.put_slice(&key.secret);
    Ok(())
}

/// One or more statements as text.
pub fn query(out: &mut BytesMut, sql: &str) -> Result<(), WireError> {
    wrapped(out, |out| theirs::query(sql, out))
}

/// Prepares a statement; type 0 leaves a parameter's type to the server.
pub fn parse(out: &mut BytesMut, name: &str, sql: &str, types: &[u32]) -> Result<(), WireError> {
    let types = types.iter().copied();
    wrapped(out, |out| theirs::parse(name, sql, types, out))
}

/// Makes a portal of a statement. Formats: none means text for all, one stands for all.
pub fn bind<'a>(
    out: &mut BytesMut,
    portal: &str,
    statement: &str,
    parameter_formats: &[i16],
    parameters: impl ExactSizeIterator<Item = Option<&'a [u8]>>,
    result_formats: &[i16],
) -> Result<(), WireError> {
    build(out, b'B', |out| {
        put_cstr(out, portal.as_bytes())?;
        put_cstr(out, statement.as_bytes())?;
        put_formats(out, parameter_formats)?;
        put_count(out, parameters.len())?;
        for parameter in parameters {
            put_value(out, parameter)?;
        }
        put_formats(out, result_formats)
    })
}

fn put_formats(out: &mut BytesMut, formats: &[i16]) -> Result<(), WireError> {
    put_count(out, formats.len())?;
    for format in formats {
        out.put_i16(*format);
    }
    Ok(())
}

/// Asks what a statement or portal takes and gives.
pub fn describe(out: &mut BytesMut, target: Target, name: &str) -> Result<(), WireError> {
    wrapped(out, |out| theirs::describe(target.code(), name, out))
}

/// Forgets a statement or portal.
pub fn close(out: &mut BytesMut, target: Target, name: &str) -> Result<(), WireError> {
    wrapped(out, |out| theirs::close(target.code(), name, out))
}

/// Runs a portal for at most `max_rows` rows, or all if 0.
pub fn execute(out: &mut BytesMut, portal: &str, max_rows: i32) -> Result<(), WireError> {
    wrapped(out, |out| theirs::execute(portal, max_rows, out))
}

/// Ends a run of messages and, outside BEGIN, their transaction.
pub fn sync(out: &mut BytesMut) {
    theirs::sync(out);
}

/// Asks for the answers so far.
pub fn flush(out: &mut BytesMut) {
    theirs::flush(out);
}

/// Says goodbye.
pub fn terminate(out: &mut BytesMut) {
    theirs::terminate(out);
}

/// A piece of COPY's data.
pub fn copy_data(out: &mut BytesMut, data: &[u8]) -> Result<(), WireError> {
    build(out, b'd', |out| {
        out.put_slice(data);
        Ok(())
    })
}

/// Ends a COPY.
pub fn copy_done(out: &mut BytesMut) {
    theirs::copy_done(out);
}

/// Gives a COPY up.
pub fn copy_fail(out: &mut BytesMut, reason: &str) -> Result<(), WireError> {
    wrapped(out, |out| theirs::copy_fail(reason, out))
}

/// A password in clear or hashed with MD5.
pub fn password(out: &mut BytesMut, password: &[u8]) -> Result<(), WireError> {
    wrapped(out, |out| theirs::password_message(password, out))
}

/// Picks a SASL mechanism and opens its exchange.
pub fn sasl_initial(out: &mut BytesMut, mechanism: &str, data: &[u8]) -> Result<(), WireError> {
    wrapped(out, |out| {
        theirs::sasl_initial_response(mechanism, data, out)
    })
}

/// Goes on with a SASL exchange.
pub fn sasl_response(out: &mut BytesMut, data: &[u8]) -> Result<(), WireError> {
    wrapped(out, |out| theirs::sasl_response(data, out))
}

/// The text of a Query.
pub fn read_query(frame: &[u8]) -> Result<&[u8], WireError> {
    let mut reader = open(frame, b'Q', "Query")?;
    let sql = reader.cstr()?;
    reader.end()?;
    Ok(sql)
}

/// A Parse message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    /// The statement's name, empty for the unnamed one.
    pub name: &'a [u8],
    /// Its text.
    pub sql: &'a [u8],
    /// The types that the client fixed.
    pub types: Oids<'a>,
}

impl<'a> Parse<'a> {
    /// Reads a whole frame.
    pub fn read(frame: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = open(frame, b'P', "Parse")?;
        let parse = Self {
            name: reader.cstr()?,
            sql: reader.cstr()?,
            types: Oids::read(&mut reader)?,
        };
        reader.end()?;
        Ok(parse)
    }
}

/// A Bind message.
#[derive(Clone, Debug)]
pub struct Bind<'a> {
    /// The portal's name, empty for the unnamed one.
    pub portal: &'a [u8],
    /// The statement's name, empty for the unnamed one.
    pub statement: &'a [u8],
    /// Formats of the parameters.
    pub parameter_formats: Formats<'a>,
    /// The parameters.
    pub parameters: Values<'a>,
    /// Formats wanted for the results.
    pub result_formats: Formats<'a>,
}

impl<'a> Bind<'a> {
    /// Reads a whole frame.
    pub fn read(frame: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = open(frame, b'B', "Bind")?;
        let bind = Self {
            portal: reader.cstr()?,
            statement: reader.cstr()?,
            parameter_formats: Formats::read(&mut reader)?,
            parameters: Values::read(&mut reader)?,
            result_formats: Formats::read(&mut reader)?,
        };
        reader.end()?;
        Ok(bind)
    }
}

/// Reads a Describe: what it names, and the name.
pub fn read_describe(frame: &[u8]) -> Result<(Target, &[u8]), WireError> {
    read_target(open(frame, b'D', "Describe")?)
}

/// Reads a Close: what it names, and the name.
pub fn read_close(frame: &[u8]) -> Result<(Target, &[u8]), WireError> {
    read_target(open(frame, b'C', "Close")?)
}

fn read_target(mut reader: Reader<'_>) -> Result<(Target, &[u8]), WireError> {
    let target = Target::read(&mut reader)?;
    let name = reader.cstr()?;
    reader.end()?;
    Ok((target, name))
}

/// Reads an Execute: the portal's name and the row limit, 0 for none.
pub fn read_execute(frame: &[u8]) -> Result<(&[u8], i32), WireError> {
    let mut reader = open(frame, b'E', "Execute")?;
    let portal = reader.cstr()?;
    let max_rows = reader.i32()?;
    reader.end()?;
    Ok((portal, max_rows))
}

/// Reads a `CopyFail`'s reason.
pub fn read_copy_fail(frame: &[u8]) -> Result<&[u8], WireError> {
    let mut reader = open(frame, b'f', "CopyFail")?;
    let reason = reader.cstr()?;
    reader.end()?;
    Ok(reason)
}

/// Reads a password.
pub fn read_password(frame: &[u8]) -> Result<&[u8], WireError> {
    let mut reader = open(frame, b'p', "PasswordMessage")?;
    let password = reader.cstr()?;
    reader.end()?;
    Ok(password)
}

/// Reads a `SASLInitialResponse`: the mechanism and the first data, if any.
pub fn read_sasl_initial(frame: &[u8]) -> Result<(&str, Option<&[u8]>), WireError> {
    let mut reader = open(frame, b'p', "SASLInitialResponse")?;
    let mechanism = reader.text()?;
    let data = reader.value()?;
    reader.end()?;
    Ok((mechanism, data))
}

/// Reads a `SASLResponse`'s data.
pub fn read_sasl_response(frame: &[u8]) -> Result<&[u8], WireError> {
    Ok(open(frame, b'p', "SASLResponse")?.rest())
}
