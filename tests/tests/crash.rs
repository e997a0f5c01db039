//! A real daemon under load, killed at random moments and started again. Afterwards every
//! promise is audited from the outside. `KAIROS_KILLS` sets how often (200), `KAIROS_SEED` which moments.
#![allow(clippy::disallowed_methods, reason = "a test reads its environment and the real clock")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kairos_host::sys::entropy::{Entropy, SeededEntropy, SystemEntropy};
use kairos_tests::audit::{Expected, audit};
use kairos_tests::{Daemon, Root};
use rusqlite::Connection;
use serde_json::{Value, json};

const SCHEDULES: &str = r#"
schedules:
  - {name: claims, cron: "* * * * * *", missed_policy: catch_up_bounded, max_catch_up_runs: 3,
     mandate: {goal: claims, params: {phases: true, llm_calls: 2, input_tokens: 10, output_tokens: 3}}}
  - {name: calls, cron: "* * * * * *", missed_policy: catch_up_once,
     mandate: {goal: calls, params: {phases: true, prompt: "say something"}}}
  - {name: chain, cron: "*/2 * * * * *", mandate: {goal: chain, max_cycles: 3, params: {more: true, llm_calls: 1}}}
  - {name: slow, cron: "*/3 * * * * *", concurrency: queue_one,
     mandate: {goal: slow, params: {sleep_ms: 60, llm_calls: 1}}}
"#;

const LLM: &str = "
max_concurrent_cycles: 4
chronos: {max_catch_up_per_minute: 60000}
budget: {daily_calls: 100000000}
llm:
  default: canned
  providers: {canned: {kind: scripted, file: .kairos/config/replies.yml, max_tokens: 50}}
";

const REPLIES: &str = "{cycle: true, replies: [{text: hello, usage: {input_tokens: 7, output_tokens: 2}}]}";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seed() -> u64 {
    let mut bytes = [0; 8];
    SystemEntropy.fill(&mut bytes);
    number("KAIROS_SEED").unwrap_or(u64::from_le_bytes(bytes))
}

fn expected() -> Expected {
    let usage = |list: &[(&str, (i64, i64, i64))]| -> BTreeMap<String, (i64, i64, i64)> {
        list.iter().map(|(goal, usage)| ((*goal).to_owned(), *usage)).collect()
    };
    let numbers = |list: &[(&str, i64)]| -> BTreeMap<String, i64> {
        list.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
    };
    Expected {
        exact: usage(&[
            ("claims", (2, 10, 3)),
            ("chain", (3, 0, 0)),
            ("slow", (1, 0, 0)),
            ("by hand", (1, 0, 0)),
        ]),
        at_least: usage(&[("calls", (1, 7, 2))]),
        cycles: numbers(&[("chain", 3)]),
        periods: numbers(&[("claims", 1), ("calls", 1), ("chain", 2), ("slow", 3)]),
        ..Expected::default()
    }
}

