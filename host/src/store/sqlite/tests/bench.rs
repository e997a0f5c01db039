//! What the tests of the store are made of.

use super::*;

/// A store and the directory it lives in, if it lives in one.
pub struct Bench {
    pub store: SqliteStore,
    pub dir: Option<tempfile::TempDir>,
}

impl std::ops::Deref for Bench {
    type Target = SqliteStore;
    fn deref(&self) -> &SqliteStore {
        &self.store
    }
}

/// Runs the same test on a file and in memory.
pub fn on_both(test: impl Fn(&Bench)) {
    in_memory(&test);
    test(&on_file());
}

/// For what takes many commits and does not touch the file.
pub fn in_memory(test: impl Fn(&Bench)) {
    test(&Bench { store: SqliteStore::in_memory().unwrap(), dir: None });
}

pub fn on_file() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let options = OpenOptions { path: dir.path().join("state/store.db"), sink: None };
    Bench { store: SqliteStore::open(options).unwrap(), dir: Some(dir) }
}

impl Bench {
    /// A crash and a new start, not recovered yet.
    pub fn crashed(&mut self) {
        self.store = self.store.crash(None).unwrap();
    }

    /// Does something to the writing connection outside of any transaction.
    pub fn look_as_writer(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static) {
        let (done, wait) = std::sync::mpsc::channel();
        self.send(Message::Look(Box::new(move |conn| {
            work(conn).unwrap();
            done.send(()).unwrap();
        })))
        .unwrap();
        wait.recv().unwrap();
    }

    pub fn recovered(&self) -> Recovered {
        self.recover(RecoverRequest { now: at(0) }).wait().unwrap()
    }

    pub fn add_manual(&self, id: &str) -> Added {
        self.add(manual(id)).wait().unwrap()
    }

    pub fn claim_all(&self, max: usize) -> Vec<ClaimedCycle> {
        self.claim(claim(max)).wait().unwrap().claimed
    }

    pub fn claim_one(&self) -> ClaimedCycle {
        let mut claimed = self.claim_all(1);
        assert_eq!(claimed.len(), 1, "one cycle can start");
        claimed.remove(0)
    }

    pub fn end(&self, cycle: &ClaimedCycle, end: CycleEnd) -> Finished {
        self.finish(finish(cycle, end)).wait().unwrap()
    }

    pub fn state(&self, id: &str) -> MandateState {
        self.mandate(id).unwrap().state
    }

    /// The cached sum of the day and the sum of its rows, which must be equal.
    pub fn ledger(&self, day: &str) -> DayTotals {
        let totals = self.day(day).unwrap();
        let name = day.to_owned();
        let rows = self
            .look(move |conn| {
                txn::all(
                    conn,
                    "SELECT calls, input, output, cost, state='reserved' FROM usage WHERE day=?1",
                    [name],
                    |row| Ok((row.get::<_, bool>(4)?, row::usage(row, 0)?)),
                )
            })
            .unwrap();
        let mut sum = DayTotals::default();
        for (reserved, usage) in rows {
            let side = if reserved { &mut sum.reserved } else { &mut sum.spent };
            *side = side.plus(usage);
        }
        assert_eq!(totals, sum, "the day's total equals the sum of its rows");
        totals
    }

    /// The log of a mandate, checked.
    pub fn log(&self, id: &str) -> Vec<serde_json::Value> {
        let lines = self.wal_lines(id, 0).unwrap();
        let file: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        let scan = crate::domain::record::verify(file.as_bytes());
        assert!(scan.damage.is_none(), "{:?}", scan.damage);
        assert_eq!(scan.head.seq, lines.len() as u64);
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub const DAY: &str = "2026-11-22";

pub fn at(seconds: i64) -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 22, 9, 0, 0).unwrap() + TimeDelta::seconds(seconds)
}

pub fn offers(names: &[&str]) -> Offers {
    Arc::new(
        names
            .iter()
            .map(|name| {
                (
                    (*name).to_owned(),
                    RunnerOffer { generation: format!("gen-{name}"), phases: false, commands: None },
                )
            })
            .collect(),
    )
}

