//! `kairos doctor`: would a daemon run well here? Looks and tells; changes nothing but a probe file
//! that is gone before it returns.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::config::{Checked, Rehearse, World, beyond, check_all};
use super::output::{Style, emit};
use crate::boot::fitness;
use crate::boot::rehearsal::{self, Tried};
use crate::boot::watched::{self, Found};
use crate::config::paths::SOCKET_PATH_MAX;
use crate::config::report::counted;
use crate::config::{self, Problem, Report};
use crate::exit::{Failure, code};
use crate::runner::Rehearsed;
use crate::runner::trust::list::TrustList;
use crate::store::SqliteStore;
use crate::sys::files::{self, FileError};
use crate::sys::lock::{self, FileSystemKind};
use crate::sys::sandbox::{self, Reached, SandboxError};

/// Less free space than this is a failure: the store could not take a day's work.
const SPACE_NEEDED: u64 = 64 << 20;
/// Less than this is a warning.
const SPACE_WANTED: u64 = 1 << 30;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, with a risk.
    Warn,
    /// Will not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A constant word.
    pub name: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

fn ok(name: &'static str, message: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Ok, message: message.into(), remedy: None }
}

fn bad(name: &'static str, verdict: Verdict, message: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, verdict, message: message.into(), remedy: Some(remedy.into()) }
}

/// Looks at everything and prints it.
///
/// # Errors
/// Exit 1 when a check failed.
pub fn run(world: &World<'_>, style: Style) -> anyhow::Result<()> {
    let mut checks = checks(world, &|daemon| rehearsal::of(daemon, world.paths, world.env));
    // By this very program; the checks above also run where it is another.
    checks.push(sandbox(sandbox::probe(Path::new("/proc/self/exe")), &check_all(world)));
    checks.push(tool_sandbox(sandbox::probe_tools(Path::new("/proc/self/exe"))));
    let failed = checks.iter().filter(|check| check.verdict == Verdict::Fail).count();
    let value = json!({"ok": failed == 0, "checks": checks});
    emit(style, &value, |_| {
        let lines = checks.iter().map(|check| {
            let word = match check.verdict {
                Verdict::Ok => "ok  ",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            let remedy = check.remedy.as_ref().map(|remedy| format!("\n        -> {remedy}"));
            format!("{word}  {}: {}{}", check.name, check.message, remedy.unwrap_or_default())
        });
        lines.collect::<Vec<_>>().join("\n")
    })?;
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::new(code::FAILED, "doctor", format!("{failed} of {} checks failed", checks.len())).into())
}

/// All checks, in the order of their weight.
#[must_use]
pub fn checks(world: &World<'_>, rehearse: Rehearse<'_>) -> Vec<Check> {
    let mut found = vec![root(world), file_system(world), space(world)];
    found.extend(writable(world));
    found.extend(private(world));
    let checked = check_all(world);
    found.push(daemon_yml(&checked));
    found.push(schedules_yml(&checked));
    let (tried, report) = beyond(world, &checked, rehearse);
    found.extend(runners(&tried, report));
    found.extend(commands(&checked, world, &tried));
    found.extend(watched(&checked, world));
    found.push(trust(world));
    found.push(ok("zones", format!("time zone data {}", world.zones.data())));
    found.push(store(world));
    found.push(socket(world));
    found.push(daemon(world));
    found
}

fn root(world: &World<'_>) -> Check {
    let paths = world.paths;
    if paths.dot.is_dir() {
        return ok("root", paths.root.display().to_string());
    }
    let message = format!("{} holds no .kairos", paths.root.display());
    bad("root", Verdict::Fail, message, format!("make one with `kairos init {}`", paths.root.display()))
}

