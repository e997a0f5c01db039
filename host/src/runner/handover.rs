//! The hand-over of state between versions, where a version has one instance for all its cycles.
//! Those with an instance for each cycle see to it themselves (`worker/handover.rs`).

use kairos_plugin_api::{CallError, State};

use super::{RunnerBackend, RunnerError};
use crate::domain::handover::{HandOver, InstanceState, STATE_MAX, StateId, Waiting};
use crate::sys::entropy::{Entropy, SystemEntropy};

/// A name that no other state has.
pub(super) fn fresh_id() -> StateId {
    let mut bytes = [0; 8];
    SystemEntropy.fill(&mut bytes);
    StateId::from_le_bytes(bytes)
}

/// A state as a runner gave it, if it is one and within bounds.
///
/// # Errors
/// What it is instead.
pub(super) fn checked(state: &[u8]) -> Result<Option<State>, RunnerError> {
    let invalid = |what: String| RunnerError::Call(CallError::invalid(what));
    if state.len() > STATE_MAX {
        return Err(invalid(format!("exported state: {} bytes; at most {STATE_MAX} are kept", state.len())));
    }
    serde_json::from_slice(state).map_err(|error| invalid(format!("exported state: {error}")))
}

/// Says that states are gone for good.
pub(super) fn tell_dropped(runner: &str, dropped: &[InstanceState], why: &str) {
    for state in dropped {
        let (schema, owner) = (&state.state.schema, state.owner.as_deref());
        tracing::warn!(runner, schema, schedule = owner, why, "runner_state_dropped");
    }
}

/// The one instance, as far as its state goes.
#[derive(Default)]
pub(super) struct Single {
    /// The name of its state, once that was taken over or handed over.
    id: Option<StateId>,
    /// What it could not take as well.
    waiting: Waiting,
}

impl Single {
    /// It panicked: a fresh one takes its place, and its state is gone.
    pub fn retired(&mut self) {
        self.id = None;
    }

    pub fn hand_over(&mut self, backend: &dyn RunnerBackend) -> Result<HandOver, RunnerError> {
        let mut states = vec![];
        if let Some(state) = backend.export_state()? {
            let bytes = serde_json::to_vec(&state).map_err(|error| RunnerError::Call(error.into()))?;
            checked(&bytes)?;
            let id = *self.id.get_or_insert_with(fresh_id);
            states.push(InstanceState { id, owner: None, state, aside: false });
        }
        states.extend(self.waiting.all());
        Ok(HandOver(states))
    }

    pub fn take_over(&mut self, states: HandOver, backend: &dyn RunnerBackend) -> Result<(), RunnerError> {
        self.waiting.supersede(&states);
        for state in states.0 {
            tell_dropped(&backend.identity().name, &self.waiting.keep(state), "too many states wait");
        }
        // Its own in the first place; any other only while it has none.
        let own = self.id;
        let Some(mut next) = self.waiting.take(|state| own.is_none_or(|own| own == state.id)) else {
            return Ok(());
        };
        let imported = backend.import_state(next.state.clone());
        match imported {
            Ok(()) => self.id = Some(next.id),
            Err(_) => {
                next.aside = true;
                tell_dropped(&backend.identity().name, &self.waiting.keep(next), "too many states wait");
            }
        }
        imported
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::Builtin;
    use kairos_plugin_api::{Context, CycleRunner, Mandate, Report};
    use serde_json::{Value, json};
    use std::sync::Mutex;

    /// Keeps a number; refuses those below zero.
    struct Number(Mutex<i64>);

    impl CycleRunner for Number {
        fn new(_: &Value) -> Result<Self, CallError> {
            Ok(Self(Mutex::new(0)))
        }
        fn run_cycle(&self, _: &Mandate, _: &Context) -> Result<Report, CallError> {
            Ok(Report::ok())
        }
        fn export_state(&self) -> Result<Option<State>, CallError> {
            Ok(Some(State { schema: "n/1".to_owned(), data: json!(*self.0.lock().unwrap()) }))
        }
        fn import_state(&self, state: State) -> Result<(), CallError> {
            let number = state.data.as_i64().filter(|number| *number >= 0);
            *self.0.lock().unwrap() = number.ok_or_else(|| CallError::invalid("no such number"))?;
            Ok(())
        }
    }

    fn state(id: StateId, number: i64) -> InstanceState {
        let state = State { schema: "n/1".to_owned(), data: json!(number) };
        InstanceState { id, owner: None, state, aside: false }
    }

    fn numbers(states: &HandOver) -> Vec<(bool, i64)> {
        states.0.iter().map(|state| (state.aside, state.state.data.as_i64().unwrap())).collect()
    }

    #[test]
    fn one_instance_takes_one_state_and_keeps_the_others_for_the_next_version() {
        let backend = Builtin::of::<Number>("number", &json!({})).unwrap();
        let mut single = Single::default();
        single.take_over(HandOver(vec![state(1, 10), state(2, 20)]), &backend).unwrap();
        assert_eq!(numbers(&single.hand_over(&backend).unwrap()), [(false, 10), (false, 20)]);
        // It gets its own back, and no other in its place.
        single.take_over(HandOver(vec![state(3, 30), state(1, 11)]), &backend).unwrap();
        assert_eq!(numbers(&single.hand_over(&backend).unwrap()), [(false, 11), (false, 20), (false, 30)]);
        single.take_over(HandOver(vec![state(2, 21)]), &backend).unwrap();
        assert_eq!(numbers(&single.hand_over(&backend).unwrap()), [(false, 11), (false, 30), (false, 21)]);
    }

    #[test]
    fn a_state_that_is_refused_is_told_and_kept_aside() {
        let backend = Builtin::of::<Number>("number", &json!({})).unwrap();
        let mut single = Single::default();
        let error = single.take_over(HandOver(vec![state(1, -1), state(2, 2)]), &backend).unwrap_err();
        assert!(error.to_string().contains("no such number"), "{error}");
        let left = single.hand_over(&backend).unwrap();
        assert_eq!(numbers(&left), [(false, 0), (false, 2), (true, -1)]);
    }

    #[test]
    fn an_exported_state_is_checked_before_it_is_kept() {
        assert_eq!(checked(b"null").unwrap(), None);
        assert!(checked(br#"{"schema": "n/1", "data": 1}"#).unwrap().is_some());
        assert!(checked(br#"{"schema": 1}"#).unwrap_err().to_string().contains("exported state"));
        let long = checked(&vec![b' '; STATE_MAX + 1]).unwrap_err().to_string();
        assert!(long.contains("at most"), "{long}");
    }
}
