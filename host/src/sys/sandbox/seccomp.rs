//! The filter of system calls. A runner gets a list of what it may call, a tool a list of what it
//! may not. Refused calls answer `EPERM`, so that an author reads which one it was; nothing is
//! gained by ending the process instead.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads, sock_filter,
};

use super::{Confinement, Network, Profile, SandboxError};

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Programs to install, in this order; the strictest answer counts.
pub(super) struct Filters(Vec<BpfProgram>);

impl Filters {
    /// `metadata`: whether the mounts guard modes, owners and times already. Otherwise tools change
    /// none, not even of what they may change: a filter sees no paths.
    pub(super) fn build(wanted: &Confinement, metadata: bool) -> Result<Self, SandboxError> {
        let build = || -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
            // glibc asks for threads by clone3, whose flags no filter can see, and falls back to
            // clone when the kernel does not know it.
            let mut unknown = Rules::from([(libc::SYS_clone3, vec![])]);
            if wanted.profile == Profile::Runner {
                // As openat2 has its mode where no filter sees it; callers fall back to openat.
                unknown.insert(libc::SYS_openat2, vec![]);
            }
            let mut programs = vec![program(unknown, SeccompAction::Allow, libc::ENOSYS)?];
            if wanted.profile == Profile::Runner {
                let allowed = runner_allows()?;
                let refused = SeccompAction::Errno(errno(libc::EPERM));
                let filter = SeccompFilter::new(allowed, refused, SeccompAction::Allow, arch()?)?;
                programs.push(filter.try_into()?);
            } else {
                programs.push(other_abi());
                programs.push(program(tool_denies(wanted.network)?, SeccompAction::Allow, libc::EPERM)?);
                if !metadata {
                    programs.push(program(metadata_denies()?, SeccompAction::Allow, libc::EPERM)?);
                }
            }
            Ok(programs)
        };
        build().map(Self).map_err(|error| SandboxError::Filter(error.to_string()))
    }

    /// Puts them in force. Afterwards this process can install no more.
    pub(super) fn install(self) -> Result<(), String> {
        self.0.iter().try_for_each(|program| apply_filter_all_threads(program)).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| cause.to_string());
            let said = error.to_string();
            // Some of them say their cause themselves.
            match cause.filter(|cause| !said.contains(cause.as_str())) {
                Some(cause) => format!("{said}: {cause}"),
                None => said,
            }
        })
    }
}

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    refusal: i32,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, otherwise, SeccompAction::Errno(errno(refusal)), arch()?)?.try_into()
}

fn errno(code: i32) -> u32 {
    code.unsigned_abs()
}

fn arch() -> Result<TargetArch, seccompiler::BackendError> {
    std::env::consts::ARCH.try_into()
}

