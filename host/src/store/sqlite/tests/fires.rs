//! What a fire does to schedules, occurrences and the queue.

use super::*;

#[test]
fn a_fire_moves_the_cursor_and_records_the_outcome() {
    on_both(|store| {
        let schedule = spec("daily", SchedulePolicy::default());
        store.adopt(vec![adopt("daily", 0)]).wait().unwrap();
        let mut evaluation = evaluation(&schedule, (0, 300), &[300]);
        evaluation.missed = vec![missed(60, 240, 4, "skip")];
        let outcome = store.fire(fire(301, vec![evaluation])).wait().unwrap();
        assert_eq!(outcome.fired.len(), 1);
        let state = store.schedule("daily").unwrap().unwrap();
        assert_eq!(
            (state.cursor, state.last_nominal, state.last_fired),
            (at(300), Some(at(300)), Some(at(301)))
        );
        let rows = store.occurrences("daily", 10).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (rows[0].outcome.as_str(), rows[0].mandate.as_deref()),
            ("fired", Some(&*outcome.fired[0].1))
        );
        assert_eq!((rows[1].reason.as_deref(), rows[1].count), (Some("skip"), 4));
        assert_eq!(store.occurrence("daily", at(120)).unwrap().count, 4);
        assert!(matches!(store.occurrence("daily", at(360)), Err(Error::NotFound { .. })));
    });
}

#[test]
fn an_evaluation_of_another_cursor_is_left_out_and_reported() {
    on_both(|store| {
        let (one, two) = (spec("one", SchedulePolicy::default()), spec("two", SchedulePolicy::default()));
        store.adopt(vec![adopt("one", 0), adopt("two", 30)]).wait().unwrap();
        let unknown = spec("unknown", SchedulePolicy::default());
        let all = [&one, &two, &unknown].map(|spec| evaluation(spec, (0, 60), &[60]));
        let outcome = store.fire(fire(60, all.to_vec())).wait().unwrap();
        assert_eq!(outcome.stale, ["two", "unknown"]);
        assert_eq!(outcome.fired.len(), 1);
        assert_eq!(store.schedule("two").unwrap().unwrap().cursor, at(30));
        let again = store.fire(fire(60, vec![evaluation(&one, (0, 60), &[60])])).wait().unwrap();
        assert_eq!((again.stale.len(), again.fired.len()), (1, 0), "the same evaluation fires once");
    });
}

#[test]
fn a_paused_schedule_fires_nothing_until_it_goes_on() {
    on_both(|store| {
        let schedule = spec("s", SchedulePolicy::default());
        store.adopt(vec![adopt("s", 0)]).wait().unwrap();
        let pause = Pause { since: at(10), until: None, note: Some("holiday".into()), by: "operator".into() };
        store.pause_schedule(PauseSchedule { name: "s".into(), pause: pause.clone() }).wait().unwrap();
        assert_eq!(store.schedule("s").unwrap().unwrap().pause, Some(pause));
        let outcome = store.fire(fire(60, vec![evaluation(&schedule, (0, 60), &[60])])).wait().unwrap();
        assert_eq!(outcome.stale, ["s"]);
        let missed = vec![missed(60, 180, 3, "paused")];
        store.resume_schedule(ResumeSchedule { name: "s".into(), cursor: at(200), missed }).wait().unwrap();
        let state = store.schedule("s").unwrap().unwrap();
        assert_eq!((state.pause, state.cursor), (None, at(200)));
        assert_eq!(store.occurrence("s", at(120)).unwrap().reason.as_deref(), Some("paused"));
        let gone = PauseSchedule {
            name: "gone".into(),
            pause: Pause { since: at(0), until: None, note: None, by: "operator".into() },
        };
        assert!(matches!(store.pause_schedule(gone).wait(), Err(Error::NotFound { kind: "schedule", .. })));
    });
}

#[test]
fn a_time_to_be_skipped_ends_paused_and_is_forgotten() {
    on_both(|store| {
        let schedule = spec("s", SchedulePolicy::default());
        store.adopt(vec![adopt("s", 0)]).wait().unwrap();
        store.skip_next("s".into(), at(60)).wait().unwrap();
        store.skip_next("s".into(), at(60)).wait().unwrap();
        assert_eq!(store.schedule("s").unwrap().unwrap().skip, [at(60)]);
        let outcome =
            store.fire(fire(120, vec![evaluation(&schedule, (0, 120), &[60, 120])])).wait().unwrap();
        assert_eq!(outcome.dropped, [("s".to_owned(), at(60), "paused")]);
        assert_eq!(outcome.fired.len(), 1);
        assert!(store.schedule("s").unwrap().unwrap().skip.is_empty());
        assert!(matches!(store.skip_next("s".into(), at(60)).wait(), Err(Error::Conflict(_))));
    });
}

