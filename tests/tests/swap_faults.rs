//! What goes wrong around swaps in a real daemon: it is killed at each stage, a version's last cycles
//! do not end, a version on trial is too slow, and files are offered that are nothing to swap in.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test writes plain files")]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use kairos_tests::c_plugin::compile;
use kairos_tests::hostile::{Chance, hostile_c, patched};
use kairos_tests::swaps::*;
use kairos_tests::variant::version;
use kairos_tests::{Root, plugin};
use serde_json::{Value, json};

#[test]
fn a_daemon_killed_before_the_flip_comes_back_with_the_old_version() -> Result<()> {
    let settings = "swap: {shadow_deadline: 60s, canary_cycles: 0, drain_timeout: 60s}";
    let root = root("plain", settings);
    let mut daemon = root.start()?;
    run(&root, &["prompt=hello"])?;
    let slow = root.add("slow", &["sleep_ms=3000"]);
    root.wait_state(&slow, &["running"])?;
    // Each of these stays at its stage for longer than the test waits.
    for (mode, stage) in
        [("never-new", "probe"), ("hangs", "shadow"), ("never-standby", "standby"), ("b", "handover")]
    {
        killed_at(&root, &mut daemon, mode, stage)?;
        daemon = root.start()?;
        assert_eq!(states(&root)[0], "retired", "{stage}");
        assert_eq!(serving(&root)["version"], "0.1.0");
    }
    let row = root.wait_state(&slow, &["succeeded", "failed", "review"])?;
    assert!(last_cycle(&row)["summary"].as_str().unwrap().starts_with("plain after"), "{row}");
    assert_eq!(states(&root), ["retired", "retired", "retired", "retired", "active"]);
    assert_once(&row);
    Ok(())
}

#[test]
fn a_daemon_killed_after_the_flip_comes_back_with_the_new_version_on_trial() -> Result<()> {
    let root = root("plain", QUICK);
    let mut daemon = root.start()?;
    run(&root, &["prompt=hello"])?;
    killed_at(&root, &mut daemon, "b", "canary")?;
    let _daemon = root.start()?;
    assert_eq!(states(&root), ["active", "standby"], "the trial goes on");
    assert_eq!(run(&root, &["prompt=hello"])?, "b after 2", "with the state that was handed over");
    // And the way back is open.
    assert_eq!(root.json(&["plugin", "rollback", "v"])["stage"], "rolled_back");
    assert!(run(&root, &[])?.starts_with("plain after"));
    assert_eq!(states(&root), ["rolled_back", "active"]);
    Ok(())
}

/// The one mandate's cycles: each that counts once, none that is open.
fn assert_once(row: &Value) {
    let cycles = row["cycles"].as_array().unwrap();
    let ok: Vec<&Value> = cycles.iter().filter(|cycle| cycle["status"] == "ok").collect();
    assert_eq!((row["state"].as_str(), ok.len()), (Some("succeeded"), 1), "{row}");
}

#[test]
fn a_daemon_killed_while_a_version_drains_goes_on_with_both_of_them() -> Result<()> {
    let root = root("plain", &format!("max_concurrent_cycles: 2\n{NO_TRIAL}"));
    let mut daemon = root.start()?;
    let slow = root.add("slow", &["prompt=hello", "once_ms=60000"]);
    root.wait_state(&slow, &["running"])?;
    let next = trusted(&root, "b").display().to_string();
    let view = root.json(&["plugin", "swap", "v", &next, "--cold"]);
    assert_eq!(view["stage"], "drain", "{view}");
    assert_eq!(states(&root), ["active", "draining"]);
    daemon.kill()?;
    let _daemon = root.start()?;
    assert_eq!(serving(&root)["generation"], view["generation"]);
    assert!(run(&root, &[])?.starts_with("b after"));
    // The open cycle is finished by the version that began it, and what it paid is not paid twice.
    let row = root.wait_state(&slow, &["succeeded", "failed", "review"])?;
    assert_once(&row);
    assert!(last_cycle(&row)["summary"].as_str().unwrap().starts_with("plain after"), "{row}");
    let cycles = row["cycles"].as_array().unwrap();
    let paid: u64 = cycles.iter().map(|cycle| cycle["usage"]["llm_calls"].as_u64().unwrap()).sum();
    assert_eq!(paid, 1, "{row}");
    assert_eq!(states(&root), ["active", "retired"]);
    Ok(())
}

