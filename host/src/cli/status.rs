//! `kairos status`, `budget show`, `why`, `reload`, `stop`, `plugin list`: one look, one word.

use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::client::segment;
use super::mandate::time;
use super::output::{cell, emit, printable, rows, say, table};
use crate::boot::LastEnd as End;
use crate::exit::{Failure, code};

/// `kairos status`.
///
/// # Errors
/// Those of the control plane. A daemon that does not run is no error.
pub async fn status(context: &Context) -> anyhow::Result<()> {
    let answer = context.client().await?.get("/v1/status").await?;
    emit(context.style, &answer, glance)
}

/// What a person looks for first; the rest follows by name.
const FIRST: [&str; 14] = [
    "state",
    "reasons",
    "active_mandate_ids",
    "queue_depth",
    "last_cycle_at",
    "budget_exceeded",
    "schedules",
    "schedules_quarantined",
    "swaps",
    "plugins_watch",
    "sandbox",
    "pid",
    "started_at",
    "root",
];

/// The status for a person: how it is and why on top, each reason on a line of its own.
fn glance(status: &Value) -> String {
    let known = status.as_object();
    let first = FIRST.iter().filter_map(|key| Some((*key, status.get(key)?)));
    // One of those that are listed anyway.
    let rest = known.into_iter().flatten().map(|(key, value)| (key.as_str(), value));
    let rest = rest.filter(|(key, _)| !FIRST.contains(key) && *key != "active_mandate_id");
    let mut text = String::new();
    for (key, value) in first.chain(rest) {
        match value.as_array().filter(|list| key == "reasons" && !list.is_empty()) {
            None => text.push_str(&format!("{key:<22} {}\n", printable(&said(key, value)))),
            Some(reasons) => {
                for (at, reason) in reasons.iter().enumerate() {
                    let key = if at == 0 { key } else { "" };
                    text.push_str(&format!("{key:<22} {}\n", printable(&cell(reason))));
                }
            }
        }
    }
    text
}

/// `kairos budget show`.
///
/// # Errors
/// Those of the control plane.
pub async fn budget(context: &Context) -> anyhow::Result<()> {
    let answer = context.client().await?.get("/v1/budget").await?;
    emit(context.style, &answer, |budget| {
        let row = |name: &str, limit: &Value, key: &str| {
            vec![name.to_owned(), cell(&budget["spent"][key]), cell(&budget["reserved"][key]), cell(limit)]
        };
        let none = Value::Null;
        let limits = &budget["limits"];
        let exceeded = if budget["exceeded"] == true { ", used up: queued mandates wait" } else { "" };
        format!(
            "{} ({}){exceeded}\n{}",
            cell(&budget["day"]),
            cell(&budget["timezone"]),
            table(
                &["", "SPENT", "RESERVED", "LIMIT"],
                &[
                    row("calls", &limits["calls"], "calls"),
                    row("input tokens", &none, "input_tokens"),
                    row("output tokens", &limits["tokens"], "output_tokens"),
                    row("usd", &limits["usd"], "usd"),
                ],
            )
        )
    })
}

/// `kairos why SCHEDULE OCCURRENCE`.
///
/// # Errors
/// Those of the control plane; exit 3 with the reason when nothing is recorded of it.
pub async fn why(context: &Context, schedule: &str, occurrence: &str) -> anyhow::Result<()> {
    let nominal = time(occurrence, context.clock.now())?;
    let path = format!(
        "/v1/schedules/{}/occurrences/{}",
        segment(schedule),
        segment(&super::output::rfc3339(nominal))
    );
    let answer = context.client().await?.get(&path).await?;
    emit(context.style, &answer, |row| {
        let mut text =
            format!("{} {}: {}", printable(schedule), cell(&row["nominal_at"]), cell(&row["outcome"]));
        if !row["reason"].is_null() {
            text.push_str(&format!(" ({})", cell(&row["reason"])));
        }
        if row["count"].as_u64().unwrap_or(1) > 1 {
            text.push_str(&format!(
                ", one of {} from {} to {}",
                cell(&row["count"]),
                cell(&row["from"]),
                cell(&row["to"])
            ));
        }
        text.push_str(&format!(", decided {}", cell(&row["decided_at"])));
        let mandate = &row["mandate"];
        if !mandate.is_null() {
            text.push_str(&format!("\nmandate {} is {}", cell(&mandate["id"]), cell(&mandate["state"])));
            if !mandate["reason"].is_null() {
                text.push_str(&format!(" ({})", cell(&mandate["reason"])));
            }
        }
        text
    })
}

