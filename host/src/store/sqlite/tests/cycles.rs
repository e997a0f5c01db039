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
