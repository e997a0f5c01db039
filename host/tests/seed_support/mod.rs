//! What the tests of the seed's behaviours share: a clock that stands, schedules, an attach server
//! that remembers, and an ear for log events.
#![allow(dead_code, reason = "each test file uses a part of it")]

mod reads;
pub mod veil;

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use kairos_host::daemon::attach_server::{AttachError, AttachServer};
use kairos_host::daemon::chronos::ScheduleSet;
use kairos_host::domain::schedule::{SchedulePolicy, ScheduleSpec};
use kairos_host::sys::clock::ManualClock;
use kairos_host::wiring::{EmbeddedMandate, Wired};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Longest wait for something that another thread does.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect("a time")
}

/// 09:00:30 on a Sunday.
pub fn clock() -> ManualClock {
    listen();
    ManualClock::at(at("2026-11-22T09:00:30Z"))
}

pub fn spec(name: &str, cron: &str, policy: SchedulePolicy) -> ScheduleSpec {
    ScheduleSpec {
        name: name.into(),
        cron: cron.into(),
        timezone: "UTC".into(),
        goal: "tidy up".into(),
        policy: Arc::new(policy),
    }
}

pub fn no_schedules() -> ScheduleSet {
    listen();
    ScheduleSet::default()
}

pub fn every_minute(name: &str, policy: SchedulePolicy) -> ScheduleSet {
    ScheduleSet { specs: vec![spec(name, "* * * * *", policy)], ..ScheduleSet::default() }
}

pub fn named(name: &str) -> EmbeddedMandate {
    EmbeddedMandate { name: name.into(), goal: "tidy up".into(), ..EmbeddedMandate::default() }
}

/// An attach server that counts what is asked of it.
#[derive(Default)]
pub struct Server {
    pub starts: AtomicUsize,
    pub stops: AtomicUsize,
    /// What it says its port is; `Err` when it cannot tell.
    pub port: Mutex<Option<Result<u16, String>>>,
    pub fail_start: bool,
    pub fail_stop: bool,
}

impl Server {
    pub fn counts(&self) -> (usize, usize) {
        (self.starts.load(Ordering::SeqCst), self.stops.load(Ordering::SeqCst))
    }
}

impl AttachServer for Server {
    fn start(&self) -> Result<(), AttachError> {
        self.starts.fetch_add(1, Ordering::SeqCst);
        if self.fail_start { Err("no socket".into()) } else { Ok(()) }
    }
    fn stop(&self) -> Result<(), AttachError> {
        self.stops.fetch_add(1, Ordering::SeqCst);
        if self.fail_stop { Err("no thread".into()) } else { Ok(()) }
    }
    fn port(&self) -> Result<Option<u16>, AttachError> {
        match &*self.port.lock().expect("no panic") {
            None => Ok(None),
            Some(Ok(port)) => Ok(Some(*port)),
            Some(Err(why)) => Err(why.clone().into()),
        }
    }
}

/// One log event: level, name, fields.
#[derive(Clone, Debug)]
pub struct Heard {
    pub level: tracing::Level,
    pub name: String,
    pub fields: Vec<(String, String)>,
}

impl Heard {
    pub fn field(&self, key: &str) -> &str {
        let found = self.fields.iter().find(|(name, _)| name == key);
        &found.unwrap_or_else(|| panic!("{key} is missing in {self:?}")).1
    }
}

thread_local!(static HEARD: RefCell<Option<Vec<Heard>>> = const { RefCell::new(None) });

/// Hears the events of this thread while it lives. The tests' runtimes are of one thread.
#[derive(Debug)]
pub struct Ear;

struct Listener;

/// Sets the one subscriber of the process, before any event: tracing remembers for each place of
/// the code whether anybody listens, and one that is asked while a subscriber comes is forgotten.
fn listen() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Listener);
        tracing::subscriber::set_global_default(subscriber).expect("nobody else sets one");
    });
}

impl Ear {
    pub fn new() -> Self {
        listen();
        HEARD.set(Some(Vec::new()));
        Self
    }

    pub fn all(&self, name: &str) -> Vec<Heard> {
        heard(|event| event.name == name)
    }

    pub fn one(&self, name: &str) -> Heard {
        let found = self.all(name);
        assert_eq!(found.len(), 1, "{name} was heard {} times", found.len());
        found.into_iter().next().expect("just counted")
    }

    pub fn errors(&self) -> Vec<Heard> {
        heard(|event| event.level == tracing::Level::ERROR)
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        HEARD.set(None);
    }
}

fn heard(which: impl Fn(&Heard) -> bool) -> Vec<Heard> {
    HEARD.with_borrow(|heard| heard.iter().flatten().filter(|event| which(event)).cloned().collect())
}

impl<S: tracing::Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        struct Fields(String, Vec<(String, String)>);
        impl Visit for Fields {
            fn record_str(&mut self, field: &Field, value: &str) {
                if field.name() == "message" {
                    value.clone_into(&mut self.0);
                } else {
                    self.1.push((field.name().to_owned(), value.to_owned()));
                }
            }
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.record_str(field, &format!("{value:?}"));
            }
        }
        let mut fields = Fields(String::new(), Vec::new());
        event.record(&mut fields);
        let heard = Heard { level: *event.metadata().level(), name: fields.0, fields: fields.1 };
        HEARD.with_borrow_mut(|all| all.iter_mut().for_each(|all| all.push(heard.clone())));
    }
}

/// Waits until `done`, on the runtime's time, not by counting.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    tokio::time::timeout(PATIENCE, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{what} did not happen"));
}

/// A runner that stands still inside its cycle until it is let go.
pub struct Gate {
    pub entered: std::sync::mpsc::Receiver<String>,
    pub let_go: std::sync::mpsc::Sender<()>,
}

/// The gate and the closure's side of it.
pub fn gate() -> (Gate, impl Fn(&str) + Send + Sync + 'static) {
    let (entering, entered) = std::sync::mpsc::channel();
    let (let_go, wait) = std::sync::mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let pass = move |id: &str| {
        entering.send(id.to_owned()).expect("the test listens");
        let _ = wait.lock().expect("no panic").recv_timeout(PATIENCE);
    };
    (Gate { entered, let_go }, pass)
}

impl Gate {
    /// Waits until a cycle is inside, without blocking the runtime.
    pub async fn entered(&self) -> String {
        let mut seen = None;
        until("a cycle's start", || {
            seen = seen.take().or_else(|| self.entered.try_recv().ok());
            seen.is_some()
        })
        .await;
        seen.expect("just seen")
    }
}

/// The one line of usage that a day has.
pub fn spent(wired: &Wired) -> (u64, u64, u64) {
    let spent = wired.spent_today().expect("it can be read").spent;
    (spent.llm_calls, spent.input_tokens, spent.output_tokens)
}