/// `kairos reload`.
///
/// # Errors
/// No daemon; a runner is out of service by it: exit 1, `out_of_service`; or something of the new
/// configuration is bad and what was before stays of it: exit 2, with `partly_applied` when the rest counts and
/// `config_invalid` when nothing new does.
pub async fn reload(context: &Context) -> anyhow::Result<()> {
    let answer = context.daemon().await?.post("/v1/admin/reload", &json!({})).await?;
    let reload = &answer["reload"];
    emit(context.style, &answer, |_| reloaded(reload))?;
    let problems = words(reload, "problems");
    let lost: Vec<&Value> = reload["runners"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|runner| runner["serves"] == false)
        .collect();
    if let Some(first) = lost.first() {
        let told = |runner: &&Value| {
            format!("runner {} is out of service: {}", cell(&runner["runner"]), cell(&runner["message"]))
        };
        let all: Vec<String> = lost.iter().map(told).chain(problems).collect();
        let failure = Failure::new(code::FAILED, "out_of_service", all.join("\n"));
        return Err(failure.remedy(cell(&first["remedy"])).into());
    }
    if problems.is_empty() {
        return Ok(());
    }
    let new = words(reload, "applied").len() + words(reload, "needs_restart").len();
    let code = if new > 0 { "partly_applied" } else { "config_invalid" };
    let remedy =
        "correct what is named and reload again; `kairos config check` looks without changing anything";
    Err(Failure::new(code::USAGE, code, problems.join("\n")).remedy(remedy).into())
}

fn words(of: &Value, key: &str) -> Vec<String> {
    of[key].as_array().into_iter().flatten().map(cell).collect()
}

/// Changed keys, with one word for an entry of which many changed: a new runner, for example.
fn in_short(keys: &[String]) -> Vec<&str> {
    const MANY: usize = 3;
    let mut short: Vec<&str> = Vec::new();
    for key in keys {
        let entry = entry_of(key)
            .filter(|entry| keys.iter().filter(|other| entry_of(other) == Some(entry)).count() > MANY);
        let word = entry.unwrap_or(key);
        if !short.contains(&word) {
            short.push(word);
        }
    }
    short
}

/// `runners.NAME` of the keys in it, and the same of commands.
fn entry_of(key: &str) -> Option<&str> {
    let name = key.strip_prefix("runners.").or_else(|| key.strip_prefix("commands."))?;
    let mut quoted = false;
    let end = name.find(|c| {
        quoted ^= c == '"';
        c == '.' && !quoted
    })?;
    Some(&key[..key.len() - name.len() + end])
}

