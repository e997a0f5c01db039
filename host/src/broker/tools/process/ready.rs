//! What keeps a configured program from starting, looked at without starting it: the same rules by
//! which a run is refused, so that what is told ahead is what would happen. Changes nothing, and
//! never shows a secret.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Access, access};

use super::{CommandSpec, SECRET_MIN, Secret, install};
use crate::broker::policy;
use crate::sys::sandbox::{Fence, SandboxError};

/// One thing that is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// The key of the command that says so: `argv`, `cwd`, `secrets.NAME`, `read`, `write` or
    /// `keep_free_bytes`.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl Lack {
    fn new(key: impl Into<String>, message: impl Into<String>, remedy: &str) -> Self {
        Self { key: key.into(), message: message.into(), remedy: remedy.to_owned() }
    }
}

impl CommandSpec {
    /// Everything that keeps it from starting now; empty when nothing does. Looks at files, so it
    /// may block for as long as those do.
    #[must_use]
    pub fn lacks(&self) -> Vec<Lack> {
        let mut found = Vec::new();
        match self.program() {
            Ok(program) => {
                if let Err(message) = install::parts(&program, self.path()) {
                    let remedy = "install that, or write where it is: `env: {PATH: ..}`";
                    found.push(Lack::new("argv", message, remedy));
                }
            }
            Err(message) => found.push(Lack::new("argv", message, "install it, or write where it is")),
        }
        if !self.cwd.is_dir() {
            let message = format!("{} is no directory", self.cwd.display());
            found.push(Lack::new("cwd", message, "make it, or write another one"));
        }
        for (name, source) in &self.secrets {
            if let Err(message) = secret(source) {
                let remedy = "set it where the daemon is started, and start it again; a file needs no start";
                found.push(Lack::new(format!("secrets.{name}"), message, remedy));
            }
        }
        if let Some((key, message)) = self.room().short() {
            let remedy = "make room, or lower `keep_free_bytes` of the command";
            found.push(Lack::new(key, message, remedy));
        }
        let Some(grant) = &self.grant else { return found };
        for (key, paths) in [("read", &grant.read), ("write", &grant.write)] {
            for path in paths {
                if let Err(message) = path.real(&self.fence) {
                    let remedy = "make it, or grant another one that lies beside the daemon's own";
                    found.push(Lack::new(key, message, remedy));
                }
            }
        }
        found
    }

    /// The file that is run. A name with a slash is that file; any other is looked up in the
    /// configured `PATH`.
    ///
    /// # Errors
    /// There is none that can be run, for people.
    pub fn program(&self) -> Result<PathBuf, String> {
        let name = &self.argv[0];
        if name.contains('/') {
            let file = PathBuf::from(name);
            return match (file.is_file(), runs(&file)) {
                (true, true) => Ok(file),
                (true, false) => Err(format!("{name} cannot be executed")),
                (false, _) => Err(format!("there is no program {name}")),
            };
        }
        look_up(name, self.path())
    }

    /// Where it looks up programs.
    #[must_use]
    pub fn path(&self) -> &str {
        self.env.get("PATH").map(String::as_str).unwrap_or_default()
    }
}

/// A program by its name.
///
/// # Errors
/// There is none that can be run, for people.
pub fn look_up(name: &str, path: &str) -> Result<PathBuf, String> {
    let dirs = path.split(':').filter(|dir| dir.starts_with('/'));
    let mut found = dirs.map(|dir| Path::new(dir).join(name));
    let found = found.find(|candidate| candidate.is_file() && runs(candidate));
    found.ok_or_else(|| format!("there is no program {name} in PATH={path}"))
}

fn runs(file: &Path) -> bool {
    access(file, Access::EXEC_OK).is_ok()
}

/// A secret that can be used.
///
/// # Errors
/// Why there is none, without it.
pub fn secret(source: &Secret) -> Result<String, String> {
    let secret = source()?;
    if secret.len() < SECRET_MIN || secret.contains('\0') {
        return Err(format!("it has less than {SECRET_MIN} bytes, or a NUL"));
    }
    Ok(secret)
}

/// A path of a grant. Where it leads is found out when the configuration is read, or as soon as it is
/// there, and then holds until the configuration is read again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    written: PathBuf,
    real: OnceLock<PathBuf>,
}

impl Granted {
    /// As it is now.
    #[must_use]
    pub fn now(written: PathBuf, fence: &Fence) -> Self {
        let granted = Self { written, real: OnceLock::new() };
        // Why it cannot be granted is said when it is wanted.
        let _ = granted.real(fence);
        granted
    }

    /// Where it leads, without links.
    ///
    /// # Errors
    /// Why it cannot be granted, for people.
    pub fn real(&self, fence: &Fence) -> Result<PathBuf, String> {
        let Some(real) = self.real.get() else {
            let real = grantable(&self.written, fence)?;
            return Ok(self.real.get_or_init(|| real).clone());
        };
        let shown = self.written.display();
        match real.canonicalize() {
            Ok(now) if now == *real => Ok(now),
            Ok(_) => Err(format!(
                "{shown}: there is a link now where was none when the configuration was read; `kairos reload` \
                 looks again"
            )),
            Err(error) => Err(format!("{}: {error}", real.display())),
        }
    }
}

/// Where a granted path leads, without links. A grant that held the daemon's own directory would hand out
/// its token and its store.
///
/// # Errors
/// Why the path cannot be granted, for people; it may be that it is not there.
pub fn grantable(path: &Path, fence: &Fence) -> Result<PathBuf, String> {
    fence.real(path, &policy::SHARED).map_err(|error| match error {
        SandboxError::Kept(path) => format!(
            "the grant {} holds the daemon's own directory or log; grant what lies beside it, keep the root \
             elsewhere, or write `sandbox: off`",
            path.display()
        ),
        SandboxError::Path { path, source } => format!("{}: {source}", path.display()),
        other => other.to_string(),
    })
}
