//! The lives of generations, and the recorded cycles that candidates are tried on.

use super::*;
use crate::domain::generation::{GenerationEvent as E, GenerationState as S};
use crate::domain::handover::{HandOver, InstanceState};
use kairos_plugin_api::{Report, State};
use serde_json::Value;

fn new(sha256: &str, swap: Option<&str>) -> Life {
    Life {
        runner: "stub".into(),
        sha256: sha256.into(),
        name: "stub".into(),
        version: "1.0.0".into(),
        abi: "rust".into(),
        isolation: "in_process".into(),
        swap: swap.map(ToOwned::to_owned),
        configured: Some("conf".into()),
        source: Some("/some/where.so".into()),
    }
}

fn step(n: i64, event: E) -> GenerationMove {
    GenerationMove::new(n, event, None)
}

fn states(bench: &Bench) -> Vec<(String, S)> {
    let rows = bench.generations(Some("stub"), 0).unwrap();
    rows.into_iter().map(|row| (row.life.sha256, row.state)).collect()
}

/// An active generation `old` and a candidate `new` that has come to standby.
fn ready(bench: &Bench) -> (i64, i64) {
    let old = bench.adopt_generation(new("old", None), "configured".into(), at(0)).wait().unwrap();
    let next = bench.add_generation(new("new", Some("s")), at(0)).wait().unwrap();
    bench.move_generations(vec![step(next, E::Probe), step(next, E::Ready)], at(1)).wait().unwrap();
    (old, next)
}

fn handed_over() -> HandOver {
    let state = State { schema: "notes/1".into(), data: json!({"seen": 3}) };
    HandOver(vec![InstanceState { id: u64::MAX, owner: Some("watch".into()), state, aside: false }])
}

fn flip(bench: &Bench, old: i64, next: i64) {
    let handover = Some(handed_over());
    let open = GenerationMove { canary: true, handover, ..step(next, E::Activate) };
    bench.move_generations(vec![open, step(old, E::StandBack)], at(2)).wait().unwrap();
}

#[test]
fn a_swap_is_one_commit_or_none() {
    on_both(|bench| {
        let (old, next) = ready(bench);
        // The second half is impossible, so the first has not happened either.
        let error = bench
            .move_generations(vec![step(next, E::Activate), step(old, E::Drained)], at(2))
            .wait()
            .unwrap_err();
        assert!(error.to_string().contains("active"), "{error}");
        assert_eq!(states(bench), [("new".into(), S::Standby), ("old".into(), S::Active)]);
        flip(bench, old, next);
        assert_eq!(states(bench), [("new".into(), S::Active), ("old".into(), S::Standby)]);
        let row = bench.generations(Some("stub"), 1).unwrap().remove(0);
        assert!(row.canary);
        assert_eq!(row.handover.unwrap(), handed_over());
        let trail: Vec<S> = row.trail.iter().map(|entry| entry.state).collect();
        assert_eq!(trail, [S::Candidate, S::Probed, S::Standby, S::Active]);
    });
}

#[test]
fn a_start_ends_what_never_served_and_keeps_a_trial_with_its_predecessor() {
    on_both(|bench| {
        let (old, next) = ready(bench);
        let open = bench.recover_generations(at(3)).wait().unwrap();
        assert_eq!(open.len(), 1, "the candidate was not flipped to: {open:?}");
        assert_eq!(states(bench), [("new".into(), S::Retired), ("old".into(), S::Active)]);
        assert!(bench.move_generations(vec![step(next, E::Activate)], at(3)).wait().is_err());

        let next = bench.add_generation(new("newer", Some("t")), at(0)).wait().unwrap();
        bench.move_generations(vec![step(next, E::Probe), step(next, E::Ready)], at(4)).wait().unwrap();
        flip(bench, old, next);
        for _ in 0..2 {
            let open = bench.recover_generations(at(5)).wait().unwrap();
            let found: Vec<_> =
                open.iter().map(|row| (row.life.sha256.as_str(), row.state, row.canary)).collect();
            assert_eq!(found, [("old", S::Standby, false), ("newer", S::Active, true)]);
        }
        bench
            .move_generations(vec![step(old, E::Drain), GenerationMove::new(next, E::RollBack, None)], at(6))
            .wait()
            .unwrap();
        assert!(
            bench.recover_generations(at(7)).wait().unwrap().is_empty(),
            "draining is over after a start"
        );
    });
}