/// What became of each file, for people.
fn reloaded(reload: &Value) -> String {
    let part = |key: &str| reload[key].as_str().unwrap_or_default().to_owned();
    let (daemon, schedules) = (part("daemon_yml"), part("schedules_yml"));
    let mut lines = vec![];
    let noticed = words(reload, "noticed");
    if daemon == "unchanged" && schedules == "unchanged" {
        if noticed.is_empty() {
            lines.push("nothing changed".to_owned());
        }
    } else {
        let keys: Vec<String> =
            words(reload, "applied").into_iter().filter(|key| key != "schedules").collect();
        let restart = words(reload, "needs_restart");
        lines.push(match daemon.as_str() {
            "refused" => "daemon.yml: refused, what was before stays".to_owned(),
            "in_part" => {
                let aside: Vec<String> = reload["runners"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|runner| runner["serves"] == true)
                    .map(|runner| format!("runners.{}", cell(&runner["runner"])))
                    .collect();
                format!("daemon.yml: in effect but for {}, as before", aside.join(", "))
            }
            "in_effect" if keys.is_empty() => "daemon.yml: read".to_owned(),
            "in_effect" => format!("daemon.yml: in effect: {}", in_short(&keys).join(", ")),
            _ => "daemon.yml: unchanged".to_owned(),
        });
        if !restart.is_empty() {
            lines.push(format!("daemon.yml: after a restart: {}", restart.join(", ")));
        }
        let aside = words(reload, "quarantined").join(", ");
        lines.push(match schedules.as_str() {
            "refused" => "schedules.yml: refused, what was before stays".to_owned(),
            "in_part" => format!("schedules.yml: in effect but for {aside}, as before"),
            "in_effect" => "schedules.yml: in effect".to_owned(),
            _ => "schedules.yml: unchanged".to_owned(),
        });
    }
    lines.extend(noticed.iter().map(|line| printable(line)));
    lines.extend(words(reload, "warnings"));
    lines.join("\n")
}

/// `kairos stop`: asks the daemon to end, and waits until it has.
///
/// # Errors
/// No daemon runs; or it has not ended within its graceful timeout and a little more: exit 1; or it has, and cut
/// cycles off that were not done by then: exit 9.
pub async fn stop(context: &Context) -> anyhow::Result<()> {
    let client = context.daemon().await?;
    let status = client.get("/v1/status").await?;
    let grace = status["graceful_timeout"].as_f64().unwrap_or(120.0);
    client.post("/v1/admin/shutdown", &json!({})).await?;
    say(context.style, "stopping; running cycles are asked to end");
    let pid = status["pid"].as_i64();
    let ended = super::connect::wait_until_gone(context, Duration::from_secs_f64(grace + 10.0)).await?;
    if !ended {
        let failure = Failure::new(code::FAILED, "still_running", "the daemon has not ended yet");
        return Err(failure
            .remedy("`kairos status` shows what it waits for; a second SIGTERM ends it at once")
            .into());
    }
    let cut_off = End::read(&context.paths()?.last_end, pid).unwrap_or_default();
    let view = json!({"stopped": true, "pid": pid, "cut_off": cut_off});
    emit(context.style, &view, |_| "stopped".to_owned())?;
    if cut_off.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{} cycles were cut off, because they had not ended within graceful_timeout ({grace} s): {}",
        cut_off.len(),
        cut_off.join(", ")
    );
    let remedy = "their mandates go on after the next start; `kairos mandate show ID` tells more";
    Err(Failure::new(code::GRACE, "cut_off", message).remedy(remedy).into())
}

/// `kairos plugin list`.
///
/// # Errors
/// Those of the control plane.
pub async fn plugins(context: &Context) -> anyhow::Result<()> {
    let answer = context.client().await?.get("/v1/plugins").await?;
    emit(context.style, &answer["plugins"], slots)
}

/// The slots for a person, and below them what is wrong with which and what to do.
fn slots(list: &Value) -> String {
    let header = [
        "RUNNER",
        "STATE",
        "SERVES",
        "VERSION",
        "ABI",
        "ISOLATION",
        "GENERATION",
        "SWAP",
        "CONFIGURED",
        "FILE",
    ];
    let fields = [
        "runner",
        "state",
        "name",
        "version",
        "abi",
        "isolation",
        "generation",
        "swap",
        "configured",
        "file",
    ];
    let mut text = table(&header, &rows(&in_a_word(list), &fields));
    for row in list.as_array().into_iter().flatten() {
        let line = |key: &str| row[key].as_str().map(|text| text.replace('\n', "\n  "));
        let Some(reason) = line("reason") else { continue };
        let runner = printable(&cell(&row["runner"]));
        let code = row["code"].as_str().map(|code| format!("{code}: ")).unwrap_or_default();
        text.push_str(&format!("\n{runner}: {code}{reason}\n"));
        if let Some(remedy) = line("remedy") {
            text.push_str(&format!("  -> {remedy}\n"));
        }
    }
    text
}

