//! What happens to an occurrence when its overlap key is busy. Pure: the store calls it inside
//! its transaction, with what runs and waits at that moment, so that two fires of one commit
//! see each other. It must never be asked with numbers read outside that transaction.

use super::schedule::{Overlap, QUEUE_CAP};

/// What runs and waits under one overlap key. The `_same_schedule` numbers are part of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLoad {
    /// Mandates of the key that run.
    pub running: u32,
    /// Mandates of the key in the queue.
    pub queued: u32,
    /// Those of `running` that the same schedule fired.
    pub running_same_schedule: u32,
    /// Those of `queued` that the same schedule fired.
    pub queued_same_schedule: u32,
}

impl KeyLoad {
    fn others(self) -> u32 {
        let running = self.running.saturating_sub(self.running_same_schedule);
        running + self.queued.saturating_sub(self.queued_same_schedule)
    }
}

/// What is to be done with the occurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// To the end of the line; runs when nothing of its key does.
    Enqueue,
    /// To the front of the line; runs when nothing of its key does.
    EnqueueFront,
    /// To the end of the line; mandates of its own schedule do not hold it back, others of its key do.
    EnqueueBeside,
    /// No mandate; the occurrence is missed for this reason.
    Drop(&'static str),
    /// Cancel what waits, ask what runs to stop, then to the end of the line.
    Replace,
}

/// Reason of an occurrence that its overlap policy drops.
pub const OVERLAP: &str = "overlap";
/// Reason of an occurrence that finds the line of its key full.
pub const QUEUE_FULL: &str = "queue_full";

/// Decides about one occurrence. Under every decision but [`Decision::EnqueueBeside`] at most
/// one mandate of a key runs.
#[must_use]
pub fn decide(policy: Overlap, load: KeyLoad) -> Decision {
    let busy = load.running > 0 || load.queued > 0;
    let full = load.queued >= QUEUE_CAP;
    match policy {
        Overlap::Reject if busy => Decision::Drop(OVERLAP),
        Overlap::QueueOne if load.queued > 0 => Decision::Drop(OVERLAP),
        Overlap::Replace if busy => Decision::Replace,
        _ if full => Decision::Drop(QUEUE_FULL),
        // Behind somebody else's work it is an ordinary place in the line: running beside one's
        // own schedule is no leave to overtake or to join another's.
        Overlap::Allow if load.others() == 0 => Decision::EnqueueBeside,
        Overlap::AllowQueued if load.running == 0 => Decision::EnqueueFront,
        Overlap::Queue
        | Overlap::QueueOne
        | Overlap::Reject
        | Overlap::Replace
        | Overlap::Allow
        | Overlap::AllowQueued => Decision::Enqueue,
    }
}

#[cfg(test)]
mod tests {
    use super::Decision::{Drop, Enqueue, EnqueueBeside, EnqueueFront, Replace};
    use super::*;

    /// (running, queued, running_same_schedule, queued_same_schedule)
    type Load = (u32, u32, u32, u32);

    const FREE: Load = (0, 0, 0, 0);
    const OWN_RUNS: Load = (1, 0, 1, 0);
    const OTHER_RUNS: Load = (1, 0, 0, 0);
    const OWN_WAITS: Load = (0, 1, 0, 1);
    const OTHER_WAITS: Load = (0, 1, 0, 0);
    const BOTH_RUN: Load = (2, 0, 1, 0);
    const OWN_RUNS_OWN_WAITS: Load = (1, 1, 1, 1);
    const OTHER_RUNS_OWN_WAITS: Load = (1, 1, 0, 1);
    const ONE_PLACE_LEFT: Load = (1, QUEUE_CAP - 1, 1, QUEUE_CAP - 1);
    const FULL: Load = (1, QUEUE_CAP, 1, QUEUE_CAP);
    const FULL_BUT_IDLE: Load = (0, QUEUE_CAP, 0, QUEUE_CAP);
    const OVERFULL: Load = (0, QUEUE_CAP + 7, 0, 0);

    fn check(policy: Overlap, cases: &[(Load, Decision)]) {
        let all = [
            FREE,
            OWN_RUNS,
            OTHER_RUNS,
            OWN_WAITS,
            OTHER_WAITS,
            BOTH_RUN,
            OWN_RUNS_OWN_WAITS,
            OTHER_RUNS_OWN_WAITS,
            ONE_PLACE_LEFT,
            FULL,
            FULL_BUT_IDLE,
            OVERFULL,
        ];
        assert_eq!(cases.iter().map(|case| case.0).collect::<Vec<_>>(), all, "{policy:?}: a case is missing");
        for &((running, queued, running_same_schedule, queued_same_schedule), expect) in cases {
            let load = KeyLoad { running, queued, running_same_schedule, queued_same_schedule };
            assert_eq!(decide(policy, load), expect, "{policy:?} {load:?}");
        }
    }