#[test]
fn what_is_refused_says_where_and_why_and_is_neither_open_nor_needed() {
    on_both(|bench| {
        let refused = Refused { stage: "keep".into(), code: "empty".into(), message: "no byte".into() };
        let file = NewRefusal {
            runner: "stub".into(),
            source: "/tmp/empty.so".into(),
            sha256: None,
            identity: None,
            swap: Some("s".into()),
            refused: refused.clone(),
            at: at(1),
        };
        bench.refuse_file(file).wait().unwrap();
        let next = bench.add_generation(new("kept", Some("t")), at(0)).wait().unwrap();
        let late = Refused { stage: "probe".into(), ..refused.clone() };
        let step = GenerationMove { refused: Some(late.clone()), ..step(next, E::Refuse) };
        bench.move_generations(vec![step], at(2)).wait().unwrap();
        let rows = bench.generations(Some("stub"), 0).unwrap();
        let seen: Vec<_> = rows.iter().map(|row| (row.state, row.refused.clone())).collect();
        assert_eq!(seen, [(S::Refused, Some(late)), (S::Refused, Some(refused))]);
        assert_eq!(rows[1].life.source.as_deref(), Some("/tmp/empty.so"));
        let text = serde_json::to_value(&rows[1]).unwrap();
        assert_eq!((&text["sha256"], &text["reason"]), (&Value::Null, &json!("empty: no byte")));
        assert!(bench.recover_generations(at(3)).wait().unwrap().is_empty());
        assert!(bench.needed_generations().unwrap().is_empty());
    });
}

#[test]
fn another_configured_file_ends_what_was_open_and_the_same_changes_nothing() {
    on_both(|bench| {
        let (old, next) = ready(bench);
        flip(bench, old, next);
        assert_eq!(
            bench.adopt_generation(new("new", None), "configured".into(), at(0)).wait().unwrap(),
            next
        );
        assert_eq!(states(bench)[0], ("new".into(), S::Active));
        let third =
            bench.adopt_generation(new("third", None), "the file changed".into(), at(0)).wait().unwrap();
        let found = states(bench);
        let ended = [("third".to_owned(), S::Active), ("new".to_owned(), S::Retired)];
        assert_eq!(found[..2], ended);
        assert_eq!(found[2], ("old".into(), S::Retired));
        assert!(third > next);
        let needed = bench.needed_generations().unwrap();
        assert!(
            ["old", "new", "third"].iter().all(|name| needed.contains(&(*name).to_owned())),
            "{needed:?}"
        );
    });
}

fn reported(bench: &Bench, id: &str, end: CycleEnd, puts: &[(&str, i64)]) -> Finished {
    bench.add_manual(id);
    let cycle = bench.claim_one();
    let mut request = finish(&cycle, end);
    request.report = Some(Report::ok().with_summary(id));
    request.state_puts = puts.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    bench.finish(request).wait().unwrap()
}

#[test]
fn cycles_that_ended_with_a_report_are_kept_with_what_their_runner_saw() {
    on_both(|bench| {
        let mut mandate = manual("two");
        mandate.bounds.max_cycles = 2;
        bench.add(mandate).wait().unwrap();
        for (more, puts) in [(true, Some(1)), (false, None)] {
            let cycle = bench.claim_one();
            let mut request = finish(&cycle, if more { CycleEnd::More } else { CycleEnd::Done });
            request.report = Some(Report { more, ..Report::ok() });
            request.state_puts = puts.map(|value| ("seen".to_owned(), json!(value))).into_iter().collect();
            bench.finish(request).wait().unwrap();
        }
        reported(bench, "gone", CycleEnd::Interrupted, &[]);
        let found = bench.recent_cycles("stub", 10).unwrap();
        assert_eq!(found.len(), 2, "an interrupted cycle has no end of its own");
        assert_eq!((found[0].mandate.id.as_str(), found[0].mandate.cycle), ("two", 2));
        assert_eq!(found[0].state, HashMap::from([("seen".to_owned(), json!(1))]), "as of its start");
        assert_eq!((found[1].mandate.cycle, found[1].report.more), (1, true));
        assert!(found[1].state.is_empty());
        assert_eq!(found[1].generation, "gen-stub");
        assert!(bench.recent_cycles("other", 10).unwrap().is_empty());
    });
}

