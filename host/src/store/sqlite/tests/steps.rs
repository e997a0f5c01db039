//! Effects of a running cycle: gate, reservation, result, usage.

use super::*;

#[test]
fn racing_reservations_never_pass_the_limit() {
    on_both(|store| {
        const LIMIT: u64 = 100;
        const RACERS: u64 = 64;
        for number in 0..RACERS {
            store.add_manual(&format!("m{number}"));
        }
        let cycles = store.claim_all(RACERS as usize);
        assert_eq!(cycles.len() as u64, RACERS);
        std::thread::scope(|scope| {
            for cycle in &cycles {
                let store = &store.store;
                scope.spawn(move || {
                    for seq in 1..=10 {
                        let begun =
                            store.begin_step(begin(cycle, seq, calls(1), Some(gate(LIMIT)))).wait().unwrap();
                        let BegunStep::Begun = begun else { return };
                        // A third is cheaper than reserved, which makes room for others.
                        let real = calls(u64::from(seq % 3 != 0));
                        store.settle_step(settle(cycle, seq, Some(real))).wait().unwrap();
                    }
                });
            }
        });
        let totals = store.ledger(DAY);
        assert!(totals.spent.llm_calls <= LIMIT, "{totals:?}");
        assert_eq!(totals.spent.llm_calls, LIMIT, "and all of it can be used");
        assert!(totals.reserved.is_zero());
        let stats = store.stats();
        assert!(stats.commits < stats.requests, "racers share commits: {stats:?}");
    });
}

#[test]
fn a_refused_reservation_records_nothing() {
    on_both(|store| {
        store.add_manual("m");
        let cycle = store.claim_one();
        let before = (store.stats().commits, store.log("m").len());
        let BegunStep::Exhausted(block) =
            store.begin_step(begin(&cycle, 1, calls(3), Some(gate(2)))).wait().unwrap()
        else {
            panic!("three do not fit into two")
        };
        assert_eq!((block.limit, block.used), (2, 0));
        assert_eq!((store.stats().commits, store.log("m").len()), before);
        assert!(store.steps("m").unwrap().is_empty());
        assert_eq!(store.ledger(DAY), DayTotals::default());
    });
}

#[test]
fn tokens_and_money_are_gated_alike_and_what_is_not_asked_for_is_not() {
    on_both(|store| {
        store.add_manual("m");
        let cycle = store.claim_one();
        let limits = |tokens, nano_usd| {
            Some(BudgetGate { day: DAY.into(), limits: Limits { calls: Some(0), tokens, nano_usd } })
        };
        let ask = Usage { llm_calls: 0, input_tokens: 60, output_tokens: 50, cost_nano_usd: 5 };
        let mut seq = 0;
        let mut begun = |limits| {
            seq += 1;
            match store.begin_step(begin(&cycle, seq, ask, limits)).wait().unwrap() {
                BegunStep::Begun => None,
                BegunStep::Exhausted(block) => Some(block.limit_kind),
            }
        };
        assert_eq!(begun(limits(Some(109), None)), Some("tokens"));
        assert_eq!(begun(limits(Some(110), Some(4))), Some("usd"));
        assert_eq!(begun(limits(Some(110), Some(5))), None);
        assert_eq!(store.ledger(DAY).reserved, ask);
    });
}