fn file_system(world: &World<'_>) -> Check {
    let place = &world.paths.state;
    match lock::file_system(place) {
        Err(error) => bad("file_system", Verdict::Fail, error.to_string(), "repair the path"),
        Ok(found) => match found.kind {
            FileSystemKind::Local => ok("file_system", format!("the store lies on {}", found.name)),
            FileSystemKind::Memory => bad(
                "file_system",
                Verdict::Warn,
                format!("the store lies on {}, which a power cut empties", found.name),
                "put the root on a disk",
            ),
            FileSystemKind::Network => bad(
                "file_system",
                Verdict::Fail,
                format!("the store would lie on {}, where locks and syncs cannot be trusted", found.name),
                "put the root on a local disk",
            ),
        },
    }
}

/// The nearest directory that exists: what is not there yet will be made below it.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|step| step.is_dir()).unwrap_or(path)
}

fn space(world: &World<'_>) -> Check {
    const REMEDY: &str = "make room; until then work is refused once the disk is full, and nothing is lost";
    match files::free_bytes(existing(&world.paths.state)) {
        Err(error) => bad("space", Verdict::Fail, error.to_string(), "repair the path"),
        Ok(free) => {
            let message = format!("{} MiB free", free >> 20);
            match free {
                ..SPACE_NEEDED => bad("space", Verdict::Fail, message, REMEDY),
                SPACE_NEEDED..SPACE_WANTED => bad("space", Verdict::Warn, message, REMEDY),
                SPACE_WANTED.. => ok("space", message),
            }
        }
    }
}

fn writable(world: &World<'_>) -> Vec<Check> {
    let paths = world.paths;
    let mut places: Vec<&Path> =
        [&paths.dot, &paths.state, &paths.run, &paths.wal, &paths.logs].map(|path| existing(path)).to_vec();
    places.sort_unstable();
    places.dedup();
    let mut failed: Vec<Check> = places
        .iter()
        .filter_map(|place| files::probe_writable(place).err())
        .map(|error| {
            let remedy = match &error {
                FileError::Full { .. } => "make room",
                FileError::Refused { source, .. } if source.kind() == ErrorKind::ReadOnlyFilesystem => {
                    "mount it for writing"
                }
                _ => "give the daemon's user the right to write there",
            };
            bad("writable", Verdict::Fail, error.to_string(), remedy)
        })
        .collect();
    // A disk without room, or that is read-only, is one thing to mend.
    failed.dedup_by(|next, first| next.remedy == first.remedy && !next.message.contains("denied"));
    if failed.is_empty() { vec![ok("writable", "state, logs and locks can be written")] } else { failed }
}

fn private(world: &World<'_>) -> Vec<Check> {
    let paths = world.paths;
    let others_may = |path: &Path, bits: u32| path.metadata().is_ok_and(|meta| meta.mode() & bits != 0);
    let mut found = Vec::new();
    for place in [&paths.state, &paths.run] {
        if others_may(place, 0o022) {
            let message = format!("others may write into {}", paths.show(place));
            found.push(bad("private", Verdict::Warn, message, format!("chmod go-w {}", place.display())));
        }
    }
    if others_may(&paths.attach_token, 0o077) {
        let message = format!("others may read {}", paths.show(&paths.attach_token));
        let remedy =
            format!("chmod 600 {}, then let the daemon make a new one", paths.attach_token.display());
        found.push(bad("private", Verdict::Fail, message, remedy));
    }
    found
}

fn daemon_yml(checked: &Checked) -> Check {
    match &checked.daemon {
        Some(_) => ok("daemon_yml", "right"),
        None => bad(
            "daemon_yml",
            Verdict::Fail,
            format!("{} problems", checked.report.errors()),
            "`kairos config check` shows them all",
        ),
    }
}

fn schedules_yml(checked: &Checked) -> Check {
    let file = &checked.schedules;
    let remedy = "`kairos config check` shows all problems";
    match (file.readable, file.quarantined.len(), file.report.warnings()) {
        (false, ..) => bad("schedules_yml", Verdict::Fail, "cannot be read", remedy),
        (true, 0, 0) => ok("schedules_yml", counted(file.schedules.len(), "schedule")),
        (true, 0, warnings) => {
            let message = format!("{} schedules, {warnings} warnings", file.schedules.len());
            bad("schedules_yml", Verdict::Warn, message, remedy)
        }
        (true, aside, _) => {
            let message = format!("{aside} schedules are set aside, {} run", file.schedules.len());
            bad("schedules_yml", Verdict::Fail, message, remedy)
        }
    }
}

