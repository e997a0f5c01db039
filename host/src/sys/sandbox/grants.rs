//! Which files a runner can have: what its manifest asks, as far as the operator grants it. A manifest
//! speaks of the root; an operator may also grant what lies elsewhere, by absolute paths. Never what
//! Kairos keeps for itself.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::SandboxError;

/// Kairos's own directory of a root. Nothing in it is ever granted.
const OWN: &str = ".kairos";

/// Most links followed in one path, as in the kernel.
const LINKS_MAX: usize = 40;

/// Files and directories, with all below them. What can be changed can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// Can be read.
    #[serde(default)]
    pub read: Vec<PathBuf>,
    /// Can be read and changed.
    #[serde(default)]
    pub write: Vec<PathBuf>,
}

impl Grants {
    /// True when nothing is granted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.read.is_empty() && self.write.is_empty()
    }

    /// What a manifest asks for, as `read:PATH` and `write:PATH`, relative to the root; `.` is
    /// whatever the operator grants. Anything else is of a newer version and is left out, as are
    /// paths that lead elsewhere: asking gives nothing by itself.
    #[must_use]
    pub fn asked(files: &[String]) -> Self {
        let mut asked = Self::default();
        for file in files {
            match file.split_once(':') {
                Some(("read", path)) if !leads_out(Path::new(path)) => asked.read.push(path.into()),
                Some(("write", path)) if !leads_out(Path::new(path)) => asked.write.push(path.into()),
                _ => {}
            }
        }
        asked
    }

    /// What is in both: of two paths where one lies in the other, the inner one.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let write = overlap(&self.write, &other.write);
        // Who may change a file and only asks to read it, reads it.
        let any = |grants: &Self| [grants.read.as_slice(), grants.write.as_slice()].concat();
        let mut read = overlap(&any(self), &any(other));
        read.retain(|path| !write.iter().any(|wider| path.starts_with(wider)));
        Self { read, write }
    }

    /// What is asked for, as far as this grants it: absolute paths without links, see [`Self::below`].
    /// A link in what is granted gives nothing that is not.
    ///
    /// # Errors
    /// See there, and that a link leads outside of what is granted.
    pub fn given(&self, asked: &Self, fence: &Fence) -> Result<Self, SandboxError> {
        let common = self.common(asked);
        let given = common.below(fence)?;
        let real = |path: &PathBuf| fence.root.join(path).canonicalize().ok();
        let writable: Vec<PathBuf> = self.write.iter().filter_map(real).collect();
        let readable: Vec<PathBuf> = self.read.iter().filter_map(real).chain(writable.clone()).collect();
        let parts = [(&common.read, &given.read, readable), (&common.write, &given.write, writable)];
        for (asked, given, granted) in parts {
            for (path, real) in asked.iter().zip(given) {
                if !granted.iter().any(|granted| real.starts_with(granted)) {
                    let fault = "a link in it leads outside of what is granted";
                    return Err(refused(&fence.root.join(path), fault));
                }
            }
        }
        Ok(given)
    }

    /// The same as absolute paths without links: relative ones below the root, absolute ones where they
    /// are.
    ///
    /// # Errors
    /// See [`Fence::real`].
    pub fn below(&self, fence: &Fence) -> Result<Self, SandboxError> {
        let all =
            |paths: &[PathBuf]| paths.iter().map(|path| fence.real(path, &[])).collect::<Result<_, _>>();
        Ok(Self { read: all(&self.read)?, write: all(&self.write)? })
    }
}

/// What bounds everything that is granted on a root. Paths are relative to it or absolute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    /// The root.
    pub root: PathBuf,
    /// What Kairos keeps for itself besides its own directory.
    pub kept: Vec<PathBuf>,
    /// What runners and tools may change: a link in there may be theirs.
    pub changeable: Vec<PathBuf>,
}

impl Fence {
    /// Kairos's own directory of the root.
    #[must_use]
    pub fn own(&self) -> PathBuf {
        self.root.join(OWN)
    }

