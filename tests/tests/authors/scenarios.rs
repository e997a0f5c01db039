//! `kairos plugin test`: scenarios that pass, that differ and that are wrong.

use super::*;
use serde_json::{Value, json};

#[test]
fn the_example_passes_its_own_scenario() {
    let scenario = fs::read_to_string(workspace().join("examples/hello-runner/scenario.yml")).unwrap();
    for isolation in ["in_process", "process", "sandbox"] {
        let more = ["--isolation", isolation, "--json"];
        let tested = Desk::new().play("hello_runner", &scenario, &more);
        assert_eq!(tested.code, 0, "{}{}", tested.stdout, tested.stderr);
        let view: Value = serde_json::from_str(&tested.stdout).unwrap();
        assert_eq!(view["isolation"], isolation);
        // How far the sandbox got is said, whatever this machine allows.
        let level = view["sandbox"]["level"].as_str();
        assert_eq!(level.is_some(), isolation == "sandbox", "{view}");
    }
}

#[test]
fn what_differs_is_said_with_both_sides_to_people_programs_and_build_servers() {
    let scenario = "
mandate: {goal: Shorten., params: {file: a.md}}
replies: [{tool: fs.read, output: {content: x}}, {llm: Short.}, {tool: fs.read, refuses: no such file}]
expect:
  status: ok
  summary: something else
  steps: [llm]
  usage: {llm_calls: 2}
";
    let desk = Desk::new();
    let tested = desk.play("hello_runner", scenario, &["--junit", "junit.xml"]);
    assert_eq!(tested.code, 1, "{}", tested.stderr);
    let lines = [
        "DIFFERS  status",
        "got      invalid: the script has no answer of tool \"fs.edit\"",
        "DIFFERS  steps\n           expected [llm]\n           got      [tool:fs.read, llm, tool:fs.read, tool:fs.edit]",
        "DIFFERS  usage.llm_calls\n           expected 2\n           got      1",
        "4 of 4 not as expected",
    ];
    says(&tested.stdout, &lines);
    let junit = fs::read_to_string(desk.0.path().join("junit.xml")).unwrap();
    assert!(junit.contains("tests=\"4\"") && junit.contains("failures=\"4\""), "{junit}");
    let tested = desk.play("hello_runner", scenario, &["--json"]);
    assert_eq!(tested.code, 1);
    let view: Value = serde_json::from_str(&tested.stdout).unwrap();
    let scenario = &view["scenarios"][0];
    assert_eq!((&view["passed"], &scenario["passed"]), (&json!(false), &json!(false)));
    assert_eq!(scenario["checks"][2]["what"], "usage.llm_calls");
    assert_eq!(scenario["runs"][0]["wal"][1]["kind"], "llm");
    let error: Value = serde_json::from_str(&tested.stderr).unwrap();
    assert_eq!(error["error"]["code"], "scenario_differs");
}

#[test]
fn every_mistake_of_a_scenario_is_reported_at_its_line_before_anything_runs() {
    let scenario = "
mandate: {gaol: x}
replies:
  - {llm: a, tool: b}
  - {tool: fs.read}
faults:
  - {call: lmm, crash: true}
  - {call: llm}
expect:
  stauts: ok
  more: perhaps
";
    let tested = Desk::new().play("stub", scenario, &[]);
    assert_eq!(tested.code, 2, "{}", tested.stdout);
    let lines = [
        "scenario.yml:2:11: mandate.gaol: unknown key\n    -> did you mean `goal`?",
        "scenario.yml:4:5: replies[0]: a reply is to one call",
        "scenario.yml:5:5: replies[1]: a tool answers in one way",
        "scenario.yml:7:12: faults[0].call: no such call\n    -> did you mean `llm`?",
        "scenario.yml:8:5: faults[1]: a fault does one thing",
        "scenario.yml:10:3: expect.stauts: unknown key\n    -> did you mean `status`?",
        "scenario.yml:11:9: expect.more: expected true or false",
    ];
    says(&tested.stderr, &lines);
    let missing = Desk::new().kairos(&["plugin", "test", "x.so", "--scenario", "none.yml"]);
    assert_eq!(missing.code, 2);
    assert!(missing.stderr.contains("none.yml: no such file"), "{}", missing.stderr);
}

