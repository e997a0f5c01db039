//! An answer that is on its way from the writer thread.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::{Error, Result};

/// The receiving end. Async code awaits it; a plain thread calls [`Pending::wait`]. Dropping it
/// does not take the request back.
#[derive(Debug)]
#[must_use = "a request whose answer nobody reads can fail unseen"]
pub struct Pending<T>(oneshot::Receiver<Result<T>>);

/// The answering end, held by the writer.
#[derive(Debug)]
pub struct Promise<T>(oneshot::Sender<Result<T>>);

impl<T> Pending<T> {
    /// A connected pair.
    pub fn pair() -> (Promise<T>, Self) {
        let (tx, rx) = oneshot::channel();
        (Promise(tx), Self(rx))
    }

    /// An answer that is known at once.
    pub fn ready(answer: Result<T>) -> Self {
        let (promise, pending) = Self::pair();
        promise.keep(answer);
        pending
    }

    /// Blocks the calling thread until the answer is here. Must not be called on an async
    /// runtime's thread.
    pub fn wait(self) -> Result<T> {
        self.0.blocking_recv().unwrap_or(Err(Error::Closed))
    }

    /// The answer if it is here already; gives itself back otherwise. Never blocks.
    pub fn try_now(mut self) -> std::result::Result<Result<T>, Self> {
        match self.0.try_recv() {
            Ok(answer) => Ok(answer),
            Err(oneshot::error::TryRecvError::Closed) => Ok(Err(Error::Closed)),
            Err(oneshot::error::TryRecvError::Empty) => Err(self),
        }
    }
}

impl<T> Promise<T> {
    /// Gives the answer; that nobody waits for it any more is no error.
    pub fn keep(self, answer: Result<T>) {
        let _ = self.0.send(answer);
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(Error::Closed)))
    }
}
