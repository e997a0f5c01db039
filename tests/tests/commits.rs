//! What a cycle costs in commits, through the real path: chronos fires, dispatch claims, the stub
//! runs as a plugin, the broker does its effects, the finish is booked. Nothing here is timed.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use kairos_tests::rig::{Plan, Rig};
use serde_json::json;

/// A result waits 50 ms for the next commit to ride on. On a machine that stops a thread for
/// longer it goes alone, so an exact count gets some rounds; too few commits fail at once.
const ROUNDS: usize = 20;

/// Each minute the one schedule fires a mandate of so many cycles: the commits of that.
async fn costs(cycles: u32, params: serde_json::Value, expected: u64) {
    let rig = Rig::new(Plan::new(1, cycles).with(params.clone())).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..ROUNDS {
        let (ran, did) = rig.minute().await.unwrap();
        assert_eq!(ran, u64::from(cycles));
        assert!(did.commits >= expected, "{} commits are fewer than the {expected} promised", did.commits);
        seen.push(did.commits);
        if did.commits == expected {
            break;
        }
    }
    assert_eq!(seen.last(), Some(&expected), "{cycles} cycles of {params} took {seen:?} commits");
    rig.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_cycle_is_two_commits() {
    costs(1, json!({}), 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_later_cycle_without_effects_is_one_commit_more() {
    costs(2, json!({}), 3).await;
    costs(7, json!({"phases": true}), 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_effect_is_one_commit_more() {
    costs(1, json!({"prompt": "what now?"}), 3).await;
    costs(1, json!({"tool": {"name": "fs.read", "args": {"path": "note.txt"}}}), 3).await;
    let both = json!({"prompt": "what now?", "tool": {"name": "fs.read", "args": {"path": "note.txt"}}});
    costs(1, both.clone(), 4).await;
    // Four cycles of two effects each.
    costs(4, both, 2 + 3 + 4 * 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cycles_that_run_at_once_share_commits() {
    let (first, later) = (Plan::new(64, 1), Plan::new(64, 8));
    for (plan, alone) in [(first, 2), (later, 9)] {
        let (cycles, concurrency) = (u64::from(plan.cycles), plan.concurrency as u64);
        let rig = Rig::new(plan).await.unwrap();
        let (ran, did) = rig.minute().await.unwrap();
        assert_eq!(ran, concurrency * cycles);
        assert!(
            did.commits < concurrency * alone,
            "{concurrency} mandates of {cycles} cycles took {} commits, one by one {}",
            did.commits,
            concurrency * alone
        );
        rig.close().await.unwrap();
    }
}
