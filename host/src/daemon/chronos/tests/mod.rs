//! Chronos over a real store in memory and a clock that moves by hand.

mod adopt;
mod claims;
mod clocks;
mod commands;

use super::*;
use crate::daemon::claims::NoClaims;
use crate::domain::schedule::SchedulePolicy;
use crate::store::{MandateFilter, MandateRow, SqliteStore};
use crate::sys::clock::ManualClock;
use crate::sys::entropy::SeededEntropy;

struct Rig {
    chronos: Arc<Chronos>,
    store: Arc<SqliteStore>,
    clock: ManualClock,
}

fn at(text: &str) -> DateTime<Utc> {
    format!("{text}:00Z").parse().unwrap()
}

impl Rig {
    fn new(start: &str) -> Self {
        let store = Arc::new(SqliteStore::in_memory().unwrap());
        Self::on(store, ManualClock::at(at(start)))
    }

    fn on(store: Arc<SqliteStore>, clock: ManualClock) -> Self {
        let seams = Seams {
            store: Arc::clone(&store) as Arc<dyn Store>,
            clock: Arc::new(clock.clone()),
            entropy: Arc::new(SeededEntropy::new(1)),
            zones: Arc::new(Zones::bundled()),
        };
        Self { chronos: Arc::new(Chronos::new(seams)), store, clock }
    }

    /// The next process on the same store, at a later time.
    fn reboot(self, when: &str) -> Self {
        self.clock.step_wall(at(when));
        let store = Arc::new(self.store.crash(None).unwrap());
        Self::on(store, self.clock)
    }

    async fn load(&self, specs: Vec<ScheduleSpec>) -> Loaded {
        let set = ScheduleSet { specs, default_runner: Some("stub".to_owned()), ..ScheduleSet::default() };
        self.chronos.load(set).await.unwrap()
    }

    /// Time goes on to `when`, then one tick.
    async fn tick_at(&self, when: &str) -> TickOutcome {
        self.go_to(when);
        self.chronos.tick(self.clock.now(), &NoClaims).await.unwrap()
    }

    fn go_to(&self, when: &str) {
        let ahead = at(when) - self.clock.now();
        self.clock.advance(ahead.to_std().expect("time goes on; use step_wall to set the clock"));
    }

    /// `fired HH:MM` or `reason HH:MM-HH:MM=count` for each recorded outcome, oldest first.
    fn outcomes(&self, name: &str) -> Vec<String> {
        let mut rows = self.store.occurrences(name, 1000).unwrap();
        rows.sort_by_key(|row| row.from);
        rows.iter()
            .map(|row| match &row.reason {
                None => format!("fired {}", row.from.format("%H:%M")),
                Some(why) => {
                    format!("{why} {}-{}={}", row.from.format("%H:%M"), row.to.format("%H:%M"), row.count)
                }
            })
            .collect()
    }

    fn mandates(&self) -> Vec<MandateRow> {
        self.store.mandates(&MandateFilter::default()).unwrap()
    }
}

fn spec(name: &str, cron: &str, policy: SchedulePolicy) -> ScheduleSpec {
    ScheduleSpec {
        name: name.into(),
        cron: cron.into(),
        timezone: "UTC".into(),
        goal: "do it".into(),
        policy: Arc::new(policy),
    }
}

fn hourly(name: &str) -> ScheduleSpec {
    spec(name, "0 * * * *", SchedulePolicy::default())
}

fn fired(outcome: &TickOutcome) -> Vec<String> {
    outcome.fired.iter().map(|(name, _, nominal)| format!("{name} {}", nominal.format("%H:%M"))).collect()
}
