//! The mailbox: the only way a command of the control plane reaches the daemon's loop. Bounded;
//! a full one is an answer, never a wait. Which command is legal in which phase of the daemon is
//! decided by one match here and nowhere else.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use crate::domain::mandate::MandateState;
use crate::store::{self, Added, Commanded, MandateCommand, NewMandate};

/// Most commands that wait. The reference's figure; at a few hundred bytes each it bounds memory, not work.
pub const CAPACITY: usize = 10_000;

/// Where the daemon stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Recovering and loading; nothing is accepted but the end.
    #[default]
    Starting,
    /// At work.
    Running,
    /// Asked to stop: what runs is finished or interrupted, nothing new starts.
    Draining,
    /// The loop has ended.
    Stopped,
}

impl Phase {
    /// The word in the heartbeat and in status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a command is about, for the question whether it is legal now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandKind {
    /// Ends the daemon.
    Shutdown,
    /// Reads the configuration again.
    Reload,
    /// Only looks.
    Look,
    /// Makes new work: add, trigger, backfill, retry, redo, resume.
    NewWork,
    /// Takes work away or holds it back: stop, pause, skip, fail.
    LessWork,
}

impl CommandKind {
    /// The one table of what is legal when.
    #[must_use]
    pub fn legal_in(self, phase: Phase) -> bool {
        match phase {
            Phase::Starting => matches!(self, Self::Shutdown | Self::Look),
            Phase::Running => true,
            // Queued work is durable, so taking some away still makes sense; adding waits for the next start.
            Phase::Draining => matches!(self, Self::Shutdown | Self::Look | Self::LessWork),
            Phase::Stopped => false,
        }
    }
}

/// Why a command was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommandError {
    /// [`CAPACITY`] commands wait already; try again later.
    #[error("the daemon's mailbox is full; try again in a moment")]
    Busy,
    /// Not in this phase.
    #[error("the daemon is {0} and does not take this command now")]
    NotNow(Phase),
    /// The loop has ended, or dropped the command while it ended.
    #[error("the daemon has stopped")]
    Stopped,
    /// The store's answer.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Anything else that is wrong with the command.
    #[error("{0}")]
    Refused(String),
}

/// Where the answer of a command goes. A caller that went away is no error.
#[derive(Debug)]
pub struct Reply<T>(oneshot::Sender<Result<T, CommandError>>);

impl<T> Reply<T> {
    /// A reply and where it arrives.
    #[must_use]
    pub fn pair() -> (Self, oneshot::Receiver<Result<T, CommandError>>) {
        let (tx, rx) = oneshot::channel();
        (Self(tx), rx)
    }

    /// Answers.
    pub fn give(self, answer: Result<T, impl Into<CommandError>>) {
        let _ = self.0.send(answer.map_err(Into::into));
    }
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Keys that changed and are in effect.
    pub applied: Vec<String>,
    /// Keys that changed and need a restart.
    pub needs_restart: Vec<String>,
    /// What happened to files that the configuration names, and what follows, for people.
    #[serde(default)]
    pub noticed: Vec<String>,
    /// Runners that the reload took out of service, and entries that it did not put in force since their
    /// file may not serve.
    #[serde(default)]
    pub runners: Vec<RunnerNews>,
    /// What is wrong with the new files; when the daemon's own file has problems the old configuration stays whole.
    pub problems: Vec<String>,
    /// What is right and yet worth a look.
    pub warnings: Vec<String>,
    /// What became of daemon.yml.
    pub daemon_yml: Part,
    /// What became of schedules.yml.
    pub schedules_yml: Part,
    /// Schedules that were set aside, by name; they stay as they were.
    pub quarantined: Vec<String>,
}

impl Reloaded {
    /// Notes why a file was refused as a whole.
    pub fn refused(&mut self, why: &impl ToString) -> Part {
        self.problems.push(why.to_string());
        Part::Refused
    }
}

/// What a reload has to say of a runner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerNews {
    /// Which.
    pub runner: String,
    /// True where what served before goes on; false where nothing serves it any more.
    pub serves: bool,
    /// The word for what is wrong.
    pub code: String,
    /// The same for people.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// What became of one file in a reload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// It says what it said before.
    #[default]
    Unchanged,
    /// It counts, whole.
    InEffect,
    /// Its good schedules count, the bad ones are set aside.
    InPart,
    /// It does not count; what was before stays.
    Refused,
}

/// What a backfill made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backfilled {
    /// Ids of the new mandates, oldest occurrence first.
    pub created: Vec<String>,
    /// Occurrences that had a mandate already.
    pub occupied: Vec<DateTime<Utc>>,
}

/// A command, with the place for its answer.
#[derive(Debug)]
pub enum Command {
    /// Stop gracefully. Answered at once, before the stop is done.
    Shutdown(Reply<()>),
    /// Read the configuration again.
    Reload(Reply<Reloaded>),
    /// Write the status to the log, and answer with it.
    StatusDump(Reply<Value>),
    /// Something about mandates or schedules; carried out by the engine.
    Work(Work),
}