    /// Where a granted path leads, without links; `shared` are the parts of Kairos's own directory that
    /// may be granted.
    ///
    /// # Errors
    /// It does not exist, leads outside of the root without saying so, is everything, reaches what
    /// Kairos keeps for itself, or leads elsewhere by a link that a runner or tool can have made.
    pub fn real(&self, path: &Path, shared: &[&str]) -> Result<PathBuf, SandboxError> {
        let root = self.root.canonicalize().map_err(|source| SandboxError::path(&self.root, source))?;
        let full = root.join(path);
        let (real, links) = walk(&full).map_err(|source| SandboxError::path(&full, source))?;
        let fault = if full.starts_with(&root) && !real.starts_with(&root) {
            "it leads outside of the root"
        } else if real.parent().is_none() {
            "it is the whole machine"
        } else if self.keeps(&real, shared) {
            return Err(SandboxError::Kept(full));
        } else if self.is_led_out(&real, &links) {
            "a link in it, in a place that a runner or tool may change, leads out of that place"
        } else {
            return Ok(real);
        };
        Err(refused(&full, fault))
    }

    fn keeps(&self, real: &Path, shared: &[&str]) -> bool {
        let at = |path: &Path| {
            let full = self.root.join(path);
            full.canonicalize().unwrap_or(full)
        };
        let own = at(Path::new(OWN));
        let is_shared =
            real.strip_prefix(&own).is_ok_and(|inside| shared.iter().any(|part| inside.starts_with(part)));
        overlaps(real, &own) && !is_shared || self.kept.iter().any(|kept| overlaps(real, &at(kept)))
    }

    /// Each place by itself, so that a link that was granted to be changed does not vouch for where it leads.
    fn is_led_out(&self, real: &Path, links: &[PathBuf]) -> bool {
        let places = self.changeable.iter().filter_map(|place| self.root.join(place).canonicalize().ok());
        places
            .into_iter()
            .any(|place| !real.starts_with(&place) && links.iter().any(|link| link.starts_with(&place)))
    }
}

/// An absolute path without links, and the links that were followed.
fn walk(path: &Path) -> io::Result<(PathBuf, Vec<PathBuf>)> {
    let parts = |path: &Path| path.components().map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>();
    let (mut real, mut links) = (PathBuf::new(), vec![]);
    let mut todo: VecDeque<OsString> = parts(path).into();
    while let Some(part) = todo.pop_front() {
        if part == ".." {
            real.pop();
            continue;
        }
        // A `/`, with which an absolute path begins, takes the place of all before it.
        let here = if part == "." { real.clone() } else { real.join(&part) };
        match std::fs::read_link(&here) {
            Ok(_) if links.len() == LINKS_MAX => return Err(rustix::io::Errno::LOOP.into()),
            Ok(text) => {
                parts(&text).into_iter().rev().for_each(|part| todo.push_front(part));
                links.push(here);
            }
            // It is there, and no link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => real = here,
            Err(error) => return Err(error),
        }
    }
    Ok((real, links))
}

fn refused(path: &Path, fault: &str) -> SandboxError {
    SandboxError::path(path, io::Error::new(io::ErrorKind::PermissionDenied, fault))
}

/// Why a path of the configuration cannot be granted, as message and remedy. `kept` are further
/// paths that Kairos keeps for itself, relative to the root or absolute.
#[must_use]
pub fn refusal(path: &str, kept: &[&Path]) -> Option<(&'static str, &'static str)> {
    let granted = Path::new(path);
    if granted.components().any(|part| part == Component::ParentDir) {
        return Some((
            "leads outside of the root",
            "write an absolute path for what lies there, without `..`",
        ));
    }
    let granted = plain(granted);
    if granted.as_os_str().is_empty() {
        return Some(("is the whole root", "grant single directories of it"));
    }
    if granted.is_absolute() && granted.parent().is_none() {
        return Some(("is the whole machine", "grant single directories"));
    }
    let reaches = |kept: &Path| overlaps(&granted, &plain(kept));
    if reaches(Path::new(OWN)) || kept.iter().any(|kept| reaches(kept)) {
        return Some(("reaches what Kairos keeps for itself", "grant another directory of the root"));
    }
    None
}

