//! Attempts on files: those of the daemon, of the system, of the grant.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::{Log, Outcome, Targets, c_path, call, outcome, reaches, works};

fn reads(path: &Path) -> Outcome {
    let mut text = [0; 64];
    let count =
        File::open(path).and_then(|mut file| file.read(&mut text)).map_err(|error| error.to_string())?;
    if count > 0 { Ok(format!("{count} bytes")) } else { Err("empty".to_owned()) }
}

fn writes(path: &Path) -> Outcome {
    outcome(File::create(path).and_then(|mut file| file.write_all(b"I was here")))
}

pub fn attempts(log: &mut Log, targets: &Targets) {
    let root = &targets.root;
    granted(log, root);
    looks(log, root);
    changes(log, root);
    special(log, root);
    set_id(log, root);
    daemons(log, targets.daemon);
    log.tries("files.inherited", inherited);
}

/// What it may do.
fn granted(log: &mut Log, root: &Path) {
    let at = |path: &str| root.join(path);
    log.tries("granted.read", || reads(&at("in/note.txt")));
    log.tries("granted.list", || outcome(fs::read_dir(at("in"))));
    log.tries("granted.write", || writes(&at("out/mine.txt")));
    log.tries("granted.change", || {
        fs::create_dir(at("out/dir")).map_err(|error| error.to_string())?;
        fs::rename(at("out/mine.txt"), at("out/dir/yours.txt")).map_err(|error| error.to_string())?;
        outcome(fs::remove_file(at("out/dir/yours.txt")).and_then(|()| fs::remove_dir(at("out/dir"))))
    });
}

fn looks(log: &mut Log, root: &Path) {
    let at = |path: &str| root.join(path);
    log.tries("files.token", || reads(&at(".kairos/run/attach_token")));
    log.tries("files.config", || reads(&at(".kairos/config/daemon.yml")));
    log.tries("files.store", || reads(&at(".kairos/state/store.db")));
    log.tries("files.passwd", || reads(Path::new("/etc/passwd")));
    log.tries("files.list_root", || outcome(fs::read_dir(root)));
    log.tries("files.list_system", || outcome(fs::read_dir("/etc")));
    log.tries("files.libraries", || outcome(fs::read_dir("/usr/lib")));
    log.tries("files.dot_dot", || reads(&at("out/../victim.txt")));
}

fn changes(log: &mut Log, root: &Path) {
    let at = |path: &str| root.join(path);
    log.tries("files.write_outside", || writes(&at("outside.txt")));
    log.tries("files.write_tmp", || {
        writes(&std::env::temp_dir().join(format!("escape-{}", std::process::id())))
    });
    log.tries("files.write_what_is_read", || writes(&at("in/new.txt")));
    log.tries("files.append_outside", || {
        outcome(
            OpenOptions::new().append(true).open(at("victim.txt")).and_then(|mut file| file.write_all(b"x")),
        )
    });
    log.tries("files.truncate", || {
        works(call(libc::SYS_truncate, [c_path(&at("victim.txt")).as_ptr() as usize, 0, 0, 0, 0]))
    });
    log.tries("files.remove", || outcome(fs::remove_file(at("spare.txt"))));
    log.tries("files.move_out", || {
        writes(&at("out/moved.txt"))?;
        outcome(fs::rename(at("out/moved.txt"), at("moved.txt")))
    });
    log.tries("files.mode", || {
        outcome(fs::set_permissions(at("victim.txt"), fs::Permissions::from_mode(0o666)))
    });
    log.tries("files.times", || {
        let path = c_path(&at("victim.txt"));
        reaches(call(libc::SYS_utimensat, [libc::AT_FDCWD as usize, path.as_ptr() as usize, 0, 0, 0]))
    });
    log.tries("files.huge", || outcome(File::create(at("out/huge")).and_then(|file| file.set_len(3 << 30))));
    drop(fs::remove_file(at("out/huge")));
}

/// Links, and files that are none of the ordinary kind.
fn special(log: &mut Log, root: &Path) {
    let at = |path: &str| root.join(path);
    log.tries("files.symlink", || outcome(std::os::unix::fs::symlink("/etc/passwd", at("out/link"))));
    log.tries("files.hard_link", || outcome(fs::hard_link(at("victim.txt"), at("out/hard"))));
    log.tries("files.fifo", || {
        let path = c_path(&at("out/fifo"));
        works(call(
            libc::SYS_mknodat,
            [libc::AT_FDCWD as usize, path.as_ptr() as usize, (libc::S_IFIFO | 0o600) as usize, 0, 0],
        ))
    });
    log.tries("files.whiteout", || {
        const WHITEOUT: usize = 4;
        writes(&at("out/covered"))?;
        let (from, to) = (c_path(&at("out/covered")), c_path(&at("out/uncovered")));
        let here = libc::AT_FDCWD as usize;
        let moved =
            call(libc::SYS_renameat2, [here, from.as_ptr() as usize, here, to.as_ptr() as usize, WHITEOUT]);
        drop(fs::remove_file(at("out/covered")));
        drop(fs::remove_file(at("out/uncovered")));
        reaches(moved)
    });
}

/// Files that act as their owner, whoever runs them.
fn set_id(log: &mut Log, root: &Path) {
    let at = |path: &str| root.join(path);
    let opens = |call_number: libc::c_long, how: usize, size: usize| {
        let path = c_path(&at("out/acts_as_owner"));
        let made = works(call(call_number, [libc::AT_FDCWD as usize, path.as_ptr() as usize, how, size, 0]));
        let mode = fs::metadata(at("out/acts_as_owner")).map(|about| about.mode()).unwrap_or_default();
        drop(fs::remove_file(at("out/acts_as_owner")));
        made.and_then(|_| {
            if mode & 0o6000 == 0 { Err(format!("mode {mode:o}")) } else { Ok(format!("mode {mode:o}")) }
        })
    };
    const MAKE: usize = (libc::O_CREAT | libc::O_WRONLY) as usize;
    log.tries("files.set_id", || opens(libc::SYS_openat, MAKE, 0o6777));
    log.tries("files.set_id_by_structure", || {
        // The kernel's `open_how`.
        let how: [u64; 3] = [MAKE as u64, 0o6777, 0];
        opens(libc::SYS_openat2, how.as_ptr() as usize, size_of_val(&how))
    });
}

/// What the kernel shows of the daemon, and of the runner itself.
fn daemons(log: &mut Log, daemon: i32) {
    log.tries("files.daemon_memory", || outcome(File::open(format!("/proc/{daemon}/mem"))));
    log.tries("files.daemon_environment", || reads(Path::new(&format!("/proc/{daemon}/environ"))));
    log.tries("files.daemon_arguments", || reads(Path::new(&format!("/proc/{daemon}/cmdline"))));
    log.tries("files.own_memory", || outcome(OpenOptions::new().write(true).open("/proc/self/mem")));
}

/// Files and directories that were open when it began.
fn inherited() -> Outcome {
    let mut found = Vec::new();
    for number in 0..256 {
        let copy = call(libc::SYS_fcntl, [number, libc::F_DUPFD_CLOEXEC as usize, 0, 0, 0]);
        let Ok(copy) = copy else { continue };
        let Ok(copy) = i32::try_from(copy) else { continue };
        // SAFETY: the descriptor was made by the call above and is nobody else's.
        let file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(copy) };
        let Ok(about) = file.metadata() else { continue };
        if about.is_dir() || about.is_file() {
            found.push(format!("{number} is inode {}", about.ino()));
        }
    }
    if found.is_empty() { Err("none".to_owned()) } else { Ok(found.join(", ")) }
}
