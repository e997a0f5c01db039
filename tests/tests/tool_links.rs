//! Links and the programs that agents run: a link that a program makes where it may change things leads
//! nobody anywhere else, neither itself nor the next program nor the daemon's own file tools, in the same
//! call or a later one, before a restart or after it.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and touch files")]

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::Result;
use kairos_tests::office::{Office, last_cycle};
use kairos_tests::{Root, plugin};
use serde_json::{Value, json};

/// Makes links in its place, to all sorts of secrets, and tries to read and to write by each.
const LINKS: &str = r#"try() { if "$@" 2>/dev/null; then echo "$* yes" >>seen; else echo "$* no" >>seen; fi; }
    reads() { [ -n "$(cat "$1")" ]; }; writes() { echo x >>"$1"; }
    for name in own file direct secret rebuilt; do rm -rf $name; done
    ln -s ../.kairos own; ln -s ../.kairos/config/daemon.yml file; ln -s ../secret secret
    mkdir rebuilt; mv rebuilt away; ln -s ../secret rebuilt
    for file in own/config/daemon.yml file secret/key rebuilt/key; do try reads $file; try writes $file; done
    try reads inside/ok; try writes inside/ok"#;

#[test]
fn a_link_that_a_program_makes_leads_neither_it_nor_the_next_call_nor_the_daemons_own_tools_out() -> Result<()>
{
    // Its place lies in the root, where the daemon's own tools reach it as well.
    let root = Root::named("root");
    let place = root.path().join("place");
    let secret = root.path().join("secret");
    for dir in [place.join("inside"), secret.clone()] {
        fs::create_dir_all(dir)?;
    }
    fs::write(place.join("inside/ok"), "mine")?;
    fs::write(secret.join("key"), "open sesame")?;
    let script = format!("cd \"$ROOT/place\"\n{LINKS}");
    let more = format!("env: {{ROOT: {:?}}}\nread: [place]", root.path());
    let office = Office::within(root, &script, &more.replace("read: [place]", ""), "");
    let configured = fs::read_to_string(office.root.file("config/daemon.yml"))?;
    let work = format!("write: [{:?}]", office.dir.join("work"));
    assert!(configured.contains(&work));
    office.root.write("config/daemon.yml", &configured.replace(&work, "write: [place]"));
    let mut daemon = office.root.start()?;
    for call in ["the first", "a later one"] {
        let id = office.root.add("make links", &[]);
        let shown = office.end(&id)?;
        assert_eq!(shown["state"], "succeeded", "{shown}");
        let seen = fs::read_to_string(place.join("seen"))?;
        let yes: Vec<&str> = seen.lines().filter(|line| line.ends_with(" yes")).collect();
        assert_eq!(yes, ["reads inside/ok yes", "writes inside/ok yes"], "{call}: {seen}");
        assert_eq!(seen.lines().count(), 10, "{seen}");
        fs::remove_file(place.join("seen"))?;
    }
    // What it made lies there still, and the daemon itself follows none of it out of the root or into
    // what is its own; within the root a link is the file that it names.
    let call = |name: &str, args: Value| {
        let call = format!("tool={}", json!({"name": name, "args": args}));
        let added = office.root.json(&["mandate", "add", "by link", "--runner", "stub", "--param", &call]);
        let shown = office.end(added["id"].as_str().unwrap()).unwrap();
        (shown["state"] == "succeeded", shown.to_string())
    };
    for path in ["place/own/config/daemon.yml", "place/file", "place/own/run/attach_token"] {
        let edit = json!({"path": path, "old": "runners", "new": "x", "replace_all": true});
        for (tool, args) in [("fs.read", json!({ "path": path })), ("fs.edit", edit)] {
            let (done, shown) = call(tool, args);
            assert!(!done && shown.contains("protected"), "{tool} {path}: {shown}");
        }
    }
    symlink("/etc/passwd", place.join("passwd"))?;
    let (done, shown) = call("fs.read", json!({"path": "place/passwd"}));
    assert!(!done && !shown.contains("root:x"), "{shown}");
    assert!(call("fs.read", json!({"path": "place/inside/ok"})).0);
    assert_eq!(fs::read_to_string(secret.join("key"))?, "open sesame");
    assert_eq!(daemon.stop()?, 0);
    Ok(())
}

