//! Runners that call without end: what they leave to be written is bounded in number and size, and
//! what goes beyond is refused alike in a re-run.

use kairos_plugin_api::context::{limit, method};
use kairos_plugin_api::{Usage, code};

use super::*;
use crate::broker::handover::WAITING_MAX;
use crate::domain::mandate::CycleEnd;
use crate::store::{StepKind, Store};

fn phase(name: &str) -> Asked {
    (method::PHASE, json!({ "name": name }))
}

#[test]
fn a_phase_is_noted_once_and_one_too_many_is_refused_also_in_a_re_run() {
    let mut world = World::counting();
    let services = world.services(world.claim());
    let before = world.store.stats().requests;
    for n in 0..2_000 {
        ask(&services, &phase(["observe", "act"][n % 2])).unwrap();
    }
    services.settle_up(Settling::Certainly).unwrap();
    assert_eq!(world.store.stats().requests - before, 2, "two names are two notes");
    let check = |services: &CycleServices| {
        for n in 2..limit::PHASES_MAX {
            ask(services, &phase(&format!("p{n}"))).unwrap();
        }
        for n in 0..2_000 {
            let refused = ask(services, &phase(&format!("more{n}"))).unwrap_err();
            assert_eq!(refused, limit::phases());
            assert_eq!(refused.code, code::INVALID);
        }
        ask(services, &phase("act")).unwrap();
        assert_eq!(services.current_phase().as_deref(), Some("act"));
    };
    check(&services);
    services.settle_up(Settling::Certainly).unwrap();
    assert_eq!(world.store.stats().requests - before, limit::PHASES_MAX as u64);
    let claimed = world.interrupt(&services);
    let services = world.services(claimed);
    ask(&services, &phase("observe")).unwrap();
    ask(&services, &phase("act")).unwrap();
    check(&services);
    world.finish(&services, CycleEnd::Done, Usage::ZERO);
}

#[test]
fn what_waits_for_the_store_is_bounded_whatever_is_called() {
    let world = World::counting();
    let services = world.services(world.claim());
    let name = "n".repeat(1 << 20);
    let calls: [Asked; 6] = [
        (method::NOW, json!({})),
        (method::RANDOM, json!({"bytes": 1024})),
        (method::USAGE, json!({"input_tokens": 1})),
        (method::PROPOSE, json!({"x": 1})),
        (method::LLM, json!({"provider": "nobody", "messages": []})),
        tool(&name, json!({})),
    ];
    for call in &calls {
        for n in 0..200 {
            let _ = ask(&services, call);
            let waiting = services.live().lazy.len();
            assert!(waiting <= WAITING_MAX, "{waiting} wait after {n} of {}", call.0);
        }
    }
    world.finish(&services, CycleEnd::Done, Usage::ZERO);
    let steps = world.store.steps(ID).unwrap();
    assert_eq!(steps.len(), 6 * 200);
    for step in steps {
        let bytes = step.name.len() + step.result.map_or(0, |result| result.to_string().len());
        assert!(step.kind == StepKind::Answer && bytes < 8 << 10, "{bytes} bytes of {:.40}", step.name);
    }
    assert_eq!(world.spent().input_tokens, 200);
}

#[test]
fn recorded_calls_beyond_the_limit_are_refused_and_leave_nothing_also_in_a_re_run() {
    let mut world = World::counting();
    let services = world.services(world.claim());
    let now: Asked = (method::NOW, json!({}));
    let most = limit::STEPS_MAX as usize;
    let mut seen = Vec::new();
    for _ in 0..most {
        seen.push(ask(&services, &now).unwrap());
    }
    let check = |services: &CycleServices| {
        for call in [now.clone(), (method::USAGE, json!({"llm_calls": 1})), llm("one")] {
            assert_eq!(ask(services, &call).unwrap_err(), limit::steps());
        }
    };
    check(&services);
    let claimed = world.interrupt(&services);
    let services = world.services(claimed);
    for answer in &seen {
        assert_eq!(&ask(&services, &now).unwrap(), answer);
    }
    check(&services);
    world.finish(&services, CycleEnd::Done, Usage::ZERO);
    assert_eq!((world.store.steps(ID).unwrap().len(), world.spent()), (most, Usage::ZERO));
}

#[test]
fn deltas_after_the_attempts_end_are_booked_up_to_the_limit() {
    let world = World::counting();
    let services = world.services(world.claim());
    world.stop.stop();
    ask(&services, &llm("one")).unwrap_err();
    let delta: Asked = (method::USAGE, json!({"input_tokens": 1}));
    for n in 0..limit::STEPS_MAX + 10 {
        assert_eq!(ask(&services, &delta).is_ok(), n < limit::STEPS_MAX, "{n}");
        assert!(services.live().lazy.len() <= WAITING_MAX);
    }
    world.finish(&services, CycleEnd::Interrupted, Usage::ZERO);
    assert_eq!(world.spent().input_tokens, u64::from(limit::STEPS_MAX));
}

#[test]
fn a_state_has_so_many_keys_and_a_known_one_may_always_be_put() {
    let world = World::counting();
    let services = world.services(world.claim());
    let put = |n: usize, value: usize| (method::STATE_PUT, json!({"key": format!("k{n}"), "value": value}));
    for n in 0..limit::STATE_KEYS_MAX {
        ask(&services, &put(n, n)).unwrap();
    }
    assert_eq!(ask(&services, &put(limit::STATE_KEYS_MAX, 1)).unwrap_err(), limit::state_keys());
    ask(&services, &put(7, 70)).unwrap();
    assert_eq!(services.state_puts().len(), limit::STATE_KEYS_MAX);
}
