//! `fs.read` and `fs.edit`: text files of one workspace, and nothing outside it.
//!
//! An edit is the replacement of an exact text. Its target's hashes before and after are known,
//! and recorded, before it happens; it happens by one rename, so a crash leaves the old or the
//! new content and [`world_hash`](Tool::world_hash) tells which. Neither tool ever touches a
//! device, pipe, socket or directory.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kairos_plugin_api::ToolReply;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::beneath::{Beneath, PathError, split};
use super::{Access, Course, Done, Intent, Refusal, Tool, Touch, Undone};
use crate::domain::canonical;
use crate::domain::verdict::ABSENT;

/// Largest file that is read, and largest result of an edit, in bytes.
pub const READ_MAX: u64 = 1 << 20;
/// Mode of a file that an edit creates.
const NEW_MODE: u32 = 0o644;
/// Start of a temporary file's name; [`crate::sys::files::sweep_temporaries`] knows it.
const TEMP_PREFIX: &str = ".kairos-tmp-";

/// The directory that a daemon's cycles work in.
#[derive(Debug)]
pub struct Workspace {
    beneath: Beneath,
    /// One edit at a time: between looking and renaming nobody else of this daemon renames.
    edits: Mutex<()>,
}

impl Workspace {
    /// Opens it.
    ///
    /// # Errors
    /// When it is no directory or cannot be opened.
    pub fn open(root: &Path) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { beneath: Beneath::open(root)?, edits: Mutex::new(()) }))
    }

    /// The content of a text file as [`Beneath::resolve`] names it; none when nothing has that name.
    fn text(&self, path: &Path) -> Result<Option<Text>, Refusal> {
        let Some(file) = self.beneath.file(path).map_err(refuse)? else { return Ok(None) };
        let meta = file.metadata().map_err(|error| refuse_io(&error))?;
        if !meta.is_file() {
            return Err(Refusal::because("not_a_file", "not a regular file"));
        }
        let mut bytes = Vec::new();
        (&file).take(READ_MAX + 1).read_to_end(&mut bytes).map_err(|error| refuse_io(&error))?;
        if bytes.len() as u64 > READ_MAX {
            return Err(Refusal::because("too_large", format!("the file has more than {READ_MAX} bytes")));
        }
        let hash = canonical::hash_bytes(&bytes);
        let text = String::from_utf8(bytes)
            .map_err(|_| Refusal::because("not_text", "the file is not UTF-8 text"))?;
        Ok(Some(Text { text, hash, file }))
    }

    fn touch(&self, access: Access, path: &str) -> Result<Touch, Refusal> {
        Ok(Touch { access, path: Some(self.beneath.resolve(path).map_err(refuse)?) })
    }
}

struct Text {
    text: String,
    hash: String,
    file: File,
}

fn refuse(error: PathError) -> Refusal {
    match error {
        PathError::System(Errno::NXIO) => Refusal::because("not_a_file", "not a regular file"),
        PathError::System(errno) => refuse_io(&errno.into()),
        PathError::NotADirectory => Refusal::because("not_a_file", error.to_string()),
        _ => Refusal::Invalid(error.to_string()),
    }
}

fn refuse_io(error: &io::Error) -> Refusal {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "disk_full",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "not_permitted",
        _ => "io",
    };
    Refusal::because(code, error.to_string())
}

fn arguments<T: DeserializeOwned>(args: &Value) -> Result<T, Refusal> {
    T::deserialize(args).map_err(|error| Refusal::Invalid(format!("arguments: {error}")))
}

fn place(touch: &Touch) -> Result<&Path, Refusal> {
    touch.path.as_deref().ok_or_else(|| Refusal::Invalid("a path is needed".into()))
}

/// `fs.read {path}` -> `{path, content, bytes, sha256}`.
pub struct FsRead(Arc<Workspace>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadArgs {
    path: String,
}

impl FsRead {
    /// Reads below that directory.
    #[must_use]
    pub fn new(workspace: Arc<Workspace>) -> Self {
        Self(workspace)
    }
}

impl Tool for FsRead {
    fn name(&self) -> &'static str {
        "fs.read"
    }

    fn touch(&self, args: &Value) -> Result<Touch, Refusal> {
        let args: ReadArgs = arguments(args)?;
        self.0.touch(Access::Read, &args.path)
    }

    fn intent(&self, _args: &Value, touch: &Touch) -> Result<Intent, Refusal> {
        let target = Some(place(touch)?.to_string_lossy().into_owned());
        Ok(Intent { target, repeatable: true, ..Intent::default() })
    }

    fn execute(&self, _args: &Value, intent: &Intent, _course: &Course<'_>) -> Result<Done, Undone> {
        let path = intent.target.clone().unwrap_or_default();
        let reply = match self.0.text(Path::new(&path)) {
            Ok(Some(text)) => ToolReply {
                ok: true,
                output: json!({
                    "path": path, "content": text.text, "bytes": text.text.len(), "sha256": text.hash,
                }),
            },
            Ok(None) => not_found(&path).reply(),
            Err(refusal) => refusal.reply(),
        };
        Ok(reply.into())
    }

    fn world_hash(&self, _intent: &Intent) -> Option<String> {
        None
    }
}