/// x86-64 knows a second numbering of the same calls, which a list of what is denied would miss.
fn other_abi() -> BpfProgram {
    const LOAD_NUMBER: u16 = 0x20;
    const AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const X32: u32 = 0x4000_0000;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        step(LOAD_NUMBER, 0, 0, 0),
        step(AT_LEAST, 0, 1, X32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno(libc::ENOSYS)),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn when(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = conditions.iter().map(|(argument, operator, value)| {
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator.clone(), *value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

fn one_of(argument: u8, values: &[i64]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    // Compared as the 32 bits that the kernel reads.
    values.iter().map(|value| when(&[(argument, SeccompCmpOp::Eq, *value as u64 & 0xffff_ffff)])).collect()
}

fn masked(argument: u8, mask: i32, values: &[i32]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let mask = u64::from(mask.cast_unsigned());
    let rule =
        |value: &i32| when(&[(argument, SeccompCmpOp::MaskedEq(mask), u64::from(value.cast_unsigned()))]);
    values.iter().map(rule).collect()
}

/// What a runner may call whatever the arguments are.
const RUNNER_CALLS: &[c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads and time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone3, // answered ENOSYS by the filter before
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_membarrier,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    // Signals to itself.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    // Descriptors it has.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_lseek,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendfile,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_write,
    libc::SYS_writev,
    // Files, as far as Landlock opens them. No links, which would lead a host out of the grant,
    // and no modes, owners and times of what is there already, which Landlock does not guard.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat2, // answered ENOSYS by the filter before
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    // Who and where it is.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_uname,
];

/// The older forms of some of these, where the machine has them.
#[cfg(target_arch = "x86_64")]
const RUNNER_OLDER_CALLS: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_getdents,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const RUNNER_OLDER_CALLS: &[c_long] = &[];

fn runner_allows() -> Result<Rules, seccompiler::BackendError> {
    const WRITE_AND_EXEC: i32 = libc::PROT_WRITE | libc::PROT_EXEC;
    const NOT_BOTH: [i32; 3] = [0, libc::PROT_WRITE, libc::PROT_EXEC];
    const SET_VMA: i64 = 0x5356_4d41;
    let pid = i64::from(rustix::process::getpid().as_raw_pid());
    let mut rules: Rules =
        RUNNER_CALLS.iter().chain(RUNNER_OLDER_CALLS).map(|call| (*call, Vec::new())).collect();
    let thread = libc::CLONE_THREAD;
    rules.insert(libc::SYS_clone, masked(0, thread, &[thread])?);
    // Only to itself, as `abort` does.
    rules.insert(libc::SYS_kill, one_of(0, &[pid])?);
    rules.insert(libc::SYS_tgkill, one_of(0, &[pid])?);
    rules.insert(libc::SYS_prlimit64, one_of(0, &[0, pid])?);
    rules.insert(libc::SYS_mmap, masked(2, WRITE_AND_EXEC, &NOT_BOTH)?);
    rules.insert(libc::SYS_mprotect, masked(2, WRITE_AND_EXEC, &NOT_BOTH)?);
    rules.insert(libc::SYS_openat, plain_mode(2, 3)?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, plain_mode(1, 2)?);
    // A whiteout is a device, which is made in the place of what was moved.
    rules.insert(libc::SYS_renameat2, masked(4, WHITEOUT, &[0])?);
    let names = [i64::from(libc::PR_SET_NAME), i64::from(libc::PR_GET_NAME), SET_VMA];
    rules.insert(libc::SYS_prctl, one_of(0, &names)?);
    // Not F_SETOWN and its like, by which a file's event becomes a signal to somebody.
    let commands = [
        libc::F_DUPFD,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_GETLK,
        libc::F_SETLK,
        libc::F_SETLKW,
        libc::F_OFD_GETLK,
        libc::F_OFD_SETLK,
        libc::F_OFD_SETLKW,
        libc::F_GETPIPE_SZ,
    ];
    rules.insert(libc::SYS_fcntl, one_of(1, &commands.map(i64::from))?);
    let controls = [libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD, libc::TCGETS];
    let controls: Vec<i64> =
        controls.iter().map(|control| i64::try_from(*control).unwrap_or_default()).collect();
    rules.insert(libc::SYS_ioctl, one_of(1, &controls)?);
    // A pair that is connected at once; a datagram socket could still be sent elsewhere.
    let pair = when(&[
        (0, SeccompCmpOp::Eq, u64::from(libc::AF_UNIX.cast_unsigned())),
        (1, SeccompCmpOp::MaskedEq(0xf), u64::from(libc::SOCK_STREAM.cast_unsigned())),
    ])?;
    rules.insert(libc::SYS_socketpair, vec![pair]);
    rules.insert(libc::SYS_setsockopt, one_of(1, &[i64::from(libc::SOL_SOCKET)])?);
    Ok(rules)
}

/// `RENAME_WHITEOUT`.
const WHITEOUT: i32 = 4;

/// An open whose mode, which counts when a file is made, lets nobody act as the file's owner or group.
fn plain_mode(flags: u8, mode: u8) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    // The second one without the part of it that says directory.
    const MAKES: i32 = libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY);
    const ACT_AS: i32 = (libc::S_ISUID | libc::S_ISGID).cast_signed();
    Ok([masked(flags, MAKES, &[0])?, masked(mode, ACT_AS, &[0])?].concat())
}

/// What no tool may call, whatever the arguments are.
const TOOL_DENIED: &[c_long] = &[
    // Other processes.
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    // Ways around this filter, and large parts of the kernel that no tool needs.
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_fanotify_init,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_perf_event_open,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
    // Namespaces and mounts.
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // The machine.
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_vhangup,
];

/// Modes, owners, times and attributes of files, whatever the arguments are.
const METADATA: &[c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_setxattr,
    // `fchmodat2`, `setxattrat`, `removexattrat` and `file_setattr`, the same everywhere.
    452,
    463,
    466,
    469,
];

/// The older forms of some of these, where the machine has them.
#[cfg(target_arch = "x86_64")]
const METADATA_OLDER: &[c_long] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_futimesat,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
];
#[cfg(not(target_arch = "x86_64"))]
const METADATA_OLDER: &[c_long] = &[];

fn metadata_denies() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = METADATA.iter().chain(METADATA_OLDER).map(|call| (*call, Vec::new())).collect();
    // Times of what is open are left, for `touch` and the like: Landlock opened it.
    let by_path = SeccompCondition::new(1, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?;
    rules.insert(libc::SYS_utimensat, vec![SeccompRule::new(vec![by_path])?]);
    rules.insert(libc::SYS_ioctl, one_of(1, &SET_ATTRIBUTES)?);
    Ok(rules)
}

/// `FS_IOC_SETFLAGS`, its form for 32 bits, `FS_IOC_FSSETXATTR` and `FS_IOC_SETVERSION`.
const SET_ATTRIBUTES: [i64; 4] = [0x4008_6602, 0x4004_6602, 0x401c_5820, 0x4008_7602];

/// Limits, urgency and the like of whoever has the same user, the daemon first: no tool may change
/// those of others by number. Zero is whoever calls. A process that names itself by its number is
/// refused as well, since a filter is inherited and cannot know it; for threads of the caller, whom
/// some libraries move to a core, that costs speed at most.
fn only_of_itself() -> Result<Rules, seccompiler::BackendError> {
    let other = |argument| when(&[(argument, SeccompCmpOp::Ne, 0)]);
    // Reading the limits of others, which gives no new ones, is left.
    let new_limit = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?;
    let of_other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, 0)?;
    let mut rules = Rules::from([(libc::SYS_prlimit64, vec![SeccompRule::new(vec![of_other, new_limit])?])]);
    for call in [
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setattr,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setscheduler,
        libc::SYS_migrate_pages,
        libc::SYS_move_pages,
    ] {
        rules.insert(call, vec![other(0)?]);
    }
    // Not the group or the user either: a tool can join the group of others in its session.
    for (call, process) in [(libc::SYS_setpriority, PROCESS), (libc::SYS_ioprio_set, IO_PROCESS)] {
        rules.insert(call, vec![when(&[(0, SeccompCmpOp::Ne, process)])?, other(1)?]);
    }
    Ok(rules)
}

