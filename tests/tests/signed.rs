//! Signed plugins under a living daemon: served unconfined while file, signature and key belong
//! together; otherwise refused, each fault under its own code, with what to do about it, wherever a
//! person meets it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the files of a test need not be durable")]

use std::fs;
use std::path::PathBuf;

use kairos_tests::hostile::patched;
use kairos_tests::{Ran, Root, plugin};
use serde_json::{Value, json};

/// A root with a runner `mine` on a signed copy of the stub, and the pairs of keys that it knows.
struct Signed {
    root: Root,
    file: PathBuf,
}

impl Signed {
    /// The runner's isolation as daemon.yml has it, empty for none.
    fn new(isolation: &str) -> Self {
        let root = Root::new().daemon_yml(&format!("  mine: {{plugin: ./libmine.so{isolation}}}"));
        let file = root.path().join("libmine.so");
        let signed = Self { root, file };
        signed.put(&stub());
        for name in ["team", "other"] {
            signed.root.json(&["plugin", "keygen", &signed.keys(name, "")]);
        }
        let public = signed.keys("team", "/kairos-plugin.pub");
        signed.root.json(&["plugin", "trust", "--key", &public, "--name", "team"]);
        signed.sign("team");
        signed
    }

    fn keys(&self, name: &str, file: &str) -> String {
        format!("{}/{name}{file}", self.root.aside().join("keys").display())
    }

    fn put(&self, bytes: &[u8]) {
        let beside = self.root.path().join("new");
        fs::write(&beside, bytes).unwrap();
        fs::rename(beside, &self.file).unwrap();
    }

    fn sign(&self, name: &str) {
        let secret = self.keys(name, "/kairos-plugin.key");
        self.root.json(&["plugin", "sign", self.file.to_str().unwrap(), "--key", &secret]);
    }

    fn signature(&self) -> PathBuf {
        PathBuf::from(format!("{}.sig", self.file.display()))
    }

    fn row(&self) -> Value {
        let list = self.root.json(&["plugin", "list"]);
        list.as_array().unwrap().iter().find(|row| row["runner"] == "mine").unwrap().clone()
    }

    fn check(&self) -> (Ran, Value) {
        let ran = self.root.cli(&["plugin", "check", self.file.to_str().unwrap(), "--json"]);
        let report = serde_json::from_str(&ran.stdout).unwrap();
        (ran, report)
    }

    fn mandate(&self) -> String {
        let added = self.root.json(&["mandate", "add", "be signed", "--runner", "mine"]);
        added["id"].as_str().unwrap().to_owned()
    }

    fn ended(&self, id: &str) -> Value {
        self.root.wait_state(id, &["succeeded", "failed", "review"]).unwrap()
    }
}

fn stub() -> Vec<u8> {
    fs::read(plugin("stub")).unwrap()
}

/// A working runner all the same, of another version.
fn changed() -> Vec<u8> {
    patched(stub(), "\"version\":\"1.0.0\"", "\"version\":\"6.6.6\"")
}

/// What goes wrong, its code, and a word of the message and of the remedy.
type Fault = (&'static str, fn(&Signed), &'static str, &'static str, &'static str);

const FAULTS: [Fault; 7] = [
    (
        "the file was changed",
        |it| it.put(&changed()),
        "signature_mismatch",
        "after \"team\" had signed",
        "anew",
    ),
    (
        "the signature was changed",
        |it| {
            let text = fs::read_to_string(it.signature()).unwrap();
            let digit = if text.starts_with('0') { "1" } else { "0" };
            fs::write(it.signature(), format!("{digit}{}", &text[1..])).unwrap();
        },
        "signature_mismatch",
        "or its .sig was",
        "anew",
    ),
    ("another key signed it", |it| it.sign("other"), "signer_unknown", "which is not trusted", "--key"),
    (
        "the key was taken from the list",
        |it| drop(it.root.json(&["plugin", "trust", "--remove", "team"])),
        "signer_unknown",
        "which is not trusted",
        "--key",
    ),
    (
        "the signature is gone",
        |it| fs::remove_file(it.signature()).unwrap(),
        "untrusted",
        "no signature",
        "kairos plugin trust",
    ),
    (
        "the signature is garbage",
        |it| fs::write(it.signature(), b"-----BEGIN PGP SIGNATURE-----\n\xff\xfe").unwrap(),
        "signature_unreadable",
        "holds no signature",
        "kairos plugin sign",
    ),
    (
        "the list is garbage",
        |it| it.root.write("plugins/trust.json", "{\"schema\": 1, keys"),
        "bad_trust_list",
        "no trust list",
        "trust.json",
    ),
];

