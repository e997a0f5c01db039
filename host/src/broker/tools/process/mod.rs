//! `process.run {command, prompt?, mandate?}`: runs a program that the operator configured, as one
//! opaque step, and reads from its output what it did and what it cost.
//!
//! What may run, with which environment, secrets, files, network and at which price is the
//! operator's; a call only names it and hands it its input. This tool never decides who may run what
//! (policy does), never lets a secret back out, and never leaves a process behind.

mod child;
pub mod install;
mod leftovers;
pub mod preset;
pub mod ready;
mod room;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kairos_plugin_api::{ToolReply, Usage};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use self::child::{Bounds, Cause, Hooks, Ran};
use self::preset::{Preset, Reading, Told};
use self::ready::Granted;
use self::text::{Redactor, cut_start};
use super::{Access, Course, Done, Intent, Refusal, Tool, Touch, Undone};
use crate::broker::llm::Price;
use crate::sys::clock::Clock;
use crate::sys::files;
use crate::sys::sandbox::Fence;

pub use leftovers::{RUN, STEP};

/// Name of the tool.
pub const NAME: &str = "process.run";
/// Most bytes of one argument; the system takes no more.
const ARGUMENT_MAX: usize = 120 << 10;
/// Bytes of standard error in the answer: the last ones.
const ERRORS_SHOWN: usize = 4 << 10;
/// Shortest secret that can be kept out of a text without spoiling it.
const SECRET_MIN: usize = 4;
/// What is left of a cycle's time for its runner once a program was ended for want of it.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// Where a secret comes from; asked at each start, so that a changed one counts at once.
pub type Secret = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// What a program is given to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The mandate as JSON.
    Mandate,
    /// The prompt, plain text.
    Prompt,
    /// Nothing.
    Nothing,
}

/// How it gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// On standard input.
    Stdin,
    /// As its last argument.
    Arg,
}

/// What a program may touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The network.
    pub network: bool,
    /// What it may read, beside the system's programs and libraries.
    pub read: Vec<Granted>,
    /// What it may change.
    pub write: Vec<Granted>,
}

/// A program as the operator configured it.
#[derive(Clone)]
pub struct CommandSpec {
    /// Its name in calls.
    pub name: String,
    /// Program and arguments. A program with a slash is an absolute path, any other is looked up.
    pub argv: Vec<String>,
    /// How its output is read.
    pub preset: Preset,
    /// What it is given.
    pub input: Input,
    /// How.
    pub pass: Pass,
    /// Where it starts; absolute.
    pub cwd: PathBuf,
    /// Its environment, whole.
    pub env: BTreeMap<String, String>,
    /// Secrets of its environment.
    pub secrets: BTreeMap<String, Secret>,
    /// What it may touch; none runs it unconfined.
    pub grant: Option<Grant>,
    /// Where each run gets a directory of its own for temporary files.
    pub scratch: PathBuf,
    /// What bounds its grant.
    pub fence: Arc<Fence>,
    /// How long it may take.
    pub timeout: Duration,
    /// Between asking it to end and killing it.
    pub grace: Duration,
    /// Most it may write, in bytes.
    pub max_output: usize,
    /// What it leaves free on the file systems that it may write to, in bytes.
    pub keep_free: u64,
    /// The most it may cost.
    pub reserve: Usage,
    /// What tokens cost, for agents that do not say.
    pub price: Option<Price>,
    /// True when running it twice is harmless.
    pub repeatable: bool,
    /// Runners that may run it.
    pub runners: Vec<String>,
}

/// The tool.
pub struct ProcessRun {
    commands: BTreeMap<String, CommandSpec>,
    confine: Confine,
    clock: Arc<dyn Clock>,
    live: Arc<Live>,
}

/// The runs under way, so that a daemon that ends can take them along.
#[derive(Debug, Default)]
pub struct Live {
    marks: Mutex<BTreeSet<String>>,
    started: AtomicU64,
}

impl Live {
    /// Kills every program that still runs, with all its children.
    pub fn end_all(&self) {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for mark in marks {
            tracing::warn!(mark, ended = leftovers::end(RUN, &mark), "process_run_ended_with_the_daemon");
        }
    }

