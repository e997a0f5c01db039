//! Every preset on outputs as its agent prints them: success, failure, limits, cut anywhere, garbage.

use super::*;

fn fixture(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/broker/tools/process/fixtures/");
    std::fs::read_to_string(format!("{path}{name}")).unwrap()
}

fn read_text(preset: Preset, text: &str, exit: Option<i32>) -> (Reading, Vec<String>) {
    let (mut reading, mut told) = (Reading::default(), vec![]);
    for line in text.lines() {
        preset.line(&mut reading, line, &mut |event| {
            if event != Told::Usage {
                told.push(format!("{event:?}"));
            }
        });
    }
    preset.end(&mut reading, text, exit);
    (reading, told)
}

fn read(preset: Preset, name: &str, exit: i32) -> Reading {
    read_text(preset, &fixture(name), Some(exit)).0
}

const fn stated(calls: u64, input: u64, output: u64, cost: Option<u64>) -> Stated {
    Stated { calls: Some(calls), input: Some(input), output: Some(output), cost }
}

#[test]
fn each_agents_success_gives_usage_and_last_word() {
    let cases = [
        (
            Preset::Claude,
            "claude-success.json",
            // Cached tokens and those of the second model are counted too, and its call.
            stated(7, 14 + 21_873 + 94_210 + 106, 1637, Some(134_827_450)),
            "Wrote notes/daily.md with 4 changes.",
        ),
        (
            Preset::Claude,
            "claude-stream.jsonl",
            stated(2, 7 + 1350 + 19_200, 89, Some(12_190_500)),
            "Done: a.md is up to date.",
        ),
        (
            Preset::Codex,
            "codex-success.jsonl",
            stated(3, 24_763, 122, None),
            "The README now names the licence.",
        ),
        (Preset::Goose, "goose-success.json", stated(3, 5100, 212, None), "The notes are tidy."),
        (Preset::Goose, "goose-old.json", stated(2, 4100, 0, None), "All done."),
        (Preset::Goose, "goose-stream.jsonl", stated(2, 900, 0, None), "All tidy."),
        (Preset::Goose, "goose-events.jsonl", stated(3, 2468, 112, None), "All tidy."),
        // Rounded figures count with what may have been rounded away.
        (
            Preset::Aider,
            "aider-success.txt",
            stated(3, 2150 + 12_500, 512 + 1250, Some(25_000_000)),
            "Commit 1a2b3c4 test: cover the empty case",
        ),
        // Lines broken in the middle of a report, and a commit, which took a request too.
        (
            Preset::Aider,
            "aider-edit.txt",
            stated(2, 12_500, 1250, Some(14_050)),
            "Commit 60d8a06 feat: greet",
        ),
        // A run of two turns: tokens add up, the cost is that of the run so far.
        (Preset::Claude, "claude-turns.jsonl", stated(5, 3050, 50, Some(30_000_000)), "Second done."),
        // Noise before it, figures in quotes and as floats.
        (Preset::Claude, "claude-noisy.txt", stated(1, 10, 3, Some(4_000_000)), "Done in spite of it."),
        // The thread's usage so far, not the turn's.
        (Preset::Codex, "codex-turns.jsonl", stated(3, 2600, 35, None), "Both turns done."),
        // Only the last request's total is said: three of them were made.
        (Preset::Goose, "goose-total.json", stated(4, 2100, 0, None), "Three requests."),
        (Preset::Jsonl, "lines-success.jsonl", stated(2, 1000, 50, Some(2_500_000)), "3 files written"),
    ];
    for (preset, name, usage, last) in cases {
        let reading = read(preset, name, 0);
        assert_eq!(reading.failure, None, "{name}");
        assert_eq!((reading.stated, reading.is_final), (usage, true), "{name}");
        assert!(reading.text.as_deref().unwrap().ends_with(last), "{name}: {:?}", reading.text);
    }
}

