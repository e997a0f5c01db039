//! Kairos inside another program: a schedule, a budget and a closure that runs the cycles. It
//! fires by itself, prints what happened, and ends after a few cycles.
//!
//! Everything lives in memory here; `.store("kairos.db")` on the wiring keeps it.

use std::sync::Arc;

use kairos_host::daemon::chronos::ScheduleSet;
use kairos_host::domain::schedule::{SchedulePolicy, ScheduleSpec};
use kairos_host::wiring::{Budget, EmbeddedMandate, RunnerFailure, UsageAccumulator, Wired, Wiring};
use kairos_plugin_api::{Context, Mandate, Usage};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Cycles after which this program has shown enough.
const ENOUGH: usize = 3;

// One thread is enough: what answers a runner never needs the program's runtime.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let accumulator = UsageAccumulator::default();
    let (done, mut cycles) = mpsc::unbounded_channel();
    let wired = Wiring::new(every_second())
        .budget(Budget::daily_calls(100))
        .usage_accumulator(accumulator.clone())
        .cycle_runner_with_context(move |mandate, host| {
            let result = work(mandate, host, &accumulator);
            let _ = done.send(mandate.id.clone());
            result
        })
        .wire()
        .await?;
    let wired = Arc::new(wired);

    let hello = EmbeddedMandate {
        name: "hello".into(),
        goal: "greet whoever reads this".into(),
        ..EmbeddedMandate::default()
    };
    println!("queued by hand: {}", wired.enqueue(hello).await?.id);

    let daemon = tokio::spawn({
        let wired = Arc::clone(&wired);
        async move { wired.run().await }
    });
    for _ in 0..ENOUGH {
        let Some(id) = cycles.recv().await else { break };
        println!("a cycle ran: {id}");
    }
    // The last cycle has returned; now its end is recorded too.
    wired.idle().await;
    tell(&wired)?;
    wired.mailbox().shutdown().await?;
    daemon.await?;
    println!("stopped: {}", wired.state());
    Ok(())
}

/// One cycle: here a program would think and act.
fn work(mandate: &Mandate, host: &Context, used: &UsageAccumulator) -> Result<Value, RunnerFailure> {
    host.phase("act")?;
    // Whoever makes the calls adds them up, so that they are booked even if the cycle fails.
    used.add(Usage { llm_calls: 1, input_tokens: 120, output_tokens: 30, cost_nano_usd: 0 });
    if host.should_stop() {
        return Err(RunnerFailure::ShutdownRequested);
    }
    let used = used.total();
    Ok(json!({
        "status": "ok",
        "llm_calls": used.llm_calls,
        "input_tokens": used.input_tokens,
        "output_tokens": used.output_tokens,
        "summary": format!("did: {}", mandate.goal),
    }))
}

fn every_second() -> ScheduleSet {
    let tidy = ScheduleSpec {
        name: "tidy".into(),
        cron: "* * * * * *".into(),
        timezone: "UTC".into(),
        goal: "tidy up".into(),
        policy: Arc::new(SchedulePolicy::default()),
    };
    ScheduleSet { specs: vec![tidy], ..ScheduleSet::default() }
}

fn tell(wired: &Wired) -> anyhow::Result<()> {
    let spent = wired.spent_today()?.spent;
    println!(
        "spent today: {} calls, {} tokens in, {} out",
        spent.llm_calls, spent.input_tokens, spent.output_tokens
    );
    println!("still queued: {}", wired.queue_depth());
    Ok(())
}
