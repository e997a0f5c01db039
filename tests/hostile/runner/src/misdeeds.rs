//! What a runner can do to its own process. Everything is bounded: nothing here fills a disk, takes
//! real memory or leaves more than a few processes.

#![allow(unsafe_code, reason = "these are the faults that a host has to outlive")]

use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, RawFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use kairos_plugin_api::{CallError, Context};

/// Children that are left behind.
const CHILDREN: usize = 12;

/// Writes where nothing is.
pub fn touch_nothing() {
    // SAFETY: there is none; that is the point.
    unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
}

/// Goes down until the stack ends.
#[expect(unconditional_recursion, reason = "it must not end by itself")]
pub fn dig(depth: u64) -> [u64; 64] {
    let mut below = std::hint::black_box(dig)(depth + 1);
    below[0] = below[1].wrapping_add(depth);
    std::hint::black_box(below)
}

/// Computes and never looks up.
pub fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

/// Asks for more and more address space, without using any of it.
pub fn eat() {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    loop {
        eaten.push(Vec::with_capacity(256 << 20));
        std::hint::black_box(&eaten);
    }
}

/// How many MiB of memory are given, up to 1 GiB; none of it is touched, and all is given back.
pub fn measure() -> usize {
    let mut had: Vec<Vec<u8>> = Vec::new();
    while had.len() < 128 {
        let mut more = Vec::new();
        if more.try_reserve_exact(8 << 20).is_err() {
            break;
        }
        had.push(more);
    }
    had.len() * 8
}

/// Prints 16 MiB on each of both.
pub fn flood() -> Result<(), CallError> {
    let block = "all work and no play\n".repeat(3000);
    let failed = |error: std::io::Error| CallError::failed(error.to_string());
    for _ in 0..(16 << 20) / block.len() {
        std::io::stdout().write_all(block.as_bytes()).map_err(failed)?;
        std::io::stderr().write_all(block.as_bytes()).map_err(failed)?;
    }
    Ok(())
}

/// Starts children that would live for an hour, half of them in sessions of their own, and says who
/// they are.
pub fn leave_children(ctx: &Context) -> Result<(), CallError> {
    for n in 0..CHILDREN {
        let mut command = Command::new(if n % 2 == 0 { "/bin/sleep" } else { "/usr/bin/setsid" });
        if n % 2 == 1 {
            command.arg("/bin/sleep");
        }
        let child = command
            .arg("3600")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| CallError::failed(error.to_string()))?;
        ctx.log(tracing::Level::INFO, &format!("child {}", child.id()));
    }
    Ok(())
}

/// Asks the host from eight threads at once. Whatever each is told, all must be told something.
pub fn call_from_many_threads(ctx: &Context) {
    std::thread::scope(|scope| {
        for n in 0..8 {
            scope.spawn(move || {
                for _ in 0..50 {
                    let _ = ctx.should_stop();
                    let _ = ctx.now();
                    let _ = ctx.state_put(&format!("k{n}"), &n);
                }
                ctx.log(tracing::Level::INFO, &format!("thread {n} is done"));
            });
        }
    });
}

/// Closes every socket it has and lives on.
pub fn hang_up() {
    for fd in sockets() {
        // SAFETY: there is none; whoever owned it is robbed.
        drop(unsafe { File::from_raw_fd(fd) });
    }
    wait_for_ever();
}

/// Writes something on every socket it has and lives on.
pub fn forge(what: &str) {
    let bytes: &[u8] = match what {
        // A frame of 4 GiB; of no kind; a second `Ready`; a call that is none; a cut one.
        "long" => &[0xff; 64],
        "kind" => &[9, 0, 0, 0, 200, 0, 0, 0, 0, 0, 0, 0, 0],
        "place" => &[9, 0, 0, 0, 33, 0, 0, 0, 0, 0, 0, 0, 0],
        "call" => &[11, 0, 0, 0, 35, 1, 0, 0, 0, 0, 0, 0, 0, 200, 1],
        _ => &[200, 0, 0, 0, 36],
    };
    for fd in sockets() {
        // SAFETY: there is none; the descriptor is somebody else's.
        let mut file = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        let _ = file.write_all(bytes);
    }
    if what == "cut" {
        std::process::exit(0);
    }
    wait_for_ever();
}

fn sockets() -> Vec<RawFd> {
    let is_socket = |fd: &RawFd| {
        std::fs::read_link(format!("/proc/self/fd/{fd}"))
            .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    (0..64).filter(is_socket).collect()
}

fn wait_for_ever() {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
