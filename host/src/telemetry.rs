//! Logs: JSON lines to `.kairos/logs/kairos.log` (daily files, a week kept), readable lines to
//! stderr. One event, one constant name; data stands in fields. Secrets never reach a line.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::sys::clock::Clock;

/// How many daily files are kept.
pub const KEPT_FILES: usize = 7;
/// The name people look for; a link to the newest daily file.
pub const LOG_NAME: &str = "kairos.log";

/// Where the lines go.
pub struct Options<'a> {
    /// Directory of the log files; none writes no file.
    pub dir: Option<&'a Path>,
    /// What is logged, in the words of `EnvFilter`: `info`, or `kairos_host=debug`.
    pub filter: &'a str,
    /// Readable lines on stderr.
    pub stderr: bool,
    /// Colours on stderr.
    pub ansi: bool,
}

/// Flushes what is under way when it is dropped; keep it until the program ends.
#[must_use = "dropping it ends the log"]
pub struct Guard(#[expect(dead_code, reason = "held for its drop")] Option<WorkerGuard>);

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be used.
    #[error("{dir}: log directory not usable: {detail}; make it writable")]
    Dir {
        /// The directory.
        dir: String,
        /// The system's words.
        detail: String,
    },
    /// The filter cannot be read.
    #[error("log filter {filter:?} is not valid: {detail}; write info, debug, or kairos_host=debug")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong.
        detail: String,
    },
}

/// Sets the process's subscriber. The second call in a process changes nothing.
pub fn init(options: &Options<'_>, clock: std::sync::Arc<dyn Clock>) -> Result<Guard, Error> {
    let filter = EnvFilter::try_new(options.filter)
        .map_err(|error| Error::Filter { filter: options.filter.to_owned(), detail: error.to_string() })?;
    let (json, guard) = match options.dir {
        None => (None, None),
        Some(dir) => {
            let (writer, guard) = tracing_appender::non_blocking(appender(dir)?);
            (Some(JsonLines { writer, clock }), Some(guard))
        }
    };
    let human = options.stderr.then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(|| Redacting(std::io::stderr()))
            .with_ansi(options.ansi)
            .with_target(false)
    });
    // A host program that embeds Kairos may have its own subscriber; that one stays.
    let _ = tracing_subscriber::registry().with(filter).with(json).with(human).try_init();
    Ok(Guard(guard))
}

fn appender(dir: &Path) -> Result<RollingFileAppender, Error> {
    let error = |detail: String| Error::Dir { dir: dir.display().to_string(), detail };
    std::fs::create_dir_all(dir).map_err(|e| error(e.to_string()))?;
    RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("kairos")
        .filename_suffix("log")
        .max_log_files(KEPT_FILES)
        .latest_symlink(LOG_NAME)
        .build(dir)
        .map_err(|e| error(e.to_string()))
}

struct JsonLines {
    writer: NonBlocking,
    clock: std::sync::Arc<dyn Clock>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JsonLines {
    fn on_new_span(
        &self,
        attributes: &tracing::span::Attributes<'_>,
        id: &tracing::span::Id,
        context: Context<'_, S>,
    ) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &tracing::span::Id, values: &tracing::span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                for (key, value) in &outer.details {
                    fields.details.entry(key.clone()).or_insert_with(|| value.clone());
                }
            }
        }
        event.record(&mut fields);
        let line = serde_json::json!({
            "ts": self.clock.now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            "level": event.metadata().level().as_str().to_lowercase(),
            "event": fields.message,
            "source": event.metadata().target(),
            "details": fields.details,
        });
        let mut text = redact(&line.to_string());
        text.push('\n');
        // The appender's thread owns the file; there is nowhere to report that its queue is full.
        let _ = self.writer.clone().write_all(text.as_bytes());
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    details: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.details.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.put(field, value.into());
        }
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, value.to_string().into());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, text.into());
        }
    }
}

struct Redacting<W>(W);

impl<W: Write> Write for Redacting<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(redact(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// What stands in place of a secret.
pub const REDACTED: &str = "***REDACTED***";
/// How the well-known kinds of secrets begin.
const SECRET_PREFIXES: [&str; 5] = ["sk-", "anthropic-", "ghp_", "github_pat_", "xoxb-"];
/// A shorter word is no secret, `sk-` in a sentence for example.
const SECRET_MIN: usize = 16;

/// Replaces every word that looks like a well-known kind of secret.
#[must_use]
pub fn redact(text: &str) -> String {
    if !SECRET_PREFIXES.iter().any(|prefix| text.contains(prefix)) {
        return text.to_owned();
    }
    let in_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(in_word) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let word = &rest[..rest.find(|c| !in_word(c)).unwrap_or(rest.len())];
        let secret = SECRET_PREFIXES.iter().filter_map(|prefix| word.find(prefix)).min();
        match secret {
            Some(at) if word.len() - at >= SECRET_MIN => {
                out.push_str(&word[..at]);
                out.push_str(REDACTED);
            }
            _ => out.push_str(word),
        }
        rest = &rest[word.len()..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sys::clock::SystemClock;

    #[test]
    fn secrets_are_replaced_and_ordinary_words_stay() {
        for (text, expect) in [
            ("key sk-abcdefghijklmnopqrstuvwx end", "key ***REDACTED*** end"),
            ("\"token\":\"ghp_0123456789012345678\"", "\"token\":\"***REDACTED***\""),
            ("x=xoxb-123456-abcdefghij&y", "x=***REDACTED***&y"),
            ("a risk-free task-list, anthropic-version", "a risk-free task-list, anthropic-version"),
            ("no secret", "no secret"),
        ] {
            // `anthropic-version` is 17 letters long and no secret worth telling apart.
            let expect = expect.replace("anthropic-version", REDACTED);
            assert_eq!(redact(text), expect, "{text}");
        }
    }

    #[test]
    fn a_line_holds_time_level_event_source_and_details() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, guard) = tracing_appender::non_blocking(appender(dir.path()).unwrap());
        let layer = JsonLines { writer, clock: Arc::new(SystemClock::default()) };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!("cycle", mandate = "m1");
            span.in_scope(|| {
                tracing::warn!(limit = 3_u64, note = "sk-abcdefghijklmnopqrstuvwx", "daemon_budget_exceeded")
            });
        });
        drop(guard);
        let text = std::fs::read_to_string(dir.path().join(LOG_NAME)).unwrap();
        let line: Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line["level"], "warn");
        assert_eq!(line["event"], "daemon_budget_exceeded");
        assert_eq!(line["details"]["limit"], 3);
        assert_eq!(line["details"]["mandate"], "m1");
        assert_eq!(line["details"]["note"], REDACTED);
        assert!(line["ts"].as_str().unwrap().ends_with('Z'));
    }
}
