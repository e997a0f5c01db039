//! The lifecycle of a mandate and of a cycle, and what a finished cycle means for its mandate.

use serde::{Deserialize, Serialize};

/// Where a mandate stands. Six states wait, five are ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MandateState {
    /// Waits for a slot, the budget, its runner, or its scope.
    Queued,
    /// A cycle of it is under way.
    Running,
    /// Waits for a person's yes or no.
    PausedApproval,
    /// Stopped in mid-cycle by the budget; its paid work is kept.
    PausedBudget,
    /// The runner asked for a person to look before it goes on.
    PausedCheckpoint,
    /// Nobody but a person can tell what happened.
    Review,
    /// Ended: reached, or as far as its cycles allowed.
    Succeeded,
    /// Ended: two cycles in a row failed.
    Failed,
    /// Ended: a person or a replacing occurrence stopped it.
    Cancelled,
    /// Ended: a person said no.
    Denied,
    /// Ended: nobody answered in time.
    Expired,
}

impl MandateState {
    /// Every state, in the order of the documentation.
    pub const ALL: [Self; 11] = [
        Self::Queued,
        Self::Running,
        Self::PausedApproval,
        Self::PausedBudget,
        Self::PausedCheckpoint,
        Self::Review,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Denied,
        Self::Expired,
    ];

    /// True for the five ends.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Denied | Self::Expired)
    }

    /// The word used in the store, in JSON and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::PausedApproval => "paused_approval",
            Self::PausedBudget => "paused_budget",
            Self::PausedCheckpoint => "paused_checkpoint",
            Self::Review => "review",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Denied => "denied",
            Self::Expired => "expired",
        }
    }

    /// The state of that word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

impl std::fmt::Display for MandateState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What moves a mandate from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MandateEvent {
    /// A slot took it.
    Start,
    /// Its cycle ended and this follows.
    CycleEnded(AfterCycle),
    /// A person stopped it, or a replacing occurrence did.
    Cancel,
    /// A person, a rollover or a decision lets it go on.
    Resume,
    /// It cannot go on without a person.
    NeedsReview,
    /// A person resolved a review: done.
    ResolveDone,
    /// A person resolved a review: again.
    ResolveRedo,
    /// A person resolved a review: failed.
    ResolveFail,
    /// A person wants an ended mandate to run again.
    Retry,
    /// A person said no to its proposal.
    Deny,
    /// Its proposal ran out.
    Expire,
}

/// A transition that must not happen; live code and recovery both report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a mandate that is {from} cannot take {event:?}")]
pub struct IllegalTransition {
    /// Where it stood.
    pub from: MandateState,
    /// What was asked.
    pub event: MandateEvent,
}

impl MandateState {
    /// The one transition function.
    pub fn next(self, event: MandateEvent) -> Result<Self, IllegalTransition> {
        use MandateEvent as E;
        let illegal = Err(IllegalTransition { from: self, event });
        let paused = |event| match event {
            E::Resume => Ok(Self::Queued),
            E::Cancel => Ok(Self::Cancelled),
            E::Deny => Ok(Self::Denied),
            E::Expire => Ok(Self::Expired),
            E::NeedsReview => Ok(Self::Review),
            _ => Err(IllegalTransition { from: self, event }),
        };
        match self {
            Self::Queued => match event {
                E::Start => Ok(Self::Running),
                E::Cancel => Ok(Self::Cancelled),
                E::NeedsReview => Ok(Self::Review),
                _ => illegal,
            },
            Self::Running => match event {
                E::CycleEnded(after) => Ok(after.state()),
                E::Cancel => Ok(Self::Cancelled),
                E::NeedsReview => Ok(Self::Review),
                _ => illegal,
            },
            Self::PausedApproval | Self::PausedBudget | Self::PausedCheckpoint => paused(event),
            Self::Review => match event {
                E::ResolveDone => Ok(Self::Succeeded),
                E::ResolveRedo => Ok(Self::Queued),
                E::ResolveFail => Ok(Self::Failed),
                E::Cancel => Ok(Self::Cancelled),
                _ => illegal,
            },
            Self::Failed | Self::Cancelled | Self::Denied | Self::Expired | Self::Succeeded => match event {
                E::Retry => Ok(Self::Queued),
                _ => illegal,
            },
        }
    }
}

/// How one cycle ended, as it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CycleStatus {
    /// It did its work.
    Ok,
    /// It, or the host, stopped at a resumable point.
    Paused,
    /// It failed.
    Error,
    /// The daemon stopped, or a person did.
    Interrupted,
    /// A canary failed it; its work is done again by the former generation.
    RolledBack,
}