/// The stage of each swap under way in place of the whole of it, the start of each sha256, and what is configured where it is
/// something else than what serves.
fn in_a_word(list: &Value) -> Value {
    let mut list = list.clone();
    for runner in list.as_array_mut().into_iter().flatten() {
        runner["swap"] = runner["swap"]["stage"].clone();
        if let Some(sha256) = runner["generation"].as_str() {
            runner["generation"] = sha256[..sha256.len().min(12)].into();
        }
        let configured = &runner["configured"];
        let word = match (&configured["serves"], &configured["generation"]) {
            (Value::Bool(true), _) => cell(&configured["plugin"]),
            (_, _) if configured["code"] == "not_found" => {
                format!("{}, not there", cell(&configured["plugin"]))
            }
            (_, _) if configured["code"].is_string() => {
                format!("{}, not taken ({})", cell(&configured["plugin"]), cell(&configured["code"]))
            }
            (_, Value::String(sha256)) => {
                format!("{} ({}), not serving", cell(&configured["plugin"]), &sha256[..sha256.len().min(12)])
            }
            _ => cell(&configured["plugin"]),
        };
        runner["configured"] = word.into();
    }
    list
}

/// A value of the status as a person reads it.
fn said(key: &str, value: &Value) -> String {
    match (key, value) {
        ("swaps", Value::Object(_)) => swaps(value),
        ("plugins_watch", Value::Object(_)) => plugins_watch(value),
        (_, Value::Object(map)) if map.is_empty() => "-".to_owned(),
        (_, Value::Object(map)) => {
            let each = map.iter().map(|(name, value)| format!("{name}={}", cell(value)));
            each.collect::<Vec<_>>().join(", ")
        }
        (_, Value::Array(list)) if list.is_empty() => "-".to_owned(),
        (_, Value::Array(list)) => list.iter().map(cell).collect::<Vec<_>>().join(", "),
        (_, other) => cell(other),
    }
}

/// The watched directory in a line.
fn plugins_watch(value: &Value) -> String {
    let key = |key: &str| cell(&value[key]);
    if value["watched"] != true {
        let (path, since) = (key("path"), key("since"));
        return format!("{path}, not watched since {since}: {} ({})", key("why"), key("remedy"));
    }
    let leads =
        if value["directory"] == value["path"] { String::new() } else { format!(" -> {}", key("directory")) };
    format!("{}{leads}, watched since {}", key("path"), key("since"))
}

