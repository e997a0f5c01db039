//! A mandate's way through its cycles.

use super::*;

#[test]
fn a_first_cycle_is_two_commits_and_a_later_one_is_one() {
    on_both(|store| {
        let schedule = spec("daily", SchedulePolicy::default());
        store.adopt(vec![adopt("daily", 0)]).wait().unwrap();
        let before = store.stats().commits;
        let mut request = fire(60, vec![evaluation(&schedule, (0, 60), &[60])]);
        request.claim = Some(claim(1));
        let fired = store.fire(request).wait().unwrap();
        let [first] = &fired.claim.claimed[..] else { panic!("it starts with its fire") };
        assert_eq!(first.mandate.id, "20261122T090100Z-daily-0");
        assert_eq!(store.stats().commits - before, 1, "fire, start and plan are one commit");
        let mut request = finish(first, CycleEnd::More);
        request.claim = Some(claim(1));
        let finished = store.finish(request).wait().unwrap();
        assert_eq!(store.stats().commits - before, 2, "finish and the next start are one commit");
        let [second] = &finished.claim.claimed[..] else { panic!("the next cycle starts with the finish") };
        assert_eq!((second.mandate.cycle, second.mandate.attempt), (2, 1));
        store.end(second, CycleEnd::Done);
        assert_eq!(store.stats().commits - before, 3);
    });
}

#[test]
fn effects_are_one_commit_each_because_a_result_rides_on_the_next_one() {
    on_both(|store| {
        store.add_manual("m");
        let cycle = store.claim_one();
        let before = store.stats().commits;
        for seq in 1..=3 {
            let begun = store.begin_step(begin(&cycle, seq, calls(1), Some(gate(100)))).wait().unwrap();
            assert!(matches!(begun, BegunStep::Begun));
            let _rides_along = store.settle_step(settle(&cycle, seq, Some(calls(1))));
        }
        store.end(&cycle, CycleEnd::Done);
        assert_eq!(store.stats().commits - before, 4, "three effects and the finish");
        assert_eq!(store.ledger(DAY).spent, calls(3));
    });
}

