//! Programs of the configuration, as the tool `process.run` takes them: paths made absolute,
//! environment put together, secrets as places to look and not as values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kairos_plugin_api::Usage;

use crate::boot::settings::Settings;
use crate::broker::llm::Price;
use crate::broker::tools::process::preset::Preset;
use crate::broker::tools::process::ready::{Granted, grantable};
use crate::broker::tools::process::{
    CommandSpec, Grant, Input, Launch, Live, Pass, ProcessRun, Secret, Start, install,
};
use crate::config::commands::{CommandConfig, InputWord, PresetWord, PromptWord};
use crate::config::llm::SecretSource;
use crate::config::{DaemonConfig, Env, Paths};
use crate::sys::clock::Clock;
use crate::sys::files;
use crate::sys::sandbox::{self, Confinement, Fence, Grants, Network};

/// Where programs are looked up unless `env` or `inherit` says otherwise.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// This very image, also when an upgrade has put another one in its place.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Largest file that holds a secret, in bytes.
const SECRET_FILE_MAX: u64 = 64 << 10;

/// Builds the tool.
pub fn build(settings: &Settings, env: &Env, clock: &Arc<dyn Clock>, live: &Arc<Live>) -> ProcessRun {
    let place = Place::of(&settings.config, &settings.paths, env);
    let commands = settings.config.commands.iter();
    let commands = commands.map(|(name, command)| place.spec(name, command)).collect();
    ProcessRun::new(commands, Arc::new(confined), Arc::clone(clock), Arc::clone(live))
}

/// Where programs get directories for their temporary files.
fn scratch(paths: &Paths) -> PathBuf {
    paths.run.join("tmp")
}

/// Removes what programs of a daemon that died left there. Under the root's lock only.
pub fn sweep(paths: &Paths) {
    let dir = scratch(paths);
    if let Err(error) = std::fs::remove_dir_all(&dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "process_run_scratch_not_removed");
    }
}

/// What runners and tools may change: relative to the root, or absolute.
pub fn changeable(config: &DaemonConfig, env: &Env) -> Vec<PathBuf> {
    let runners = config.runners.values().flat_map(|runner| at_home(&runner.grants, env).write);
    let commands = config.commands.values().flat_map(|command| &command.write);
    runners.chain(commands.map(|path| home(Path::new(path), env))).collect()
}

/// What bounds grants.
pub fn fence(config: &DaemonConfig, paths: &Paths, env: &Env) -> Fence {
    Fence { root: paths.root.clone(), kept: config.kept(), changeable: changeable(config, env) }
}

/// Where commands of a configuration are at home.
pub struct Place<'a> {
    paths: &'a Paths,
    env: &'a Env,
    whose: &'static str,
    fence: Arc<Fence>,
}

impl<'a> Place<'a> {
    /// For the daemon.
    pub fn of(config: &DaemonConfig, paths: &'a Paths, env: &'a Env) -> Self {
        Self { paths, env, whose: "the daemon's environment", fence: Arc::new(fence(config, paths, env)) }
    }

    /// By the environment of somebody else.
    pub fn by(self, whose: &'static str) -> Self {
        Self { whose, ..self }
    }

    /// One of them, its grants as they are now.
    pub fn spec(&self, name: &str, command: &CommandConfig) -> CommandSpec {
        spec(name, command, self)
    }
}

fn spec(name: &str, command: &CommandConfig, at: &Place<'_>) -> CommandSpec {
    let (paths, env) = (at.paths, at.env);
    let preset = match command.preset {
        PresetWord::Jsonl => Preset::Jsonl,
        PresetWord::Plain => Preset::Plain,
        PresetWord::Claude => Preset::Claude,
        PresetWord::Codex => Preset::Codex,
        PresetWord::Goose => Preset::Goose,
        PresetWord::Aider => Preset::Aider,
    };
    let input = match (command.input, preset) {
        (Some(InputWord::Mandate), _) | (None, Preset::Jsonl) => Input::Mandate,
        (Some(InputWord::Nothing), _) | (None, Preset::Plain) => Input::Nothing,
        (Some(InputWord::Prompt), _) | (None, _) => Input::Prompt,
    };
    let place = |path: &String| place(path, paths, env);
    CommandSpec {
        name: name.to_owned(),
        argv: argv(&command.argv, place),
        preset,
        input,
        pass: match command.prompt {
            PromptWord::Stdin => Pass::Stdin,
            PromptWord::Arg => Pass::Arg,
        },
        cwd: place(&command.cwd),
        env: environment(command, env),
        secrets: secrets(at.whose, command, paths, env),
        grant: command.sandbox.then(|| {
            let granted = |paths: &[String]| {
                paths.iter().map(|path| Granted::now(place(path), &at.fence)).collect::<Vec<_>>()
            };
            Grant { network: command.network, read: granted(&command.read), write: granted(&command.write) }
        }),
        scratch: scratch(paths),
        fence: Arc::clone(&at.fence),
        timeout: command.timeout,
        grace: command.grace,
        max_output: usize::try_from(command.max_output_bytes).unwrap_or(usize::MAX),
        keep_free: command.keep_free_bytes,
        reserve: Usage {
            llm_calls: command.max_calls,
            input_tokens: command.max_tokens,
            output_tokens: 0,
            cost_nano_usd: command.max_cost_nano_usd,
        },
        price: command.price.map(|price| Price {
            input_nano_usd_per_mtok: price.input_nano_usd_per_mtok,
            output_nano_usd_per_mtok: price.output_nano_usd_per_mtok,
        }),
        repeatable: command.retry_safe,
        runners: command.runners.clone(),
    }
}