#[test]
fn faults_end_attempts_and_the_next_run_goes_on_from_the_record() {
    passes(
        "stub",
        "
mandate: {params: {phases: true, prompt: 'Hello?', tool: fs.read, more: true}}
replies: [{llm: Hi.}, {tool: fs.read, output: {content: x}}, {llm: Again.}, {tool: fs.read, error: {code: denied}}]
faults:
  - {call: 'tool:fs.read', answer: budget_exhausted}
  - {call: llm, nth: 2, crash: true}
cuts: all
expect:
  - {status: budget_exhausted, steps: [{call: llm, phase: act, contains: Hello}], metered: {llm_calls: 1}}
  - {status: ok, more: true, steps: [llm, 'tool:fs.read'], metered: {llm_calls: 0}, attempts: 1}
  - status: denied
    error: {contains: scenario}
    attempts: 2
    steps: [llm, {call: 'tool:fs.read', error: denied}]
    phases: [observe, orient, decide, act]
",
    );
}

#[test]
fn time_cancelling_usage_and_logs_are_part_of_a_scenario() {
    passes(
        "stub",
        "
deadline: 1m
mandate: {params: {prompt: 'Hello?', log: a line}}
faults: [{call: llm, takes: 2m}]
expect:
  status: deadline
  steps: []
  logs: [{level: info, contains: asked to log}, a line]
",
    );
    passes(
        "stub",
        "
mandate: {params: {phases: true, prompt: 'Hello?', input_tokens: 70}}
replies: [{llm: Hi., usage: {input_tokens: 50, output_tokens: 5}}]
faults: [{call: phase, nth: 5, cancel: true}]
expect: {status: ok, usage: {llm_calls: 1, input_tokens: 70, output_tokens: 5}}
",
    );
}

#[test]
fn what_tools_cost_and_a_deadline_at_a_chosen_call_are_part_of_a_scenario() {
    passes(
        "stub",
        "
mandate: {params: {prompt: 'Hello?', tool: fs.read}}
replies:
  - {llm: Hi., usage: {input_tokens: 50}}
  - {tool: fs.read, output: x, usage: {llm_calls: 2, input_tokens: 30, cost_nano_usd: 7}}
  - {llm: Hi again.}
  - {llm: Hi once more.}
  - {tool: fs.read, refuses: no such file, usage: {output_tokens: 4}}
  - {llm: '', error: {code: failed, message: overloaded}, usage: {input_tokens: 9}}
faults: [{call: 'tool:fs.read', deadline: true}]
cuts: all
expect:
  - {status: deadline, steps: [llm], metered: {llm_calls: 1, input_tokens: 50}, usage: {input_tokens: 50}}
  - {status: ok, steps: [llm, 'tool:fs.read'], metered: {llm_calls: 3, input_tokens: 30, cost_nano_usd: 7}}
  - {status: ok, metered: {llm_calls: 1, output_tokens: 4}}
  - {status: failed, steps: [{call: llm, error: failed}], metered: {llm_calls: 1, input_tokens: 9}}
",
    );
    let tested = Desk::new().play(
        "stub",
        "{replies: [{tool: t, error: {code: denied}, usage: {llm_calls: 1}}], expect: {status: ok}}",
        &[],
    );
    assert_eq!(tested.code, 2, "{}", tested.stdout);
    assert!(tested.stderr.contains("a call that did not run costs nothing"), "{}", tested.stderr);
}

#[test]
fn a_fault_that_never_comes_fails_and_a_reply_left_over_is_told() {
    let desk = Desk::new();
    let faults = "{mandate: {params: {prompt: 'Hello?'}}, replies: [{llm: Hi.}], expect: {status: ok},
        faults: [{call: llm, takes: 1s}, {call: llm, nth: 5, crash: true}]}";
    let tested = desk.play("stub", faults, &["--junit", "junit.xml"]);
    assert_eq!(tested.code, 1, "{}{}", tested.stdout, tested.stderr);
    let lines = [
        "DIFFERS  faults[1]\n           expected crash at call 5 of llm\n           got      never came",
        "never came: faults[1], crash at call 5 of llm",
        "1 of 2 not as expected",
    ];
    says(&tested.stdout, &lines);
    let junit = fs::read_to_string(desk.0.path().join("junit.xml")).unwrap();
    says(
        &junit,
        &["failures=\"1\"", "<system-out>never came: faults[1], crash at call 5 of llm</system-out>"],
    );
    let replies = "{mandate: {params: {prompt: 'Hello?'}}, expect: {status: ok},
        replies: [{llm: Hi.}, {llm: Ho.}, {tool: t, output: 1}, {tool: t, output: 2}]}";
    let tested = desk.play("stub", replies, &[]);
    assert_eq!(tested.code, 0, "{}{}", tested.stdout, tested.stderr);
    let lines =
        ["never came: a call of llm, which has", "never came: 2 calls of tool:t, which have", "all 1 as"];
    says(&tested.stdout, &lines);
    let view: Value = serde_json::from_str(&desk.play("stub", replies, &["--json"]).stdout).unwrap();
    assert_eq!(view["scenarios"][0]["never_came"].as_array().unwrap().len(), 2, "{view}");
}