/// The runners, tried as a start would load them.
fn runners(tried: &[Tried], report: Report) -> Vec<Check> {
    let mut found: Vec<Check> =
        report.problems.into_iter().map(|problem| of_problem("runner", problem)).collect();
    for Tried { runner, outcome, .. } in tried {
        if let Ok((file, Rehearsed { isolation, sandbox, unwell: None })) = outcome {
            let level = sandbox.as_ref().map(|reached| format!(" ({})", reached.level)).unwrap_or_default();
            let message = format!("`{runner}` is {}, as {isolation}{level}", file.display());
            found.push(ok("runner", message));
        }
    }
    found
}

fn of_problem(name: &'static str, problem: Problem) -> Check {
    let verdict = if problem.level == config::Level::Error { Verdict::Fail } else { Verdict::Warn };
    let message = Problem { remedy: String::new(), ..problem.clone() }.to_string();
    bad(name, verdict, message, problem.remedy)
}

fn commands(checked: &Checked, world: &World<'_>, tried: &[Tried]) -> Vec<Check> {
    let Some(daemon) = &checked.daemon else { return Vec::new() };
    let mut found = fitness::problems(daemon, world.paths, world.env, tried, world.daemon.as_ref());
    found.extend(fitness::schedule_problems(daemon, &checked.schedules, world.paths));
    if found.problems.is_empty() && !daemon.commands.is_empty() {
        return vec![ok("commands", format!("all {} can start", daemon.commands.len()))];
    }
    found.take().into_iter().map(|problem| of_problem("commands", problem)).collect()
}

fn watched(checked: &Checked, world: &World<'_>) -> Option<Check> {
    Some(match watched::look(checked.daemon.as_ref()?, world.paths)? {
        Found::There(at) => ok("plugins_watch", format!("{} can be watched", at.display())),
        Found::ToBeMade(dir) => ok("plugins_watch", format!("the next start makes {}", dir.display())),
        Found::Not(problem) => of_problem("plugins_watch", problem),
    })
}

fn trust(world: &World<'_>) -> Check {
    match TrustList::read(&world.paths.trust_json) {
        Ok(list) => {
            let (plugins, keys) = (list.plugins.len(), list.keys.len());
            ok("trust", format!("{plugins} plugins and {keys} keys are listed"))
        }
        Err(error) => bad(
            "trust",
            Verdict::Fail,
            format!(
                "{error}; until it is mended, only plugins beside the executable or the system's are trusted"
            ),
            error.remedy(),
        ),
    }
}

fn sandbox(probed: Result<Reached, SandboxError>, checked: &Checked) -> Check {
    const REMEDY: &str =
        "a kernel of 6.12 or newer, with Landlock enabled and user namespaces for everybody, has all of it";
    let reached = match probed {
        Ok(reached) => reached,
        Err(error) => {
            return bad("sandbox", Verdict::Fail, error.to_string(), "start it from where it is installed");
        }
    };
    let required = checked.daemon.as_ref().map_or(sandbox::Level::Partial, |daemon| daemon.sandbox_require);
    match reached.level {
        sandbox::Level::Full => ok("sandbox", "full: every layer is in force"),
        level if level >= required => bad("sandbox", Verdict::Warn, reached.to_string(), REMEDY),
        _ => {
            let message = format!("{reached}; {required} is required, so no runner starts in a sandbox");
            bad("sandbox", Verdict::Fail, message, REMEDY)
        }
    }
}

