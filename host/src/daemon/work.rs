//! Carries out commands on mandates and schedules. The same code serves a daemon and a command line
//! without one: there, chronos and the store are there, and no dispatch is.

use super::chronos::{Chronos, Trigger};
use super::dispatch::Dispatch;
use super::mailbox::{CommandError, Work};
use crate::store::{Added, MandateCommand, Store};
use crate::sys::clock::Clock;

/// Who pauses a schedule by a command.
const BY_OPERATOR: &str = "operator";

/// What commands act on.
#[derive(Clone, Copy)]
pub struct Hands<'a> {
    /// The commit point.
    pub store: &'a dyn Store,
    /// The schedules.
    pub chronos: &'a Chronos,
    /// Running cycles, in a daemon.
    pub dispatch: Option<&'a Dispatch>,
    /// Time.
    pub clock: &'a dyn Clock,
}

impl Hands<'_> {
    /// Does it and answers. May take as long as a backfill takes.
    pub async fn carry_out(self, work: Work) {
        match work {
            Work::AddMandate(mandate, reply) => {
                let added = self.store.add(*mandate).await;
                self.queued(added.as_ref().ok());
                reply.give(added);
            }
            Work::Mandate { id, command, reply } => reply.give(self.command(id, command).await),
            Work::Trigger { schedule, request_id, reply } => {
                let trigger = Trigger { request_id, ..Trigger::default() };
                let added = self.chronos.trigger(&schedule, trigger).await;
                self.queued(added.as_ref().ok());
                reply.give(added);
            }
            Work::Backfill { schedule, from, to, again, reply } => {
                let made = self.chronos.backfill(&schedule, from, to, again, None).await;
                // One that was cut short has made some all the same.
                self.look();
                reply.give(made);
            }
            Work::PauseSchedule { schedule, until, note, reply } => {
                reply.give(self.chronos.pause(&schedule, until, note, BY_OPERATOR).await);
            }
            Work::ResumeSchedule { schedule, backfill, reply } => {
                let resumed = self.chronos.resume(&schedule, backfill).await;
                self.look();
                reply.give(resumed.map(|_| ()));
            }
            Work::SkipNext { schedule, reply } => reply.give(self.chronos.skip_next(&schedule).await),
        }
    }

    async fn command(
        self,
        id: String,
        command: MandateCommand,
    ) -> Result<crate::store::Commanded, CommandError> {
        let done = self.store.command(id.clone(), command, self.clock.now()).await?;
        if let Some(dispatch) = self.dispatch {
            if done.stop_running {
                dispatch.cancel(&id);
            } else {
                dispatch.forget_cancel(&id);
                dispatch.look();
            }
        }
        Ok(done)
    }

    fn queued(self, added: Option<&Added>) {
        if let (Some(dispatch), Some(added)) = (self.dispatch, added) {
            added.cancel.iter().for_each(|mandate| dispatch.cancel(mandate));
        }
        self.look();
    }

    fn look(self) {
        if let Some(dispatch) = self.dispatch {
            dispatch.look();
        }
    }
}
