//! Boot after a crash, and what a crash may cost.

use super::*;

fn on_both_mut(test: impl Fn(&mut Bench)) {
    test(&mut Bench { store: SqliteStore::in_memory().unwrap(), dir: None });
    test(&mut on_file());
}

#[test]
fn a_running_mandate_goes_on_from_its_first_step_without_a_result() {
    on_both_mut(|store| {
        store.add_manual("m");
        store.add_manual("waits");
        let cycle = store.claim_one();
        store.begin_step(begin(&cycle, 1, calls(1), Some(gate(9)))).wait().unwrap();
        store.settle_step(settle(&cycle, 1, Some(calls(1)))).wait().unwrap();
        store.begin_step(begin(&cycle, 2, calls(3), Some(gate(9)))).wait().unwrap();
        store.crashed();
        let recovered = store.recovered();
        assert!(recovered.unclean);
        assert_eq!(recovered.unknown_calls, 3);
        let [again] = &recovered.running[..] else { panic!("one ran: {recovered:?}") };
        assert_eq!((again.mandate.cycle, again.mandate.attempt), (1, 2));
        assert_eq!(again.generation, cycle.generation);
        assert_eq!(again.booked, calls(4));
        let states: Vec<_> = again.steps.iter().map(|step| step.state).collect();
        assert_eq!(states, [StepState::Done, StepState::Executing]);
        assert_eq!(store.ledger(DAY), DayTotals { spent: calls(4), reserved: Usage::ZERO });
        assert_eq!(store.state("waits"), MandateState::Queued);
        let statuses: Vec<_> = store.cycles("m").unwrap().iter().map(|cycle| cycle.status).collect();
        assert_eq!(statuses, [Some(CycleStatus::Interrupted), None]);
        store.end(again, CycleEnd::Done);
        store.log("m");
    });
}

#[test]
fn recovery_may_be_cut_short_and_run_again() {
    on_both_mut(|store| {
        store.add_manual("m");
        let cycle = store.claim_one();
        store.begin_step(begin(&cycle, 1, calls(2), Some(gate(9)))).wait().unwrap();
        store.crashed();
        let first = store.recovered();
        let ledger = store.ledger(DAY);
        store.crashed();
        let second = store.recovered();
        assert_eq!((second.running.len(), second.unknown_calls), (1, 0), "nothing is counted twice");
        assert_eq!(second.running[0].steps, first.running[0].steps);
        assert_eq!(second.running[0].mandate.attempt, first.running[0].mandate.attempt + 1);
        assert_eq!(store.ledger(DAY), ledger);
        let lines = store.log("m");
        assert_eq!(lines.iter().filter(|line| line["op"] == "plan_commit").count(), 1);
    });
}

#[test]
fn a_mandate_that_ran_in_twenty_boots_that_died_goes_to_a_person() {
    on_both_mut(|store| {
        store.add_manual("deadly");
        store.claim_one();
        for boot in 1..CRASH_LOOP_BOOTS {
            store.crashed();
            assert_eq!(store.recovered().running.len(), 1, "boot {boot}");
        }
        store.crashed();
        let last = store.recovered();
        assert_eq!((last.running.len(), last.crash_loops), (0, vec!["deadly".to_owned()]));
        let row = store.mandate("deadly").unwrap();
        assert_eq!((row.state, row.reason.as_deref()), (MandateState::Review, Some("crash_loop")));
        let redo = MandateCommand::Resolve { verdict: Resolution::Redo, note: "fixed".into() };
        store.command("deadly".into(), redo, at(9)).wait().unwrap();
        store.claim_one();
        store.crashed();
        assert_eq!(store.recovered().running.len(), 1, "the count began again");
    });
}

#[test]
fn a_cycle_that_ended_begins_the_count_of_deaths_again() {
    on_both_mut(|store| {
        store.add_manual("m");
        store.claim_one();
        for _ in 0..3 {
            for _ in 1..CRASH_LOOP_BOOTS {
                store.crashed();
                assert_eq!(store.recovered().running.len(), 1);
            }
            let row = store.cycles("m").unwrap().pop().unwrap();
            let mut mandate = kairos_plugin_api::Mandate::new("m", "");
            (mandate.cycle, mandate.attempt) = (row.cycle, row.attempt);
            let cycle = ClaimedCycle {
                mandate,
                runner: row.runner,
                generation: row.generation,
                steps: vec![],
                state: HashMap::new(),
                booked: Usage::ZERO,
            };
            store.end(&cycle, CycleEnd::More);
            store.claim_one();
        }
    });
}

#[test]
fn a_stop_that_was_asked_for_survives_a_crash() {
    on_both_mut(|store| {
        store.add_manual("m");
        store.claim_one();
        let stop = MandateCommand::Stop { note: Some("enough".into()) };
        store.command("m".into(), stop, at(1)).wait().unwrap();
        store.crashed();
        let again = store.recovered().running.remove(0);
        let finished = store.end(&again, CycleEnd::More);
        assert_eq!((finished.state, finished.reason.as_deref()), (MandateState::Cancelled, Some("enough")));
    });
}