/// What commands get; nothing demands more of it than that there is one.
fn tool_sandbox(probed: Result<Reached, SandboxError>) -> Check {
    const REMEDY: &str = "allow user namespaces and mounts in them (a container by its security profile); \
                          `sandbox: off` lets a command out";
    const NAME: &str = "tool_sandbox";
    match probed {
        Ok(reached) if reached.level == sandbox::Level::Full => ok(NAME, "full: every layer is in force"),
        Ok(reached) if reached.level == sandbox::Level::None => {
            bad(NAME, Verdict::Warn, format!("{reached}; no command starts in it"), REMEDY)
        }
        Ok(reached) if !reached.holds(sandbox::layer::METADATA) => {
            let message = format!("{reached}; commands change no mode, owner or time of any file");
            bad(NAME, Verdict::Warn, message, REMEDY)
        }
        Ok(reached) => bad(NAME, Verdict::Warn, reached.to_string(), REMEDY),
        Err(error) => bad(NAME, Verdict::Fail, error.to_string(), "start it from where it is installed"),
    }
}

fn socket(world: &World<'_>) -> Check {
    let path = world.paths.socket(world.env);
    if path.starts_with(&world.paths.run) {
        return ok("socket", world.paths.show(&path));
    }
    let message = format!(
        "the path below the root is longer than {SOCKET_PATH_MAX} bytes, so the socket goes to {}",
        path.display()
    );
    bad("socket", Verdict::Warn, message, "nothing needs to be done; a shorter root keeps it below the root")
}

fn store(world: &World<'_>) -> Check {
    let path = &world.paths.store_db;
    if !path.exists() {
        return ok("store", "there is none yet; the first start makes it");
    }
    match SqliteStore::full_check(path) {
        Ok(()) => ok("store", "every page is sound"),
        Err(error) => {
            let remedy =
                "put a backup back with `kairos restore`, or rebuild it: `kairos recover --from-wal`";
            bad("store", Verdict::Fail, error.to_string(), remedy)
        }
    }
}

