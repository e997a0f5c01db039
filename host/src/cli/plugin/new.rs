//! `kairos plugin new`: a runner that builds and passes its own tests at once. Never overwrites
//! anything.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::Context;
use crate::cli::output::emit;
use crate::exit::{Failure, code};
use crate::sys::files;

/// What to make.
#[derive(Clone, Debug, Args)]
pub struct NewArgs {
    /// Its name: lower-case letters, digits and hyphens
    pub name: String,
    /// The language it is written in
    #[arg(long, value_enum, default_value_t = Lang::Rust)]
    pub lang: Lang,
    /// Where; a directory that is not there yet [default: ./NAME]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Where kairos-plugin-api comes from: a directory, or for a crate the URL of a git repository
    #[arg(long, value_name = "PATH_OR_URL")]
    pub api: Option<String>,
}

/// Languages there are templates for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Lang {
    /// A crate
    Rust,
    /// A source, a Makefile and the header
    C,
}

/// Longest name: it becomes a crate's, a file's and a manifest's.
const NAME_MAX: usize = 64;
/// Where this program's own source has the crate; looked for when it runs.
const OWN_API: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugin-api");

/// Writes the files.
///
/// # Errors
/// A name that cannot be used, or no plugin-api: exit 2. The directory is there: exit 5.
pub fn run(args: &NewArgs, context: &Context) -> anyhow::Result<()> {
    check_name(&args.name)?;
    let dir = context.cwd.join(args.dir.as_deref().unwrap_or(Path::new(&args.name)));
    let library = format!("lib{}.so", args.name.replace('-', "_"));
    let (so, build, files) = match args.lang {
        Lang::Rust => (format!("target/release/{library}"), "cargo build --release", RUST),
        Lang::C => (library, "make", C),
    };
    let (api, versions, header) = match args.lang {
        Lang::Rust => {
            let source = Source::of(args.api.as_deref(), &context.cwd)?;
            (source.dependency(), source.versions(), String::new())
        }
        Lang::C => (String::new(), None, header(args.api.as_deref(), &context.cwd)?),
    };
    let play = format!("kairos plugin test {so} --scenario scenario.yml");
    let file = json!(dir.join(&so).to_string_lossy()).to_string();
    let (check, tests) = (format!("kairos plugin check {so}"), args.lang == Lang::Rust);
    let next = [tests.then_some("cargo test"), Some(build), Some(&check), Some(&play)];
    let next: Vec<&str> = next.into_iter().flatten().collect();
    let steps = next.join("\n");
    let program = program(context.env.get("PATH"));
    let next: Vec<String> = next.iter().map(|step| by(&program, step)).collect();
    let kairos = program.replace('$', "$$").replace('#', "\\#");
    let guide = if tests { "`cargo doc --open -p kairos-plugin-api`, module `guide`" } else { GUIDE_IN_C };
    let params = if args.lang == Lang::Rust { ", params: {style: in three words}" } else { "" };
    let fill = |text: &str| {
        let known = [("name", args.name.as_str()), ("api", &api), ("so", &so), ("steps", &steps)];
        let more = [
            ("play", play.as_str()),
            ("kairos", &kairos),
            ("file", &file),
            ("params", params),
            ("header", &header),
            ("guide", guide),
        ];
        known
            .into_iter()
            .chain(more)
            .fold(text.to_owned(), |text, (key, value)| text.replace(&format!("{{{{{key}}}}}"), value))
    };
    if dir.symlink_metadata().is_ok() {
        let message = format!("{} is already there", dir.display());
        return Err(Failure::new(code::CONFLICT, "exists", message)
            .remedy("nothing was written; choose another directory with --dir")
            .into());
    }
    let mut written = vec![];
    // The versions that this daemon was built with: known to fit, and to be had without the network.
    if let Some(versions) = versions {
        files::create_dirs(&dir)?;
        files::create_new(&dir.join("Cargo.lock"), &versions, files::SHARED)?;
        written.push("Cargo.lock");
    }
    for (name, text) in files {
        let path = dir.join(name);
        files::create_dirs(path.parent().unwrap_or(&dir))?;
        files::create_new(&path, fill(text).as_bytes(), files::SHARED)?;
        written.push(*name);
    }
    let view =
        json!({"name": args.name, "dir": dir, "created": written, "plugin": dir.join(&so), "next": next});
    emit(context.style, &view, |_| {
        let (dir, written, next) = (dir.display(), written.join(", "), next.join("\n  "));
        format!("made {dir}: {written}\n\nnext:\n  cd {dir}\n  {next}")
    })
}