#[test]
fn a_signed_plugin_is_served_unconfined_until_something_does_not_belong_together() {
    for (what, spoil, code, said, todo) in FAULTS {
        let it = Signed::new(", isolation: process");
        let mut daemon = it.root.start().unwrap();
        let row = it.row();
        assert_eq!(
            (&row["state"], &row["isolation"]),
            (&json!("active"), &json!("process")),
            "{what}: {row}"
        );
        let id = it.mandate();
        assert_eq!(it.ended(&id)["state"], "succeeded");
        assert_eq!(daemon.stop().unwrap(), 0);

        spoil(&it);
        let mut daemon = it.root.start().unwrap();
        let id = it.mandate();
        // Held, and says why and what to do.
        let reason = it.root.wait_for("a reason", || {
            let shown: Value =
                serde_json::from_str(&it.root.cli(&["mandate", "show", &id, "--json"]).stdout).ok()?;
            assert_eq!((&shown["state"], &shown["cycles"]), (&json!("queued"), &json!([])), "{what}");
            shown["reason"].as_str().map(str::to_owned)
        });
        let reason = reason.unwrap();
        assert!(reason.contains(said) && reason.contains(todo), "{what}: {reason}");
        let row = it.row();
        assert_eq!((&row["state"], &row["code"]), (&json!("unavailable"), &json!(code)), "{what}: {row}");
        assert!(row["reason"].as_str().unwrap().contains(said), "{what}: {row}");
        assert!(row["remedy"].as_str().unwrap().contains(todo), "{what}: {row}");
        let table = it.root.cli(&["plugin", "list"]).stdout;
        assert!(table.contains(row["remedy"].as_str().unwrap()), "{what}: {table}");
        let reasons = it.root.json(&["status"])["reasons"].clone();
        let told: Vec<_> = reasons.as_array().unwrap().iter().map(|why| why.as_str().unwrap()).collect();
        let told: Vec<_> = told.into_iter().filter(|why| why.contains(said) && why.contains(todo)).collect();
        assert_eq!(told.len(), 1, "{what}: {reasons}");
        let logged = it.root.logged("runner_unavailable");
        let logged = &logged.last().unwrap()["details"];
        assert_eq!(logged["code"], code, "{what}: {logged}");
        assert!(logged["remedy"].as_str().unwrap().contains(todo), "{what}: {logged}");
        assert_eq!(daemon.stop().unwrap(), 0);
    }
}

#[test]
fn a_file_that_was_changed_after_it_was_signed_runs_nowhere_and_one_that_nobody_knows_runs_confined() {
    for (what, spoil, code, said, todo) in FAULTS {
        let it = Signed::new("");
        spoil(&it);
        let tampered = code == "signature_mismatch";
        let (ran, report) = it.check();
        assert_eq!(report["loads"], !tampered, "{what}: {report}");
        if tampered {
            // Not even tried.
            assert_eq!((ran.code, &report["tried"]), (1, &Value::Null), "{what}: {report}");
            let error = &report["errors"][0];
            assert_eq!(error["code"], code, "{what}: {report}");
            assert!(error["message"].as_str().unwrap().contains(said), "{what}: {report}");
            assert!(error["remedy"].as_str().unwrap().contains(todo), "{what}: {report}");
            let text = it.root.cli(&["plugin", "check", it.file.to_str().unwrap()]).stdout;
            assert!(text.contains("remedy   ") && text.lines().count() <= 10, "{what}: {text}");
        } else {
            assert_eq!((&report["trusted"], &report["isolation"]), (&json!(false), &json!("sandbox")));
            assert!(report["trust"].as_str().unwrap().contains(said), "{what}: {report}");
        }
        let mut daemon = it.root.start().unwrap();
        let row = it.row();
        if tampered {
            assert_eq!((&row["state"], &row["code"]), (&json!("unavailable"), &json!(code)), "{what}: {row}");
        } else {
            assert_eq!(
                (&row["state"], &row["isolation"]),
                (&json!("active"), &json!("sandbox")),
                "{what}: {row}"
            );
        }
        assert_eq!(daemon.stop().unwrap(), 0);
    }
}

#[test]
fn a_swap_to_a_changed_file_is_refused_with_what_to_do_and_the_signed_one_serves_on() {
    let it = Signed::new(", isolation: process");
    let mut daemon = it.root.start().unwrap();
    let served = it.row()["generation"].clone();
    for (what, spoil, code, said, todo) in FAULTS.into_iter().take(6) {
        it.put(&changed());
        it.sign("team");
        spoil(&it);
        if what == "the file was changed" {
            it.put(&patched(stub(), "\"version\":\"1.0.0\"", "\"version\":\"6.6.7\""));
        }
        for json in [true, false] {
            let mut args = vec!["plugin", "swap", "mine", it.file.to_str().unwrap()];
            args.extend(json.then_some("--json"));
            let ran = it.root.cli(&args);
            assert_ne!(ran.code, 0, "{what}: {}", ran.stdout);
            assert!(ran.stderr.contains(said) || json, "{what}: {}", ran.stderr);
            assert!(ran.stderr.contains("remedy") && ran.stderr.contains(todo), "{what}: {}", ran.stderr);
            assert!(!json || ran.stderr.contains(&format!("\"{code}\"")), "{what}: {}", ran.stderr);
        }
        assert_eq!(it.row()["generation"], served, "{what}");
        // A key that was taken away is given back.
        let public = it.keys("team", "/kairos-plugin.pub");
        it.root.json(&["plugin", "trust", "--key", &public, "--name", "team"]);
    }
    // Signed again, it is taken.
    it.sign("team");
    it.root.json(&["plugin", "swap", "mine", it.file.to_str().unwrap()]);
    assert_ne!(it.row()["generation"], served);
    let id = it.mandate();
    assert_eq!(it.ended(&id)["state"], "succeeded");
    assert_eq!(daemon.stop().unwrap(), 0);
}