#[test]
fn only_the_last_cycles_are_kept() {
    in_memory(|bench| {
        for number in 0..RECENT_MAX + 5 {
            reported(bench, &format!("m{number}"), CycleEnd::Done, &[]);
        }
        let found = bench.recent_cycles("stub", usize::MAX).unwrap();
        assert_eq!(found.len(), RECENT_MAX);
        assert_eq!(found[0].mandate.id, format!("m{}", RECENT_MAX + 4), "newest first");
    });
}

#[test]
fn work_of_a_failed_trial_is_begun_afresh_unless_it_acted() {
    on_both(|bench| {
        // Two errors in a row would end it; a failed trial is no error of its own.
        for (id, tool, intent, reply, state) in [
            ("plain", None, json!({}), json!(null), MandateState::Queued),
            (
                "read",
                Some("fs.read"),
                json!({"repeatable": true}),
                json!({"ok": {"ok": true}}),
                MandateState::Queued,
            ),
            (
                "refused",
                Some("fs.edit"),
                json!({"post_hash": "x"}),
                json!({"ok": {"ok": false}}),
                MandateState::Queued,
            ),
            (
                "wrote",
                Some("fs.edit"),
                json!({"post_hash": "x"}),
                json!({"ok": {"ok": true}}),
                MandateState::Review,
            ),
        ] {
            bench.add_manual(id);
            let cycle = bench.claim_one();
            if let Some(tool) = tool {
                let mut begin = begin(&cycle, 1, Usage::ZERO, None);
                (begin.kind, begin.name, begin.intent) = (StepKind::Tool, tool.into(), intent);
                bench.begin_step(begin).wait().unwrap();
                let mut settle = settle(&cycle, 1, Some(Usage::ZERO));
                settle.result = reply;
                bench.settle_step(settle).wait().unwrap();
            }
            let finished = bench.end(&cycle, CycleEnd::RolledBack);
            assert_eq!(finished.state, state, "{id}");
            let row = bench.cycles(id).unwrap().remove(0);
            assert_eq!(row.status, Some(CycleStatus::RolledBack));
            if state == MandateState::Review {
                assert_eq!(finished.reason.as_deref(), Some("rolled_back_after_act"));
                continue;
            }
            let again = bench.claim_one();
            assert_eq!((again.mandate.id.as_str(), again.mandate.cycle, again.mandate.attempt), (id, 1, 2));
            assert!(again.steps.is_empty(), "an empty record");
            let failed = bench.end(&again, CycleEnd::Error);
            assert_eq!(failed.state, MandateState::Queued, "its first error");
            let last = bench.claim_one();
            bench.end(&last, CycleEnd::Done);
        }
    });
}

#[test]
fn what_a_trial_could_not_begin_is_counted_while_it_lasts() {
    on_both(|bench| {
        let (old, next) = ready(bench);
        flip(bench, old, next);
        for n in [next, next, old] {
            bench.note_not_begun(n).wait().unwrap();
        }
        let counts = |bench: &Bench| -> Vec<u32> {
            bench.generations(None, 0).unwrap().iter().map(GenerationRow::not_begun).collect()
        };
        assert_eq!(counts(bench), [2, 0], "newest first");
        bench.move_generations(vec![step(next, E::RollBack), step(old, E::Activate)], at(9)).wait().unwrap();
        bench.note_not_begun(next).wait().unwrap();
        assert_eq!(counts(bench), [2, 0], "its trial is over");
    });
}

#[test]
fn cycles_that_a_trial_has_ended_are_found_without_a_look_at_history() {
    on_both(|bench| {
        for id in ["before", "ended", "failed", "open"] {
            bench.add_manual(id);
        }
        let before = bench.claim_one();
        bench.end(&before, CycleEnd::Done);
        let sha256 = before.generation.clone();
        let since = claim(1).now + chrono::TimeDelta::seconds(1);
        let mut later = claim(3);
        later.now = since;
        let cycles = bench.claim(later).wait().unwrap().claimed;
        for (cycle, end) in cycles.iter().zip([CycleEnd::Done, CycleEnd::Error, CycleEnd::Interrupted]) {
            bench.finish(FinishRequest { now: since, ..finish(cycle, end) }).wait().unwrap();
        }
        let found = bench.ended_cycles("stub", &sha256, since).unwrap();
        let found: Vec<CycleStatus> = found.iter().map(|cycle| cycle.status).collect();
        assert_eq!(found, [CycleStatus::Ok, CycleStatus::Error, CycleStatus::Interrupted]);
        assert!(bench.ended_cycles("stub", "another", since).unwrap().is_empty());
        assert!(bench.ended_cycles("another", &sha256, since).unwrap().is_empty());
    });
    // The engine says how it finds each; a whole table would be a SCAN of it without its partial index.
    in_memory(|bench| {
        for sql in [recent::ENDED, recover::CRASH_LOOPED] {
            let plan: Vec<String> = bench
                .look(move |conn| {
                    txn::all(conn, &format!("EXPLAIN QUERY PLAN {sql}"), ["a", "b", "c"], |row| row.get(3))
                })
                .unwrap();
            let whole =
                |line: &&String| line.starts_with("SCAN") && !line.contains("USING INDEX mandate_open");
            assert_eq!(plan.iter().find(whole), None, "{plan:?}");
            assert!(plan.iter().any(|line| line.contains("PRIMARY KEY (mandate=?")), "{plan:?}");
        }
    });
}