fn not_found(path: &str) -> Refusal {
    Refusal::because("not_found", format!("{path}: no such file"))
}

/// `fs.edit {path, old, new, replace_all?, create?}` -> `{path, pre_sha256, post_sha256,
/// replacements, bytes, created}`.
///
/// `old` must occur exactly once, or `replace_all` must be set. A file that does not exist is
/// created with the text of `new` when `old` is empty; with `create` it begins as that text and
/// is edited like any other. Missing directories are made.
pub struct FsEdit(Arc<Workspace>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EditArgs {
    path: String,
    old: String,
    new: String,
    #[serde(default)]
    replace_all: bool,
    #[serde(default)]
    create: Option<String>,
}

/// An edit, worked out but not done.
struct Plan {
    path: PathBuf,
    before: Option<Text>,
    after: String,
    intent: Intent,
}

impl FsEdit {
    /// Edits below that directory.
    #[must_use]
    pub fn new(workspace: Arc<Workspace>) -> Self {
        Self(workspace)
    }

    fn plan(&self, args: &EditArgs, path: &Path) -> Result<Plan, Refusal> {
        if args.old.is_empty() && args.create.is_some() {
            return Err(Refusal::Invalid("`create` needs a text in `old`".into()));
        }
        let before = self.0.text(path)?;
        let shown = path.to_string_lossy().into_owned();
        let base = match (&before, &args.create) {
            (Some(_), _) if args.old.is_empty() => {
                return Err(Refusal::because("exists", format!("{shown} exists; `old` must not be empty")));
            }
            (Some(before), _) => before.text.as_str(),
            (None, Some(text)) => text,
            (None, None) if args.old.is_empty() => "",
            (None, None) => return Err(not_found(&shown)),
        };
        let (after, replacements) =
            if args.old.is_empty() { (args.new.clone(), 0) } else { edited(base, args)? };
        if after.len() as u64 > READ_MAX {
            return Err(Refusal::because("too_large", format!("the result has more than {READ_MAX} bytes")));
        }
        let pre = before.as_ref().map(|text| text.hash.clone());
        let post = canonical::hash_bytes(after.as_bytes());
        let reply = ToolReply {
            ok: true,
            output: json!({
                "path": shown, "pre_sha256": pre, "post_sha256": post, "replacements": replacements,
                "bytes": after.len(), "created": before.is_none(),
            }),
        };
        let intent = Intent {
            target: Some(shown),
            pre_hash: Some(pre.unwrap_or_else(|| ABSENT.to_owned())),
            post_hash: Some(post),
            reply: Some(json!(reply)),
            ..Intent::default()
        };
        Ok(Plan { path: path.to_owned(), before, after, intent })
    }

    fn apply(&self, plan: &Plan, key: &str) -> Result<(), EditError> {
        let (dir, name) = split(&plan.path).map_err(|error| EditError::Before(refuse(error)))?;
        let dir = self.directories(dir).map_err(EditError::Before)?;
        let temp = format!("{TEMP_PREFIX}{}", temp_tag(key));
        let written = write_temp(&dir, &temp, plan).and_then(|()| rename(&dir, &temp, name, plan));
        if let Err(error) = written {
            // Whatever is left of it is ours.
            let _ = rustix::fs::unlinkat(&dir, &temp, AtFlags::empty());
            return Err(EditError::Before(refuse_io(&error)));
        }
        rustix::fs::fsync(&dir).map_err(|errno| EditError::After(errno.to_string()))
    }

    /// Opens a directory, making what is missing on the way.
    fn directories(&self, dir: &Path) -> Result<OwnedFd, Refusal> {
        let mut done = PathBuf::new();
        let mut held = self.0.beneath.directory(&done).map_err(refuse)?;
        for part in dir.components() {
            done.push(part);
            held = match self.0.beneath.directory(&done) {
                Err(PathError::System(Errno::NOENT)) => {
                    match rustix::fs::mkdirat(&held, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(refuse_io(&errno.into())),
                    }
                    rustix::fs::fsync(&held).map_err(|errno| refuse_io(&errno.into()))?;
                    self.0.beneath.directory(&done).map_err(refuse)?
                }
                other => other.map_err(refuse)?,
            };
        }
        Ok(held)
    }
}

enum EditError {
    /// Nothing has changed.
    Before(Refusal),
    /// The new content is there, and nobody knows whether it stays.
    After(String),
}

impl Tool for FsEdit {
    fn name(&self) -> &'static str {
        "fs.edit"
    }

    fn touch(&self, args: &Value) -> Result<Touch, Refusal> {
        let args: EditArgs = arguments(args)?;
        self.0.touch(Access::Write, &args.path)
    }

    fn intent(&self, args: &Value, touch: &Touch) -> Result<Intent, Refusal> {
        Ok(self.plan(&arguments(args)?, place(touch)?)?.intent)
    }

    fn execute(&self, args: &Value, intent: &Intent, course: &Course<'_>) -> Result<Done, Undone> {
        let _one = self.0.edits.lock().unwrap_or_else(PoisonError::into_inner);
        let path = PathBuf::from(intent.target.clone().unwrap_or_default());
        let plan = match arguments(args).and_then(|args| self.plan(&args, &path)) {
            Ok(plan) => plan,
            Err(refusal) => return Ok(refusal.reply().into()),
        };
        if plan.intent != *intent {
            let message = "the file changed between looking at it and editing it; read it again";
            return Ok(Refusal::because("changed", message).reply().into());
        }
        match self.apply(&plan, course.key) {
            Ok(()) => Ok(plan.intent.known_reply().into()),
            Err(EditError::Before(refusal)) => Ok(refusal.reply().into()),
            Err(EditError::After(error)) => Err(Undone::Unsure(format!("{}: sync: {error}", path.display()))),
        }
    }

    fn world_hash(&self, intent: &Intent) -> Option<String> {
        let path = PathBuf::from(intent.target.as_deref()?);
        let _one = self.0.edits.lock().unwrap_or_else(PoisonError::into_inner);
        match self.0.text(&path) {
            Ok(Some(text)) => {
                // It will be relied on: a rename that a crash cut short of its sync is made durable.
                text.file.sync_all().ok()?;
                let (dir, _) = split(&path).ok()?;
                rustix::fs::fsync(self.0.beneath.directory(dir).ok()?).ok()?;
                Some(text.hash)
            }
            Ok(None) => Some(ABSENT.to_owned()),
            Err(_) => None,
        }
    }
}

