//! Tests of the YAML reader.

use super::*;

fn read(text: &str) -> (Option<Node>, Report) {
    let mut report = Report::default();
    let node = load(text, &"f.yml".into(), &mut report, None);
    (node, report)
}

fn json(text: &str) -> Value {
    let (node, report) = read(text);
    assert!(report.is_ok(), "{text:?}: {report}");
    node.unwrap().to_json()
}

fn refused(text: &str) -> String {
    let (node, report) = read(text);
    assert!(node.is_none() && !report.is_ok(), "{text:?} was read");
    report.problems[0].to_string()
}

#[test]
fn scalars_follow_the_core_schema() {
    let found =
        json("[~, null, true, False, 10, -3, 0x1F, 0o17, 1.5, 1e3, yes, 10m, '5', \"true\", .5, 1.2.3]");
    let expect = serde_json::json!([
        null, null, true, false, 10, -3, 31, 15, 1.5, 1000.0, "yes", "10m", "5", "true", 0.5, "1.2.3"
    ]);
    assert_eq!(found, expect);
    assert_eq!(json("[!!str 5, !!int '7']"), serde_json::json!(["5", 7]));
}

#[test]
fn json_is_yaml() {
    let text = "{\"a\": [1, 2.5, \"x\\u00e9\\n\"], \"b\": {\"c\": null}}";
    assert_eq!(json(text), serde_json::from_str::<Value>(text).unwrap());
}

#[test]
fn duplicate_keys_are_kept_beside_the_map_in_small_and_large_maps() {
    for filler in [0, 40] {
        let mut text = "a: 1\n".to_owned();
        for n in 0..filler {
            text.push_str(&format!("k{n}: 0\n"));
        }
        text.push_str("a: 2\n");
        let Kind::Map(map) = read(&text).0.unwrap().kind else { panic!("a map") };
        assert_eq!(map.get("a").unwrap().to_json(), 1);
        assert_eq!((map.duplicates.len(), map.duplicates[0].1), (1, 1));
        assert_eq!(map.duplicates[0].0.key_span.start.line, filler + 2);
    }
}

#[test]
fn anchors_aliases_and_merges_are_resolved() {
    let found = json("base: &b {x: 1, y: '2'}\nuse:\n  <<: *b\n  x: 3\ncopy: *b\nt: &t '5'\nu: *t\n");
    assert_eq!(found["use"], serde_json::json!({"x": 3, "y": "2"}));
    assert_eq!(found["copy"], serde_json::json!({"x": 1, "y": "2"}));
    assert_eq!(found["u"], "5", "an alias keeps the type of its anchor");
}

#[test]
fn what_would_exhaust_memory_or_stack_is_refused() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..10 {
        let last = format!("*a{}", n - 1);
        bomb.push_str(&format!("a{n}: &a{n} [{}]\n", vec![last; 9].join(", ")));
    }
    assert!(refused(&bomb).contains("anchors and aliases stand for more than"));
    assert!(refused(&format!("{}{}", "[".repeat(200), "]".repeat(200))).contains("nested deeper than 64"));
    let deep: String = (0..200).map(|depth| format!("{}a:\n", "  ".repeat(depth))).collect();
    assert!(refused(&deep).contains("nested deeper than 64"));
    assert!(refused("a: &a [*a]").contains("not complete"));
}

#[test]
fn syntax_errors_say_where_and_what_to_do() {
    insta::assert_snapshot!(
        ["cron: * * * * *\n", "a:\n\t- b\n", "x: [1, 2\n", "a: 1\nb: 2: 3\n", "a: 1\n---\nb: 2\n", "? [a]\n: b\n",
         "when: @daily\n"]
            .map(refused).join("\n"),
        @r#"
f.yml:1:7: not valid YAML: while scanning an anchor or alias, did not find expected alphabetic or numeric character
    -> put the value in quotes: "* * * * *"
f.yml:2:2: not valid YAML: tabs disallowed within this context (block indentation)
    -> indent with spaces, not tabs
f.yml:2:1: not valid YAML: while parsing a flow sequence, expected ',' or ']'
    -> check quotes, brackets and indentation here and on the line before
f.yml:2:5: not valid YAML: mapping values are not allowed in this context
    -> put the value in quotes: "2: 3"
f.yml:3:1: a second document
    -> keep one document in the file, without `---`
f.yml:1:3: a key must be text
    -> write a plain or quoted word before the colon
f.yml:1:7: not valid YAML: unexpected character: `@'
    -> put the value in quotes: "@daily"
"#);
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_place() {
    let file: Arc<str> = "f.yml".into();
    for (bytes, expect) in [(&b"a: 1\nb\xff"[..], "f.yml:2:2: not UTF-8"), (b"a: \0", "f.yml:1:4: a NUL")] {
        let mut report = Report::default();
        assert_eq!(text_of(bytes, &file, &mut report), None);
        assert!(report.problems[0].to_string().starts_with(expect), "{report}");
    }
    assert_eq!(text_of(b"\xEF\xBB\xBFa: 1", &file, &mut Report::default()), Some("a: 1"));
}

#[test]
fn spans_of_flow_collections_end_at_their_bracket() {
    let text = "l: [a, {b: c} ] # note\n";
    let Kind::Map(map) = read(text).0.unwrap().kind else { panic!("a map") };
    let list = map.get("l").unwrap();
    assert_eq!(&text[list.span.start.index..list.span.end.index], "[a, {b: c} ]");
    assert_eq!(list.style, Style::Bracketed);
}

#[test]
fn streamed_items_are_handed_over_and_not_kept() {
    let mut report = Report::default();
    let mut seen = Vec::new();
    let mut take = |node: Node, _: &mut Report| seen.push(node.to_json());
    let stream = Stream { key: "items", take: &mut take };
    let root = load("a: 1\nitems: [1, {x: 2}]\nb: 3\n", &"f".into(), &mut report, Some(stream)).unwrap();
    assert_eq!(root.to_json(), serde_json::json!({"a": 1, "items": [], "b": 3}));
    assert_eq!(seen, [serde_json::json!(1), serde_json::json!({"x": 2})]);
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused_without_a_panic(text in "[-a-z0-9:?&*!|>'\"%@`{}\\[\\],#~ \t\r\n.é\u{1F600}]{0,80}") {
        let (node, report) = read(&text);
        proptest::prop_assert_eq!(node.is_none(), !report.is_ok() && node.is_none());
        if let Some(node) = node { drop(node.to_json()); }
    }
}
