//! The life of a generation: one version of a runner's code in its slot, from candidate to retired.
//! Live code and recovery go through the one function here, so a store that tells an impossible
//! story is noticed.
//!
//! ```text
//! candidate -> probed -> standby -> active -> draining -> retired
//!     |          |         |  ^        |  \
//!     +----------+---------+  |        |   +--> rolled_back
//!     |                       +--------+  (a canary keeps its predecessor in standby)
//!     +--> refused, or retired where nobody judged it
//! ```

use serde::{Deserialize, Serialize};

/// Where a generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerationState {
    /// A file that somebody wants to serve; nothing of it has run.
    Candidate,
    /// It loads, and answers in a worker of its own.
    Probed,
    /// Ready to serve at once: it passed every check, or a canary may yet give its place back.
    Standby,
    /// New cycles begin on it.
    Active,
    /// Only cycles that it began still run on it.
    Draining,
    /// It serves no more. One that never did was withdrawn before anybody had judged it.
    Retired,
    /// Its canary failed, or a person took it back.
    RolledBack,
    /// A check failed, so it never served.
    Refused,
}

/// What moves a generation on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationEvent {
    /// The probe went well.
    Probe,
    /// The shadow replay went well.
    Ready,
    /// A check failed: it never served.
    Refuse,
    /// The daemon stopped, or the configuration put something else there: it never served.
    Withdraw,
    /// The flip: it takes the slot. Also how a predecessor gets its place back.
    Activate,
    /// A successor took the slot and is on trial.
    StandBack,
    /// A successor has its place for good.
    Drain,
    /// Its last cycle has ended, or is not waited for any longer.
    Drained,
    /// Its predecessor has the slot again.
    RollBack,
}

/// A transition that must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a generation that is {from} cannot take {event:?}")]
pub struct IllegalTransition {
    /// Where it stood.
    pub from: GenerationState,
    /// What was asked.
    pub event: GenerationEvent,
}

impl GenerationState {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 8] = [
        Self::Candidate,
        Self::Probed,
        Self::Standby,
        Self::Active,
        Self::Draining,
        Self::Retired,
        Self::RolledBack,
        Self::Refused,
    ];

    /// The one transition function.
    ///
    /// # Errors
    /// The event makes no sense in this state.
    pub fn next(self, event: GenerationEvent) -> Result<Self, IllegalTransition> {
        use GenerationEvent as E;
        let illegal = Err(IllegalTransition { from: self, event });
        match self {
            Self::Candidate => match event {
                E::Probe => Ok(Self::Probed),
                E::Refuse => Ok(Self::Refused),
                E::Withdraw => Ok(Self::Retired),
                _ => illegal,
            },
            Self::Probed => match event {
                E::Ready => Ok(Self::Standby),
                E::Refuse => Ok(Self::Refused),
                E::Withdraw => Ok(Self::Retired),
                _ => illegal,
            },
            Self::Standby => match event {
                E::Activate => Ok(Self::Active),
                E::Refuse => Ok(Self::Refused),
                E::Withdraw => Ok(Self::Retired),
                E::Drain => Ok(Self::Draining),
                _ => illegal,
            },
            Self::Active => match event {
                E::StandBack => Ok(Self::Standby),
                E::Drain => Ok(Self::Draining),
                E::RollBack => Ok(Self::RolledBack),
                _ => illegal,
            },
            Self::Draining => match event {
                E::Drained => Ok(Self::Retired),
                // A person wants it back before its last cycle has ended.
                E::Activate => Ok(Self::Active),
                _ => illegal,
            },
            Self::Retired | Self::RolledBack | Self::Refused => illegal,
        }
    }

    /// True when nothing can follow.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Retired | Self::RolledBack | Self::Refused)
    }

    /// The word used in the store, in JSON and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Candidate => "candidate",
            Self::Probed => "probed",
            Self::Standby => "standby",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Retired => "retired",
            Self::RolledBack => "rolled_back",
            Self::Refused => "refused",
        }
    }
}

impl std::fmt::Display for GenerationState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use GenerationEvent as E;
    use GenerationState as S;

    const EVENTS: [E; 9] = [
        E::Probe,
        E::Ready,
        E::Refuse,
        E::Withdraw,
        E::Activate,
        E::StandBack,
        E::Drain,
        E::Drained,
        E::RollBack,
    ];

    #[test]
    fn each_state_takes_what_the_table_says_and_nothing_else() {
        let table: &[(S, &[(E, S)])] = &[
            (S::Candidate, &[(E::Probe, S::Probed), (E::Refuse, S::Refused), (E::Withdraw, S::Retired)]),
            (S::Probed, &[(E::Ready, S::Standby), (E::Refuse, S::Refused), (E::Withdraw, S::Retired)]),
            (
                S::Standby,
                &[
                    (E::Activate, S::Active),
                    (E::Refuse, S::Refused),
                    (E::Withdraw, S::Retired),
                    (E::Drain, S::Draining),
                ],
            ),
            (S::Active, &[(E::StandBack, S::Standby), (E::Drain, S::Draining), (E::RollBack, S::RolledBack)]),
            (S::Draining, &[(E::Drained, S::Retired), (E::Activate, S::Active)]),
            (S::Retired, &[]),
            (S::RolledBack, &[]),
            (S::Refused, &[]),
        ];
        assert_eq!(table.len(), S::ALL.len());
        for (state, legal) in table {
            for event in EVENTS {
                let found = state.next(event);
                match legal.iter().find(|(known, _)| *known == event) {
                    Some((_, to)) => assert_eq!(found, Ok(*to), "{state} {event:?}"),
                    None => assert_eq!(found, Err(IllegalTransition { from: *state, event })),
                }
            }
            assert_eq!(state.is_end(), legal.is_empty(), "{state}");
        }
    }

    #[test]
    fn nothing_serves_that_was_not_probed_and_replayed() {
        // Every path to active goes through both checks.
        let path = [E::Probe, E::Ready, E::Activate];
        let mut state = S::Candidate;
        for event in path {
            assert!(event == E::Activate || state.next(E::Activate).is_err(), "{state}");
            state = state.next(event).unwrap();
        }
        assert_eq!(state, S::Active);
    }

    #[test]
    fn words_are_those_of_json() {
        for state in S::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
