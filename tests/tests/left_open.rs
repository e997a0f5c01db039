//! What whoever started the daemon left open reaches no program that the daemon starts, not even one
//! that is not confined.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and touch files")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kairos_tests::{Root, plugin};
use serde_json::json;

#[test]
fn an_unconfined_agent_gets_nothing_that_was_left_open_to_the_daemon() {
    let aside = tempfile::tempdir().unwrap();
    let at = |name: &str| aside.path().join(name).display().to_string();
    fs::write(at("secret"), "secret").unwrap();
    fs::write(at("agent"), format!("#!/bin/sh\ncat <&9 >{0}\necho after >>{0}\n", at("said"))).unwrap();
    fs::set_permissions(at("agent"), fs::Permissions::from_mode(0o755)).unwrap();
    // The shell that starts everything on this root forgets a descriptor.
    let root =
        Root::new().by(Path::new("/bin/sh"), &["-c", "exec 9<\"$0\" && shift && exec \"$@\"", &at("secret")]);
    root.write(
        "config/daemon.yml",
        &format!(
            "default_runner: agent\nrunners:\n  agent: {{plugin: {}, params: {{command: forgets}}}}\ncommands:\n  \
             forgets: {{argv: [{}], cwd: {}, sandbox: off}}\n",
            json!(plugin("command")),
            json!(at("agent")),
            json!(aside.path()),
        ),
    );
    let mut daemon = root.start().unwrap();
    let id = root.add("read it", &[]);
    root.wait_state(&id, &["succeeded", "failed", "review"]).unwrap();
    assert_eq!(fs::read_to_string(at("said")).unwrap(), "after\n");
    assert_eq!(daemon.stop().unwrap(), 0);
}