/// Commands on mandates and schedules.
#[derive(Debug)]
pub enum Work {
    /// Make a mandate by hand.
    AddMandate(Box<NewMandate>, Reply<Added>),
    /// Stop, retry, resume or resolve one.
    Mandate {
        /// Which.
        id: String,
        /// What.
        command: MandateCommand,
        /// The answer.
        reply: Reply<Commanded>,
    },
    /// Fire a schedule now, beside its rule.
    Trigger {
        /// Which.
        schedule: String,
        /// The client's own id for this request.
        request_id: Option<String>,
        /// The answer.
        reply: Reply<Added>,
    },
    /// Make mandates for past occurrences.
    Backfill {
        /// Which.
        schedule: String,
        /// From this nominal time, exclusive.
        from: DateTime<Utc>,
        /// To this one, inclusive.
        to: DateTime<Utc>,
        /// Also where there is a mandate already.
        again: bool,
        /// The answer.
        reply: Reply<Backfilled>,
    },
    /// Hold a schedule back.
    PauseSchedule {
        /// Which.
        schedule: String,
        /// Until then; without it until somebody resumes it.
        until: Option<DateTime<Utc>>,
        /// Why.
        note: Option<String>,
        /// The answer.
        reply: Reply<()>,
    },
    /// Let a schedule go on.
    ResumeSchedule {
        /// Which.
        schedule: String,
        /// Also make mandates for the occurrences of the pause.
        backfill: bool,
        /// The answer.
        reply: Reply<()>,
    },
    /// Leave out the next occurrence.
    SkipNext {
        /// Which.
        schedule: String,
        /// The answer: its nominal time.
        reply: Reply<DateTime<Utc>>,
    },
}

impl Command {
    /// What it is about.
    #[must_use]
    pub fn kind(&self) -> CommandKind {
        match self {
            Self::Shutdown(_) => CommandKind::Shutdown,
            Self::Reload(_) => CommandKind::Reload,
            Self::StatusDump(_) => CommandKind::Look,
            Self::Work(work) => work.kind(),
        }
    }

    /// Answers with that error, whatever the command is.
    pub fn refuse(self, error: CommandError) {
        match self {
            Self::Shutdown(reply) => reply.give(Err(error)),
            Self::Reload(reply) => reply.give(Err(error)),
            Self::StatusDump(reply) => reply.give(Err(error)),
            Self::Work(work) => work.refuse(error),
        }
    }
}

impl Work {
    fn kind(&self) -> CommandKind {
        use crate::store::Resolution;
        match self {
            Self::AddMandate(..) | Self::Trigger { .. } | Self::Backfill { .. } => CommandKind::NewWork,
            Self::Mandate { command, .. } => match command {
                MandateCommand::Retry | MandateCommand::Resume => CommandKind::NewWork,
                MandateCommand::Resolve { verdict: Resolution::Redo, .. } => CommandKind::NewWork,
                MandateCommand::Stop { .. }
                | MandateCommand::Resolve { .. }
                | MandateCommand::Deny { .. }
                | MandateCommand::Expire => CommandKind::LessWork,
            },
            Self::ResumeSchedule { .. } => CommandKind::NewWork,
            Self::PauseSchedule { .. } | Self::SkipNext { .. } => CommandKind::LessWork,
        }
    }

    fn refuse(self, error: CommandError) {
        match self {
            Self::AddMandate(_, reply) | Self::Trigger { reply, .. } => reply.give(Err(error)),
            Self::Mandate { reply, .. } => reply.give(Err(error)),
            Self::Backfill { reply, .. } => reply.give(Err(error)),
            Self::PauseSchedule { reply, .. } | Self::ResumeSchedule { reply, .. } => reply.give(Err(error)),
            Self::SkipNext { reply, .. } => reply.give(Err(error)),
        }
    }
}

/// The sending side; cheap to clone, for any thread.
#[derive(Clone, Debug)]
pub struct Mailbox {
    sender: mpsc::Sender<Command>,
    phase: Arc<watch::Sender<Phase>>,
}

/// The receiving side: the loop's.
#[derive(Debug)]
pub struct Inbox {
    receiver: mpsc::Receiver<Command>,
    phase: Arc<watch::Sender<Phase>>,
}

/// A connected pair, in phase [`Phase::Starting`].
#[must_use]
pub fn mailbox() -> (Mailbox, Inbox) {
    with_capacity(CAPACITY)
}

fn with_capacity(capacity: usize) -> (Mailbox, Inbox) {
    let (sender, receiver) = mpsc::channel(capacity);
    let phase = Arc::new(watch::Sender::new(Phase::Starting));
    (Mailbox { sender, phase: Arc::clone(&phase) }, Inbox { receiver, phase })
}