/// A path of the configuration: `~/` is the home directory, relative ones start at the root.
fn place(path: &str, paths: &Paths, env: &Env) -> PathBuf {
    paths.at_root(&home(Path::new(path), env))
}

/// With `~/` as the home directory.
fn home(path: &Path, env: &Env) -> PathBuf {
    let home = path.strip_prefix("~").ok().and_then(|rest| env.dir("HOME").map(|home| home.join(rest)));
    home.unwrap_or_else(|| path.to_owned())
}

/// Grants of a runner with `~/` as the home directory; relative ones are the launcher's to place.
pub fn at_home(grants: &Grants, env: &Env) -> Grants {
    let place = |path: &PathBuf| home(path, env);
    Grants { read: grants.read.iter().map(place).collect(), write: grants.write.iter().map(place).collect() }
}

/// With a program by its absolute path, unless it is looked up.
fn argv(written: &[String], place: impl Fn(&String) -> PathBuf) -> Vec<String> {
    let program = written.first().filter(|program| program.contains('/')).map(place);
    let mut argv = written.to_vec();
    if let Some((first, program)) = argv.first_mut().zip(program) {
        *first = program.display().to_string();
    }
    argv
}

fn environment(command: &CommandConfig, env: &Env) -> BTreeMap<String, String> {
    let mut found = BTreeMap::from([("PATH".to_owned(), PATH.to_owned())]);
    for name in &command.inherit {
        if let Some(value) = env.get(name) {
            found.insert(name.clone(), value.to_owned());
        }
    }
    for (name, value) in &command.env {
        let home = value.strip_prefix("~/").and_then(|rest| Some(env.dir("HOME")?.join(rest)));
        let value = home.map_or_else(|| value.clone(), |path| path.display().to_string());
        found.insert(name.clone(), value);
    }
    found
}

fn secrets(whose: &str, command: &CommandConfig, paths: &Paths, env: &Env) -> BTreeMap<String, Secret> {
    let each = command.secrets.iter();
    each.map(|(name, source)| (name.clone(), secret(whose, source, paths, env))).collect()
}

fn secret(whose: &str, source: &SecretSource, paths: &Paths, env: &Env) -> Secret {
    match source {
        SecretSource::Env(name) => {
            let found = env.get(name).map(str::to_owned);
            let missing = format!("{whose} has no {name}");
            Arc::new(move || found.clone().ok_or_else(|| missing.clone()))
        }
        SecretSource::File(path) => {
            let path = paths.at_root(path);
            Arc::new(move || first_line(&path))
        }
        SecretSource::Credential(name) => {
            let path = env.dir("CREDENTIALS_DIRECTORY").map(|dir| dir.join(name));
            Arc::new(move || match &path {
                Some(path) => first_line(path),
                None => Err("the service manager gave no CREDENTIALS_DIRECTORY".to_owned()),
            })
        }
    }
}

fn first_line(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let bytes = files::read(path, SECRET_FILE_MAX).map_err(|error| error.to_string())?;
    let bytes = bytes.ok_or_else(|| format!("{shown} is not there"))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{shown} is no text"))?;
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() { Err(format!("{shown} is empty")) } else { Ok(line.to_owned()) }
}

/// Starts a program within its grant: by way of this very program, which confines itself first and
/// leaves a guardian behind.
fn confined(start: &Start<'_>) -> Result<Launch, String> {
    let kairos = Path::new(THIS_PROGRAM);
    let wanted = start.grant.map(|grant| confinement(start, grant)).transpose()?;
    let mut command = sandbox::accompanied(kairos, wanted.as_ref(), start.program.as_os_str());
    command.args(start.args);
    Ok(Launch { command, guarded: true })
}

/// Every path in it without links: a link that takes the place of one before it is opened is no way out.
fn confinement(start: &Start<'_>, grant: &Grant) -> Result<Confinement, String> {
    let all =
        |paths: &[Granted]| paths.iter().map(|path| path.real(start.fence)).collect::<Result<Vec<_>, _>>();
    let (mut read, mut write) = (all(&grant.read)?, all(&grant.write)?);
    let real = |path: &Path| path.canonicalize().map_err(|error| format!("{}: {error}", path.display()));
    // Its interpreter and packages; what holds the daemon's own directory is left out.
    let parts = install::parts(start.program, start.path).unwrap_or_else(|_| vec![start.program.to_owned()]);
    for part in parts.iter().filter(|part| *part == start.program || grantable(part, start.fence).is_ok()) {
        read.push(real(part)?);
    }
    write.push(real(start.scratch)?);
    // What an agent can read it could run by way of a shell anyway.
    let exec = sandbox::programs().into_iter().chain(read.iter().cloned()).chain(write.iter().cloned());
    Ok(Confinement {
        exec: exec.collect(),
        network: if grant.network { Network::Host } else { Network::None },
        read,
        write,
        die_with_parent: true,
        ..Confinement::tool()
    })
}

/// Whether the sandbox of this machine takes a command, found without running it.
///
/// # Errors
/// Why not, for people.
pub fn trial(spec: &CommandSpec) -> Result<(), String> {
    let (Some(grant), Ok(program)) = (&spec.grant, spec.program()) else { return Ok(()) };
    let start = Start {
        program: &program,
        args: &[],
        cwd: &spec.cwd,
        grant: Some(grant),
        path: spec.path(),
        // A run gets a directory of its own; any that is there does for a trial.
        scratch: &spec.fence.own(),
        fence: &spec.fence,
    };
    sandbox::trial(Path::new(THIS_PROGRAM), &confinement(&start, grant)?)
}
