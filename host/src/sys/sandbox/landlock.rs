//! Landlock: which files can be opened, and that neither TCP, nor a signal, nor an abstract socket
//! leads out. Best effort by the kernel's version; what that leaves open is told layer by layer.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use super::level::{Tried, layer};
use super::{Confinement, Network, Profile, SandboxError, system};

/// The newest version whose rights these rules were thought through for; it handles more than it
/// grants, so a right of a version between the kernel's and this one is refused, too.
const NEWEST: ABI = ABI::V9;

/// Rules with their files open, to be put in force later.
pub(super) struct Rules {
    rules: Vec<PathBeneath<OpenPath>>,
    network: Network,
}

/// What the crate's rules hold a file by.
type OpenPath = OwnedFd;

impl Rules {
    /// Opens everything that is granted. What the profile brings may be missing, what was granted
    /// by name may not.
    pub(super) fn open(wanted: &Confinement) -> Result<Self, SandboxError> {
        let mut rules = Rules { rules: Vec::new(), network: wanted.network };
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let execute = read | AccessFs::Execute;
        // Neither devices nor sockets are made, and no program is written and then run.
        let write = (AccessFs::from_all(ABI::V4) | AccessFs::Refer)
            & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock);
        // Who may change what is in a grant can have put a link there by now where none was.
        let granted = |path: &Path| open(path, false).map_err(|source| SandboxError::path(path, source));
        for path in &wanted.read {
            rules.add(granted(path)?, read);
        }
        for path in &wanted.write {
            rules.add(
                granted(path)?,
                if wanted.profile == Profile::Tool { write | AccessFs::MakeSock } else { write },
            );
        }
        for path in &wanted.exec {
            rules.add(granted(path)?, execute);
        }
        if wanted.profile == Profile::Tool {
            let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect();
            let own: [(Vec<PathBuf>, _); 3] = [
                (paths(system::LISTED), AccessFs::ReadDir.into()),
                (system::readable(), read),
                (paths(system::DEVICES), read | AccessFs::WriteFile),
            ];
            for (paths, access) in own {
                for file in paths.iter().filter_map(|path| open(path, true).ok()) {
                    rules.add(file, access);
                }
            }
            for path in system::loaders() {
                let file = open(&path, true).map_err(|source| SandboxError::path(&path, source))?;
                rules.add(file, AccessFs::ReadFile | AccessFs::Execute);
            }
        }
        Ok(rules)
    }

    fn add(&mut self, file: OpenedFile, access: BitFlags<AccessFs>) {
        let access = if file.directory { access } else { access & AccessFs::from_file(NEWEST) };
        self.rules.push(PathBeneath::new(file.fd, access));
    }

    /// Puts the rules in force for this thread and all that come from it.
    pub(super) fn enforce(self, tried: &mut Tried) {
        let network = self.network;
        match self.restrict() {
            Ok(version) => {
                let since = |needed: u32| {
                    if version >= needed {
                        return Ok(());
                    }
                    let have =
                        if version == 0 { "no Landlock".to_owned() } else { format!("Landlock {version}") };
                    Err(format!("the kernel has {have}, this needs {needed}"))
                };
                tried.put(layer::FILES, since(1));
                tried.put(layer::FILE_CHANGES, since(5));
                if network == Network::None {
                    tried.put(layer::TCP, since(4));
                }
                tried.put(layer::SCOPES, since(6));
            }
            Err(error) => {
                let names: &[&str] = match network {
                    Network::None => &[layer::FILES, layer::FILE_CHANGES, layer::TCP, layer::SCOPES],
                    Network::Host => &[layer::FILES, layer::FILE_CHANGES, layer::SCOPES],
                };
                for name in names {
                    tried.put(name, Err(error.to_string()));
                }
            }
        }
    }

    /// The version in force, 0 for none.
    fn restrict(self) -> Result<u32, RulesetError> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?;
        if self.network == Network::None {
            ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
        }
        let rules = self.rules.into_iter().map(Ok::<_, RulesetError>);
        let status = ruleset.create()?.add_rules(rules)?.restrict_self()?;
        Ok(match (status.ruleset, status.landlock) {
            (RulesetStatus::NotEnforced, _) => 0,
            (_, LandlockStatus::Available { effective_abi, .. }) => effective_abi as u32,
            _ => 0,
        })
    }
}

pub(super) struct OpenedFile {
    pub(super) fd: OpenPath,
    directory: bool,
}

/// Opens it, without following a link anywhere in its path unless `links`.
pub(super) fn open(path: &Path, links: bool) -> std::io::Result<OpenedFile> {
    let (how, mode) = (OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let fd = if links {
        openat(CWD, path, how, mode)?
    } else {
        match openat2(CWD, path, how, mode, ResolveFlags::NO_SYMLINKS) {
            // Where it is not known there is no Landlock; where it is denied there may be.
            Err(Errno::NOSYS | Errno::PERM) => part_by_part(path, how)?,
            opened => opened?,
        }
    };
    let directory = FileType::from_raw_mode(fstat(&fd)?.st_mode).is_dir();
    Ok(OpenedFile { fd, directory })
}

/// The same without the newer call.
fn part_by_part(path: &Path, how: OFlags) -> rustix::io::Result<OwnedFd> {
    let mut held = openat(CWD, "/", how, Mode::empty())?;
    for part in path.components().skip(1) {
        held = openat(&held, part.as_os_str(), how | OFlags::NOFOLLOW, Mode::empty())?;
        // Like this a link is opened itself.
        if FileType::from_raw_mode(fstat(&held)?.st_mode) == FileType::Symlink {
            return Err(Errno::LOOP);
        }
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_is_followed_with_and_without_the_newer_call() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        std::os::unix::fs::symlink("a", dir.join("l")).unwrap();
        std::os::unix::fs::symlink("b", dir.join("a/l")).unwrap();
        for (path, opens) in [("a/b", true), ("l/b", false), ("l", false), ("a/l", false)] {
            let path = dir.join(path);
            assert_eq!(open(&path, false).is_ok(), opens, "{}", path.display());
            assert_eq!(
                part_by_part(&path, OFlags::PATH | OFlags::CLOEXEC).is_ok(),
                opens,
                "{}",
                path.display()
            );
            assert!(open(&path, true).is_ok_and(|file| file.directory), "{}", path.display());
        }
    }
}
