//! Looks at the head of a request before hyper does, and refuses what two parsers could read differently.
//!
//! hyper takes a Content-Length beside a Transfer-Encoding, bare line feeds and a missing Host; a proxy in front may see
//! another request in the same bytes. Everything else about the head is left to hyper.

use hyper::StatusCode;

/// How long a head may be, in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Why a request is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The head can be read in more than one way, or names no host.
    Ambiguous,
    /// The head is longer than [`HEAD_BYTES_MAX`].
    TooLarge,
    /// The head took too long to arrive.
    TooSlow,
}

impl Refusal {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Ambiguous => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
        }
    }
}

/// How the body behind a head is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The end of the head is not there yet.
    Partial,
    /// The head is `bytes` long and can be read in one way.
    Complete {
        bytes: usize,
        framing: Framing,
    },
    Refused(Refusal),
}

/// Reads one head line by line, as its bytes arrive.
#[derive(Debug, Default)]
pub(crate) struct HeadScanner {
    line_start: usize,
    request_line_seen: bool,
    is_http_10: bool,
    hosts: u32,
    content_length: Option<u64>,
    chunked: bool,
}

impl HeadScanner {
    /// Whether not even the request line is complete.
    pub(super) fn is_fresh(&self) -> bool {
        !self.request_line_seen
    }

    /// Looks at all bytes of the head so far; call it with the same bytes and more behind them until it is done.
    pub(crate) fn scan(&mut self, head: &[u8]) -> Progress {
        while let Some(length) = head[self.line_start..].iter().position(|&b| b == b'\n') {
            let line_end = self.line_start + length;
            let Some(line) = head[self.line_start..line_end].strip_suffix(b"\r") else {
                return Progress::Refused(Refusal::Ambiguous);
            };
            if line_end >= HEAD_BYTES_MAX {
                return Progress::Refused(Refusal::TooLarge);
            }
            self.line_start = line_end + 1;
            if !self.request_line_seen {
                self.request_line_seen = true;
                self.is_http_10 = line.ends_with(b" HTTP/1.0");
            } else if line.is_empty() {
                return self.verdict();
            } else if self.field(line).is_none() {
                return Progress::Refused(Refusal::Ambiguous);
            }
        }
        if head.len() >= HEAD_BYTES_MAX { Progress::Refused(Refusal::TooLarge) } else { Progress::Partial }
    }

    /// Takes one header field; `None` where it is ambiguous.
    fn field(&mut self, line: &[u8]) -> Option<()> {
        // A line that starts with white space continues the one before, for some readers.
        if line[0].is_ascii_whitespace() {
            return None;
        }
        let colon = line.iter().position(|&b| b == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let is_first = self.content_length.replace(decimal(value)?).is_none();
            return is_first.then_some(());
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let is_first = !std::mem::replace(&mut self.chunked, true);
            return (is_first && value.eq_ignore_ascii_case(b"chunked")).then_some(());
        }
        Some(())
    }

    fn verdict(&self) -> Progress {
        let one_host = self.hosts == 1 || (self.is_http_10 && self.hosts == 0);
        let framing = match (self.content_length, self.chunked) {
            (length, false) => Framing::Length(length.unwrap_or(0)),
            (None, true) if !self.is_http_10 => Framing::Chunked,
            (_, true) => return Progress::Refused(Refusal::Ambiguous),
        };
        if one_host {
            Progress::Complete { bytes: self.line_start, framing }
        } else {
            Progress::Refused(Refusal::Ambiguous)
        }
    }
}

/// A number of plain digits, short enough not to overflow.
fn decimal(digits: &[u8]) -> Option<u64> {
    let plain = (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AMBIGUOUS: Progress = Progress::Refused(Refusal::Ambiguous);
    const TOO_LARGE: Progress = Progress::Refused(Refusal::TooLarge);

    fn complete(head: &str, framing: Framing) -> Progress {
        Progress::Complete { bytes: head.len(), framing }
    }

    fn scan(head: &str) -> Progress {
        HeadScanner::default().scan(head.as_bytes())
    }

    #[test]
    fn heads_with_one_reading_pass() {
        for (head, framing) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::Length(0)),
            ("GET / HTTP/1.0\r\n\r\n", Framing::Length(0)),
            ("POST / HTTP/1.1\r\nhOST:a\r\nContent-length:  12 \r\n\r\n", Framing::Length(12)),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", Framing::Chunked),
        ] {
            assert_eq!(scan(head), complete(head, framing), "{head:?}");
            assert_eq!(scan(&format!("{head}GET /")), complete(head, framing), "{head:?}");
        }
    }

    #[test]
    fn heads_with_two_readings_do_not() {
        for fields in [
            "",
            "Host: a\r\nHost: a\r\n",
            "Host: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
            "Host: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
            "Host: a\r\nContent-Length: 1, 1\r\n",
            "Host: a\r\nContent-Length: +1\r\n",
            "Host: a\r\nContent-Length: -1\r\n",
            "Host: a\r\nContent-Length: 0x1\r\n",
            "Host: a\r\nContent-Length:\r\n",
            "Host: a\r\nContent-Length: 9999999999999999999\r\n",
            "Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            "Host: a\r\nTransfer-Encoding: gzip, chunked\r\n",
            "Host: a\r\nTransfer-Encoding: identity\r\n",
            "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Host: a\r\n continued: b\r\n",
            "Host: a\r\nno colon\r\n",
            "Host: a\nX: b\r\n",
        ] {
            assert_eq!(scan(&format!("POST / HTTP/1.1\r\n{fields}\r\n")), AMBIGUOUS, "{fields:?}");
        }
        assert_eq!(scan("GET / HTTP/1.1\nHost: a\n\n"), AMBIGUOUS);
        assert_eq!(scan("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), AMBIGUOUS);
    }

    #[test]
    fn long_heads_are_refused_complete_or_not() {
        let field = format!("X: {}\r\n", "x".repeat(100));
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", field.repeat(170));
        assert_eq!(scan(&long), TOO_LARGE);
        assert_eq!(scan(&"x".repeat(HEAD_BYTES_MAX)), TOO_LARGE);
        assert_eq!(scan(&"x".repeat(HEAD_BYTES_MAX - 1)), Progress::Partial);
    }

    proptest! {
        #[test]
        fn how_the_bytes_arrive_makes_no_difference(
            head in "(GET|POST) /[a-z]{0,9} HTTP/1\\.[01]\r\n((Host|Content-Length|Transfer-Encoding|X): ?(a|1|chunked)\r?\n){0,5}\r\n",
            cuts in prop::collection::vec(0..200_usize, 0..6),
        ) {
            let mut scanner = HeadScanner::default();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut < head.len()).chain([head.len()]).collect();
            cuts.sort_unstable();
            let in_parts = cuts.iter().map(|&cut| scanner.scan(&head.as_bytes()[..cut])).find(|p| *p != Progress::Partial);
            prop_assert_eq!(in_parts.unwrap_or(Progress::Partial), scan(&head));
        }
    }
}