#[test]
fn each_agents_failure_is_one_with_its_own_words() {
    let cases = [
        (Preset::Claude, "claude-error.json", "agent_error", "Invalid API key"),
        (Preset::Claude, "claude-login.json", "agent_error", "Not logged in"),
        (Preset::Claude, "claude-model.json", "agent_error", "selected model"),
        (Preset::Claude, "claude-limit.json", "agent_limit", "maximum number of turns (1)"),
        (Preset::Claude, "claude-budget.json", "agent_limit", "Reached maximum budget"),
        (Preset::Claude, "claude-refusal.json", "agent_refused", "unable to respond"),
        (Preset::Claude, "claude-pretty.json", "agent_error", "529 overloaded"),
        (Preset::Codex, "codex-error.jsonl", "agent_error", "unexpected status 401"),
        (Preset::Codex, "codex-limit.jsonl", "agent_error", "usage limit"),
        (Preset::Goose, "goose-error.jsonl", "agent_error", "Authentication"),
        (Preset::Goose, "goose-auth.json", "agent_error", "401 Unauthorized. Response: Incorrect"),
        (Preset::Goose, "goose-auth.jsonl", "agent_error", "401 Unauthorized. Response: Incorrect"),
        (Preset::Goose, "goose-turns.json", "agent_limit", "maximum number of actions"),
        (Preset::Goose, "goose-limit.json", "agent_error", "max turns"),
        (Preset::Aider, "aider-error.txt", "agent_error", "Incorrect API key provided: sk-***. The API"),
        (Preset::Jsonl, "lines-error.jsonl", "agent_error", "locked"),
    ];
    for (preset, name, code, words) in cases {
        let (found, message) = read(preset, name, 0).failure.unwrap_or_else(|| panic!("{name}"));
        assert_eq!(found, code, "{name}");
        assert!(message.contains(words), "{name}: {message}");
    }
    let budget = read(Preset::Claude, "claude-budget.json", 1);
    assert_eq!(budget.stated.cost, Some(1_041_200_000), "a limit that was hit was paid for");
    let refusal = read(Preset::Claude, "claude-refusal.json", 0);
    assert_eq!(refusal.stated.cost, Some(2_100_000), "a refusal was paid for");
    assert_eq!(refusal.log.back().unwrap(), "was not permitted to use: Bash");
    let limit = read(Preset::Codex, "codex-limit.jsonl", 1);
    assert!(!limit.is_final, "what a failed turn cost is not said");
    let limit = read(Preset::Aider, "aider-limit.txt", 0);
    assert_eq!((limit.stated, limit.is_final), (stated(1, 990, 0, None), true));
}

#[test]
fn what_an_agent_tries_to_get_over_is_known_while_it_tries() {
    let cases = [
        (Preset::Claude, "claude-retries.jsonl", "the API answers 401 authentication_failed"),
        (Preset::Codex, "codex-offline.jsonl", "waiting for network"),
        (Preset::Aider, "aider-retries.txt", "You exceeded your current quota The API provider"),
    ];
    for (preset, name, words) in cases {
        let mut reading = Reading::default();
        for line in fixture(name).lines() {
            preset.line(&mut reading, line, &mut |_| {});
        }
        let trouble = reading.trouble.unwrap_or_default();
        assert!(trouble.contains(words) && !reading.is_final, "{name}: {trouble}");
    }
    for (preset, name) in [(Preset::Claude, "claude-success.json"), (Preset::Codex, "codex-success.jsonl")] {
        assert_eq!(read(preset, name, 0).trouble, None, "{name}: it got over it");
    }
}

#[test]
fn what_aider_says_of_itself_and_its_surroundings_is_not_its_last_word() {
    let text = read(Preset::Aider, "aider-edit.txt", 0).text.unwrap();
    assert!(text.starts_with("I make a file.") && !text.contains("Tokens"), "{text}");
}

#[test]
fn what_an_agent_does_not_say_stays_unknown() {
    let bare = read(Preset::Claude, "claude-bare.json", 0);
    assert_eq!((bare.failure, bare.stated, bare.is_final), (None, Stated::default(), true));
    let unknown = read(Preset::Codex, "codex-unknown.jsonl", 0);
    assert_eq!(unknown.stated, Stated { calls: Some(1), ..Stated::default() }, "zeros are no figures");
}

#[test]
fn figures_are_read_in_every_form_and_absurd_ones_are_none() {
    let cases = [
        ("3", Some(3)),
        ("\"3\"", Some(3)),
        ("3.0", Some(3)),
        ("0", Some(0)),
        ("18446744073709551615", Some(u64::MAX)),
        ("-3", None),
        ("3.5", None),
        ("1e300", None),
        ("18446744073709551616", None),
        ("\"many\"", None),
        ("null", None),
        ("[3]", None),
    ];
    let given = |figure: &str| serde_json::from_str(&format!("{{\"n\":{figure}}}")).unwrap();
    for (figure, expect) in cases {
        assert_eq!(count(&given(figure), "n"), expect, "{figure}");
    }
    let cases = [
        ("0.25", Some(250_000_000)),
        ("\"0.25\"", Some(250_000_000)),
        ("\" $0.25\"", Some(250_000_000)),
        ("0", Some(0)),
        ("1e300", Some(u64::MAX)),
        ("-0.25", None),
        ("\"-1\"", None),
        ("\"NaN\"", None),
        ("\"inf\"", None),
        ("\"free\"", None),
        ("true", None),
    ];
    for (figure, expect) in cases {
        assert_eq!(dollars(&given(figure), "n"), expect, "{figure}");
    }
    // A bare NaN is no JSON: the result that holds it is none, and what was reserved counts.
    let text = "{\"type\":\"result\",\"subtype\":\"success\",\"total_cost_usd\":NaN}";
    let (reading, _) = read_text(Preset::Claude, text, Some(0));
    assert_eq!((reading.failure.unwrap().0, reading.is_final), ("no_result", false));
}