/// Fires a schedule of that policy once more while one of it runs and others wait, and gives what came of it.
fn fire_beside(store: &Bench, policy: Overlap, runs: bool, waits: u32) -> FireOutcome {
    let name = format!("{policy:?}-{runs}-{waits}").to_lowercase();
    let schedule = spec(&name, with(policy));
    let filler = spec(&name, with(Overlap::Queue));
    store.adopt(vec![adopt(&name, 0)]).wait().unwrap();
    if runs {
        store.fire(fire(1, vec![evaluation(&filler, (0, 1), &[1])])).wait().unwrap();
        assert_eq!(store.claim_all(1).len(), 1);
    }
    let from = i64::from(runs);
    let until = 1 + i64::from(waits);
    let waiting: Vec<i64> = (2..=until).collect();
    if waits > 0 {
        store.fire(fire(until, vec![evaluation(&filler, (from, until), &waiting)])).wait().unwrap();
    }
    let from = if waits > 0 { until } else { from };
    store.fire(fire(200, vec![evaluation(&schedule, (from, 200), &[200])])).wait().unwrap()
}

#[test]
fn overlap_is_decided_inside_the_fire() {
    in_memory(|store| {
        for policy in
            [Overlap::Queue, Overlap::QueueOne, Overlap::Reject, Overlap::Allow, Overlap::AllowQueued]
        {
            for runs in [false, true] {
                for waits in [0, 1, 100] {
                    let outcome = fire_beside(store, policy, runs, waits);
                    let reason = match policy {
                        Overlap::Reject if runs || waits > 0 => Some("overlap"),
                        Overlap::QueueOne if waits > 0 => Some("overlap"),
                        _ if waits >= 100 => Some("queue_full"),
                        _ => None,
                    };
                    let got = outcome.dropped.first().map(|(_, _, reason)| *reason);
                    assert_eq!(got, reason, "{policy:?} runs={runs} waits={waits}");
                    assert_eq!(outcome.fired.len(), usize::from(reason.is_none()));
                    // What it left behind must not get in the way of the next case.
                    let open = MandateFilter::default();
                    for row in store.mandates(&open).unwrap().iter().filter(|row| row.ended_at.is_none()) {
                        let stop = MandateCommand::Stop { note: None };
                        if store.command(row.id.clone(), stop, at(201)).wait().unwrap().stop_running {
                            let cycle = store.cycles(&row.id).unwrap().remove(0);
                            let mut request = manual_finish(&row.id, &cycle);
                            request.end = CycleEnd::Cancelled;
                            store.finish(request).wait().unwrap();
                        }
                    }
                }
            }
        }
    });
}

fn manual_finish(id: &str, cycle: &CycleRow) -> FinishRequest {
    let mut mandate = kairos_plugin_api::Mandate::new(id, "");
    (mandate.cycle, mandate.attempt) = (cycle.cycle, cycle.attempt);
    let claimed = ClaimedCycle {
        mandate,
        runner: cycle.runner.clone(),
        generation: cycle.generation.clone(),
        steps: vec![],
        state: HashMap::new(),
        booked: Usage::ZERO,
    };
    finish(&claimed, CycleEnd::Done)
}

#[test]
fn a_rejected_fire_leaves_the_last_fire_as_it_was() {
    on_both(|store| {
        let schedule = spec("s", with(Overlap::Reject));
        store.adopt(vec![adopt("s", 0)]).wait().unwrap();
        store.fire(fire(60, vec![evaluation(&schedule, (0, 60), &[60])])).wait().unwrap();
        let outcome = store.fire(fire(121, vec![evaluation(&schedule, (60, 120), &[120])])).wait().unwrap();
        assert_eq!(outcome.dropped, [("s".to_owned(), at(120), "overlap")]);
        let state = store.schedule("s").unwrap().unwrap();
        assert_eq!((state.last_nominal, state.last_fired), (Some(at(60)), Some(at(60))));
        assert_eq!(state.cursor, at(120), "the occurrence has its outcome");
        assert_eq!(store.occurrence("s", at(120)).unwrap().reason.as_deref(), Some("overlap"));
    });
}

