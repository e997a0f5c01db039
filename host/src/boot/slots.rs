//! The runners' slots as people see them: what serves each, what daemon.yml names, and why they
//! differ or nothing serves.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::office::Parts;
use crate::config::DaemonConfig;
use crate::daemon::dispatch::ports::OpenServices;
use crate::domain::generation::GenerationState;
use crate::runner::{NotTaken, RunnerStatus, RunnerStatusError};
use crate::store::GenerationStore;
use crate::sys::sandbox::Reached;

/// Lives of a slot that are looked through for the one that serves.
const LIVES: usize = 200;

/// Each configured runner. Reads the store and the configured files.
pub(super) fn views(parts: &Parts, config: &DaemonConfig) -> Vec<Value> {
    let known: BTreeMap<String, RunnerStatus> =
        parts.runners.status().into_iter().map(|status| (status.name.clone(), status)).collect();
    let unfit = parts.brokers.unfit();
    config
        .runners
        .iter()
        .map(|(name, runner)| {
            let asked = runner.isolation.map(|isolation| isolation.as_str().to_owned());
            view(parts, (name, &runner.plugin), asked, known.get(name), unfit.get(name))
        })
        .collect()
}

fn view(
    parts: &Parts,
    (name, plugin): (&str, &str),
    asked: Option<String>,
    slot: Option<&RunnerStatus>,
    unfit: Option<&String>,
) -> Value {
    let identity = slot.and_then(|slot| slot.identity.as_ref());
    // Where it runs; before it does, where it was asked to.
    let isolation = slot.and_then(|slot| slot.isolation).map(|isolation| isolation.to_string()).or(asked);
    let error = slot.and_then(|slot| slot.error.as_ref());
    let held = identity.and_then(|_| parts.dispatch.held_back(name));
    let state = match (identity, error, &held) {
        (Some(_), _, Some(_)) => "held_back",
        (Some(_), _, None) if unfit.is_some() => "not_ready",
        (Some(_), _, None) => "active",
        (None, Some(_), _) => "unavailable",
        (None, None, _) => "not_loaded",
    };
    let open = parts.daemon.then(|| parts.swaps.open(name)).flatten();
    let open = open.map(|open| open.in_short());
    let wanted = wanted(parts, name, slot);
    let serves = identity.map(|identity| &identity.generation);
    let as_configured = serves.is_none() || serves == wanted.generation.as_ref();
    let file = match serves {
        Some(_) if as_configured => wanted.file.clone(),
        Some(serves) => origin(parts, name, serves),
        None => None,
    };
    let sandbox = slot.and_then(|slot| slot.sandbox.as_ref());
    json!({
        "swap": open,
        "runner": name,
        "plugin": plugin,
        "isolation": isolation,
        "name": identity.map(|identity| &identity.name),
        "version": identity.map(|identity| &identity.version),
        "abi": identity.map(|identity| &identity.abi),
        "generation": serves,
        "file": file,
        "configured": {"plugin": plugin, "file": wanted.file, "generation": wanted.generation,
            "serves": as_configured, "code": wanted.error.as_ref().map(|error| error.code),
            "reason": wanted.error.as_ref().map(|error| &error.message)},
        "state": state,
        "held_until": held.as_ref().map(|held| held.until),
        "sandbox": sandbox.map(|reached| reached.level),
        "sandbox_missing": sandbox.map(missing),
        "code": error
            .map(|error| error.code)
            .or(held.as_ref().map(|_| "held_back"))
            .or(unfit.map(|_| "not_ready")),
        "reason": error
            .map(|error| error.message.clone())
            .or(held.map(|held| held.to_string()))
            .or(unfit.cloned()),
        "remedy": error.map(|error| &error.remedy),
        "looked": error.map(|error| &error.looked),
    })
}

/// The file that the configuration names.
#[derive(Default)]
struct Wanted {
    file: Option<String>,
    generation: Option<String>,
    /// Why it cannot serve.
    error: Option<RunnerStatusError>,
}

/// Of the entry in force; of a newer one where that was not put in force.
fn wanted(parts: &Parts, name: &str, slot: Option<&RunnerStatus>) -> Wanted {
    let file = |file: &Option<PathBuf>| file.as_ref().map(|file| file.display().to_string());
    if let Some(NotTaken { file: at, sha256, error, .. }) = slot.and_then(|slot| slot.not_taken.as_ref()) {
        return Wanted { file: file(at), generation: sha256.clone(), error: Some(error.clone()) };
    }
    let Some(config) = parts.runners.config(name).ok().flatten() else { return Wanted::default() };
    let sources = parts.runners.sources(&config);
    let error = sources.error.as_ref().map(RunnerStatusError::from);
    Wanted { file: file(&sources.file), generation: sources.configured, error }
}

/// Where the file of what serves came from when it was swapped in.
fn origin(parts: &Parts, runner: &str, sha256: &str) -> Option<String> {
    let lives = parts.store.generations(Some(runner), LIVES).unwrap_or_default();
    let serves = lives.into_iter().find(|row| {
        row.life.sha256 == sha256 && row.state != GenerationState::Refused && row.life.source.is_some()
    });
    serves.and_then(|row| row.life.source)
}

/// The layers that a sandbox does without, with the reasons.
fn missing(reached: &Reached) -> Value {
    let layers = reached.missing().map(|layer| json!({"layer": layer.name, "reason": layer.reason}));
    layers.collect()
}
