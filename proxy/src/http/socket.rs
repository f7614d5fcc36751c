//! Sockets under hyper's engines: cheaper writes, and no wake-up in vain.
//!
//! Small pieces go out as one buffer by `send(2)`. hyper hands over a head and a body as two slices. `writev(2)` costs the kernel a tenth of a microsecond more than
//! `send(2)`, for every message; copying a kilobyte costs a tenth of that. Large bodies still go out from where they
//! are.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use hyper::rt::{Read, ReadBufCursor, Write};

/// Messages up to this are copied together; beyond it copying costs as much as it saves.
const GATHER_MAX: usize = 4096;

thread_local! {
    /// One buffer for each worker: it is filled and emptied between two awaits.
    static GATHERED: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(GATHER_MAX));
}

/// Writes slices in the cheapest way.
pub(super) fn poll_write_gathered<W: Write + Unpin>(
    io: &mut W,
    context: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if let [only] = slices {
        return Pin::new(io).poll_write(context, only);
    }
    if slices.iter().map(|slice| slice.len()).sum::<usize>() > GATHER_MAX {
        return Pin::new(io).poll_write_vectored(context, slices);
    }
    GATHERED.with_borrow_mut(|buffer| {
        buffer.clear();
        slices.iter().for_each(|slice| buffer.extend_from_slice(slice));
        Pin::new(io).poll_write(context, buffer)
    })
}

/// Whom an upstream socket wakes: the task of the request that holds the connection. Shared by the socket inside hyper's
/// engine and by whoever polls the engine.
#[derive(Debug, Clone, Default)]
pub(super) struct Task(Rc<RefCell<Option<Waker>>>);

impl Task {
    /// Polls an engine whose socket belongs to this task. Unless it is `uploading`, nothing but the socket can wake
    /// the task: hyper's own channels are between the engine and us, and would only wake us in vain.
    pub(super) fn poll<E: Future + Unpin>(
        &self,
        engine: &mut E,
        context: &mut Context<'_>,
        uploading: bool,
    ) -> Poll<E::Output> {
        {
            let mut task = self.0.borrow_mut();
            if !matches!(&*task, Some(known) if known.will_wake(context.waker())) {
                *task = Some(context.waker().clone());
            }
        }
        if uploading {
            return Pin::new(engine).poll(context);
        }
        QUIET.with(|(woken, quiet)| {
            woken.0.store(false, Ordering::Relaxed);
            let result = Pin::new(engine).poll(&mut Context::from_waker(quiet));
            if result.is_pending() && woken.0.load(Ordering::Relaxed) {
                // Woken while it was polled: it has more to do and made room for others.
                context.waker().wake_by_ref();
            }
            result
        })
    }
}

thread_local! {
    /// A waker that only remembers. One for each worker, so that hyper sees the same one every time.
    static QUIET: (Arc<Woken>, Waker) = {
        let woken = Arc::new(Woken::default());
        (Arc::clone(&woken), woken.into())
    };
}

/// Atomic only because a `Waker` must be `Sync`.
#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An upstream socket: writes small messages at once, and wakes its [`Task`] whatever waker it is polled with.
#[derive(Debug)]
pub(super) struct Socket<T> {
    io: T,
    task: Task,
}

impl<T: Unpin> Socket<T> {
    pub(super) fn new(io: T, task: Task) -> Self {
        Self { io, task }
    }

    pub(super) fn into_inner(self) -> T {
        self.io
    }

    fn with<R>(
        self: Pin<&mut Self>,
        otherwise: &mut Context<'_>,
        poll: impl FnOnce(&mut T, &mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        let Self { io, task } = self.get_mut();
        match &*task.0.borrow() {
            Some(waker) => poll(io, &mut Context::from_waker(waker)),
            None => poll(io, otherwise),
        }
    }
}

impl<T: Read + Unpin> Read for Socket<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(context, |io, context| Pin::new(io).poll_read(context, buffer))
    }
}

impl<T: Write + Unpin> Write for Socket<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(context, |io, context| Pin::new(io).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(context, |io, context| Pin::new(io).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(context, |io, context| Pin::new(io).poll_shutdown(context))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(context, |io, context| poll_write_gathered(io, context, slices))
    }
}
