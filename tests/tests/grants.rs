//! Grants that cannot be given: those that no configuration may hold are refused before anything
//! starts; those that only the disk knows to be bad take one runner out, hold its mandates and say
//! what to mend. Nothing that Kairos keeps for itself is reached by any of them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the files of a test need not be durable")]

use std::fs;
use std::os::unix::fs::symlink;

use kairos_tests::hostile::patched;
use kairos_tests::{Root, plugin};
use serde_json::{Value, json};

/// daemon.yml with a confined runner that asks for `in` and `out` and is granted these.
fn granted(read: &str, write: &str) -> String {
    let plugin = json!(plugin("hostile_escape"));
    format!(
        "  escape: {{plugin: {plugin}, isolation: sandbox, grants: {{read: [{read}], write: [{write}]}}}}"
    )
}

fn row(root: &Root) -> Value {
    let list = root.json(&["plugin", "list"]);
    list.as_array().unwrap().iter().find(|row| row["runner"] == "escape").unwrap().clone()
}

fn checked(root: &Root) -> (i32, Vec<Value>) {
    let ran = root.cli(&["config", "check", "--json"]);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    (ran.code, report["problems"].as_array().unwrap().clone())
}

#[test]
fn a_grant_that_no_configuration_may_hold_is_refused_by_the_check_the_start_and_a_reload() {
    let root = Root::new();
    fs::create_dir(root.path().join("in")).unwrap();
    root.set_daemon_yml(&granted("in", ""));
    let mut daemon = root.start().unwrap();
    assert_eq!(row(&root)["state"], "active");
    for (grant, fault) in [
        ("/", "the whole machine"),
        ("../other", "leads outside of the root"),
        ("in/../..", "leads outside of the root"),
        (".", "the whole root"),
        (".kairos", "keeps for itself"),
        (".kairos/state", "keeps for itself"),
        (".kairos/run/attach_token", "keeps for itself"),
        ("./.kairos/run/../run", "leads outside of the root"),
    ] {
        for (read, write, key) in [(grant, "", "read"), ("in", grant, "write")] {
            root.set_daemon_yml(&granted(read, write));
            let (code, problems) = checked(&root);
            assert_eq!(code, 2, "{grant}: {problems:?}");
            let found = problems.iter().find(|problem| problem["message"].as_str().unwrap().contains(fault));
            let found = found.unwrap_or_else(|| panic!("{grant}: {problems:?}"));
            assert_eq!(found["key"], format!("runners.escape.grants.{key}"), "{found}");
            assert!(
                found["line"].as_u64().unwrap() > 0 && found["remedy"].as_str().unwrap().len() > 10,
                "{found}"
            );
        }
        // The daemon that runs keeps what it has; another one does not start.
        let reload = root.cli(&["reload"]);
        assert_eq!(reload.code, 2, "{grant}: {}", reload.stderr);
        assert_eq!(row(&root)["state"], "active", "{grant}");
    }
    assert_eq!(daemon.stop().unwrap(), 0);
    let mut refused = root.spawn(&[]).unwrap();
    assert_eq!(refused.wait().unwrap().code(), Some(2), "{}", refused.stderr());
    assert!(refused.stderr().contains("grants.write"), "{}", refused.stderr());
}