#[test]
fn replace_cancels_what_waits_and_asks_what_runs_to_stop() {
    on_both(|store| {
        let (queue, replace) = (spec("s", with(Overlap::Queue)), spec("s", with(Overlap::Replace)));
        store.adopt(vec![adopt("s", 0)]).wait().unwrap();
        let fired = store.fire(fire(2, vec![evaluation(&queue, (0, 2), &[1, 2])])).wait().unwrap().fired;
        let running = store.claim_one();
        let outcome = store.fire(fire(3, vec![evaluation(&replace, (2, 3), &[3])])).wait().unwrap();
        assert_eq!(outcome.cancel, std::slice::from_ref(&running.mandate.id));
        let waited = store.mandate(&fired[1].1).unwrap();
        assert_eq!((waited.state, waited.reason.as_deref()), (MandateState::Cancelled, Some("replaced")));
        assert!(store.claim_all(5).is_empty(), "the new one waits for the old one's end");
        let finished = store.end(&running, CycleEnd::More);
        assert_eq!((finished.state, finished.reason.as_deref()), (MandateState::Cancelled, Some("replaced")));
        assert_eq!(store.claim_one().mandate.id, outcome.fired[0].1);
    });
}

#[test]
fn one_of_a_key_runs_at_a_time_except_beside_its_own_schedule() {
    on_both(|store| {
        let scoped = |concurrency| SchedulePolicy { project_scope: Some("repo".into()), ..with(concurrency) };
        let (a, b) = (spec("a", scoped(Overlap::Queue)), spec("b", scoped(Overlap::Queue)));
        store.adopt(vec![adopt("a", 0), adopt("b", 0), adopt("c", 0)]).wait().unwrap();
        store.fire(fire(2, vec![evaluation(&a, (0, 2), &[1]), evaluation(&b, (0, 2), &[2])])).wait().unwrap();
        let only = store.claim_all(9);
        assert_eq!(only.len(), 1, "they share a scope");
        let c = spec("c", with(Overlap::Allow));
        store.fire(fire(3, vec![evaluation(&c, (0, 3), &[1, 2, 3])])).wait().unwrap();
        assert_eq!(store.claim_all(9).len(), 3, "they run beside their own schedule");
        store.end(&only[0], CycleEnd::Done);
        assert_eq!(store.claim_all(9).len(), 1);
        assert_eq!(store.counts().unwrap().running.len(), 4);
    });
}

#[test]
fn allow_waits_for_another_schedule_of_its_scope() {
    on_both(|store| {
        let scoped = |concurrency| SchedulePolicy { project_scope: Some("repo".into()), ..with(concurrency) };
        store.adopt(vec![adopt("a", 0), adopt("b", 0)]).wait().unwrap();
        let (a, b) = (spec("a", scoped(Overlap::Queue)), spec("b", scoped(Overlap::Allow)));
        store.fire(fire(1, vec![evaluation(&a, (0, 1), &[1])])).wait().unwrap();
        let first = store.claim_one();
        store.fire(fire(2, vec![evaluation(&b, (0, 2), &[2])])).wait().unwrap();
        assert!(store.claim_all(9).is_empty());
        store.end(&first, CycleEnd::Done);
        assert_eq!(store.claim_all(9).len(), 1);
    });
}

#[test]
fn work_starts_in_queue_order_on_offered_runners_only() {
    on_both(|store| {
        for (id, runner) in
            [("1", "a"), ("2", "missing"), ("3", "b"), ("4", "a"), ("5", "missing"), ("6", "b")]
        {
            store.add(NewMandate { runner: runner.into(), ..manual(id) }).wait().unwrap();
        }
        let request = ClaimRequest { offers: offers(&["a", "b"]), ..claim(3) };
        let started: Vec<_> = store
            .claim(request.clone())
            .wait()
            .unwrap()
            .claimed
            .into_iter()
            .map(|cycle| cycle.mandate.id)
            .collect();
        assert_eq!(started, ["1", "3", "4"]);
        let rest = store.claim(request).wait().unwrap().claimed;
        assert_eq!((rest.len(), rest[0].mandate.id.as_str()), (1, "6"));
        assert_eq!(store.counts().unwrap().queued, 2);
    });
}

#[test]
fn jitter_holds_a_mandate_until_its_time() {
    on_both(|store| {
        let schedule = spec("s", SchedulePolicy::default());
        store.adopt(vec![adopt("s", 0)]).wait().unwrap();
        let mut evaluation = evaluation(&schedule, (0, 60), &[60]);
        evaluation.fires[0].not_before = at(90);
        store.fire(fire(60, vec![evaluation])).wait().unwrap();
        store.add_manual("after");
        let early = store.claim(ClaimRequest { now: at(60), ..claim(9) }).wait().unwrap();
        assert_eq!(early.next_ready, Some(at(90)));
        assert_eq!(early.claimed.len(), 1, "the one behind it does not wait");
        let later = store.claim(ClaimRequest { now: at(90), ..claim(9) }).wait().unwrap();
        assert_eq!((later.claimed.len(), later.next_ready), (1, None));
    });
}

