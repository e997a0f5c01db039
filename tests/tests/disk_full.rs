//! A disk that is full or read-only: work stops being accepted and everybody is told, nothing is lost
//! or doubled, also when the daemon is killed meanwhile, and it goes on when there is room again.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the files of a test need not be durable")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use kairos_tests::audit::{Expected, audit};
use kairos_tests::{Daemon, Ran, Root, fixture, kairos, plugin};
use serde_json::Value;

/// Enough for a store, its logs and the copy of a plugin; quickly full.
const SIZE: &str = "48m";

/// A root on a small disk of its own, which only those see that join its holder.
struct Disk {
    root: Root,
    holder: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Disk {
    /// None where nobody may mount anything, not even for himself.
    fn new() -> Option<Self> {
        let root = Root::named("disk").daemon_yml("heartbeat: {interval: 1}");
        let program = fixture("small_disk", root.aside());
        let mut holder = Command::new(&program);
        holder.arg("hold").arg(root.path()).arg(SIZE).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = holder.spawn().unwrap();
        let orders = holder.stdin.take();
        let mut answers = BufReader::new(holder.stdout.take().unwrap());
        if line(&mut answers) != "ready" {
            let demanded = std::env::var("KAIROS_SANDBOX").is_ok_and(|demanded| demanded == "full");
            assert!(!demanded, "no file system can be mounted here, not even in a namespace");
            drop(orders);
            holder.wait().unwrap();
            println!("NOT TESTED: no file system can be mounted here, not even in a namespace");
            return None;
        }
        let yml = fs::read(root.file("config/daemon.yml")).unwrap();
        let root = root.by(&program, &["join", &holder.id().to_string()]);
        let disk = Self { root, holder, orders, answers };
        fs::create_dir_all(disk.at(".kairos/config")).unwrap();
        fs::write(disk.at(".kairos/config/daemon.yml"), yml).unwrap();
        Some(disk)
    }

    /// A file on the disk, for this process, which has not joined.
    fn at(&self, name: &str) -> PathBuf {
        let root = self.root.path().strip_prefix("/").unwrap();
        PathBuf::from(format!("/proc/{}/root", self.holder.id())).join(root).join(name)
    }

    /// Makes it read-only, `ro`, or not, `rw`.
    fn make(&mut self, word: &str) {
        writeln!(self.orders.as_ref().unwrap(), "{word}").unwrap();
        assert_eq!(line(&mut self.answers), "done");
    }

    /// Takes every byte that is left.
    fn fill(&self) {
        let mut ballast = fs::OpenOptions::new().create(true).append(true).open(self.at("ballast")).unwrap();
        for size in [1 << 20, 4096, 1] {
            while ballast.write_all(&vec![1; size]).is_ok() {}
        }
    }

    fn status(&self) -> Value {
        self.root.json(&["status"])
    }

    fn reasons(&self) -> String {
        self.status()["reasons"].to_string()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The end of its orders is the holder's end.
        drop(self.orders.take());
        let _ = self.holder.wait();
    }
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() { copy_all(&path, &target) } else { assert!(fs::copy(&path, &target).is_ok()) }
    }
}

fn line(from: &mut impl BufRead) -> String {
    let mut text = String::new();
    from.read_line(&mut text).unwrap();
    text.trim_end().to_owned()
}

fn code_of(ran: &Ran) -> String {
    let error: Value = serde_json::from_str(&ran.stderr).unwrap_or_default();
    error["error"]["code"].as_str().unwrap_or_default().to_owned()
}

fn wait_stderr(disk: &Disk, daemon: &Daemon, word: &str) {
    disk.root.wait_for(word, || daemon.stderr().contains(word).then_some(())).unwrap();
}

/// Adds mandates to a full disk until one is refused: what lies in the store's own files already may
/// still take a few.
fn added_until_refused(disk: &Disk, expected: &mut Expected) -> Ran {
    disk.fill();
    let large = format!("text={}", "x".repeat(60_000));
    let refused = disk.root.wait_for("a refusal", || {
        let ran = disk.root.cli(&["mandate", "add", "large", "--param", &large, "--json"]);
        if ran.code == 0 {
            let added: Value = serde_json::from_str(&ran.stdout).unwrap();
            expected.acknowledged.insert(added["id"].as_str().unwrap().to_owned());
            disk.fill();
            return None;
        }
        Some(ran)
    });
    refused.unwrap()
}

/// One can look, and is told what to do.
fn is_told(disk: &Disk) {
    let root = &disk.root;
    assert!(!root.json(&["mandate", "list"]).as_array().unwrap().is_empty());
    let doctor = root.cli(&["doctor"]);
    assert_eq!(doctor.code, 1);
    assert!(doctor.stdout.contains("FAIL  space: 0 MiB free") && doctor.stdout.contains("make room"));
    assert!(!doctor.stdout.contains("the right to write"), "{}", doctor.stdout);
    assert_eq!(root.cli(&["config", "check"]).code, 0);
}