#[test]
fn a_status_that_nothing_can_have_is_refused_and_an_own_code_is_written_out() {
    let desk = Desk::new();
    let tested = desk.play("stub", "expect:\n  status: okay\n", &[]);
    assert_eq!(tested.code, 2, "{}{}", tested.stdout, tested.stderr);
    says(
        &tested.stderr,
        &["scenario.yml:2:11: expect.status: not a known status", "known are ok, paused, error, "],
    );
    let own = "{mandate: {params: {prompt: Hello}}, replies: [{llm: '', error: {code: quota}}], \
        expect: {status: {code: quota}}}";
    passes("stub", own);
}

#[test]
fn the_help_shows_a_scenario_that_is_one() {
    let help = Desk::new().kairos(&["plugin", "test", "--help"]).stdout;
    let (_, shown) = help.split_once("may be absent:\n").unwrap();
    let (scenario, _) = shown.split_once("\nA fault").unwrap();
    // It is read, and differs from what this runner does.
    let tested = Desk::new().play("stub", scenario, &[]);
    assert_eq!(tested.code, 1, "{}", tested.stderr);
    says(&tested.stdout, &["what it shows", "DIFFERS  status"]);
}

#[test]
fn a_runner_that_hangs_panics_or_refuses_is_an_outcome_like_any_other() {
    passes(
        "hostile_runner",
        "
timeout: 300ms
mandate: {params: {fault: deaf}}
expect: {status: hung, error: {contains: did not end within 300ms; it did not listen and was killed}}
",
    );
    passes("hostile_runner", "{mandate: {params: {fault: segv}}, expect: {status: died, attempts: 1}}");
    passes(
        "hostile_runner",
        "
mandate: {params: {fault: panic}}
expect: {status: panic, error: {contains: asked to}}
",
    );
    passes(
        "hostile_runner",
        "{params: {fault: refuse}, expect: {status: setup_refused, error: {contains: says to refuse}}}",
    );
    passes("hostile_runner", "{params: {fault: bad_report}, expect: {status: bad_report}}");
}

#[test]
fn a_runner_that_asks_something_else_after_a_crash_is_found() {
    let scenario = "
mandate: {params: {fault: fickle}}
replies: [{llm: a}, {llm: b}]
cuts: all
expect: {status: ok}
";
    let tested = Desk::new().play("hostile_runner", scenario, &[]);
    assert_eq!(tested.code, 1, "{}", tested.stdout);
    assert!(tested.stdout.contains("DIFFERS  cuts"), "{}", tested.stdout);
    assert!(tested.stdout.contains("a crash before step 1, llm: step 1 asks llm {"), "{}", tested.stdout);
}

#[test]
fn a_file_that_is_no_plugin_is_said_to_be_none() {
    let desk = Desk::new();
    desk.file("scenario.yml", "expect: {}");
    desk.file("not.so", "text");
    let tested = desk.kairos(&["plugin", "test", "./not.so", "--scenario", "scenario.yml", "--json"]);
    assert_eq!(tested.code, 1);
    let error: Value = serde_json::from_str(&tested.stderr).unwrap();
    assert_eq!(error["error"]["code"], "not_elf");
}