const GUIDE_IN_C: &str = "`plugin-api/GUIDE-C.md` of the Kairos sources";
const OWN_HEADER: &str = include_str!("../../../../plugin-api/include/kairos.h");

const RUST: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("templates/Cargo.toml.tpl")),
    ("src/lib.rs", include_str!("templates/lib.rs.tpl")),
    ("scenario.yml", include_str!("templates/scenario.yml.tpl")),
    ("README.md", include_str!("templates/README.md.tpl")),
    (".gitignore", "/target\n"),
];

const C: &[(&str, &str)] = &[
    ("runner.c", include_str!("templates/runner.c.tpl")),
    ("json.h", include_str!("../../../../examples/c-runner/json.h")),
    ("kairos.h", "{{header}}"),
    ("Makefile", include_str!("templates/Makefile.tpl")),
    ("scenario.yml", include_str!("templates/scenario.yml.tpl")),
    ("README.md", include_str!("templates/README.md.tpl")),
    (".gitignore", "*.so\n"),
];

/// How a shell calls this program: by its name where that finds one, else by its place.
fn program(path: Option<&str>) -> String {
    let named = |dir: PathBuf| {
        let found = dir.join("kairos").metadata();
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let own = std::env::current_exe().ok().and_then(|own| own.to_str().map(ToOwned::to_owned));
    match own {
        Some(own) if !path.is_some_and(|path| std::env::split_paths(path).any(named)) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
            if own.chars().all(plain) { own } else { format!("'{}'", own.replace('\'', r"'\''")) }
        }
        _ => "kairos".to_owned(),
    }
}

/// A step that calls this program.
fn by(program: &str, step: &str) -> String {
    step.strip_prefix("kairos ").map_or_else(|| step.to_owned(), |rest| format!("{program} {rest}"))
}

fn check_name(name: &str) -> Result<(), Failure> {
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let shaped = starts && plain && name.len() <= NAME_MAX && !name.ends_with('-') && !name.contains("--");
    let library = name.replace('-', "_");
    if shaped && !TAKEN.contains(&library.as_str()) {
        return Ok(());
    }
    let message = if shaped {
        format!("the name {name:?} is taken by the language or by a crate that the runner uses")
    } else {
        format!("the name {name:?} cannot be used")
    };
    Err(Failure::usage(message)
        .remedy("lower-case letters, digits and single hyphens, a letter first, such as `daily-notes`"))
}

/// Library names that rustc or cargo refuse, or that would shadow what the template uses.
const TAKEN: &[&str] = &[
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "build",
    "const",
    "continue",
    "core",
    "crate",
    "deps",
    "do",
    "dyn",
    "else",
    "enum",
    "examples",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "incremental",
    "kairos_plugin_api",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc_macro",
    "pub",
    "ref",
    "return",
    "self",
    "serde_json",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
];

/// Where a crate takes the plugin-api from.
enum Source {
    Git(String),
    Dir(PathBuf),
}

impl Source {
    fn of(api: Option<&str>, cwd: &Path) -> Result<Self, Failure> {
        match api {
            Some(url) if is_url(url) => Ok(Self::Git(url.to_owned())),
            Some(api) => Ok(Self::Dir(api_dir(api, cwd)?)),
            None => api_dir(OWN_API, cwd).map(Self::Dir).map_err(|_| {
                Failure::usage("where the crate kairos-plugin-api is cannot be known here").remedy(
                    "say it with `--api PATH_OR_URL`: the Kairos sources, or the URL of their git repository",
                )
            }),
        }
    }