#[test]
fn a_schedule_that_skips_without_budget_records_so() {
    on_both(|store| {
        let policy = SchedulePolicy {
            on_budget: crate::domain::schedule::OnBudget::Skip,
            ..SchedulePolicy::default()
        };
        let (skips, holds) = (spec("skips", policy), spec("holds", SchedulePolicy::default()));
        store.adopt(vec![adopt("skips", 0), adopt("holds", 0)]).wait().unwrap();
        let both = vec![evaluation(&skips, (0, 1), &[1]), evaluation(&holds, (0, 1), &[1])];
        let mut request = fire(1, both);
        request.gate = Some(gate(0));
        request.claim = Some(ClaimRequest { gate: Some(gate(0)), ..claim(9) });
        let outcome = store.fire(request).wait().unwrap();
        assert_eq!(outcome.dropped, [("skips".to_owned(), at(1), "budget")]);
        assert_eq!(outcome.fired[0].0, "holds");
        assert!(outcome.claim.claimed.is_empty() && outcome.claim.blocked.is_some());
        assert_eq!(store.counts().unwrap().queued, 1);
    });
}

#[test]
fn runs_of_equal_outcome_are_one_row() {
    on_both(|store| {
        let schedule = spec("s", SchedulePolicy::default());
        store.adopt(vec![adopt("s", 0)]).wait().unwrap();
        let step = |from: i64, to: i64, fires: &[i64], runs: Vec<MissedRun>| {
            let mut evaluation = evaluation(&schedule, (from, to), fires);
            evaluation.missed = runs;
            store.fire(fire(to, vec![evaluation])).wait().unwrap();
        };
        step(0, 10, &[], vec![missed(1, 10, 10, "skip")]);
        step(10, 20, &[], vec![missed(11, 20, 10, "skip")]);
        step(20, 30, &[30], vec![missed(21, 24, 4, "skip"), missed(25, 29, 5, "coalesced")]);
        step(30, 40, &[], vec![missed(31, 40, 10, "coalesced")]);
        let rows = store.occurrences("s", 0).unwrap();
        let seen: Vec<_> = rows.iter().rev().map(|row| (row.from, row.to, row.count)).collect();
        assert_eq!(
            seen,
            [(at(1), at(24), 24), (at(25), at(29), 5), (at(30), at(30), 1), (at(31), at(40), 10)]
        );
    });
}

#[test]
fn a_clock_set_back_fires_nothing_twice() {
    on_both(|store| {
        let schedule = spec("s", SchedulePolicy::default());
        store.adopt(vec![adopt("s", 0)]).wait().unwrap();
        let mut ahead = evaluation(&schedule, (0, 40), &[10, 40]);
        ahead.missed = vec![missed(20, 30, 2, "skip")];
        store.fire(fire(40, vec![ahead])).wait().unwrap();
        assert!(store.settled_ahead().unwrap().is_empty());
        store.adopt(vec![adopt("s", 5)]).wait().unwrap();
        assert_eq!(store.settled_ahead().unwrap(), [("s".to_owned(), at(10)), ("s".to_owned(), at(40))]);
        assert!(matches!(store.occurrence("s", at(20)), Err(Error::NotFound { .. })), "it is open again");
        let again =
            store.fire(fire(41, vec![evaluation(&schedule, (5, 41), &[10, 20, 30, 40])])).wait().unwrap();
        let nominals: Vec<_> = again.fired.iter().map(|(_, _, nominal)| *nominal).collect();
        assert_eq!(nominals, [at(20), at(30)]);
        assert!(store.settled_ahead().unwrap().is_empty());
    });
}

#[test]
fn a_client_request_makes_one_mandate_however_often_it_is_sent() {
    on_both(|store| {
        let request = |id: &str| NewMandate { request_id: Some("r-1".into()), ..manual(id) };
        let first = store.add(request("a")).wait().unwrap();
        assert!(first.created);
        let again = store.add(request("b")).wait().unwrap();
        assert_eq!((again.id.as_str(), again.created), ("a", false));
        assert!(matches!(store.add(manual("a")).wait(), Err(Error::Conflict(_))), "an id is taken once");
        assert_eq!(store.mandates(&MandateFilter::default()).unwrap().len(), 1);
    });
}