/// The account of swaps in a line.
fn swaps(value: &Value) -> String {
    let mib = |bytes: &Value| format!("{:.1} MiB", bytes.as_f64().unwrap_or(0.0) / f64::from(1 << 20));
    let each = |swap: &Value| {
        let key = |key: &str| cell(&swap[key]);
        format!("{} at {} since {} ({})", key("runner"), key("stage"), key("since"), key("id"))
    };
    let open: Vec<String> = value["under_way"].as_array().into_iter().flatten().map(each).collect();
    let flips = &value["flips"];
    let mut text = match open.is_empty() {
        true => "none under way".to_owned(),
        false => format!("under way: {}", open.join(", ")),
    };
    text.push_str(&format!(", {} done", cell(&flips["count"])));
    if flips["count"].as_u64().unwrap_or(0) > 0 {
        let micros = flips["held_p99_ns"].as_f64().unwrap_or(0.0) / 1000.0;
        text.push_str(&format!(" (flip p99 {micros:.1} us)"));
    }
    text.push_str(&format!(
        "; {} images mapped ({}), replaced ones hold {} of {}",
        cell(&value["images"]),
        mib(&value["image_bytes"]),
        mib(&value["leaked_bytes"]),
        mib(&value["max_leaked_bytes"])
    ));
    if let Some(advice) = value["advice"].as_str() {
        text.push_str(&format!("; {advice}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swaps_and_sandboxes_read_as_words() {
        let under_way =
            json!([{"runner": "v", "stage": "handover", "since": "2026-11-22T09:00:00Z", "id": "swap-1"}]);
        let swaps = json!({"open": ["v"], "under_way": under_way, "images": 2, "image_bytes": 3 << 20, "leaked_bytes": 1 << 20,
            "max_leaked_bytes": 512 << 20, "advice": null, "flips": {"count": 1, "held_p99_ns": 2700}});
        assert_eq!(
            said("swaps", &swaps),
            "under way: v at handover since 2026-11-22T09:00:00Z (swap-1), 1 done (flip p99 2.7 us); 2 images mapped \
             (3.0 MiB), replaced ones hold 1.0 MiB of 512.0 MiB"
        );
        let watch = json!({"path": "/a", "watched": true, "directory": "/b", "since": "T"});
        assert_eq!(said("plugins_watch", &watch), "/a -> /b, watched since T");
        let watch = json!({"path": "/a", "watched": false, "directory": null, "since": "T",
            "why": "/a does not exist", "remedy": "make it"});
        assert_eq!(said("plugins_watch", &watch), "/a, not watched since T: /a does not exist (make it)");
        assert_eq!(said("sandbox", &json!({"a": "full", "b": "partial"})), "a=full, b=partial");
        assert_eq!(said("sandbox", &json!({})), "-");
        assert_eq!(said("swaps", &Value::Null), "-");
    }

    #[test]
    fn one_glance_has_the_state_and_each_reason_on_top() {
        let status = json!({"active_mandate_id": "m", "active_mandate_ids": ["m"], "pid": 7,
            "reasons": ["runner a: is not there", "disk full"], "state": "running", "zone_data": "2026a"});
        let text = glance(&status);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["state", "running"]);
        assert_eq!(
            (&lines[1][..3], lines[2].as_slice()),
            (&["reasons", "runner", "a:"][..], &["disk", "full"][..])
        );
        assert_eq!(lines.len(), 6, "{text}");
        assert_eq!(lines[5], ["zone_data", "2026a"]);
    }

    #[test]
    fn a_slot_that_does_not_serve_says_why_and_what_to_do_below_the_table() {
        let list = json!([
            {"runner": "a", "state": "active", "generation": "0123456789abcdef", "configured": {"serves": true}},
            {"runner": "b", "state": "unavailable", "code": "not_elf", "reason": "not an ELF file",
                "remedy": "build it", "configured": {}},
        ]);
        let text = slots(&list);
        assert!(text.ends_with("\nb: not_elf: not an ELF file\n  -> build it\n"), "{text}");
        assert!(text.contains("0123456789ab ") && !text.contains("abcdef"), "{text}");
    }

    #[test]
    fn an_entry_of_which_much_changed_is_named_once() {
        let keys = [
            "runners.a.plugin",
            "runners.\"x.y\".a",
            "runners.\"x.y\".b",
            "runners.\"x.y\".c",
            "runners.\"x.y\".d",
            "tick_interval",
        ];
        let keys = keys.map(str::to_owned);
        assert_eq!(in_short(&keys), ["runners.a.plugin", "runners.\"x.y\"", "tick_interval"]);
    }

    #[test]
    fn a_slot_shows_what_is_configured_where_it_does_not_serve() {
        let word = |serves: bool, sha256: Option<&str>, code: Option<&str>| {
            let configured =
                json!({"plugin": "./a.so", "generation": sha256, "serves": serves, "code": code});
            in_a_word(&json!([{"swap": null, "configured": configured}]))[0]["configured"].clone()
        };
        let sha256 = Some("0123456789abcdef");
        assert_eq!(word(true, sha256, None), "./a.so");
        assert_eq!(word(false, sha256, None), "./a.so (0123456789ab), not serving");
        assert_eq!(word(false, None, Some("not_found")), "./a.so, not there");
        assert_eq!(word(false, None, Some("empty")), "./a.so, not taken (empty)");
        assert_eq!(word(false, sha256, Some("crashed")), "./a.so, not taken (crashed)");
    }
}
