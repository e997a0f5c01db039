//! What is trusted and what is not. The files here need not be plugins: trust is about bytes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "tests lay out plain files")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use kairos_plugin_api::manifest::{Facts, Manifest};
use sha2::{Digest as _, Sha256};

use super::list::{ListError, TrustedKey, TrustedPlugin};
use super::*;
use crate::sys::entropy::SeededEntropy;

struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for below in ["bin/deps", "elsewhere"] {
            fs::create_dir_all(dir.path().join(below)).unwrap();
        }
        Self(dir)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    fn list(&self) -> PathBuf {
        self.path(".kairos/plugins/trust.json")
    }

    fn policy(&self) -> TrustPolicy {
        let search = SearchPath::new(self.0.path(), Some(&self.path("bin")), None);
        TrustPolicy::new(self.list(), &search)
    }

    fn file(&self, below: &str, content: &[u8]) -> PluginFile {
        fs::write(self.path(below), content).unwrap();
        fs::set_permissions(self.path(below), fs::Permissions::from_mode(0o755)).unwrap();
        self.plugin(below, content)
    }

    fn plugin(&self, below: &str, content: &[u8]) -> PluginFile {
        PluginFile {
            bytes: content.to_vec(),
            sha256: hex::encode(Sha256::digest(content)),
            manifest: manifest(),
            origin: Some(self.path(below)),
            kept: Credentials::default(),
        }
    }

    fn write_list(&self, text: &str) {
        fs::create_dir_all(self.list().parent().unwrap()).unwrap();
        fs::write(self.list(), text).unwrap();
        fs::set_permissions(self.list(), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

fn manifest() -> Manifest {
    const FACTS: Facts = Facts::new("a", "1.0.0", "unwind");
    static BYTES: [u8; FACTS.json_len()] = FACTS.json();
    serde_json::from_slice(&BYTES).unwrap()
}

fn entry(plugin: &PluginFile) -> TrustedPlugin {
    TrustedPlugin {
        sha256: plugin.sha256.clone(),
        name: "a".to_owned(),
        version: "1.0.0".to_owned(),
        added_at: chrono::DateTime::from_timestamp(1_795_000_000, 0).unwrap(),
        note: None,
    }
}

#[test]
fn what_came_with_the_executable_is_trusted_and_what_lies_elsewhere_is_not() {
    let root = Root::new();
    let policy = root.policy();
    for place in ["bin/liba.so", "bin/deps/liba.so"] {
        assert_eq!(policy.judge(&root.file(place, b"a")), Trust::Place(Place::Executable), "{place}");
    }
    fs::create_dir(root.path("bin/deeper")).unwrap();
    for place in ["elsewhere/liba.so", "bin/deeper/liba.so"] {
        assert!(!policy.judge(&root.file(place, b"a")).holds(), "{place}");
    }
    // A link beside the executable is as good as where it leads.
    std::os::unix::fs::symlink(root.path("elsewhere/liba.so"), root.path("bin/libl.so")).unwrap();
    assert!(!policy.judge(&root.plugin("bin/libl.so", b"a")).holds());
    // What everybody may write is nobody's.
    let open = root.file("bin/libopen.so", b"a");
    fs::set_permissions(root.path("bin/libopen.so"), fs::Permissions::from_mode(0o757)).unwrap();
    assert!(!policy.judge(&open).holds());
}

#[test]
fn a_path_that_was_turned_to_a_trusted_file_vouches_for_no_other_bytes() {
    let root = Root::new();
    root.file("bin/liba.so", b"good");
    std::os::unix::fs::symlink(root.path("bin/liba.so"), root.path("elsewhere/libl.so")).unwrap();
    assert!(root.policy().judge(&root.plugin("elsewhere/libl.so", b"good")).holds());
    assert!(!root.policy().judge(&root.plugin("elsewhere/libl.so", b"evil")).holds());
}

#[test]
fn a_listed_file_is_trusted_from_the_next_look_on_and_a_changed_one_is_not() {
    let root = Root::new();
    let policy = root.policy();
    let plugin = root.file("elsewhere/liba.so", b"a");
    assert!(!policy.judge(&plugin).holds());
    TrustList::change(&root.list(), |list| list.plugins.push(entry(&plugin))).unwrap();
    assert_eq!(root.list().metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(policy.judge(&plugin), Trust::Listed);
    assert!(!policy.judge(&root.file("elsewhere/liba.so", b"b")).holds());
    TrustList::change(&root.list(), |list| list.plugins.clear()).unwrap();
    assert!(!policy.judge(&plugin).holds());
}

#[test]
fn a_signature_counts_while_its_key_is_trusted() {
    let root = Root::new();
    let policy = root.policy();
    let plugin = root.file("elsewhere/liba.so", b"a");
    let key = keys::generate(&SeededEntropy::new(9));
    fs::write(keys::signature_file(&root.path("elsewhere/liba.so")), keys::sign(&key, b"a")).unwrap();
    assert!(!policy.judge(&plugin).holds());
    let trusted = TrustedKey {
        key: keys::public_text(&key.verifying_key()),
        name: "team".to_owned(),
        added_at: entry(&plugin).added_at,
    };
    TrustList::change(&root.list(), |list| list.keys.push(trusted)).unwrap();
    assert_eq!(policy.judge(&plugin), Trust::Signed { by: "team".to_owned() });
    assert!(!policy.judge(&root.file("elsewhere/liba.so", b"b")).holds(), "another file");
    // As it was kept, with its signature, while the file itself is gone.
    let kept = PluginFile { origin: None, kept: policy.credentials(&plugin), ..plugin };
    assert!(policy.judge(&kept).holds());
    TrustList::change(&root.list(), |list| list.keys.clear()).unwrap();
    assert!(!policy.judge(&kept).holds());
}

#[test]
fn a_list_that_is_garbage_or_open_to_others_trusts_nothing_and_is_never_overwritten() {
    let root = Root::new();
    let plugin = root.file("elsewhere/liba.so", b"a");
    let good = serde_json::json!({"schema": 1, "plugins": [entry(&plugin)]}).to_string();
    root.write_list(&good);
    assert!(root.policy().judge(&plugin).holds(), "the negative control");
    let schema = good.replace("\"schema\":1", "\"schema\":2");
    let unknown = good.replace("\"schema\":1", "\"schema\":1,\"all\":true");
    let short = good.replace(&plugin.sha256, "abc");
    let key = r#"{"schema":1,"keys":[{"key":"00","name":"k","added_at":"2026-01-01T00:00:00Z"}]}"#;
    for text in ["", "{", "[]", "null", "\u{feff}{}", &good[..good.len() / 2], &schema, &unknown, &short, key]
    {
        root.write_list(text);
        assert!(matches!(TrustList::read(&root.list()), Err(ListError::Garbage { .. })), "{text}");
        assert!(!root.policy().judge(&plugin).holds(), "{text}");
        TrustList::change(&root.list(), |list| list.plugins.clear()).unwrap_err();
        assert_eq!(fs::read_to_string(root.list()).unwrap(), text);
    }
    root.write_list(&good);
    fs::set_permissions(root.list(), fs::Permissions::from_mode(0o620)).unwrap();
    let Trust::Untrusted { why } = root.policy().judge(&plugin) else { panic!("it trusts") };
    assert!(why.to_string().contains("can be written by others"), "{why}");
    assert_eq!(why.code(), "trust_list_open");
    fs::remove_file(root.list()).unwrap();
    fs::create_dir(root.list()).unwrap();
    assert!(!root.policy().judge(&plugin).holds());
}