/// Cycles that end while it is full: what they did is kept until it can be recorded.
fn cycles_end_while_it_is_full(disk: &Disk, expected: &mut Expected) {
    let root = &disk.root;
    let across =
        [root.add("across", &["sleep_ms=700"]), root.add("across", &["sleep_ms=900", "llm_calls=1"])];
    root.wait_state(&across[0], &["running"]).unwrap();
    disk.fill();
    root.wait_for("a reason", || {
        disk.fill();
        disk.reasons().contains("disk full").then_some(())
    })
    .unwrap();
    let ticks = |status: &Value| status["tick_count"].as_u64().unwrap();
    let before = ticks(&disk.status());
    // A second each, so the first has ended by then and the other one has not begun.
    root.wait_for("three more looks", || (ticks(&disk.status()) > before + 2).then_some(())).unwrap();
    assert_eq!(disk.status()["active_mandate_id"], across[0]);
    fs::remove_file(disk.at("ballast")).unwrap();
    for id in across {
        let shown = root.wait_state(&id, &["succeeded", "failed", "review"]).unwrap();
        assert_eq!((&shown["state"], shown["cycles"].as_array().unwrap().len()), (&"succeeded".into(), 1));
        expected.acknowledged.insert(id);
    }
}

/// Nothing was lost and nothing doubled, as of the files of a daemon that has ended.
fn audited(disk: &Disk, expected: &Expected) {
    // SQLite opens files by the path that they have outside.
    let copy = disk.root.aside().join("copy");
    copy_all(&disk.at(".kairos/state"), &copy.join("state"));
    copy_all(&disk.at(".kairos/wal"), &copy.join("wal"));
    assert_eq!(audit(&copy, expected).unwrap(), Vec::<String>::new());
}

#[test]
fn a_full_disk_holds_work_back_loses_nothing_and_doubles_nothing() {
    let Some(disk) = Disk::new() else { return };
    let root = &disk.root;
    let often = "schedules: [{name: often, cron: '* * * * * *', mandate: {goal: tick}}]";
    fs::write(disk.at(".kairos/config/schedules.yml"), often).unwrap();
    let mut daemon = root.start().unwrap();
    let mut expected = Expected { periods: BTreeMap::from([("often".to_owned(), 1)]), ..Expected::default() };
    for _ in 0..3 {
        expected.acknowledged.insert(root.add("before", &[]));
    }

    let refused = added_until_refused(&disk, &mut expected);
    assert_eq!((refused.code, code_of(&refused).as_str()), (1, "disk_full"), "{}", refused.stderr);
    root.wait_for("a reason", || disk.reasons().contains("disk full").then_some(())).unwrap();
    wait_stderr(&disk, &daemon, "disk full");
    is_told(&disk);

    // It dies of something else; another one cannot begin, and says why.
    daemon.kill().unwrap();
    let mut another = root.spawn(&[]).unwrap();
    assert_eq!(another.wait().unwrap().code(), Some(1), "{}", another.stderr());
    assert!(another.stderr().contains("disk full"), "{}", another.stderr());

    fs::remove_file(disk.at("ballast")).unwrap();
    let mut daemon = root.start().unwrap();
    assert_eq!(disk.reasons(), "[]");
    let after = root.add("after", &[]);
    expected.acknowledged.insert(after.clone());
    root.wait_state(&after, &["succeeded"]).unwrap();

    cycles_end_while_it_is_full(&disk, &mut expected);
    // Said once for each time, not each second.
    let said = |word: &str| daemon.stderr().matches(word).count();
    assert!(said("daemon_chronos_tick_failed") <= said("daemon_store_restored"), "{}", daemon.stderr());

    // All that is there ends well, and the schedule is no longer fired.
    fs::write(disk.at(".kairos/config/schedules.yml"), often.replace("name:", "enabled: false, name:"))
        .unwrap();
    assert_eq!(root.cli(&["reload"]).code, 0);
    root.wait_for("nothing to do", || {
        let status = disk.status();
        (status["queue_depth"] == 0 && status["active_mandate_id"].is_null()).then_some(())
    })
    .unwrap();
    assert_eq!(daemon.stop().unwrap(), 0, "{}", daemon.stderr());
    audited(&disk, &expected);
}

