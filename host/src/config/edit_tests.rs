//! Tests of changing schedules.yml by splices.

#![allow(clippy::disallowed_methods, reason = "tests lay out plain files")]

use super::*;
use crate::sys::zones::Zones;
use serde_json::json;

const BLOCK: &str = "# my schedules
schedules:   # the list
  # every morning
  - name: daily   # the report
    cron: \"0 9 * * *\"
    mandate:
      goal: |
        write it
        # not a comment

      # about cycles
      max_cycles: 3

  # weekly one
  - {name: weekly, cron: '@weekly', mandate: {goal: sum up}} # flow
  -
    # odd but right
    name: \"odd: one\"
    cron: '*/5 * * * *'
    enabled: false
# the end
";

const JSON: &str = "{\n  \"schedules\": [\n    {\"name\": \"a\", \"cron\": \"0 9 * * *\"},\n    {\"name\": \"b\", \"cron\": \"0 9 * * *\", \"mandate\": {}}\n  ]\n}\n";

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn set(name: &str, pairs: &[(&str, Value)]) -> Change {
    let set = pairs.iter().map(|(key, value)| ((*key).to_owned(), (!value.is_null()).then(|| value.clone())));
    Change::Edit { name: name.into(), set: set.collect() }
}

/// A line diff: what went and what came.
fn diff(before: &str, after: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let went = old[head..old.len() - tail].iter().map(|line| format!("-{line}"));
    let came = new[head..new.len() - tail].iter().map(|line| format!("+{line}"));
    went.chain(came).collect::<Vec<_>>().join("\n")
}

fn shown(text: &str, change: &Change) -> String {
    match edit(text, "schedules.yml", change) {
        Ok(after) => diff(text, &after),
        Err(error) => format!("refused: {error}"),
    }
}

/// Each change of [`BLOCK`] with the lines it means.
fn all_shown(changes: &[Change]) -> String {
    let shown = changes.iter().map(|change| format!("== {change:?}\n{}", shown(BLOCK, change)));
    shown.collect::<Vec<_>>().join("\n")
}