    /// A mark of its own: when a runner dies, its step may be run again while the former run is
    /// still being cleared away, and that must not end the new one.
    fn enter(&self, key: &str) -> Running<'_> {
        let mark = format!("{key}.{}", self.started.fetch_add(1, Ordering::Relaxed));
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).insert(mark.clone());
        Running { live: self, mark }
    }
}

struct Running<'a> {
    live: &'a Live,
    mark: String,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.live.marks.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.mark);
    }
}

/// Makes the command that starts a program within a grant, with no environment but what that needs.
///
/// # Errors
/// Why it cannot be confined here; it does not start then.
pub type Confine = Arc<dyn Fn(&Start<'_>) -> Result<Launch, String> + Send + Sync>;

/// How a program is started.
pub struct Launch {
    /// The command.
    pub command: Command,
    /// True when it leaves a guardian behind, see [`crate::sys::guardian::accompanied`].
    pub guarded: bool,
}

/// A program that is about to be started.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The program, an absolute path.
    pub program: &'a Path,
    /// Its arguments.
    pub args: &'a [OsString],
    /// Where it starts.
    pub cwd: &'a Path,
    /// What it may touch; none for everything.
    pub grant: Option<&'a Grant>,
    /// Where programs are looked up, by itself too.
    pub path: &'a str,
    /// Its own directory for temporary files, which it may change.
    pub scratch: &'a Path,
    /// What bounds its grant.
    pub fence: &'a Fence,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Args {
    command: String,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    mandate: Option<Value>,
}

impl ProcessRun {
    /// Serves these programs.
    #[must_use]
    pub fn new(commands: Vec<CommandSpec>, confine: Confine, clock: Arc<dyn Clock>, live: Arc<Live>) -> Self {
        let commands = commands.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        Self { commands, confine, clock, live }
    }

    fn find(&self, args: &Args) -> Result<&CommandSpec, Refusal> {
        self.commands.get(&args.command).ok_or_else(|| {
            let known: Vec<&str> = self.commands.keys().map(String::as_str).collect();
            Refusal::Invalid(format!(
                "there is no command {:?}; `commands` of daemon.yml has: [{}]",
                args.command,
                known.join(", ")
            ))
        })
    }
}

impl Tool for ProcessRun {
    fn name(&self) -> &'static str {
        NAME
    }

    fn touch(&self, args: &Value) -> Result<Touch, Refusal> {
        self.find(&arguments(args)?)?;
        Ok(Touch { access: Access::Write, path: None })
    }

    fn intent(&self, args: &Value, _touch: &Touch) -> Result<Intent, Refusal> {
        let args = arguments(args)?;
        let spec = self.find(&args)?;
        input(spec, &args)?;
        Ok(Intent {
            target: Some(spec.name.clone()),
            repeatable: spec.repeatable,
            reserve: spec.reserve,
            ..Intent::default()
        })
    }

    fn open_to(&self, args: &Value, runner: &str) -> bool {
        let spec = arguments(args).ok().and_then(|args| self.commands.get(&args.command));
        spec.is_none_or(|spec| spec.runners.iter().any(|known| known == runner))
    }

    fn execute(&self, args: &Value, intent: &Intent, course: &Course<'_>) -> Result<Done, Undone> {
        let prepared = arguments(args).and_then(|args| {
            let spec = self.find(&args)?;
            Ok((spec, self.prepare(spec, &args, course)?))
        });
        match prepared {
            Ok((spec, prepared)) => self.run(spec, prepared, intent.reserve, course),
            // Nothing was started, so nothing was spent.
            Err(refusal) => Ok(refusal.reply().into()),
        }
    }

    fn abandoned(&self, key: &str) {
        let ended = leftovers::end(STEP, key);
        if ended > 0 {
            tracing::warn!(ended, "process_run_leftovers_ended");
        }
    }

    fn world_hash(&self, _intent: &Intent) -> Option<String> {
        None
    }
}

