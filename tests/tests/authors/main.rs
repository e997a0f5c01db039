//! What an author of runners works with: scenarios, templates, the guide's walk.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test writes plain files and may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kairos_tests::{kairos, plugin, target_dir};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory of one author.
struct Desk(TempDir);

struct Tested {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn kairos(&self, args: &[&str]) -> Tested {
        let output = Command::new(kairos())
            .args(args)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Tested {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Plays a scenario of this text.
    fn play(&self, library: &str, scenario: &str, more: &[&str]) -> Tested {
        self.file("scenario.yml", scenario);
        let plugin = plugin(library);
        let args = ["plugin", "test", plugin.to_str().unwrap(), "--scenario", "scenario.yml"];
        self.kairos(&[&args, more].concat())
    }
}

fn passes(library: &str, scenario: &str) {
    let tested = Desk::new().play(library, scenario, &[]);
    assert_eq!(tested.code, 0, "{}{}", tested.stdout, tested.stderr);
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

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
    for line in [
        "DIFFERS  status",
        "got      invalid: the script has no answer of tool \"fs.edit\"",
        "DIFFERS  steps\n           expected [llm]\n           got      [tool:fs.read, llm, tool:fs.read, tool:fs.edit]",
        "DIFFERS  usage.llm_calls\n           expected 2\n           got      1",
        "4 of 4 not as expected",
    ] {
        assert!(tested.stdout.contains(line), "{line}\nis missing in\n{}", tested.stdout);
    }
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
    for line in [
        "scenario.yml:2:11: mandate.gaol: unknown key\n    -> did you mean `goal`?",
        "scenario.yml:4:5: replies[0]: a reply is to one call",
        "scenario.yml:5:5: replies[1]: a tool answers in one way",
        "scenario.yml:7:12: faults[0].call: no such call\n    -> did you mean `llm`?",
        "scenario.yml:8:5: faults[1]: a fault does one thing",
        "scenario.yml:10:3: expect.stauts: unknown key\n    -> did you mean `status`?",
        "scenario.yml:11:9: expect.more: expected true or false",
    ] {
        assert!(tested.stderr.contains(line), "{line}\nis missing in\n{}", tested.stderr);
    }
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

/// Runs a program in a directory; it must succeed.
fn succeeds(dir: &Path, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) {
    let output = Command::new(program).args(args).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{args:?}: {}{}", said[0], said[1]);
}

/// Runs commands of cargo on a new runner. Gives the plugin.
fn built(dir: &Path, commands: &[&str]) -> PathBuf {
    // The versions, the profile and the directory of this build: little is compiled again, nothing
    // is fetched.
    fs::copy(workspace().join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
    let target = target_dir().parent().unwrap().to_owned();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut common = vec!["--offline", "--target-dir", target.to_str().unwrap()];
    for setting in ["profile.dev.debug='line-tables-only'", "profile.dev.package.sha2.opt-level=3"] {
        common.extend(["--config", setting]);
    }
    for command in commands {
        succeeds(dir, &cargo, &[&[*command], &common[..]].concat());
    }
    let name = dir.file_name().unwrap().to_str().unwrap().replace('-', "_");
    target.join("debug").join(format!("lib{name}.so"))
}

#[test]
fn a_new_runner_in_rust_builds_and_passes_its_tests_and_its_scenario() {
    let desk = Desk::new();
    let made = desk.kairos(&["plugin", "new", "night-notes", "--json"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let made: Value = serde_json::from_str(&made.stdout).unwrap();
    assert!(made["created"].as_array().unwrap().contains(&json!("src/lib.rs")), "{made}");
    let dir = desk.0.path().join("night-notes");
    let own = fs::read_to_string(dir.join("src/lib.rs")).unwrap();
    let body = own.split("#[cfg(test)]").next().unwrap().split("impl CycleRunner").nth(1).unwrap();
    let lines = body.lines().filter(|line| !line.trim().is_empty() && !line.trim().starts_with("//")).count();
    assert!(lines <= 20, "{lines} lines are more than were promised");
    let so = built(&dir, &["build", "test"]);
    let args = ["plugin", "test", so.to_str().unwrap(), "--scenario", "night-notes/scenario.yml"];
    let tested = desk.kairos(&args);
    assert_eq!(tested.code, 0, "{}{}", tested.stdout, tested.stderr);
    assert!(tested.stdout.contains("cuts: 2 crashes, no difference"), "{}", tested.stdout);
}

#[test]
fn a_new_runner_in_c_builds_and_passes_its_scenario() {
    let desk = Desk::new();
    let made = desk.kairos(&["plugin", "new", "count-down", "--lang", "c", "--dir", "work/c"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let dir = desk.0.path().join("work/c");
    succeeds(&dir, "make", &["CFLAGS=-O1 -Wall -Wextra -pedantic -Werror"]);
    let checked = desk.kairos(&["plugin", "check", "work/c/libcount_down.so"]);
    assert_eq!(checked.code, 0, "{}", checked.stdout);
    let tested =
        desk.kairos(&["plugin", "test", "work/c/libcount_down.so", "--scenario", "work/c/scenario.yml"]);
    assert_eq!(tested.code, 0, "{}{}", tested.stdout, tested.stderr);
}

#[test]
fn new_runners_overwrite_nothing_and_have_names_that_build() {
    let desk = Desk::new();
    fs::create_dir(desk.0.path().join("taken")).unwrap();
    let taken = desk.kairos(&["plugin", "new", "taken"]);
    assert_eq!(taken.code, 5, "{}", taken.stderr);
    assert!(taken.stderr.contains("nothing was written"), "{}", taken.stderr);
    for name in ["Upper", "../out", "test"] {
        let refused = desk.kairos(&["plugin", "new", name]);
        assert_eq!(refused.code, 2, "{name}: {}", refused.stderr);
    }
    let nowhere = desk.kairos(&["plugin", "new", "fine", "--api", "nowhere"]);
    assert_eq!(nowhere.code, 2, "{}", nowhere.stderr);
    assert!(!desk.0.path().join("fine").exists());
}

/// The text of the guide's blocks of one language below a heading.
fn blocks(heading: &str, language: &str) -> Vec<String> {
    let guide = fs::read_to_string(workspace().join("plugin-api/GUIDE.md")).unwrap();
    let section = guide.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let fence = format!("```{language}\n");
    section.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_walk_of_the_guide_leads_to_a_running_schedule() {
    let desk = Desk::new();
    let mut home = desk.0.path().to_owned();
    let mut listed = String::new();
    let lines = blocks("From nothing", "sh");
    let runner = blocks("From nothing", "yaml").remove(0);
    for line in lines.iter().flat_map(|block| block.lines()) {
        // A shell does the quotes, as for whoever follows the guide.
        let words = Command::new("sh").args(["-c", &format!("printf '%s\\n' {line}")]).output().unwrap();
        let words = String::from_utf8(words.stdout).unwrap();
        let words: Vec<&str> = words.lines().collect();
        match words[..] {
            ["cd", dir] => home = home.join(dir),
            ["cargo", "build", "--release", "--manifest-path", manifest] => {
                // In the profile of this build, so that it does not take minutes.
                let dir = home.join(manifest).parent().unwrap().to_owned();
                let so = built(&dir, &["build"]);
                let release = dir.join("target/release");
                fs::create_dir_all(&release).unwrap();
                fs::copy(&so, release.join(so.file_name().unwrap())).unwrap();
                let config = home.join(".kairos/config/daemon.yml");
                let text = fs::read_to_string(&config).unwrap();
                fs::write(&config, text.replacen("runners:\n", &format!("runners:\n{runner}"), 1)).unwrap();
            }
            ["kairos", ref args @ ..] => {
                let mut command = Command::new(kairos());
                let output = command.args(args).current_dir(&home).stdin(Stdio::null()).output().unwrap();
                listed = String::from_utf8(output.stdout).unwrap();
                let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{line}: {listed}{stderr}");
            }
            _ => panic!("what is {line:?}?"),
        }
    }
    assert!(listed.contains("succeeded") && listed.contains("How are the logs?"), "{listed}");
    assert!(fs::read_to_string(home.join(".kairos/config/schedules.yml")).unwrap().contains("name: notes"));
}

#[test]
fn the_scenario_of_the_guide_is_right() {
    passes("hello_runner", &blocks("Testing", "yaml").remove(0));
}

#[test]
fn a_new_runner_in_c_takes_the_header_it_is_told_to_or_says_why_not() {
    let desk = Desk::new();
    let api = desk.0.path().join("sources/plugin-api");
    fs::create_dir_all(api.join("include")).unwrap();
    fs::write(api.join("Cargo.toml"), "[package]\nname = \"kairos-plugin-api\"\n").unwrap();
    let made = |api: &str| desk.kairos(&["plugin", "new", "mine", "--lang", "c", "--api", api]);
    for (api, words) in [
        ("nowhere", "holds no kairos-plugin-api"),
        ("https://x.invalid/kairos.git", "takes only a header"),
        ("sources", "no header that can be read"),
    ] {
        let refused = made(api);
        assert!(refused.code == 2 && refused.stderr.contains(words), "{api}: {}", refused.stderr);
        assert!(!desk.0.path().join("mine").exists());
    }
    fs::write(api.join("include/kairos.h"), "/* theirs */\n").unwrap();
    assert_eq!(made("sources").code, 0);
    assert_eq!(fs::read_to_string(desk.0.path().join("mine/kairos.h")).unwrap(), "/* theirs */\n");
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
    for line in [
        "not valid YAML",
        "scenario.yml:4:5: replies[0]: a reply is to one call",
        "scenario.yml:4:6: replies[0].llmm: unknown key\n    -> did you mean `llm`?",
        "scenario.yml:5:32: replies[1].outptu: unknown key\n    -> did you mean `output`?",
        "scenario.yml:8:13: faults[0].answer: not a known word\n    -> did you mean `budget_exhausted`?",
        "scenario.yml:9:5: faults[1]: a fault does one thing",
        "scenario.yml:13:6: now: not a time",
        "scenario.yml:14:1: timeouts: unknown key\n    -> did you mean `timeout`?",
    ] {
        assert!(tested.stderr.contains(line), "{line}\nis missing in\n{}", tested.stderr);
    }
    assert_eq!(tested.stderr.matches("not valid YAML").count(), 2, "{}", tested.stderr);
    assert!(!tested.stderr.contains("nothing is expected"), "{}", tested.stderr);
}
