//! `kairos plugin trust`: the list of plugins and signing keys that this root trusts. Changes the
//! list and nothing else; the next load of a runner sees it.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::Context;
use crate::cli::output::{emit, printable, rfc3339, rows, table};
use crate::exit::{Failure, code};
use crate::runner::manifest::PluginFile;
use crate::runner::trust::keys;
use crate::runner::trust::list::{ListError, TrustList, TrustedKey, TrustedPlugin, is_sha256};

/// What to trust.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct TrustArgs {
    /// The plugin's file, or its name as `daemon.yml` has it; exactly this content is trusted
    #[arg(group = "what")]
    pub file: Option<PathBuf>,
    /// Why, for whoever reads the list
    #[arg(long, value_name = "TEXT", requires = "file")]
    pub note: Option<String>,
    /// Show what is trusted
    #[arg(long, group = "what")]
    pub list: bool,
    /// Take from the list: a sha256, a plugin's file, or the name of a key
    #[arg(long, value_name = "SHA256|FILE|NAME", group = "what")]
    pub remove: Option<String>,
    /// Trust what this ed25519 key signs: hex, base64, or a file that holds it
    #[arg(long, value_name = "PUBLIC_KEY", group = "what", requires = "name")]
    pub key: Option<String>,
    /// Whose key it is
    #[arg(long, value_name = "NAME", requires = "key")]
    pub name: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// A file that is no plugin, a key that is none, a list that is garbage: exit 1 or 2; nothing of
/// that name to remove: exit 3.
pub fn run(args: TrustArgs, context: &Context) -> anyhow::Result<()> {
    let path = context.paths()?.trust_json;
    let TrustArgs { file, note, remove, key, name, list: _ } = args;
    if let Some(file) = file {
        return add_plugin(&super::find(&file, context).map_err(super::no_plugin)?, note, &path, context);
    }
    if let Some((key, name)) = key.zip(name) {
        return add_key(&key, name, &path, context);
    }
    match remove {
        Some(what) => take(&what, &path, context),
        None => show(&path, context),
    }
}

fn add_plugin(file: &Path, note: Option<String>, path: &Path, context: &Context) -> anyhow::Result<()> {
    let plugin = PluginFile::open(file).map_err(super::no_plugin)?;
    let entry = TrustedPlugin {
        sha256: plugin.sha256.clone(),
        name: plugin.manifest.name.clone(),
        version: plugin.manifest.version.clone(),
        added_at: context.clock.now(),
        note,
    };
    let added = entry.clone();
    TrustList::change(path, move |list| {
        list.plugins.retain(|plugin| plugin.sha256 != entry.sha256);
        list.plugins.push(entry);
    })
    .map_err(bad_list)?;
    emit(context.style, &json!({"trusted": added}), |_| {
        format!("trusted: {} {}, sha256 {}", printable(&added.name), printable(&added.version), added.sha256)
    })
}

fn add_key(given: &str, name: String, path: &Path, context: &Context) -> anyhow::Result<()> {
    // A key is never as long as a path is short, and a path is no key.
    let text = match keys::public_of(given) {
        Err(keys::KeyError::NotPublic) => read_key(&context.cwd.join(given))?,
        _ => given.to_owned(),
    };
    let key = keys::public_of(&text)
        .map_err(|error| Failure::new(code::USAGE, "bad_key", format!("this cannot be trusted: {error}")))?;
    let entry = TrustedKey { key: keys::public_text(&key), name, added_at: context.clock.now() };
    let added = entry.clone();
    let taken = TrustList::change(path, move |list| {
        let taken = list.keys.iter().any(|other| other.name == entry.name && other.key != entry.key);
        if !taken {
            list.keys.retain(|other| other.key != entry.key);
            list.keys.push(entry);
        }
        taken
    })
    .map_err(bad_list)?;
    if taken {
        let message = format!("there is another key named {:?}", added.name);
        return Err(Failure::new(code::CONFLICT, "name_taken", message)
            .remedy(format!("choose another name, or `kairos plugin trust --remove {}` first", added.name))
            .into());
    }
    emit(context.style, &json!({"trusted_key": added}), |_| {
        format!("trusted: what {} signs with {}", printable(&added.name), added.key)
    })
}

fn read_key(file: &Path) -> anyhow::Result<String> {
    let wrong = || {
        Failure::new(code::USAGE, "bad_key", "neither a public key nor a file that holds one").remedy(
            "give the 32 bytes as hex or base64, or the `.pub` file that `kairos plugin keygen` wrote",
        )
    };
    if !file.is_file() {
        return Err(wrong().into());
    }
    let bytes = crate::sys::files::read(file, 1 << 10)?.ok_or_else(wrong)?;
    Ok(String::from_utf8(bytes).map_err(|_| wrong())?)
}

fn take(what: &str, path: &Path, context: &Context) -> anyhow::Result<()> {
    let file = context.cwd.join(what);
    let sha256 = if is_sha256(what) {
        what.to_ascii_lowercase()
    } else if file.is_file() {
        PluginFile::open(&file).map_err(super::no_plugin)?.sha256
    } else {
        String::new()
    };
    let (plugins, keys) = TrustList::change(path, |list| {
        let before = (list.plugins.len(), list.keys.len());
        list.plugins.retain(|plugin| !plugin.sha256.eq_ignore_ascii_case(&sha256));
        list.keys.retain(|key| key.name != what && !key.key.eq_ignore_ascii_case(what));
        (before.0 - list.plugins.len(), before.1 - list.keys.len())
    })
    .map_err(bad_list)?;
    if plugins + keys == 0 {
        return Err(Failure::not_found(format!("nothing on the list is {what:?}"))
            .remedy("`kairos plugin trust --list` shows what is there")
            .into());
    }
    emit(context.style, &json!({"removed": {"plugins": plugins, "keys": keys}}), |_| {
        "removed; runners that are loaded already stay as they are until `kairos reload`".to_owned()
    })
}

fn show(path: &Path, context: &Context) -> anyhow::Result<()> {
    let list = TrustList::read(path).map_err(bad_list)?;
    let plain = |list: &Value| -> Value {
        let mut list = list.clone();
        for entry in list.as_array_mut().into_iter().flatten() {
            let at = entry["added_at"].as_str().and_then(|at| chrono::DateTime::parse_from_rfc3339(at).ok());
            if let Some(at) = at {
                entry["added_at"] = rfc3339(at.to_utc()).into();
            }
        }
        list
    };
    let value = serde_json::to_value(&list)?;
    emit(context.style, &value, |value| {
        let (plugins, keys) = (plain(&value["plugins"]), plain(&value["keys"]));
        let mut text = String::new();
        if !list.plugins.is_empty() {
            let fields = ["sha256", "name", "version", "added_at", "note"];
            text.push_str(&table(&fields, &rows(&plugins, &fields)));
        }
        if !list.keys.is_empty() {
            let fields = ["key", "name", "added_at"];
            text.push_str(&table(&fields, &rows(&keys, &fields)));
        }
        if text.is_empty() { "nothing is listed\n".to_owned() } else { text }
    })
}

/// A list that cannot be used is for a person to look at.
fn bad_list(error: ListError) -> Failure {
    Failure::new(code::FAILED, error.code(), error.to_string()).remedy(error.remedy())
}
