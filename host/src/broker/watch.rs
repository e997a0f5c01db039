//! What a running cycle lets be seen of it, for people: in which phase it is, how far, and its last
//! lines. Kept in memory for whoever looks, and written to the log as it comes. Nothing of it
//! changes a result, is recorded or is read by the host.

use std::collections::VecDeque;
use std::sync::PoisonError;

use kairos_plugin_api::context::limit;
use serde::Serialize;
use serde_json::{Value, json};

use super::journal::{CycleServices, is_phase_name};
use super::tools::Watch;
use crate::domain::talk::cut;
use crate::store::NoteKind;

/// Longest message about progress, and longest line, that is kept, in characters.
const SHOWN_MAX: usize = 500;
/// Lines that are kept.
const LINES: usize = 20;

/// How far a cycle says it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// For people.
    pub message: String,
    /// From 0 to 1 where known.
    pub fraction: Option<f64>,
}

/// What can be seen of a cycle while it runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Seen {
    /// What it, or the program it runs, calls the part it is in.
    pub phase: Option<String>,
    /// The last that was said about it.
    pub progress: Option<Progress>,
    /// Its last lines for the log, oldest first.
    pub lines: VecDeque<String>,
}

impl CycleServices {
    /// What can be seen of it now.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.live().seen.clone()
    }

    pub(super) fn progressed(&self, message: &str, fraction: Option<f64>) {
        let message = message.chars().take(SHOWN_MAX).collect();
        let fraction = fraction.map(|share| share.clamp(0.0, 1.0));
        self.live().seen.progress = Some(Progress { message, fraction });
    }

    /// Writes a line to the log, as far as the ration goes.
    pub(super) fn say(&self, level: tracing::Level, target: &str, message: &str, fields: &Value) {
        let now = self.broker.clock.monotonic();
        let admitted = self.talk.lock().unwrap_or_else(PoisonError::into_inner).admit(now);
        let Some(dropped) = admitted else { return };
        {
            let line: String = message.chars().take(SHOWN_MAX).collect();
            let seen = &mut self.live().seen;
            if seen.lines.len() == LINES {
                seen.lines.pop_front();
            }
            seen.lines.push_back(format!("{}: {line}", level.as_str().to_lowercase()));
        }
        // What there is none of is left out.
        let fields = Some(fields).filter(|fields| !is_nothing(fields)).map(Value::to_string);
        let dropped = Some(dropped).filter(|dropped| *dropped > 0);
        // Not `message`: that is the event's own name.
        let (target, line, fields) = (cut(target), cut(message), fields.as_deref().map(cut));
        let (mandate, cycle, runner) = (&self.mandate.id, self.mandate.cycle, &self.runner);
        macro_rules! write {
            ($level:ident) => {
                tracing::event!(
                    tracing::Level::$level,
                    mandate,
                    cycle,
                    runner,
                    target,
                    line,
                    fields,
                    dropped,
                    "runner_log"
                )
            };
        }
        match level {
            tracing::Level::ERROR => write!(ERROR),
            tracing::Level::WARN => write!(WARN),
            tracing::Level::INFO => write!(INFO),
            tracing::Level::DEBUG => write!(DEBUG),
            tracing::Level::TRACE => write!(TRACE),
        }
    }
}

fn is_nothing(fields: &Value) -> bool {
    fields.is_null() || fields.as_object().is_some_and(serde_json::Map::is_empty)
}

/// A program that runs for the cycle tells what it does.
impl Watch for CycleServices {
    fn progress(&self, message: &str, fraction: Option<f64>) {
        self.progressed(message, fraction);
        let fields = fraction.map_or(Value::Null, |fraction| json!({"fraction": fraction}));
        self.say(tracing::Level::INFO, "progress", message, &fields);
    }

    /// Noted and shown, but not made the phase of this cycle's own calls: policy goes by that one,
    /// and what a tool says of itself must not move it.
    fn phase(&self, name: &str) {
        if is_phase_name(name) {
            let news = {
                let live = &mut *self.live();
                live.seen.phase = Some(name.to_owned());
                // What it names beyond is shown and not kept.
                live.told_phases.len() < limit::PHASES_MAX && live.told_phases.insert(name.to_owned())
            };
            if news {
                self.note(NoteKind::Phase(name.to_owned()));
            }
            self.say(tracing::Level::INFO, "phase", name, &Value::Null);
        }
    }

    fn log(&self, level: tracing::Level, message: &str) {
        self.say(level, "tool", message, &Value::Null);
    }
}