#[test]
fn a_program_of_many_files_is_ended_before_the_disk_is_full_and_the_next_run_waits_for_room() {
    let Some(disk) = Disk::new() else { return };
    let root = &disk.root;
    fs::create_dir(disk.at("work")).unwrap();
    // More than there is room for, and none of the files is large.
    let script = "#!/bin/sh\ncd work; [ -e 1 ] && exit 0; trap '' TERM\n\
                  for i in $(seq 200); do head -c 500000 /dev/zero >$i || sleep 600; sleep 0.02; done\n";
    fs::write(disk.at("agent"), script).unwrap();
    fs::set_permissions(disk.at("agent"), fs::Permissions::from_mode(0o755)).unwrap();
    let more = format!(
        "heartbeat: {{interval: 1}}\ndefault_runner: agent\nrunners:\n  \
         agent: {{plugin: {:?}, params: {{command: fake}}}}\ncommands:\n  \
         fake: {{argv: [./agent], write: [work], grace: 300, keep_free_bytes: 12000000}}\n",
        plugin("command").display().to_string()
    );
    fs::write(disk.at(".kairos/config/daemon.yml"), more).unwrap();
    let mut daemon = root.start().unwrap();
    let id = root.add("fill it", &[]);
    // The second try is not begun any more: the disk is as it was left.
    root.wait_for("a reason", || disk.reasons().contains("are to stay so").then_some(())).unwrap();
    let held = root.wait_state(&id, &["queued"]).unwrap();
    assert_eq!(held["cycles"].as_array().unwrap().len(), 1, "{held}");
    assert!(held["cycles"][0]["error"].to_string().contains("disk_low: fake was ended for want"), "{held}");
    let many = fs::read_dir(disk.at("work")).unwrap().map(Result::unwrap).collect::<Vec<_>>();
    assert!(many.len() > 5, "{}", many.len());
    many.iter().filter(|file| file.file_name() != "1").for_each(|file| fs::remove_file(file.path()).unwrap());
    let ended = root.wait_state(&id, &["succeeded", "failed", "review"]);
    let ended =
        ended.unwrap_or_else(|_| panic!("{} {}", root.json(&["mandate", "show", &id]), disk.status()));
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert_eq!(daemon.stop().unwrap(), 0, "{}", daemon.stderr());
}

#[test]
fn a_disk_that_is_read_only_is_named_by_everything_that_needs_to_write() {
    let Some(mut disk) = Disk::new() else { return };
    disk.make("ro");
    let mut daemon = disk.root.spawn(&[]).unwrap();
    let ended = daemon.wait().unwrap();
    let said = daemon.stderr();
    assert_eq!(ended.code(), Some(1), "{said}");
    assert!(said.contains("Read-only file system") && said.contains("remedy:"), "{said}");
    assert_eq!(said.matches("Read-only").count(), 1, "once is enough: {said}");
    for args in [&["status"][..], &["mandate", "add", "something"], &["plugin", "list"]] {
        let ran = disk.root.cli(&[args, &["--json"]].concat());
        assert_eq!((ran.code, code_of(&ran).as_str()), (1, "read_only"), "{args:?}: {}", ran.stderr);
        assert_eq!(ran.stderr.matches("Read-only").count(), 1, "once is enough: {}", ran.stderr);
    }
    // What reads only, works.
    assert_eq!(disk.root.cli(&["config", "check"]).code, 0);
    let doctor = disk.root.cli(&["doctor"]);
    assert_eq!(doctor.code, 1);
    assert!(doctor.stdout.contains("-> mount it for writing"), "{}", doctor.stdout);
    disk.make("rw");
    let mut daemon = disk.root.start().unwrap();
    let id = disk.root.add("go on", &[]);
    disk.root.wait_state(&id, &["succeeded"]).unwrap();
    assert_eq!(daemon.stop().unwrap(), 0);
}

#[test]
fn a_root_that_its_user_may_not_write_is_named_with_what_to_do() {
    // `nobody` on every Linux; an ordinary user is refused as himself.
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir_all(at("root/.kairos/config")).unwrap();
    for (from, to) in [(kairos(), at("kairos")), (plugin("stub"), at("libstub.so"))] {
        fs::copy(from, &to).unwrap();
        mode(&to, 0o755);
    }
    fs::write(at("root/.kairos/config/daemon.yml"), "runners: {stub: {plugin: stub}}\n").unwrap();
    mode(dir.path(), 0o755);
    mode(&at("root/.kairos"), 0o555);
    let kairos = |args: &[&str]| {
        let mut command = Command::new(at("kairos"));
        command
            .args(args)
            .arg("--root")
            .arg(at("root"))
            .env_clear()
            .current_dir(at("root"))
            .stdin(Stdio::null());
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        Ran::from(command.output().unwrap())
    };
    for args in [&["run", "--json"][..], &["mandate", "add", "something", "--json"], &["status", "--json"]] {
        let ran = kairos(args);
        assert_eq!((ran.code, code_of(&ran).as_str()), (1, "no_permission"), "{args:?}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("the right to write") && ran.stderr.contains(".kairos/run"),
            "{}",
            ran.stderr
        );
    }
    assert_eq!(kairos(&["config", "check"]).code, 0);
    let doctor = kairos(&["doctor"]);
    assert_eq!(doctor.code, 1);
    assert!(doctor.stdout.contains("FAIL  writable: "), "{}", doctor.stdout);
    mode(&at("root/.kairos"), 0o755);
}
