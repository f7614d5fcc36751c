//! A request's body that can be read again: what has passed is kept, up to a bound.
//!
//! In: the client's body. Out: one [`Reader`] after the other, each of which reads what was kept and goes on with the
//! client's rest; and the whole of it for a mirror, once it is there. Invariants: never more than [`REPLAY_MAX`] bytes
//! are kept, and what is too large is not kept at all; a byte is counted once, however often it is sent. Surprise: an
//! attempt may begin while the client is still sending. Non-goal: two readers at one time.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::sync::oneshot;

use super::RequestBody;
use super::request::Client;

/// Bytes of a body that are kept. Larger ones than most calls between services have; with every request that a worker
/// may have in flight (8192) keeping as much it is 512 MB, but then the kernel's and the engines' buffers are twice that.
pub const REPLAY_MAX: usize = weft_wire::xds::REPLAY_BYTES as usize;

/// What keeping one piece costs besides its bytes; a body in many small pieces must not cost more than a large one.
const PIECE_COST: usize = 64;

/// Pieces that are kept where they came. A piece may be one byte of a buffer of kilobytes, which then stays as long as it
/// does; a body in a few pieces costs no copy, one in a thousand not a thousand buffers.
const SHARED_MAX: usize = 8;

/// One piece of a body.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Piece {
    fn of(frame: &Frame<Bytes>) -> Option<Self> {
        let data = frame.data_ref().map(|data| Self::Data(data.clone()));
        data.or_else(|| frame.trailers_ref().map(|trailers| Self::Trailers(trailers.clone())))
    }

    /// The same, in a buffer of its own.
    fn detached(self) -> Self {
        match self {
            Self::Data(data) => Self::Data(Bytes::copy_from_slice(&data)),
            trailers @ Self::Trailers(_) => trailers,
        }
    }

    fn frame(&self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data.clone()),
            Self::Trailers(trailers) => Frame::trailers(trailers.clone()),
        }
    }

    fn cost(&self) -> usize {
        PIECE_COST
            + match self {
                Self::Data(data) => data.len(),
                Self::Trailers(trailers) => {
                    trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
                }
            }
    }
}

/// A whole body, kept.
#[derive(Debug, Clone, Default)]
pub struct Whole(Vec<Piece>);

/// A body that is kept.
#[derive(Debug)]
pub struct Replay {
    /// `None`: only what was kept.
    client: RefCell<Option<Client>>,
    kept: RefCell<Vec<Piece>>,
    cost: Cell<usize>,
    /// Too large: nothing is kept any more.
    lost: Cell<bool>,
    /// Who wants the whole of it.
    waiting: RefCell<Vec<oneshot::Sender<Option<Whole>>>>,
}

impl Replay {
    pub(super) fn new(client: Client) -> Rc<Self> {
        Self::with(Some(client), Vec::new())
    }

    fn with(client: Option<Client>, kept: Vec<Piece>) -> Rc<Self> {
        Rc::new(Self {
            client: RefCell::new(client),
            kept: RefCell::new(kept),
            cost: Cell::new(0),
            lost: Cell::new(false),
            waiting: RefCell::default(),
        })
    }

    /// The body from its beginning.
    #[must_use]
    pub fn body(self: &Rc<Self>) -> RequestBody {
        RequestBody::kept(Reader { replay: Rc::clone(self), next: 0 })
    }

    /// Whether it can be sent again from its beginning.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !self.lost.get()
    }

    /// The whole body, once it is there; nothing when it is too large, and an error when it breaks off.
    #[must_use]
    pub fn whole(&self) -> oneshot::Receiver<Option<Whole>> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().push(sender);
        receiver
    }

    fn is_over(&self) -> bool {
        self.client.borrow().as_ref().is_none_or(Client::is_end_stream)
    }

    fn keep(&self, frame: &Frame<Bytes>) {
        let Some(piece) = Piece::of(frame).filter(|_| !self.lost.get()) else { return };
        self.cost.set(self.cost.get() + piece.cost());
        if self.cost.get() > REPLAY_MAX {
            self.lost.set(true);
            self.kept.take();
            self.tell(None);
        } else {
            let mut kept = self.kept.borrow_mut();
            let piece = if kept.len() < SHARED_MAX { piece } else { piece.detached() };
            kept.push(piece);
        }
    }

    fn tell(&self, whole: Option<Whole>) {
        for waiting in self.waiting.take() {
            // Who has gone does not want it any more.
            drop(waiting.send(whole.clone()));
        }
    }
}

impl Whole {
    /// A body of its own.
    #[must_use]
    pub fn body(self) -> RequestBody {
        Replay::with(None, self.0).body()
    }
}

/// Reads a kept body once.
#[derive(Debug)]
pub(super) struct Reader {
    replay: Rc<Replay>,
    /// The next kept piece.
    next: usize,
}

impl Reader {
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let kept = self.replay.kept.borrow().get(self.next).map(Piece::frame);
        if let Some(frame) = kept {
            self.next += 1;
            return Poll::Ready(Some(Ok(frame)));
        }
        let frame = match &mut *self.replay.client.borrow_mut() {
            Some(client) => ready!(client.poll(context)),
            None => None,
        };
        if let Some(Ok(frame)) = &frame {
            self.replay.keep(frame);
            self.next = self.replay.kept.borrow().len();
        }
        let wanted = !self.replay.waiting.borrow().is_empty();
        if wanted && matches!(frame, None | Some(Ok(_))) && self.replay.is_over() {
            self.replay.tell(Some(Whole(self.replay.kept.borrow().clone())));
        }
        Poll::Ready(frame)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.next >= self.replay.kept.borrow().len() && self.replay.is_over()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A buffer like those that a connection is read into, and who holds it.
    struct Buffer([u8; 8192], #[expect(dead_code, reason = "counted")] Arc<()>);

    impl AsRef<[u8]> for Buffer {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    #[test]
    fn a_body_in_many_small_pieces_holds_few_buffers() {
        let (replay, held) = (Replay::with(None, vec![]), Arc::new(()));
        for _ in 0..500 {
            let buffer = Bytes::from_owner(Buffer([7; 8192], Arc::clone(&held)));
            replay.keep(&Frame::data(buffer.slice(..1)));
        }
        assert!(replay.is_whole());
        assert!(Arc::strong_count(&held) <= SHARED_MAX + 1, "{}", Arc::strong_count(&held));
        assert_eq!(
            replay
                .kept
                .borrow()
                .iter()
                .filter(|piece| matches!(piece, Piece::Data(data) if **data == [7]))
                .count(),
            500
        );
    }
}