#[test]
fn a_backfill_has_the_occurrence_s_id_and_never_takes_an_occupied_one() {
    on_both(|store| {
        let schedule = spec("s", SchedulePolicy::default());
        store.adopt(vec![adopt("s", 0)]).wait().unwrap();
        let mut past = evaluation(&schedule, (0, 60), &[60]);
        past.missed = vec![missed(30, 30, 1, "skip")];
        store.fire(fire(60, vec![past])).wait().unwrap();
        let backfill = |second: i64, again| NewMandate {
            origin: Origin::Backfill,
            schedule: Some("s".into()),
            nominal: Some(at(second)),
            again,
            ..manual("ignored")
        };
        assert!(matches!(store.add(backfill(60, false)).wait(), Err(Error::Conflict(_))));
        assert_eq!(store.add(backfill(60, true)).wait().unwrap().id, "20261122T090100Z-s-1");
        assert_eq!(store.add(backfill(30, false)).wait().unwrap().id, "20261122T090030Z-s-0");
        assert!(matches!(store.add(backfill(30, false)).wait(), Err(Error::Conflict(_))));
        assert_eq!(
            store.occurrence("s", at(30)).unwrap().outcome,
            "missed",
            "that is what happened at its time"
        );
        assert_eq!(store.add(backfill(90, false)).wait().unwrap().id, "20261122T090130Z-s-0");
        let due = store.fire(fire(90, vec![evaluation(&schedule, (60, 90), &[90])])).wait().unwrap();
        assert!(due.fired.is_empty(), "a backfill ran ahead of it");
    });
}

#[test]
fn failures_in_a_row_pause_the_schedule_and_a_success_starts_the_count_again() {
    on_both(|store| {
        let schedule = spec("s", SchedulePolicy::default());
        store.adopt(vec![adopt("s", 0)]).wait().unwrap();
        let mut cursor = 0;
        let mut run = |ends: &[CycleEnd]| {
            store
                .fire(fire(cursor + 1, vec![evaluation(&schedule, (cursor, cursor + 1), &[cursor + 1])]))
                .wait()
                .unwrap();
            cursor += 1;
            let mut paused = None;
            for end in ends {
                let mut request = finish(&store.claim_one(), *end);
                request.pause_after_failures = Some(2);
                paused = store.finish(request).wait().unwrap().auto_paused;
            }
            paused
        };
        let failure = [CycleEnd::Error, CycleEnd::Error];
        assert_eq!(run(&failure), None);
        assert_eq!(run(&[CycleEnd::Error, CycleEnd::Done]), None);
        assert_eq!(run(&failure), None, "a success came in between");
        assert_eq!(run(&failure).as_deref(), Some("s"));
        let state = store.schedule("s").unwrap().unwrap();
        assert_eq!((state.failures, state.pause.unwrap().by.as_str()), (2, "failures"));
        store
            .resume_schedule(ResumeSchedule { name: "s".into(), cursor: at(9), missed: vec![] })
            .wait()
            .unwrap();
        assert_eq!(store.schedule("s").unwrap().unwrap().failures, 0);
    });
}

#[test]
fn odd_names_are_names() {
    on_both(|store| {
        for name in ["a/b", "../x", "", "\0", "it's", "🦀", &"x".repeat(10_240)] {
            let schedule = spec(name, SchedulePolicy::default());
            store.adopt(vec![adopt(name, 0)]).wait().unwrap();
            let fired = store.fire(fire(1, vec![evaluation(&schedule, (0, 1), &[1])])).wait().unwrap().fired;
            assert_eq!(store.mandate(&fired[0].1).unwrap().schedule.as_deref(), Some(name));
            assert_eq!(store.schedule(name).unwrap().unwrap().cursor, at(1));
        }
    });
}

#[test]
fn events_tell_each_change_in_order() {
    on_both(|store| {
        let schedule = spec("s", SchedulePolicy::default());
        store.adopt(vec![adopt("s", 0)]).wait().unwrap();
        store.fire(fire(1, vec![evaluation(&schedule, (0, 1), &[1])])).wait().unwrap();
        store.end(&store.claim_one(), CycleEnd::Done);
        let event = NewEvent {
            at: at(9),
            kind: "clock_stepped_back",
            schedule: None,
            mandate: None,
            details: json!({"by": 3}),
        };
        store.event(event).wait().unwrap();
        let events = store.events(0, 100).unwrap();
        let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(
            kinds,
            [
                "mandate_queued",
                "schedule_fired",
                "mandate_started",
                "cycle_finished",
                "mandate_finished",
                "clock_stepped_back"
            ]
        );
        assert_eq!(events[1].schedule.as_deref(), Some("s"));
        let tail = store.events(events[4].id, 100).unwrap();
        assert_eq!((tail.len(), &tail[0].details), (1, &json!({"by": 3})));
    });
}