#[test]
fn a_grant_that_the_disk_does_not_hold_takes_one_runner_out_until_it_is_mended() {
    let root = Root::new();
    let at = |name: &str| root.path().join(name);
    fs::create_dir_all(root.file("run")).unwrap();
    fs::write(root.file("run/attach_token"), "secret").unwrap();
    fs::create_dir(at("docs")).unwrap();
    fs::create_dir(at("elsewhere")).unwrap();
    let aside = root.aside().join("aside");
    fs::create_dir(&aside).unwrap();
    type Make<'a> = &'a dyn Fn();
    let cases: [(&str, Make, &str); 5] = [
        ("is not there", &|| (), "No such file"),
        ("leads out of the root", &|| symlink("/etc", at("in")).unwrap(), "leads outside of the root"),
        ("leads to the secrets", &|| symlink(".kairos/run", at("in")).unwrap(), "keeps for itself"),
        (
            "is a link to the token",
            &|| symlink(".kairos/run/attach_token", at("in")).unwrap(),
            "keeps for itself",
        ),
        ("is the root by another name", &|| symlink(".", at("in")).unwrap(), "keeps for itself"),
    ];
    for (what, make, fault) in cases {
        make();
        root.set_daemon_yml(&granted("in", ""));
        let (code, problems) = checked(&root);
        assert_eq!(code, 2, "{what}: {problems:?}");
        let found = problems.iter().find(|problem| problem["key"] == "runners.escape.grants");
        let found = found.unwrap_or_else(|| panic!("{what}: {problems:?}"));
        assert!(found["message"].as_str().unwrap().contains(fault), "{what}: {found}");
        // At the start.
        let mut daemon = root.start().unwrap();
        let added = root.json(&["mandate", "add", "read it", "--runner", "escape"]);
        let id = added["id"].as_str().unwrap();
        let bad = |row: Value| {
            assert_eq!(
                (&row["state"], &row["code"]),
                (&json!("unavailable"), &json!("bad_grant")),
                "{what}: {row}"
            );
            assert!(row["reason"].as_str().unwrap().contains(fault), "{what}: {row}");
            assert!(row["remedy"].as_str().unwrap().contains("grants"), "{what}: {row}");
            assert!(!row.to_string().contains("secret\""), "{row}");
        };
        bad(row(&root));
        let held = root.wait_for("a reason", || {
            let shown: Value =
                serde_json::from_str(&root.cli(&["mandate", "show", id, "--json"]).stdout).ok()?;
            assert_eq!((&shown["state"], &shown["cycles"]), (&json!("queued"), &json!([])), "{what}");
            shown["reason"].as_str().map(str::to_owned)
        });
        assert!(held.unwrap().contains(fault), "{what}");
        let beside = root.add("serve on", &[]);
        assert_eq!(root.wait_state(&beside, &["succeeded", "failed"]).unwrap()["state"], "succeeded");
        // Mended, by a reload; spoilt again, by another.
        root.set_daemon_yml(&granted("docs", ""));
        root.json(&["mandate", "stop", id]);
        root.json(&["reload"]);
        assert_eq!(row(&root)["state"], "active", "{what}");
        root.set_daemon_yml(&granted("in", ""));
        assert_eq!(root.cli(&["reload"]).code, 1, "it is out of service");
        bad(row(&root));
        assert_eq!(daemon.stop().unwrap(), 0);
        let _ = fs::remove_file(at("in"));
    }
}

#[test]
fn a_link_inside_a_grant_leads_a_runner_nowhere_else() {
    let root = Root::new();
    let at = |name: &str| root.path().join(name);
    for name in ["in", "out", "secret", "log"] {
        fs::create_dir(at(name)).unwrap();
    }
    // The plugin asks for `in` and `out`; what is granted are links in them, or what holds them.
    let list = |read: &str, write: &str| {
        let more = granted(read, write);
        root.set_daemon_yml(&format!("{more}\nwal: {{dir: log}}"));
        checked(&root)
    };
    assert_eq!(list("in", "out").0, 0);
    let manifest = fs::read(plugin("hostile_escape")).unwrap();
    let aside = root.aside().join("libhostile_escape.so");
    fs::write(&aside, patched(manifest, "\"write:out\"", "\"write:o/x\"")).unwrap();
    let escape = |write: &str| {
        let plugin = json!(aside);
        root.set_daemon_yml(&format!(
            "  escape: {{plugin: {plugin}, isolation: sandbox, grants: {{write: [{write}]}}}}\nwal: {{dir: log}}"
        ));
        checked(&root)
    };
    fs::create_dir(at("o")).unwrap();
    for (to, fault) in [
        ("../secret", "leads out of that place"),
        ("../log", "keeps for itself"),
        ("../.kairos", "keeps for itself"),
        ("/etc", "leads outside of the root"),
    ] {
        symlink(to, at("o/x")).unwrap();
        let (code, problems) = escape("o");
        assert_eq!(code, 2, "{to}: {problems:?}");
        assert!(json!(problems).to_string().contains(fault), "{to}: {problems:?}");
        fs::remove_file(at("o/x")).unwrap();
    }
    fs::create_dir(at("o/y")).unwrap();
    symlink("y", at("o/x")).unwrap();
    assert_eq!(escape("o"), (0, vec![]));
}
