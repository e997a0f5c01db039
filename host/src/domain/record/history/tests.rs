//! Logs of ours and of the reference, read back.

use super::super::{Append, Head, Transition, append, effect_step_id, seal, stated_usage, transition};
use super::*;
use chrono::{DateTime, TimeZone, Utc};
use serde_json::json;

fn at() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 22, 9, 0, 0).unwrap()
}

fn calls(n: u64) -> Usage {
    Usage { llm_calls: n, ..Usage::ZERO }
}

/// A log of these lines, sealed if they are ours.
fn log(lines: Vec<Map<String, Value>>, ours: bool) -> History {
    let mut head = Head::default();
    let mut text = String::new();
    for line in lines {
        text.push_str(&if ours { seal(&mut head, line) } else { Value::Object(line).to_string() });
        text.push('\n');
    }
    let history = History::read(text.as_bytes());
    assert!(history.scan.is_sound());
    history
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap()
}

fn ours(kind: &str, repeatable: bool, then: &[Transition<'_>]) -> Vec<Map<String, Value>> {
    let commit = json!({"op": "plan_commit", "plan_id": "p", "mandate_id": "m", "cycle": 2, "generation": "g",
        "steps": [{"step_id": "cycle_002", "tool": "runner.x"}], "ts": "t1"});
    let id = effect_step_id(kind, 2, 1);
    let intent = append(&Append {
        step_id: &id,
        plan_id: "p",
        step: 1,
        kind,
        name: "x",
        phase: None,
        idem_key: "k",
        params_hash: "h",
        pre_hash: None,
        expected_post_hash: None,
        repeatable,
        reserved: calls(2),
        day: Some("2026-11-22"),
        at: at(),
    });
    let begin = transition("p", "cycle_002", &Transition::Executing { pre_hash: None }, at());
    let mut lines = vec![object(commit), begin, intent];
    lines.extend(then.iter().map(|to| transition("p", &id, to, at())));
    lines
}

const BEGUN: Transition<'static> = Transition::Executing { pre_hash: None };

fn done(used: u64) -> Transition<'static> {
    Transition::Completed {
        post_hash: "r",
        result_hash: "r",
        recovered: false,
        evidence: None,
        usage: Some((calls(used), "2026-11-23")),
    }
}

#[test]
fn an_open_plan_is_queued_only_if_nothing_outside_can_have_changed() {
    let cases = [
        ("llm", false, vec![BEGUN], MandateState::Queued),
        ("llm", false, vec![BEGUN, done(1)], MandateState::Queued),
        ("tool", false, vec![], MandateState::Review),
        ("tool", false, vec![BEGUN], MandateState::Review),
        ("tool", false, vec![BEGUN, done(0)], MandateState::Review),
        ("tool", true, vec![BEGUN, done(0)], MandateState::Queued),
        ("tool", true, vec![BEGUN], MandateState::Queued),
        ("llm", false, vec![Transition::NeedsReview { reason: "x", usage: None }], MandateState::Review),
    ];
    for (kind, repeatable, then, state) in cases {
        let history = log(ours(kind, repeatable, &then), true);
        assert_eq!(history.standing().0, state, "{kind} {repeatable} {then:?}");
        assert_eq!(history.plans[0].cycle(), 2);
    }
}

#[test]
fn usage_is_never_counted_below_what_was_spent() {
    let day = |history: &History, day: &str| history.usage_by_day().get(day).copied().unwrap_or_default();
    let settled = log(ours("llm", false, &[BEGUN, done(1)]), true);
    assert_eq!((day(&settled, "2026-11-22"), day(&settled, "2026-11-23")), (calls(0), calls(1)));
    let open = log(ours("llm", false, &[BEGUN]), true);
    assert_eq!(day(&open, "2026-11-22"), calls(2));
    let again = log(ours("llm", false, &[BEGUN, BEGUN, done(1)]), true);
    assert_eq!((day(&again, "2026-11-22"), day(&again, "2026-11-23")), (calls(2), calls(1)));
    let mut lines = ours("llm", false, &[BEGUN, done(1)]);
    lines.push(stated_usage("p", "answer_002_002", calls(5), "2026-11-23", at()));
    assert_eq!(day(&log(lines.clone(), true), "2026-11-23"), calls(6));
    lines.push(object(
        json!({"op": "plan_finalize", "plan_id": "p", "status": "succeeded", "state": "queued",
        "unmetered": {"2026-11-23": {"llm_calls": 5}}}),
    ));
    let ended = log(lines, true);
    assert_eq!(day(&ended, "2026-11-23"), calls(6));
    assert_eq!(ended.standing().0, MandateState::Queued);
}

