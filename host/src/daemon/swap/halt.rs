//! Swaps that are given up before their flip: since a person wants that, or since the daemon stops.
//!
//! Whoever gives one up and the swap itself meet under one lock: either the swap hears of it before
//! its flip is committed, and then nothing of it ever serves, or it is too late and that is said.

use tokio::sync::watch as channel;

use super::view::{Refusal, SwapView};
use super::{Inner, Swaps};

/// Why a swap is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// A person wants it.
    Aborted,
    /// The daemon stops.
    Stopping,
}

impl Halt {
    /// What the history says of the candidate.
    fn refusal(self) -> Refusal {
        match self {
            Self::Aborted => Refusal::new("aborted", "the swap was given up by the operator"),
            Self::Stopping => Refusal::new("stopping", "the daemon was stopped before the flip")
                .remedy("what served goes on after the next start; swap again then"),
        }
    }
}

/// A swap up to its flip, in the table.
pub(super) struct Preparing {
    pub id: String,
    halt: channel::Sender<Option<Halt>>,
    /// Its flip is being committed.
    flips: bool,
}

impl Preparing {
    pub fn new(id: String) -> Self {
        Self { id, halt: channel::Sender::new(None), flips: false }
    }

    pub fn halts(&self) -> Halts {
        Halts(self.halt.subscribe())
    }

    /// False when it is too late. The first reason counts.
    fn give_up(&self, why: Halt) -> bool {
        if !self.flips {
            self.halt.send_if_modified(|halt| halt.is_none() && halt.replace(why).is_none());
        }
        !self.flips
    }
}

/// A swap's end of it.
#[derive(Clone)]
pub(super) struct Halts(channel::Receiver<Option<Halt>>);

impl Halts {
    /// Does a part of a swap unless it is given up meanwhile. What is dropped half way must be
    /// something that nobody has to hear of.
    pub async fn or<T>(&self, part: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        let mut halts = self.0.clone();
        let halted = async {
            let halt = halts.wait_for(Option::is_some).await.map(|halt| *halt);
            match halt {
                Ok(halt) => halt.map_or_else(Refusal::stopping, Halt::refusal),
                // The table forgets a swap only when that has ended.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            refusal = halted => Err(refusal),
            done = part => done,
        }
    }
}

impl Refusal {
    /// What is not begun any more.
    pub(super) fn stopping() -> Self {
        Self::new("stopping", "the daemon stops").remedy("try again after its next start")
    }
}

impl Swaps {
    /// Gives up the swap of a slot, whatever it is doing. Gives its view: the end follows at once.
    /// Asked for again meanwhile, nothing changes.
    ///
    /// # Errors
    /// `no_swap`; `conflict` when the candidate has the slot already, or is just taking it.
    pub fn abort(&self, runner: &str) -> Result<SwapView, Refusal> {
        let too_late = |what: &str| {
            Refusal::new("conflict", format!("{what}; that cannot be given up, but taken back"))
                .remedy(format!("kairos plugin rollback {runner}"))
        };
        let id = {
            let table = self.0.table();
            match table.preparing.get(runner) {
                Some(swap) if swap.give_up(Halt::Aborted) => swap.id.clone(),
                Some(swap) => return Err(too_late(&format!("{} has come to its flip", swap.id))),
                None if table.trials.contains_key(runner) => {
                    return Err(too_late(&format!("the version that serves runner {runner} is on trial")));
                }
                None => {
                    // A reload may have removed the runner of one that is under way; not of another.
                    self.0.parts.runners.config(runner)?;
                    let message = format!("no swap of runner {runner} is under way");
                    return Err(Refusal::new("no_swap", message).remedy("look at `kairos plugin list`"));
                }
            }
        };
        tracing::info!(runner, swap = id, "swap_given_up");
        self.view(&id).ok_or_else(|| Refusal::new("no_swap", format!("{id} has ended")))
    }

    /// The daemon stops: from here on no swap begins, none comes to its flip, and no trial ends but
    /// by its version's failure. One whose flip is being committed ends it.
    pub fn give_up_all(&self) {
        let mut table = self.0.table();
        table.stopping = true;
        let given_up = table.preparing.values().filter(|swap| swap.give_up(Halt::Stopping)).count();
        drop(table);
        if given_up > 0 {
            tracing::info!(given_up, "swaps_given_up");
        }
    }

    /// Ends when no swap is under way up to its flip, everything recorded.
    pub async fn none_under_way(&self) {
        let mut freed = self.0.freed.subscribe();
        loop {
            freed.borrow_and_update();
            // The sender is ours.
            if self.0.table().preparing.is_empty() || freed.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Inner {
    pub(super) fn is_stopping(&self) -> bool {
        self.table().stopping
    }

    /// From here on a swap cannot be given up.
    ///
    /// # Errors
    /// It has been.
    pub(super) fn comes_to_its_flip(&self, runner: &str) -> Result<(), Refusal> {
        let mut table = self.table();
        let Some(swap) = table.preparing.get_mut(runner) else { return Ok(()) };
        if let Some(halt) = *swap.halt.borrow() {
            return Err(halt.refusal());
        }
        swap.flips = true;
        Ok(())
    }
}