#[test]
fn a_result_settles_its_reservation_with_the_real_figure() {
    on_both(|store| {
        store.add_manual("m");
        let cycle = store.claim_one();
        store.begin_step(begin(&cycle, 1, calls(5), Some(gate(9)))).wait().unwrap();
        assert_eq!(store.ledger(DAY), DayTotals { spent: Usage::ZERO, reserved: calls(5) });
        store.settle_step(settle(&cycle, 1, Some(calls(2)))).wait().unwrap();
        assert_eq!(store.ledger(DAY), DayTotals { spent: calls(2), reserved: Usage::ZERO });
        store.begin_step(begin(&cycle, 2, calls(3), Some(gate(9)))).wait().unwrap();
        store.settle_step(settle(&cycle, 2, None)).wait().unwrap();
        assert_eq!(store.ledger(DAY).spent, calls(5), "what nobody knows counts as reserved");
        let steps = store.steps("m").unwrap();
        assert_eq!((steps[0].state, steps[0].ended_at), (StepState::Done, Some(at(3))));
        assert_eq!(steps[0].result, Some(json!({"text": "answer 1"})));
        let lines = store.log("m");
        let done = lines.iter().find(|line| line["status"] == "completed").unwrap();
        assert_eq!(
            (done["step_id"].as_str(), done["usage"]["llm_calls"].as_u64()),
            (Some("llm_001_001"), Some(2))
        );
    });
}

#[test]
fn a_recorded_step_is_never_begun_or_settled_again() {
    on_both(|store| {
        store.add_manual("m");
        let cycle = store.claim_one();
        store.begin_step(begin(&cycle, 1, calls(1), Some(gate(9)))).wait().unwrap();
        store.settle_step(settle(&cycle, 1, Some(calls(1)))).wait().unwrap();
        assert!(matches!(
            store.begin_step(begin(&cycle, 1, calls(1), Some(gate(9)))).wait(),
            Err(Error::Conflict(_))
        ));
        assert!(matches!(
            store.settle_step(settle(&cycle, 1, Some(calls(9)))).wait(),
            Err(Error::Conflict(_))
        ));
        assert!(matches!(
            store.settle_step(settle(&cycle, 7, None)).wait(),
            Err(Error::NotFound { kind: "step", .. })
        ));
        assert_eq!(store.ledger(DAY).spent, calls(1));
    });
}

#[test]
fn an_open_step_is_begun_again_with_a_fresh_reservation() {
    on_both(|store| {
        store.add_manual("m");
        let first = store.claim_one();
        store.begin_step(begin(&first, 1, calls(2), Some(gate(99)))).wait().unwrap();
        store.end(&first, CycleEnd::Interrupted);
        assert_eq!(store.ledger(DAY), DayTotals { spent: calls(2), reserved: Usage::ZERO });
        let again = store.claim_one();
        let mut other = begin(&again, 1, calls(2), Some(gate(99)));
        other.key = "another".into();
        assert!(matches!(store.begin_step(other).wait(), Err(Error::Conflict(_))), "it is another step");
        store.begin_step(begin(&again, 1, calls(2), Some(gate(99)))).wait().unwrap();
        assert_eq!(store.ledger(DAY), DayTotals { spent: calls(2), reserved: calls(2) });
        store.settle_step(settle(&again, 1, Some(calls(1)))).wait().unwrap();
        assert_eq!(store.end(&again, CycleEnd::Done).usage, calls(3));
        let lines = store.log("m");
        assert_eq!(lines.iter().filter(|line| line["op"] == "append").count(), 1);
        let close = lines.last().unwrap();
        assert_eq!(close["usage"]["llm_calls"], 3);
        assert_eq!(close["unmetered"][DAY]["llm_calls"], 2, "no step's line carries the first call: {close}");
    });
}

#[test]
fn a_straggler_corrects_its_usage_and_nothing_else() {
    on_both(|store| {
        store.add_manual("m");
        let first = store.claim_one();
        store.begin_step(begin(&first, 1, calls(2), Some(gate(99)))).wait().unwrap();
        store.end(&first, CycleEnd::Error);
        let again = store.claim_one();
        store.begin_step(begin(&again, 1, calls(1), Some(gate(99)))).wait().unwrap();
        store.settle_step(settle(&first, 1, Some(calls(7)))).wait().unwrap();
        assert_eq!(store.ledger(DAY), DayTotals { spent: calls(7), reserved: calls(1) });
        let open = store.steps("m").unwrap();
        assert!(open.iter().all(|step| step.state == StepState::Executing), "{open:?}");
        store.settle_step(settle(&again, 1, Some(calls(1)))).wait().unwrap();
        assert_eq!(store.ledger(DAY), DayTotals { spent: calls(8), reserved: Usage::ZERO });
    });
}