#[test]
fn reference_logs_are_judged_by_the_reference_verdicts() {
    let commit = json!({"op": "plan_commit", "plan_id": "p", "cycle": 1, "steps": [
        {"step_id": "observe_001", "tool": "ooda.observe"}, {"step_id": "act_001", "tool": "ooda.act"},
        {"step_id": "reflect_001", "tool": "ooda.reflect"}]});
    let turn = |id: &str, status: &str| {
        let mut line = json!({"op": "transition", "step_id": id, "status": status});
        match status {
            "executing" => line["pre_hash"] = json!("a"),
            "completed" => line["post_hash"] = json!("b"),
            _ => {}
        }
        line
    };
    let end = |status: &str| json!({"op": "plan_finalize", "plan_id": "p", "status": status});
    let cases = [
        (vec![commit.clone()], MandateState::Queued),
        (vec![commit.clone(), turn("observe_001", "completed")], MandateState::Queued),
        (vec![commit.clone(), turn("observe_001", "executing")], MandateState::Review),
        (vec![commit.clone(), turn("act_001", "executing")], MandateState::Review),
        (vec![commit.clone(), turn("act_001", "completed")], MandateState::Review),
        (vec![commit.clone(), turn("act_001", "failed")], MandateState::Queued),
        (vec![commit.clone(), end("succeeded")], MandateState::Succeeded),
        (vec![commit.clone(), end("failed")], MandateState::Failed),
        (vec![commit, end("abandoned")], MandateState::Cancelled),
        // As its runner really writes them: no plan at all.
        (vec![turn("observe_001", "executing"), turn("observe_001", "completed")], MandateState::Queued),
        (vec![turn("act_002", "executing")], MandateState::Review),
        (vec![turn("act_001", "completed"), turn("reflect_001", "completed")], MandateState::Succeeded),
        (vec![turn("act_001", "executing"), turn("reflect_001", "completed")], MandateState::Review),
    ];
    for (lines, state) in cases {
        let shown = format!("{lines:?}");
        let history = log(lines.into_iter().map(object).collect(), false);
        assert_eq!(history.standing().0, state, "{shown}");
    }
}

#[test]
fn two_plans_with_steps_of_one_name_stay_apart() {
    let lines = [
        json!({"op": "plan_commit", "plan_id": "a", "steps": [{"step_id": "act_001"}]}),
        json!({"op": "transition", "plan_id": "a", "step_id": "act_001", "status": "executing"}),
        json!({"op": "plan_commit", "plan_id": "b", "steps": [{"step_id": "act_001"}]}),
        json!({"op": "transition", "plan_id": "b", "step_id": "act_001", "status": "completed", "post_hash": "x"}),
    ];
    let history = log(lines.map(object).into(), false);
    let status = |at: usize| history.plans[at].steps[0].recorded.status.clone();
    assert_eq!((status(0).as_deref(), status(1).as_deref()), (Some("executing"), Some("completed")));
    assert_eq!(history.standing().0, MandateState::Review);
}

#[test]
fn what_is_not_understood_is_for_a_person() {
    assert_eq!(History::read(b"").standing().0, MandateState::Review);
    assert_eq!(History::read(b"\xff\n").standing().0, MandateState::Review);
    let strange = log(vec![object(json!({"op": "dance"}))], false);
    assert_eq!((strange.strange, strange.standing().0), (1, MandateState::Review));
}

#[test]
fn golden_logs_of_the_reference_are_read_as_their_table_says() {
    use MandateState::{Cancelled, Queued, Review, Succeeded};
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/reference/wal");
    let cases = [
        ("daily_summary", Succeeded, 1),
        ("nightly_build", Succeeded, 1),
        ("gave_up", Cancelled, 1),
        ("inbox_watch", Queued, 1),
        ("reset_once", Queued, 1),
        ("repo_tidy", Review, 1),
        ("needs_eyes", Review, 1),
        ("torn_tail", Review, 1),
        ("bad_middle", Review, 1),
    ];
    for (name, state, plans) in cases {
        let bytes = std::fs::read(dir.join(format!("{name}.wal.jsonl"))).unwrap();
        let history = History::read(&bytes);
        assert_eq!((history.standing().0, history.plans.len()), (state, plans), "{name}");
        let plan = &history.plans[0];
        if let Some(steps) = plan.commit.get("steps") {
            assert_eq!(plan.commit["plan_hash"], crate::domain::canonical::hash(steps), "{name}");
        }
    }
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), cases.len());
}
