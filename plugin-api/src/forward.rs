//! Carries tracing events and panics of a plugin's image to the host's log.
//!
//! A plugin has its own copy of tracing and of std, which the host's subscriber and panic hook
//! never see. Events go to the host of the cycle that runs on the thread; on threads of the
//! author's own, to the host of the instance made last. Spans are not forwarded.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::context::HostCalls;

thread_local! {
    static CURRENT: RefCell<Option<Arc<dyn HostCalls>>> = const { RefCell::new(None) };
    static PLACE: Cell<Option<String>> = const { Cell::new(None) };
}

static HOME: Mutex<Option<Weak<dyn HostCalls>>> = Mutex::new(None);

/// Runs `work` with `host` as the receiver of this thread's events.
pub(crate) fn within<T>(host: &Arc<dyn HostCalls>, work: impl FnOnce() -> T) -> T {
    /// Puts the former receiver back, on a panic too.
    struct Restore(Option<Arc<dyn HostCalls>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let former = self.0.take();
            let _ = CURRENT.try_with(|current| current.replace(former));
        }
    }
    let _restore = Restore(CURRENT.with(|current| current.replace(Some(Arc::clone(host)))));
    work()
}

/// The same where no runner is loaded, in a test of its author's: this thread's events of `work` go to
/// `host` as those of a plugin would, whatever subscriber the test has.
pub(crate) fn recorded<T>(host: &Arc<dyn HostCalls>, work: impl FnOnce() -> T) -> T {
    let forward = Forward { level: LevelFilter::INFO, spans: AtomicU64::new(0) };
    tracing::subscriber::with_default(forward, || within(host, work))
}

/// Makes `home` the receiver for threads without a cycle, and this image's subscriber the
/// forwarding one, unless the author has set another.
pub(crate) fn install(home: &Arc<dyn HostCalls>, level: &str) {
    *HOME.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::downgrade(home));
    let level = level.parse().unwrap_or(LevelFilter::INFO);
    // Fails from the second instance on, which is as it should be.
    let _ = tracing::subscriber::set_global_default(Forward { level, spans: AtomicU64::new(0) });
}

/// Replaces std's hook: a panic is an error of the cycle and one line in the host's log, not a
/// backtrace on the daemon's stderr.
pub(crate) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let message = info.payload_as_str().unwrap_or("no message");
        send(Level::ERROR, "panic", &format!("panicked at {place}: {message}"), &Value::Null);
        let _ = PLACE.try_with(|last| last.set(Some(place)));
    }));
}

/// Where the last panic of this thread happened, once.
pub(crate) fn last_panic_place() -> Option<String> {
    PLACE.with(Cell::take)
}

/// 1 for error to 5 for trace.
pub(crate) fn level_number(level: Level) -> u32 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

fn send(level: Level, target: &str, message: &str, fields: &Value) {
    // The slot is free again while the host is called, so that the host may be asked from there.
    let current = CURRENT.try_with(|current| current.try_borrow().ok().and_then(|host| host.clone()));
    let host = current.ok().flatten().or_else(|| {
        let home = HOME.lock().unwrap_or_else(PoisonError::into_inner);
        home.as_ref().and_then(Weak::upgrade)
    });
    if let Some(host) = host {
        host.log(level, target, message, fields);
    }
}

struct Forward {
    level: LevelFilter,
    spans: AtomicU64,
}

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut seen = Fields::default();
        event.record(&mut seen);
        let fields = if seen.fields.is_empty() { Value::Null } else { Value::Object(seen.fields) };
        send(*event.metadata().level(), event.metadata().target(), &seen.message, &fields);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    fields: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.fields.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.put(field, format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.put(field, value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
}
