//! What goes wrong in a script, and at which call.

use std::time::Duration;

use serde_json::Value;

use super::FakeHost;
use super::world::{World, is_effect};
use crate::context::method;
use crate::error::{CallError, code};

/// Stands for every call in the place of a method's name.
pub const ANY: &str = "any";

/// Something that the script wants at one certain call.
pub(super) struct Fault {
    call: String,
    nth: usize,
    what: What,
}

enum What {
    /// It is answered so.
    Answer(CallError),
    /// It takes so long, on the clock that moves by hand.
    Takes(Duration),
    /// While it is under way, the cycle is asked to end.
    Cancel,
    /// While it is under way, the cycle's time is over.
    Deadline,
    /// The attempt is cut just before it.
    Crash,
}

/// Faults. `call` is one of [`method`], `tool:` and a tool's name, or [`ANY`]; `nth` counts from 1
/// the times that the host is really asked, over all runs, replays not counted.
impl FakeHost {
    /// The call is answered with this error, once.
    #[must_use]
    pub fn fail_at(self, call: &str, nth: usize, error: CallError) -> Self {
        self.fault(call, nth, What::Answer(error))
    }

    /// The daemon stops at this call.
    #[must_use]
    pub fn stop_at(self, call: &str, nth: usize) -> Self {
        self.fail_at(call, nth, CallError::new(code::STOPPED, "the daemon stops"))
    }

    /// The day's budget is used up at this call.
    #[must_use]
    pub fn budget_exhausted_at(self, call: &str, nth: usize) -> Self {
        self.fail_at(call, nth, CallError::new(code::BUDGET_EXHAUSTED, "the day's limit is reached"))
    }

    /// The cycle is asked to end while this call is under way: an effect is answered `stopped`, any
    /// other call as always, and `should_stop` is true from then on.
    #[must_use]
    pub fn cancel_at(self, call: &str, nth: usize) -> Self {
        self.fault(call, nth, What::Cancel)
    }

    /// The call takes so long on the manual clock. An effect that takes longer than the deadline
    /// leaves is answered `deadline`.
    #[must_use]
    pub fn takes(self, call: &str, nth: usize, time: Duration) -> Self {
        self.fault(call, nth, What::Takes(time))
    }

    /// The cycle's time is over while this call is under way, wherever the clock and the deadline stand:
    /// an effect is answered `deadline`, any other call as always, and `should_stop` is true from then
    /// on. The next attempt has its time again.
    #[must_use]
    pub fn deadline_at(self, call: &str, nth: usize) -> Self {
        self.fault(call, nth, What::Deadline)
    }

    /// The attempt is cut just before this call, as a crash would: its outcome is lost, and the next
    /// run replays what was recorded.
    #[must_use]
    pub fn crash_at(self, call: &str, nth: usize) -> Self {
        self.fault(call, nth, What::Crash)
    }

    /// The next run is cut just before the step at this place in its cycle's record, from 0; just
    /// before its end when there is no such step.
    #[must_use]
    pub fn cut_at_step(self, place: usize) -> Self {
        self.lock().cut = Some(place);
        self
    }

    /// Faults that have not come, as they were scripted: the call and which time of it. A test whose
    /// fault never comes shows nothing.
    #[must_use]
    pub fn faults_left(&self) -> Vec<(String, usize)> {
        self.lock().faults.iter().map(|fault| (fault.call.clone(), fault.nth)).collect()
    }

    /// Scripted answers that nobody has asked for: `llm`, `propose` or `tool:NAME`, and how many.
    #[must_use]
    pub fn replies_left(&self) -> Vec<(String, usize)> {
        let world = self.lock();
        let mut left: Vec<_> =
            world.tools.iter().map(|(name, answers)| (format!("tool:{name}"), answers.len())).collect();
        left.push((method::LLM.to_owned(), world.llm.len()));
        left.push((method::PROPOSE.to_owned(), world.decisions.len()));
        left.retain(|(_, count)| *count > 0);
        left.sort();
        left
    }

    fn fault(self, call: &str, nth: usize, what: What) -> Self {
        self.lock().faults.push(Fault { call: call.to_owned(), nth, what });
        self
    }
}

impl World {
    /// The error the script or the clock has for this call, if any.
    pub(super) fn refusal(&mut self, method: &str, request: &Value) -> Option<CallError> {
        let mut names = vec![ANY.to_owned(), method.to_owned()];
        if method == method::TOOL {
            names.push(format!("tool:{}", request["name"].as_str().unwrap_or_default()));
        }
        for name in &names {
            *self.asked.entry(name.clone()).or_default() += 1;
        }
        let asked = &self.asked;
        let due = |fault: &Fault| names.contains(&fault.call) && asked[&fault.call] == fault.nth;
        let (due, later): (Vec<Fault>, Vec<Fault>) =
            std::mem::take(&mut self.faults).into_iter().partition(due);
        self.faults = later;
        let mut answer = None;
        for fault in due {
            match fault.what {
                What::Answer(error) => {
                    self.stopping |= error.code == code::STOPPED;
                    answer.get_or_insert(error);
                }
                What::Takes(time) => self.now += time,
                What::Cancel => self.stopping = true,
                What::Deadline => {
                    let set = self.deadline.replace(self.now);
                    self.cut_short.get_or_insert(set);
                }
                What::Crash => {
                    // The call did not happen.
                    names.iter().for_each(|name| *self.asked.entry(name.clone()).or_default() -= 1);
                    return Some(self.crash());
                }
            }
        }
        if answer.is_some() || !is_effect(method) {
            return answer;
        }
        self.over()
    }

    /// What every effect is answered once the cycle should end, a recorded one too.
    pub(super) fn over(&self) -> Option<CallError> {
        if self.stopping {
            return Some(CallError::new(code::STOPPED, "the cycle is asked to end"));
        }
        self.late().then(|| CallError::new(code::DEADLINE, "the cycle's time is over"))
    }

    /// True when the deadline has passed.
    pub(super) fn late(&self) -> bool {
        self.deadline.is_some_and(|deadline| self.now >= deadline)
    }

    /// Ends the attempt without an outcome.
    pub(super) fn crash(&mut self) -> CallError {
        self.cut = Some(self.position);
        self.was_cut = true;
        CallError::new(code::STOPPED, "the attempt is cut here")
    }
}