    #[test]
    fn queue_waits_until_the_line_is_full() {
        check(
            Overlap::Queue,
            &[
                (FREE, Enqueue),
                (OWN_RUNS, Enqueue),
                (OTHER_RUNS, Enqueue),
                (OWN_WAITS, Enqueue),
                (OTHER_WAITS, Enqueue),
                (BOTH_RUN, Enqueue),
                (OWN_RUNS_OWN_WAITS, Enqueue),
                (OTHER_RUNS_OWN_WAITS, Enqueue),
                (ONE_PLACE_LEFT, Enqueue),
                (FULL, Drop(QUEUE_FULL)),
                (FULL_BUT_IDLE, Drop(QUEUE_FULL)),
                (OVERFULL, Drop(QUEUE_FULL)),
            ],
        );
    }

    #[test]
    fn queue_one_keeps_the_first_that_waits() {
        check(
            Overlap::QueueOne,
            &[
                (FREE, Enqueue),
                (OWN_RUNS, Enqueue),
                (OTHER_RUNS, Enqueue),
                (OWN_WAITS, Drop(OVERLAP)),
                (OTHER_WAITS, Drop(OVERLAP)),
                (BOTH_RUN, Enqueue),
                (OWN_RUNS_OWN_WAITS, Drop(OVERLAP)),
                (OTHER_RUNS_OWN_WAITS, Drop(OVERLAP)),
                (ONE_PLACE_LEFT, Drop(OVERLAP)),
                (FULL, Drop(OVERLAP)),
                (FULL_BUT_IDLE, Drop(OVERLAP)),
                (OVERFULL, Drop(OVERLAP)),
            ],
        );
    }

    #[test]
    fn reject_drops_beside_anything_that_runs_or_waits() {
        check(
            Overlap::Reject,
            &[
                (FREE, Enqueue),
                (OWN_RUNS, Drop(OVERLAP)),
                (OTHER_RUNS, Drop(OVERLAP)),
                (OWN_WAITS, Drop(OVERLAP)),
                (OTHER_WAITS, Drop(OVERLAP)),
                (BOTH_RUN, Drop(OVERLAP)),
                (OWN_RUNS_OWN_WAITS, Drop(OVERLAP)),
                (OTHER_RUNS_OWN_WAITS, Drop(OVERLAP)),
                (ONE_PLACE_LEFT, Drop(OVERLAP)),
                (FULL, Drop(OVERLAP)),
                (FULL_BUT_IDLE, Drop(OVERLAP)),
                (OVERFULL, Drop(OVERLAP)),
            ],
        );
    }

    #[test]
    fn allow_runs_beside_its_own_schedule_and_nobody_else() {
        check(
            Overlap::Allow,
            &[
                (FREE, EnqueueBeside),
                (OWN_RUNS, EnqueueBeside),
                (OTHER_RUNS, Enqueue),
                (OWN_WAITS, EnqueueBeside),
                (OTHER_WAITS, Enqueue),
                (BOTH_RUN, Enqueue),
                (OWN_RUNS_OWN_WAITS, EnqueueBeside),
                (OTHER_RUNS_OWN_WAITS, Enqueue),
                (ONE_PLACE_LEFT, EnqueueBeside),
                (FULL, Drop(QUEUE_FULL)),
                (FULL_BUT_IDLE, Drop(QUEUE_FULL)),
                (OVERFULL, Drop(QUEUE_FULL)),
            ],
        );
    }

    #[test]
    fn allow_queued_goes_to_the_front_unless_one_runs() {
        check(
            Overlap::AllowQueued,
            &[
                (FREE, EnqueueFront),
                (OWN_RUNS, Enqueue),
                (OTHER_RUNS, Enqueue),
                (OWN_WAITS, EnqueueFront),
                (OTHER_WAITS, EnqueueFront),
                (BOTH_RUN, Enqueue),
                (OWN_RUNS_OWN_WAITS, Enqueue),
                (OTHER_RUNS_OWN_WAITS, Enqueue),
                (ONE_PLACE_LEFT, Enqueue),
                (FULL, Drop(QUEUE_FULL)),
                (FULL_BUT_IDLE, Drop(QUEUE_FULL)),
                (OVERFULL, Drop(QUEUE_FULL)),
            ],
        );
    }

    #[test]
    fn replace_takes_the_place_of_what_runs_or_waits() {
        check(
            Overlap::Replace,
            &[
                (FREE, Enqueue),
                (OWN_RUNS, Replace),
                (OTHER_RUNS, Replace),
                (OWN_WAITS, Replace),
                (OTHER_WAITS, Replace),
                (BOTH_RUN, Replace),
                (OWN_RUNS_OWN_WAITS, Replace),
                (OTHER_RUNS_OWN_WAITS, Replace),
                (ONE_PLACE_LEFT, Replace),
                (FULL, Replace),
                (FULL_BUT_IDLE, Replace),
                (OVERFULL, Replace),
            ],
        );
    }
}
