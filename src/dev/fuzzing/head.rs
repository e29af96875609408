use crate::server::{Framing, HeadScanner, Progress};

/// How many headers hyper takes.
const HEADERS_MAX: usize = 100;

/// How many requests are looked for in one connection's bytes.
const REQUESTS_MAX: usize = 8;

/// A head that is let through ends for hyper's parser where it ends for the guard, or is refused by it too: it is
/// never waited for, and nothing behind it is taken for a part of it. It has no line that can be read as two or as a
/// half, and names one host and one length, whatever parts its bytes arrive in.
///
/// # Panics
///
/// Where that does not hold of `data`.
pub fn head(data: &[u8]) {
    let mut rest = data;
    for _ in 0..REQUESTS_MAX {
        while let Some(behind) = rest.strip_prefix(b"\r\n") {
            rest = behind;
        }
        let progress = HeadScanner::default().scan(rest);
        assert_eq!(progress, in_parts(rest), "{}", rest.escape_ascii());
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let parsed = request.parse(rest);
        match progress {
            Progress::Complete { bytes, framing } => {
                one_line_each(&rest[..bytes]);
                // The guard hands over so much, and no more until it is answered.
                let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
                let mut alone = httparse::Request::new(&mut headers);
                match alone.parse(&rest[..bytes]) {
                    Ok(httparse::Status::Complete(end)) => {
                        assert_eq!(end, bytes, "{}", rest.escape_ascii());
                        one_meaning(&alone, framing);
                    }
                    Ok(httparse::Status::Partial) => panic!("hyper waits for more of {}", rest.escape_ascii()),
                    Err(_) => return,
                }
                let Framing::Length(body) = framing else { return };
                let behind = usize::try_from(body).ok().and_then(|body| rest.get(bytes.checked_add(body)?..));
                let Some(behind) = behind else { return };
                rest = behind;
            }
            Progress::Partial => {
                let is_complete = matches!(parsed, Ok(httparse::Status::Complete(_)));
                assert!(!is_complete, "hyper has the whole of {}", rest.escape_ascii());
                return;
            }
            Progress::Refused(_) => return,
        }
    }
}

/// What the scanner says of the same bytes when they arrive one by one.
fn in_parts(head: &[u8]) -> Progress {
    let mut scanner = HeadScanner::default();
    let parts = (1..=head.len()).map(|end| scanner.scan(&head[..end]));
    parts.into_iter().find(|progress| *progress != Progress::Partial).unwrap_or(Progress::Partial)
}

/// Readers that end lines at a bare line feed, and those that take an indented line for the rest of the one before,
/// find the same lines as all others.
fn one_line_each(head: &[u8]) {
    let feeds = head.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    for (at, _) in feeds {
        assert!(at > 0 && head[at - 1] == b'\r', "a bare line feed: {}", head.escape_ascii());
        let is_indented = matches!(head.get(at + 1), Some(b' ' | b'\t'));
        assert!(!is_indented, "an indented line: {}", head.escape_ascii());
    }
}

/// hyper finds the host and the length that the guard found.
fn one_meaning(request: &httparse::Request, framing: Framing) {
    let values = |name: &str| -> Vec<&[u8]> {
        let named = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value).collect()
    };
    let hosts = values("host");
    assert!(hosts.len() == 1 || (request.version == Some(0) && hosts.is_empty()), "{hosts:?}");
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    match framing {
        Framing::Length(length) => {
            assert!(codings.is_empty(), "{codings:?}");
            let read: Vec<Option<u64>> =
                lengths.iter().map(|text| std::str::from_utf8(text).ok().and_then(|text| text.parse().ok())).collect();
            assert!(read == [Some(length)] || (read.is_empty() && length == 0), "{length}: {read:?}");
        }
        Framing::Chunked => {
            assert!(lengths.is_empty() && request.version == Some(1), "{lengths:?}");
            assert!(codings.len() == 1 && codings[0].eq_ignore_ascii_case(b"chunked"), "{codings:?}");
        }
    }
}
