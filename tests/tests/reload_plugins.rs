//! A reload whose daemon.yml names other plugins: a file is tried before it takes a place, a bad one takes
//! none, and a runner that is out of service afterwards is said to be, by the exit code, too.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test writes plain files")]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use kairos_tests::swaps::*;
use kairos_tests::{Ran, Root, plugin};
use serde_json::{Value, json};

fn write(root: &Root, from: &str, to: &str) {
    let path = root.file("config/daemon.yml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&path, text.replace(from, to)).unwrap();
}

/// Names another file in daemon.yml and reloads: what is said, and the error.
fn name_and_reload(root: &Root, file: &Path) -> (Value, Ran, Value) {
    let now = configured(root).display().to_string();
    write(root, &now, &file.display().to_string());
    reload(root)
}

fn reload(root: &Root) -> (Value, Ran, Value) {
    let ran = root.cli(&["reload", "--json"]);
    let said: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:?}"));
    let error: Value = serde_json::from_str(&ran.stderr).unwrap_or_default();
    (said["reload"].clone(), ran, error["error"].clone())
}

/// Files that must not take the place of what serves, with their words, and whether that is their own
/// fault as far as a trial can tell.
fn bad_files(root: &Root) -> Vec<(PathBuf, &'static str, bool)> {
    let aside = |name: &str| root.aside().join(name);
    fs::write(aside("empty.so"), "").unwrap();
    fs::write(aside("text.so"), "text").unwrap();
    fs::create_dir(aside("directory.so")).unwrap();
    let untrusted = kairos_tests::variant::version(root.aside(), "plain");
    vec![
        (aside("missing.so"), "not_found", false),
        (aside("empty.so"), "empty", false),
        (aside("directory.so"), "is_a_directory", false),
        (aside("text.so"), "not_elf", false),
        (untrusted, "untrusted", false),
        (trusted(root, "unwell"), "probe_failed", true),
        (trusted(root, "refuses"), "setup_refused", true),
        (trusted(root, "aborts-new"), "crashed", true),
    ]
}

#[test]
fn a_bad_file_that_a_reload_names_takes_no_place_and_is_refused_by_its_word() -> Result<()> {
    for isolation in ["process", "in_process"] {
        let root = isolated("plain", NO_TRIAL, isolation);
        let mut daemon = root.start()?;
        run(&root, &[])?;
        let before = serving(&root)["generation"].clone();
        let files = bad_files(&root);
        for (file, code, _) in &files {
            let (said, ran, error) = name_and_reload(&root, file);
            assert_eq!((ran.code, &said["daemon_yml"]), (2, &json!("in_part")), "{code}: {ran:?}");
            let found = &said["runners"][0];
            assert_eq!(
                (&found["runner"], &found["code"], &found["serves"]),
                (&json!("v"), &json!(code), &json!(true)),
                "{said}"
            );
            assert!(!said["applied"].to_string().contains("runners.v"), "{said}");
            assert!(error["message"].as_str().unwrap().contains("runner v"), "{error}");
            let slot = serving(&root);
            assert_eq!((&slot["state"], &slot["generation"]), (&json!("active"), &before), "{code}: {slot}");
            let wanted = &slot["configured"];
            assert_eq!((&wanted["serves"], &wanted["code"]), (&json!(false), &json!(code)), "{slot}");
            assert!(run(&root, &[])?.starts_with("plain after"), "the same instance goes on");
            let newest = root.json(&["plugin", "history", "v", "--limit", "1"])[0].clone();
            assert_eq!((&newest["state"], &newest["refused"]["code"]), (&json!("refused"), &json!(code)));
        }
        let text = root.cli(&["plugin", "list"]).stdout;
        assert!(text.contains("not taken (crashed)"), "{text}");
        assert!(root.json(&["status"])["reasons"].to_string().contains("what served before goes on"));
        // A state that the instance keeps shows that it has never been another one.
        assert_eq!(run(&root, &[])?, format!("plain after {}", files.len() + 2));
        // A version that was judged bad takes no place by a start either.
        assert_eq!(daemon.stop()?, 0);
        let _daemon = root.start()?;
        assert_eq!((&serving(&root)["generation"], &serving(&root)["state"]), (&before, &json!("active")));
    }
    Ok(())
}