#[test]
fn a_done_mandate_has_a_closed_log_and_a_row_for_its_attempt() {
    on_both(|store| {
        store.add_manual("m");
        let cycle = store.claim_one();
        assert_eq!(cycle.generation, "gen-stub");
        let finished = store.end(&cycle, CycleEnd::Done);
        assert_eq!(finished.state, MandateState::Succeeded);
        let row = store.mandate("m").unwrap();
        assert_eq!((row.state, row.cycle, row.ended_at), (MandateState::Succeeded, 1, Some(at(1))));
        let cycles = store.cycles("m").unwrap();
        assert_eq!(cycles.len(), 1);
        assert_eq!(cycles[0].status, Some(CycleStatus::Ok));
        let ops: Vec<_> = store.log("m").iter().map(|line| line["op"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ops, ["plan_commit", "transition", "transition", "plan_finalize"]);
    });
}

#[test]
fn a_first_error_begins_the_same_cycle_afresh_and_a_second_in_a_row_fails() {
    on_both(|store| {
        store.add_manual("m");
        let first = store.claim_one();
        store.begin_step(begin(&first, 1, calls(1), Some(gate(9)))).wait().unwrap();
        store.settle_step(settle(&first, 1, Some(calls(1)))).wait().unwrap();
        let mut failed = finish(&first, CycleEnd::Error);
        failed.error = Some("the sky fell".into());
        let finished = store.finish(failed).wait().unwrap();
        assert_eq!((finished.state, finished.reason.as_deref()), (MandateState::Queued, Some("error_once")));
        let again = store.claim_one();
        assert_eq!((again.mandate.cycle, again.mandate.attempt), (1, 2));
        assert!(again.steps.is_empty() && again.booked.is_zero(), "its record is empty");
        store.begin_step(begin(&again, 1, calls(1), Some(gate(9)))).wait().unwrap();
        let finished = store.end(&again, CycleEnd::Error);
        assert_eq!((finished.state, finished.reason.as_deref()), (MandateState::Failed, Some("error_twice")));
        assert_eq!(finished.usage, calls(2), "both attempts cost something");
        assert_eq!(store.steps("m").unwrap().len(), 2, "the first record stays as history");
        let errors: Vec<_> = store.cycles("m").unwrap().into_iter().map(|cycle| cycle.error).collect();
        assert_eq!(errors, [Some("the sky fell".to_owned()), None]);
        store.log("m");
    });
}

#[test]
fn an_interrupted_cycle_goes_on_with_its_record_on_its_own_generation() {
    on_both(|store| {
        store.add_manual("m");
        store.add_manual("other");
        let first = store.claim_one();
        store.begin_step(begin(&first, 1, calls(1), Some(gate(9)))).wait().unwrap();
        store.settle_step(settle(&first, 1, Some(calls(2)))).wait().unwrap();
        store.begin_step(begin(&first, 2, calls(1), Some(gate(9)))).wait().unwrap();
        let finished = store.end(&first, CycleEnd::Interrupted);
        assert_eq!((finished.state, finished.reason.as_deref()), (MandateState::Queued, Some("interrupted")));
        let mut request = claim(1);
        let offer = RunnerOffer { generation: "newer".into(), phases: true, commands: None };
        request.offers = Arc::new(HashMap::from([("stub".to_owned(), offer)]));
        let mut claimed = store.claim(request).wait().unwrap().claimed;
        let again = claimed.pop().expect("it comes before those that never started");
        assert_eq!((again.mandate.id.as_str(), again.mandate.cycle, again.mandate.attempt), ("m", 1, 2));
        assert_eq!(again.generation, "gen-stub");
        assert_eq!(again.booked, calls(3), "the call under way counts as reserved");
        let states: Vec<_> = again.steps.iter().map(|step| (step.seq, step.state)).collect();
        assert_eq!(states, [(1, StepState::Done), (2, StepState::Executing)]);
        assert_eq!(again.steps[0].result, Some(json!({"text": "answer 1"})));
        let plans = store.log("m").iter().filter(|line| line["op"] == "plan_commit").count();
        assert_eq!(plans, 1, "its plan goes on");
    });
}

#[test]
fn a_budget_pause_lasts_until_the_day_turns() {
    on_both(|store| {
        store.add_manual("m");
        let first = store.claim_one();
        let finished = store.end(&first, CycleEnd::BudgetPause);
        assert_eq!(finished.state, MandateState::PausedBudget);
        let mut request = claim(1);
        request.gate = Some(gate(9));
        assert!(store.claim(request.clone()).wait().unwrap().claimed.is_empty(), "the day is the same");
        request.gate = Some(BudgetGate { day: "2026-11-23".into(), ..gate(9) });
        let claimed = store.claim(request).wait().unwrap().claimed;
        assert_eq!((claimed[0].mandate.cycle, claimed[0].mandate.attempt), (1, 2));
    });
}

#[test]
fn a_checkpoint_ends_its_cycle_and_a_resume_starts_the_next() {
    on_both(|store| {
        store.add_manual("m");
        let first = store.claim_one();
        let finished = store.end(&first, CycleEnd::Checkpoint);
        assert_eq!(finished.state, MandateState::PausedCheckpoint);
        assert!(store.claim_all(1).is_empty());
        let resumed = store.command("m".into(), MandateCommand::Resume, at(5)).wait().unwrap();
        assert_eq!(resumed.state, MandateState::Queued);
        let next = store.claim_one();
        assert_eq!((next.mandate.cycle, next.mandate.attempt), (2, 1));
    });
}

#[test]
fn an_approved_effect_is_recorded_while_its_mandate_waits() {
    on_both(|store| {
        store.add_manual("m");
        let first = store.claim_one();
        store.end(&first, CycleEnd::ApprovalPause);
        store.begin_step(begin(&first, 1, Usage::ZERO, None)).wait().unwrap();
        store.settle_step(settle(&first, 1, None)).wait().unwrap();
        store.command("m".into(), MandateCommand::Resume, at(5)).wait().unwrap();
        let again = store.claim_one();
        assert_eq!((again.mandate.cycle, again.mandate.attempt), (1, 2));
        assert_eq!(again.steps[0].state, StepState::Done);
    });
}

#[test]
fn denial_and_expiry_end_a_paused_mandate_and_close_its_log() {
    on_both(|store| {
        let ends = [
            (MandateCommand::Deny { note: Some("too bold".into()) }, MandateState::Denied, "too bold"),
            (MandateCommand::Expire, MandateState::Expired, "expired"),
            (MandateCommand::Stop { note: None }, MandateState::Cancelled, "stopped"),
        ];
        for (number, (command, state, reason)) in ends.into_iter().enumerate() {
            let id = format!("m{number}");
            store.add_manual(&id);
            let cycle = store.claim_one();
            store.end(&cycle, CycleEnd::ApprovalPause);
            assert_eq!(store.command(id.clone(), command, at(5)).wait().unwrap().state, state);
            let row = store.mandate(&id).unwrap();
            assert_eq!((row.reason.as_deref(), row.ended_at), (Some(reason), Some(at(5))));
            assert_eq!(store.log(&id).last().unwrap()["op"], "plan_finalize");
        }
    });
}

#[test]
fn a_stopped_mandate_ends_whatever_its_cycle_wants_next() {
    use CycleEnd as E;
    use MandateState as S;
    on_both(|store| {
        let cases = [
            (E::More, S::Cancelled),
            (E::Error, S::Cancelled),
            (E::Interrupted, S::Cancelled),
            (E::Cancelled, S::Cancelled),
            (E::BudgetPause, S::Cancelled),
            (E::Done, S::Succeeded),
            (E::Review, S::Review),
        ];
        for (number, (end, state)) in cases.into_iter().enumerate() {
            let id = format!("m{number}");
            store.add_manual(&id);
            let cycle = store.claim_one();
            let stop = MandateCommand::Stop { note: Some("enough".into()) };
            let commanded = store.command(id.clone(), stop, at(1)).wait().unwrap();
            assert_eq!(commanded, Commanded { state: S::Running, stop_running: true });
            let finished = store.end(&cycle, end);
            assert_eq!(finished.state, state, "{end:?}");
            if state == S::Cancelled {
                assert_eq!(finished.reason.as_deref(), Some("enough"));
            }
        }
    });
}

#[test]
fn an_unstarted_cycle_waits_in_front_as_if_it_had_never_begun() {
    on_both(|store| {
        store.add_manual("m");
        store.add_manual("later");
        let first = store.claim_one();
        store.unstart("m".into(), 1, 1, "runner is gone".into()).wait().unwrap();
        let row = store.mandate("m").unwrap();
        assert_eq!((row.state, row.cycle), (MandateState::Queued, 0));
        assert_eq!(row.reason.as_deref(), Some("runner is gone"));
        assert!(store.cycles("m").unwrap().is_empty());
        let mut request = claim(1);
        let offer = RunnerOffer { generation: "newer".into(), phases: false, commands: None };
        request.offers = Arc::new(HashMap::from([("stub".to_owned(), offer)]));
        let again = store.claim(request).wait().unwrap().claimed.remove(0);
        assert_eq!((again.mandate.id.as_str(), again.mandate.attempt), ("m", 1));
        assert_eq!(again.generation, "newer", "nothing had begun on the old one");
        assert_eq!(
            store.unstart("m".into(), 1, 2, String::new()).wait().unwrap_err().to_string(),
            "cycle 1, attempt 2 of mandate m does not run: it is running at cycle 1, attempt 1"
        );
        assert_eq!(first.mandate.cycle, again.mandate.cycle);
        store.unstart("m".into(), 1, 1, "again".into()).wait().unwrap();
        store.command("m".into(), MandateCommand::Stop { note: None }, at(9)).wait().unwrap();
        let ops: Vec<_> = store.log("m").iter().map(|line| line["op"].to_string()).collect();
        let count = |op: &str| ops.iter().filter(|known| known.contains(op)).count();
        assert_eq!((count("plan_commit"), count("plan_finalize")), (2, 2), "no plan is left open");
        let later = store.claim_one();
        let stop = MandateCommand::Stop { note: Some("enough".into()) };
        store.command("later".into(), stop, at(9)).wait().unwrap();
        store.unstart("later".into(), 1, later.mandate.attempt, "gone".into()).wait().unwrap();
        let row = store.mandate("later").unwrap();
        assert_eq!((row.state, row.reason.as_deref()), (MandateState::Cancelled, Some("enough")));
    });
}

#[test]
fn an_attempt_that_lost_its_cycle_changes_nothing() {
    on_both(|store| {
        store.add_manual("m");
        let first = store.claim_one();
        store.end(&first, CycleEnd::Interrupted);
        let again = store.claim_one();
        let conflict = |error: Error| assert!(matches!(error, Error::Conflict(_)), "{error}");
        conflict(store.finish(finish(&first, CycleEnd::Done)).wait().unwrap_err());
        conflict(store.begin_step(begin(&first, 1, calls(1), None)).wait().unwrap_err());
        let what = NoteKind::Phase("act".into());
        let note = CycleNote { mandate: "m".into(), cycle: 1, attempt: 1, now: at(4), what };
        conflict(store.note(note).wait().unwrap_err());
        assert_eq!(store.end(&again, CycleEnd::Done).state, MandateState::Succeeded);
        conflict(store.finish(finish(&again, CycleEnd::Done)).wait().unwrap_err());
    });
}

#[test]
fn state_lands_with_a_cycle_that_went_well_and_a_rerun_sees_its_start() {
    on_both(|store| {
        let schedule = spec("s", with(Overlap::Allow));
        store.adopt(vec![adopt("s", 0)]).wait().unwrap();
        store.fire(fire(2, vec![evaluation(&schedule, (0, 2), &[1, 2])])).wait().unwrap();
        let put = |cycle: &ClaimedCycle, end, value: i32| {
            let mut request = finish(cycle, end);
            request.state_puts = HashMap::from([("seen".to_owned(), json!(value))]);
            store.finish(request).wait().unwrap();
        };
        let both = store.claim_all(2);
        put(&both[0], CycleEnd::Error, 1);
        put(&both[1], CycleEnd::Interrupted, 2);
        let both = store.claim_all(2);
        assert!(both.iter().all(|cycle| cycle.state.is_empty()), "neither landed");
        put(&both[0], CycleEnd::More, 3);
        put(&both[1], CycleEnd::Interrupted, 4);
        let both = store.claim_all(2);
        let seen: Vec<_> =
            both.iter().map(|cycle| (cycle.mandate.cycle, cycle.state.get("seen").cloned())).collect();
        assert!(seen.contains(&(2, Some(json!(3)))), "the next cycle sees it: {seen:?}");
        assert!(seen.contains(&(1, None)), "the other attempt does not: {seen:?}");
    });
}

#[test]
fn a_retry_goes_through_the_same_numbers_as_new_attempts() {
    on_both(|store| {
        store.add_manual("m");
        let first = store.claim_one();
        store.begin_step(begin(&first, 1, calls(1), Some(gate(9)))).wait().unwrap();
        store.settle_step(settle(&first, 1, Some(calls(1)))).wait().unwrap();
        let mut more = finish(&first, CycleEnd::More);
        more.claim = Some(claim(1));
        let second = store.finish(more).wait().unwrap().claim.claimed.remove(0);
        store.end(&second, CycleEnd::Done);
        let retried = store.command("m".into(), MandateCommand::Retry, at(9)).wait().unwrap();
        assert_eq!(retried.state, MandateState::Queued);
        assert_eq!(store.mandate("m").unwrap().ended_at, None);
        let first = store.claim_one();
        assert_eq!((first.mandate.cycle, first.mandate.attempt), (1, 2));
        assert!(first.steps.is_empty() && first.booked.is_zero());
        store.end(&first, CycleEnd::More);
        let second = store.claim_one();
        assert_eq!((second.mandate.cycle, second.mandate.attempt), (2, 2));
        store.end(&second, CycleEnd::Done);
        let mut plans: Vec<_> = store
            .log("m")
            .iter()
            .filter(|line| line["op"] == "plan_commit")
            .map(|line| line["plan_id"].to_string())
            .collect();
        assert_eq!(plans.len(), 4);
        plans.dedup();
        assert_eq!(plans.len(), 4, "each has a plan of its own");
    });
}

#[test]
fn a_person_ends_a_review_in_three_ways() {
    on_both(|store| {
        for (id, verdict, state) in [
            ("done", Resolution::Done, MandateState::Succeeded),
            ("fail", Resolution::Fail, MandateState::Failed),
            ("redo", Resolution::Redo, MandateState::Queued),
        ] {
            store.add_manual(id);
            let cycle = store.claim_one();
            for seq in 1..=3 {
                store.begin_step(begin(&cycle, seq, calls(1), Some(gate(99)))).wait().unwrap();
                let mut settled = settle(&cycle, seq, Some(calls(1)));
                if seq == 2 {
                    settled.state = StepState::NeedsReview;
                }
                store.settle_step(settled).wait().unwrap();
            }
            assert_eq!(store.end(&cycle, CycleEnd::Review).state, MandateState::Review);
            let resolve = MandateCommand::Resolve { verdict, note: "I looked".into() };
            assert_eq!(store.command(id.into(), resolve, at(9)).wait().unwrap().state, state);
            assert_eq!(store.mandate(id).unwrap().reason.as_deref(), Some("I looked"));
        }
        let again = store.claim_one();
        assert_eq!((again.mandate.id.as_str(), again.mandate.attempt), ("redo", 2));
        assert_eq!(again.steps.len(), 1, "the step under review and all after it are forgotten");
        assert_eq!(again.booked, calls(3), "what they cost is not");
        assert_eq!(store.ledger(DAY).spent, calls(9));
    });
}

#[test]
fn a_diverged_run_that_is_redone_begins_with_an_empty_record() {
    on_both(|store| {
        store.add_manual("m");
        let cycle = store.claim_one();
        store.begin_step(begin(&cycle, 1, calls(1), Some(gate(99)))).wait().unwrap();
        store.settle_step(settle(&cycle, 1, Some(calls(1)))).wait().unwrap();
        let mut request = finish(&cycle, CycleEnd::Review);
        request.reason = Some("diverged".into());
        store.finish(request).wait().unwrap();
        let resolve = MandateCommand::Resolve { verdict: Resolution::Redo, note: "again".into() };
        store.command("m".into(), resolve, at(9)).wait().unwrap();
        let again = store.claim_one();
        assert_eq!((again.mandate.cycle, again.mandate.attempt, again.steps.len()), (1, 2, 0));
        store.log("m");
    });
}

#[test]
fn more_ends_at_the_cap_of_cycles() {
    on_both(|store| {
        let mut new = manual("m");
        new.bounds.max_cycles = 2;
        store.add(new).wait().unwrap();
        assert_eq!(store.end(&store.claim_one(), CycleEnd::More).state, MandateState::Queued);
        let last = store.end(&store.claim_one(), CycleEnd::More);
        assert_eq!((last.state, last.reason.as_deref()), (MandateState::Succeeded, Some("max_cycles")));
    });
}

#[test]
fn claims_are_booked_in_full_past_the_limit_and_then_nothing_starts() {
    on_both(|store| {
        store.add_manual("m");
        store.add_manual("next");
        let cycle = store.claim_one();
        let mut request = finish(&cycle, CycleEnd::Done);
        request.claimed = calls(50);
        request.claim = Some(ClaimRequest { gate: Some(gate(10)), ..claim(1) });
        let finished = store.finish(request).wait().unwrap();
        assert_eq!(finished.usage, calls(50));
        assert!(finished.claim.claimed.is_empty());
        let block = finished.claim.blocked.expect("the budget holds work back");
        assert_eq!((block.limit_kind, block.limit, block.used, block.calls), ("calls", 10, 50, 50));
        assert_eq!(store.ledger(DAY).spent, calls(50));
        assert_eq!(store.state("next"), MandateState::Queued);
    });
}

#[test]
fn words_of_a_runner_that_cannot_work_stand_on_what_waits_for_it() {
    on_both(|store| {
        store.add_manual("m");
        store.note_wait("stub".into(), Some("plugin is missing".into())).wait().unwrap();
        let commits = store.stats().commits;
        store.note_wait("stub".into(), Some("plugin is missing".into())).wait().unwrap();
        assert_eq!(store.stats().commits, commits, "nothing is written for no change");
        assert_eq!(store.mandate("m").unwrap().reason.as_deref(), Some("plugin is missing"));
        assert_eq!(
            store.mandates(&MandateFilter::default()).unwrap()[0].reason.as_deref(),
            Some("plugin is missing")
        );
        store.note_wait("stub".into(), None).wait().unwrap();
        assert_eq!(store.mandate("m").unwrap().reason, None);
    });
}

#[test]
fn phases_are_lines_of_the_plan_and_a_rerun_may_announce_them_again() {
    on_both(|store| {
        store.add_manual("m");
        let mut request = claim(1);
        let offer = RunnerOffer { generation: "g".into(), phases: true, commands: None };
        request.offers = Arc::new(HashMap::from([("stub".to_owned(), offer)]));
        let cycle = store.claim(request).wait().unwrap().claimed.remove(0);
        let note = |name: &str| {
            let what = NoteKind::Phase(name.into());
            let (cycle, attempt) = (cycle.mandate.cycle, cycle.mandate.attempt);
            store.note(CycleNote { mandate: "m".into(), cycle, attempt, now: at(4), what }).wait().unwrap();
        };
        note("observe");
        note("orient");
        let before = store.log("m").len();
        note("observe");
        assert_eq!(store.log("m").len(), before, "nothing changes");
        store.end(&cycle, CycleEnd::Done);
        let steps: Vec<_> = store
            .log("m")
            .iter()
            .filter(|line| line["op"] == "transition")
            .map(|line| format!("{} {}", line["step_id"].as_str().unwrap(), line["status"].as_str().unwrap()))
            .collect();
        assert_eq!(
            steps,
            [
                "observe_001 executing",
                "observe_001 completed",
                "orient_001 executing",
                "orient_001 completed"
            ]
        );
    });
}
