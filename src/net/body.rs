//! Bodies of requests and replies, read within limits.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Body;
use tokio::time::timeout;

/// What a body may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    /// How long it may be.
    pub(crate) bytes_max: usize,
    /// How long a body that is too long is still read and dropped: to close the connection earlier would lose the answer on its way.
    pub(crate) read_max: usize,
    /// How long it may take to arrive.
    pub(crate) timeout: Duration,
}

/// Why there is no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyError<E> {
    TooLarge,
    TimedOut,
    /// The connection, or the body's encoding, broke.
    Broken(E),
}

impl<E> BodyError<E> {
    /// The status of the answer to such a request.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TimedOut => StatusCode::REQUEST_TIMEOUT,
            Self::Broken(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl BodyLimits {
    /// A whole body.
    pub(crate) async fn read<B: Body<Data = Bytes> + Unpin>(self, body: B) -> Result<Vec<u8>, BodyError<B::Error>> {
        if body.is_end_stream() {
            return Ok(Vec::new());
        }
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > self.read_max {
            return Err(BodyError::TooLarge);
        }
        let reading = read_at_most(body, self.bytes_max, self.read_max);
        match timeout(self.timeout, reading).await {
            Ok(Ok((_, true))) => Err(BodyError::TooLarge),
            Ok(Ok((bytes, false))) => Ok(bytes),
            Ok(Err(error)) => Err(BodyError::Broken(error)),
            Err(_) => Err(BodyError::TimedOut),
        }
    }
}

/// The first `bytes_max` bytes of a body, and whether there are more. No more is read than `read_max` and one piece.
///
/// Copied as they come: each piece, and be it one byte, keeps the whole buffer that it was received into.
pub(crate) async fn read_at_most<B: Body<Data = Bytes> + Unpin>(
    mut body: B,
    bytes_max: usize,
    read_max: usize,
) -> Result<(Vec<u8>, bool), B::Error> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame?.into_data() else { continue };
        length += piece.len();
        bytes.extend_from_slice(&piece[..piece.len().min(bytes_max - bytes.len())]);
        if length > read_max {
            break;
        }
    }
    Ok((bytes, length > bytes_max))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;

    use super::*;

    /// Pieces of so many bytes, after which it ends, breaks or never ends.
    struct Pieces {
        sizes: Vec<usize>,
        end: End,
    }

    #[derive(Clone, Copy)]
    enum End {
        Whole,
        Broken,
        Never,
    }

    impl Body for Pieces {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            match (self.sizes.is_empty(), self.end) {
                (false, _) => Poll::Ready(Some(Ok(Frame::data(vec![b'x'; self.sizes.remove(0)].into())))),
                (true, End::Whole) => Poll::Ready(None),
                (true, End::Broken) => Poll::Ready(Some(Err("broken"))),
                (true, End::Never) => Poll::Pending,
            }
        }
    }

    #[tokio::test]
    async fn a_body_is_read_within_its_limits() {
        // Enough for all that has arrived already.
        let limits = BodyLimits { bytes_max: 10, read_max: 20, timeout: Duration::ZERO };
        for (sizes, end, expected) in [
            (vec![], End::Whole, Ok(0)),
            (vec![4, 6], End::Whole, Ok(10)),
            (vec![4, 7], End::Whole, Err(BodyError::TooLarge)),
            (vec![10, 10], End::Broken, Err(BodyError::Broken("broken"))),
            (vec![10, 10], End::Never, Err(BodyError::TimedOut)),
            (vec![10, 11], End::Never, Err(BodyError::TooLarge)),
            (vec![50], End::Never, Err(BodyError::TooLarge)),
            (vec![1], End::Never, Err(BodyError::TimedOut)),
        ] {
            let read = limits.read(Pieces { sizes: sizes.clone(), end }).await;
            assert_eq!(read.map(|bytes| bytes.len()), expected, "{sizes:?}");
        }
    }

    #[tokio::test]
    async fn an_announced_length_beyond_all_limits_is_not_waited_for() {
        let limits = BodyLimits { bytes_max: 10, read_max: 20, timeout: Duration::from_secs(5) };
        let body = http_body_util::Full::new(Bytes::from_static(&[b'x'; 21]));
        assert_eq!(limits.read(body).await, Err::<_, BodyError<Infallible>>(BodyError::TooLarge));
    }

    #[tokio::test]
    async fn the_beginning_of_a_long_body_is_all_that_is_kept() {
        let body = || Pieces { sizes: vec![4, 4, 4], end: End::Never };
        assert_eq!(read_at_most(body(), 6, 6).await, Ok((b"xxxxxx".to_vec(), true)));
    }
}
