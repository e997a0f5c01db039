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
use kairos_host::sys::sandbox::{Confinement, Level, Network, probe_tools, programs};
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

/// The program that the kernel starts every dynamic program by.
fn loader() -> &'static str {
    let places = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    places.into_iter().find(|place| Path::new(place).exists()).expect("these tests run on glibc")
}

#[test]
fn a_tool_starts_no_program_of_the_system_that_was_not_granted_not_even_by_the_loader() {
    let own = Path::new("/bin/sh").canonicalize().unwrap();
    let only = Confinement { exec: vec![own], ..Confinement::tool() };
    let runs = |wanted: &Confinement, script: &str| {
        let mut command = prepare(&kairos(), wanted, OsStr::new("/bin/sh"));
        Ran::from(command.args(["-c", script]).stdin(Stdio::null()).output().unwrap())
    };
    let by_loader = format!("{} /usr/bin/echo it ran", loader());
    let ran = runs(&only, &format!("/usr/bin/env echo it ran; {by_loader}; echo after"));
    assert_eq!(ran.stdout, "after\n", "{}", ran.stderr);
    // They are seen, and what it can read it can run: a grant to read gives the code as well.
    assert!(runs(&only, "echo /usr/bin/en*").stdout.contains("/usr/bin/env"));
    let read = Confinement { read: vec!["/usr/bin/env".into(), "/usr/bin/echo".into()], ..only };
    assert_eq!(runs(&read, &format!("{} /usr/bin/echo it ran", loader())).stdout, "it ran\n");
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
    let reached = probe_tools(&kairos).unwrap();
    let full = Confinement { exec: programs(), require: Level::Full, ..Confinement::tool() };
    let code = ran(prepare(&kairos, &full, OsStr::new("true")).env("PATH", "/usr/bin:/bin")).code;
    assert_eq!(code == 0, reached.level == Level::Full, "{reached}");
}

#[test]
fn a_tool_gets_nothing_that_somebody_left_open() {
    let (_dir, path) = place();
    let wanted = Confinement { exec: programs(), ..Confinement::tool() };
    let text = serde_json::to_string(&wanted).unwrap();
    let left_open = |run: &str| {
        let script = format!("exec 9<\"$0\" && exec {run}");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).arg(path.join("secret")).arg(kairos()).env(GRANTS, &text);
        Ran::from(command.stdin(Stdio::null()).output().unwrap())
    };
    assert_eq!(left_open("/bin/sh -c 'cat <&9'").stdout, "secret");
    let ran = left_open("\"$1\" confine -- /bin/sh -c 'cat <&9; echo after'");
    assert_eq!(ran.stdout, "after\n", "{}", ran.stderr);
}

#[test]
fn a_tool_changes_limits_and_urgency_of_itself_only() {
    let mut other = Command::new("sleep").arg("600").spawn().unwrap();
    let pid = other.id();
    let tool = Confinement::tool();
    let changes = [
        format!("prlimit --pid {pid} --nofile=512:512"),
        format!("renice -n 7 -p {pid}"),
        format!("ionice -c 3 -p {pid}"),
        format!("taskset -p 1 {pid}"),
        format!("chrt --batch -p 0 {pid}"),
    ];
    let before = about(pid);
    for change in &changes {
        let ran = shell(&tool, change);
        assert!(ran.code > 0, "{change}: {} {}", ran.stdout, ran.stderr);
    }
    assert_eq!(about(pid), before);
    for own in [
        "nice -n 3 true",
        "ionice -c 3 true",
        "taskset 1 true",
        "chrt --batch 0 true",
        "ulimit -n 64 && ulimit -n | grep -qx 64",
        "prlimit --nofile=64 true",
        &format!("prlimit --pid {pid} --nofile"),
    ] {
        let ran = shell(&tool, own);
        assert_eq!(ran.code, 0, "{own}: {}", ran.stderr);
    }
    // Without a sandbox each of them changes something, so this can fail.
    for change in &changes {
        let before = about(pid);
        let ran = Command::new("/bin/sh").args(["-c", change]).stdin(Stdio::null()).output().unwrap();
        assert!(ran.status.success(), "{change}: {ran:?}");
        if !change.starts_with("ionice") && !change.starts_with("taskset") {
            assert_ne!(about(pid), before, "{change}");
        }
    }
    other.kill().unwrap();
    other.wait().unwrap();
}

/// Limits, urgency and processors of a process, as the kernel tells them.
fn about(pid: u32) -> String {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let (stat, status) = (read("stat"), read("status"));
    let rest: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let processors = status.lines().find(|line| line.starts_with("Cpus_allowed:")).unwrap();
    // Priority, nice value and policy.
    format!("{} {} {} {} {processors}\n{}", rest[15], rest[16], rest[37], rest[38], read("limits"))
}