pub fn claim(max: usize) -> ClaimRequest {
    ClaimRequest { now: at(0), max, gate: None, offers: offers(&["stub"]) }
}

pub fn gate(calls: u64) -> BudgetGate {
    BudgetGate { day: DAY.to_owned(), limits: Limits { calls: Some(calls), tokens: None, nano_usd: None } }
}

pub fn calls(count: u64) -> Usage {
    Usage { llm_calls: count, ..Usage::ZERO }
}

pub fn manual(id: &str) -> NewMandate {
    NewMandate {
        id: id.to_owned(),
        origin: Origin::Manual,
        request_id: None,
        schedule: None,
        nominal: None,
        goal: "tidy up".to_owned(),
        runner: "stub".to_owned(),
        scope: None,
        overlap: Overlap::Queue,
        bounds: MandateBounds::default(),
        again: false,
        now: at(0),
    }
}

pub fn finish(cycle: &ClaimedCycle, end: CycleEnd) -> FinishRequest {
    FinishRequest {
        mandate: cycle.mandate.id.clone(),
        cycle: cycle.mandate.cycle,
        attempt: cycle.mandate.attempt,
        now: at(1),
        day: DAY.to_owned(),
        end,
        reason: None,
        report: None,
        error: None,
        claimed: Usage::ZERO,
        state_puts: HashMap::new(),
        pause_after_failures: None,
        claim: None,
    }
}

pub fn begin(cycle: &ClaimedCycle, seq: u32, reserve: Usage, gate: Option<BudgetGate>) -> BeginStep {
    BeginStep {
        mandate: cycle.mandate.id.clone(),
        cycle: cycle.mandate.cycle,
        attempt: cycle.mandate.attempt,
        seq,
        kind: StepKind::Llm,
        name: "canned".to_owned(),
        phase: None,
        key: format!("key-{seq}"),
        params_hash: "sha256-00".to_owned(),
        intent: json!({"model": "m"}),
        reserve,
        gate,
        now: at(2),
    }
}

pub fn settle(cycle: &ClaimedCycle, seq: u32, usage: Option<Usage>) -> SettleStep {
    SettleStep {
        mandate: cycle.mandate.id.clone(),
        cycle: cycle.mandate.cycle,
        attempt: cycle.mandate.attempt,
        seq,
        state: StepState::Done,
        result: json!({"text": format!("answer {seq}")}),
        usage,
        recovered: false,
        now: at(3),
    }
}

pub fn spec(name: &str, policy: SchedulePolicy) -> ScheduleSpec {
    ScheduleSpec {
        name: name.into(),
        cron: "* * * * *".into(),
        timezone: "UTC".into(),
        goal: "report".into(),
        policy: Arc::new(SchedulePolicy { runner: Some("stub".into()), ..policy }),
    }
}

pub fn with(concurrency: Overlap) -> SchedulePolicy {
    SchedulePolicy { concurrency, ..SchedulePolicy::default() }
}

pub fn adopt(name: &str, cursor: i64) -> Adopt {
    Adopt { name: name.to_owned(), rule: "* * * * *|UTC|Cron".to_owned(), cursor: at(cursor), missed: vec![] }
}

/// An evaluation over `(from, to]` that fires at those seconds.
pub fn evaluation(spec: &ScheduleSpec, (from, to): (i64, i64), fires: &[i64]) -> Evaluation {
    let fire = |second: &i64| Fire { nominal: at(*second), not_before: at(*second), catch_up: false };
    Evaluation {
        spec: spec.clone(),
        expect_cursor: at(from),
        cursor: at(to),
        fires: fires.iter().map(fire).collect(),
        missed: Vec::new(),
    }
}

pub fn fire(now: i64, evaluations: Vec<Evaluation>) -> FireRequest {
    FireRequest { now: at(now), evaluations, claim: None, gate: None }
}

pub fn missed(from: i64, to: i64, count: u64, reason: &'static str) -> MissedRun {
    MissedRun { from: at(from), to: at(to), count, reason }
}