#[test]
fn work_that_came_to_its_crash_limit_on_a_failed_trial_is_begun_afresh_unless_it_acted() {
    for (acts, stopped, state, reason) in [
        (false, false, MandateState::Queued, "rolled_back"),
        (true, false, MandateState::Review, "rolled_back_after_act"),
        (false, true, MandateState::Cancelled, "stopped"),
    ] {
        let mut bench = on_file();
        bench.add_manual("m");
        let cycle = bench.claim_one();
        if acts {
            let mut begin = begin(&cycle, 1, Usage::ZERO, None);
            (begin.kind, begin.name, begin.intent) =
                (StepKind::Tool, "fs.edit".into(), json!({"post_hash": "x"}));
            bench.begin_step(begin).wait().unwrap();
        }
        if stopped {
            let stop = MandateCommand::Stop { note: None };
            bench.command("m".into(), stop, at(1)).wait().unwrap();
        }
        for _ in 0..CRASH_LOOP_BOOTS {
            bench.crashed();
            bench.recovered();
        }
        assert_eq!(bench.state("m"), MandateState::Review);
        // A start that is cut short here finds it again.
        bench.crashed();
        bench.recovered();
        let looped = |sha256: &str, since| bench.crash_looped("stub", sha256, since).unwrap();
        assert_eq!(looped(&cycle.generation, at(0)), ["m"]);
        assert!(looped("another", at(0)).is_empty() && looped(&cycle.generation, at(99)).is_empty());
        let again = || bench.run_crash_looped_again("m".into(), "it killed the daemon".into(), at(2)).wait();
        assert_eq!(again().unwrap(), state);
        let row = bench.mandate("m").unwrap();
        assert_eq!((row.state, row.reason.as_deref()), (state, Some(reason)));
        let last = bench.cycles("m").unwrap().pop().unwrap();
        assert_eq!(last.status, Some(CycleStatus::RolledBack));
        assert!(matches!(again(), Err(Error::Conflict(_))), "once");
        assert!(bench.crash_looped("stub", &cycle.generation, at(0)).unwrap().is_empty());
        bench.log("m");
        if state == MandateState::Queued {
            let again = bench.claim_one();
            assert_eq!((again.mandate.cycle, again.steps.len()), (1, 0), "with an empty record");
            bench.crashed();
            assert_eq!(bench.recovered().crash_loops, ["m"], "its own deaths still count");
        }
    }
}

#[test]
fn a_store_of_the_first_version_is_copied_and_taken_over() {
    use crate::store::sqlite::schema::{MIGRATIONS, VERSION, copy_name, migrate, version};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let mut conn = Connection::open(&path).unwrap();
    migrate(&mut conn, None, &MIGRATIONS[..1], 1).unwrap();
    conn.close().unwrap();
    let bench = Bench {
        store: SqliteStore::open(OpenOptions { path: path.clone(), sink: None }).unwrap(),
        dir: None,
    };
    reported(&bench, "m", CycleEnd::Done, &[]);
    assert_eq!(bench.recent_cycles("stub", 1).unwrap().len(), 1);
    assert!(bench.generations(None, 0).unwrap().is_empty());
    bench.close().wait().unwrap();
    let copy = Connection::open(copy_name(&path, 1)).unwrap();
    assert_eq!(version(&copy, &path).unwrap(), Some(1));
    assert_eq!(version(&Connection::open(&path).unwrap(), &path).unwrap(), Some(VERSION));
}
