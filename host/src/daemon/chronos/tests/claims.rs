//! What fires starts in the same commit, or waits for slots and budget.

use tokio::sync::Semaphore;

use super::*;
use crate::daemon::claims::{Claims, Permits};
use crate::domain::schedule::{OnBudget, Overlap};
use crate::store::{BudgetGate, ClaimOutcome, ClaimRequest, RunnerOffer};

/// Slots and what became of them.
struct Slots {
    free: Arc<Semaphore>,
    gate: Option<BudgetGate>,
    started: Mutex<Vec<String>>,
    cancelled: Mutex<Vec<String>>,
    queued: std::sync::atomic::AtomicUsize,
}

impl Slots {
    fn of(count: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(count)),
            gate: None,
            started: Mutex::default(),
            cancelled: Mutex::default(),
            queued: 0.into(),
        }
    }
}

impl Claims for Slots {
    fn request(&self, now: DateTime<Utc>) -> Option<(ClaimRequest, Permits)> {
        let max = self.free.available_permits();
        let permits = Arc::clone(&self.free).try_acquire_many_owned(u32::try_from(max).unwrap()).ok()?;
        let offer = RunnerOffer { generation: "g1".to_owned(), phases: false, commands: None };
        let offers = Arc::new([("stub".to_owned(), offer)].into());
        (max > 0)
            .then(|| (ClaimRequest { now, max, gate: self.gate.clone(), offers }, Permits(Some(permits))))
    }

    fn gate(&self, _: DateTime<Utc>) -> Option<BudgetGate> {
        self.gate.clone()
    }

    fn started(&self, outcome: ClaimOutcome, mut permits: Permits) {
        for cycle in outcome.claimed {
            permits.take_one().expect("no more starts than permits").forget();
            self.started.lock().unwrap().push(cycle.mandate.id);
        }
    }

    fn cancel(&self, mandates: Vec<String>) {
        self.cancelled.lock().unwrap().extend(mandates);
    }

    fn queued(&self) {
        self.queued.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[tokio::test]
async fn what_fires_starts_in_the_same_commit_while_slots_are_free() {
    let rig = Rig::new("2026-11-22T09:30");
    let slots = Slots::of(2);
    rig.load((0..3).map(|n| hourly(&format!("s{n}"))).collect()).await;
    rig.go_to("2026-11-22T10:00");
    let commits = rig.store.stats().commits;
    let outcome = rig.chronos.tick(rig.clock.now(), &slots).await.unwrap();
    assert_eq!((outcome.fired.len(), outcome.started), (3, 2));
    assert_eq!(rig.store.stats().commits, commits + 1);
    assert_eq!(slots.started.lock().unwrap().len(), 2);
    assert_eq!(slots.free.available_permits(), 0);
    rig.go_to("2026-11-22T11:00");
    let outcome = rig.chronos.tick(rig.clock.now(), &slots).await.unwrap();
    assert_eq!((outcome.fired.len(), outcome.started), (3, 0));
    assert_eq!(slots.queued.load(std::sync::atomic::Ordering::Relaxed), 1, "dispatch hears of it");
}

#[tokio::test]
async fn a_replacing_occurrence_asks_the_running_one_to_stop() {
    let rig = Rig::new("2026-11-22T09:30");
    let slots = Slots::of(1);
    let policy = SchedulePolicy { concurrency: Overlap::Replace, ..SchedulePolicy::default() };
    rig.load(vec![spec("a", "0 * * * *", policy)]).await;
    for hour in [10, 11] {
        rig.go_to(&format!("2026-11-22T{hour}:00"));
        rig.chronos.tick(rig.clock.now(), &slots).await.unwrap();
    }
    assert_eq!(*slots.cancelled.lock().unwrap(), *slots.started.lock().unwrap());
}

#[tokio::test]
async fn without_budget_an_occurrence_waits_or_is_skipped_as_it_says() {
    let rig = Rig::new("2026-11-22T09:30");
    let mut slots = Slots::of(0);
    let limits = crate::store::Limits { calls: Some(0), ..Default::default() };
    slots.gate = Some(BudgetGate { day: "2026-11-22".to_owned(), limits });
    let skip = SchedulePolicy { on_budget: OnBudget::Skip, ..SchedulePolicy::default() };
    rig.load(vec![hourly("hold"), spec("skip", "0 * * * *", skip)]).await;
    rig.go_to("2026-11-22T10:00");
    let outcome = rig.chronos.tick(rig.clock.now(), &slots).await.unwrap();
    assert_eq!(fired(&outcome), ["hold 10:00"]);
    assert_eq!(outcome.dropped, [("skip".to_owned(), at("2026-11-22T10:00"), "budget")]);
    assert_eq!(rig.outcomes("skip"), ["budget 10:00-10:00=1"]);
    assert_eq!(rig.store.schedule("skip").unwrap().unwrap().last_nominal, None);
}
