//! What benchmarks share: times of calls and their quantiles.

use std::time::{Duration, Instant};

/// How long each of so many calls took.
pub fn measure(calls: usize, mut call: impl FnMut()) -> Vec<Duration> {
    let time = |_| {
        let start = Instant::now();
        call();
        start.elapsed()
    };
    (0..calls).map(time).collect()
}

/// The median and the 99th percentile. Panics without a time.
#[must_use]
pub fn quantiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}