fn daemon(world: &World<'_>) -> Check {
    match lock::holder(&world.paths.pid) {
        Ok(None) => ok("daemon", "not running"),
        Ok(Some(Some(holder))) => ok("daemon", format!("the root is held by {holder}")),
        Ok(Some(None)) => ok("daemon", "the root is held by another process"),
        Err(error) => bad("daemon", Verdict::Fail, error.to_string(), "make the lock file readable"),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests lay out plain files")]
mod tests {
    use super::*;
    use crate::cli::init;
    use crate::config::{Env, Paths};
    use crate::runner::{Isolation, Launcher, PluginStore, SearchPath};
    use crate::sys::zones::Zones;
    use std::os::unix::fs::PermissionsExt as _;

    fn look(paths: &Paths) -> Vec<Check> {
        let (env, zones) = (Env::default(), Zones::bundled());
        let now = chrono::DateTime::from_timestamp(1_795_000_000, 0).unwrap();
        let search = SearchPath::new(&paths.root, None, None);
        let launcher = Launcher::in_process(search, PluginStore::new(&paths.plugin_store));
        checks(&World { paths, env: &env, zones: &zones, now, daemon: None }, &|daemon| {
            Ok(rehearsal::with(&launcher, daemon, &env))
        })
    }

    fn failed(checks: &[Check]) -> Vec<&'static str> {
        checks.iter().filter(|check| check.verdict == Verdict::Fail).map(|check| check.name).collect()
    }

    #[test]
    fn a_new_root_with_its_plugins_is_healthy() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        init::create(&paths).unwrap();
        // The stub and the default runner.
        assert_eq!(failed(&look(&paths)), ["runner", "runner"], "their plugins are not there");
        let (env, zones) = (Env::default(), Zones::bundled());
        let now = chrono::DateTime::from_timestamp(1_795_000_000, 0).unwrap();
        let served = |daemon: &config::DaemonConfig| {
            let rehearsed = Rehearsed { isolation: Isolation::Process, sandbox: None, unwell: None };
            let outcome = || Ok((paths.root.join("lib.so"), rehearsed.clone()));
            Ok(daemon
                .runners
                .keys()
                .map(|runner| Tried { runner: runner.clone(), outcome: outcome(), instead: None })
                .collect())
        };
        let checks = checks(&World { paths: &paths, env: &env, zones: &zones, now, daemon: None }, &served);
        assert_eq!(failed(&checks), [] as [&str; 0], "{checks:#?}");
        assert!(checks.iter().any(|check| check.name == "zones" && check.message.contains("20")));
    }

    #[test]
    fn commands_that_can_change_no_modes_are_warned_of() {
        use crate::sys::sandbox::{Layer, layer};
        let verdict = |metadata, files| {
            let layers = [(layer::NO_NEW_PRIVS, true), (layer::METADATA, metadata), (layer::FILES, files)];
            let layers = layers.into_iter().chain([(layer::SYSTEM_CALLS, true)]);
            let layer = |(name, in_force): (&str, bool)| Layer {
                name: name.to_owned(),
                in_force,
                reason: "why".to_owned(),
            };
            let check = tool_sandbox(Ok(Reached::of(layers.map(layer).collect())));
            (check.verdict, check.message)
        };
        assert_eq!(verdict(true, true).0, Verdict::Ok);
        let (lesser, message) = verdict(false, true);
        assert!(
            lesser == Verdict::Warn && message.contains("metadata (why); commands change no mode"),
            "{message}"
        );
        assert!(verdict(true, false).1.contains("no command starts"));
    }

    #[test]
    fn a_sandbox_below_what_is_required_fails_and_a_lesser_one_warns() {
        use crate::sys::sandbox::{Layer, layer};
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        std::fs::create_dir_all(&paths.config).unwrap();
        let (env, zones) = (Env::default(), Zones::bundled());
        let now = chrono::DateTime::from_timestamp(1_795_000_000, 0).unwrap();
        let world = World { paths: &paths, env: &env, zones: &zones, now, daemon: None };
        let layers = |scopes: bool, files: bool| {
            let layer =
                |name: &str, in_force| Layer { name: name.to_owned(), in_force, reason: "why".to_owned() };
            Ok(Reached::of(vec![
                layer(layer::NO_NEW_PRIVS, true),
                layer(layer::FILES, files),
                layer(layer::SCOPES, scopes),
                layer(layer::SYSTEM_CALLS, true),
            ]))
        };
        let verdict = |scopes, files| sandbox(layers(scopes, files), &check_all(&world)).verdict;
        assert_eq!(
            [verdict(true, true), verdict(false, true), verdict(true, false)],
            [Verdict::Ok, Verdict::Warn, Verdict::Fail]
        );
        std::fs::write(&paths.daemon_yml, "sandbox: {require: full}").unwrap();
        assert_eq!(verdict(false, true), Verdict::Fail);
    }

    #[test]
    fn every_kind_of_trouble_is_named_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        assert!(failed(&look(&paths)).contains(&"root"));
        std::fs::create_dir_all(&paths.config).unwrap();
        std::fs::create_dir_all(&paths.run).unwrap();
        std::fs::write(&paths.daemon_yml, "nonsense: 1").unwrap();
        std::fs::write(&paths.schedules_yml, "schedules: [{name: a, cron: x}]").unwrap();
        std::fs::write(&paths.attach_token, "secret").unwrap();
        std::fs::set_permissions(&paths.attach_token, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::create_dir_all(&paths.plugins).unwrap();
        std::fs::write(&paths.trust_json, "{").unwrap();
        let checks = look(&paths);
        assert_eq!(failed(&checks), ["private", "daemon_yml", "schedules_yml", "trust"]);
        let without = checks.iter().find(|check| check.verdict != Verdict::Ok && check.remedy.is_none());
        assert_eq!(without, None);
    }

    #[test]
    fn holder_of_the_root_and_a_moved_socket_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(100));
        let paths = Paths::new(deep);
        let _lock = lock::RootLock::acquire(&paths.pid, "daemon", std::time::Duration::ZERO).unwrap();
        let checks = look(&paths);
        let find = |name: &str| checks.iter().find(|check| check.name == name).unwrap();
        assert!(find("daemon").message.contains("(daemon)"), "{:?}", find("daemon"));
        assert_eq!(find("socket").verdict, Verdict::Warn);
    }
}
