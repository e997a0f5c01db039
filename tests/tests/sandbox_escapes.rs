//! A runner in a sandbox tries every way out that we know; each must fail, for root's daemon and
//! for an ordinary user's, and what it was granted must work. The same attempts without a sandbox
//! succeed where they can, so this suite can fail.
//!
//! What one probe finds on the machine is what is asserted; `KAIROS_SANDBOX=full` demands all.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test lays out plain files and reads its environment")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kairos_host::sys::sandbox::{Level, Reached, layer};
use kairos_tests::hostile::{patched, without};
use kairos_tests::{Ran, kairos, plugin};
use serde_json::{Value, json};
use tempfile::TempDir;

/// `nobody` on every Linux.
const NOBODY: u32 = 65534;

/// What a runner must be able to do in any isolation.
const GRANTED: [&str; 6] =
    ["granted.read", "granted.list", "granted.write", "granted.change", "granted.pair", "granted.thread"];

/// What works without a sandbox whoever the user is.
const CONTROL: [&str; 28] = [
    "files.token",
    "files.config",
    "files.passwd",
    "files.list_root",
    "files.write_outside",
    "files.write_what_is_read",
    "files.truncate",
    "files.remove",
    "files.move_out",
    "files.symlink",
    "files.hard_link",
    "files.mode",
    "files.set_id",
    "files.set_id_by_structure",
    "files.whiteout",
    "files.daemon_arguments",
    "network.tcp_connect",
    "network.udp_send",
    "network.unix_connect",
    "network.abstract_connect",
    "processes.signal",
    "processes.shell",
    "processes.exec",
    "processes.fork",
    "memory.too_much",
    "memory.code_at_once",
    "memory.file",
    "limits.threads",
];

/// Who the daemon runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    Root,
    Ordinary,
}

/// A root with a daemon's program of its own, for one user.
struct World {
    dir: TempDir,
    user: User,
    /// The directory that the attempts aim at, with what is granted in it: the root, or another one.
    aim: &'static str,
    /// What everything on it runs without, in the words of `fixtures/without.c`.
    lacks: Option<&'static str>,
}

impl World {
    /// None when this test may not act for that user.
    fn new(user: User, isolation: &str) -> Option<Self> {
        Self::aiming(user, isolation, "root")
    }