#[test]
fn a_grant_that_a_program_replaced_by_a_link_is_given_to_nobody_any_more() -> Result<()> {
    // It may change what is around its grant; an operator granted both.
    let script = r#"if [ -e "$PLACE/sub/key" ]; then cat "$PLACE/sub/key" >"$PLACE/stolen"; fi
        if [ ! -L "$PLACE/sub" ]; then mv "$PLACE/sub" "$PLACE/away"; ln -s "$SECRET" "$PLACE/sub"; fi"#;
    let root = Root::named("root");
    let (place, secret) = (root.aside().join("work"), root.aside().join("secret"));
    fs::create_dir_all(place.join("sub"))?;
    fs::create_dir(&secret)?;
    fs::write(secret.join("key"), "open sesame")?;
    let more = format!(
        "env: {{PLACE: {place:?}, SECRET: {secret:?}}}\nread: [{:?}]\nretry: safe",
        place.join("sub")
    );
    let office = Office::within(root, script, &more, "");
    let mut daemon = office.root.start()?;
    let first = office.root.add("make the link", &[]);
    assert_eq!(office.end(&first)?["state"], "succeeded");
    assert!(place.join("sub").is_symlink());
    let held = |office: &Office, says: &str| -> Result<()> {
        let id = office.root.add("use the link", &[]);
        let reason = office.root.wait_for("a reason", || {
            let shown = office.root.json(&["mandate", "show", &id]);
            assert_eq!((&shown["state"], last_cycle(&shown)), (&json!("queued"), &Value::Null), "{shown}");
            shown["reason"].as_str().map(str::to_owned)
        })?;
        assert!(reason.contains(says), "{reason}");
        office.root.json(&["mandate", "stop", &id]);
        Ok(())
    };
    held(&office, "there is a link now")?;
    // Nor after another look at the configuration, by a reload or a restart.
    assert_eq!(office.root.cli(&["reload"]).code, 0);
    held(&office, "leads out of that place")?;
    assert_eq!(daemon.stop()?, 0);
    let mut daemon = office.root.start()?;
    held(&office, "leads out of that place")?;
    assert!(!place.join("stolen").exists());
    // A link of the operator's own, where nobody else makes any, is followed and granted.
    fs::remove_file(place.join("sub"))?;
    symlink(&secret, office.dir.join("named"))?;
    let named = office.dir.join("named");
    office.configure(
        &format!("{}\n", more.replace(&format!("{:?}", place.join("sub")), &format!("{named:?}"))),
        "",
    );
    assert_eq!(office.root.cli(&["reload"]).code, 0);
    fs::create_dir(place.join("sub"))?;
    fs::write(office.dir.join("agent"), "#!/bin/bash\ncat \"$SECRET/key\" >\"$PLACE/read\"\n")?;
    let id = office.root.add("read it", &[]);
    assert_eq!(office.end(&id)?["state"], "succeeded");
    assert_eq!(fs::read_to_string(place.join("read"))?, "open sesame");
    assert_eq!(daemon.stop()?, 0);
    Ok(())
}

#[test]
fn the_log_of_the_daemon_is_granted_to_no_command_and_edited_by_no_tool_wherever_it_lies() -> Result<()> {
    let root = Root::named("root");
    fs::create_dir_all(root.path().join("log/wal"))?;
    let outside = root.aside().join("outside");
    fs::create_dir(&outside)?;
    let stub = plugin("stub");
    for (dir, grant) in [
        (json!("log/wal"), json!(root.path().join("log"))),
        (json!("log/wal"), json!("log/wal")),
        (json!(outside), json!(outside)),
        (json!(outside), json!(root.aside())),
    ] {
        for key in ["read", "write"] {
            let more = format!(
                "  agent: {{plugin: {:?}, params: {{command: fake}}}}\nwal: {{dir: {dir}}}\ncommands:\n  \
                 fake: {{argv: [/bin/true], {key}: [{grant}]}}",
                plugin("command").display().to_string()
            );
            root.set_daemon_yml(&more);
            let ran = root.cli(&["config", "check", "--json"]);
            let report: Value = serde_json::from_str(&ran.stdout)?;
            let found = report["problems"]
                .as_array()
                .unwrap()
                .iter()
                .find(|problem| problem["key"] == format!("commands.fake.{key}"));
            let found = found.unwrap_or_else(|| panic!("{key} {grant} {dir}: {report}"));
            assert!(found["message"].as_str().unwrap().contains("or log"), "{found}");
        }
    }
    root.set_daemon_yml(&format!(
        "  other: {{plugin: {:?}}}\nwal: {{dir: log/wal}}",
        stub.display().to_string()
    ));
    fs::write(root.path().join("log/plain.txt"), "a line")?;
    let mut daemon = root.start()?;
    let call = |path: &str| {
        let args = json!({"path": path, "old": "", "new": "made up"});
        let call = format!("tool={}", json!({"name": "fs.edit", "args": args}));
        let id = root.add("write into the log", &[&call]);
        root.wait_state(&id, &["succeeded", "failed", "review", "denied"]).unwrap()
    };
    let shown = call("log/wal/made-up.wal.jsonl");
    assert!(shown["state"] != "succeeded" && shown.to_string().contains("log/wal is protected"), "{shown}");
    assert!(!root.path().join("log/wal/made-up.wal.jsonl").exists());
    assert_eq!(call("log/beside.txt")["state"], "succeeded");
    assert_eq!(daemon.stop()?, 0);
    Ok(())
}
