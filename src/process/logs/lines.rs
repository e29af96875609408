//! Lines out of bytes that arrive in pieces.

use memchr::memchr;

use super::Take;

/// How much of a line is looked at and shown. What a longer one has behind this is neither searched nor shown, and
/// [`Line::is_cut`] says so.
pub(super) const LINE_MAX: usize = 1024 * 1024;

/// A line without its line end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub(crate) text: &'a [u8],
    /// It was longer than what is kept of a line.
    pub(crate) is_cut: bool,
}

/// The beginning of a line of which the end has not come yet.
#[derive(Default)]
pub(super) struct Lines {
    begun: Vec<u8>,
    is_cut: bool,
}

impl Lines {
    /// Takes the next bytes, and hands on the lines that they complete.
    pub(super) fn feed(&mut self, mut bytes: &[u8], take: Take<'_>) -> anyhow::Result<()> {
        while let Some(end) = memchr(b'\n', bytes) {
            let text = &bytes[..end];
            bytes = &bytes[end + 1..];
            if self.begun.is_empty() && text.len() <= LINE_MAX {
                take(Line { text, is_cut: false })?;
            } else {
                self.keep(text);
                self.hand_on(take)?;
            }
        }
        self.keep(bytes);
        Ok(())
    }

    /// Hands on a line that never got its end.
    pub(super) fn finish(&mut self, take: Take<'_>) -> anyhow::Result<()> {
        if self.begun.is_empty() { Ok(()) } else { self.hand_on(take) }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(LINE_MAX - self.begun.len());
        self.begun.extend_from_slice(&bytes[..kept]);
        self.is_cut |= kept < bytes.len();
    }

    fn hand_on(&mut self, take: Take<'_>) -> anyhow::Result<()> {
        let Self { begun, is_cut } = std::mem::take(self);
        take(Line { text: &begun, is_cut })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that these pieces make, the last one finished.
    fn lines(pieces: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut found = Vec::new();
        let mut take = |line: Line<'_>| {
            found.push((line.text.to_owned(), line.is_cut));
            Ok(())
        };
        let mut lines = Lines::default();
        for piece in pieces {
            lines.feed(piece, &mut take).unwrap();
        }
        lines.finish(&mut take).unwrap();
        found
    }

    #[test]
    fn pieces_make_lines_wherever_they_are_cut() {
        for (pieces, expected) in [
            (&[][..], &[][..]),
            (&["a\nb\n"], &["a", "b"]),
            (&["a\n", "b"], &["a", "b"]),
            (&["a", "b", "\nc", "\n"], &["ab", "c"]),
            (&["\n\n", "x"], &["", "", "x"]),
        ] {
            let pieces: Vec<_> = pieces.iter().map(|piece| piece.as_bytes()).collect();
            let expected: Vec<_> = expected.iter().map(|line| (line.as_bytes().to_owned(), false)).collect();
            assert_eq!(lines(&pieces), expected, "{pieces:?}");
        }
    }

    #[test]
    fn a_line_is_cut_at_its_limit_and_the_next_one_is_whole() {
        let full = vec![b'x'; LINE_MAX];
        for (pieces, is_cut) in [
            (&[&full[..], b"\nnext\n"][..], false),
            (&[&full[..], b"y\nnext\n"], true),
            (&[&full[..], b"y", &full[..], b"\nnext"], true),
            (&[&[&full[..], b"y\nnext\n"].concat()], true),
        ] {
            assert_eq!(lines(pieces), [(full.clone(), is_cut), (b"next".to_vec(), false)]);
        }
    }
}