    /// As [`World::new`]; what is granted lies in `aim`, beside a root that holds nothing of it.
    fn aiming(user: User, isolation: &str, aim: &'static str) -> Option<Self> {
        let root_runs = rustix::process::geteuid().is_root();
        if user == User::Root && !root_runs {
            println!("not root: only the ordinary user is tested");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let world = Self { dir, user, aim, lacks: None };
        open_to_all(world.dir.path());
        fs::create_dir(world.at("bin")).unwrap();
        install(&kairos(), &world.at("bin/kairos"));
        let runner = world.at("bin/libhostile_escape.so");
        let grants = if aim == "root" {
            install(&plugin("hostile_escape"), &runner);
            "read: [in], write: [out]".to_owned()
        } else {
            // It asks for whatever is granted, which is how a runner gets what lies elsewhere.
            let asks = fs::read(plugin("hostile_escape")).unwrap();
            let asks = patched(asks, "\"read:in\"", "\"read:.\" ");
            fs::write(&runner, patched(asks, "\"write:out\"", "\"write:.\"  ")).unwrap();
            open_to_all(&runner);
            format!("read: [{}], write: [{}]", world.aim("in").display(), world.aim("out").display())
        };
        let yml = format!(
            "default_runner: escape\nrunners:\n  escape: {{plugin: hostile-escape, isolation: {isolation}, grants: {{{grants}}}}}\n"
        );
        let places = BTreeSet::from(["root", aim]);
        for place in &places {
            for dir in ["", "in", "out", ".kairos", ".kairos/config", ".kairos/run"] {
                fs::create_dir(world.at(place).join(dir)).unwrap();
            }
            let files = [
                ("in/note.txt", "granted"),
                ("victim.txt", "mine"),
                ("spare.txt", "mine"),
                (".kairos/config/daemon.yml", yml.as_str()),
                (".kairos/run/attach_token", "secret"),
            ];
            for (name, text) in files {
                let file = world.at(place).join(name);
                fs::write(&file, text).unwrap();
                fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
            }
        }
        if root_runs && user == User::Ordinary {
            places.iter().for_each(|place| give(&world.at(place)));
        }
        Some(world)
    }

    /// The same on a machine that lacks this; none where that cannot be played.
    fn lacking(mut self, what: &'static str) -> Option<Self> {
        let program = without(&self.at("bin"));
        open_to_all(&program);
        self.lacks = Some(what);
        let plays = Command::new(program).args([what, "--", "/bin/true"]).status().unwrap().success();
        assert!(plays || what.starts_with("landlock="), "{what}");
        plays.then_some(self)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file in what the attempts aim at.
    fn aim(&self, name: &str) -> PathBuf {
        self.at(self.aim).join(name)
    }

    fn kairos(&self, args: &[&str]) -> Ran {
        // As from a shell or a service manager that forgot to close something.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec 9<\"$0\" && exec \"$@\""]).arg(self.at("root/victim.txt"));
        if let Some(what) = self.lacks {
            command.arg(self.at("bin/without")).args([what, "--"]);
        }
        command.arg(self.at("bin/kairos"));
        command.args(args).env_clear().current_dir(self.at("root")).stdin(Stdio::null());
        if self.user == User::Ordinary && rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        Ran::from(command.output().unwrap())
    }

    /// What the sandbox reaches for this user.
    fn reached(&self) -> Reached {
        let ran = self.kairos(&["confine", "--probe"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap()
    }

    /// Lets the runner make its attempts in one cycle of a daemon: the rows of its report.
    fn attempts(&self, aims: &Aims, fatal: bool) -> Vec<Value> {
        let targets = aims.targets(self, fatal);
        let added =
            self.kairos(&["mandate", "add", "get out", "--param", &format!("targets={targets}"), "--json"]);
        assert_eq!(added.code, 0, "{}", added.stderr);
        let ran = self.kairos(&["run", "--once"]);
        let shown = self.kairos(&["mandate", "list", "--json"]);
        let list: Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!((ran.code, &list[0]["state"]), (0, &json!("succeeded")), "{list:#}\n{}", ran.stderr);
        let report = fs::read(self.aim("out/report.json")).unwrap();
        let rows: Vec<Value> = serde_json::from_slice(&report).unwrap();
        println!("{:?}:", self.user);
        for row in &rows {
            let word = if row["out"] == true { "OUT" } else { "   " };
            println!("  {word} {:<32} {}", row["name"].as_str().unwrap(), row["said"].as_str().unwrap());
        }
        rows
    }
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn install(from: &Path, to: &Path) {
    // A link costs nothing; a copy works across file systems.
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap();
    }
    open_to_all(to);
}

fn give(path: &Path) {
    chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path());
        }
    }
}

/// What the attempts aim at, and where it shows whether they got there.
struct Aims {
    tcp: TcpListener,
    udp: UdpSocket,
    unix: UnixListener,
    hidden: UnixListener,
    name: String,
}

impl Aims {
    fn new(world: &World) -> Self {
        let name = format!("kairos-escape-{}", world.dir.path().display());
        let hidden = SocketAddr::from_abstract_name(&name).unwrap();
        let aims = Self {
            tcp: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
            udp: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
            unix: UnixListener::bind(world.at("socket")).unwrap(),
            hidden: UnixListener::bind_addr(&hidden).unwrap(),
            name,
        };
        fs::set_permissions(world.at("socket"), fs::Permissions::from_mode(0o777)).unwrap();
        aims.tcp.set_nonblocking(true).unwrap();
        aims.udp.set_nonblocking(true).unwrap();
        aims.unix.set_nonblocking(true).unwrap();
        aims.hidden.set_nonblocking(true).unwrap();
        aims
    }

    fn targets(&self, world: &World, fatal: bool) -> Value {
        json!({
            "root": world.at(world.aim),
            "tcp": self.tcp.local_addr().unwrap().port(),
            "udp": self.udp.local_addr().unwrap().port(),
            "socket": world.at("socket"),
            "abstract": self.name,
            "fatal": fatal,
        })
    }

    /// How many of the four heard something.
    fn reached(&self) -> usize {
        let mut byte = [0; 8];
        let heard = [
            self.tcp.accept().is_ok(),
            self.udp.recv(&mut byte).is_ok(),
            self.unix.accept().is_ok(),
            self.hidden.accept().is_ok(),
        ];
        heard.into_iter().filter(|heard| *heard).count()
    }
}

/// The layer without which an attempt may succeed.
fn guard(attempt: &str) -> &'static str {
    match attempt {
        "files.huge" | "memory.too_much" => layer::LIMITS,
        "memory.code_later" => layer::EXEC_GAIN,
        "limits.raise" => layer::CAPABILITIES,
        "limits.threads" => layer::USER_NAMESPACE,
        "files.append_outside" | "files.move_out" => layer::FILE_CHANGES,
        name if name.starts_with("files.") => layer::FILES,
        _ => layer::SYSTEM_CALLS,
    }
}

