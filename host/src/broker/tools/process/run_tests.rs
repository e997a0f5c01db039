//! Programs of every kind, run for real: each comes to an end, says what it cost, leaves nothing.

#![allow(clippy::disallowed_methods, reason = "tests write small programs and read the real clock")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use super::*;
use crate::broker::stop::{Interrupt, Patience, StopSignal};
use crate::broker::tools::{Nobody, Watch};
use crate::sys::clock::SystemClock;

const KEY: &str = "sha256-0123456789abcdef0123456789abcdef";
/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    dir: TempDir,
    spec: CommandSpec,
    key: String,
    stop: Arc<StopSignal>,
    until: Option<Duration>,
}

impl Bench {
    /// A program that is this shell script.
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("agent");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let spec = CommandSpec {
            name: "agent".into(),
            argv: vec![program.display().to_string()],
            preset: Preset::Jsonl,
            input: Input::Mandate,
            pass: Pass::Stdin,
            cwd: dir.path().to_owned(),
            env: BTreeMap::from([("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())]),
            secrets: BTreeMap::new(),
            grant: None,
            scratch: dir.path().join("tmp"),
            fence: Arc::default(),
            timeout: PATIENCE,
            grace: Duration::from_millis(100),
            max_output: 1 << 20,
            keep_free: 0,
            reserve: Usage { llm_calls: 10, cost_nano_usd: 1_000_000_000, ..Usage::ZERO },
            price: None,
            repeatable: false,
            runners: vec!["agent".into()],
        };
        // Each test finds only its own processes.
        let key = format!("{KEY}-{}", dir.path().display());
        Self { dir, spec, key, stop: StopSignal::new(), until: None }
    }

    fn with(mut self, change: impl FnOnce(&mut CommandSpec)) -> Self {
        change(&mut self.spec);
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tool(&self) -> ProcessRun {
        let clock = Arc::new(SystemClock::default());
        let confine = Arc::new(|start: &Start<'_>| {
            let mut command = Command::new(start.program);
            command.args(start.args).env_clear();
            Ok(Launch { command, guarded: false })
        });
        ProcessRun::new(vec![self.spec.clone()], confine, clock, Arc::default())
    }

    fn run(&self) -> Result<Done, Undone> {
        self.watched(&Nobody)
    }

    fn watched(&self, watch: &dyn Watch) -> Result<Done, Undone> {
        let args = json!({"command": "agent", "prompt": "do it", "mandate": {"id": "m1", "goal": "do it"}});
        let tool = self.tool();
        let touch = tool.touch(&args).unwrap();
        let intent = tool.intent(&args, &touch).unwrap();
        assert_eq!(intent.reserve, self.spec.reserve);
        let clock = SystemClock::default();
        let patience = Patience::new(&self.stop, &clock, self.until);
        let began = Instant::now();
        let done = tool.execute(&args, &intent, &Course { key: &self.key, patience, watch });
        assert!(began.elapsed() < PATIENCE, "it came to an end");
        assert_eq!(leftovers::end(STEP, &self.key), 0, "nothing is left");
        let scratch = fs::read_dir(&self.spec.scratch).map_or(0, Iterator::count);
        assert_eq!(scratch, 0, "no temporary file is left");
        done
    }

    fn output(&self) -> Value {
        self.run().unwrap().reply.output
    }
}

fn shown(done: &Done) -> String {
    done.reply.output.to_string()
}

#[test]
fn an_agent_reads_its_mandate_and_its_usage_is_read_from_its_lines() {
    let bench = Bench::new(
        r#"read mandate; echo '{"type":"usage","llm_calls":2,"input_tokens":30,"output_tokens":4,"cost_usd":0.25}'
        echo "{\"type\":\"report\",\"status\":\"ok\",\"summary\":\"$(echo "$mandate" | tr -d '\"')\"}"; echo trouble >&2"#,
    );
    let done = bench.run().unwrap();
    assert!(done.reply.ok, "{done:?}");
    let usage = Usage { llm_calls: 2, input_tokens: 30, output_tokens: 4, cost_nano_usd: 250_000_000 };
    assert_eq!(done.usage, Some(usage));
    let output = done.reply.output;
    assert_eq!((&output["exit"], &output["text"]), (&json!(0), &json!("{goal:do it,id:m1}")));
    assert_eq!(output["stderr"], "trouble");
    assert_eq!(output["usage"], json!(usage));
}

#[test]
fn what_is_not_said_counts_as_reserved_and_a_price_says_it() {
    let say = r#"echo '{"type":"usage","llm_calls":1,"input_tokens":1000,"output_tokens":100}'"#;
    let bench = Bench::new(say);
    assert_eq!(bench.run().unwrap().usage.unwrap().cost_nano_usd, 1_000_000_000);
    let price = Price { input_nano_usd_per_mtok: 3_000_000_000, output_nano_usd_per_mtok: 15_000_000_000 };
    let bench = bench.with(|spec| spec.price = Some(price));
    assert_eq!(bench.run().unwrap().usage.unwrap().cost_nano_usd, 4_500_000);
    let silent = Bench::new("exit 0");
    let done = silent.run().unwrap();
    assert_eq!((done.usage, done.reply.ok), (None, true), "nobody knows, so the reservation counts");
    let free = Bench::new("exit 0").with(|spec| spec.reserve = Usage::ZERO);
    assert_eq!(free.run().unwrap().usage, Some(Usage::ZERO));
}

#[test]
fn a_program_that_fails_says_how() {
    let cases = [
        ("echo first >&2; echo no such key >&2; exit 3", "exit", "exit code 3: no such key"),
        ("kill -SEGV $$", "signal", "signal 11"),
        (r#"echo '{"type":"report","status":"error","error":"locked"}'"#, "agent_error", "locked"),
        ("exec ./nowhere", "exit", "exit code 127"),
    ];
    for (script, code, words) in cases {
        let output = Bench::new(script).output();
        assert_eq!(output["code"], code, "{output}");
        assert!(output["error"].as_str().unwrap().contains(words), "{output}");
    }
}

#[test]
fn one_without_a_home_has_its_scratch_and_one_with_a_home_keeps_it() {
    let script = r#"touch "$HOME/x" && echo "{\"type\":\"report\",\"status\":\"ok\",\"summary\":\"$HOME\"}""#;
    let bench = Bench::new(script);
    let output = bench.output();
    assert!(output["text"].as_str().unwrap().starts_with(bench.spec.scratch.to_str().unwrap()), "{output}");
    let home = bench.path("home");
    fs::create_dir(&home).unwrap();
    let bench = bench.with(|spec| drop(spec.env.insert("HOME".into(), home.display().to_string())));
    assert_eq!(bench.output()["text"], home.display().to_string());
    assert!(home.join("x").exists());
}

#[test]
fn what_cannot_be_started_costs_nothing_and_says_why() {
    let secret: Secret = Arc::new(|| Err("the daemon's environment has no K".into()));
    let short: Secret = Arc::new(|| Ok("abc".into()));
    type Change = Box<dyn FnOnce(&mut CommandSpec)>;
    let cases: [(&str, Change); 5] = [
        (
            "there is no program no-such-agent in PATH",
            Box::new(|spec| spec.argv = vec!["no-such-agent".into()]),
        ),
        ("there is no program /gone", Box::new(|spec| spec.argv = vec!["/gone".into()])),
        ("No such file", Box::new(|spec| spec.cwd = "/no/such/place".into())),
        ("has no K", Box::new(|spec| drop(spec.secrets.insert("K".into(), secret)))),
        ("less than 4 bytes", Box::new(|spec| drop(spec.secrets.insert("K".into(), short)))),
    ];
    for (words, change) in cases {
        let done = Bench::new("touch started").with(change).run().unwrap();
        assert_eq!((done.usage, done.reply.ok), (Some(Usage::ZERO), false));
        assert_eq!(done.reply.output["code"], "not_started");
        assert!(shown(&done).contains(words), "{done:?}");
    }
}

#[test]
fn one_that_hangs_is_ended_with_its_children_and_its_reservation_counts() {
    // One child in the group, one out of it; both ignore a friendly word.
    let script = r#"trap '' TERM; echo '{"type":"usage","llm_calls":1}'
        (trap '' TERM; sleep 1000) & setsid sh -c "trap '' TERM; sleep 1000" & sleep 1000; wait"#;
    let bench = Bench::new(script).with(|spec| spec.timeout = Duration::from_millis(300));
    let done = bench.run().unwrap();
    assert_eq!((done.reply.output["code"].as_str(), done.usage), (Some("timeout"), None));
}

#[test]
fn one_that_ends_leaves_no_child_and_nobody_waits_for_a_pipe_that_one_keeps() {
    let bench = Bench::new("setsid sleep 1000 & sleep 1000 & echo '{\"type\":\"report\",\"status\":\"ok\"}'");
    assert!(bench.run().unwrap().reply.ok);
}

#[test]
fn the_cycles_deadline_comes_before_its_own_time_and_leaves_an_answer() {
    let mut bench = Bench::new("sleep 1000");
    bench.until = Some(Duration::from_secs(1));
    assert_eq!(bench.output()["code"], "timeout");
}

#[test]
fn a_stop_ends_it_and_leaves_the_step_open() {
    let bench = Bench::new("touch started; sleep 1000");
    let (started, stop) = (bench.path("started"), Arc::clone(&bench.stop));
    let stopper = std::thread::spawn(move || {
        while !started.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.stop();
    });
    let undone = bench.run().unwrap_err();
    assert_eq!(undone, Undone::Interrupted { why: Interrupt::Stopped, usage: None });
    stopper.join().unwrap();
}

#[test]
fn floods_are_cut_and_silence_and_closed_pipes_are_no_matter() {
    let flood = |pipe: &str| format!("yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa {pipe}");
    for script in [flood(""), flood(">&2"), "tr '\\0' x </dev/zero".to_owned()] {
        let output = Bench::new(&script).output();
        assert_eq!(output["code"], "output_limit", "{script}");
        assert!(output["stdout_bytes"].as_u64().unwrap() <= 1 << 20);
        assert!(output.to_string().len() < 64 << 10, "a little of it is kept");
    }
    for script in ["exec <&- >&- 2>&-; exit 0", "exec >&-; sleep 0.1; exit 0", ":"] {
        assert!(Bench::new(script).run().unwrap().reply.ok, "{script}");
    }
    // More than a pipe holds in each direction, read only at the end.
    let bench = Bench::new("yes '{\"type\":\"phase\",\"name\":\"x\"}' | head -c 300000; cat >/dev/null");
    assert_eq!(bench.output()["phases"], json!(["x"]));
}

#[test]
fn a_report_that_is_cut_is_none_and_the_reservation_counts() {
    let script = r#"echo '{"type":"usage","llm_calls":1,"input_tokens":1,"output_tokens":1,"cost_usd":0.1}'
        printf '{"type":"report","status":"error","error":"disk fu'"#;
    let done = Bench::new(script).run().unwrap();
    assert_eq!(done.reply.output["code"], "bad_report", "{done:?}");
    let usage = done.usage.unwrap();
    assert_eq!((done.reply.ok, usage.llm_calls, usage.cost_nano_usd), (false, 10, 1_000_000_000));
}

#[test]
fn bytes_that_are_no_text_are_kept_as_text() {
    let bench = Bench::new("printf 'a\\377\\376b\\n\\000'; printf '\\360\\237' >&2");
    let output = bench.output();
    assert_eq!(output["malformed_lines"], 2);
    assert_eq!(output["log"][0], "a\u{fffd}\u{fffd}b");
    assert_eq!(output["stderr"], "\u{fffd}");
}

#[test]
fn a_secret_reaches_the_program_and_never_comes_back() {
    let bench = Bench::new(
        r#"echo "{\"type\":\"log\",\"message\":\"key $API_KEY\"}"; echo "$API_KEY"; echo "tail $API_KEY" >&2
        [ "$API_KEY" = 'sk-very"secret' ] && env | grep -c KEY= && echo "{\"type\":\"progress\",\"message\":\"$API_KEY\"}"
        tr '\0' ' ' </proc/$$/cmdline; printf '%.8s' "$API_KEY"; exit 4"#,
    );
    let secret: Secret = Arc::new(|| Ok("sk-very\"secret".into()));
    let bench = bench.with(|spec| drop(spec.secrets.insert("API_KEY".into(), secret)));
    let heard = Heard::default();
    let done = bench.watched(&heard).unwrap();
    assert_eq!(done.reply.output["exit"], 4, "it saw the secret: {done:?}");
    let all = format!("{}{:?}", shown(&done), heard.0.lock().unwrap());
    assert!(!all.contains("very\"secret") && !all.contains(r#"very\"secret"#), "{all}");
    assert!(all.contains("***"), "{all}");
}

#[test]
fn a_run_that_is_seen_to_pass_its_maximum_is_ended_and_booked_in_full() {
    let script = r#"echo '{"type":"usage","llm_calls":1,"cost_usd":0.75}'
        echo '{"type":"usage","llm_calls":1,"cost_usd":0.75}'; sleep 1000"#;
    let done = Bench::new(script).run().unwrap();
    assert_eq!(done.reply.output["code"], "over_limit");
    assert_eq!(done.usage.unwrap().cost_nano_usd, 1_500_000_000, "more than was reserved");
    assert_eq!(done.usage.unwrap().llm_calls, 10, "the rest as reserved");
}

#[test]
fn the_environment_is_what_was_configured_and_a_prompt_is_no_option() {
    let bench = Bench::new("env | sort; echo \"[$1]\"; echo x >\"$TMPDIR/x\" && pwd").with(|spec| {
        spec.preset = Preset::Plain;
        spec.input = Input::Prompt;
        spec.pass = Pass::Arg;
        spec.env.insert("LANG".into(), "C".into());
    });
    let args = json!({"command": "agent", "prompt": "--dangerous"});
    let tool = bench.tool();
    let (stop, clock) = (StopSignal::new(), SystemClock::default());
    let course = Course { key: &bench.key, patience: Patience::new(&stop, &clock, None), watch: &Nobody };
    let done = tool.execute(&args, &Intent::default(), &course).unwrap();
    let text = done.reply.output["text"].as_str().unwrap();
    let names: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert_eq!(names, ["HOME", "KAIROS_RUN", "KAIROS_STEP", "LANG", "PATH", "PWD", "TMPDIR"], "{text}");
    assert!(text.contains("[ --dangerous]"), "{text}");
    assert!(text.ends_with(bench.dir.path().canonicalize().unwrap().to_str().unwrap()), "{text}");
}

#[test]
fn calls_that_make_no_sense_are_told_so() {
    let bench = Bench::new(":").with(|spec| spec.pass = Pass::Arg);
    let tool = bench.tool();
    let long = "x".repeat(ARGUMENT_MAX);
    let cases = [
        (json!({}), "command"),
        (json!({"command": "other"}), "there is no command \"other\""),
        (json!({"command": "agent"}), "needs a mandate"),
        (json!({"command": "agent", "argv": ["rm"]}), "unknown field"),
        (json!({"command": "agent", "mandate": long}), "pass it on stdin"),
    ];
    for (args, words) in cases {
        let touch = Touch { access: Access::Write, path: None };
        let refused = tool.touch(&args).and_then(|_| tool.intent(&args, &touch));
        let Err(Refusal::Invalid(message)) = refused else { panic!("{args:.80}: {refused:?}") };
        assert!(message.contains(words), "{message}");
    }
    assert!(tool.open_to(&json!({"command": "agent"}), "agent"));
    assert!(!tool.open_to(&json!({"command": "agent"}), "other"));
}

#[test]
fn what_an_agent_says_is_heard_while_it_runs() {
    let heard = Heard::default();
    let script = r#"echo '{"type":"phase","name":"observe"}'; echo '{"type":"log","level":"warn","message":"odd"}'
        echo '{"type":"progress","message":"half","fraction":0.5}'; echo '{"type":"usage","llm_calls":1,"cost_usd":0.5}'"#;
    Bench::new(script).watched(&heard).unwrap();
    let heard = heard.0.into_inner().unwrap();
    let wanted = [
        "phase observe",
        "log WARN odd",
        "progress half Some(0.5)",
        "progress 1 calls, 0 tokens sent, 0 received, 0.500000 USD None",
        "log WARN it ended without a report line; its exit code 0 counts as success",
    ];
    assert_eq!(heard, wanted);
}

#[test]
fn only_processes_of_the_very_step_are_ended() {
    let mut other = Command::new("sleep").arg("1000").env(STEP, "sha256-other").spawn().unwrap();
    let key = format!("{KEY}-{}", std::process::id());
    let mut ours = Command::new("sleep").arg("1000").env(STEP, &key).spawn().unwrap();
    // A child that has not become the program yet carries the test's own environment.
    while leftovers::end(STEP, &key) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!ours.wait().unwrap().success());
    assert!(other.try_wait().unwrap().is_none(), "it lives");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_former_run_that_is_cleared_away_does_not_end_the_new_one() {
    let bench = Bench::new("echo $$ >>pids; until [ -e go ]; do sleep 0.02; done");
    let (tool, args) = (bench.tool(), json!({"command": "agent", "mandate": {}}));
    let run = || {
        let (stop, clock) = (StopSignal::new(), SystemClock::default());
        let patience = Patience::new(&stop, &clock, None);
        let course = Course { key: &bench.key, patience, watch: &Nobody };
        tool.execute(&args, &Intent::default(), &course).unwrap()
    };
    let started = |runs: usize| {
        let pids = || fs::read_to_string(bench.path("pids")).unwrap_or_default();
        while pids().lines().count() < runs {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    std::thread::scope(|scope| {
        let former = scope.spawn(run);
        started(1);
        // Its runner has died, the step is taken up again.
        tool.abandoned(&bench.key);
        let new = scope.spawn(run);
        started(2);
        assert_eq!(former.join().unwrap().reply.output["code"], "signal");
        fs::write(bench.path("go"), "").unwrap();
        assert!(new.join().unwrap().reply.ok);
    });
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Watch for Heard {
    fn progress(&self, message: &str, fraction: Option<f64>) {
        self.0.lock().unwrap().push(format!("progress {message} {fraction:?}"));
    }
    fn phase(&self, name: &str) {
        self.0.lock().unwrap().push(format!("phase {name}"));
    }
    fn log(&self, level: tracing::Level, message: &str) {
        self.0.lock().unwrap().push(format!("log {level} {message}"));
    }
}

#[test]
fn a_program_that_leaves_too_little_room_is_ended_at_once_or_not_begun() {
    let bench = Bench::new("touch started; sleep 600").with(|spec| spec.keep_free = u64::MAX);
    let done = bench.run().unwrap();
    assert_eq!((done.reply.ok, &done.reply.output["code"]), (false, &json!("disk_low")), "{done:?}");
    assert_eq!(done.usage, Some(Usage::ZERO), "nothing was started");
    assert!(!bench.path("started").exists());
    assert!(bench.spec.lacks().iter().any(|lack| lack.key == "keep_free_bytes"));
    let bench = Bench::new("exit 0").with(|spec| spec.keep_free = 1);
    assert!(bench.run().unwrap().reply.ok, "there is room");
    // Whatever it still wants to do, and whatever grace it has.
    let bench = Bench::new("trap '' TERM; mkdir many; while :; do touch many/$((i+=1)); sleep 0.01; done")
        .with(|spec| spec.argv.insert(0, "/bin/bash".into()));
    let dir = tempfile::tempdir().unwrap();
    let (stop, clock) = (StopSignal::new(), SystemClock::default());
    let mut command = Command::new(&bench.spec.argv[0]);
    command.arg(&bench.spec.argv[1]).current_dir(dir.path());
    let bounds = Bounds { time: PATIENCE * 2, grace: PATIENCE * 2, output: 1 << 20, guarded: false };
    let began = Instant::now();
    let ran = child::run(
        &mut command,
        &[],
        bounds,
        &clock,
        &Patience::new(&stop, &clock, None),
        Hooks {
            hear: &mut |_| true,
            short: &|| fs::read_dir(dir.path().join("many")).is_ok_and(|many| many.count() > 5),
            strays: &|| (),
        },
    );
    let ran = ran.unwrap();
    assert_eq!((ran.cause, ran.signal()), (Cause::Room, Some(9)));
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}