/// Asks for a mandate over the daemon's socket; none when it died before it answered.
fn ask(root: &Root, request: &str) -> Option<String> {
    let body = json!({"goal": "by hand", "request_id": request, "params": {"llm_calls": 1}}).to_string();
    let mut stream = UnixStream::connect(root.file("run/kairos.sock")).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let head = format!(
        "POST /v1/mandates HTTP/1.1\r\nhost: kairos\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let value: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1)?).ok()?;
    value["id"].as_str().map(str::to_owned)
}

fn running(root: &Root) -> Vec<String> {
    let list = root.json(&["mandate", "list", "--state", "running"]);
    list.as_array().into_iter().flatten().filter_map(|row| row["id"].as_str().map(str::to_owned)).collect()
}

/// Lets the daemon live for a random while, with requests by hand, then kills it. Every fifth life
/// lasts until what it found running has ended, or a slow machine would run it in twenty lives that
/// all died, which sends it to a person.
fn live_and_die(root: &Root, chance: &SeededEntropy, round: u64, expected: &mut Expected) -> Result<()> {
    let mut daemon: Daemon = root.spawn(&[])?;
    let patient = round % 5 == 4;
    // Some die while they boot.
    if !chance.next_u64().is_multiple_of(5) || patient {
        daemon.wait_ready().with_context(|| format!("round {round}"))?;
    }
    if patient {
        let open = running(root);
        root.wait_for("the end of what was running", || {
            let still = running(root);
            open.iter().all(|id| !still.contains(id)).then_some(())
        })?;
    }
    let until = Instant::now() + Duration::from_micros(chance.next_u64() % 120_000);
    let mut asked = 0;
    while Instant::now() < until {
        // A request whose answer was lost is asked again in a later round; it makes no second mandate.
        let request = format!("r{}", (round * 7 + asked) % 400);
        if let Some(id) = ask(root, &request) {
            expected.acknowledged.insert(id);
        }
        asked += 1;
        std::thread::sleep(Duration::from_micros(chance.next_u64() % 8_000));
    }
    daemon.kill()
}

/// No schedules any more: what is queued and open comes to its end. Gives the exit code.
fn settle(root: &Root) -> Result<i32> {
    root.write("config/schedules.yml", "schedules: []\n");
    let mut daemon = root.start()?;
    root.wait_for("every mandate's end", || {
        let list = root.cli(&["mandate", "list", "--json", "--state", "queued,running,paused_budget"]);
        (list.code == 0 && list.stdout.trim() == "[]").then_some(())
    })?;
    daemon.stop()
}

fn root() -> Root {
    let root = Root::new().daemon_yml(LLM).schedules_yml(SCHEDULES);
    root.write("config/replies.yml", REPLIES);
    root
}

#[test]
fn killed_at_random_moments_nothing_is_lost_or_counted_twice() -> Result<()> {
    let (seed, kills) = (seed(), number("KAIROS_KILLS").unwrap_or(200));
    println!("seed {seed}, {kills} kills");
    let chance = SeededEntropy::new(seed);
    let root = root();
    let mut expected = expected();
    for round in 0..kills {
        live_and_die(&root, &chance, round, &mut expected)?;
    }
    assert_eq!(settle(&root)?, 0);
    let found = audit(&root.file(""), &expected)?;
    assert!(found.is_empty(), "seed {seed}: {} faults:\n{}", found.len(), found.join("\n"));
    let verified = root.json(&["wal", "verify"]);
    assert_eq!(verified["fine"], true, "seed {seed}: {verified}");
    let db = Connection::open(root.file("state/store.db"))?;
    let made: i64 = db.query_row("SELECT count(*) FROM mandate", [], |row| row.get(0))?;
    let again: i64 = db.query_row("SELECT count(*) FROM cycle WHERE attempt > 1", [], |row| row.get(0))?;
    println!(
        "{made} mandates, {} acknowledged by hand, {again} attempts after a kill",
        expected.acknowledged.len()
    );
    assert!(
        made > i64::try_from(kills / 4)? && !expected.acknowledged.is_empty(),
        "the load was no load: {made} mandates"
    );
    Ok(())
}

/// The control: a store that forgets acknowledged commits, as one without syncs does in a power
/// cut, must be flagged. Without this the test above could be blind.
#[test]
fn a_store_that_forgets_commits_is_flagged() -> Result<()> {
    let root = root();
    let mut expected = expected();
    // Ready, so that there is a store to fall back to: without one the daemon refuses to start.
    let mut daemon = root.start()?;
    expected.acknowledged.extend(ask(&root, "kept"));
    daemon.kill()?;
    let keep = tempfile::tempdir()?;
    let files = ["state/store.db", "state/store.db-wal"];
    for file in files {
        let path = root.file(file);
        if path.exists() {
            std::fs::copy(&path, keep.path().join(path.file_name().context("a name")?))?;
        }
    }
    daemon = root.start()?;
    let forgotten: Vec<String> =
        (0..20).filter_map(|request| ask(&root, &format!("later-{request}"))).collect();
    assert!(!forgotten.is_empty());
    expected.acknowledged.extend(forgotten.iter().cloned());
    daemon.kill()?;
    for file in files {
        let path = root.file(file);
        let kept = keep.path().join(path.file_name().context("a name")?);
        let _ = std::fs::remove_file(&path);
        if kept.exists() {
            std::fs::copy(kept, &path)?;
        }
    }
    settle(&root)?;
    let found = audit(&root.file(""), &expected)?;
    // One that had a log comes back from it, for a person to look at; one that had none is gone.
    let flagged = |id: &String| found.iter().any(|fault| fault.contains(id.as_str()));
    assert!(forgotten.iter().any(flagged), "of {forgotten:?} none is in {found:?}");
    Ok(())
}

/// More controls: each single fault, planted into a sound root, is found.
#[test]
fn every_planted_fault_is_found() -> Result<()> {
    let root = root();
    let mut expected = expected();
    let mut daemon = root.start()?;
    for request in 0..5 {
        expected.acknowledged.extend(ask(&root, &format!("p{request}")));
    }
    root.wait_for("some schedules to fire", || {
        let list = root.cli(&["mandate", "list", "--json", "--schedule", "claims", "--state", "succeeded"]);
        (serde_json::from_str::<Vec<Value>>(&list.stdout).ok()?.len() >= 4).then_some(())
    })?;
    assert_eq!(daemon.stop()?, 0);
    assert_eq!(settle(&root)?, 0);
    assert_eq!(audit(&root.file(""), &expected)?, Vec::<String>::new());
    let store = root.file("state/store.db");
    let sound = std::fs::read(&store)?;
    for (fault, sql) in [
        ("no end state", "UPDATE mandate SET state='running', ended=NULL WHERE n=1"),
        ("sum up to", "UPDATE usage SET calls=calls+1 WHERE n=(SELECT min(n) FROM usage)"),
        ("booked", "DELETE FROM usage WHERE mandate=(SELECT n FROM mandate WHERE goal='claims' LIMIT 1)"),
        (
            "lost or told twice",
            "DELETE FROM occurrence WHERE first=(SELECT max(first) FROM occurrence o JOIN schedule s ON s.n=o.schedule WHERE s.name='claims' AND o.first<(SELECT max(first) FROM occurrence))",
        ),
        (
            "counted 2 times",
            "INSERT INTO cycle SELECT mandate, cycle, 99, epoch, runner, generation, status, started, ended, summary, error FROM cycle LIMIT 1",
        ),
        ("acknowledged and not there", "DELETE FROM mandate WHERE origin='manual'"),
        ("the store at", "UPDATE mandate SET seq=seq+1 WHERE n=2"),
    ] {
        let db = Connection::open(&store)?;
        assert!(db.execute(sql, [])? > 0, "{sql}");
        drop(db);
        let found = audit(&root.file(""), &expected)?;
        assert!(found.iter().any(|line| line.contains(fault)), "{fault:?} was not found: {found:?}");
        std::fs::write(&store, &sound)?;
        for side in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(root.file(&format!("state/store.db{side}")));
        }
    }
    Ok(())
}