#[test]
fn changes_touch_only_the_lines_they_mean() {
    let cases = [
        set("daily", &[("enabled", json!(false))]),
        set("daily", &[("cron", json!("30 8 * * 1-5"))]),
        set("daily", &[("mandate.goal", json!("do it"))]),
        set("daily", &[("mandate.max_cycles", json!(4)), ("timezone", json!("Europe/Paris"))]),
        set("daily", &[("mandate.max_cycles", json!(null))]),
        set("daily", &[("mandate.params", json!({"a": [1, "x"]}))]),
        set("weekly", &[("enabled", json!(false)), ("mandate.goal", json!("go: on"))]),
        set("weekly", &[("cron", json!(null))]),
        set("weekly", &[("mandate.goal", json!(null))]),
        set("odd: one", &[("enabled", json!(null)), ("mandate.goal", json!("x"))]),
        set("odd: one", &[("name", json!("\u{1F980} crab"))]),
        set("daily", &[("name", json!(null))]),
        set("daily", &[("enabled", json!(null))]),
    ];
    insta::assert_snapshot!(all_shown(&cases), @r#"
== Edit { name: "daily", set: [("enabled", Some(Bool(false)))] }
+    enabled: false
== Edit { name: "daily", set: [("cron", Some(String("30 8 * * 1-5")))] }
-    cron: "0 9 * * *"
+    cron: "30 8 * * 1-5"
== Edit { name: "daily", set: [("mandate.goal", Some(String("do it")))] }
-      goal: |
-        write it
-        # not a comment
+      goal: do it
== Edit { name: "daily", set: [("mandate.max_cycles", Some(Number(4))), ("timezone", Some(String("Europe/Paris")))] }
-      max_cycles: 3
+      max_cycles: 4
+    timezone: Europe/Paris
== Edit { name: "daily", set: [("mandate.max_cycles", None)] }
-      max_cycles: 3
== Edit { name: "daily", set: [("mandate.params", Some(Object {"a": Array [Number(1), String("x")]}))] }
+      params: {"a":[1,"x"]}
== Edit { name: "weekly", set: [("enabled", Some(Bool(false))), ("mandate.goal", Some(String("go: on")))] }
-  - {name: weekly, cron: '@weekly', mandate: {goal: sum up}} # flow
+  - {name: weekly, cron: '@weekly', mandate: {goal: "go: on"}, enabled: false} # flow
== Edit { name: "weekly", set: [("cron", None)] }
-  - {name: weekly, cron: '@weekly', mandate: {goal: sum up}} # flow
+  - {name: weekly, mandate: {goal: sum up}} # flow
== Edit { name: "weekly", set: [("mandate.goal", None)] }
-  - {name: weekly, cron: '@weekly', mandate: {goal: sum up}} # flow
+  - {name: weekly, cron: '@weekly', mandate: {}} # flow
== Edit { name: "odd: one", set: [("enabled", None), ("mandate.goal", Some(String("x")))] }
-    enabled: false
+    mandate:
+      goal: x
== Edit { name: "odd: one", set: [("name", Some(String("🦀 crab")))] }
-    name: "odd: one"
+    name: "🦀 crab"
== Edit { name: "daily", set: [("name", None)] }
refused: a comment stands between this key and the next; change the file by hand
== Edit { name: "daily", set: [("enabled", None)] }

"#);
}

#[test]
fn a_removal_takes_the_lines_of_its_entry_and_no_others() {
    let cases = [
        Change::Remove("daily".into()),
        Change::Remove("weekly".into()),
        Change::Remove("odd: one".into()),
        Change::Remove("none".into()),
    ];
    insta::assert_snapshot!(all_shown(&cases), @r#"
== Remove("daily")
-  - name: daily   # the report
-    cron: "0 9 * * *"
-    mandate:
-      goal: |
-        write it
-        # not a comment
-
-      # about cycles
-      max_cycles: 3
== Remove("weekly")
-  - {name: weekly, cron: '@weekly', mandate: {goal: sum up}} # flow
== Remove("odd: one")
-  -
-    # odd but right
-    name: "odd: one"
-    cron: '*/5 * * * *'
-    enabled: false
== Remove("none")
refused: no schedule has the name "none"
"#);
}

#[test]
fn an_addition_stands_at_the_end_and_takes_no_name_twice() {
    let cases = [
        Change::Add(object(
            json!({"name": "new", "cron": "@daily", "mandate": {"params": {"b": 1}, "goal": "yes"}}),
        )),
        Change::Add(object(json!({"name": "daily", "cron": "@daily"}))),
    ];
    insta::assert_snapshot!(all_shown(&cases), @r#"
== Add({"cron": String("@daily"), "mandate": Object {"goal": String("yes"), "params": Object {"b": Number(1)}}, "name": String("new")})
+  - name: new
+    cron: "@daily"
+    mandate:
+      goal: "yes"
+      params: {"b":1}
== Add({"cron": String("@daily"), "name": String("daily")})
refused: a schedule of the name "daily" stands on line 4
"#);
}

#[test]
fn json_files_stay_json() {
    let cases = [
        set("a", &[("enabled", json!(false))]),
        set("a", &[("cron", json!("@daily"))]),
        set("b", &[("mandate.goal", json!("x"))]),
        set("b", &[("mandate", json!(null))]),
        Change::Remove("a".into()),
        Change::Remove("b".into()),
        Change::Add(object(json!({"name": "c", "cron": "@daily"}))),
    ];
    for change in &cases {
        let after = edit(JSON, "schedules.json", change).unwrap();
        serde_json::from_str::<Value>(&after).unwrap_or_else(|error| panic!("{change:?}: {error}\n{after}"));
    }
    let empty = edit("{}", "f", &cases[6]).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&empty).unwrap()["schedules"][0]["name"], "c");
}

#[test]
fn a_first_schedule_finds_its_place_in_every_empty_file() {
    let change = Change::Add(object(json!({"name": "new", "cron": "0 9 * * *"})));
    let item = "  - name: new\n    cron: \"0 9 * * *\"\n";
    for (before, after) in [
        ("", format!("schedules:\n{item}")),
        ("# note", format!("# note\nschedules:\n{}", item.trim_end())),
        ("schedules:\n", format!("schedules:\n{item}")),
        ("schedules: []\n# tail\n", format!("schedules:\n{item}# tail\n")),
        ("schedules: [] # c\n", format!("schedules:  # c\n{item}")),
        ("schedules: # c\n  # - name: example\n", format!("schedules: # c\n{item}  # - name: example\n")),
    ] {
        assert_eq!(edit(before, "f", &change).unwrap(), after, "{before:?}");
    }
    let kept = edit("schedules:\n- name: a\n  cron: '@daily'", "f", &change).unwrap();
    assert_eq!(kept, "schedules:\n- name: a\n  cron: '@daily'\n- name: new\n  cron: \"0 9 * * *\"");
    let windows = edit("schedules:\r\n- name: a\r\n  cron: '@daily'\r\n", "f", &change).unwrap();
    assert!(windows.ends_with("\r\n- name: new\r\n  cron: \"0 9 * * *\"\r\n"), "{windows:?}");
}

#[test]
fn what_cannot_be_changed_safely_is_refused() {
    let anchors = "schedules:\n  - &a {name: a, cron: '@daily'}\n  - <<: *a\n    name: b\n";
    for (text, change) in [
        (anchors, Change::Remove("a".into())),
        (anchors, set("b", &[("cron", json!("@hourly"))])),
        (anchors, set("a", &[("cron", json!("@hourly"))])),
        ("schedules: [{name: a}, {name: a}]", Change::Remove("a".into())),
        ("schedules: [{name: a, name: b}]", Change::Remove("a".into())),
        ("schedules: {a: 1}", Change::Add(object(json!({"name": "b"})))),
        ("schedules: [{name: a", Change::Remove("a".into())),
    ] {
        let error = edit(text, "f", &change).unwrap_err();
        assert!(matches!(error, EditError::NotPossible { .. } | EditError::Unreadable(_)), "{text}: {error}");
    }
}

#[test]
fn file_is_replaced_only_by_a_schedule_that_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config/schedules.yml");
    let zones = Zones::bundled();
    let around = Around { zones: &zones, runners: &[], now: None };
    let add = |cron: &str| Change::Add(object(json!({"name": "a", "cron": cron})));
    assert!(
        matches!(edit_file(&path, &add("0 25 * * *"), around), Err(EditError::Invalid { problems }) if problems.len() == 1)
    );
    assert!(!path.exists());
    let file = edit_file(&path, &add("0 5 * * *"), around).unwrap();
    assert_eq!(&*file.schedules[0].cron, "0 5 * * *");
    let before = std::fs::read_to_string(&path).unwrap();
    assert!(preview(&path, &Change::Remove("a".into()), around).unwrap().schedules.is_empty());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    let file = edit_file(&path, &Change::enabled("a", false), around).unwrap();
    assert!(!file.schedules[0].policy.enabled);
}