#[test]
fn what_happens_is_told_while_it_happens() {
    let (reading, told) = read_text(Preset::Jsonl, &fixture("lines-success.jsonl"), Some(0));
    assert_eq!(
        told,
        [
            "Phase(\"observe\")",
            "Log(Level(Warn), \"3 files are stale\")",
            "Phase(\"act\")",
            "Progress(\"writing\", Some(0.5))"
        ]
    );
    assert_eq!((reading.phases.len(), reading.malformed, reading.lines), (2, 1, 8));
    assert!(reading.log.iter().any(|line| line == "a line that is no message"));
    assert_eq!(reading.report.unwrap()["more"], true);
    let (_, told) = read_text(Preset::Claude, &fixture("claude-stream.jsonl"), Some(0));
    assert_eq!(told, ["Progress(\"uses Read\", None)"]);
}

#[test]
fn an_output_cut_anywhere_is_read_as_far_as_it_goes_and_never_called_whole() {
    let all = [
        (Preset::Claude, "claude-success.json"),
        (Preset::Claude, "claude-stream.jsonl"),
        (Preset::Claude, "claude-pretty.json"),
        (Preset::Codex, "codex-success.jsonl"),
        (Preset::Goose, "goose-success.json"),
        (Preset::Goose, "goose-stream.jsonl"),
        (Preset::Aider, "aider-success.txt"),
        (Preset::Jsonl, "lines-success.jsonl"),
    ];
    for (preset, name) in all {
        let text = fixture(name);
        let most = read(preset, name, 0).stated.known();
        for at in (0..text.trim_end().len()).filter(|at| text.is_char_boundary(*at)) {
            let reading = read_text(preset, &text[..at], Some(0)).0;
            let known = reading.stated.known();
            assert_eq!(known.max(most), most, "{name} cut at {at}");
            // aider has no last word of its own: cut after an exchange, it is a run of fewer.
            let fewer = preset == Preset::Aider && reading.is_final && text[..at].ends_with('\n');
            let warned = matches!(preset, Preset::Jsonl | Preset::Aider) && !reading.warnings.is_empty();
            assert!(reading.failure.is_some() || warned || fewer, "{name} cut at {at} is called whole");
        }
        let whole = read(preset, name, 0);
        assert!(!whole.warnings.iter().any(|warning| warning.contains("ended") || warning.contains("ends")));
    }
}

