//! Cuts: a drain after every call, a kill after every call, a kill in the middle of every effect.

use kairos_plugin_api::Usage;

use super::*;
use crate::domain::mandate::{CycleEnd, MandateState};
use crate::store::{StepKind, StepState, Store};

/// The answers of an undisturbed cycle, and the usage it was billed.
fn undisturbed() -> (Vec<Answered>, Usage) {
    let world = World::counting();
    let services = world.services(world.claim());
    let answers = ask_all(&services, &everything()).unwrap();
    assert_eq!(answers.len(), everything().len());
    world.finish(&services, CycleEnd::Done, Usage::ZERO);
    assert_eq!(world.text(), "status: done\n");
    assert_eq!(world.llm_calls(), 3);
    (answers, world.spent())
}

/// Answers as the runner compares them: the clock and chance of the worlds are the same.
fn same(cut: usize, is: &[Answered], was: &[Answered]) {
    for (at, (is, was)) in is.iter().zip(was).enumerate() {
        assert_eq!(is, was, "cut at {cut}: answer {at} differs");
    }
    assert_eq!(is.len(), was.len(), "cut at {cut}");
}

#[test]
fn a_cycle_that_is_drained_after_any_call_goes_on_without_repeating_one() {
    let (answers, spent) = undisturbed();
    for cut in 0..=everything().len() {
        let mut world = World::counting();
        let first = world.services(world.claim());
        ask_all(&first, &everything()[..cut]).unwrap();
        let claimed = world.interrupt(&first);
        let effects = world.deeds.count();
        let second = world.services(claimed);
        // The re-run sees the old time although the clock has gone on.
        world.clock.advance(std::time::Duration::from_secs(60));
        let again = ask_all(&second, &everything()).unwrap();
        assert!(second.outcome().is_none());
        if cut > 1 {
            same(cut, &again, &answers);
        }
        let finished = world.finish(&second, CycleEnd::Done, Usage::ZERO);
        assert_eq!(finished.state, MandateState::Succeeded);
        assert_eq!(world.llm_calls(), 3, "cut at {cut}: no call was paid twice");
        assert!(effects <= 6 && world.deeds.count() == 6, "cut at {cut}: {effects} effects, then all");
        assert_eq!(world.text(), "status: done\n", "cut at {cut}");
        assert_eq!(world.spent(), spent, "cut at {cut}");
    }
}

#[test]
fn a_kill_after_any_call_repeats_at_most_the_one_call_whose_result_was_not_durable() {
    let (answers, spent) = undisturbed();
    for cut in 0..=everything().len() {
        let mut world = World::counting();
        let first = world.services(world.claim());
        ask_all(&first, &everything()[..cut]).unwrap();
        let paid = world.llm_calls();
        let claimed = world.crash();
        let second = world.services(claimed);
        let again = ask_all(&second, &everything()).unwrap();
        assert!(second.outcome().is_none(), "cut at {cut}: {:?}", second.outcome());
        // A random answer that nobody relied on yet may be drawn again; all else is the same.
        let plain = |answers: &[Answered]| -> Vec<Answered> {
            answers.iter().enumerate().filter(|(at, _)| *at != 8).map(|(_, answer)| answer.clone()).collect()
        };
        same(cut, &plain(&again), &plain(&answers));
        world.finish(&second, CycleEnd::Done, Usage::ZERO);
        let repeated = world.llm_calls() - 3;
        assert!(repeated <= 1 && world.llm_calls() <= paid + 3, "cut at {cut}: {repeated} repeated");
        assert_eq!(world.text(), "status: done\n", "cut at {cut}");
        let counted = world.spent();
        let real = *world.deeds.usage.lock().unwrap();
        assert!(counted.llm_calls >= real.llm_calls, "cut at {cut}: never less than was spent");
        assert!(counted.llm_calls <= spent.llm_calls + 1, "cut at {cut}: at most the one in flight more");
    }
}

#[test]
fn a_kill_in_the_middle_of_any_effect_lets_each_land_once() {
    let (answers, _) = undisturbed();
    for nth in 0..6 {
        for kill in [Kill::Before(nth), Kill::After(nth)] {
            let mut world = World::counting();
            let first = world.services(world.claim());
            *world.deeds.kill.lock().unwrap() = Some(kill);
            assert_eq!(ask_all(&first, &everything()), Err("killed"), "{kill:?}");
            *world.deeds.kill.lock().unwrap() = None;
            let (claimed, edits) = (world.crash(), world.deeds.tools.lock().unwrap().len());
            let open: Vec<_> =
                claimed.steps.iter().filter(|step| step.state == StepState::Executing).collect();
            assert_eq!(open.len(), 1, "{kill:?}: the effect's intent was durable before it");
            let second = world.services(claimed.clone());
            let again = ask_all(&second, &everything()).unwrap();
            assert!(second.outcome().is_none(), "{kill:?}: {:?}", second.outcome());
            same(nth, &again, &answers);
            world.finish(&second, CycleEnd::Done, Usage::ZERO);
            assert_eq!(world.text(), "status: done\n", "{kill:?}");
            assert!(edits <= 3);
            let recovered = world.store.steps(ID).unwrap();
            assert!(recovered.iter().all(|step| step.state == StepState::Done), "{kill:?}");
            let edited = world.deeds.tools.lock().unwrap().iter().filter(|name| *name == "fs.edit").count();
            assert_eq!(edited, 2, "{kill:?}: each edit was done once");
            assert!(world.llm_calls() <= 4, "{kill:?}");
            assert!(world.spent().llm_calls >= u64::try_from(world.llm_calls()).unwrap(), "{kill:?}");
        }
    }
}

