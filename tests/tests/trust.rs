//! Trusting plugins from the command line: by content, by signature, and what fails closed.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the files of a test need not be durable")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use kairos_tests::{Root, plugin};
use serde_json::{Value, json};

/// A copy of the stub where nothing vouches for it.
fn stray(root: &Root) -> PathBuf {
    let path = root.path().join("libmine.so");
    fs::copy(plugin("stub"), &path).unwrap();
    path
}

fn error_of(root: &Root, args: &[&str]) -> (i32, Value) {
    let ran = root.cli(&[args, &["--json"]].concat());
    assert_eq!(ran.stdout, "", "{args:?}");
    (ran.code, serde_json::from_str::<Value>(&ran.stderr).unwrap()["error"].clone())
}

#[test]
fn a_plugin_is_put_on_the_list_shown_and_taken_off() {
    let root = Root::new();
    let file = stray(&root);
    let file = file.to_str().unwrap();
    let added = root.json(&["plugin", "trust", file, "--note", "looked at it"]);
    let sha256 = added["trusted"]["sha256"].as_str().unwrap().to_owned();
    assert_eq!(added["trusted"]["name"], "stub");
    let mode = root.file("plugins/trust.json").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let listed = root.json(&["plugin", "trust", "--list"]);
    assert_eq!(listed["plugins"][0]["sha256"], json!(sha256));
    assert_eq!(listed["plugins"][0]["note"], "looked at it");
    // A second time changes the entry and adds none.
    root.json(&["plugin", "trust", file]);
    assert_eq!(root.json(&["plugin", "trust", "--list"])["plugins"].as_array().unwrap().len(), 1);
    let shown = root.cli(&["plugin", "trust", "--list"]);
    assert!(shown.stdout.contains(&sha256), "{}", shown.stdout);
    let removed = root.json(&["plugin", "trust", "--remove", file]);
    assert_eq!(removed, json!({"removed": {"plugins": 1, "keys": 0}}));
    let (exit, error) = error_of(&root, &["plugin", "trust", "--remove", &sha256]);
    assert_eq!((exit, &error["code"]), (3, &json!("not_found")));
}

#[test]
fn what_is_no_plugin_or_no_use_of_the_command_is_refused() {
    let root = Root::new();
    root.write("../text.so", "hello");
    let text = root.path().join("text.so");
    let (exit, error) = error_of(&root, &["plugin", "trust", text.to_str().unwrap()]);
    assert_eq!((exit, &error["code"]), (1, &json!("not_elf")));
    for args in
        [&["plugin", "trust"][..], &["plugin", "trust", "--key", "00"], &["plugin", "trust", "--list", "x"]]
    {
        assert_eq!(error_of(&root, args).0, 2, "{args:?}");
    }
    assert!(!root.file("plugins/trust.json").exists());
}

#[test]
fn a_team_signs_with_its_key_and_the_secret_stays_in_its_file() {
    let root = Root::new();
    let file = stray(&root);
    let file = file.to_str().unwrap();
    let keys = root.aside().join("keys");
    let made = root.json(&["plugin", "keygen", keys.to_str().unwrap()]);
    let secret_file = made["secret_file"].as_str().unwrap();
    let secret = fs::read_to_string(secret_file).unwrap();
    let hex = secret.trim().rsplit(':').next().unwrap();
    assert_eq!(fs::metadata(secret_file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!made.to_string().contains(hex));
    let (exit, error) = error_of(&root, &["plugin", "keygen", keys.to_str().unwrap()]);
    assert_eq!((exit, &error["code"]), (5, &json!("key_exists")));
    assert_eq!(fs::read_to_string(secret_file).unwrap(), secret);

    let signed = root.cli(&["plugin", "sign", file, "--key", secret_file]);
    assert_eq!(signed.code, 0, "{}", signed.stderr);
    assert!(!format!("{}{}", signed.stdout, signed.stderr).contains(hex));
    assert!(fs::metadata(format!("{file}.sig")).is_ok());

    // The public half is trusted from its file; the secret half, in its place, is neither taken nor repeated.
    let (exit, error) = error_of(&root, &["plugin", "trust", "--key", secret_file, "--name", "team"]);
    assert_eq!((exit, &error["code"]), (2, &json!("bad_key")));
    assert!(!error.to_string().contains(hex));
    let public_file = made["public_file"].as_str().unwrap();
    root.json(&["plugin", "trust", "--key", public_file, "--name", "team"]);
    let listed = root.json(&["plugin", "trust", "--list"]);
    assert_eq!(
        (&listed["keys"][0]["name"], &listed["keys"][0]["key"]),
        (&json!("team"), &made["public_key"])
    );
    let other = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let (exit, error) = error_of(&root, &["plugin", "trust", "--key", other, "--name", "team"]);
    assert_eq!((exit, &error["code"]), (5, &json!("name_taken")));
    assert_eq!(root.json(&["plugin", "trust", "--remove", "team"])["removed"]["keys"], 1);

    fs::set_permissions(secret_file, fs::Permissions::from_mode(0o640)).unwrap();
    let (exit, error) = error_of(&root, &["plugin", "sign", file, "--key", secret_file]);
    assert_eq!((exit, &error["code"]), (2, &json!("key_open")));
}

#[test]
fn a_list_that_is_garbage_is_reported_by_every_command_and_never_overwritten() {
    let root = Root::new();
    let file = stray(&root);
    let list = root.file("plugins/trust.json");
    root.write("plugins/trust.json", "{\"schema\": 1, plugins");
    fs::set_permissions(&list, fs::Permissions::from_mode(0o600)).unwrap();
    for args in [
        &["plugin", "trust", "--list"][..],
        &["plugin", "trust", file.to_str().unwrap()],
        &["plugin", "trust", "--remove", "team"],
    ] {
        let (exit, error) = error_of(&root, args);
        assert_eq!((exit, &error["code"]), (1, &json!("bad_trust_list")), "{args:?}");
        assert!(error["message"].as_str().unwrap().contains("line 1"), "{error}");
    }
    assert_eq!(fs::read_to_string(&list).unwrap(), "{\"schema\": 1, plugins");
    let looked = root.cli(&["doctor", "--json"]);
    let checks: Value = serde_json::from_str(&looked.stdout).unwrap();
    let trust = checks["checks"].as_array().unwrap().iter().find(|check| check["name"] == "trust").unwrap();
    assert_eq!(trust["verdict"], "fail");
}