/// A program ready to start.
struct Prepared {
    command: Command,
    guarded: bool,
    stdin: Vec<u8>,
    redactor: Redactor,
    /// Removed when the run is over.
    _scratch: TempDir,
}

impl ProcessRun {
    fn prepare(&self, spec: &CommandSpec, args: &Args, course: &Course<'_>) -> Result<Prepared, Refusal> {
        let not_started = |why: String| Refusal::because("not_started", why);
        let mut arguments: Vec<OsString> = spec.argv.iter().skip(1).map(OsString::from).collect();
        let mut stdin = vec![];
        if let Some(text) = input(spec, args)? {
            match spec.pass {
                Pass::Stdin => stdin = text.into_bytes(),
                // What begins like an option must not become one.
                Pass::Arg if text.starts_with('-') => arguments.push(format!(" {text}").into()),
                Pass::Arg => arguments.push(text.into()),
            }
        }
        let mut secrets = vec![];
        for (name, source) in &spec.secrets {
            let secret = ready::secret(source).map_err(|why| not_started(format!("secret {name}: {why}")))?;
            secrets.push((name, secret));
        }
        if let Some((_, short)) = spec.room().short() {
            return Err(Refusal::because("disk_low", short));
        }
        let program = spec.program().map_err(not_started)?;
        let scratch = scratch(&spec.scratch).map_err(not_started)?;
        let start = Start {
            program: &program,
            args: &arguments,
            cwd: &spec.cwd,
            grant: spec.grant.as_ref(),
            path: spec.path(),
            scratch: scratch.path(),
            fence: &spec.fence,
        };
        let Launch { mut command, guarded } = (self.confine)(&start).map_err(not_started)?;
        // Most agents want a home; one that is to last is the operator's to name.
        command.current_dir(&spec.cwd).env("HOME", scratch.path()).env("TMPDIR", scratch.path());
        command.envs(&spec.env).env(STEP, course.key);
        command.envs(secrets.iter().map(|(name, secret)| (name, secret)));
        let redactor = Redactor::new(secrets.iter().map(|(_, secret)| secret.as_str()));
        Ok(Prepared { command, guarded, stdin, redactor, _scratch: scratch })
    }

    fn run(
        &self,
        spec: &CommandSpec,
        mut prepared: Prepared,
        reserve: Usage,
        course: &Course<'_>,
    ) -> Result<Done, Undone> {
        let redactor = &prepared.redactor;
        let mut reading = Reading::default();
        let mut hear = |line: &[u8]| {
            let line = redactor.clean_bytes(line);
            let mut goes_on = true;
            let before = reading.stated;
            spec.preset.line(&mut reading, &line, &mut |told| tell(course, told));
            if reading.stated != before {
                let known = reading.stated.known();
                course.watch.progress(&shown(known), None);
                goes_on = !passes(known, reserve);
            }
            goes_on
        };
        let (grace, output, guarded) = (spec.grace, spec.max_output, prepared.guarded);
        let bounds = Bounds { time: time(spec, course), grace, output, guarded };
        let running = self.live.enter(course.key);
        prepared.command.env(RUN, &running.mark);
        let room = spec.room();
        let ran = child::run(
            &mut prepared.command,
            &prepared.stdin,
            bounds,
            &*self.clock,
            &course.patience,
            Hooks {
                hear: &mut hear,
                short: &|| room.short().is_some(),
                strays: &|| {
                    leftovers::end(RUN, &running.mark);
                },
            },
        );
        let ran = match ran {
            Ok(ran) => ran,
            Err(error) => {
                let message = format!("{}: {error}", spec.argv[0]);
                return Ok(Refusal::because("not_started", message).reply().into());
            }
        };
        if let Some(why) = refused(&ran) {
            return Ok(Refusal::because("not_started", redactor.clean(&why)).reply().into());
        }
        if ran.status.is_none() {
            return Err(Undone::Unsure(format!("{} could not be ended", spec.name)));
        }
        let whole = redactor.clean_piece(&ran.stdout, false, ran.cause != Cause::Itself);
        if ran.cause == Cause::Itself {
            spec.preset.end(&mut reading, &whole, ran.exit());
            reading.warnings.iter().for_each(|warning| course.watch.log(tracing::Level::WARN, warning));
        }
        let usage = spent(spec, &reading, &ran, reserve);
        if let Cause::Interrupt(why) = ran.cause {
            return Err(Undone::Interrupted { why, usage });
        }
        let reply = answer(spec, &ran, reading, usage, redactor);
        Ok(Done { reply, usage })
    }
}