fn every_escape_fails(world: &World) {
    let reached = world.reached();
    println!("{:?}: sandbox {reached}", world.user);
    if world.lacks.is_some() {
        assert!(reached.level < Level::Full, "{reached}");
    } else if std::env::var("KAIROS_SANDBOX").is_ok_and(|demanded| demanded == "full") {
        assert_eq!(reached.level, Level::Full, "{reached}");
    }
    if reached.level == Level::None {
        // Then there is nothing to escape from, because nothing runs.
        let _ = world.kairos(&["mandate", "add", "get out"]);
        let ran = world.kairos(&["run", "--once"]);
        assert!(!world.aim("out/report.json").exists(), "{}", ran.stderr);
        return;
    }
    let aims = Aims::new(world);
    let rows = world.attempts(&aims, true);
    assert!(rows.len() > 60, "only {} attempts", rows.len());
    let (mut faults, mut unguarded) = (Vec::new(), Vec::new());
    for row in &rows {
        let name = row["name"].as_str().unwrap();
        let (out, granted) = (row["out"] == true, GRANTED.contains(&name));
        if out == granted {
            continue;
        }
        if !granted && !reached.holds(guard(name)) { unguarded.push(name) } else { faults.push(row) }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(unguarded.is_empty() || reached.level != Level::Full, "{unguarded:?}");
    for name in GRANTED {
        assert!(rows.iter().any(|row| row["name"] == name), "{name} was not tried");
    }
    assert_eq!(aims.reached(), 0, "somebody was reached");
    let kept = |name: &str| fs::read_to_string(world.aim(name)).unwrap();
    assert_eq!((kept("victim.txt"), kept("spare.txt")), ("mine".to_owned(), "mine".to_owned()));
    assert!(!world.aim("outside.txt").exists() && !world.aim("moved.txt").exists());
}

#[test]
fn every_escape_from_a_sandbox_fails_as_root() {
    World::new(User::Root, "sandbox").iter().for_each(every_escape_fails);
}

#[test]
fn every_escape_from_a_sandbox_fails_as_an_ordinary_user() {
    World::new(User::Ordinary, "sandbox").iter().for_each(every_escape_fails);
}

#[test]
fn a_runner_reads_and_writes_what_it_was_granted_outside_of_the_root_and_nothing_beside_it() {
    for user in [User::Root, User::Ordinary] {
        let Some(world) = World::aiming(user, "sandbox", "elsewhere") else { continue };
        every_escape_fails(&world);
        assert!(!world.at("root/out/report.json").exists(), "what it wrote lies elsewhere");
    }
}

/// What a machine lacks opens what the missing layer guards, and nothing else: the rest still holds.
#[test]
fn nothing_escapes_from_a_lesser_sandbox_but_through_a_layer_that_is_named_missing() {
    for user in [User::Root, User::Ordinary] {
        for what in ["landlock=2", "landlock=3", "userns", "namespaces", "mdwe"] {
            let world = World::new(user, "sandbox").and_then(|world| world.lacking(what));
            world.iter().for_each(every_escape_fails);
        }
    }
}

#[test]
fn the_same_attempts_succeed_without_a_sandbox() {
    for user in [User::Root, User::Ordinary] {
        let Some(world) = World::new(user, "process") else { continue };
        let aims = Aims::new(&world);
        let rows = world.attempts(&aims, false);
        let out = |name: &str| rows.iter().any(|row| row["name"] == name && row["out"] == true);
        let held: Vec<_> = GRANTED.iter().chain(&CONTROL).filter(|name| !out(name)).collect();
        assert!(held.is_empty(), "{user:?}: {held:?} fail even without a sandbox");
        assert_eq!(aims.reached(), 4, "all four heard of it");
    }
}

#[test]
fn the_daemons_memory_is_closed_to_an_ordinary_users_worker_without_a_sandbox() {
    let Some(world) = World::new(User::Ordinary, "process") else { return };
    if rustix::process::geteuid().is_root() || !capable() {
        let rows = world.attempts(&Aims::new(&world), false);
        for name in
            ["files.daemon_memory", "files.daemon_environment", "processes.attach", "processes.read_memory"]
        {
            let row = rows.iter().find(|row| row["name"] == name).unwrap();
            assert_eq!(row["out"], false, "{row}");
        }
    }
}

/// True when this process has capabilities that workers without a sandbox would inherit.
fn capable() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() != 0
}
