//! The wallet and the runners as reasons to wait: what cannot start stays queued, says why, and
//! goes on when the reason is gone; nothing else is held up by it.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and touch files")]

use std::fs;

use anyhow::Result;
use kairos_tests::{Root, plugin};
use serde_json::{Value, json};

fn state(root: &Root, id: &str) -> Value {
    root.json(&["mandate", "show", id])["state"].clone()
}

#[test]
fn an_exceeded_limit_is_logged_once_and_holds_mandates_until_it_is_raised() -> Result<()> {
    let root = Root::new().daemon_yml("budget: {daily_calls: 3}\nheartbeat: {interval: 0.1}");
    let mut daemon = root.start()?;
    let spender = root.add("spends", &["llm_calls=3"]);
    root.wait_state(&spender, &["succeeded"])?;
    let held = [root.add("held", &[]), root.add("held too", &[])];
    let details = root.wait_logged("daemon_budget_exceeded")?;
    assert_eq!((&details["limit"], &details["calls"]), (&json!(3), &json!(3)), "{details}");
    let budget = root.json(&["budget", "show"]);
    assert_eq!((&budget["exceeded"], &budget["spent"]["calls"]), (&json!(true), &json!(3)));
    let beat = root.beat();
    root.wait_for("beats that say why", || {
        let now = root.beat();
        let said = now["reasons"].as_array()?.iter().any(|reason| reason.to_string().contains("budget"));
        (now["ts"] != beat["ts"] && now["queue_depth"] == 2 && said).then_some(())
    })?;
    assert_eq!(root.json(&["status"])["budget_exceeded"], true);
    for id in &held {
        assert_eq!(state(&root, id), "queued");
    }
    assert_eq!(root.logged("daemon_budget_exceeded").len(), 1);

    root.set_daemon_yml("budget: {daily_calls: 4}");
    assert_eq!(root.json(&["reload"])["reload"]["applied"][0], "budget.daily_calls");
    for id in &held {
        root.wait_state(id, &["succeeded"])?;
    }
    assert_eq!(daemon.stop()?, 0);
    let text = fs::read(root.file("state/budget.json"))?;
    let published: Value = serde_json::from_slice(&text)?;
    assert_eq!((&published["limit"], &published["llm_calls"]), (&json!(4), &json!(3)), "{published}");
    Ok(())
}

#[test]
fn a_spent_budget_survives_a_kill() -> Result<()> {
    let root = Root::new().daemon_yml("budget: {daily_calls: 3}");
    let mut daemon = root.start()?;
    let spender = root.add("spends", &["llm_calls=3"]);
    root.wait_state(&spender, &["succeeded"])?;
    daemon.kill()?;
    let _daemon = root.start()?;
    let held = root.add("held", &[]);
    root.wait_logged("daemon_budget_exceeded")?;
    assert_eq!(state(&root, &held), "queued");
    assert_eq!(root.json(&["mandate", "show", &held])["reason"], "budget");
    assert_eq!(root.json(&["mandate", "list", "--state", "queued"])[0]["reason"], "budget");
    Ok(())
}

#[test]
fn a_missing_or_broken_plugin_holds_only_its_own_mandates_until_it_is_mended() -> Result<()> {
    let root = Root::new();
    let broken = root.file("libbroken.so");
    fs::write(&broken, "no library")?;
    let text = format!(
        "default_runner: stub\nrunners:\n  stub: {{plugin: {:?}, isolation: in_process}}\n  \
         broken: {{plugin: {:?}, isolation: in_process}}\n  gone: {{plugin: ./gone.so, isolation: in_process}}\n",
        plugin("stub").to_str().unwrap(),
        broken.to_str().unwrap()
    );
    root.write("config/daemon.yml", &text);
    let _daemon = root.start()?;
    let add = |runner: &str| -> String {
        root.json(&["mandate", "add", "g", "--runner", runner])["id"].as_str().unwrap().to_owned()
    };
    let (bad, gone) = (add("broken"), add("gone"));
    for (id, word) in [(&bad, "not an ELF file"), (&gone, "gone.so")] {
        root.wait_for("a reason", || {
            let list = root.json(&["mandate", "list", "--state", "queued"]);
            let row = list.as_array()?.iter().find(|row| row["id"] == id.as_str())?.clone();
            row["reason"].as_str().is_some_and(|reason| reason.contains(word)).then_some(())
        })?;
    }
    let list = root.json(&["plugin", "list"]);
    let of = |name: &str| list.as_array().unwrap().iter().find(|row| row["runner"] == name).unwrap().clone();
    assert_eq!((&of("stub")["state"], &of("broken")["state"]), (&json!("active"), &json!("unavailable")));
    assert_eq!(of("broken")["code"], "not_elf");
    assert!(of("gone")["reason"].is_string());
    let good = add("stub");
    root.wait_state(&good, &["succeeded"])?;

    fs::copy(plugin("stub"), root.file("libmended.so"))?;
    fs::rename(root.file("libmended.so"), &broken)?;
    // It lies where anybody may have put it, so somebody has to speak for it.
    root.json(&["plugin", "trust", broken.to_str().unwrap()]);
    root.json(&["reload"]);
    root.wait_state(&bad, &["succeeded"])?;
    assert_eq!(state(&root, &gone), "queued");
    Ok(())
}
