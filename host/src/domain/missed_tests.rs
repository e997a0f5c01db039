//! Holds the deciding rules to their tables and, over random sets, to plain counting.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

impl Occurrences for BTreeSet<i64> {
    fn next_after(&self, from: i64) -> Option<i64> {
        self.range(from + 1..).next().copied()
    }
    fn prev_at_or_before(&self, at: i64) -> Option<i64> {
        self.range(..=at).next_back().copied()
    }
    fn count(&self, from: i64, to: i64) -> u64 {
        if to <= from { 0 } else { self.range(from + 1..=to).count() as u64 }
    }
}

const HOUR: i64 = 3600;

fn hourly() -> BTreeSet<i64> {
    (0..1000).map(|hour| hour * HOUR).collect()
}

fn window(cursor: i64, now: i64) -> Window<'static> {
    Window { cursor, now, skip: &[], settled: &[], identity: 7, allowance: 100 }
}

fn policy(missed_policy: MissedPolicy) -> SchedulePolicy {
    SchedulePolicy { missed_policy, ..SchedulePolicy::default() }
}

/// Fires in hours, then `reason:from-to=count` in hours, then the cursor in seconds.
fn told(verdict: &Verdict) -> String {
    let fires: Vec<String> = verdict.fires.iter().map(|fire| format!("{}", fire.nominal / HOUR)).collect();
    let missed: Vec<String> = verdict
        .missed
        .iter()
        .map(|run| format!("{}:{}-{}={}", run.reason, run.from / HOUR, run.to / HOUR, run.count))
        .collect();
    let waiting = if verdict.waiting { " waiting" } else { "" };
    format!("fires [{}] missed [{}]{waiting}", fires.join(" "), missed.join(" "))
}

#[track_caller]
fn check(policy: &SchedulePolicy, window: &Window<'_>, expect: &str) {
    assert_eq!(told(&decide(&hourly(), policy, window)), expect);
}

#[test]
fn a_quiet_window_records_nothing() {
    let verdict = decide(&hourly(), &policy(MissedPolicy::Skip), &window(10 * HOUR, 10 * HOUR + 3599));
    assert_eq!(verdict, Verdict { cursor: 10 * HOUR + 3599, ..Verdict::default() });
}

#[test]
fn one_on_time_fires_under_every_policy_and_uses_no_allowance() {
    for kind in [MissedPolicy::Skip, MissedPolicy::CatchUpOnce, MissedPolicy::CatchUpBounded] {
        let mut window = window(10 * HOUR, 11 * HOUR + GRACE);
        window.allowance = 0;
        check(&policy(kind), &window, "fires [11] missed []");
        assert_eq!(decide(&hourly(), &policy(kind), &window).catch_ups(), 0);
        window.now += 1;
        check(&policy(kind), &window, "fires [] missed [] waiting");
    }
}

#[test]
fn skip_and_coalesce_fire_the_latest_and_differ_in_the_record() {
    let window = window(10 * HOUR, 15 * HOUR + 1800);
    check(&policy(MissedPolicy::Skip), &window, "fires [15] missed [skip:11-14=4]");
    check(&policy(MissedPolicy::CatchUpOnce), &window, "fires [15] missed [coalesced:11-14=4]");
}

#[test]
fn bounded_fires_the_latest_few_each_with_its_own_time() {
    let mut policy = policy(MissedPolicy::CatchUpBounded);
    policy.max_catch_up_runs = 3;
    check(&policy, &window(10 * HOUR, 15 * HOUR + 1800), "fires [13 14 15] missed [cap:11-12=2]");
    check(&policy, &window(13 * HOUR, 15 * HOUR + 1800), "fires [14 15] missed []");
}

#[test]
fn stale_is_measured_from_the_oldest_missed_one() {
    let mut policy = policy(MissedPolicy::CatchUpBounded);
    policy.stale_after = Duration::from_secs(4 * 3600);
    check(&policy, &window(10 * HOUR, 15 * HOUR), "fires [11 12 13 14 15] missed []");
    check(&policy, &window(10 * HOUR, 15 * HOUR + 1), "fires [15] missed [stale:11-14=4]");
    // A monthly schedule that is on time is not stale, however long ago its last fire was.
    let monthly: BTreeSet<i64> = [0, 720 * HOUR].into();
    let verdict = decide(&monthly, &policy, &window(0, 720 * HOUR + 5));
    assert_eq!(told(&verdict), "fires [720] missed []");
}

