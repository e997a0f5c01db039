//! The C ABI in words, as a C compiler sees the header and as the Rust mirror of it is typed.

use std::fmt::Write as _;
use std::fs;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

use kairos_plugin_api::c_abi::{Bytes, HostV1, PluginV1};

/// A structure of the header: its name and each member with its declaration.
struct Structure {
    name: String,
    members: Vec<(String, String)>,
}

/// Describes a header: structures, constants and functions. `dir` is a place to work in.
pub fn describe(header: &str, dir: &Path) -> String {
    let code = without_comments(header);
    let structures = structures(&code);
    assert!(structures.len() >= 3, "the header is not read as it is written");
    let constants = constants(&code);
    let printed = run(&program(&structures, &constants), header, dir);
    let mut printed = printed.lines();
    let mut text = String::new();
    for structure in &structures {
        let grows = if structure.name.ends_with("_v1") { "grows at its end" } else { "never grows" };
        // Writing to a text cannot fail.
        let _ = writeln!(text, "\nstruct {}: {grows}", structure.name);
        for (_, declared) in &structure.members {
            let placed = printed.next().expect("a line for each member");
            let _ = writeln!(text, "  {placed} {declared}");
        }
    }
    text.push_str("\nconstants of kairos.h: in any order\n");
    for name in &constants {
        let value = printed.next().expect("a line for each constant");
        let _ = writeln!(text, "  {name} {value}");
    }
    text.push_str("\nfunctions that a plugin in C exports: in any order\n");
    for declared in code.split("KAIROS_EXPORT ").skip(2).filter_map(|rest| rest.split(';').next()) {
        let _ = writeln!(text, "  {}", one_line(declared));
    }
    text
}

/// The Rust mirror: what the host takes the members for.
pub fn mirror() -> String {
    let mut text = String::new();
    macro_rules! mirrored {
        ($type:ident, $grows:literal, [$($field:ident),* $(,)?]) => {
            let _ = writeln!(text, "\nmirror {}: {}", stringify!($type), $grows);
            // Does not compile when a member is left out.
            let _ = |$type { $($field: _),* }: $type| ();
            $(
                let shown = type_of(|it: &$type| &it.$field);
                let _ = writeln!(text, "  {:>3} {}: {shown}", offset_of!($type, $field), stringify!($field));
            )*
        };
    }
    mirrored!(Bytes, "never grows", [data, len]);
    mirrored!(
        HostV1,
        "grows at its end",
        [size, major, minor, ctx, call, free_answer, should_stop, deadline_ms, log,]
    );
    mirrored!(
        PluginV1,
        "grows at its end",
        [
            size,
            major,
            minor,
            manifest,
            create,
            destroy,
            run_cycle,
            free_answer,
            cancel,
            probe,
            export_state,
            import_state,
            begin_drain,
        ]
    );
    text
}

/// The name of a member's type, without where it is defined.
fn type_of<S, T>(_: fn(&S) -> &T) -> String {
    let full = std::any::type_name::<T>();
    let mut text = String::new();
    let mut word = String::new();
    let mut letters = full.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter.is_alphanumeric() || letter == '_' {
            word.push(letter);
        } else if letter == ':' && letters.peek() == Some(&':') {
            letters.next();
            word.clear();
        } else {
            text.push_str(&std::mem::take(&mut word));
            text.push(letter);
        }
    }
    text + &word
}

fn without_comments(header: &str) -> String {
    let mut parts = header.split("/*");
    let mut code = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        code.push_str(part.split_once("*/").expect("a comment ends").1);
    }
    code
}

fn structures(code: &str) -> Vec<Structure> {
    let bodies = code.split("typedef struct ").skip(1).map(|rest| {
        let (name, rest) = rest.split_once('{').expect("a structure has a body");
        let (body, _) = rest.split_once('}').expect("a structure has an end");
        let declared = body.split(';').map(one_line).filter(|line| !line.is_empty());
        let members = declared.map(|line| (member(&line), line)).collect();
        Structure { name: name.trim().to_owned(), members }
    });
    bodies.collect()
}

/// The name that a declaration gives: of a function pointer, or the last word.
fn member(declared: &str) -> String {
    let named = match declared.split_once("(*") {
        Some((_, rest)) => rest.split(')').next(),
        None => declared.rsplit([' ', '*']).next(),
    };
    named.unwrap_or_default().to_owned()
}

/// Macros that stand for a number. The version is another one in each minor.
fn constants(code: &str) -> Vec<String> {
    let defined = code.lines().filter_map(|line| line.strip_prefix("#define "));
    let valued = defined.filter_map(|line| line.split_once(' ')).filter(|(name, value)| {
        !name.contains('(')
            && (value.starts_with(|letter: char| letter.is_ascii_digit()) || value.starts_with("INT"))
    });
    valued.map(|(name, _)| name.to_owned()).filter(|name| name != "KAIROS_ABI_MINOR").collect()
}

fn program(structures: &[Structure], constants: &[String]) -> String {
    let mut source = "#include \"kairos.h\"\n#include <stdio.h>\nint main(void) {\n".to_owned();
    for Structure { name, members } in structures {
        for (member, _) in members {
            let _ = writeln!(
                source,
                "printf(\"%3zu +%zu\\n\", offsetof({name}, {member}), sizeof((({name} *)0)->{member}));"
            );
        }
    }
    for name in constants {
        let _ = writeln!(source, "printf(\"%lld\\n\", (long long){name});");
    }
    source + "return 0; }\n"
}

fn run(source: &str, header: &str, dir: &Path) -> String {
    let (file, program) = (dir.join("layout.c"), dir.join("layout"));
    fs::write(dir.join("kairos.h"), header).unwrap();
    fs::write(&file, source).unwrap();
    let output =
        // Whether the header is good C is another test's business.
        Command::new("cc").args(["-std=c99", "-w", "-o"]).arg(&program).arg(&file).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
