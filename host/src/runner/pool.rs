//! The threads that runners are called on.
//!
//! Each job goes to an idle thread, or to a new one when none is idle; so a runner that hangs
//! holds its own thread and nobody else's. Nothing queues here: how many run at once is the
//! caller's to bound. Threads are not joined, since one that hangs in foreign code cannot be;
//! idle ones end with the pool, busy ones after their job.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use crate::sys::priority;

/// As large as a main thread's; only touched pages cost memory.
const STACK: usize = 8 << 20;

/// Idle threads kept for the next job; the others of a burst end.
const MAX_IDLE: usize = 16;

type Answer = Box<dyn FnOnce() + Send>;

/// A growing set of named threads.
pub(super) struct Pool {
    name: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    idle: Mutex<Vec<mpsc::Sender<Work>>>,
    started: AtomicU64,
}

/// A thread with nothing to do.
pub(super) struct Thread {
    work: mpsc::Sender<Work>,
}

struct Work {
    job: Box<dyn FnOnce() -> Answer + Send>,
    /// The way back to the thread that gets this. An idle thread holds none itself, so it ends
    /// when the pool is gone.
    back: mpsc::Sender<Work>,
}

impl Pool {
    /// Threads will be named `kairos-run-NAME-n`.
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), shared: Arc::default() }
    }

    /// A thread that is free now, or a new one.
    ///
    /// # Errors
    /// The system's, when a new thread is needed and cannot be had.
    pub(super) fn thread(&self) -> std::io::Result<Thread> {
        let idle = self.shared.idle().pop();
        match idle {
            Some(work) => Ok(Thread { work }),
            None => self.spawn(),
        }
    }

    fn spawn(&self) -> std::io::Result<Thread> {
        let number = self.shared.started.fetch_add(1, Ordering::Relaxed) + 1;
        let shared = Arc::downgrade(&self.shared);
        let (work, receive) = mpsc::channel::<Work>();
        let body = move || {
            // Where the kernel knows no turns, it is as prompt as any other.
            let _ = priority::short_turns();
            while let Ok(Work { job, back }) = receive.recv() {
                let answer = job();
                if let Some(shared) = shared.upgrade() {
                    shared.park(back);
                }
                answer();
            }
        };
        let thread = std::thread::Builder::new().name(format!("kairos-run-{}-{number}", self.name));
        thread.stack_size(STACK).spawn(body).map(|_| Thread { work })
    }
}

impl Thread {
    /// Runs `work`, then `answer` with its result. The thread counts as idle before it answers,
    /// so a caller that waits for each answer is always served by one thread. If `work` panics,
    /// the thread is gone and `answer` is dropped.
    pub(super) fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
        answer: impl FnOnce(T) + Send + 'static,
    ) {
        let job = Box::new(move || {
            let result = work();
            Box::new(move || answer(result)) as Answer
        });
        // A thread that is gone drops the job, and with it the answer.
        let _ = self.work.send(Work { job, back: self.work.clone() });
    }
}

impl Shared {
    /// Makes a thread available; where there are enough, it ends for want of a way to it.
    fn park(&self, work: mpsc::Sender<Work>) {
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push(work);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<mpsc::Sender<Work>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn name_of_thread(pool: &Pool) -> String {
        let (send, receive) = mpsc::channel();
        let name = || std::thread::current().name().unwrap_or_default().to_owned();
        pool.thread().expect("a thread").run(name, move |name| drop(send.send(name)));
        receive.recv_timeout(PATIENCE).expect("an answer")
    }

    #[test]
    fn one_job_at_a_time_needs_one_thread() {
        let pool = Pool::new("quick");
        for _ in 0..100 {
            assert_eq!(name_of_thread(&pool), "kairos-run-quick-1");
        }
    }

    #[test]
    fn a_job_that_hangs_holds_nobody_up() {
        let pool = Pool::new("slow");
        let (release, hang) = mpsc::channel::<()>();
        let (send, ended) = mpsc::channel();
        let hang = move || hang.recv().is_err();
        pool.thread()
            .expect("a thread")
            .run(hang, move |released| assert!(released && send.send(()).is_ok()));
        assert_eq!(name_of_thread(&pool), "kairos-run-slow-2");
        drop(release);
        ended.recv_timeout(PATIENCE).expect("it ended");
    }

    #[test]
    fn idle_threads_end_with_the_pool() {
        /// Tells when its thread's locals are destroyed, which is when the thread ends.
        struct Tell(mpsc::Sender<()>);
        impl Drop for Tell {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        thread_local!(static END: std::cell::RefCell<Option<Tell>> = const { std::cell::RefCell::new(None) });
        let pool = Pool::new("end");
        let (send, ended) = mpsc::channel();
        let (ran, done) = mpsc::channel();
        pool.thread()
            .expect("a thread")
            .run(move || END.set(Some(Tell(send))), move |()| ran.send(()).expect("the test listens"));
        done.recv_timeout(PATIENCE).expect("it ran");
        drop(pool);
        ended.recv_timeout(PATIENCE).expect("it ended");
    }
}
