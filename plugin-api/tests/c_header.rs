//! Holds the C header and its Rust mirror together: a program that includes the header prints
//! every size, offset and constant, and they must be those of Rust.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the files of a test need not be durable")]

use std::fmt::Write as _;
use std::fs;
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::process::Command;

use kairos_plugin_api::c_abi::{self, Bytes, HostV1, PluginV1};

/// For each structure: its C name, and per member the Rust offset. The pattern without `..` does
/// not compile when a member is left out.
macro_rules! layout {
    ($($type:ident as $c:literal { $($field:ident),* $(,)? })*) => {{
        $( let _ = |$type { $($field: _),* }: $type| (); )*
        vec![$( ($c, size_of::<$type>(), vec![$( (stringify!($field), offset_of!($type, $field)) ),*]) ),*]
    }};
}

fn include() -> String {
    format!("-I{}/include", env!("CARGO_MANIFEST_DIR"))
}

/// Compiles `source` and gives what the compiler said when it refused.
fn compile(compiler: &str, flags: &[&str], source: &str, file: &str, out: &Path) -> Result<(), String> {
    let path = out.with_file_name(file);
    fs::write(&path, source).unwrap();
    let output = Command::new(compiler)
        .args(["-Wall", "-Wextra", "-Werror", "-pedantic", &include()])
        .args(flags)
        .arg("-o")
        .arg(out)
        .arg(&path)
        .output()
        .unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn the_header_and_its_mirror_have_one_layout() {
    let structures = layout! {
        Bytes as "kairos_bytes" { data, len }
        HostV1 as "kairos_host_v1" {
            size, major, minor, ctx, call, free_answer, should_stop, deadline_ms, log,
        }
        PluginV1 as "kairos_plugin_v1" {
            size, major, minor, manifest, create, destroy, run_cycle, free_answer, cancel, probe, export_state,
            import_state, begin_drain,
        }
    };
    let mut source =
        "#include <kairos.h>\n#include <stdio.h>\nint main(void) {\n#define P(n, v) printf(\"%s %lld\\n\", n, (long long)(v))\n"
            .to_owned();
    let mut expected = String::new();
    for (name, size, fields) in structures {
        writeln!(source, "P(\"{name}\", sizeof({name}));").unwrap();
        writeln!(expected, "{name} {size}").unwrap();
        for (field, offset) in fields {
            writeln!(source, "P(\"{name}.{field}\", offsetof({name}, {field}));").unwrap();
            writeln!(expected, "{name}.{field} {offset}").unwrap();
        }
    }
    for (name, value) in [
        ("KAIROS_ABI_MAJOR", i64::from(c_abi::MAJOR)),
        ("KAIROS_ABI_MINOR", i64::from(c_abi::MINOR)),
        ("KAIROS_OK", i64::from(c_abi::OK)),
        ("KAIROS_ERROR", i64::from(c_abi::ERROR)),
        ("KAIROS_NO_DEADLINE", c_abi::NO_DEADLINE),
    ] {
        writeln!(source, "P(\"{name}\", {name});").unwrap();
        writeln!(expected, "{name} {value}").unwrap();
    }
    writeln!(source, "puts(KAIROS_API);\nreturn 0; }}").unwrap();
    writeln!(expected, "{}", kairos_plugin_api::abi::API_VERSION).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("layout");
    compile("cc", &["-std=c99"], &source, "layout.c", &program).unwrap();
    let printed = Command::new(&program).output().unwrap().stdout;
    assert_eq!(String::from_utf8(printed).unwrap(), expected);
}

const SMALL: &str = r#"
#include <kairos.h>
KAIROS_MANIFEST(KAIROS_JSON({"schema": 1, "abi": "c", "api": "1.0.0", "name": "small", "version": "0.1.0"}));
static uint32_t run_cycle(void *runner, kairos_bytes mandate, const kairos_host_v1 *host, kairos_bytes *answer) {
    (void)runner, (void)mandate, (void)host;
    *answer = kairos_text("{\"status\": \"ok\"}");
    return KAIROS_OK;
}
const kairos_plugin_v1 *kairos_plugin_entry_v1(uint32_t host_abi_major) {
    static const kairos_plugin_v1 plugin = {
        sizeof plugin, KAIROS_ABI_MAJOR, KAIROS_ABI_MINOR, KAIROS_MANIFEST_BYTES, NULL, NULL, run_cycle,
        NULL, NULL, NULL, NULL, NULL, NULL,
    };
    return host_abi_major == KAIROS_ABI_MAJOR ? &plugin : NULL;
}
"#;

#[test]
fn the_header_is_clean_c_of_each_year_and_clean_cpp() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("small.so");
    let readme = include_str!("../README.md");
    let sample = readme.split("```c\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    for year in ["-std=c99", "-std=c11", "-std=gnu17"] {
        compile("cc", &[year, "-shared", "-fPIC"], SMALL, "small.c", &out).unwrap();
        compile("cc", &[year, "-shared", "-fPIC"], sample, "sample.c", &out).unwrap();
    }
    // A machine that builds Rust has a C compiler, but perhaps none for C++.
    if Command::new("c++").arg("--version").output().is_ok() {
        compile("c++", &["-std=c++11", "-shared", "-fPIC"], SMALL, "small.cc", &out).unwrap();
    } else {
        println!("no C++ compiler here: the header was tried as C only");
    }
    // The check itself can fail.
    let broken = SMALL.replace("NULL, NULL, run_cycle", "NULL, run_cycle");
    assert!(compile("cc", &["-shared", "-fPIC"], &broken, "broken.c", &out).is_err());
}
