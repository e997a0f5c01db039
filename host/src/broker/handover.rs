//! What passes from a running cycle to the store: intents, which are committed before anything
//! happens, and results and notes, which are handed in and ride on a later commit. Nothing that was
//! handed in may be lost unseen: what the store refused is handed in again before the next effect.

use kairos_plugin_api::{CallError, Mandate, Usage};
use serde_json::{Value, json};

use super::imposed::Imposed;
use super::journal::CycleServices;
use super::record::Answer;
use crate::domain::canonical;
use crate::store::{
    self, BeginStep, BegunStep, CycleNote, NoteKind, Pending, SettleStep, StepKind, StepState,
};

/// Notes and results of one cycle that may wait for the store. The call after that waits with them,
/// so that a crowd of calls is as fast as the store, and whoever else asks the store for something
/// waits for no more of them than these.
pub(super) const WAITING_MAX: usize = 32;

/// How sure [`CycleServices::settle_up`] has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    /// Look only at what the store has answered already.
    Lazily,
    /// Wait for every answer.
    Certainly,
}

/// What was handed to the store and is durable with a later commit.
#[derive(Clone)]
pub(super) enum Lazy {
    Settle(SettleStep),
    Note(CycleNote),
}

/// An effect that is about to be begun.
pub(super) struct Intended {
    pub kind: StepKind,
    pub name: String,
    pub params_hash: String,
    pub intent: Value,
    pub reserve: Usage,
}

impl CycleServices {
    /// True when nothing was handed to the store that is not known to be in it.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.live().lazy.is_empty()
    }

    /// Makes sure that what was handed to the store is in it, or will be with the finish. To be
    /// called before the finish with `Settling::Lazily` (blocks only if something failed) and, for certainty, after it
    /// with `Settling::Certainly`.
    ///
    /// # Errors
    /// What the store did not take, even when asked again: the finish must not be relied on.
    pub fn settle_up(&self, how: Settling) -> Result<(), store::Error> {
        let mut waiting = std::mem::take(&mut self.live().lazy).into_iter();
        while let Some((lazy, pending)) = waiting.next() {
            let result = match (how, pending.try_now()) {
                (_, Ok(result)) => result,
                (Settling::Certainly, Err(pending)) => pending.wait(),
                (Settling::Lazily, Err(pending)) => {
                    self.live().lazy.push((lazy, pending));
                    continue;
                }
            };
            // A full disk takes nothing and loses nothing: what it refused is handed in again, now
            // or at the next call.
            if result.is_err()
                && let Err(error) = self.hand_in(&lazy).wait()
            {
                let mut live = self.live();
                live.lazy.push((lazy, Pending::ready(Err(error.clone()))));
                live.lazy.extend(waiting);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Waits until there is room for what the next call hands in. Without a lock: whoever looks at
    /// the cycle meanwhile does not wait.
    ///
    /// # Errors
    /// The store does not take what waits; the attempt is over, and what waits is kept.
    pub(super) fn make_room(&self) -> Result<(), CallError> {
        if self.live().lazy.len() < WAITING_MAX {
            return Ok(());
        }
        // Its own error is told by what it waits for.
        let _ = self.broker.store.flush().wait();
        self.settle_up(Settling::Certainly).map_err(|error| self.end(Imposed::Store(error)))
    }

    /// Commits an intent. Whatever was handed in before is in the store when this returns.
    pub(super) fn begin(&self, effect: Intended) -> Result<String, CallError> {
        let (seq, phase) = {
            let live = self.live();
            (live.replay.next_seq(), live.phase.clone())
        };
        let Mandate { id, cycle, attempt, .. } = &self.mandate;
        let key = canonical::step_key(id, *cycle, seq, &effect.params_hash);
        // What costs nothing needs no budget: paid decisions can still be carried out.
        let gate = (!effect.reserve.is_zero()).then(|| (self.broker.gate)());
        let step = BeginStep {
            mandate: id.clone(),
            cycle: *cycle,
            attempt: *attempt,
            seq,
            kind: effect.kind,
            name: effect.name,
            phase,
            key: key.clone(),
            params_hash: effect.params_hash,
            intent: effect.intent,
            reserve: effect.reserve,
            gate,
            now: self.broker.clock.now(),
        };
        let store_failed = |error| self.end(Imposed::Store(error));
        self.settle_up(Settling::Lazily).map_err(store_failed)?;
        match self.broker.store.begin_step(step).wait().map_err(store_failed)? {
            BegunStep::Begun => {}
            BegunStep::Exhausted(block) => return Err(self.end(Imposed::Budget(block))),
        }
        self.settle_up(Settling::Certainly).map_err(store_failed)?;
        Ok(key)
    }

    /// Hands in the result of the step at hand. `usage` as in [`SettleStep`].
    pub(super) fn settle(&self, answer: &Result<Value, CallError>, usage: Option<Usage>, recovered: bool) {
        let answer = Answer::of(answer);
        self.hand_over(StepState::Done, json!(answer), usage, recovered);
        let mut live = self.live();
        live.metered = live.metered.plus(usage.unwrap_or_default());
        live.replay.advance();
    }

    /// Hands in what is known of a step that has no result: given up, or for a person.
    pub(super) fn hand_over(&self, state: StepState, result: Value, usage: Option<Usage>, recovered: bool) {
        let seq = self.live().replay.next_seq();
        self.send(Lazy::Settle(SettleStep {
            mandate: self.mandate.id.clone(),
            cycle: self.mandate.cycle,
            attempt: self.mandate.attempt,
            seq,
            state,
            result,
            usage,
            recovered,
            now: self.broker.clock.now(),
        }));
    }

    pub(super) fn note(&self, what: NoteKind) {
        self.send(Lazy::Note(CycleNote {
            mandate: self.mandate.id.clone(),
            cycle: self.mandate.cycle,
            attempt: self.mandate.attempt,
            now: self.broker.clock.now(),
            what,
        }));
    }

    fn send(&self, lazy: Lazy) {
        // Under the lock, so that the store sees things in the order in which they happened.
        let mut live = self.live();
        let pending = self.hand_in(&lazy);
        live.lazy.push((lazy, pending));
    }

    fn hand_in(&self, lazy: &Lazy) -> Pending<()> {
        match lazy.clone() {
            Lazy::Settle(step) => self.broker.store.settle_step(step),
            Lazy::Note(note) => self.broker.store.note(note),
        }
    }
}
