//! The key under which what is known of a text is kept: the text without the numbers and strings in it,
//! which change from one use to the next and nothing about what the relay does.
//!
//! Only what is sure is left out: plain decimal numbers, and plain strings where no function or command is
//! named to which a string's content matters. Anything else (comments, escapes, dollar quotes) makes the
//! text its own key. Two texts with one key have the same tokens but for such values.

/// Words behind which a string may be a name, a setting or code.
const TELLING: [&[u8]; 12] = [
    b"set_config",
    b"current_setting",
    b"set",
    b"reset",
    b"show",
    b"password",
    b"do",
    b"call",
    b"execute",
    b"create",
    b"alter",
    b"explain",
];

/// Writes the key of `text` to `key`; false where the text is its own.
pub fn key(text: &[u8], key: &mut Vec<u8>) -> bool {
    key.clear();
    key.reserve(text.len());
    let mut telling = false;
    let mut strings = false;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let start = at;
        match byte {
            b'\'' => {
                let Some(end) = string_end(text, at) else {
                    return false;
                };
                if contains_temporary(&text[at..end]) {
                    return false;
                }
                strings = true;
                key.extend_from_slice(b"''");
                at = end;
            }
            b'"' => {
                let Some(length) = memchr::memchr(b'"', &text[at + 1..]) else {
                    return false;
                };
                at += length + 2;
                key.extend_from_slice(&text[start..at]);
            }
            b'0'..=b'9' => {
                at = run(text, at, |b| b.is_ascii_digit());
                if text.get(at) == Some(&b'.') {
                    at = run(text, at + 1, |b| b.is_ascii_digit());
                }
                // An exponent, another base, or junk that the server judges.
                if text.get(at).is_some_and(|b| is_word(*b) || *b == b'.') {
                    return false;
                }
                key.push(b'0');
            }
            b'$' => {
                at = run(text, at + 1, |b| b.is_ascii_digit());
                if at == start + 1 {
                    return false;
                }
                key.extend_from_slice(&text[start..at]);
            }
            b'-' if text.get(at + 1) == Some(&b'-') => return false,
            b'/' if text.get(at + 1) == Some(&b'*') => return false,
            b'\\' => return false,
            _ if is_word(byte) => {
                at = run(text, at, |b| is_word(b) || b == b'$');
                // A string with a prefix is of another kind.
                if text.get(at) == Some(&b'\'') || text.get(at) == Some(&b'&') {
                    return false;
                }
                let word = &text[start..at];
                telling |= TELLING.iter().any(|told| told.eq_ignore_ascii_case(word));
                key.extend_from_slice(word);
            }
            _ => {
                key.push(byte);
                at += 1;
            }
        }
    }
    !(telling && strings)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn run(text: &[u8], from: usize, part: impl Fn(u8) -> bool) -> usize {
    let length = text[from..].iter().position(|byte| !part(*byte));
    length.map_or(text.len(), |length| from + length)
}

/// Behind the string that begins at `at`; doubled quotes belong to it.
fn string_end(text: &[u8], at: usize) -> Option<usize> {
    let mut from = at + 1;
    loop {
        let quote = from + memchr::memchr(b'\'', text.get(from..)?)?;
        if text.get(quote + 1) != Some(&b'\'') {
            return Some(quote + 1);
        }
        from = quote + 2;
    }
}

/// A string that names the temporary schema tells where something is made.
fn contains_temporary(string: &[u8]) -> bool {
    memchr::memchr2_iter(b'p', b'P', string).any(|at| {
        let here = string.get(at..at + 7);
        here.is_some_and(|here| here.eq_ignore_ascii_case(b"pg_temp"))
    })
}

#[cfg(test)]
mod tests {
    fn key(text: &str) -> Option<String> {
        let mut key = Vec::new();
        let shared = super::key(text.as_bytes(), &mut key);
        shared.then(|| String::from_utf8(key).expect("of UTF-8"))
    }

    #[test]
    fn values_are_left_out() {
        for (text, expected) in [
            (
                "select a1 from t where b = 12345",
                "select a1 from t where b = 0",
            ),
            (
                "insert into t values (1.5, 'it''s', $2)",
                "insert into t values (0, '', $2)",
            ),
            (
                "select \"a 1\" from \"T\" limit 7;",
                "select \"a 1\" from \"T\" limit 0;",
            ),
            ("select 'a' 'b'", "select '' ''"),
            ("select -5", "select -0"),
            ("set work_mem = 5", "set work_mem = 0"),
        ] {
            assert_eq!(key(text).as_deref(), Some(expected));
        }
    }

    #[test]
    fn what_is_not_sure_is_its_own_key() {
        for text in [
            "select set_config('a.b', 'c', false)",
            "select current_setting('a.b')",
            "set search_path = 'x'",
            "select E'a'",
            "select U&'a'",
            "select 1e5",
            "select 0x1F",
            "select 1 -- comment",
            "select /* comment */ 1",
            "select $$a$$",
            "select 'open",
            "select \"open",
            "create role a password 'b'",
            "select * from f('pg_temp_3.x')",
            "do 'begin end'",
        ] {
            assert_eq!(key(text), None, "{text}");
        }
    }
}