impl CycleStatus {
    /// The word used in the store and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Paused => "paused",
            Self::Error => "error",
            Self::Interrupted => "interrupted",
            Self::RolledBack => "rolled_back",
        }
    }

    /// The status of that word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Ok, Self::Paused, Self::Error, Self::Interrupted, Self::RolledBack]
            .into_iter()
            .find(|status| status.as_str() == word)
    }
}

/// What a finished cycle asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CycleEnd {
    /// The runner is done.
    Done,
    /// The runner wants another cycle.
    More,
    /// The runner asked for a checkpoint.
    Checkpoint,
    /// The host parked it for want of budget.
    BudgetPause,
    /// The host parked it until a person decides.
    ApprovalPause,
    /// The runner failed, or reported an error.
    Error,
    /// The process or thread under it is gone, by no wish of the host.
    Died,
    /// The daemon stops: the mandate is to go on after the restart.
    Interrupted,
    /// A person or a replacing occurrence stopped this mandate.
    Cancelled,
    /// The host cannot tell what happened: divergence, or a world that does not match.
    Review,
    /// It failed on a generation that is on trial: its work is done again by the former one.
    RolledBack,
}

impl CycleEnd {
    /// The status recorded on the cycle.
    #[must_use]
    pub fn status(self) -> CycleStatus {
        match self {
            Self::Done | Self::More => CycleStatus::Ok,
            Self::Checkpoint | Self::BudgetPause | Self::ApprovalPause => CycleStatus::Paused,
            Self::Error | Self::Review => CycleStatus::Error,
            Self::Died | Self::Interrupted | Self::Cancelled => CycleStatus::Interrupted,
            Self::RolledBack => CycleStatus::RolledBack,
        }
    }
}

/// What follows for the mandate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterCycle {
    /// Succeeded.
    Succeed,
    /// Succeeded, because its cycles are used up.
    SucceedAtCap,
    /// Back into the queue for its next cycle, behind its scope.
    NextCycle,
    /// Back into the queue to do this cycle again from its first step without a result.
    SameCycle,
    /// The same after a death.
    SameCycleAfterDeath,
    /// Back into the queue after one error: a fresh cycle of the same number.
    RetryCycle,
    /// Back to the head of the queue: the former generation does this cycle afresh. No error of its own.
    RunAgain,
    /// Failed.
    Fail,
    /// Parked for a person.
    PauseCheckpoint,
    /// Parked for budget.
    PauseBudget,
    /// Parked for a decision.
    PauseApproval,
    /// Stopped.
    Cancel,
    /// To a person.
    Review,
    /// To a person, because it kills whatever runs it.
    CrashLoop,
}

impl AfterCycle {
    /// The state it leads to.
    #[must_use]
    pub fn state(self) -> MandateState {
        match self {
            Self::Succeed | Self::SucceedAtCap => MandateState::Succeeded,
            Self::NextCycle
            | Self::SameCycle
            | Self::SameCycleAfterDeath
            | Self::RetryCycle
            | Self::RunAgain => MandateState::Queued,
            Self::Fail => MandateState::Failed,
            Self::PauseCheckpoint => MandateState::PausedCheckpoint,
            Self::PauseBudget => MandateState::PausedBudget,
            Self::PauseApproval => MandateState::PausedApproval,
            Self::Cancel => MandateState::Cancelled,
            Self::Review | Self::CrashLoop => MandateState::Review,
        }
    }

    /// The reason recorded with it, where the state alone does not say it.
    #[must_use]
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::SucceedAtCap => Some("max_cycles"),
            Self::NextCycle => Some("more"),
            Self::SameCycle => Some("interrupted"),
            Self::SameCycleAfterDeath => Some("runner_died"),
            Self::RetryCycle => Some("error_once"),
            Self::CrashLoop => Some("crash_loop"),
            Self::RunAgain => Some("rolled_back"),
            Self::Fail => Some("error_twice"),
            Self::Succeed
            | Self::PauseCheckpoint
            | Self::PauseBudget
            | Self::PauseApproval
            | Self::Cancel
            | Self::Review => None,
        }
    }
}

/// What deaths add up to when a person has to look: 20 boots that died, or 3 workers, or some of both.
pub const CRASH_LOOP: u32 = 60;
/// What a daemon that died while the mandate ran adds. It may have been a power cut.
pub const BOOT_DEATH: u32 = 3;
/// What a runner's process that died of the mandate adds.
pub const RUNNER_DEATH: u32 = 20;

