//! The black-box harness: real roots, real daemons, real plugins, on this machine only.
//!
//! Nothing here sleeps for luck: a daemon says over the service manager's socket when it is
//! ready, and everything else is waited for on an event with a deadline.

#![allow(clippy::disallowed_methods, reason = "a test harness reads the real clock and writes plain files")]

pub mod audit;
pub mod c_plugin;
pub mod hostile;
pub mod measure;
pub mod office;
pub mod rig;
pub mod swaps;
pub mod variant;

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything a test waits for takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where cargo put what it built: `target/debug` or the like.
#[must_use]
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a running test has a path");
    let deps = exe.parent().expect("a program lies in a directory");
    deps.parent().expect("`deps` lies in the profile's directory").to_owned()
}

/// The program under test.
#[must_use]
pub fn kairos() -> PathBuf {
    let path = target_dir().join("kairos");
    assert!(path.is_file(), "{} is missing: run `cargo build` or test the whole workspace", path.display());
    path
}

/// A plugin that was built along with the tests, by the name of its library.
#[must_use]
pub fn plugin(library: &str) -> PathBuf {
    let path = target_dir().join("deps").join(format!("lib{library}.so"));
    assert!(path.is_file(), "{} is missing: test the whole workspace", path.display());
    path
}

/// Compiles a program of `fixtures`, in C, into `dir`.
///
/// # Panics
/// The compiler's words, when it cannot be.
#[must_use]
pub fn fixture(name: &str, dir: &Path) -> PathBuf {
    let out = dir.join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/{name}.c"));
    let output = Command::new("cc").args(["-O1", "-o"]).arg(&out).arg(source).output();
    let output = output.expect("a machine that links Rust has a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

/// A root of its own, removed at the end.
pub struct Root {
    dir: TempDir,
    path: PathBuf,
    env: Vec<(String, String)>,
    /// Program and arguments that everything is started by, if not directly.
    by: Vec<OsString>,
}

impl Default for Root {
    fn default() -> Self {
        Self::new()
    }
}

impl Root {
    /// A root with the stub as default runner and no schedule.
    #[must_use]
    pub fn new() -> Self {
        Self::named("")
    }

    /// As [`Root::new`], so many directories deeper as `below` says.
    #[must_use]
    pub fn named(below: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let path = if below.is_empty() { dir.path().to_owned() } else { dir.path().join(below) };
        let root = Self { dir, path, env: vec![], by: vec![] };
        fs::create_dir_all(root.path().join(".kairos/config")).expect("it is ours");
        root.daemon_yml("")
    }

    /// An environment variable for all that is started on this root from now on.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Everything on this root is started by that program from now on, which becomes `kairos`: it gets
    /// these arguments, then `--`, then `kairos` and its own.
    #[must_use]
    pub fn by(mut self, program: &Path, args: &[&str]) -> Self {
        self.by = vec![program.into()];
        self.by.extend(args.iter().map(OsString::from));
        self.by.push("--".into());
        self
    }

    fn command(&self) -> Command {
        match self.by.split_first() {
            None => Command::new(kairos()),
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(kairos());
                command
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory for the test's own files, beside or above the root.
    #[must_use]
    pub fn aside(&self) -> &Path {
        self.dir.path()
    }

    /// A file below `.kairos`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(".kairos").join(name)
    }

    /// Writes daemon.yml: the stub in process as `stub`, the default, and `more`.
    #[must_use]
    pub fn daemon_yml(self, more: &str) -> Self {
        self.set_daemon_yml(more);
        self
    }

    /// As [`Root::daemon_yml`], for a root in use.
    pub fn set_daemon_yml(&self, more: &str) {
        let stub = plugin("stub");
        let text = format!(
            "default_runner: stub\nrunners:\n  stub: {{plugin: {:?}, isolation: in_process}}\n{more}\n",
            stub.display().to_string()
        );
        self.write("config/daemon.yml", &text);
    }

    /// Writes schedules.yml.
    #[must_use]
    pub fn schedules_yml(self, text: &str) -> Self {
        self.write("config/schedules.yml", text);
        self
    }

    /// Writes a file below `.kairos`.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.file(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("it is ours");
        fs::write(path, text).expect("it is ours");
    }

    /// Runs a command on this root to its end.
    #[must_use]
    pub fn cli(&self, args: &[&str]) -> Ran {
        let output = self
            .command()
            .args(args)
            .envs(self.env.clone())
            .arg("--root")
            .arg(self.path())
            .stdin(Stdio::null())
            .output()
            .expect("the program can be started");
        Ran::from(output)
    }

    /// Runs a command with `--json` and parses what it prints. The command must succeed.
    ///
    /// # Panics
    /// It failed or printed something else.
    #[expect(clippy::must_use_candidate, reason = "called for what it does, too")]
    pub fn json(&self, args: &[&str]) -> Value {
        let ran = self.cli(&[args, &["--json"]].concat());
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {}", ran.stdout))
    }

    /// Starts a daemon and waits until it is ready.
    ///
    /// # Errors
    /// It ended, or was not ready in time; its stderr is in the error.
    pub fn start(&self) -> Result<Daemon> {
        let mut daemon = self.spawn(&[])?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts a daemon and does not wait.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, args: &[&str]) -> Result<Daemon> {
        let notify = self.dir.path().join(format!("notify-{}.sock", fastrand()));
        let socket = UnixDatagram::bind(&notify)?;
        let stderr = self.dir.path().join(format!("stderr-{}.txt", fastrand()));
        let child = self
            .command()
            .arg("run")
            .args(args)
            .arg("--root")
            .arg(self.path())
            .envs(self.env.clone())
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&stderr)?)
            .spawn()?;
        Ok(Daemon { child, notify: socket, stderr })
    }

    /// Waits until `look` gives something, looking again whenever the root's heartbeat, store or
    /// log changes; the deadline is [`PATIENCE`].
    ///
    /// # Errors
    /// The time is over.
    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        use rustix::fs::inotify;
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        for dir in ["run", "state", "wal", "logs"] {
            let dir = self.file(dir);
            fs::create_dir_all(&dir)?;
            let flags = inotify::WatchFlags::MODIFY
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::CREATE
                | inotify::WatchFlags::DELETE;
            inotify::add_watch(&watch, &dir, flags)?;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "waited {PATIENCE:?} for {what}");
            // Half a second bounds what the files do not show, the death of a process for example.
            let wait = Timespec::try_from(left.min(Duration::from_millis(500)))?;
            let mut ready = [PollFd::new(&watch, PollFlags::IN)];
            if poll(&mut ready, Some(&wait))? > 0 {
                let mut bytes = [0_u8; 16384];
                // Only to empty the queue; which file it was does not matter.
                let _ = rustix::io::read(&watch, &mut bytes);
            }
        }
    }

    /// The heartbeat as it is; null before the first.
    #[must_use]
    pub fn beat(&self) -> Value {
        let text = fs::read(self.file("run/heartbeat.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// All records of the log so far that have this event's name.
    #[must_use]
    pub fn logged(&self, event: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.file("logs/kairos.log")).unwrap_or_default();
        let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        records.filter(|record| record["event"] == event).collect()
    }

    /// Waits for the first record with this event's name: its details.
    ///
    /// # Errors
    /// The time is over.
    pub fn wait_logged(&self, event: &str) -> Result<Value> {
        self.wait_for(event, || self.logged(event).first().map(|record| record["details"].clone()))
    }

    /// Puts a goal into the queue: the mandate's id.
    ///
    /// # Panics
    /// It was refused.
    #[must_use]
    pub fn add(&self, goal: &str, params: &[&str]) -> String {
        let params = params.iter().flat_map(|param| ["--param", param]);
        let args: Vec<&str> = ["mandate", "add", goal].into_iter().chain(params).collect();
        self.json(&args)["id"].as_str().expect("an id is a text").to_owned()
    }

    /// What the running daemon has recorded of that kind, oldest first: the details.
    ///
    /// # Errors
    /// It does not answer.
    pub fn events(&self, kind: &str) -> Result<Vec<Value>> {
        let mut stream = UnixStream::connect(self.file("run/kairos.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request = "GET /v1/events?limit=10000 HTTP/1.1\r\nhost: kairos\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let mut body: Value = serde_json::from_str(body)?;
        let events = body["events"].as_array_mut().context("no events")?;
        Ok(events
            .iter_mut()
            .filter(|event| event["kind"] == kind)
            .map(|event| event["details"].take())
            .collect())
    }

    /// Waits until a mandate is in one of the states.
    ///
    /// # Errors
    /// The time is over.
    pub fn wait_state(&self, id: &str, states: &[&str]) -> Result<Value> {
        self.wait_for(&format!("{id} in {states:?}"), || {
            let shown = self.cli(&["mandate", "show", id, "--json"]);
            let value: Value = serde_json::from_str(&shown.stdout).ok()?;
            states.contains(&value["state"].as_str()?).then_some(value)
        })
    }
}

fn fastrand() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// A command that has ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    notify: UnixDatagram,
    stderr: PathBuf,
}

impl Daemon {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// It ended first, or the time is over.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = [0_u8; 4096];
        self.notify.set_read_timeout(Some(Duration::from_millis(100)))?;
        loop {
            match self.notify.recv(&mut bytes) {
                Ok(n) if String::from_utf8_lossy(&bytes[..n]).lines().any(|line| line == "READY=1") => {
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon ended with {status} before it was ready: {}", self.stderr());
            }
            ensure!(Instant::now() < deadline, "the daemon was not ready in time: {}", self.stderr());
        }
    }

    /// Waits until it says this to the service manager, as a line of its own.
    ///
    /// # Errors
    /// The time is over.
    pub fn wait_said(&self, wanted: &str) -> Result<()> {
        self.notify.set_read_timeout(Some(PATIENCE))?;
        let mut bytes = [0_u8; 4096];
        loop {
            let n = self.notify.recv(&mut bytes).with_context(|| format!("waited for {wanted}"))?;
            if String::from_utf8_lossy(&bytes[..n]).lines().any(|line| line == wanted) {
                return Ok(());
            }
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The system's.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid(), signal)?)
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// The time is over.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        // The child's end is an event of its pidfd.
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        use rustix::process::{PidfdFlags, pidfd_open};
        let pidfd = pidfd_open(self.pid(), PidfdFlags::empty())?;
        let wait = Timespec::try_from(PATIENCE)?;
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&wait))?;
        self.child.try_wait()?.with_context(|| format!("the daemon did not end: {}", self.stderr()))
    }

    /// Asks it to end and waits: its exit code.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<i32> {
        self.signal(Signal::TERM)?;
        Ok(self.wait()?.code().unwrap_or(-1))
    }

    /// Ends it as a power cut would end a process.
    ///
    /// # Errors
    /// The system's.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// What it said so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = fs::File::open(&self.stderr) {
            // Whatever can be read helps.
            let _ = file.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
