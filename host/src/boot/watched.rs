//! Whether the directory that `plugins.watch` names could be watched now, for `config check` and
//! `doctor`. It is no error: a daemon starts without it and watches it once it is there.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::report::{Level, Problem};
use crate::config::{DaemonConfig, Paths};
use crate::daemon::swap::{self, Unwatched};
use crate::sys::lock;

/// What was found of it.
pub enum Found {
    /// It can be watched; where it is.
    There(PathBuf),
    /// The next start makes it.
    ToBeMade(PathBuf),
    /// It cannot be watched as it is.
    Not(Problem),
}

/// Looks at the directory, if one is to be watched. Changes nothing.
#[must_use]
pub fn look(config: &DaemonConfig, paths: &Paths) -> Option<Found> {
    const KEY: &str = "plugins.watch";
    let (dir, ours) = config.watched_plugins(&paths.root)?;
    let why = match swap::watchable(&dir) {
        Ok(at) => return Some(Found::There(at)),
        Err(why) => why,
    };
    // One that runs does not make it again: somebody has removed it.
    let to_start = || matches!(lock::holder(&paths.pid), Ok(None));
    if ours && matches!(why, Unwatched::Absent { via: None, .. }) && to_start() {
        return Some(Found::ToBeMade(dir));
    }
    let file: Arc<str> = paths.show(&paths.daemon_yml).into();
    Some(Found::Not(Problem {
        level: Level::Warning,
        line: config.line_of(KEY).unwrap_or_default(),
        column: 1,
        key: KEY.to_owned(),
        code: Some(why.code()),
        ..Problem::of_file(&file, format!("{why}, so {} is not watched", dir.display()), why.remedy())
    }))
}
