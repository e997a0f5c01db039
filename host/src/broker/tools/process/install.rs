//! The files that a program consists of besides the one that is named: an agent CLI is most often a
//! script of an interpreter with its packages beside it, wherever people install such things. Whoever
//! grants the program to run grants these to read. Looks at names and first lines only, and never
//! takes in a directory that holds anything but code.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::ready::look_up;

/// Longest first line that is looked at, in bytes.
const FIRST_LINE_MAX: u64 = 4096;
/// Largest description of a Python environment, in bytes.
const VENV_MAX: u64 = 64 << 10;
/// Interpreters of interpreters that are followed.
const DEPTH: usize = 3;

/// What belongs to a program, each existing when it was looked at; the program first.
///
/// # Errors
/// Its interpreter is not there, for people.
pub fn parts(program: &Path, path: &str) -> Result<Vec<PathBuf>, String> {
    let mut found = vec![program.to_owned()];
    let mut next = program.to_owned();
    for _ in 0..DEPTH {
        let real = next.canonicalize().map_err(|error| format!("{}: {error}", next.display()))?;
        found.extend(packages(&real));
        let Some(interpreter) = interpreter(&real, path)? else { break };
        found.extend(python(&interpreter));
        found.push(interpreter.clone());
        next = interpreter;
    }
    Ok(found)
}

/// The outermost directory of Node's packages.
fn packages(real: &Path) -> Option<PathBuf> {
    let outermost =
        real.ancestors().filter(|above| above.file_name().is_some_and(|name| name == "node_modules"));
    outermost.last().map(Path::to_owned)
}

/// What a script is run by; none for what is no script.
fn interpreter(script: &Path, path: &str) -> Result<Option<PathBuf>, String> {
    let mut start = vec![];
    // What cannot be read is for the start itself to complain of.
    let read = File::open(script).and_then(|file| file.take(FIRST_LINE_MAX).read_to_end(&mut start));
    let Some(line) = read.ok().and_then(|_| start.strip_prefix(b"#!")) else { return Ok(None) };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace();
    let Some(first) = words.next() else { return Ok(None) };
    let by = |what: &str| format!("{} is run by {what}", script.display());
    if first.rsplit('/').next() == Some("env") {
        let name = words.find(|word| !word.starts_with('-') && !word.contains('='));
        let Some(name) = name else { return Ok(None) };
        return look_up(name, path).map(Some).map_err(|missing| format!("{}, and {missing}", by(name)));
    }
    match Path::new(first) {
        file if file.is_file() => Ok(Some(file.to_owned())),
        _ => Err(format!("{}, which is not there", by(first))),
    }
}

/// The environment that a Python lies in, and the library of the Python behind it.
fn python(interpreter: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    let place = |file: &Path| file.parent().and_then(Path::parent).map(Path::to_owned);
    if let Some(environment) = place(interpreter).filter(|place| place.join("pyvenv.cfg").is_file()) {
        let mut text = String::new();
        let config = File::open(environment.join("pyvenv.cfg"));
        let _ = config.and_then(|file| file.take(VENV_MAX).read_to_string(&mut text));
        let home = text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == "home").then(|| PathBuf::from(value.trim()))
        });
        found.extend(home.as_deref().and_then(Path::parent).into_iter().flat_map(libraries));
        found.push(environment);
    }
    let real = interpreter.canonicalize().ok();
    let is_python =
        |file: &PathBuf| file.file_name().is_some_and(|name| name.as_bytes().starts_with(b"python"));
    found.extend(
        real.filter(is_python).and_then(|real| place(&real)).into_iter().flat_map(|base| libraries(&base)),
    );
    found
}

/// Of a place with `bin` and `lib`, Python's part of `lib`: the place itself may be a whole home.
fn libraries(base: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(base.join("lib")).into_iter().flatten().flatten();
    let of_python = |name: &[u8]| name.starts_with(b"python") || name.starts_with(b"libpython");
    entries.filter(|entry| of_python(entry.file_name().as_bytes())).map(|entry| entry.path()).collect()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests lay out plain files")]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn put(file: &Path, text: &str) {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn an_agent_of_node_comes_with_all_packages_and_its_interpreter() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        let script = home.join("lib/node_modules/@x/agent/node_modules/y/agent.js");
        put(&script, "#!/usr/bin/env -S node --no-warnings\n");
        put(&home.join("bin/node"), "\x7fELF");
        symlink(&script, home.join("bin/agent")).unwrap();
        let path = home.join("bin").display().to_string();
        let found = parts(&home.join("bin/agent"), &path).unwrap();
        assert_eq!(found, [home.join("bin/agent"), home.join("lib/node_modules"), home.join("bin/node")]);
        let error = parts(&home.join("bin/agent"), "/no/such/dir").unwrap_err();
        assert!(
            error.contains("is run by node, and there is no program node in PATH=/no/such/dir"),
            "{error}"
        );
    }

    #[test]
    fn an_agent_of_python_comes_with_its_environment_and_the_library_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        put(&home.join("base/bin/python3.12"), "\x7fELF");
        put(&home.join("base/lib/python3.12/os.py"), "");
        put(&home.join("base/lib/libpython3.12.so"), "");
        put(&home.join("base/lib/secrets"), "");
        put(&home.join("venv/pyvenv.cfg"), &format!("home = {}\n", home.join("base/bin").display()));
        fs::create_dir(home.join("venv/bin")).unwrap();
        symlink(home.join("base/bin/python3.12"), home.join("venv/bin/python")).unwrap();
        let script = home.join("venv/bin/agent");
        put(&script, &format!("#!{}\n", home.join("venv/bin/python").display()));
        let mut found = parts(&script, "").unwrap();
        found.sort();
        found.dedup();
        let mut expect = vec![
            home.join("base/lib/libpython3.12.so"),
            home.join("base/lib/python3.12"),
            home.join("venv"),
            script.clone(),
            home.join("venv/bin/python"),
        ];
        expect.sort();
        assert_eq!(found, expect);
        fs::remove_file(home.join("venv/bin/python")).unwrap();
        assert!(parts(&script, "").unwrap_err().contains("which is not there"));
    }

    #[test]
    fn what_is_no_script_is_itself_and_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().canonicalize().unwrap().join("agent");
        for text in ["\x7fELF", "", "#", "#!", "#! \n", "#!/usr/bin/env\n"] {
            put(&program, text);
            assert_eq!(parts(&program, "").unwrap(), std::slice::from_ref(&program), "{text:?}");
        }
    }
}