#[test]
fn a_daemon_killed_in_the_middle_of_a_roll_back_loses_and_doubles_no_cycle() -> Result<()> {
    let seed = u64::from(std::process::id()) + 1;
    println!("seed {seed}");
    let mut chance = Chance::new(seed);
    for round in 0..5 {
        let root = root("plain", QUICK);
        let mut daemon = root.start()?;
        run(&root, &["prompt=hello"])?;
        let before = serving(&root)["generation"].clone();
        swapped(&root, &trusted(&root, "traps-panic"));
        let id = root.add("work", &["trap=true", "prompt=hello"]);
        // The roll back takes some milliseconds from here on: before, amid and after it.
        std::thread::sleep(std::time::Duration::from_micros(chance.below(40_000) as u64));
        daemon.kill()?;
        let _daemon = root.start()?;
        let row = root.wait_state(&id, &["succeeded", "failed", "review"])?;
        assert_once(&row);
        assert!(last_cycle(&row)["summary"].as_str().unwrap().starts_with("plain after"), "{round}: {row}");
        assert_eq!(serving(&root)["generation"], before, "{round}");
        assert_eq!(states(&root), ["rolled_back", "active"], "{round}");
    }
    Ok(())
}

#[test]
fn cycles_that_outlast_the_drain_are_stopped_then_killed_and_their_mandates_go_on() -> Result<()> {
    let settings = "max_concurrent_cycles: 3\nswap: {canary_cycles: 0, drain_timeout: 1s}";
    let root = with_deadline("plain", settings, "process", "120s");
    let _daemon = root.start()?;
    let polite = root.add("polite", &["once_ms=100000"]);
    let deaf = root.add("deaf", &["deaf_ms=100000"]);
    root.wait_state(&polite, &["running"])?;
    root.wait_state(&deaf, &["running"])?;
    let next = trusted(&root, "b").display().to_string();
    root.json(&["plugin", "swap", "v", &next, "--cold"]);
    for id in [&polite, &deaf] {
        let row = root.wait_state(id, &["succeeded", "failed", "review"])?;
        assert_once(&row);
    }
    wait_states(&root, &["active", "retired"])?;
    let history = root.json(&["plugin", "history", "v"]);
    assert_eq!(history[1]["reason"], "killed after swap.drain_timeout", "{history}");
    assert!(run(&root, &[])?.starts_with("b after"));
    Ok(())
}

#[test]
fn a_trial_without_cycles_is_passed_when_its_time_is_over() -> Result<()> {
    let root = root("plain", "swap: {canary_cycles: 100, canary_time: 1s, drain_timeout: 20s}");
    let _daemon = root.start()?;
    swapped(&root, &trusted(&root, "b"));
    wait_states(&root, &["active", "retired"])?;
    let history = root.json(&["plugin", "history", "v"]);
    let trail = history[1]["trail"].as_array().unwrap();
    assert!(trail.iter().any(|entry| entry["reason"] == "its successor has passed"), "{history}");
    Ok(())
}

#[test]
fn a_canary_that_misses_a_deadline_is_rolled_back_and_its_mandate_succeeds_on_the_old_version() -> Result<()>
{
    let root = with_deadline("plain", QUICK, "process", "5s");
    let _daemon = root.start()?;
    run(&root, &["prompt=hello"])?;
    let before = serving(&root)["generation"].clone();
    swapped(&root, &trusted(&root, "traps-hang"));
    let id = root.add("work", &["trap=true", "prompt=hello"]);
    let row = root.wait_state(&id, &["succeeded", "failed", "review"])?;
    assert_once(&row);
    assert_eq!(row["cycles"][0]["status"], "rolled_back", "{row}");
    assert!(last_cycle(&row)["summary"].as_str().unwrap().starts_with("plain after"));
    assert_eq!(serving(&root)["generation"], before);
    let history = root.json(&["plugin", "history", "v"]);
    assert_eq!(history[0]["reason"], "it missed the deadline of a cycle", "{history}");
    Ok(())
}

/// A file of that content, trusted by it.
fn file(root: &Root, name: &str, bytes: &[u8]) -> PathBuf {
    let path = root.aside().join(format!("{name}.so"));
    fs::write(&path, bytes).unwrap();
    // What is no plugin cannot be trusted, and need not be.
    let _ = root.cli(&["plugin", "trust", &path.display().to_string()]);
    path
}