fn arguments(args: &Value) -> Result<Args, Refusal> {
    Args::deserialize(args).map_err(|error| Refusal::Invalid(format!("arguments: {error}")))
}

/// What the program is given.
fn input(spec: &CommandSpec, args: &Args) -> Result<Option<String>, Refusal> {
    let missing = |what: &str| Refusal::Invalid(format!("command {:?} needs a {what}", spec.name));
    let text = match spec.input {
        Input::Nothing => return Ok(None),
        Input::Prompt => args.prompt.clone().ok_or_else(|| missing("prompt"))?,
        Input::Mandate => format!("{}\n", args.mandate.as_ref().ok_or_else(|| missing("mandate"))?),
    };
    if spec.pass == Pass::Arg && (text.len() > ARGUMENT_MAX || text.contains('\0')) {
        let message = format!("an argument has at most {ARGUMENT_MAX} bytes and no NUL; pass it on stdin");
        return Err(Refusal::Invalid(message));
    }
    Ok(Some(text))
}

/// Why a program was not started by whoever was to confine and to guard it.
fn refused(ran: &Ran) -> Option<String> {
    let said = String::from_utf8_lossy(&ran.stderr);
    let confined = ran.stdout.is_empty() && matches!(ran.exit(), Some(125..=127));
    said.strip_prefix("kairos confine: ").filter(|_| confined).map(|why| why.trim_end().to_owned())
}

fn scratch(base: &Path) -> Result<TempDir, String> {
    files::create_dirs(base).map_err(|error| error.to_string())?;
    let made = tempfile::Builder::new().prefix("run-").tempdir_in(base);
    made.map_err(|error| format!("{}: {error}", base.display()))
}

/// Its own time, or less when the cycle's ends before: so that its end is an answer that is
/// recorded, and not an interruption that a person has to look at.
fn time(spec: &CommandSpec, course: &Course<'_>) -> Duration {
    let Some(left) = course.patience.left() else { return spec.timeout };
    let reserve = (spec.grace + AFTERWARDS).min(left / 2);
    spec.timeout.min(left - reserve)
}

fn tell(course: &Course<'_>, told: Told<'_>) {
    match told {
        Told::Progress(message, fraction) => course.watch.progress(message, fraction),
        Told::Phase(name) => course.watch.phase(name),
        Told::Log(level, message) => course.watch.log(level, message),
        Told::Usage => {}
    }
}

fn shown(usage: Usage) -> String {
    let Usage { llm_calls, input_tokens, output_tokens, cost_nano_usd } = usage;
    let micros = cost_nano_usd.div_ceil(1000);
    let dollars = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    format!("{llm_calls} calls, {input_tokens} tokens sent, {output_tokens} received, {dollars} USD")
}

/// True when more is used than was reserved, in a figure that was.
fn passes(used: Usage, reserve: Usage) -> bool {
    let over = |used: u64, limit: u64| limit > 0 && used > limit;
    over(used.llm_calls, reserve.llm_calls)
        || over(used.cost_nano_usd, reserve.cost_nano_usd)
        || over(tokens(used), tokens(reserve))
}

fn tokens(usage: Usage) -> u64 {
    usage.input_tokens.saturating_add(usage.output_tokens)
}