/// The reason of a mandate that is in review since its cycle changed something on a version that was
/// rolled back then.
pub const ROLLED_BACK_AFTER_ACT: &str = "rolled_back_after_act";

/// Decides what follows a cycle.
///
/// `cycle` counts from 1; `errors_before` is the number of cycles in a row that failed before this
/// one, `deaths_before` what the deaths in a row before it added up to, see [`CRASH_LOOP`].
#[must_use]
pub fn after_cycle(
    end: CycleEnd,
    cycle: u32,
    max_cycles: u32,
    errors_before: u32,
    deaths_before: u32,
) -> AfterCycle {
    match end {
        CycleEnd::Died if deaths_before + RUNNER_DEATH >= CRASH_LOOP => AfterCycle::CrashLoop,
        CycleEnd::Died => AfterCycle::SameCycleAfterDeath,
        CycleEnd::Done => AfterCycle::Succeed,
        CycleEnd::More if cycle >= max_cycles => AfterCycle::SucceedAtCap,
        CycleEnd::More => AfterCycle::NextCycle,
        CycleEnd::Checkpoint => AfterCycle::PauseCheckpoint,
        CycleEnd::BudgetPause => AfterCycle::PauseBudget,
        CycleEnd::ApprovalPause => AfterCycle::PauseApproval,
        CycleEnd::Error if errors_before >= 1 => AfterCycle::Fail,
        CycleEnd::Error => AfterCycle::RetryCycle,
        CycleEnd::Interrupted => AfterCycle::SameCycle,
        CycleEnd::Cancelled => AfterCycle::Cancel,
        CycleEnd::Review => AfterCycle::Review,
        CycleEnd::RolledBack => AfterCycle::RunAgain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_takes_nothing_but_a_retry() {
        for state in MandateState::ALL.into_iter().filter(|state| state.is_end()) {
            assert_eq!(state.next(MandateEvent::Retry), Ok(MandateState::Queued));
            for event in
                [MandateEvent::Start, MandateEvent::Cancel, MandateEvent::Resume, MandateEvent::NeedsReview]
            {
                assert!(state.next(event).is_err(), "{state} took {event:?}");
            }
        }
    }

    #[test]
    fn words_of_states_are_read_back() {
        for state in MandateState::ALL {
            assert_eq!(MandateState::parse(state.as_str()), Some(state));
        }
        assert_eq!(MandateState::parse("nonsense"), None);
    }

    #[test]
    fn first_error_is_tried_again_and_the_second_in_a_row_fails() {
        assert_eq!(after_cycle(CycleEnd::Error, 1, 10, 0, 0), AfterCycle::RetryCycle);
        assert_eq!(after_cycle(CycleEnd::Error, 1, 10, 1, 0), AfterCycle::Fail);
    }

    #[test]
    fn third_death_of_a_runner_goes_to_a_person_and_a_boot_counts_less() {
        let follows = |before| after_cycle(CycleEnd::Died, 1, 10, 1, before);
        for before in [0, RUNNER_DEATH, 6 * BOOT_DEATH, RUNNER_DEATH + 6 * BOOT_DEATH] {
            assert_eq!(follows(before), AfterCycle::SameCycleAfterDeath, "{before}");
        }
        for before in [2 * RUNNER_DEATH, 14 * BOOT_DEATH, RUNNER_DEATH + 7 * BOOT_DEATH] {
            assert_eq!(follows(before), AfterCycle::CrashLoop, "{before}");
        }
        assert_eq!(AfterCycle::CrashLoop.state(), MandateState::Review);
        assert_eq!(AfterCycle::CrashLoop.reason(), Some("crash_loop"));
        assert_eq!(AfterCycle::SameCycleAfterDeath.state(), MandateState::Queued);
    }

    #[test]
    fn work_of_a_failed_canary_is_done_again_whatever_failed_before() {
        for errors in [0, 1, 5] {
            assert_eq!(after_cycle(CycleEnd::RolledBack, 1, 10, errors, 0), AfterCycle::RunAgain);
        }
        assert_eq!(CycleEnd::RolledBack.status(), CycleStatus::RolledBack);
    }

    #[test]
    fn more_ends_at_the_cap() {
        assert_eq!(after_cycle(CycleEnd::More, 9, 10, 0, 0), AfterCycle::NextCycle);
        assert_eq!(after_cycle(CycleEnd::More, 10, 10, 0, 0), AfterCycle::SucceedAtCap);
    }
}