#[test]
fn a_given_up_call_is_booked_and_its_step_stays_open() {
    on_both(|store| {
        store.add_manual("m");
        let cycle = store.claim_one();
        store.begin_step(begin(&cycle, 1, calls(2), Some(gate(99)))).wait().unwrap();
        let given_up = SettleStep { state: StepState::Executing, ..settle(&cycle, 1, Some(calls(1))) };
        store.settle_step(given_up).wait().unwrap();
        assert_eq!(store.ledger(DAY), DayTotals { spent: calls(1), reserved: Usage::ZERO });
        store.end(&cycle, CycleEnd::Interrupted);
        assert_eq!(store.ledger(DAY).spent, calls(1));
        let again = store.claim_one();
        assert_eq!((again.steps[0].state, again.steps[0].result.clone()), (StepState::Executing, None));
        assert_eq!(again.booked, calls(1));
        store.begin_step(begin(&again, 1, calls(2), Some(gate(99)))).wait().unwrap();
    });
}

#[test]
fn answers_and_deltas_are_steps_that_a_rerun_sees() {
    on_both(|store| {
        store.add_manual("m");
        let cycle = store.claim_one();
        let note = |what| CycleNote { mandate: "m".into(), cycle: 1, attempt: 1, now: at(4), what };
        let answer = |seq| NoteKind::Answer { seq, name: "now".into(), value: json!("2026") };
        store.note(note(answer(1))).wait().unwrap();
        assert!(matches!(store.note(note(answer(1))).wait(), Err(Error::Conflict(_))));
        let delta = |seq| NoteKind::Usage { delta: calls(2), day: DAY.into(), seq };
        store.note(note(delta(Some(2)))).wait().unwrap();
        assert!(matches!(store.note(note(delta(Some(2)))).wait(), Err(Error::Conflict(_))), "and books once");
        store.end(&cycle, CycleEnd::Interrupted);
        store.note(note(delta(None))).wait().unwrap();
        let again = store.claim_one();
        let names: Vec<_> =
            again.steps.iter().map(|step| (step.kind, step.name.as_str(), step.state)).collect();
        let done = StepState::Done;
        assert_eq!(names, [(StepKind::Answer, "now", done), (StepKind::Answer, "usage", done)]);
        assert_eq!(again.steps[1].result, Some(json!(calls(2))));
        assert_eq!(again.booked, calls(4));
        assert_eq!(store.ledger(DAY).spent, calls(4));
    });
}

#[test]
fn without_a_budget_usage_is_still_counted() {
    on_both(|store| {
        store.add_manual("m");
        let cycle = store.claim_one();
        store.begin_step(begin(&cycle, 1, Usage::ZERO, None)).wait().unwrap();
        store.settle_step(settle(&cycle, 1, Some(calls(1)))).wait().unwrap();
        assert_eq!(store.end(&cycle, CycleEnd::Done).usage, calls(1));
        assert_eq!(store.ledger(DAY).spent, calls(1));
        assert_eq!(store.cycles("m").unwrap()[0].usage, calls(1));
    });
}

#[test]
fn absurd_claims_neither_wrap_nor_break_the_sum() {
    on_both(|store| {
        let most =
            Usage { llm_calls: u64::MAX, input_tokens: u64::MAX, output_tokens: 1, cost_nano_usd: u64::MAX };
        for number in 0..3 {
            store.add_manual(&format!("m{number}"));
            let mut request = finish(&store.claim_one(), CycleEnd::Done);
            request.claimed = most;
            store.finish(request).wait().unwrap();
        }
        let spent = store.ledger(DAY).spent;
        assert!(spent.llm_calls > 1 << 54 && spent.output_tokens == 3, "{spent:?}");
    });
}
