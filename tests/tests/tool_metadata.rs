//! Modes, owners, times and attributes of files: a tool changes those of what it may change, and of
//! nothing else, in whatever way it asks for it; for root and for an ordinary user, and also on a
//! machine that can give it no mounts of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test lays out plain files")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kairos_host::sys::sandbox::confine::GRANTS;
use kairos_host::sys::sandbox::{Confinement, Reached, layer, programs};
use kairos_tests::hostile::{metadata, without};
use kairos_tests::{Ran, kairos};
use tempfile::TempDir;

/// `nobody` on every Linux.
const NOBODY: u32 = 65534;

/// What each way answered, by its name: the number of an error, or 0.
type Answers = BTreeMap<String, i32>;

/// Files of one user: some that may be changed, one that may be read, and one that is not granted.
struct World {
    dir: TempDir,
    user: u32,
    lacks: Option<&'static str>,
}

impl World {
    /// For root, where this is root, and for an ordinary user.
    fn all() -> Vec<Self> {
        let own = rustix::process::geteuid().as_raw();
        if own == 0 { vec![Self::of(0), Self::of(NOBODY)] } else { vec![Self::of(own)] }
    }

    fn of(user: u32) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap(), user, lacks: None };
        for name in ["bin", "own", "granted", "granted/below"] {
            fs::create_dir(world.at(name)).unwrap();
        }
        // A link costs nothing; a copy works across file systems.
        if fs::hard_link(kairos(), world.at("bin/kairos")).is_err() {
            fs::copy(kairos(), world.at("bin/kairos")).unwrap();
        }
        let _ = metadata(&world.at("bin"));
        let _ = without(&world.at("bin"));
        for name in ["own/key", "own/readable", "own/alone", "granted/file"] {
            fs::write(world.at(name), "text").unwrap();
            fs::set_permissions(world.at(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        for name in ["", "bin/kairos", "bin/metadata", "bin/without"] {
            fs::set_permissions(world.at(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        if rustix::process::geteuid().is_root() {
            for name in ["own", "granted"] {
                give(&world.at(name), user);
            }
        }
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    /// May change one directory and one file beside it, and read another file.
    fn wanted(&self) -> Confinement {
        Confinement {
            // One lies in another, and one is named twice.
            write: ["granted/below", "granted", "granted", "own/alone"].map(|name| self.at(name)).into(),
            read: vec![self.at("own/readable")],
            exec: [programs(), vec![self.at("bin/metadata")]].concat(),
            ..Confinement::tool()
        }
    }

    /// Runs `arguments` in what is granted, confined by that.
    fn confined(&self, wanted: &Confinement, arguments: &[&str]) -> Ran {
        let kairos = self.at("bin/kairos");
        let text = serde_json::to_string(wanted).unwrap();
        self.run(&[&[kairos.to_str().unwrap(), "confine", "--"], arguments].concat(), &text)
    }

    fn free(&self, arguments: &[&str]) -> Ran {
        self.run(arguments, "")
    }

    fn run(&self, arguments: &[&str], grants: &str) -> Ran {
        let without = self.at("bin/without");
        let before = self.lacks.map(|what| [without.to_str().unwrap(), what, "--"]);
        let all: Vec<&str> = before.iter().flatten().chain(arguments).copied().collect();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).env_clear().env(GRANTS, grants);
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", self.at("granted"));
        command.current_dir(self.at("granted")).stdin(Stdio::null());
        if self.user != rustix::process::geteuid().as_raw() {
            command.uid(self.user).gid(self.user);
        }
        Ran::from(command.output().unwrap())
    }

    /// Every way to change this file, confined or not.
    fn ways(&self, confined: bool, file: &str) -> Answers {
        let (program, file) = (self.at("bin/metadata"), self.at(file));
        let arguments = [program.to_str().unwrap(), file.to_str().unwrap()];
        let ran = if confined { self.confined(&self.wanted(), &arguments) } else { self.free(&arguments) };
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let answer = |line: &str| {
            let (name, number) = line.split_once(' ').unwrap();
            (name.to_owned(), number.parse().unwrap())
        };
        ran.stdout.lines().map(answer).collect()
    }

    fn reached(&self) -> Reached {
        let kairos = self.at("bin/kairos");
        let ran = self.free(&[kairos.to_str().unwrap(), "confine", "--probe", "tool"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap()
    }
}

fn give(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path(), user));
    }
}

/// Owner, mode and times of content and name.
fn about(path: &Path) -> (u32, u32, u32, i64, i64) {
    let about = fs::metadata(path).unwrap();
    (about.uid(), about.gid(), about.mode(), about.mtime(), about.ctime_nsec())
}

/// Those that reading the flags is not among.
fn worked(answers: &Answers) -> Vec<&str> {
    let worked = |(name, answer): &(&String, &i32)| **answer == 0 && *name != "opened.flags";
    answers.iter().filter(worked).map(|(name, _)| name.as_str()).collect()
}

#[test]
fn a_tool_changes_modes_owners_times_and_attributes_only_of_what_it_may_change() {
    for world in World::all() {
        let reached = world.reached();
        println!("user {}: {reached}", world.user);
        if !reached.holds(layer::FILES) || !reached.holds(layer::METADATA) {
            println!("this machine has no such mounts");
            continue;
        }
        // Without a sandbox they work, those that the kernel and the file system know.
        let free = world.ways(false, "own/key");
        for name in ["chmod", "chown", "utimensat", "held.chmod", "held.chown", "opened.fchmod"] {
            assert_eq!(free[name], 0, "{name}: {free:?}");
        }
        fs::set_permissions(world.at("own/key"), fs::Permissions::from_mode(0o600)).unwrap();
        for file in ["own/key", "own/readable", "own", "bin"] {
            let before = about(&world.at(file));
            let answers = world.ways(true, file);
            assert_eq!(worked(&answers), Vec::<&str>::new(), "{file}: {answers:?}");
            assert_eq!(about(&world.at(file)), before, "{file}");
        }
        // What it may change it changes as without.
        for file in ["granted/file", "granted/below", "own/alone"] {
            let (mut confined, mut free) = (world.ways(true, file), world.ways(false, file));
            for answers in [&mut confined, &mut free] {
                answers.retain(|name, _| !name.starts_with("device."));
            }
            assert_eq!(confined, free, "{file}");
            assert_eq!(free["chmod"], 0, "{file}");
        }
    }
}

#[test]
fn a_tool_without_any_grant_leaves_the_daemons_files_and_devices_as_they_were() {
    for world in World::all() {
        let key = world.at("own/key");
        let key = key.to_str().unwrap();
        let wanted = Confinement { exec: programs(), ..Confinement::tool() };
        for script in [
            format!("chmod 666 {key}"),
            format!("chmod 666 /proc/self/root{key}"),
            // Whoever started it lives outside; so does the first process.
            format!("chmod 666 /proc/$PPID/root{key}"),
            format!("chmod 666 /proc/1/root{key}"),
            format!("touch -d 2001-02-03 {key}"),
            format!("ln {key} taken && chmod 666 taken"),
            "chmod u+rw /dev/null".to_owned(),
            "chmod u+rw /proc/self/fd/0".to_owned(),
        ] {
            let before = about(Path::new(key));
            let ran = world.confined(&wanted, &["/bin/sh", "-c", &format!("{script} && echo done")]);
            assert_eq!(ran.stdout, "", "{script}");
            assert_eq!(about(Path::new(key)), before, "{script}: {}", ran.stderr);
        }
        let devices = "echo x > /dev/null && exec 3>> /dev/full 4< /dev/zero && echo opened";
        let ran = world.confined(&wanted, &["/bin/sh", "-c", devices]);
        assert_eq!(ran.stdout, "opened\n", "{}", ran.stderr);
        let free = world.free(&["chmod", "604", key]);
        assert_eq!((free.code, about(Path::new(key)).2 & 0o777), (0, 0o604), "{}", free.stderr);
    }
}

#[test]
fn programs_that_set_modes_and_times_of_what_they_write_work_in_a_grant() {
    for world in World::all() {
        if !world.reached().holds(layer::METADATA) {
            println!("this machine has no such mounts");
            continue;
        }
        let alone = world.at("own/alone").display().to_string();
        let readable = world.at("own/readable").display().to_string();
        let git = "git -c user.name=a -c user.email=a@b.example";
        let mut scripts = vec![
            // From the working directory, which is the granted one, and by its whole path.
            "chmod 640 file && chmod 750 . && chmod 700 below && chmod 600 \"$PWD/file\"".to_owned(),
            "touch -d 2001-02-03 file && test \"$(stat -c %Y file)\" -lt 1000000000".to_owned(),
            format!("cp -p {readable} copy && test -f copy"),
            format!("chmod 640 {alone} && echo more >> {alone}"),
            "tar -cf a.tar file && mkdir out && tar -xpf a.tar -C out && test -f out/file".to_owned(),
            "mv file below/moved && ln below/moved linked && mv below/moved file".to_owned(),
            "(cd below && chmod 700 ../file && touch new)".to_owned(),
        ];
        if world.free(&["git", "--version"]).code == 0 {
            scripts
                .push(format!("git init -q r && touch r/f && {git} -C r add f && {git} -C r commit -qm m"));
        }
        let wanted = world.wanted();
        // Where a distribution or a person put it.
        let wanted = Confinement {
            exec: [
                wanted.exec.clone(),
                ["/usr/local/libexec".into()].into_iter().filter(|path: &PathBuf| path.exists()).collect(),
            ]
            .concat(),
            ..wanted
        };
        for script in scripts {
            let ran = world.confined(&wanted, &["/bin/sh", "-ec", &script]);
            assert_eq!(ran.code, 0, "user {}: {script}: {}{}", world.user, ran.stdout, ran.stderr);
        }
    }
}

#[test]
fn without_mounts_of_its_own_a_tool_changes_no_modes_at_all_and_that_is_said() {
    for mut world in World::all() {
        world.lacks = Some("namespaces");
        let reached = world.reached();
        let missing = reached.missing().find(|missing| missing.name == layer::METADATA).unwrap();
        assert!(missing.reason.contains("unshare"), "{reached}");
        if !reached.holds(layer::SYSTEM_CALLS) {
            continue;
        }
        for file in ["own/key", "own/readable", "granted/file"] {
            let before = about(&world.at(file)).2;
            let mut answers = world.ways(true, file);
            // Times of what Landlock opened, for `touch`, are left.
            answers.remove("opened.futimens");
            assert_eq!(worked(&answers), Vec::<&str>::new(), "{file}: {answers:?}");
            assert_eq!(about(&world.at(file)).2, before, "{file}");
        }
        let ran = world.confined(&world.wanted(), &["/bin/sh", "-c", "touch file && echo text > new"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let full = Confinement { require: kairos_host::sys::sandbox::Level::Full, ..world.wanted() };
        let ran = world.confined(&full, &["/bin/true"]);
        assert!(ran.code == 125 && ran.stderr.contains("metadata"), "{}", ran.stderr);
    }
}
