//! Programs under `kairos confine`: what they were granted works, the rest does not, and a
//! confinement that is wrong or too weak starts nothing.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test lays out plain files")]

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kairos_host::sys::sandbox::confine::{GRANTS, prepare};
use kairos_host::sys::sandbox::{Confinement, Level, Network, probe, programs};
use kairos_tests::{Ran, kairos};
use tempfile::TempDir;

fn shell(wanted: &Confinement, script: &str) -> Ran {
    let wanted = Confinement { exec: [programs(), wanted.exec.clone()].concat(), ..wanted.clone() };
    let mut command = prepare(&kairos(), &wanted, OsStr::new("/bin/sh"));
    command.args(["-c", script]).env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    Ran::from(command.output().unwrap())
}

fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    fs::create_dir(path.join("granted")).unwrap();
    fs::write(path.join("secret"), "secret").unwrap();
    (dir, path)
}

fn fails(wanted: &Confinement, script: &str) {
    let ran = shell(wanted, &format!("{script} && echo it worked"));
    assert!(!ran.stdout.contains("it worked"), "{script}: {}{}", ran.stdout, ran.stderr);
}

#[test]
fn a_tool_does_what_it_was_granted_and_starts_programs_that_are_bound_as_well() {
    let (_dir, path) = place();
    let wanted = Confinement { write: vec![path.join("granted")], ..Confinement::tool() };
    let granted = path.join("granted/a").display().to_string();
    let ran = shell(
        &wanted,
        &format!("echo text > {granted} && cat {granted} && (sleep 60 & kill $!) && env > /dev/null"),
    );
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "text\n"), "{}", ran.stderr);
    let secret = path.join("secret").display().to_string();
    for script in [
        format!("cat {secret}"),
        format!("sh -c 'cat {secret}'"),
        format!("echo x >> {secret}"),
        format!("rm {secret}"),
        "kill -0 $PPID".to_owned(),
        "cat /proc/$PPID/environ".to_owned(),
        "ls /root".to_owned(),
        "cat /etc/shadow".to_owned(),
        "unshare -U true".to_owned(),
        "mount -t tmpfs none /mnt".to_owned(),
    ] {
        fails(&wanted, &script);
    }
    assert_eq!(fs::read_to_string(path.join("secret")).unwrap(), "secret");
}

#[test]
fn a_tool_runs_only_programs_that_were_granted() {
    let own = Path::new("/bin/sh").canonicalize().unwrap();
    let only = Confinement { exec: vec![own], ..Confinement::tool() };
    let mut command = prepare(&kairos(), &only, OsStr::new("/bin/sh"));
    let output = command.args(["-c", "/usr/bin/env; echo after"]).stdin(Stdio::null()).output().unwrap();
    let ran = Ran::from(output);
    assert_eq!(ran.stdout, "after\n", "{}", ran.stderr);
    let none = prepare(&kairos(), &Confinement::tool(), OsStr::new("/bin/sh")).output().unwrap();
    assert_eq!(none.status.code(), Some(126), "{none:?}");
}

#[test]
fn a_tool_reaches_the_network_only_when_it_was_granted() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let connect = format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'");
    fails(&Confinement::tool(), &connect);
    assert!(listener.accept().is_err(), "nobody may have come");
    let host = Confinement { network: Network::Host, ..Confinement::tool() };
    let ran = shell(&host, &connect);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    listener.accept().expect("it came");
}

#[test]
fn a_tool_sees_nothing_of_the_environment_but_what_it_was_given() {
    let ran = shell(&Confinement::tool(), "env");
    let names: Vec<&str> = ran.stdout.lines().filter_map(|line| line.split('=').next()).collect();
    assert!(names.iter().all(|name| ["PATH", "PWD", "_", "SHLVL", "OLDPWD"].contains(name)), "{names:?}");
    assert!(!ran.stdout.contains(GRANTS));
}

#[test]
fn limits_of_a_tool_bind_its_children() {
    let (_dir, path) = place();
    let limited = Confinement {
        write: vec![path.join("granted")],
        file_bytes: Some(1 << 20),
        cpu_seconds: Some(1),
        ..Confinement::tool()
    };
    let file = path.join("granted/large").display().to_string();
    fails(&limited, &format!("head -c 2000000 /dev/zero > {file}"));
    assert!(fs::metadata(path.join("granted/large")).unwrap().len() <= 1 << 20);
    let spun = shell(&limited, "sh -c 'while :; do :; done'; echo $?");
    assert!(!spun.stdout.starts_with('0'), "the loop ended: {}", spun.stdout);
}

#[test]
fn what_is_wrong_or_too_weak_starts_nothing() {
    let kairos = kairos();
    let ran = |command: &mut Command| Ran::from(command.stdin(Stdio::null()).output().unwrap());
    let without = ran(Command::new(&kairos).args(["confine", "--", "/bin/true"]).env_remove(GRANTS));
    assert_eq!(without.code, 125, "{}", without.stderr);
    let nonsense = ran(Command::new(&kairos).args(["confine", "--", "/bin/true"]).env(GRANTS, "{}"));
    assert_eq!(nonsense.code, 125, "{}", nonsense.stderr);
    let gone = Confinement { read: vec!["/no/such/place".into()], ..Confinement::tool() };
    let gone = ran(&mut prepare(&kairos, &gone, OsStr::new("/bin/true")));
    assert_eq!(gone.code, 125);
    assert!(gone.stderr.contains("/no/such/place"), "{}", gone.stderr);
    let missing = ran(&mut prepare(&kairos, &Confinement::tool(), OsStr::new("/no/such/program")));
    assert_eq!(missing.code, 127, "{}", missing.stderr);
    assert_eq!(ran(Command::new(&kairos).arg("confine")).code, 2);
    let reached = probe(&kairos).unwrap();
    let full = Confinement { exec: programs(), require: Level::Full, ..Confinement::tool() };
    let code = ran(prepare(&kairos, &full, OsStr::new("true")).env("PATH", "/usr/bin:/bin")).code;
    assert_eq!(code == 0, reached.level == Level::Full, "{reached}");
}
