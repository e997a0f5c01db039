//! Attempts on memory, limits, privileges and the rarer parts of the kernel.

use crate::{Log, Outcome, call, reaches, text_of, works};

const PAGE: usize = 4096;
const READ_WRITE: usize = (libc::PROT_READ | libc::PROT_WRITE) as usize;
const ALL: usize = READ_WRITE | libc::PROT_EXEC as usize;
const PRIVATE: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
const ANYWHERE: usize = usize::MAX;

fn map(length: usize, protection: usize) -> Result<i64, i32> {
    call(libc::SYS_mmap, [0, length, protection, PRIVATE, ANYWHERE])
}

pub fn attempts(log: &mut Log) {
    memory(log);
    limits(log);
    privileges(log);
    rare_calls(log);
}

fn memory(log: &mut Log) {
    log.tries("memory.too_much", || {
        const LENGTH: usize = 1 << 30;
        let address = map(LENGTH, READ_WRITE).map_err(text_of)?;
        let _ = call(libc::SYS_munmap, [usize::try_from(address).unwrap_or_default(), LENGTH, 0, 0, 0]);
        Ok("a gibibyte".to_owned())
    });
    log.tries("memory.code_at_once", || works(map(PAGE, ALL)));
    log.tries("memory.code_later", || {
        let address = usize::try_from(map(PAGE, READ_WRITE).map_err(text_of)?).unwrap_or_default();
        works(call(libc::SYS_mprotect, [address, PAGE, (libc::PROT_READ | libc::PROT_EXEC) as usize, 0, 0]))
    });
    log.tries("memory.file", || works(call(libc::SYS_memfd_create, [c"x".as_ptr() as usize, 0, 0, 0, 0])));
}

fn limits(log: &mut Log) {
    log.tries("limits.raise", raise_limit);
    log.tries("limits.threads", threads);
    log.tries("limits.of_daemon", || {
        let parent = usize::try_from(crate::daemon()).unwrap_or_default();
        let mut limit = [0_u64; 2];
        works(call(
            libc::SYS_prlimit64,
            [parent, libc::RLIMIT_NOFILE as usize, 0, limit.as_mut_ptr() as usize, 0],
        ))
    });
}

fn privileges(log: &mut Log) {
    log.tries("privileges.user", || {
        // Only the effective one, and back at once.
        let set = |user: usize| call(libc::SYS_setresuid, [usize::MAX, user, usize::MAX, 0, 0]);
        let had = call(libc::SYS_geteuid, [0; 5]).map_err(text_of)?;
        let answer = works(set(1));
        let _ = set(usize::try_from(had).unwrap_or_default());
        answer
    });
    log.tries("privileges.root_directory", || {
        works(call(libc::SYS_chroot, [c"/".as_ptr() as usize, 0, 0, 0, 0]))
    });
    log.tries("privileges.host_name", || reaches(call(libc::SYS_sethostname, [0, usize::MAX, 0, 0, 0])));
    log.tries("privileges.mount", || {
        let (kind, none) = (c"tmpfs".as_ptr() as usize, c"none".as_ptr() as usize);
        // Not there: who may not mount at all is told so before.
        reaches(call(libc::SYS_mount, [none, c"/no/such/place".as_ptr() as usize, kind, 0, 0]))
    });
    log.tries("privileges.namespace", || {
        reaches(call(libc::SYS_unshare, [libc::CLONE_NEWUSER as usize, 0, 0, 0, 0]))
    });
    log.tries("privileges.enter_namespace", || reaches(call(libc::SYS_setns, [usize::MAX, 0, 0, 0, 0])));
    log.tries("privileges.dumpable", || {
        works(call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1, 0, 0, 0]))
    });
    log.tries("privileges.outlive_daemon", || {
        works(call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, 0, 0, 0, 0]))
    });
}

fn rare_calls(log: &mut Log) {
    // With nothing in their arguments: a refusal comes before they look at any.
    let calls = [
        ("calls.bpf", libc::SYS_bpf),
        ("calls.keyctl", libc::SYS_keyctl),
        ("calls.add_key", libc::SYS_add_key),
        ("calls.perf", libc::SYS_perf_event_open),
        ("calls.userfaultfd", libc::SYS_userfaultfd),
        ("calls.fanotify", libc::SYS_fanotify_init),
        ("calls.inotify", libc::SYS_inotify_init1),
        ("calls.shared_memory", libc::SYS_shmget),
        ("calls.personality", libc::SYS_personality),
        ("calls.open_by_handle", libc::SYS_open_by_handle_at),
        ("calls.mount_tree", libc::SYS_open_tree),
        ("calls.kernel_log", libc::SYS_syslog),
        ("calls.splice", libc::SYS_splice),
        ("calls.kcmp", libc::SYS_kcmp),
        ("calls.unknown", 9999),
    ];
    for (name, number) in calls {
        log.tries(name, || reaches(call(number, [0; 5])));
    }
    // These would do something with nothing in their arguments.
    log.tries("calls.seccomp", || reaches(call(libc::SYS_seccomp, [9999, 0, 0, 0, 0])));
    log.tries("calls.message_queue", || reaches(call(libc::SYS_msgget, [1, 0, 0, 0, 0])));
    log.tries("calls.terminal", || {
        let letter = [b'x'];
        reaches(call(libc::SYS_ioctl, [0, libc::TIOCSTI as usize, letter.as_ptr() as usize, 0, 0]))
    });
}

/// More threads at once than any runner needs.
fn threads() -> Outcome {
    const MANY: usize = 300;
    let gate = std::sync::Mutex::new(());
    let closed = gate.lock().map_err(|error| error.to_string())?;
    std::thread::scope(|scope| {
        let begun = (0..MANY).map_while(|_| {
            let waiter = std::thread::Builder::new().stack_size(64 << 10);
            waiter.spawn_scoped(scope, || drop(gate.lock())).ok()
        });
        let count = begun.count();
        drop(closed);
        if count == MANY { Ok(format!("{count} threads")) } else { Err(format!("no more than {count}")) }
    })
}

fn raise_limit() -> Outcome {
    // What it had, and a limit half as high that it then wants to leave again.
    let mut had = [0_u64; 2];
    let files = libc::RLIMIT_NOFILE as usize;
    works(call(libc::SYS_prlimit64, [0, files, 0, had.as_mut_ptr() as usize, 0]))?;
    let more = [had[1].saturating_add(1); 2];
    works(call(libc::SYS_prlimit64, [0, files, more.as_ptr() as usize, 0, 0]))
}
