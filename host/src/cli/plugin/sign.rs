//! `kairos plugin keygen` and `sign`: a team signs its plugins, a root trusts the team's key. The
//! secret key lives in a file of mode 0600 and is never an argument and never printed.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::cli::Context;
use crate::cli::output::emit;
use crate::exit::{Failure, code};
use crate::runner::manifest::PluginFile;
use crate::runner::trust::keys;
use crate::sys::entropy::SystemEntropy;
use crate::sys::files::{self, FileError};
use crate::sys::place::Place;

/// Names of the two files that `keygen` writes.
const FILES: (&str, &str) = ("kairos-plugin.key", "kairos-plugin.pub");

/// Where the keys go.
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// The directory for `kairos-plugin.key` (secret) and `kairos-plugin.pub`; made if it is not there
    pub dir: PathBuf,
}

/// What to sign.
#[derive(Debug, Args)]
pub struct SignArgs {
    /// The plugin's file; the signature goes beside it as `FILE.sig`
    pub file: PathBuf,
    /// The secret key's file, as `kairos plugin keygen` wrote it
    #[arg(long, value_name = "SECRET_FILE")]
    pub key: PathBuf,
}

/// Makes a pair of keys. Keys that are there are never overwritten.
///
/// # Errors
/// There are keys already: exit 5; the files cannot be written.
pub fn keygen(args: &KeygenArgs, context: &Context) -> anyhow::Result<()> {
    let dir = context.cwd.join(&args.dir);
    files::create_dirs(&dir)?;
    let (secret, public) = (dir.join(FILES.0), dir.join(FILES.1));
    let key = keys::generate(&SystemEntropy);
    let shown = keys::public_text(&key.verifying_key());
    // Nothing of a new pair is left beside an old half.
    if public.symlink_metadata().is_ok() {
        return Err(there_already(&public).into());
    }
    write_new(&secret, &keys::secret_text(&key), files::PRIVATE)?;
    write_new(&public, &format!("{shown}\n"), files::SHARED)?;
    let value = json!({"secret_file": secret, "public_file": public, "public_key": shown});
    emit(context.style, &value, |_| {
        format!(
            "secret key: {} (keep it to yourself)\npublic key: {}\ntrust it with: kairos plugin trust --key {shown} --name NAME",
            secret.display(),
            public.display()
        )
    })
}

/// Signs a plugin.
///
/// # Errors
/// It is no plugin, or the key is none or can be read by others.
pub fn sign(args: &SignArgs, context: &Context) -> anyhow::Result<()> {
    let file = context.cwd.join(&args.file);
    let key = read_secret(&context.cwd.join(&args.key))?;
    let plugin = PluginFile::open(&file).map_err(super::no_plugin)?;
    let beside = keys::signature_file(&file);
    Place::named(&beside)?.write(keys::sign(&key, &plugin.bytes).as_bytes())?;
    let public = keys::public_text(&key.verifying_key());
    let value = json!({"signature_file": beside, "sha256": plugin.sha256, "public_key": public});
    emit(context.style, &value, |_| format!("signed: {}", beside.display()))
}

fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    match files::create_new(path, text.as_bytes(), mode) {
        Err(FileError::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(there_already(path).into())
        }
        other => Ok(other?),
    }
}

fn there_already(path: &Path) -> Failure {
    Failure::new(code::CONFLICT, "key_exists", format!("{} is there already", path.display()))
        .remedy("name another directory")
}

fn read_secret(path: &Path) -> anyhow::Result<ed25519_dalek::SigningKey> {
    let shown = path.display();
    let Ok(meta) = path.metadata() else {
        return Err(Failure::not_found(format!("there is no key file {shown}")).into());
    };
    if !meta.is_file() {
        return Err(Failure::usage(format!("{shown} is no file")).into());
    }
    if meta.mode() & 0o077 != 0 {
        return Err(Failure::new(code::USAGE, "key_open", format!("others may read {shown}"))
            .remedy(format!("chmod 600 {shown}; if somebody may have read it, make a new pair"))
            .into());
    }
    let bytes = files::read(path, 1 << 10)?.unwrap_or_default();
    let text = String::from_utf8(bytes).unwrap_or_default();
    keys::secret_of(&text)
        .map_err(|error| Failure::new(code::USAGE, "bad_key", format!("{shown}: {error}")).into())
}
