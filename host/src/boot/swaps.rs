//! Runners at boot: which file each slot is served from, and what replaces them while the daemon
//! runs.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{plugins, runner_configs};
use crate::boot::settings::Settings;
use crate::config::{DaemonConfig, Env};
use crate::daemon::swap::{self, Parts, Swaps};
use crate::runner::{Launcher, Runners};
use crate::store::{GenerationRow, GenerationStore, SqliteStore};

/// Lives that are looked through for versions which must not serve by themselves.
pub(super) const LIVES: usize = 10_000;

/// The configured runners, each on its configured file or on what was swapped in since; and the
/// lives that are open in the store. A command has none.
///
/// # Errors
/// The store's.
pub(super) async fn load(
    settings: &Settings,
    env: &Env,
    store: &SqliteStore,
    now: DateTime<Utc>,
    daemon: bool,
) -> anyhow::Result<(Arc<Runners>, Vec<GenerationRow>)> {
    let search = plugins::search(&settings.paths, env);
    let kept = plugins::store(&settings.paths);
    if !daemon {
        return Ok((Arc::new(Runners::new(Launcher::in_process(search, kept))), Vec::new()));
    }
    let trust = plugins::trust(&settings.paths, &search);
    let launcher = Launcher::with_workers(search, kept, plugins::workers()?).trusting(trust);
    let runners = Arc::new(Runners::new(launcher));
    let open = store.recover_generations(now).await?;
    let lives = store.clone();
    let lives = tokio::task::spawn_blocking(move || lives.generations(None, LIVES)).await??;
    let barred = swap::barred(&lives);
    runners.set_pins(swap::pins(&open, &barred));
    runners.set_barred(barred);
    let (configs, loaded, generations) =
        (runner_configs(&settings.config, env), Arc::clone(&runners), store.clone());
    // Mapping a file and running its constructors is no work for an async thread.
    let adopted = tokio::task::spawn_blocking(move || {
        loaded.configure(configs);
        swap::adopt(&loaded, &generations, now)
    });
    adopted.await??;
    Ok((runners, open))
}

/// What replaces them.
pub(super) fn swaps(config: &DaemonConfig, parts: Parts) -> Swaps {
    Swaps::new(parts, settings(config))
}

/// The checked configuration, in the words of the daemon.
pub(super) fn settings(config: &DaemonConfig) -> swap::Settings {
    let swap = &config.swap;
    swap::Settings {
        shadow_cycles: swap.shadow_cycles as usize,
        tolerance: swap.tolerance_nano,
        shadow_deadline: swap.shadow_deadline,
        canary_cycles: swap.canary_cycles,
        canary_time: swap.canary_time,
        canary_error_rate: swap.canary_error_rate_nano,
        canary_cost_factor: swap.canary_cost_factor_nano,
        drain_timeout: swap.drain_timeout,
        max_leaked: swap.max_leaked_mib << 20,
    }
}