#[test]
fn what_was_acknowledged_is_there_and_only_lazy_work_that_still_waited_is_not() {
    on_both_mut(|store| {
        store.add_manual("m");
        let cycle = store.claim_one();
        store.begin_step(begin(&cycle, 1, calls(1), Some(gate(9)))).wait().unwrap();
        let pending = store.settle_step(settle(&cycle, 1, Some(calls(1))));
        let old = store.store.clone();
        store.crashed();
        let acknowledged = pending.wait().is_ok();
        let recovered = store.recovered();
        let done = recovered.running[0].steps[0].state == StepState::Done;
        assert_eq!(done, acknowledged);
        assert_eq!(store.ledger(DAY).spent, calls(1), "it is counted either way");
        assert!(matches!(old.add(manual("x")).wait(), Err(Error::Closed)));
    });
}

#[test]
fn a_clean_stop_is_told_from_a_crash() {
    let bench = on_file();
    let path = bench.path().unwrap().to_owned();
    assert!(!bench.was_unclean(), "a new file has not crashed");
    bench.add_manual("m");
    let cycle = bench.claim_one();
    bench.begin_step(begin(&cycle, 1, calls(1), Some(gate(9)))).wait().unwrap();
    let rides_along = bench.settle_step(settle(&cycle, 1, Some(calls(1))));
    bench.close().wait().unwrap();
    rides_along.wait().unwrap();
    assert!(matches!(bench.close().wait(), Err(Error::Closed)));
    let open = || SqliteStore::open(OpenOptions { path: path.clone(), sink: None }).unwrap();
    let again = open();
    assert!(!again.was_unclean());
    let recovered = again.recover(RecoverRequest { now: at(9) }).wait().unwrap();
    assert!(!recovered.unclean);
    assert_eq!(recovered.running[0].steps[0].state, StepState::Done);
    drop(again);
    let third = open();
    assert!(third.was_unclean(), "the second process did not close it");
    assert!(third.recover(RecoverRequest { now: at(9) }).wait().unwrap().unclean);
    SqliteStore::full_check(&path).unwrap();
}

#[test]
fn boot_looks_at_open_work_only() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let mut conn = open::memory().unwrap();
    // Counts the engine's own steps, a hundred at a time; a row looked at takes several.
    let steps = Arc::new(AtomicU64::new(0));
    let ticks = Arc::clone(&steps);
    let tick = move || {
        ticks.fetch_add(100, Ordering::Relaxed);
        false
    };
    conn.progress_handler(100, Some(tick)).unwrap();
    let bench = Bench { store: SqliteStore::serve(conn, None, None, true).unwrap(), dir: None };
    bench.run(|txn| {
        for number in 0..10_000 {
            txn.exec(
                "INSERT INTO mandate(id, origin, goal, runner, bounds, state, created, ended, cycle, attempt, seq) \
                 VALUES(?1, 'manual', 'g', 'stub', '{}', 'succeeded', ?2, ?2, 1, 1, 4)",
                (format!("old-{number}"), number),
            )?;
            txn.exec(
                "INSERT INTO usage(mandate, cycle, attempt, day, kind, state, calls, input, output, cost, at) \
                 VALUES(?1, 1, 1, 'd', 'call', 'settled', 1, 0, 0, 0, 0)",
                [number],
            )?;
        }
        Ok(())
    })
    .wait()
    .unwrap();
    for number in 0..3 {
        bench.add_manual(&format!("m{number}"));
    }
    let cycles = bench.claim_all(3);
    bench.begin_step(begin(&cycles[0], 1, calls(1), Some(gate(9)))).wait().unwrap();
    // The engine says how it finds each; a whole table would be a SCAN of it.
    let plan = |sql: &'static str| {
        let plan: Vec<String> = bench
            .look(move |conn| txn::all(conn, &format!("EXPLAIN QUERY PLAN {sql}"), [], |row| row.get(3)))
            .unwrap();
        plan.join("; ")
    };
    assert!(plan(recover::RUNNING).contains("USING INDEX mandate_open"), "{}", plan(recover::RUNNING));
    let reserved = plan(ledger::RESERVED);
    assert!(reserved.contains("usage_reserved"), "{reserved}");
    let before = steps.load(Ordering::Relaxed);
    assert_eq!(bench.recovered().running.len(), 3);
    assert_eq!(bench.wal_heads(true).unwrap().len(), 3);
    assert_eq!(bench.counts().unwrap().running.len(), 3);
    let taken = steps.load(Ordering::Relaxed) - before;
    assert!(taken < 10_000, "{taken} steps for three open mandates among ten thousand");
}