mod random {
    use super::*;
    use proptest::prelude::*;

    /// One entry in one of several ways of writing, its own lines only.
    fn entry(n: usize) -> impl Strategy<Value = String> {
        prop_oneof![
            Just(format!("  - name: s{n}\n    cron: '0 9 * * *'\n    enabled: true\n")),
            Just(format!("  - {{name: s{n}, cron: '0 9 * * *'}}   # flow {n}\n")),
            Just(format!(
                "  - name: \"s{n}\" # c{n}\n    mandate:\n      goal: >-\n        a\n        # b\n    cron: '@daily'\n"
            )),
            Just(format!(
                "  -\n    cron: '@daily'   # é {n}\n    name: s{n}\n    mandate: {{goal: g,\n      params: {{}}}}\n"
            )),
            Just(format!(
                "  - cron: '@daily'\n\n    # inside {n}\n    name: 's{n}'\n    mandate:\n      allowed_actions:\n      - x\n"
            )),
        ]
    }

    fn between() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(String::new()),
            Just("\n".to_owned()),
            Just("  # note ü\n".to_owned()),
            Just("# x\n\n".to_owned())
        ]
    }

    fn change(n: usize) -> impl Strategy<Value = Change> {
        let name = format!("s{n}");
        prop_oneof![
            Just(Change::Remove(name.clone())),
            Just(Change::enabled(&name, false)),
            Just(set(&name, &[("cron", json!("5 5 * * *")), ("timezone", json!("Europe/Paris"))])),
            Just(set(&name, &[("mandate.goal", json!("new: # goal\n\u{1F980}"))])),
            Just(set(&name, &[("mandate.params", json!({"k": "v"})), ("enabled", Value::Null)])),
            Just(set(&name, &[("mandate", Value::Null)])),
        ]
    }

    proptest! {
        #[test]
        fn everything_outside_the_entry_stays_byte_for_byte(
            entries in (entry(0), entry(1), entry(2)),
            gaps in proptest::collection::vec(between(), 4),
            flat in any::<bool>(),
            (at, change) in (0..3_usize).prop_flat_map(|at| (Just(at), change(at))),
        ) {
            // Half of the files have their dashes in the first column.
            let place = |text: &str| match flat {
                true => text.split_inclusive('\n').map(|line| line.strip_prefix("  ").unwrap_or(line)).collect(),
                false => text.to_owned(),
            };
            let entries: [String; 3] = [place(&entries.0), place(&entries.1), place(&entries.2)];
            let gaps: Vec<String> = gaps.iter().map(|gap| place(gap)).collect();
            let mut before = format!("# top\nschedules: # list\n{}", gaps[0]);
            for n in 0..at { before.push_str(&entries[n]); before.push_str(&gaps[n + 1]); }
            let mut after = gaps[at + 1].clone();
            for n in at + 1..3 { after.push_str(&entries[n]); after.push_str(&gaps[n + 1]); }
            let text = format!("{before}{}{after}", entries[at]);
            let changed = edit(&text, "f", &change).unwrap();
            prop_assert!(changed.starts_with(&before), "{}\n=>\n{}", text, changed);
            prop_assert!(changed.ends_with(&after), "{}\n=>\n{}", text, changed);
            let added = edit(&text, "f", &Change::Add(object(json!({"name": "zz", "cron": "@daily"})))).unwrap();
            let kept: String = added.replace(&place("  - name: zz\n    cron: \"@daily\"\n"), "");
            prop_assert_eq!(kept, text);
        }

        #[test]
        fn any_text_is_changed_as_meant_or_refused_without_a_panic(
            pieces in proptest::collection::vec(prop::sample::select(vec![
                "schedules:", "schedules: [", "]", "{", "}", "- ", "-", "\n", "\r\n", "\r", "  ", "    ", "name: s0", "name: s1",
                "cron: x", "mandate:", "goal: |", "goal: é", "'q'", ": ", ", ", "#c", "&a ", "*a", "<<: *a", "\"name\": \"s0\"", "? ",
                "\u{1F980}", "---", "...", "!!str ", "null",
            ]), 0..24),
            change in change(0),
        ) {
            let text = pieces.concat();
            for change in [change, Change::Add(object(json!({"name": "zz", "cron": "@daily"})))] {
                if let Ok(changed) = edit(&text, "f", &change) {
                    prop_assert!(load(&changed, "f").is_ok(), "{}", changed);
                }
            }
        }
    }
}
