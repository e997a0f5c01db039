//! Tests of reading schedules.yml.

use super::*;

fn read(text: &str) -> SchedulesFile {
    let runners = ["cognitive".to_owned()];
    SchedulesFile::parse(
        text.as_bytes(),
        "schedules.yml",
        Around {
            zones: &Zones::bundled(),
            runners: &runners,
            now: chrono::DateTime::from_timestamp(1_795_000_000, 0),
        },
    )
}

fn one(text: &str) -> ScheduleSpec {
    let mut file = read(text);
    assert!(file.readable && file.quarantined.is_empty(), "{}", file.full_report());
    assert_eq!(file.schedules.len(), 1);
    file.schedules.remove(0)
}

#[test]
fn every_key_is_read() {
    let spec = one(r#"
schedules:
  - name: daily report
    cron: "0 9 * * 1-5"
    timezone: Europe/Paris
    enabled: false
    project_scope: docs
    runner: cognitive
    missed_policy: catch_up_bounded
    max_catch_up_runs: 3
    stale_after: 2h
    start_deadline: 90
    concurrency: queue_one
    jitter: 5m
    dst: literal
    on_budget: skip
    pause_after_failures: 4
    mandate:
      goal: write it
      max_cycles: 2
      checkpoint_every: 1
      risk_budget: low
      allowed_actions: [code_edit]
      observe_policies: [status]
      params: {depth: 1.5, tags: [a, b]}
"#);
    assert_eq!((&*spec.name, &*spec.cron, &*spec.timezone), ("daily report", "0 9 * * 1-5", "Europe/Paris"));
    assert_eq!(&*spec.goal, "write it");
    let expect = SchedulePolicy {
        enabled: false,
        project_scope: Some("docs".into()),
        runner: Some("cognitive".into()),
        missed_policy: MissedPolicy::CatchUpBounded,
        max_catch_up_runs: 3,
        stale_after: Duration::from_secs(7200),
        start_deadline: Some(Duration::from_secs(90)),
        concurrency: Overlap::QueueOne,
        jitter: Duration::from_secs(300),
        dst: Dst::Literal,
        on_budget: OnBudget::Skip,
        pause_after_failures: Some(4),
        bounds: MandateBounds {
            max_cycles: 2,
            checkpoint_every: Some(1),
            risk_budget: Some("low".into()),
            allowed_actions: Some(vec!["code_edit".into()]),
            observe_policies: Some(vec!["status".into()]),
            params: serde_json::json!({"depth": 1.5, "tags": ["a", "b"]}).as_object().unwrap().clone(),
        },
    };
    assert_eq!(*spec.policy, expect);
}

#[test]
fn what_is_not_written_has_the_documented_default() {
    let spec = one(r#"{"schedules": [{"name": "a", "cron": "@daily"}]}"#);
    assert_eq!(*spec.policy, SchedulePolicy::default());
    assert_eq!((&*spec.timezone, &*spec.goal), ("UTC", "a"));
    for empty in ["", "# nothing yet\n", "schedules:\n", "schedules: []\n", "{}"] {
        let file = read(empty);
        assert!(file.readable && file.schedules.is_empty() && file.report.is_ok(), "{empty:?}");
    }
}

#[test]
fn words_of_the_table_are_those_of_the_domain() {
    for (word, policy) in MISSED {
        assert_eq!(serde_json::to_value(policy).unwrap(), *word);
    }
    for (word, overlap) in OVERLAP {
        assert_eq!(serde_json::to_value(overlap).unwrap(), *word);
    }
}

#[test]
fn any_text_is_a_name_but_empty_and_nul() {
    let long = "x".repeat(NAME_MAX);
    for name in ["a/b", "../up", "a.b", "with space", "\u{1F980}", "ümlaut", "null", "12", &long] {
        let text = format!("schedules: [{{name: {}, cron: '0 9 * * *'}}]", serde_json::json!(name));
        assert_eq!(&*one(&text).name, name);
    }
    for name in ["", "a\0b", &"x".repeat(NAME_MAX + 1)] {
        let text = format!("schedules: [{{name: {}, cron: '0 9 * * *'}}]", serde_json::json!(name));
        let file = read(&text);
        assert_eq!((file.schedules.len(), file.quarantined.len()), (0, 1), "{name:?}");
    }
}

#[test]
fn bad_schedules_are_set_aside_with_all_their_problems_and_the_others_run() {
    let file = read(
        r#"schedules:
  - {name: good, cron: "0 9 * * *"}
  - name: rent
    cron: "0 0 30 2 *"
    timezone: Europe/Pariss
    missed_policy: catch_up_bound
    stale_after: long
    max_catch_up_runs: 0
    colour: red
    mandate: {goal: [], max_cyles: 3, params: {a: 1, a: 2}}
  - name: good
    cron: "0 25 * * *"
  - cron: "* * * * *"
  - just text
  - name: 12
    cron: 5
  -
  - {name: last, cron: "*/5 * * * *", runner: cognitiv}
  - {name: days, cron: "0 9 */2 * 1"}
"#,
    );
    let names: Vec<&str> = file.schedules.iter().map(|spec| &*spec.name).collect();
    assert_eq!(names, ["good", "last", "days"]);
    assert_eq!(file.quarantined.len(), 6);
    assert_eq!((file.quarantined[0].name.as_str(), file.quarantined[0].line), ("rent", 3));
    insta::assert_snapshot!(file.full_report(), @r#"
schedules.yml:4:16: schedule "rent": schedules[1].cron: "0 0 30 2 *": never fires: February has no day 30
    -> allowed here: 1-31
schedules.yml:5:15: schedule "rent": schedules[1].timezone: unknown timezone "Europe/Pariss"
    -> did you mean `Europe/Paris`?
schedules.yml:6:20: schedule "rent": schedules[1].missed_policy: "catch_up_bound" is not known
    -> did you mean `catch_up_bounded`?
schedules.yml:7:18: schedule "rent": schedules[1].stale_after: "long" is not a duration
    -> write a number of seconds, or numbers with units: `500ms`, `90s`, `10m`, `1h30m`, `7d`
schedules.yml:8:24: schedule "rent": schedules[1].max_catch_up_runs: 0 is out of range
    -> write a whole number, 1 to 10000
schedules.yml:9:5: schedule "rent": schedules[1].colour: unknown key
    -> known here: concurrency, cron, dst, enabled, jitter, mandate, max_catch_up_runs, missed_policy, name, on_budget, pause_after_failures, project_scope, runner, stale_after, start_deadline, timezone
schedules.yml:10:21: schedule "rent": schedules[1].mandate.goal: expected a text, found a list
    -> write a text
schedules.yml:10:25: schedule "rent": schedules[1].mandate.max_cyles: unknown key
    -> did you mean `max_cycles`?
schedules.yml:10:54: schedule "rent": schedules[1].mandate.params.a: the key stands here for the second time, first on line 10
    -> remove one of the two
schedules.yml:11:11: schedule "good": schedules[2].name: a schedule of this name stands on line 2, this one on line 11
    -> give one of the two another name
schedules.yml:12:14: schedule "good": schedules[2].cron: "0 25 * * *": hour 25 is out of range 0-23
    -> allowed here: 0-23
schedules.yml:13:5: schedules[3].name: is missing
    -> give the schedule a name
schedules.yml:14:5: schedules[4]: expected a map, found the text "just text"
    -> write `key: value` pairs
schedules.yml:15:11: schedules[5].name: expected a text, found the number 12
    -> put it in quotes: "12"
schedules.yml:16:11: schedules[5].cron: expected a text, found the number 5
    -> put it in quotes: "5"
schedules.yml:17:4: schedules[6]: the entry is empty
    -> remove it or write a schedule
schedules.yml:18:47: warning: schedule "last": schedules[7].runner: no runner has the name "cognitiv"
    -> did you mean `cognitive`?
schedules.yml:19:24: warning: schedule "days": schedules[8].cron: "0 9 */2 * 1": day of month and day of week are both limited and one of them starts with *, so a day has to match both; without the star either would be enough
16 errors and 2 warnings
"#);
}

#[test]
fn a_file_that_cannot_be_read_to_its_end_gives_no_schedules_at_all() {
    for bad in [
        "schedules:\n  - {name: a, cron: '0 9 * * *'}\n  - {name: b\n",
        "schedules:\n  - {name: a, cron: '0 9 * * *'}\nschedules: []\n",
        "schedules: {a: 1}\n",
        "- {name: a, cron: '0 9 * * *'}\n",
        "schedule: []\n",
        "\u{0}",
    ] {
        let file = read(bad);
        assert!(!file.readable && file.schedules.is_empty() && !file.report.is_ok(), "{bad:?}");
    }
}

#[test]
fn an_unknown_key_beside_the_list_is_reported_and_the_schedules_run() {
    let file = read("version: 1\nschedules:\n  - {name: a, cron: '0 9 * * *'}\n");
    assert!(file.readable && file.schedules.len() == 1 && !file.report.is_ok());
}

#[test]
fn keys_of_the_reference_become_parameters() {
    let spec = one(
        "schedules:\n- name: a\n  cron: '0 9 * * *'\n  mandate:\n    goal: g\n    allow_llm_upload: [l2]\n    decide_hints: {max_edit_bytes: 5}\n",
    );
    assert_eq!(spec.policy.bounds.params["decide_hints"]["max_edit_bytes"], 5);
}

#[test]
fn equal_policies_and_zones_share_one_allocation() {
    let mut text = "schedules:\n".to_owned();
    for n in 0..100 {
        let params = n % 2;
        text.push_str(&format!(
            "  - {{name: s{n}, cron: '0 9 * * *', timezone: Europe/Paris, mandate: {{goal: g{n}, params: {{p: {params}}}}}}}\n"
        ));
    }
    let file = read(&text);
    assert_eq!(file.schedules.len(), 100);
    assert_eq!(Arc::strong_count(&file.schedules[0].policy), 50);
    assert_eq!(Arc::strong_count(&file.schedules[1].timezone), 100);
    // Beyond its texts a schedule costs this much, and the two counters of its name.
    assert!(size_of::<ScheduleSpec>() + 16 <= 200);
}

#[test]
fn anchors_and_merges_work_across_schedules() {
    let file = read(
        "schedules:\n  - &base {name: a, cron: '0 9 * * *', timezone: Europe/Paris}\n  - <<: *base\n    name: b\n",
    );
    let zones: Vec<&str> = file.schedules.iter().map(|spec| &*spec.timezone).collect();
    assert_eq!(zones, ["Europe/Paris", "Europe/Paris"], "{}", file.full_report());
}

#[test]
fn table_of_keys_is_what_the_reader_asks_for() {
    use crate::config::keys::SCHEDULE;
    let asked = documented(&Zones::bundled());
    let asked: Vec<&str> = asked.iter().map(|known| known.key.as_str()).collect();
    let table: Vec<&str> = SCHEDULE.iter().map(|key| key.path).collect();
    assert_eq!(asked, table);
}

proptest::proptest! {
    #[test]
    fn any_entry_is_good_or_set_aside_with_a_problem(
        key in proptest::sample::select(crate::config::keys::SCHEDULE.iter().map(|key| key.path).collect::<Vec<_>>()),
        value in "[ -~]{0,12}",
    ) {
        let field = match key.strip_prefix("mandate.") {
            Some(inner) => format!("    mandate:\n      {inner}: {value}\n"),
            None => format!("    {key}: {value}\n"),
        };
        let file = read(&format!("schedules:\n  - {{name: first, cron: '@daily'}}\n  - a:\n{field}"));
        if file.readable {
            proptest::prop_assert_eq!(file.schedules.len(), 1);
            proptest::prop_assert!(file.quarantined.len() == 1 && !file.quarantined[0].problems.is_empty());
        } else {
            proptest::prop_assert!(!file.report.is_ok());
        }
    }
}
