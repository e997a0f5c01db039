//! What lies in a watched directory, and what of it has been offered: a listing offers what is new
//! since the one before, so that nothing is missed where events were, and nothing is tried for ever.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A file, so that another one with its name, or other content, is told apart without reading it.
/// Not by the time of change: another owner or name leaves what is in it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    identity: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// Of what a name stands for; of the link itself where that leads nowhere.
    fn of(path: &Path) -> io::Result<Self> {
        let meta = path.metadata().or_else(|_| path.symlink_metadata())?;
        let (size, modified) = (meta.len(), (meta.mtime(), meta.mtime_nsec()));
        Ok(Self { identity: (meta.dev(), meta.ino()), size, modified })
    }
}

/// The plugin files of a directory, by name.
pub(super) type Listing = BTreeMap<OsString, Stamp>;

/// Lists the plugin files of a directory.
///
/// # Errors
/// It cannot be read.
pub(super) fn list(dir: &Path) -> io::Result<Listing> {
    let mut listing = Listing::new();
    for entry in dir.read_dir()? {
        let name = entry?.file_name();
        if !is_plugin(&name) {
            continue;
        }
        // Gone since it was listed: nothing to offer.
        if let Ok(stamp) = Stamp::of(&dir.join(&name)) {
            listing.insert(name, stamp);
        }
    }
    Ok(listing)
}

/// Hidden names are of files that are still being copied.
pub(super) fn is_plugin(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    !name.starts_with('.') && Path::new(name).extension().is_some_and(|extension| extension == "so")
}

/// What is known of the files.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    /// With each, whether a listing has offered it and no event since.
    files: BTreeMap<OsString, (Stamp, bool)>,
}

impl Inventory {
    /// Takes what is there for known: it has been there before anybody watched.
    pub fn begin(&mut self, listing: Listing) {
        self.files = listing.into_iter().map(|(name, stamp)| (name, (stamp, false))).collect();
    }

    /// The names of a listing that are to be offered: new ones, and those that stand for another file
    /// than at the last look.
    pub fn look(&mut self, listing: Listing) -> Vec<OsString> {
        let mut new = Vec::new();
        let mut files = BTreeMap::new();
        for (name, stamp) in listing {
            match self.files.remove(&name) {
                Some(known) if known.0 == stamp => files.insert(name, known),
                _ => {
                    new.push(name.clone());
                    files.insert(name, (stamp, true))
                }
            };
        }
        self.files = files;
        new
    }

    /// True when a file of which there is an event is to be offered, which is always so, but for one
    /// that a listing has just offered as it is.
    pub fn appeared(&mut self, dir: &Path, name: &OsStr) -> bool {
        let Ok(stamp) = Stamp::of(&dir.join(name)) else {
            self.files.remove(name);
            return true;
        };
        let known = self.files.insert(name.to_owned(), (stamp, false));
        known != Some((stamp, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(inode: u64, modified: i64) -> Stamp {
        Stamp { identity: (1, inode), size: 1, modified: (modified, 0) }
    }

    fn listing(files: &[(&str, u64, i64)]) -> Listing {
        files.iter().map(|(name, inode, at)| ((*name).into(), stamp(*inode, *at))).collect()
    }

    #[test]
    fn a_look_offers_what_is_new_or_another_file_and_each_once() {
        let mut inventory = Inventory::default();
        inventory.begin(listing(&[("old.so", 1, 1), ("rewritten.so", 2, 1), ("replaced.so", 3, 1)]));
        let now = [("old.so", 1, 1), ("rewritten.so", 2, 5), ("replaced.so", 9, 1), ("new.so", 4, 1)];
        assert_eq!(inventory.look(listing(&now)), ["new.so", "replaced.so", "rewritten.so"]);
        assert!(inventory.look(listing(&now)).is_empty());
        // Away and back again: that is another look at something new.
        assert!(inventory.look(listing(&[])).is_empty());
        assert_eq!(inventory.look(listing(&[("old.so", 1, 1)])), ["old.so"]);
    }

    #[test]
    fn an_event_of_what_a_look_has_just_offered_offers_nothing_twice_and_a_later_one_does() {
        let dir = tempfile::tempdir().unwrap();
        let name = OsStr::new("a.so");
        std::fs::File::create(dir.path().join(name)).unwrap();
        let mut inventory = Inventory::default();
        assert_eq!(inventory.look(list(dir.path()).unwrap()), ["a.so"]);
        assert!(!inventory.appeared(dir.path(), name));
        assert!(inventory.appeared(dir.path(), name));
        assert!(inventory.look(list(dir.path()).unwrap()).is_empty(), "it was offered");
    }

    #[test]
    fn only_whole_names_of_libraries_are_plugins() {
        let cases = [("a.so", true), ("liba.so", true), (".a.so", false), ("a.so.tmp", false), ("so", false)];
        for (name, expected) in cases {
            assert_eq!(is_plugin(OsStr::new(name)), expected, "{name}");
        }
    }
}