/// `PRIO_PROCESS` and `IOPRIO_WHO_PROCESS`.
const PROCESS: u64 = 0;
const IO_PROCESS: u64 = 1;

fn tool_denies(network: Network) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = TOOL_DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let namespaces = [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ];
    let mut clone = Vec::new();
    for flag in namespaces {
        clone.extend(masked(0, flag, &[flag])?);
    }
    rules.insert(libc::SYS_clone, clone);
    // Typing into the terminal of whoever started the daemon.
    let typing = [libc::TIOCSTI, libc::TIOCLINUX];
    let typing: Vec<i64> = typing.iter().map(|control| i64::try_from(*control).unwrap_or_default()).collect();
    rules.insert(libc::SYS_ioctl, one_of(1, &typing)?);
    rules.insert(libc::SYS_renameat2, masked(4, WHITEOUT, &[WHITEOUT])?);
    rules.extend(only_of_itself()?);
    rules.insert(libc::SYS_socketpair, masked(1, 0xf, &[libc::SOCK_DGRAM])?);
    let number = |value: i32| u64::from(value.cast_unsigned());
    let sockets = match network {
        Network::None => Vec::new(),
        // Internet protocols, and the questions about addresses that resolving a name asks.
        Network::Host => vec![
            when(&[
                (0, SeccompCmpOp::Ne, number(libc::AF_INET)),
                (0, SeccompCmpOp::Ne, number(libc::AF_INET6)),
                (0, SeccompCmpOp::Ne, number(libc::AF_NETLINK)),
            ])?,
            when(&[
                (0, SeccompCmpOp::Eq, number(libc::AF_NETLINK)),
                (2, SeccompCmpOp::Ne, number(libc::NETLINK_ROUTE)),
            ])?,
        ],
    };
    rules.insert(libc::SYS_socket, sockets);
    Ok(rules)
}
