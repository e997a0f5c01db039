//! How much room a program leaves on the file systems that it may write to. One file and many, and those
//! of others, are all the same here: only what is left counts. No quota: between two looks it may take
//! more. Looks only.

use std::path::{Path, PathBuf};

use super::CommandSpec;

const MIB: u64 = 1 << 20;

/// The places that a program may write to, and what is to stay free there.
pub(super) struct Room {
    places: Vec<PathBuf>,
    keep: u64,
}

impl CommandSpec {
    /// Where it may write now, without what cannot be granted: its grant, else the place it starts in,
    /// and its temporary files.
    pub(super) fn room(&self) -> Room {
        let mut places: Vec<PathBuf> = match &self.grant {
            Some(grant) => grant.write.iter().filter_map(|path| path.real(&self.fence).ok()).collect(),
            None => vec![self.cwd.clone()],
        };
        // Not made yet before the first run.
        places.extend(self.scratch.ancestors().find(|dir| dir.is_dir()).map(Path::to_owned));
        Room { places, keep: self.keep_free }
    }
}

impl Room {
    /// The key that bounds it, and what is missing where, for people; none while there is enough.
    pub fn short(&self) -> Option<(&'static str, String)> {
        self.places.iter().find_map(|place| {
            let about = rustix::fs::statvfs(place).ok()?;
            let free = about.f_bavail.saturating_mul(about.f_frsize);
            (free < self.keep).then(|| {
                let (free, keep, place) = (free / MIB, self.keep.div_ceil(MIB), place.display());
                (
                    "keep_free_bytes",
                    format!("{free} MiB are free where {place} lies, and {keep} MiB are to stay so"),
                )
            })
        })
    }
}