/// What the run cost. What an agent does not say counts as reserved, or more where more was seen.
fn spent(spec: &CommandSpec, reading: &Reading, ran: &Ran, reserve: Usage) -> Option<Usage> {
    let stated = reading.stated;
    let known = stated.known();
    let whole = reading.is_final && ran.cause == Cause::Itself;
    if !whole {
        // A lower bound at best: nobody knows, unless it already passed what was reserved.
        let usage = priced(spec, known);
        return (usage.max(reserve) != reserve || reserve.is_zero()).then(|| usage.max(reserve));
    }
    let mut usage = known;
    if stated.calls.is_none() {
        usage.llm_calls = reserve.llm_calls;
    }
    if stated.input.is_none() && stated.output.is_none() {
        (usage.input_tokens, usage.output_tokens) = (reserve.input_tokens, reserve.output_tokens);
    }
    if stated.cost.is_none() {
        usage.cost_nano_usd =
            if spec.price.is_some() { priced(spec, usage).cost_nano_usd } else { reserve.cost_nano_usd };
    }
    Some(usage)
}

fn priced(spec: &CommandSpec, usage: Usage) -> Usage {
    match spec.price {
        Some(price) if usage.cost_nano_usd == 0 => price.applied(usage),
        _ => usage,
    }
}

fn answer(
    spec: &CommandSpec,
    ran: &Ran,
    reading: Reading,
    usage: Option<Usage>,
    redactor: &Redactor,
) -> ToolReply {
    let cut = ran.stderr_bytes > ran.stderr.len();
    let stderr = redactor.clean_piece(&ran.stderr, cut, ran.cause != Cause::Itself);
    let stderr = cut_start(stderr.trim_end(), ERRORS_SHOWN);
    let failure = failure(spec, ran, &reading, stderr);
    let mut output = json!({
        "command": spec.name,
        "preset": spec.preset.as_str(),
        "exit": ran.exit(),
        "signal": ran.signal(),
        "text": reading.text,
        "usage": usage,
        "stdout_bytes": ran.stdout.len(),
        "stderr": stderr,
        "stderr_bytes": ran.stderr_bytes,
        "lines": reading.lines,
        "malformed_lines": reading.malformed,
        "warnings": reading.warnings,
        "phases": reading.phases,
        "log": reading.log,
        "report": reading.report,
        "session": reading.session,
        "took_ms": u64::try_from(ran.took.as_millis()).unwrap_or(u64::MAX),
    });
    let ok = failure.is_none();
    if let Some((code, error)) = failure {
        output["code"] = code.into();
        output["error"] = error.into();
    }
    ToolReply { ok, output }
}

/// Why the run is no success: a word for programs, a message for people.
fn failure(spec: &CommandSpec, ran: &Ran, reading: &Reading, stderr: &str) -> Option<(&'static str, String)> {
    match ran.cause {
        Cause::Itself => {}
        Cause::Time => {
            let message = format!("{} was ended after {} ms", spec.name, ran.took.as_millis());
            let trouble = reading.trouble.as_ref();
            return Some((
                "timeout",
                trouble
                    .map_or_else(|| message.clone(), |last| format!("{message}; its last trouble: {last}")),
            ));
        }
        Cause::Output => {
            let message = format!("{} wrote more than {} bytes and was ended", spec.name, spec.max_output);
            return Some(("output_limit", message));
        }
        Cause::Room => {
            let free = spec.room().short().map_or_else(String::new, |(_, short)| format!(": {short}"));
            return Some(("disk_low", format!("{} was ended for want of room{free}", spec.name)));
        }
        Cause::Heard => {
            let used = shown(reading.stated.known());
            return Some((
                "over_limit",
                format!("{} used more than its maximum and was ended: {used}", spec.name),
            ));
        }
        Cause::Interrupt(_) => return Some(("interrupted", format!("{} was interrupted", spec.name))),
    }
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
    let with_last =
        |what: String| last.map_or_else(|| what.clone(), |last| format!("{what}: {}", last.trim()));
    let own = reading.failure.clone();
    match (own, ran.exit(), ran.signal()) {
        (Some(own), ..) => Some(own),
        (None, Some(0), _) => None,
        (None, Some(exit), _) => {
            Some(("exit", with_last(format!("{} ended with exit code {exit}", spec.name))))
        }
        (None, None, signal) => {
            let signal = signal.unwrap_or_default();
            Some(("signal", with_last(format!("{} was ended by signal {signal}", spec.name))))
        }
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