/// The text after the edit, and how many places changed.
fn edited(base: &str, args: &EditArgs) -> Result<(String, usize), Refusal> {
    let Some(first) = base.find(&args.old) else {
        return Err(Refusal::because("no_match", "`old` does not occur in the file"));
    };
    if args.old == args.new {
        return Err(Refusal::because("no_change", "`old` and `new` are the same"));
    }
    if args.replace_all {
        return Ok((base.replace(&args.old, &args.new), base.matches(&args.old).count()));
    }
    // From the next character on, so that overlapping places count as two.
    let next = first + base[first..].chars().next().map_or(1, char::len_utf8);
    if base[next..].contains(&args.old) {
        return Err(Refusal::because(
            "ambiguous",
            "`old` occurs more than once; give more of its surroundings, or set `replace_all`",
        ));
    }
    Ok((base.replacen(&args.old, &args.new, 1), 1))
}

/// The same for every attempt of a step, so that a leftover is found and replaced.
fn temp_tag(key: &str) -> String {
    let tag: String = key.chars().filter(char::is_ascii_hexdigit).collect();
    tag[tag.len().saturating_sub(24)..].to_owned()
}

fn write_temp(dir: &OwnedFd, temp: &str, plan: &Plan) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, temp, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file: File = rustix::fs::openat(dir, temp, flags, Mode::from_raw_mode(0o600))?.into();
    file.write_all(plan.after.as_bytes())?;
    let mode = match &plan.before {
        None => NEW_MODE,
        Some(before) => {
            let meta = before.file.metadata()?;
            // Only root can give files away; for anybody else the owner is the same already.
            let _ = rustix::fs::fchown(
                file.as_fd(),
                Some(Uid::from_raw(meta.uid())),
                Some(Gid::from_raw(meta.gid())),
            );
            meta.mode() & 0o777
        }
    };
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

fn rename(dir: &OwnedFd, temp: &str, name: &OsStr, plan: &Plan) -> io::Result<()> {
    if plan.before.is_some() {
        return Ok(rustix::fs::renameat(dir, temp, dir, name)?);
    }
    // A file that somebody made meanwhile stays.
    match rustix::fs::renameat_with(dir, temp, dir, name, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => {
            rustix::fs::linkat(dir, temp, dir, name, AtFlags::empty())?;
            Ok(rustix::fs::unlinkat(dir, temp, AtFlags::empty())?)
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
#[path = "fs_tests.rs"]
mod tests;
