//! `kairos plugin new` and the examples: what an author starts from.

use super::*;
use serde_json::{Value, json};

#[test]
fn a_new_runner_in_rust_builds_and_passes_its_tests_and_its_scenario() {
    let desk = Desk::new();
    let made = desk.kairos(&["plugin", "new", "night-notes", "--json"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let made: Value = serde_json::from_str(&made.stdout).unwrap();
    for file in ["src/lib.rs", "Cargo.lock"] {
        assert!(made["created"].as_array().unwrap().contains(&json!(file)), "{made}");
    }
    assert_eq!(made["next"][0], "cargo test");
    let dir = desk.0.path().join("night-notes");
    let lines = own_lines(&fs::read_to_string(dir.join("src/lib.rs")).unwrap());
    assert!((10..=20).contains(&lines), "{lines} lines, and at most 20 were promised");
    // As cargo's defaults have it, whatever this workspace likes.
    succeeds(&dir, cargo(), &["fmt", "--check"]);
    let so = built(&dir, &["build", "test"]);
    let args = ["plugin", "test", so.to_str().unwrap(), "--scenario", "night-notes/scenario.yml"];
    let tested = desk.kairos(&args);
    assert_eq!(tested.code, 0, "{}{}", tested.stdout, tested.stderr);
    assert!(tested.stdout.contains("cuts: 2 crashes, no difference"), "{}", tested.stdout);
}

#[test]
fn a_new_runner_in_c_builds_and_passes_its_scenario() {
    let desk = Desk::new();
    let mut new = Command::new(kairos());
    new.args(["plugin", "new", "count-down", "--lang", "c", "--dir", "work/c"]).env("PATH", desk.0.path());
    let made = new.current_dir(desk.0.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let dir = desk.0.path().join("work/c");
    succeeds(&dir, "make", &["CFLAGS=-O1 -Wall -Wextra -pedantic -Werror"]);
    // By the program that wrote it: there is no `kairos` on its path.
    let make = |args: &[&str]| {
        Command::new("make").args(args).current_dir(&dir).env_remove("KAIROS").output().unwrap()
    };
    let tested = make(&["test"]);
    assert!(tested.status.success(), "{tested:?}");
    let called = make(&["-n", "test", "KAIROS=echo called"]);
    assert!(String::from_utf8(called.stdout).unwrap().contains("echo called plugin test libcount_down.so"));
    let checked = desk.kairos(&["plugin", "check", "work/c/libcount_down.so"]);
    assert_eq!(checked.code, 0, "{}", checked.stdout);
    let tested =
        desk.kairos(&["plugin", "test", "work/c/libcount_down.so", "--scenario", "work/c/scenario.yml"]);
    assert_eq!(tested.code, 0, "{}{}", tested.stdout, tested.stderr);
    // The header is the author's as well: what a compiler says of it is said.
    let header = fs::read_to_string(dir.join("kairos.h")).unwrap();
    fs::write(dir.join("kairos.h"), format!("{header}\nstatic int nobody_reads_this;\n")).unwrap();
    let warned = make(&["CFLAGS=-Wall -Wextra -pedantic -Werror"]);
    let said = String::from_utf8(warned.stderr).unwrap();
    assert!(!warned.status.success() && said.contains("nobody_reads_this"), "{said}");
}

#[test]
fn new_runners_overwrite_nothing_and_have_names_that_build() {
    let desk = Desk::new();
    fs::create_dir(desk.0.path().join("taken")).unwrap();
    let taken = desk.kairos(&["plugin", "new", "taken"]);
    assert_eq!(taken.code, 5, "{}", taken.stderr);
    assert!(taken.stderr.contains("nothing was written"), "{}", taken.stderr);
    for name in ["Upper", "../out", "test"] {
        let refused = desk.kairos(&["plugin", "new", name]);
        assert_eq!(refused.code, 2, "{name}: {}", refused.stderr);
    }
    let nowhere = desk.kairos(&["plugin", "new", "fine", "--api", "nowhere"]);
    assert_eq!(nowhere.code, 2, "{}", nowhere.stderr);
    assert!(!desk.0.path().join("fine").exists());
}

#[test]
fn a_new_runner_in_c_takes_the_header_it_is_told_to_or_says_why_not() {
    let desk = Desk::new();
    let api = desk.0.path().join("sources/plugin-api");
    fs::create_dir_all(api.join("include")).unwrap();
    fs::write(api.join("Cargo.toml"), "[package]\nname = \"kairos-plugin-api\"\n").unwrap();
    let made = |api: &str| desk.kairos(&["plugin", "new", "mine", "--lang", "c", "--api", api]);
    for (api, words) in [
        ("nowhere", "holds no kairos-plugin-api"),
        ("https://x.invalid/kairos.git", "takes only a header"),
        ("sources", "no header that can be read"),
    ] {
        let refused = made(api);
        assert!(refused.code == 2 && refused.stderr.contains(words), "{api}: {}", refused.stderr);
        assert!(!desk.0.path().join("mine").exists());
    }
    fs::write(api.join("include/kairos.h"), "/* theirs */\n").unwrap();
    assert_eq!(made("sources").code, 0);
    assert_eq!(fs::read_to_string(desk.0.path().join("mine/kairos.h")).unwrap(), "/* theirs */\n");
}

#[test]
fn the_useful_runner_of_the_guide_is_the_example_and_has_at_most_twenty_lines() {
    let sample = blocks("A useful runner", "rust").remove(0);
    let lines = own_lines(&sample);
    assert!((10..=20).contains(&lines), "{lines} lines, and at most 20 were promised");
    let example = fs::read_to_string(workspace().join("examples/hello-runner/src/lib.rs")).unwrap();
    assert!(example.contains(sample.trim()), "the guide shows something else than the example:\n{sample}");
    // The count can fail.
    assert_eq!(own_lines("use a;\n\n// x\n/// y\nfn f() {\n}\n#[cfg(test)]\nmod tests {}\n"), 3);
}

#[test]
fn the_example_in_c_is_built_by_its_makefile_and_passes_its_scenario() {
    let desk = Desk::new();
    let example = workspace().join("examples/c-runner");
    let so = desk.0.path().join("libword_count.so");
    let out = format!("OUT={}", so.display());
    succeeds(&example, "make", &["CFLAGS=-O1 -Wall -Wextra -pedantic -Werror", &out]);
    assert!(!example.join("libword_count.so").exists(), "nothing is built in the sources");
    let checked = desk.kairos(&["plugin", "check", "libword_count.so", "--json"]);
    let view: Value = serde_json::from_str(&checked.stdout).unwrap();
    assert_eq!((&view["loads"], &view["abi"]), (&json!(true), &json!("c 1.0.0")), "{}", checked.stderr);
    let scenario = example.join("scenario.yml");
    let args = ["plugin", "test", "libword_count.so", "--scenario", scenario.to_str().unwrap()];
    let tested = desk.kairos(&args);
    assert_eq!(tested.code, 0, "{}{}", tested.stdout, tested.stderr);
}
