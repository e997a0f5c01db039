//! What the last daemon of a root cut off when it ended, for the command that stopped it: whoever asks for a stop is
//! not the daemon's parent and cannot see its exit code.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::sys::files;

/// More would be no such file of ours.
const SIZE_MAX: u64 = 1 << 20;

/// What one daemon left behind.
#[derive(Debug, Serialize, Deserialize)]
pub struct LastEnd {
    pid: i64,
    cut_off: Vec<String>,
}

impl LastEnd {
    /// Notes which mandates' cycles this process cut off.
    pub(super) fn note(path: &Path, cut_off: &[String]) {
        let end = Self { pid: i64::from(std::process::id()), cut_off: cut_off.to_vec() };
        let text = serde_json::to_vec(&end).expect("numbers and texts are JSON");
        if let Err(error) = files::replace(path, &text, files::SHARED) {
            tracing::warn!(%error, "last_end_not_noted");
        }
    }

    /// The mandates whose cycles that daemon cut off; none when it ended as asked.
    #[must_use]
    pub fn read(path: &Path, pid: Option<i64>) -> Option<Vec<String>> {
        let bytes = files::read(path, SIZE_MAX).ok()??;
        let end: Self = serde_json::from_slice(&bytes).ok()?;
        (Some(end.pid) == pid).then_some(end.cut_off)
    }
}