fn leads_out(path: &Path) -> bool {
    path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Without `.` in it.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

fn overlaps(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

fn overlap(some: &[PathBuf], others: &[PathBuf]) -> Vec<PathBuf> {
    let mut both = Vec::new();
    for one in some {
        for other in others {
            let (one, other) = (plain(one), plain(other));
            let inner = match (one.starts_with(&other), other.starts_with(&one)) {
                (true, _) => one,
                (_, true) => other,
                _ => continue,
            };
            if !both.contains(&inner) {
                both.push(inner);
            }
        }
    }
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(read: &[&str], write: &[&str]) -> Grants {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect();
        Grants { read: paths(read), write: paths(write) }
    }

    fn asked(files: &[&str]) -> Grants {
        Grants::asked(&files.iter().map(|file| (*file).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_runner_gets_what_it_asks_as_far_as_it_is_granted() {
        let policy = grants(&["docs"], &["out", "notes/today"]);
        let check =
            |files: &[&str], expect: Grants| assert_eq!(policy.common(&asked(files)), expect, "{files:?}");
        check(&[], grants(&[], &[]));
        check(&["read:secret", "write:secret"], grants(&[], &[]));
        check(&["write:docs"], grants(&["docs"], &[]));
        check(&["write:out/a", "read:docs/./b"], grants(&["docs/b"], &["out/a"]));
        check(&["write:notes"], grants(&[], &["notes/today"]));
        check(&["read:out"], grants(&["out"], &[]));
        check(&["read:.", "write:."], grants(&["docs"], &["out", "notes/today"]));
        check(&["read:../x", "write:/etc", "delete:out", "out"], grants(&[], &[]));
        check(&["read:document"], grants(&[], &[]));
    }

    #[test]
    fn what_kairos_keeps_for_itself_cannot_be_granted() {
        let kept = [Path::new("logs/wal"), Path::new(".kairos/run/daemon.pid")];
        for bad in [
            "/",
            "/./",
            "/srv/../etc",
            "..",
            "a/../..",
            ".",
            "",
            "./",
            ".kairos",
            "./.kairos/run",
            "logs",
            "logs/wal/x",
        ] {
            assert!(refusal(bad, &kept).is_some(), "{bad:?}");
        }
        for good in ["/srv/data", "docs", "./docs", "logs/other", ".kairosx", "logs/wally"] {
            assert_eq!(refusal(good, &kept), None, "{good:?}");
        }
    }

    #[test]
    fn links_do_not_lead_out_of_the_root_or_into_its_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join(".kairos/run")).unwrap();
        std::fs::create_dir(root.join("docs")).unwrap();
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, root.join(name)).unwrap();
        link("docs", "good");
        link("..", "out");
        link(".kairos/run", "secrets");
        link(".", "self");
        let fence = Fence { root: root.clone(), ..Fence::default() };
        let below = |path: &str| grants(&[path], &[]).below(&fence).map(|grants| grants.read);
        assert_eq!(below("good").unwrap(), [root.canonicalize().unwrap().join("docs")]);
        // What lies elsewhere is granted by its absolute path, and only that way.
        let elsewhere = dir.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let absolute = |path: &Path| below(path.to_str().unwrap());
        assert_eq!(absolute(&elsewhere).unwrap(), [elsewhere.canonicalize().unwrap()]);
        std::os::unix::fs::symlink("/", dir.path().join("all")).unwrap();
        for (path, says) in
            [("all", "whole machine"), ("", "keeps"), ("root/.kairos/run", "keeps"), ("root", "keeps")]
        {
            let error = absolute(&dir.path().join(path)).unwrap_err().to_string();
            assert!(error.contains(says), "{path}: {error}");
        }
        assert_eq!(asked(&["read:."]).common(&grants(&["/srv/data"], &[])), grants(&["/srv/data"], &[]));
        for (path, says) in [("out", "outside"), ("secrets", "keeps"), ("self", "keeps"), ("gone", "gone")] {
            let error = below(path).unwrap_err().to_string();
            assert!(error.contains(says), "{path}: {error}");
        }
    }

    #[test]
    fn a_link_in_what_is_granted_gives_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for name in ["out/own", "docs", "secret", "logs/wal"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        for (to, name) in [
            ("../secret", "out/secret"),
            ("../docs", "out/docs"),
            ("own", "out/inner"),
            ("../logs/wal", "out/wal"),
            ("out", "other_name"),
        ] {
            std::os::unix::fs::symlink(to, root.join(name)).unwrap();
        }
        let fence =
            Fence { root: root.clone(), kept: vec!["logs/wal".into()], changeable: vec!["out".into()] };
        let policy = grants(&["docs"], &["out", "other_name"]);
        let given = |files: &[&str]| policy.given(&asked(files), &fence);
        for (file, reads, writes) in [
            ("write:out/own", vec![], vec!["out/own"]),
            ("write:out/inner", vec![], vec!["out/own"]),
            ("write:other_name/own", vec![], vec!["out/own"]),
        ] {
            let at = |names: Vec<&str>| names.into_iter().map(|name| root.join(name)).collect::<Vec<_>>();
            let given = given(&[file]).unwrap();
            assert_eq!((given.read, given.write), (at(reads), at(writes)), "{file}");
        }
        for (file, says) in [
            ("write:out/secret", "leads out of that place"),
            ("read:out/secret", "leads out of that place"),
            // Granted by itself, but it is the runner's word that leads there.
            ("read:out/docs", "leads out of that place"),
            ("write:out/wal", "keeps for itself"),
        ] {
            let error = given(&[file]).unwrap_err().to_string();
            assert!(error.contains(says), "{file}: {error}");
        }
        let absolute = grants(&[], &[root.join("logs").to_str().unwrap()]);
        let error = absolute.given(&asked(&["write:."]), &fence).unwrap_err().to_string();
        assert!(error.contains("keeps for itself"), "{error}");
    }

    #[test]
    fn a_link_leads_nowhere_that_somebody_who_can_have_made_it_may_not_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        for name in ["root/out/own/deep", "root/docs", "secret", "srv/data"] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
        }
        let to_secret = dir.join("secret").display().to_string();
        for (to, name) in [
            (to_secret.as_str(), "root/out/b"),
            ("own/deep", "root/out/inner"),
            ("loop", "root/out/loop"),
            // The operator's own: one that is followed, and one that goes through what is not his.
            ("srv", "named"),
            ("root/out/b", "by_way"),
        ] {
            std::os::unix::fs::symlink(to, dir.join(name)).unwrap();
        }
        let fence = |changeable: &[&str]| Fence {
            root: dir.join("root"),
            kept: vec![],
            changeable: changeable.iter().map(PathBuf::from).collect(),
        };
        let at = |path: &str| dir.join(path);
        // That the place at the link's end is granted as well is the very thing it claims.
        let some = fence(&["out", at("root/out/b").to_str().unwrap(), at("secret").to_str().unwrap()]);
        for (path, real) in [
            ("root/out/inner", Some("root/out/own/deep")),
            ("root/docs", Some("root/docs")),
            ("named/data", Some("srv/data")),
            ("root/out/b", None),
            ("by_way", None),
            ("root/out/loop", None),
            ("root/out/gone", None),
        ] {
            assert_eq!(some.real(&at(path), &[]).ok(), real.map(at), "{path}");
        }
        assert_eq!(fence(&[]).real(&at("by_way"), &[]).unwrap(), at("secret"), "nobody can have made it");
        let error = fence(&[]).real(Path::new("out/b"), &[]).unwrap_err().to_string();
        assert!(error.contains("outside of the root"), "{error}");
    }
}