impl Mailbox {
    /// Puts a command in, or says at once why not. The reply of a refused command is dropped with it.
    ///
    /// # Errors
    /// [`CommandError::Busy`], [`CommandError::NotNow`], [`CommandError::Stopped`].
    pub fn post(&self, command: Command) -> Result<(), CommandError> {
        let phase = self.phase();
        if !command.kind().legal_in(phase) {
            return Err(if phase == Phase::Stopped {
                CommandError::Stopped
            } else {
                CommandError::NotNow(phase)
            });
        }
        self.sender.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CommandError::Busy,
            mpsc::error::TrySendError::Closed(_) => CommandError::Stopped,
        })
    }

    /// Posts the command that `make` builds around a reply, and awaits the answer.
    ///
    /// # Errors
    /// Those of [`Mailbox::post`], and the command's own.
    pub async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Command) -> Result<T, CommandError> {
        let (reply, answer) = Reply::pair();
        self.post(make(reply))?;
        answer.await.unwrap_or(Err(CommandError::Stopped))
    }

    /// Asks for a graceful stop.
    ///
    /// # Errors
    /// Those of [`Mailbox::post`].
    pub async fn shutdown(&self) -> Result<(), CommandError> {
        self.ask(Command::Shutdown).await
    }

    /// Stops one mandate.
    ///
    /// # Errors
    /// Those of [`Mailbox::post`], and the store's.
    pub async fn stop_mandate(&self, id: &str, note: Option<String>) -> Result<MandateState, CommandError> {
        let command = MandateCommand::Stop { note };
        let done = self.ask(|reply| Command::Work(Work::Mandate { id: id.to_owned(), command, reply }));
        Ok(done.await?.state)
    }

    /// Commands that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sender.max_capacity() - self.sender.capacity()
    }

    /// True when no command waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the daemon stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// For waiting until the phase changes.
    #[must_use]
    pub fn watch_phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }
}

impl Inbox {
    /// The next command that is legal now; others are answered here. None when every sender is
    /// gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Command> {
        loop {
            let command = self.receiver.recv().await?;
            let phase = self.phase();
            if command.kind().legal_in(phase) {
                return Some(command);
            }
            command.refuse(CommandError::NotNow(phase));
        }
    }

    /// Where the daemon stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Moves on. A phase never goes back, so a late call changes nothing.
    pub fn enter(&mut self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let forward = (phase as u8) > (*now as u8);
            if forward {
                *now = phase;
            }
            forward
        });
        if phase == Phase::Stopped {
            self.receiver.close();
            while let Ok(command) = self.receiver.try_recv() {
                command.refuse(CommandError::Stopped);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop() -> (Command, oneshot::Receiver<Result<Commanded, CommandError>>) {
        let (reply, answer) = Reply::pair();
        let command = MandateCommand::Stop { note: None };
        (Command::Work(Work::Mandate { id: "m".into(), command, reply }), answer)
    }

    fn retry() -> Command {
        let (reply, _) = Reply::pair();
        Command::Work(Work::Mandate { id: "m".into(), command: MandateCommand::Retry, reply })
    }

    #[test]
    fn full_mailbox_answers_busy_and_takes_again_when_read() {
        let (mailbox, mut inbox) = with_capacity(2);
        inbox.enter(Phase::Running);
        for _ in 0..2 {
            mailbox.post(stop().0).unwrap();
        }
        assert!(matches!(mailbox.post(stop().0), Err(CommandError::Busy)));
        assert_eq!(mailbox.len(), 2);
        inbox.receiver.try_recv().unwrap();
        mailbox.post(stop().0).unwrap();
    }

    #[test]
    fn nothing_is_taken_before_the_daemon_runs_or_after_it_ended_except_what_the_table_says() {
        use CommandKind::{LessWork, Look, NewWork, Reload, Shutdown};
        for (phase, legal) in [
            (Phase::Starting, &[Shutdown, Look][..]),
            (Phase::Running, &[Shutdown, Reload, Look, NewWork, LessWork][..]),
            (Phase::Draining, &[Shutdown, Look, LessWork][..]),
            (Phase::Stopped, &[][..]),
        ] {
            for kind in [Shutdown, Reload, Look, NewWork, LessWork] {
                assert_eq!(kind.legal_in(phase), legal.contains(&kind), "{kind:?} while {phase}");
            }
        }
    }

    #[tokio::test]
    async fn command_that_became_illegal_while_it_waited_is_answered() {
        let (mailbox, mut inbox) = mailbox();
        inbox.enter(Phase::Running);
        mailbox.post(retry()).unwrap();
        let (command, _answer) = stop();
        mailbox.post(command).unwrap();
        inbox.enter(Phase::Draining);
        let next = inbox.next().await.unwrap();
        assert_eq!(next.kind(), CommandKind::LessWork, "the retry was refused, the stop is legal");
        assert!(matches!(mailbox.post(retry()), Err(CommandError::NotNow(Phase::Draining))));
    }

    #[tokio::test]
    async fn end_of_the_loop_answers_what_still_waits() {
        let (mailbox, mut inbox) = mailbox();
        inbox.enter(Phase::Running);
        let (command, answer) = stop();
        mailbox.post(command).unwrap();
        inbox.enter(Phase::Stopped);
        assert!(matches!(answer.await.unwrap(), Err(CommandError::Stopped)));
        assert!(matches!(mailbox.shutdown().await, Err(CommandError::Stopped)));
        inbox.enter(Phase::Running);
        assert_eq!(mailbox.phase(), Phase::Stopped, "phases never go back");
    }
}