#[test]
fn what_should_have_been_a_report_is_a_bad_report_and_its_cost_unknown() {
    let error = r#"{"type":"report","status":"error","error":"disk full, nothing was done"}"#;
    let usage = r#"{"type":"usage","llm_calls":1,"input_tokens":1,"output_tokens":1,"cost_usd":0}"#;
    let cases = [
        (error[..error.len() - 1].to_owned(), "no JSON"),
        (error[..40].to_owned(), "no JSON"),
        // Cut before it says what it is.
        ("{\"status\":\"error\",\"error\":\"disk fu".to_owned(), "without its end"),
        ("{\"ty".to_owned(), "without its end"),
        ("{".to_owned(), "without its end"),
        ("{\"status\":\"error\",\"error\":\"disk fu\nmore of it".to_owned(), "is none"),
        (r#"{"type":"report","status":"failed","error":"x"}"#.to_owned(), "`status` is \"failed\""),
        (r#"{"type":"report","status":7}"#.to_owned(), "`status` is 7"),
        (r#"{"type":"report","error":"x"}"#.to_owned(), "`status` is missing"),
        (r#"{"type":"Report","status":"error"}"#.to_owned(), "`type` is \"Report\""),
        (r#"{"type":"report","status":"ok","more":"yes"}"#.to_owned(), "`more`"),
        (r#"{"type":"report","status":"ok","summary":{}}"#.to_owned(), "`summary`"),
        (r#"{"type":"report","status":"ok","llm_calls":-1}"#.to_owned(), "`llm_calls`"),
        (r#"{"type":"usage","cost_usd":"much"}"#.to_owned(), "`cost_usd`"),
        (format!("{error}}}"), "no JSON"),
        (format!("{usage}{error}"), "no JSON"),
        (format!("{}\n{{\"type\":\"report\",\"status\":\"ok\"}}", &usage[..30]), "no JSON"),
        (format!("{{\"report\":{error}}}"), "`type` is missing"),
        (r#"{"status":"error","error":"disk full"}"#.to_owned(), "`type` is missing"),
        (format!("[{error}]"), "is none"),
        (format!("Working... {error}"), "is none"),
        ("{\n  \"type\": \"report\",\n  \"status\": \"error\"\n}".to_owned(), "is none"),
    ];
    for (text, words) in cases {
        let text = format!("{usage}\n{text}");
        let (reading, _) = read_text(Preset::Jsonl, &text, Some(0));
        let (code, message) = reading.failure.unwrap_or_else(|| panic!("{text} is called a success"));
        assert!(code == "bad_report" && message.contains(words), "{text}: {code}: {message}");
        assert!(!reading.is_final, "{text}: what it cost is not known");
        // A program that fails by itself says more; what could not be read is not forgotten.
        let (reading, _) = read_text(Preset::Jsonl, &text, Some(3));
        assert!(reading.failure.is_none() && reading.warnings[0].contains(words), "{:?}", reading.warnings);
    }
}

#[test]
fn an_agents_own_failure_goes_before_what_could_not_be_read() {
    let text = "{\"type\":\"report\",\"status\":\"error\",\"error\":\"locked\"}\n{\"type\":\"rep";
    let (reading, _) = read_text(Preset::Jsonl, text, Some(0));
    assert_eq!((reading.failure.unwrap().0, reading.is_final), ("agent_error", false));
}

#[test]
fn what_surrounds_a_line_and_what_is_printed_beside_it_does_not_spoil_it() {
    let report = r#"{"type":"report","status":"error","error":"locked"}"#;
    for text in
        [format!("\u{feff}{report}"), format!("{report}\r\n"), format!("\r\n \u{feff} {report} \r\n\r\n")]
    {
        let (reading, _) = read_text(Preset::Jsonl, &text, Some(0));
        assert_eq!((reading.failure.unwrap().0, reading.malformed), ("agent_error", 0), "{text:?}");
        assert!(reading.warnings.is_empty(), "{text:?}: {:?}", reading.warnings);
    }
    let chatter =
        "starting\n[1,2]\n{\"level\":\"info\"}\n{pretty\n\"quoted\"\nI print {\"type\":\"report\"} soon\n";
    let ok = r#"{"type":"report","status":"ok","summary":"done"}"#;
    let (reading, _) = read_text(Preset::Jsonl, &format!("{chatter}{ok}\n"), Some(0));
    assert_eq!((reading.failure, reading.text.as_deref()), (None, Some("done")));
    assert_eq!(reading.warnings, ["6 lines of its output are no messages"]);
    let (reading, _) = read_text(Preset::Jsonl, "did it\n", Some(0));
    assert_eq!(reading.failure, None, "a report is optional");
    let warnings = [
        "it ended without a report line; its exit code 0 counts as success",
        "1 line of its output is no message",
    ];
    assert_eq!(reading.warnings, warnings);
}

#[test]
fn garbage_is_counted_and_kept_and_nothing_else() {
    let long = format!("{{\"type\":\"log\",\"message\":\"{}\"}}", "x".repeat(1 << 20));
    let many = "{\"type\":\"assistant\",\"message\":{}}\n".repeat(20_000);
    let texts = [
        "\0\u{fffd}{{{[[[",
        "[]",
        "null",
        "{\"type\":7}",
        "{\"type\":\"usage\",\"llm_calls\":-1,\"input_tokens\":1e99,\"cost_usd\":\"x\"}",
        "{\"type\":\"result\",\"usage\":[],\"total_cost_usd\":-3,\"modelUsage\":7}",
        "{\"type\":\"turn.completed\",\"usage\":null}",
        "{\"messages\":7,\"metadata\":[]}",
        "{\"type\":\"report\",\"status\":\"great\"}",
        "Tokens: k sent, 9999999999999999999999k received. Cost: $NaN message, $-1 session.",
        &"[".repeat(100_000),
        &long,
        &many,
    ];
    for preset in Preset::WORDS.map(|(_, preset)| preset) {
        for text in texts {
            let (reading, _) = read_text(preset, text, Some(0));
            assert_eq!(reading.stated.cost.unwrap_or(0), 0, "{preset:?} {:.60}", text);
            assert!(reading.log.iter().all(|line| line.len() <= LOG_LINE_MAX));
            assert!(reading.text.as_ref().is_none_or(|text| text.len() <= TEXT_MAX + 64));
        }
    }
}

#[test]
fn phases_and_log_lines_of_a_talkative_agent_are_bounded() {
    let text: String = (0..500)
        .map(|n| {
            format!("{{\"type\":\"phase\",\"name\":\"p{n}\"}}\n{{\"type\":\"log\",\"message\":\"{n}\"}}\n")
        })
        .collect();
    let (reading, told) = read_text(Preset::Jsonl, &text, Some(0));
    assert_eq!((reading.phases.len(), reading.log.len()), (PHASES_MAX, LOG_LINES));
    assert_eq!(told.iter().filter(|told| told.starts_with("Phase")).count(), PHASES_MAX);
    assert_eq!(reading.log.back().unwrap(), "499");
}
