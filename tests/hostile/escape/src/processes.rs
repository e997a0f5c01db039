//! Attempts on other processes, the daemon first, and to become or to make some.

use std::process::Command;

use crate::{Log, Outcome, Targets, call, reaches, works};

pub fn attempts(log: &mut Log, targets: &Targets) {
    let daemon = usize::try_from(targets.daemon).unwrap_or_default();
    log.tries("granted.thread", || {
        let thread = std::thread::Builder::new().spawn(|| 7).map_err(|error| error.to_string())?;
        thread.join().map(|seven| format!("= {seven}")).map_err(|_| "panicked".to_owned())
    });

    log.tries("processes.signal", || works(call(libc::SYS_kill, [daemon, 0, 0, 0, 0])));
    log.tries("processes.signal_thread", || works(call(libc::SYS_tgkill, [daemon, daemon, 0, 0, 0])));
    log.tries("processes.signal_everybody", || works(call(libc::SYS_kill, [usize::MAX, 0, 0, 0, 0])));
    log.tries("processes.signal_queued", || {
        // A siginfo, whose code says that it was queued by a process.
        let mut about = [0_i32; 32];
        about[2] = -1;
        works(call(libc::SYS_rt_sigqueueinfo, [daemon, 0, about.as_ptr() as usize, 0, 0]))
    });
    log.tries("processes.signal_by_descriptor", || {
        let descriptor = call(libc::SYS_pidfd_open, [daemon, 0, 0, 0, 0]).map_err(crate::text_of)?;
        let answer =
            call(libc::SYS_pidfd_send_signal, [usize::try_from(descriptor).unwrap_or_default(), 0, 0, 0, 0]);
        works(answer)
    });
    log.tries("processes.signal_by_file", || {
        const SET_OWNER: usize = libc::F_SETOWN as usize;
        reaches(call(libc::SYS_fcntl, [0, SET_OWNER, daemon, 0, 0]))
    });
    // Whom root attaches to stops at its next signal; nobody would let it go on.
    if targets.fatal || call(libc::SYS_geteuid, [0; 5]) != Ok(0) {
        log.tries("processes.attach", || {
            const SEIZE: usize = 0x4206;
            works(call(libc::SYS_ptrace, [SEIZE, daemon, 0, 0, 0]))
        });
    }
    log.tries("processes.read_memory", || read_memory(daemon));
    log.tries("processes.take_descriptor", || {
        let descriptor = call(libc::SYS_pidfd_open, [daemon, 0, 0, 0, 0]).map_err(crate::text_of)?;
        works(call(libc::SYS_pidfd_getfd, [usize::try_from(descriptor).unwrap_or_default(), 0, 0, 0, 0]))
    });

    log.tries("processes.shell", || {
        let status =
            Command::new("/bin/sh").args(["-c", "exit 7"]).status().map_err(|error| error.to_string())?;
        if status.code() == Some(7) { Ok("it ran".to_owned()) } else { Err(status.to_string()) }
    });
    log.tries("processes.exec", || {
        // Not there: a refusal says so before the kernel looks for it.
        let nothing: [usize; 1] = [0];
        let (path, list) = (c"/no/such/program".as_ptr() as usize, nothing.as_ptr() as usize);
        reaches(call(libc::SYS_execve, [path, list, list, 0, 0]))
    });
    log.tries("processes.fork", fork);
    if targets.fatal {
        log.tries("processes.end_daemon", || {
            works(call(libc::SYS_kill, [daemon, libc::SIGTERM as usize, 0, 0, 0]))
        });
        log.tries("processes.kill_daemon", || {
            works(call(libc::SYS_kill, [daemon, libc::SIGKILL as usize, 0, 0, 0]))
        });
        log.tries("processes.kill_group", || {
            works(call(libc::SYS_kill, [usize::MAX, libc::SIGTERM as usize, 0, 0, 0]))
        });
    }
}

fn read_memory(daemon: usize) -> Outcome {
    let mut byte = 0_u8;
    let local = [(&raw mut byte) as usize, 1];
    // Nothing is mapped there; who may not read at all is told so before.
    let remote = [0x1000_usize, 1];
    let answer =
        call(libc::SYS_process_vm_readv, [daemon, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1]);
    match answer {
        Err(libc::EFAULT) => Ok("allowed, nothing there".to_owned()),
        other => works(other),
    }
}

fn fork() -> Outcome {
    match call(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0]) {
        Ok(0) => {
            // The child has one thread and does nothing but end.
            let _ = call(libc::SYS_exit_group, [0; 5]);
            Err("still here".to_owned())
        }
        Ok(child) => {
            let _ = call(libc::SYS_wait4, [usize::try_from(child).unwrap_or_default(), 0, 0, 0, 0]);
            Ok(format!("process {child}"))
        }
        Err(number) => Err(crate::text_of(number)),
    }
}
