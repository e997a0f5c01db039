//! `run --once`: all that is due at the start and all that is queued, one cycle after another.

use serde::Serialize;

use crate::daemon::claims::NoClaims;
use crate::daemon::dispatch::OneCycle;
use crate::daemon::lifecycle::Lifecycle;
use crate::daemon::mailbox::Phase;
use crate::daemon::signals::{Asked, Signals};
use crate::domain::mandate::MandateState;
use crate::store::{MandateFilter, Recovered};

/// What one pass did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Once {
    /// Cycles that ran.
    pub cycles: u64,
    /// True when the budget held something back.
    pub budget: bool,
    /// True when a signal ended the pass early.
    pub interrupted: bool,
    /// Mandates that are not at their end.
    pub waiting: Vec<Left>,
}

/// A mandate that is not at its end.
#[derive(Clone, Debug, Serialize)]
pub struct Left {
    /// Its id.
    pub id: String,
    /// Where it stands.
    pub state: String,
    /// Why.
    pub reason: Option<String>,
}

/// Does the pass.
pub async fn run(
    lifecycle: &mut Lifecycle,
    recovered: Option<Recovered>,
    signals: &mut Signals,
) -> anyhow::Result<Once> {
    let dispatch = lifecycle.dispatch.clone();
    lifecycle.inbox.enter(Phase::Running);
    dispatch.begin(recovered.map(|recovered| recovered.running).unwrap_or_default());
    lifecycle.chronos.tick_unpaced(lifecycle.clock.now(), &NoClaims).await?;
    let mut once = Once::default();
    // Why the queue as a whole does not go on; a mandate's own reason says more.
    let mut held = None;
    loop {
        let ran = tokio::select! {
            biased;
            asked = signals.next() => match asked {
                Asked::Stop => {
                    once.interrupted = true;
                    let grace = lifecycle.office.graceful_timeout();
                    dispatch.drain(grace).await;
                    break;
                }
                Asked::Reload | Asked::StatusDump => continue,
            },
            ran = dispatch.run_one() => ran?,
        };
        match ran {
            OneCycle::Ran(_) => once.cycles += 1,
            OneCycle::Idle => break,
            OneCycle::Blocked(block) => {
                once.budget = true;
                held = Some(format!("budget: {} of {} {} used", block.used, block.limit, block.limit_kind));
                break;
            }
            OneCycle::Held(reason) => {
                tracing::warn!(reason, "daemon_work_held");
                held = Some(reason);
                break;
            }
        }
    }
    let open = MandateState::ALL.into_iter().filter(|state| !state.is_end()).collect();
    let rows = lifecycle.store.mandates(&MandateFilter { states: open, ..MandateFilter::default() })?;
    once.budget |= rows.iter().any(|row| row.state == MandateState::PausedBudget);
    once.waiting = rows
        .into_iter()
        .map(|row| {
            let queued = row.state == MandateState::Queued;
            let reason = row.reason.or_else(|| held.clone().filter(|_| queued));
            let reason = reason.or_else(|| dispatch.unserved(&row.runner).filter(|_| queued));
            Left { id: row.id, state: row.state.to_string(), reason }
        })
        .collect();
    lifecycle.inbox.enter(Phase::Stopped);
    Ok(once)
}
