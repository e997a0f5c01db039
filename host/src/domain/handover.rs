//! The states that instances of a runner leave to the instances of another version: whose each one
//! is, which nobody has taken up yet, and how much of them is kept.
//!
//! A state belongs to one instance at a time: it is given to one, and comes back under the same
//! number when that one hands over in its turn. Nothing here is dropped without being given back
//! to the caller, who says so.

use std::collections::{BTreeSet, VecDeque};

use kairos_plugin_api::State;
use serde::{Deserialize, Serialize};

/// Most bytes of one instance's state, as JSON.
pub const STATE_MAX: usize = 4 << 20;
/// Most states that one version keeps for instances to come.
pub const STATES_MAX: usize = 4096;
/// Most bytes of all of them; they go into one commit.
pub const TOTAL_MAX: usize = 16 << 20;

/// Names a state on its way through instances and versions.
pub type StateId = u64;

/// What one instance handed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceState {
    /// The same for as long as instances pass it on.
    pub id: StateId,
    /// The schedule that the instance was for, where it was for one: only an instance for that
    /// schedule may see it in a sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The state itself.
    pub state: State,
    /// True for one that the version that holds it cannot use; it only passes it on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub aside: bool,
}

impl InstanceState {
    fn bytes(&self) -> usize {
        let owner = self.owner.as_ref().map_or(0, String::len);
        owner + serde_json::to_vec(&self.state).map_or(TOTAL_MAX, |bytes| bytes.len())
    }
}

/// The states of all instances of a version.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct HandOver(pub Vec<InstanceState>);

/// How it may stand in a store: the first stores kept one state without an owner.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Many(Vec<InstanceState>),
    One(State),
}

impl From<Written> for HandOver {
    fn from(written: Written) -> Self {
        match written {
            Written::Many(states) => Self(states),
            Written::One(state) => Self(vec![InstanceState { id: 1, owner: None, state, aside: false }]),
        }
    }
}

impl HandOver {
    /// Whether there is nothing to hand over.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first state that counts and is of none of these schemas.
    #[must_use]
    pub fn unreadable(&self, schemas: &[String]) -> Option<&InstanceState> {
        self.0.iter().find(|each| !each.aside && !schemas.contains(&each.state.schema))
    }

    /// Sets aside what a version that reads these schemas cannot use, and nothing else.
    #[must_use]
    pub fn read_by(mut self, schemas: &[String]) -> Self {
        for each in &mut self.0 {
            each.aside = !schemas.contains(&each.state.schema);
        }
        self
    }

    /// How many states there are of which schemas, for people; `none` if none counts.
    #[must_use]
    pub fn told(&self) -> String {
        let used = self.0.iter().filter(|each| !each.aside);
        let count = used.clone().count();
        let schemas: BTreeSet<&str> = used.map(|each| each.state.schema.as_str()).collect();
        let schemas = schemas.into_iter().collect::<Vec<_>>().join(", ");
        match count {
            0 => "none".to_owned(),
            1 => schemas,
            many => format!("{many} of {schemas}"),
        }
    }

    /// Whether it is more than is handed over at once.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.0.len() > STATES_MAX || self.0.iter().map(InstanceState::bytes).sum::<usize>() > TOTAL_MAX
    }
}

/// States that wait for an instance, in the order in which they came, within bounds.
#[derive(Debug, Default)]
pub struct Waiting {
    states: VecDeque<(InstanceState, usize)>,
    bytes: usize,
}

impl Waiting {
    /// Takes one in. Gives what must go for it: what is of no use first, then the oldest.
    #[must_use]
    pub fn keep(&mut self, state: InstanceState) -> Vec<InstanceState> {
        let bytes = state.bytes();
        self.bytes += bytes;
        self.states.push_back((state, bytes));
        self.cut()
    }

    /// Takes one back that came from here, as the next to be given.
    pub fn put_back(&mut self, state: InstanceState) {
        let bytes = state.bytes();
        self.bytes += bytes;
        self.states.push_front((state, bytes));
    }

    /// Gives the oldest that can be used and that fits.
    pub fn take(&mut self, fits: impl Fn(&InstanceState) -> bool) -> Option<InstanceState> {
        let at = self.states.iter().position(|(state, _)| !state.aside && fits(state))?;
        let (state, bytes) = self.states.remove(at)?;
        self.bytes -= bytes;
        Some(state)
    }

    /// The oldest that [`Waiting::take`] would give.
    pub fn next(&self, fits: impl Fn(&InstanceState) -> bool) -> Option<&InstanceState> {
        self.states.iter().map(|(state, _)| state).find(|state| !state.aside && fits(state))
    }

    /// Forgets those that came back by another way, in a form that can be used.
    pub fn supersede(&mut self, by: &HandOver) {
        let newer: BTreeSet<StateId> =
            by.0.iter().filter(|state| !state.aside).map(|state| state.id).collect();
        self.states.retain(|(state, _)| !newer.contains(&state.id));
        self.bytes = self.states.iter().map(|(_, bytes)| bytes).sum();
    }