#[test]
fn a_good_file_that_a_reload_names_serves_at_once_with_all_of_its_entry() -> Result<()> {
    let root = isolated("plain", NO_TRIAL, "process");
    let _daemon = root.start()?;
    run(&root, &[])?;
    let (_, ran, _) = name_and_reload(&root, &root.aside().join("missing.so"));
    assert_eq!(ran.code, 2);
    // Mended, and something else of the entry changed with it.
    write(&root, "isolation: process", "isolation: sandbox");
    let next = trusted(&root, "b");
    let (said, ran, _) = name_and_reload(&root, &next);
    assert_eq!((ran.code, &said["daemon_yml"], &said["runners"]), (0, &json!("in_effect"), &json!([])));
    let slot = serving(&root);
    assert_eq!((slot["file"].as_str(), &slot["isolation"]), (next.to_str(), &json!("sandbox")), "{slot}");
    assert_eq!((&slot["configured"]["serves"], &slot["configured"]["code"]), (&json!(true), &Value::Null));
    assert_eq!(run(&root, &[])?, "b after 1");
    // Another plugin altogether is no version of this one, and may be named all the same.
    let (_, ran, _) = name_and_reload(&root, &plugin("stub"));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(serving(&root)["name"], "stub");
    // And back, by what is refused first.
    let (_, ran, _) = name_and_reload(&root, &trusted(&root, "unwell"));
    assert_eq!(ran.code, 2);
    let (_, ran, _) = name_and_reload(&root, &plugin("stub"));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(serving(&root)["configured"]["serves"], true);
    Ok(())
}

#[test]
fn a_reload_that_takes_a_runner_out_of_service_says_so_and_fails_otherwise_than_a_refused_one() -> Result<()>
{
    let root = isolated("plain", NO_TRIAL, "process");
    let mut daemon = root.start()?;
    let sha256 = serving(&root)["generation"].as_str().unwrap().to_owned();
    root.json(&["plugin", "trust", "--remove", &sha256]);
    let (said, ran, error) = reload(&root);
    assert_eq!((ran.code, &error["code"]), (1, &json!("out_of_service")), "{ran:?}");
    let lost = &said["runners"][0];
    assert_eq!(
        (&lost["runner"], &lost["code"], &lost["serves"]),
        (&json!("v"), &json!("untrusted"), &json!(false)),
        "{said}"
    );
    assert!(error["message"].as_str().unwrap().contains("runner v is out of service"), "{error}");
    assert!(error["remedy"].as_str().unwrap().contains("kairos plugin trust"), "{error}");
    assert_eq!(root.wait_logged("runner_out_of_service")?["runner"], "v");
    // Once it is known, a reload that changes nothing is fine.
    assert_eq!(reload(&root).1.code, 0);
    trust(&root, &configured(&root));
    assert_eq!(root.cli(&["reload"]).code, 0);
    assert_eq!(serving(&root)["state"], "active");
    // The same for a person, and when the entry asks for what its file may not have.
    root.json(&["plugin", "trust", "--remove", &sha256]);
    let ran = root.cli(&["reload"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("runner v is out of service") && ran.stderr.contains("remedy:"), "{ran:?}");
    write(&root, "isolation: process", "isolation: sandbox");
    let (said, ran, _) = reload(&root);
    assert_eq!((ran.code, &said["runners"]), (0, &json!([])), "{ran:?}");
    write(&root, "isolation: sandbox", "isolation: in_process");
    let (_, ran, error) = reload(&root);
    assert_eq!((ran.code, &error["code"]), (1, &json!("out_of_service")), "{ran:?}");
    assert_eq!(daemon.stop()?, 0);
    Ok(())
}
