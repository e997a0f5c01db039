//! How the thread or process under a cycle ended, in the words an operator needs: by what
//! signal, with which code, in which phase.

use std::fmt;

/// The end of a runner in the middle of a cycle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Death {
    /// What happened, for people: `it closed its connection`, `no thread for it: ...`.
    pub how: String,
    /// The signal that ended the process.
    pub signal: Option<i32>,
    /// Its exit code, when no signal did.
    pub exit_code: Option<i32>,
    /// The phase that the cycle had last said it was in.
    pub phase: Option<String>,
    /// True when the host ended it: after a deadline or a stop and its grace.
    pub by_host: bool,
}

impl Death {
    /// An end without a process: of a thread, or before there was a process.
    #[must_use]
    pub fn without_process(how: impl Into<String>) -> Self {
        Self { how: how.into(), ..Self::default() }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.how)?;
        if let Some(phase) = &self.phase {
            write!(f, ", in phase {phase}")?;
        }
        Ok(())
    }
}

/// How a process ended, in one line: `worker killed by signal 11 (SIGSEGV)`.
#[must_use]
pub fn describe(signal: Option<i32>, exit_code: Option<i32>) -> String {
    match (signal, exit_code) {
        (Some(signal), _) => match signal_name(signal) {
            Some(name) => format!("worker killed by signal {signal} ({name})"),
            None => format!("worker killed by signal {signal}"),
        },
        (None, Some(code)) => format!("worker exited with code {code}"),
        (None, None) => "worker is gone, nobody knows how".to_owned(),
    }
}

/// Names of the signals that end a process, as people look them up.
#[must_use]
pub fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}
