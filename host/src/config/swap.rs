//! The keys `swap` and `plugins`: how versions of runners are replaced while the daemon runs.

use std::path::PathBuf;
use std::time::Duration;

use super::reader::{Context, MapReader};
use super::values::NANO;

/// How versions of runners are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapConfig {
    /// Recorded cycles that a candidate is run on.
    pub shadow_cycles: u32,
    /// Billionths of them that may come out differently.
    pub tolerance_nano: u64,
    /// Time for one of them, and for a probe.
    pub shadow_deadline: Duration,
    /// Cycles of a trial; 0 for none.
    pub canary_cycles: u32,
    /// Longest trial.
    pub canary_time: Duration,
    /// Billionths of its cycles that may report an error.
    pub canary_error_rate_nano: u64,
    /// Billionths: so many times the recorded usage is too much.
    pub canary_cost_factor_nano: u64,
    /// How long cycles of a replaced version are waited for.
    pub drain_timeout: Duration,
    /// MiB that stay mapped of replaced versions, at most.
    pub max_leaked_mib: u64,
}

/// Reads both keys: the watched directory as written, and the rest.
pub(super) fn read(top: &mut MapReader<'_>, ctx: &mut Context<'_>) -> (Option<PathBuf>, SwapConfig) {
    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(86_400);
    let mut plugins = top.map("plugins", ctx);
    let watch = plugins.text("watch", ctx, None).map(PathBuf::from);
    plugins.finish(ctx);
    let mut map = top.map("swap", ctx);
    let count = |value: u64| u32::try_from(value).expect("the range of the key ends below u32::MAX");
    let swap = SwapConfig {
        shadow_cycles: count(map.count("shadow_cycles", ctx, 10, 0..=64)),
        tolerance_nano: map.decimal("tolerance", ctx, 0, 0..=NANO),
        shadow_deadline: map.duration("shadow_deadline", ctx, 30 * SECOND, SECOND / 10..=HOUR),
        canary_cycles: count(map.count("canary_cycles", ctx, 10, 0..=1_000_000)),
        canary_time: map.duration("canary_time", ctx, HOUR, SECOND / 10..=30 * DAY),
        canary_error_rate_nano: map.decimal("canary_error_rate", ctx, NANO / 10, 0..=NANO),
        canary_cost_factor_nano: map.decimal("canary_cost_factor", ctx, 2 * NANO, NANO..=1000 * NANO),
        drain_timeout: map.duration("drain_timeout", ctx, HOUR / 4, Duration::ZERO..=7 * DAY),
        max_leaked_mib: map.count("max_leaked", ctx, 512, 0..=1 << 20),
    };
    map.finish(ctx);
    (watch, swap)
}
