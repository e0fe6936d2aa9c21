//! Text of commands in a database that may not say what its bytes mean.

/// Text that can be cut like any other and gives back the very bytes it came as: what is no UTF-8 (a `SQL_ASCII`
/// database keeps any bytes) is held with one character for each byte. Cutting treats all characters beyond ASCII
/// alike, as the server's scanner does with such bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    text: String,
    bytewise: bool,
}

impl Text {
    /// From what the server sent.
    pub fn new(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::from(text),
            Err(_) => Self {
                text: bytes.iter().copied().map(char::from).collect(),
                bytewise: true,
            },
        }
    }

    /// To be looked at and cut.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// All of it as the server has it.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_of(&self.text)
    }

    /// A text that was cut out of this one, or made of such pieces and ASCII, as the server has it.
    pub fn bytes_of(&self, piece: &str) -> Vec<u8> {
        if self.bytewise {
            // Every character was one byte.
            let byte = |c: char| u8::try_from(u32::from(c)).unwrap_or(b'?');
            piece.chars().map(byte).collect()
        } else {
            piece.as_bytes().to_vec()
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            bytewise: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Text;

    #[test]
    fn bytes_come_back_as_they_were() {
        for bytes in ["caf\u{e9}".as_bytes(), b"caf\xe9 \xff\x80", b"plain", b""] {
            let text = Text::new(bytes);
            assert_eq!(text.bytes(), bytes);
            let cut = text.as_str().get(..3).unwrap_or_default();
            assert_eq!(text.bytes_of(cut), bytes.get(..3).unwrap_or_default());
        }
    }
}