/// Files that are nothing to swap in, each with the word for it.
fn bad_files(root: &Root) -> Vec<(PathBuf, &'static str)> {
    let stub = || fs::read(plugin("stub")).unwrap();
    let aside = |name: &str| root.aside().join(name);
    fs::create_dir(aside("directory.so")).unwrap();
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, aside("fifo.so"), kind, 0o600.into(), 0).unwrap();
    fs::File::create(aside("sparse.so")).unwrap().set_len(1 << 30).unwrap();
    std::os::unix::fs::symlink("loop.so", aside("loop.so")).unwrap();
    let mut other_machine = stub();
    other_machine[18] ^= 0xff;
    let aborts = patched(stub(), "\"panic\":\"unwind\"", "\"panic\":\"abort\" ");
    let next_major = patched(stub(), "\"api\":\"1.0.0\"", "\"api\":\"2.0.0\"");
    compile("tests/fixtures/faults.c", &["OTHER_MANIFEST"], &aside("other_manifest.so"));
    let lies = fs::read(aside("other_manifest.so")).unwrap();
    // It says that it is one for C, and has nothing that C could call.
    let of_c = patched(stub(), "\"phases\":true", "\"abi\":\"c\"    ");
    let built = |name: &str| fs::read(plugin(name)).unwrap();
    let crashes = hostile_c(root.aside(), "crashes", &["CONSTRUCTOR", "DO_SEGFAULT"]);
    vec![
        (aside("missing.so"), "not_found"),
        (aside("directory.so"), "is_a_directory"),
        (aside("fifo.so"), "is_a_fifo"),
        (aside("sparse.so"), "too_large"),
        (aside("loop.so"), "symlink_loop"),
        (file(root, "empty", b""), "empty"),
        (file(root, "garbage", &[7; 4096]), "not_elf"),
        (file(root, "truncated", &stub()[..5000]), "truncated"),
        (file(root, "other_machine", &other_machine), "wrong_arch"),
        (a_macro(), "no_manifest"),
        (file(root, "aborts", &aborts), "panic_abort"),
        (file(root, "next_major", &next_major), "wrong_major"),
        (file(root, "no_layout", &built("hostile_no_layout")), "no_layout"),
        (file(root, "other_types", &built("hostile_layout")), "layout_mismatch"),
        (file(root, "lies", &lies), "manifest_lies"),
        (file(root, "of_c", &of_c), "not_a_runner"),
        (file(root, "crashes", &fs::read(crashes).unwrap()), "crashed"),
        (version(root.aside(), "b"), "untrusted"),
    ]
}

/// A Rust dylib of another kind: a macro that the compiler loaded.
fn a_macro() -> PathBuf {
    let built = plugin("stub");
    let mut files = fs::read_dir(built.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let is_macro = |path: &PathBuf| {
        path.extension().is_some_and(|end| end == "so") && path.to_string_lossy().contains("libserde_derive-")
    };
    files.find(is_macro).unwrap()
}

#[test]
fn each_bad_file_is_refused_by_its_word_and_listed_while_the_old_version_serves() -> Result<()> {
    let root = root("plain", NO_TRIAL);
    let mut daemon = root.start()?;
    run(&root, &["prompt=hello"])?;
    let before = serving(&root)["generation"].clone();
    let files = bad_files(&root);
    for (file, code) in &files {
        // Some are made of another plugin, which is not what is wrong with them.
        let swap = ["plugin", "swap", "v", &file.display().to_string(), "--other-plugin", "--json"];
        let (found, view) = refusal(&root.cli(&swap));
        assert_eq!(found, *code, "{} {view}", file.display());
        let newest = root.json(&["plugin", "history", "v", "--limit", "1"])[0].clone();
        assert_eq!(
            (&newest["state"], &newest["refused"]["code"], newest["source"].as_str().map(Path::new)),
            (&json!("refused"), &json!(code), Some(file.as_path())),
            "{newest}"
        );
        let readable = fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.len() < 1 << 28);
        assert_eq!(newest["sha256"].is_string(), readable, "{newest}");
        assert!(newest["since"].is_string() && newest["refused"]["stage"].is_string(), "{newest}");
        assert_eq!(serving(&root)["generation"], before);
        assert!(run(&root, &["prompt=hello"])?.starts_with("plain after"), "{code}");
    }
    assert_eq!(states(&root).iter().filter(|state| *state == "refused").count(), files.len());
    // A person reads the file and the word.
    let text = root.cli(&["plugin", "history", "v"]).stdout;
    assert!(text.contains("directory.so") && text.contains("is_a_directory"), "{text}");
    assert_eq!(daemon.stop()?, 0);
    Ok(())
}
