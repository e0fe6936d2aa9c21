//! `ErrorResponse` and `NoticeResponse`: read, build, and move the error's position.

use super::names::splice;
use super::{build, open, put_cstr};
use crate::wire::error::WireError;
use crate::wire::frame;
use bytes::{BufMut, BytesMut};

/// The type of an `ErrorResponse`.
pub const ERROR: u8 = b'E';
/// The type of a `NoticeResponse`.
pub const NOTICE: u8 = b'N';

/// Field codes (`PostgreSQL` manual, "Error and Notice Message Fields").
pub mod field {
    /// Severity, in the server's language.
    pub const SEVERITY: u8 = b'S';
    /// Severity, always in English.
    pub const SEVERITY_PLAIN: u8 = b'V';
    /// SQLSTATE.
    pub const CODE: u8 = b'C';
    /// The message.
    pub const MESSAGE: u8 = b'M';
    /// More about it.
    pub const DETAIL: u8 = b'D';
    /// What to do.
    pub const HINT: u8 = b'H';
    /// Where in the query, in characters from 1.
    pub const POSITION: u8 = b'P';
    /// Where in the internal query.
    pub const INTERNAL_POSITION: u8 = b'p';
    /// The internal query's text.
    pub const INTERNAL_QUERY: u8 = b'q';
    /// The context in which it happened.
    pub const WHERE: u8 = b'W';
    /// Schema.
    pub const SCHEMA: u8 = b's';
    /// Table.
    pub const TABLE: u8 = b't';
    /// Column.
    pub const COLUMN: u8 = b'c';
    /// Data type.
    pub const DATA_TYPE: u8 = b'd';
    /// Constraint.
    pub const CONSTRAINT: u8 = b'n';
    /// Source file.
    pub const FILE: u8 = b'F';
    /// Source line.
    pub const LINE: u8 = b'L';
    /// The server's function that reported it.
    pub const ROUTINE: u8 = b'R';
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The connection ends.
    Fatal,
    /// The server is going down.
    Panic,
    /// Something may be wrong.
    Warning,
    /// Something to know.
    Notice,
    /// Asked for.
    Info,
}

impl Severity {
    /// Its name as the server writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Panic => "PANIC",
            Self::Warning => "WARNING",
            Self::Notice => "NOTICE",
            Self::Info => "INFO",
        }
    }
}

/// An error or notice, owned: its fields in order. Text that is no UTF-8 is kept as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    fields: Vec<(u8, Vec<u8>)>,
}

impl Report {
    /// A report with severity, SQLSTATE and message.
    pub fn new(severity: Severity, code: &str, message: impl Into<String>) -> Self {
        let text = |text: &str| text.as_bytes().to_vec();
        let fields = vec![
            (field::SEVERITY, text(severity.name())),
            (field::SEVERITY_PLAIN, text(severity.name())),
            (field::CODE, text(code)),
            (field::MESSAGE, message.into().into_bytes()),
        ];
        Self { fields }
    }

    /// The report with one more field.
    #[must_use]
    pub fn with(mut self, code: u8, text: impl Into<String>) -> Self {
        self.fields.push((code, text.into().into_bytes()));
        self
    }

    /// Reads a whole `ErrorResponse` or `NoticeResponse`.
    pub fn read(frame: &[u8]) -> Result<Self, WireError> {
        let owned = |(code, text): (u8, &[u8])| (code, text.to_vec());
        let fields = fields(frame)?.map(owned).collect();
        Ok(Self { fields })
    }

    /// A field's bytes.
    pub fn bytes(&self, code: u8) -> Option<&[u8]> {
        let named = |(key, _): &&(u8, Vec<u8>)| *key == code;
        self.fields
            .iter()
            .find(named)
            .map(|(_, text)| text.as_slice())
    }

    /// A field's text for logs and messages, with bytes that are no UTF-8 replaced.
    pub fn text(&self, code: u8) -> Option<String> {
        self.bytes(code)
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// SQLSTATE; empty if the report has none.
    pub fn code(&self) -> &str {
        let bytes = self.bytes(field::CODE).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// The message.
    pub fn message(&self) -> String {
        self.text(field::MESSAGE).unwrap_or_default()
    }

    /// Appends it as an `ErrorResponse`.
    pub fn put_error(&self, out: &mut BytesMut) {
        self.put(out, ERROR);
    }

    /// Appends it as a `NoticeResponse`.
    pub fn put_notice(&self, out: &mut BytesMut) {
        self.put(out, NOTICE);
    }

    /// An error must always get out, so zero bytes in a text end it instead of refusing it.
    fn put(&self, out: &mut BytesMut, tag: u8) {
        let put = |out: &mut BytesMut| {
            for (code, text) in &self.fields {
                let end = memchr::memchr(0, text).unwrap_or(text.len()).min(1 << 20);
                out.put_u8(*code);
                put_cstr(out, &text[..end])?;
            }
            out.put_u8(0);
            Ok(())
        };
        let built = build(out, tag, put);
        debug_assert!(built.is_ok(), "a few texts of at most a megabyte");
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message(), self.code())
    }
}

/// The fields of an `ErrorResponse` or `NoticeResponse` in the order sent.
pub fn fields(frame: &[u8]) -> Result<impl Iterator<Item = (u8, &[u8])>, WireError> {
    let (mut reader, what) = match frame.first() {
        Some(&NOTICE) => (open(frame, NOTICE, "NoticeResponse")?, "NoticeResponse"),
        _ => (open(frame, ERROR, "ErrorResponse")?, "ErrorResponse"),
    };
    let mut checked = reader;
    while checked.u8()? != 0 {
        checked.cstr()?;
    }
    if !checked.rest().is_empty() {
        return Err(WireError::Malformed(what));
    }
    Ok(std::iter::from_fn(move || {
        let code = reader.u8().ok().filter(|code| *code != 0)?;
        Some((code, reader.cstr().ok()?))
    }))
}

/// One field of an `ErrorResponse` or `NoticeResponse`; None too where the frame is malformed.
pub fn get(frame: &[u8], code: u8) -> Option<&[u8]> {
    let mut fields = fields(frame).ok()?;
    fields.find(|(key, _)| *key == code).map(|(_, text)| text)
}

/// Appends the frame with its position P changed by `edit` (characters from 1); where `edit` gives
/// None the field goes. A frame without a position, or with one that is no number, stays as it is.
pub fn edit_position(
    frame: &[u8],
    edit: impl FnOnce(u32) -> Option<u32>,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let mut at = frame::HEADER_BYTES;
    for (code, text) in fields(frame)? {
        let end = at + 1 + text.len();
        let number = std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse().ok());
        if let (field::POSITION, Some(number)) = (code, number) {
            return match edit(number) {
                Some(new) => splice(frame, at + 1..end, new.to_string().as_bytes(), out),
                None => splice(frame, at..end + 1, b"", out),
            };
        }
        at = end + 1;
    }
    out.put_slice(frame);
    Ok(())
}

/// [`edit_position`] by an offset; a position that would fall before the text goes.
pub fn shift_position(frame: &[u8], by: i32, out: &mut BytesMut) -> Result<(), WireError> {
    let shift = |position: u32| position.checked_add_signed(by).filter(|new| *new > 0);
    edit_position(frame, shift, out)
}
