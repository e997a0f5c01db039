//! A runner that tries to get out of its sandbox, every way it knows, and tells what happened.
//! For tests only.
//!
//! A mandate's `targets` say where to; the answers go to the file `out/report.json` of its grant,
//! one object an attempt: `{name, out, said}`. `out` is true when the attempt had an effect, or
//! got as far as the part of the kernel that was asked for.
#![allow(unsafe_code, reason = "half of the ways out are system calls that no safe function makes")]

mod calls;
mod files;
mod network;
mod processes;

use std::path::PathBuf;

use kairos_plugin_api::{CallError, Context, CycleRunner, Mandate, Report};
use serde_json::{Value, json};

kairos_plugin_api::export_runner!(Escape, name: "escape", files: &["read:in", "write:out", "read:.kairos"]);

struct Escape;

/// What an attempt came to: an effect, or the refusal.
type Outcome = Result<String, String>;

/// What the attempts aim at.
struct Targets {
    root: PathBuf,
    tcp: u16,
    udp: u16,
    socket: String,
    abstract_name: String,
    daemon: i32,
    /// True lets attempts run that would end the daemon or replace the worker if they worked.
    fatal: bool,
}

/// Collects what happened.
struct Log(Vec<Value>);

impl Log {
    fn tries(&mut self, name: &str, attempt: impl FnOnce() -> Outcome) {
        let (out, said) = match attempt() {
            Ok(said) => (true, said),
            Err(said) => (false, said),
        };
        self.0.push(json!({"name": name, "out": out, "said": said}));
    }
}

impl CycleRunner for Escape {
    fn new(_: &Value) -> Result<Self, CallError> {
        Ok(Self)
    }

    fn run_cycle(&self, mandate: &Mandate, _: &Context) -> Result<Report, CallError> {
        let targets = Targets::read(&mandate.params)
            .ok_or_else(|| CallError::invalid("params.targets names no targets"))?;
        let mut log = Log(Vec::new());
        files::attempts(&mut log, &targets);
        network::attempts(&mut log, &targets);
        processes::attempts(&mut log, &targets);
        calls::attempts(&mut log);
        let report = targets.root.join("out/report.json");
        std::fs::File::create(&report)
            .and_then(|mut file| {
                std::io::Write::write_all(&mut file, Value::from(log.0).to_string().as_bytes())
            })
            .map_err(|error| CallError::failed(format!("{}: {error}", report.display())))?;
        Ok(Report::ok())
    }
}

impl Targets {
    fn read(params: &serde_json::Map<String, Value>) -> Option<Self> {
        let targets = params.get("targets")?;
        let port = |name: &str| targets[name].as_u64().and_then(|port| u16::try_from(port).ok());
        Some(Self {
            root: targets["root"].as_str()?.into(),
            tcp: port("tcp")?,
            udp: port("udp")?,
            socket: targets["socket"].as_str()?.to_owned(),
            abstract_name: targets["abstract"].as_str()?.to_owned(),
            daemon: i32::try_from(daemon()).ok()?,
            fatal: targets["fatal"].as_bool()?,
        })
    }
}

/// The number of the daemon: the parent, or the one above it where the parent is a guardian. In a
/// sandbox there is none, and no `/proc` to look at.
fn daemon() -> u32 {
    let parent = std::os::unix::process::parent_id();
    let stat = std::fs::read_to_string(format!("/proc/{parent}/stat")).unwrap_or_default();
    let above =
        stat.split_once("(kairos-guardian) ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
    above.unwrap_or(parent)
}

/// Makes a system call; the number of the error when it is refused.
fn call(number: libc::c_long, arguments: [usize; 5]) -> Result<i64, i32> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: callers give addresses of memory that is theirs to read or write for the call, or
    // none at all; what else the call does to this process is what is being tried.
    let answer = unsafe { libc::syscall(number, a, b, c, d, e, 0_usize) };
    if answer >= 0 {
        return Ok(answer);
    }
    Err(std::io::Error::last_os_error().raw_os_error().unwrap_or_default())
}

/// As an outcome: the sandbox's refusal, or anything that only the call itself would say.
fn reaches(answer: Result<i64, i32>) -> Outcome {
    match answer {
        Ok(value) => Ok(format!("= {value}")),
        Err(number @ (libc::EPERM | libc::EACCES)) => Err(text_of(number)),
        Err(number) => Ok(format!("reached: {}", text_of(number))),
    }
}

/// As an outcome: whether it worked.
fn works(answer: Result<i64, i32>) -> Outcome {
    answer.map(|value| format!("= {value}")).map_err(text_of)
}

fn text_of(number: i32) -> String {
    std::io::Error::from_raw_os_error(number).to_string()
}

fn outcome<T>(result: std::io::Result<T>) -> Outcome {
    result.map(|_| "done".to_owned()).map_err(|error| error.to_string())
}

/// A path as the kernel reads it.
fn c_path(path: &std::path::Path) -> std::ffi::CString {
    use std::os::unix::ffi::OsStrExt as _;
    std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}