#[test]
fn nothing_older_than_the_deadline_fires() {
    let mut policy = policy(MissedPolicy::CatchUpBounded);
    policy.start_deadline = Some(Duration::from_secs(2 * 3600));
    check(&policy, &window(10 * HOUR, 15 * HOUR + 1800), "fires [14 15] missed [deadline:11-13=3]");
    policy.start_deadline = Some(Duration::from_secs(60));
    check(&policy, &window(10 * HOUR, 15 * HOUR + 1800), "fires [] missed [deadline:11-15=5]");
}

#[test]
fn without_allowance_the_cursor_stays_and_with_some_it_follows_the_fires() {
    let policy = policy(MissedPolicy::CatchUpBounded);
    let mut window = window(10 * HOUR, 19 * HOUR + 1800);
    window.allowance = 0;
    let verdict = decide(&hourly(), &policy, &window);
    assert_eq!((verdict.cursor, told(&verdict).as_str()), (10 * HOUR, "fires [] missed [] waiting"));
    window.allowance = 2;
    let verdict = decide(&hourly(), &policy, &window);
    assert_eq!(
        (verdict.cursor, told(&verdict).as_str()),
        (16 * HOUR, "fires [15 16] missed [cap:11-14=4] waiting")
    );
    window.cursor = verdict.cursor;
    window.allowance = 3;
    check(&policy, &window, "fires [17 18 19] missed []");
}

#[test]
fn a_left_out_time_is_recorded_and_cuts_the_runs() {
    let skip = [13 * HOUR, 99 * HOUR];
    let mut window = window(10 * HOUR, 15 * HOUR + 1800);
    window.skip = &skip;
    check(
        &policy(MissedPolicy::Skip),
        &window,
        "fires [15] missed [skip:11-12=2 paused:13-13=1 skip:14-14=1]",
    );
    check(&policy(MissedPolicy::CatchUpBounded), &window, "fires [11 12 14 15] missed [paused:13-13=1]");
    window.cursor = 12 * HOUR;
    window.now = 13 * HOUR;
    check(&policy(MissedPolicy::Skip), &window, "fires [] missed [paused:13-13=1]");
}

#[test]
fn a_settled_time_neither_fires_nor_is_recorded_again() {
    let settled = [12 * HOUR, 15 * HOUR];
    let mut window = window(10 * HOUR, 15 * HOUR + 1800);
    window.settled = &settled;
    check(&policy(MissedPolicy::Skip), &window, "fires [14] missed [skip:11-11=1 skip:13-13=1]");
}

#[test]
fn a_clock_behind_the_cursor_decides_nothing() {
    let verdict = decide(&hourly(), &policy(MissedPolicy::Skip), &window(10 * HOUR, 3 * HOUR));
    assert_eq!(verdict, Verdict { cursor: 10 * HOUR, ..Verdict::default() });
}

#[test]
fn jitter_is_repeatable_spread_and_ends_before_the_next_occurrence() {
    let mut policy = policy(MissedPolicy::Skip);
    policy.jitter = Duration::from_secs(7200);
    let delay = |identity: u64, hour: i64| {
        let mut window = window(hour * HOUR - 1, hour * HOUR + 1);
        window.identity = identity;
        let verdict = decide(&hourly(), &policy, &window);
        assert_eq!(verdict, decide(&hourly(), &policy, &window));
        verdict.fires[0].delay
    };
    let delays: Vec<Duration> = (0..200).map(|n| delay(identity(&format!("job-{n}")), 5)).collect();
    assert!(delays.iter().all(|delay| *delay < Duration::from_secs(3600)));
    let early = delays.iter().filter(|delay| **delay < Duration::from_secs(1800)).count();
    assert!((60..140).contains(&early), "{early} of 200 in the first half");
    assert_ne!(delay(7, 5), delay(7, 6));
    // A catch-up is late enough as it is.
    let late = decide(&hourly(), &policy, &window(4 * HOUR, 5 * HOUR + 1800));
    assert_eq!(late.fires[0].delay, Duration::ZERO);
}

#[test]
fn a_pause_is_recorded_in_closed_form() {
    let missed = all_missed(&hourly(), 10 * HOUR, 500 * HOUR, &[20 * HOUR], reason::PAUSED);
    let counts: Vec<(i64, i64, u64)> =
        missed.iter().map(|run| (run.from / HOUR, run.to / HOUR, run.count)).collect();
    assert_eq!(counts, [(11, 19, 9), (21, 500, 480)]);
    assert!(all_missed(&hourly(), 10, 10, &[], reason::PAUSED).is_empty());
}