/// Kills right at the edit and gives the claim of the next attempt.
fn killed_at_the_edit(world: &mut World, kill: Kill) -> crate::store::ClaimedCycle {
    let first = world.services(world.claim());
    *world.deeds.kill.lock().unwrap() = Some(kill);
    assert_eq!(ask_all(&first, &[edit("open", "done")]), Err("killed"));
    *world.deeds.kill.lock().unwrap() = None;
    world.crash()
}

#[test]
fn the_world_decides_about_an_edit_that_was_cut_in_two() {
    // Not done: done now.
    let mut world = World::counting();
    let claimed = killed_at_the_edit(&mut world, Kill::Before(0));
    assert_eq!(world.text(), "status: open\n");
    let services = world.services(claimed);
    assert_eq!(ask(&services, &edit("open", "done")).unwrap()["ok"], true);
    assert_eq!((world.text().as_str(), world.deeds.count()), ("status: done\n", 2));

    // Done: taken as done, with the answer that the effect would have given.
    let mut world = World::counting();
    let claimed = killed_at_the_edit(&mut world, Kill::After(0));
    let services = world.services(claimed);
    let answer = ask(&services, &edit("open", "done")).unwrap();
    assert_eq!((&answer["ok"], &answer["output"]["replacements"]), (&json!(true), &json!(1)));
    assert_eq!((world.text().as_str(), world.deeds.count()), ("status: done\n", 1));

    // Neither: a person.
    let mut world = World::counting();
    let claimed = killed_at_the_edit(&mut world, Kill::Before(0));
    std::fs::write(world.path("a.md"), "by hand").unwrap();
    let services = world.services(claimed);
    assert!(ask(&services, &edit("open", "done")).unwrap_err().ends_attempt());
    assert!(ask(&services, &llm("go on?")).unwrap_err().ends_attempt(), "the answer sticks");
    let outcome = services.outcome().unwrap();
    assert_eq!((outcome.end(), outcome.reason()), (CycleEnd::Review, Some("interrupted_during_execution")));
    let finished = world.finish(&services, outcome.end(), Usage::ZERO);
    assert_eq!(finished.state, MandateState::Review);
    assert_eq!(world.store.steps(ID).unwrap()[0].state, StepState::NeedsReview);
    assert_eq!((world.text().as_str(), world.deeds.count()), ("by hand", 1));
}

#[test]
fn a_review_resolved_to_redo_does_the_step_on_the_world_as_it_is() {
    use crate::store::{MandateCommand, Resolution};
    let mut world = World::counting();
    let claimed = killed_at_the_edit(&mut world, Kill::Before(0));
    std::fs::write(world.path("a.md"), "still open").unwrap();
    let services = world.services(claimed);
    ask(&services, &edit("open", "done")).unwrap_err();
    world.finish(&services, CycleEnd::Review, Usage::ZERO);
    let redo = MandateCommand::Resolve { verdict: Resolution::Redo, note: "looked at it".into() };
    world.store.command(ID.to_owned(), redo, world.clock.now()).wait().unwrap();
    let services = world.services(world.claim());
    assert_eq!(ask(&services, &edit("open", "done")).unwrap()["ok"], true);
    assert_eq!(world.text(), "still done");
}

#[test]
fn intents_say_what_recovery_and_people_need() {
    let world = World::counting();
    let services = world.services(world.claim());
    ask_all(&services, &[phase("act"), edit("open", "done"), llm("x")]).unwrap();
    world.finish(&services, CycleEnd::Done, Usage::ZERO);
    let steps = world.store.steps(ID).unwrap();
    let [edit, llm] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!(
        (edit.kind, edit.name.as_str(), edit.phase.as_deref()),
        (StepKind::Tool, "fs.edit", Some("act"))
    );
    assert_eq!(edit.intent["args"]["old"], "open");
    assert_eq!(edit.intent["target"], "a.md");
    for key in ["pre_hash", "post_hash"] {
        assert!(edit.intent[key].as_str().unwrap().starts_with("sha256-"), "{key}");
    }
    assert_eq!((llm.kind, llm.name.as_str()), (StepKind::Llm, "canned"));
    assert_eq!(llm.intent["request"]["messages"][0]["content"], "x");
    assert!(edit.key.starts_with("sha256-") && edit.key != llm.key);
}