    /// All of them, those aside included.
    #[must_use]
    pub fn all(&self) -> Vec<InstanceState> {
        self.states.iter().map(|(state, _)| state.clone()).collect()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    fn cut(&mut self) -> Vec<InstanceState> {
        let mut gone = vec![];
        while self.states.len() > STATES_MAX || self.bytes > TOTAL_MAX {
            let at = self.states.iter().position(|(state, _)| state.aside).unwrap_or(0);
            let Some((state, bytes)) = self.states.remove(at) else { break };
            self.bytes -= bytes;
            gone.push(state);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn state(id: StateId, owner: Option<&str>, schema: &str) -> InstanceState {
        let state = State { schema: schema.to_owned(), data: json!({"n": id}) };
        InstanceState { id, owner: owner.map(str::to_owned), state, aside: false }
    }

    fn ids(states: &[InstanceState]) -> Vec<StateId> {
        states.iter().map(|state| state.id).collect()
    }

    #[test]
    fn each_state_is_given_once_in_the_order_of_arrival_to_whom_it_fits() {
        let mut waiting = Waiting::default();
        for (id, owner) in [(1, Some("a")), (2, Some("b")), (3, Some("a"))] {
            assert!(waiting.keep(state(id, owner, "s/1")).is_empty());
        }
        let of = |owner: &'static str| move |state: &InstanceState| state.owner.as_deref() == Some(owner);
        assert_eq!(waiting.next(of("b")).map(|state| state.id), Some(2));
        let first = waiting.take(of("a")).unwrap();
        assert_eq!((first.id, waiting.take(of("a")).map(|state| state.id)), (1, Some(3)));
        assert_eq!(waiting.take(of("a")), None);
        waiting.put_back(first);
        assert_eq!(waiting.take(|_| true).map(|state| state.id), Some(1), "before those that came later");
        assert_eq!(ids(&waiting.all()), [2]);
    }

    #[test]
    fn what_cannot_be_read_is_set_aside_and_handed_on() {
        let one = ["s/1".to_owned()];
        let states = HandOver(vec![state(1, None, "s/1"), state(2, None, "s/2")]);
        assert_eq!(states.unreadable(&one).map(|state| state.id), Some(2));
        assert_eq!(states.told(), "2 of s/1, s/2");
        let states = states.read_by(&one);
        assert_eq!((states.unreadable(&one), states.told().as_str()), (None, "s/1"));
        let mut waiting = Waiting::default();
        for state in states.0 {
            assert!(waiting.keep(state).is_empty());
        }
        assert_eq!(waiting.take(|_| true).map(|state| state.id), Some(1));
        assert_eq!(waiting.take(|_| true), None);
        let left = HandOver(waiting.all()).read_by(&["s/2".to_owned()]);
        assert_eq!((left.0[0].id, left.0[0].aside), (2, false), "the next version reads it");
    }

    #[test]
    fn a_state_that_comes_back_takes_the_place_of_its_former_self() {
        let mut waiting = Waiting::default();
        for id in 1..=3 {
            assert!(waiting.keep(state(id, None, "s/1")).is_empty());
        }
        let useless = InstanceState { aside: true, ..state(3, None, "s/2") };
        waiting.supersede(&HandOver(vec![state(2, None, "s/1"), useless, state(9, None, "s/1")]));
        assert_eq!(ids(&waiting.all()), [1, 3]);
    }

    #[test]
    fn beyond_the_bounds_useless_states_go_first_and_then_the_oldest() {
        let mut waiting = Waiting::default();
        let large = |id, aside| InstanceState {
            aside,
            state: State { schema: "s/1".to_owned(), data: json!("x".repeat(STATE_MAX - 100)) },
            ..state(id, None, "s/1")
        };
        for (id, aside) in [(1, false), (2, true), (3, false), (4, false)] {
            assert!(waiting.keep(large(id, aside)).is_empty());
        }
        assert_eq!(ids(&waiting.keep(large(5, false))), [2]);
        assert_eq!(ids(&waiting.keep(large(6, false))), [1]);
        assert!(HandOver((0..5).map(|id| large(id, false)).collect()).is_too_large());
        let mut many = Waiting::default();
        let gone: Vec<InstanceState> =
            (0..=STATES_MAX as u64).flat_map(|id| many.keep(state(id, None, "s/1"))).collect();
        assert_eq!((ids(&gone), many.len()), (vec![0], STATES_MAX));
    }

    #[test]
    fn a_single_state_of_an_older_store_is_read() {
        let old = json!({"schema": "notes/1", "data": {"seen": 3}});
        let read: HandOver = serde_json::from_value(old).unwrap();
        assert_eq!((read.0[0].state.schema.as_str(), read.0[0].owner.as_deref()), ("notes/1", None));
        let now = HandOver(vec![state(7, Some("a"), "s/1")]);
        assert_eq!(serde_json::from_value::<HandOver>(serde_json::to_value(&now).unwrap()).unwrap(), now);
    }
}
