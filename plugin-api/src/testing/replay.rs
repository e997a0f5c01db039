//! Cutting a scenario at every step, as a crash would, and replaying it.

use serde_json::Value;

use super::FakeHost;
use crate::mandate::Mandate;
use crate::runner::CycleRunner;

/// Runs the cycle once undisturbed, then once for every step with the attempt cut just before
/// that step (and once before its end), each followed by a second attempt on a new instance
/// with the record of the first. Whatever the cut, the report, the steps, the metered usage
/// and the state left behind must be those of the undisturbed run. `script` makes the same
/// fresh host each time. Gives the number of cuts.
///
/// # Errors
/// What differs, and at which cut; or that the undisturbed run fails.
pub fn survives_cuts<R: CycleRunner>(
    params: &Value,
    mandate: &Mandate,
    script: impl Fn() -> FakeHost,
) -> Result<usize, String> {
    let new = || R::new(params).map_err(|error| format!("new: {error}"));
    let whole = script();
    let report = whole.run(&new()?, mandate).map_err(|error| format!("the undisturbed run: {error}"))?;
    let steps = whole.steps();
    for cut in 0..=steps.len() {
        let host = script().cut_at_step(cut);
        // The outcome of the cut attempt is lost, as in a crash; only the record remains.
        let _ = host.run(&new()?, mandate);
        let recorded = host.steps().len();
        if recorded != cut {
            return Err(format!("cut at step {cut}: {recorded} steps recorded before it"));
        }
        let again = host.run(&new()?, mandate).map_err(|error| format!("cut at step {cut}: {error}"))?;
        compare(cut, "report", &again, &report)?;
        compare(cut, "steps", &host.steps(), &steps)?;
        compare(cut, "metered usage", &host.metered(), &whole.metered())?;
        compare(cut, "claimed usage", &host.claimed(), &whole.claimed())?;
        compare(cut, "state", &host.landed_state(), &whole.landed_state())?;
    }
    Ok(steps.len() + 1)
}

fn compare<T: PartialEq + std::fmt::Debug>(cut: usize, what: &str, is: &T, was: &T) -> Result<(), String> {
    if is == was {
        return Ok(());
    }
    Err(format!("cut at step {cut}: {what} differs: {is:?} instead of {was:?}"))
}