    /// The right side of the dependency.
    fn dependency(&self) -> String {
        match self {
            Self::Git(url) => format!("{{ git = {} }}", json!(url)),
            Self::Dir(dir) => format!("{{ path = {} }}", json!(dir.to_string_lossy())),
        }
    }

    /// The lock file of the sources; cargo takes from it what the new crate needs.
    fn versions(&self) -> Option<Vec<u8>> {
        let Self::Dir(dir) = self else { return None };
        files::read(&dir.parent()?.join("Cargo.lock"), 1 << 20).ok().flatten()
    }
}

/// The header for C: this program's own, unless another version's is named.
fn header(api: Option<&str>, cwd: &Path) -> Result<String, Failure> {
    let Some(api) = api else { return Ok(OWN_HEADER.to_owned()) };
    if is_url(api) {
        return Err(Failure::usage(format!(
            "--api {api}: a runner in C takes only a header, and none is fetched"
        ))
        .remedy("leave `--api` out for this program's own, or name a directory of the Kairos sources"));
    }
    let path = api_dir(api, cwd)?.join("include/kairos.h");
    let found = files::read(&path, 1 << 20).ok().flatten().and_then(|bytes| String::from_utf8(bytes).ok());
    found.ok_or_else(|| Failure::usage(format!("{} is no header that can be read", path.display())))
}

fn is_url(api: &str) -> bool {
    api.contains("://") || api.starts_with("git@")
}

/// The directory of the plugin-api at or below that path.
fn api_dir(api: &str, cwd: &Path) -> Result<PathBuf, Failure> {
    let wanted = cwd.join(api);
    let found = [wanted.clone(), wanted.join("plugin-api")].into_iter().find(|dir| is_api(dir));
    found.map(|dir| dir.canonicalize().unwrap_or(dir)).ok_or_else(|| {
        Failure::usage(format!("{} holds no kairos-plugin-api", wanted.display()))
            .remedy("name the `plugin-api` directory of the Kairos sources, or the URL of a git repository")
    })
}

fn is_api(dir: &Path) -> bool {
    let manifest = files::read(&dir.join("Cargo.toml"), 1 << 20).ok().flatten();
    manifest.is_some_and(|text| String::from_utf8_lossy(&text).contains("name = \"kairos-plugin-api\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_called_by_its_name_only_where_that_finds_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = format!("/nowhere:{}", dir.path().display());
        let own = program(Some(&path));
        assert!(own.trim_matches('\'').starts_with('/'), "{own}");
        assert_eq!(
            (program(None), by(&own, "kairos plugin check x")),
            (own.clone(), format!("{own} plugin check x"))
        );
        files::create_new(&dir.path().join("kairos"), b"", files::SHARED).unwrap();
        assert_eq!(program(Some(&path)), own, "it cannot be run");
        std::fs::set_permissions(dir.path().join("kairos"), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(program(Some(&path)), "kairos");
        assert_eq!(by("kairos", "make"), "make");
    }

    #[test]
    fn names_that_no_crate_can_have_are_refused() {
        for name in
            ["", "A", "9a", "-a", "a-", "a--b", "a_b", "a/b", "../x", "a b", "test", "kairos-plugin-api"]
        {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name(&"a".repeat(NAME_MAX + 1)).is_err());
        for name in ["a", "daily-notes", "r2-d2"] {
            check_name(name).unwrap();
        }
    }

    #[test]
    fn the_api_is_a_directory_that_holds_it_or_a_repository() {
        let cwd = Path::new("/");
        let dependency = |api| Source::of(api, cwd).map(|source| source.dependency());
        let git = dependency(Some("https://x.invalid/k.git")).unwrap();
        assert_eq!(git, r#"{ git = "https://x.invalid/k.git" }"#);
        let own = dependency(None).unwrap();
        assert!(own.contains("plugin-api") && !own.contains(".."), "{own}");
        // The root of the sources will do.
        assert_eq!(dependency(Some(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))).unwrap(), own);
        let refused = dependency(Some("/proc")).unwrap_err();
        assert_eq!(refused.exit, code::USAGE);
    }
}