#[test]
fn mistakes_of_syntax_hide_no_others() {
    let scenario = "
mandate: {gaol: x
replies:
  - {llmm: a, txt: b}
  - {tool: fs.read, output: 1, outptu: 2}
faults:
  - call: llm
    answer: budget_exausted
  - {call: llm, message: no more}
expect:
  - {status: stoped}
  - {status: \"ok}
now: tomorrow
timeouts: 3s
";
    let tested = Desk::new().play("stub", scenario, &[]);
    assert_eq!(tested.code, 2, "{}", tested.stdout);
    let lines = [
        "not valid YAML",
        "scenario.yml:4:5: replies[0]: a reply is to one call",
        "scenario.yml:4:6: replies[0].llmm: unknown key\n    -> did you mean `llm`?",
        "scenario.yml:5:32: replies[1].outptu: unknown key\n    -> did you mean `output`?",
        "scenario.yml:8:13: faults[0].answer: not a known word\n    -> did you mean `budget_exhausted`?",
        "scenario.yml:9:5: faults[1]: a fault does one thing",
        "scenario.yml:13:6: now: not a time",
        "scenario.yml:14:1: timeouts: unknown key\n    -> did you mean `timeout`?",
    ];
    says(&tested.stderr, &lines);
    assert_eq!(tested.stderr.matches("not valid YAML").count(), 2, "{}", tested.stderr);
    assert!(!tested.stderr.contains("nothing is expected"), "{}", tested.stderr);
}

#[test]
fn every_kind_of_difference_is_readable_and_fails() {
    let scenario = "
name: nothing is as expected
deadline: 1m
mandate: {params: {phases: true, prompt: 'Hello?', tool: fs.read, log: a line}}
replies: [{llm: Hi., usage: {input_tokens: 5}}, {tool: fs.read, output: {content: x}}]
faults: [{call: llm, takes: 2m}]
expect:
  - {status: ok, error: no trouble, attempts: 2, phases: [observe], logs: [{level: warn, contains: a line}]}
  - status: error
    more: true
    summary: {contains: never said}
    usage: {llm_calls: 2, input_tokens: 6}
    metered: {output_tokens: 9}
    state: {key: 1}
    steps: [llm, {call: 'tool:fs.read', phase: reflect, args: {path: other}, error: denied}]
";
    let tested = Desk::new().play("stub", scenario, &[]);
    assert_eq!(tested.code, 1, "{}{}", tested.stdout, tested.stderr);
    for (what, expected, got) in [
        ("run 1: status", "ok", "deadline: "),
        ("run 1: error", "\"no trouble\"", "\""),
        ("run 1: attempts", "2", "1"),
        ("run 1: phases", "observe", "observe, orient"),
        ("run 1: logs[0]", "WARN \"a line\"", "INFO \"asked to log\""),
        ("run 2: status", "error", "ok"),
        ("run 2: more", "true", "false"),
        ("run 2: summary", "\"never said\" in it", "\""),
        ("run 2: usage.llm_calls", "2", "1"),
        ("run 2: usage.input_tokens", "6", "5"),
        ("run 2: metered.output_tokens", "9", "0"),
        ("run 2: state.key", "1", "null"),
        ("run 2: steps[1].phase", "reflect", "act"),
        ("run 2: steps[1].args", "{\"path\":\"other\"}", "{"),
        ("run 2: steps[1].error", "denied", "no error"),
    ] {
        let text = format!("  DIFFERS  {what}\n           expected {expected}\n           got      {got}");
        says(&tested.stdout, &[&text]);
    }
    assert!(tested.stderr.contains("1 of 1 scenarios not as expected"), "{}", tested.stderr);
}

#[test]
fn junit_holds_whatever_text_there_is() {
    let hostile = "<b a=\"1\">&amp; ]]> '\u{1b}[31m \u{1} \u{fffe} \u{1F600} --> <![CDATA[";
    let scenario = json!({
        "name": hostile,
        "mandate": {"params": {"prompt": "Hello?"}},
        "replies": [{"llm": hostile}],
        "expect": {"status": "error", "summary": hostile, "steps": [{"call": "llm", "contains": hostile}]},
    });
    let desk = Desk::new();
    let tested = desk.play("stub", &scenario.to_string(), &["--junit", "junit.xml"]);
    assert_eq!(tested.code, 1, "{}{}", tested.stdout, tested.stderr);
    // On a terminal, too, nothing of it acts.
    assert!(!tested.stdout.contains('\u{1b}') && !tested.stdout.contains('\u{1}'), "{:?}", tested.stdout);
    let xml = fs::read_to_string(desk.0.path().join("junit.xml")).unwrap();
    let stray = xml.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{fffe}');
    assert_eq!(stray, None, "{xml:?}");
    let report =
        quick_junit::Report::deserialize_from_str(&xml).unwrap_or_else(|error| panic!("{error}: {xml}"));
    assert_eq!((report.tests, report.test_suites.len()), (4, 1));
    assert!(report.failures >= 2, "{xml}");
    let suite = &report.test_suites[0];
    assert!(
        suite.name.contains("<b a=\"1\">&amp; ]]>") && suite.name.contains('\u{1F600}'),
        "{}",
        suite.name.as_str()
    );
    assert_eq!(suite.test_cases[0].name.as_str(), "status");
}

#[test]
fn a_file_for_build_servers_of_an_earlier_run_never_outlives_a_failed_one() {
    let desk = Desk::new();
    let tested = desk.play("stub", "mandate: {goal: g}\nexpect: {status: ok}\n", &["--junit", "junit.xml"]);
    assert_eq!(tested.code, 0, "{}{}", tested.stdout, tested.stderr);
    let read = || {
        let xml = fs::read_to_string(desk.0.path().join("junit.xml")).unwrap();
        let report = quick_junit::Report::deserialize_from_str(&xml);
        let report = report.unwrap_or_else(|error| panic!("{error}: {xml}"));
        (report.tests, report.errors, xml)
    };
    assert_eq!((read().0, read().1), (1, 0));
    desk.file("bad.so", "no library at all");
    let args = ["plugin", "test", "bad.so", "--scenario", "scenario.yml", "--junit", "junit.xml"];
    let tested = desk.kairos(&args);
    assert_eq!(tested.code, 1, "{}", tested.stderr);
    let (tests, errors, xml) = read();
    assert_eq!((tests, errors), (1, 1), "{xml}");
    says(&xml, &["bad.so", "not_elf", "the plugin does not load"]);
    let tested = desk.play("stub", "mandate: {gaol: g}\n", &["--junit", "junit.xml"]);
    assert_eq!(tested.code, 2, "{}", tested.stderr);
    let (tests, errors, xml) = read();
    assert_eq!((tests, errors), (1, 1), "{xml}");
    says(&xml, &["bad_scenario", "gaol"]);
    // Where no file can be written, that is said along with the failure, not instead of it.
    let tested =
        desk.kairos(&["plugin", "test", "bad.so", "--scenario", "absent.yml", "--junit", "no/junit.xml"]);
    assert_ne!(tested.code, 0);
    says(&tested.stderr, &["absent.yml", "no/junit.xml is not written"]);
}

#[test]
fn what_is_named_for_the_junit_file_keeps_its_name_whatever_it_is() {
    use std::io::Read as _;
    use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, symlink};
    let desk = Desk::new();
    let at = |name: &str| desk.0.path().join(name);
    let to = |named: &str| {
        let tested =
            desk.play("stub", "mandate: {goal: g}\nexpect: {status: ok}\n", &["--junit", named, "--json"]);
        assert_eq!(tested.code, 0, "{named}: {}{}", tested.stdout, tested.stderr);
        tested.stdout
    };
    // A fifo, behind a link.
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), kind, rustix::fs::Mode::from_raw_mode(0o600), 0)
        .unwrap();
    symlink("fifo", at("to-fifo")).unwrap();
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
    let mut reader = fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(at("fifo")).unwrap();
    to("to-fifo");
    let mut xml = String::new();
    reader.read_to_string(&mut xml).unwrap();
    assert!(xml.contains("<testsuites"), "{xml}");
    assert!(fs::symlink_metadata(at("fifo")).unwrap().file_type().is_fifo());
    assert!(fs::symlink_metadata(at("to-fifo")).unwrap().is_symlink());
    // A file behind a link, before and after it is there.
    symlink("there.xml", at("link.xml")).unwrap();
    for _ in 0..2 {
        to("link.xml");
        assert!(fs::read_to_string(at("there.xml")).unwrap().contains("<testsuites"));
        assert!(fs::symlink_metadata(at("link.xml")).unwrap().is_symlink());
    }
    // Standard output, behind a link of this desk: the machine's own is not put at risk.
    symlink("/proc/self/fd/1", at("stdout")).unwrap();
    let said = to("stdout");
    assert!(said.contains("</testsuites>") && said.contains("\"passed\":true"), "{said}");
    assert!(fs::symlink_metadata(at("stdout")).unwrap().is_symlink());
    let stub = plugin("stub");
    let full = ["plugin", "test", stub.to_str().unwrap(), "--scenario", "scenario.yml"];
    symlink("/dev/full", at("full")).unwrap();
    let tested = desk.kairos(&[&full[..], &["--junit", "full"]].concat());
    assert!(tested.code == 1 && tested.stderr.contains("no space left"), "{}", tested.stderr);
    assert!(fs::symlink_metadata(at("full")).unwrap().is_symlink());
}