fn any_policy() -> impl Strategy<Value = SchedulePolicy> {
    let kind = prop_oneof![
        Just(MissedPolicy::Skip),
        Just(MissedPolicy::CatchUpOnce),
        Just(MissedPolicy::CatchUpBounded)
    ];
    (kind, 0u32..6, 0u64..3000, proptest::option::of(0u64..3000), 0u64..500).prop_map(
        |(missed_policy, max_catch_up_runs, stale, deadline, jitter)| SchedulePolicy {
            missed_policy,
            max_catch_up_runs,
            stale_after: Duration::from_secs(stale),
            start_deadline: deadline.map(Duration::from_secs),
            jitter: Duration::from_secs(jitter),
            ..SchedulePolicy::default()
        },
    )
}

proptest! {
    /// fired + missed + settled + pending = counted, and each occurrence is in exactly one of them.
    #[test]
    fn every_occurrence_has_exactly_one_outcome(
        set in proptest::collection::btree_set(0i64..4000, 0..60),
        policy in any_policy(),
        (start, end) in (0i64..4000, 0i64..4200),
        skip in proptest::collection::btree_set(0i64..4000, 0..12),
        settled in proptest::collection::btree_set(0i64..4000, 0..12),
        allowance in 0u32..5,
        holes_from_set in any::<bool>(),
    ) {
        // Half of the time the holes are real occurrences, so that they matter.
        let pick = |holes: BTreeSet<i64>| -> Vec<i64> {
            if !holes_from_set || set.is_empty() {
                return holes.into_iter().collect();
            }
            let all: Vec<i64> = set.iter().copied().collect();
            let picked: BTreeSet<i64> =
                holes.into_iter().map(|hole| all[hole as usize % all.len()]).collect();
            picked.into_iter().collect()
        };
        let (skip, settled) = (pick(skip), pick(settled));
        let window = Window { cursor: start, now: end, skip: &skip, settled: &settled, identity: 1, allowance };
        let verdict = decide(&set, &policy, &window);

        prop_assert!(verdict.cursor >= start);
        let mut outcome: BTreeMap<i64, usize> = BTreeMap::new();
        for fire in &verdict.fires {
            prop_assert!(set.contains(&fire.nominal) && !skip.contains(&fire.nominal));
            if let Some(deadline) = policy.start_deadline {
                prop_assert!(fire.nominal > end - secs(deadline));
            }
            *outcome.entry(fire.nominal).or_default() += 1;
        }
        prop_assert!(verdict.fires.is_sorted_by(|a, b| a.nominal < b.nominal));
        prop_assert!(verdict.missed.is_sorted_by(|a, b| a.to < b.from), "{:?}", verdict.missed);
        prop_assert!(verdict.catch_ups() <= allowance);
        for run in &verdict.missed {
            let members: Vec<i64> = set.range(run.from..=run.to).copied().collect();
            prop_assert_eq!(members.len() as u64, run.count);
            prop_assert_eq!((members[0], members[members.len() - 1]), (run.from, run.to));
            for member in members {
                *outcome.entry(member).or_default() += 1;
            }
        }
        for nominal in set.iter().filter(|at| **at > start && **at <= end) {
            let settled_before = settled.contains(nominal);
            let pending = *nominal > verdict.cursor;
            let recorded = outcome.remove(nominal).unwrap_or(0);
            let expect = usize::from(!settled_before && !pending);
            prop_assert_eq!(recorded, expect, "{} in {:?}", nominal, verdict);
            prop_assert!(!pending || verdict.waiting, "{} waits unseen in {:?}", nominal, verdict);
        }
        prop_assert!(outcome.is_empty(), "outcomes out of the window: {outcome:?}");
    }

    /// Waiting for allowance changes when things happen, not whether they are accounted for.
    #[test]
    fn a_waiting_window_ends_with_everything_decided(
        set in proptest::collection::btree_set(0i64..100_000, 0..80),
        policy in any_policy(),
        allowance in 1u32..3,
    ) {
        let (mut cursor, mut now) = (0, 100_000);
        let mut decided = 0;
        for turn in 0.. {
            prop_assert!(turn < 100, "it never ends");
            let window = Window { cursor, now, skip: &[], settled: &[], identity: 1, allowance };
            let verdict = decide(&set, &policy, &window);
            decided += verdict.fires.len() as u64 + verdict.missed.iter().map(|run| run.count).sum::<u64>();
            cursor = verdict.cursor;
            now += 6;
            if !verdict.waiting {
                break;
            }
        }
        prop_assert_eq!(decided, set.count(0, 100_000));
    }
}
