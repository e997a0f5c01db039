//! The table behind the configuration's documentation and behind what a reload can change. A test
//! compares it with the keys the readers really ask for, and with `host/docs/config.md`.

/// When a changed key counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// With the reload; work that has begun keeps the former value.
    Reload,
    /// With the next start.
    Restart,
}

/// One key of daemon.yml.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted path; `*` stands for a free name.
    pub path: &'static str,
    /// When a change counts.
    pub when: When,
    /// What it means.
    pub meaning: &'static str,
}

const fn live(path: &'static str, meaning: &'static str) -> Key {
    Key { path, when: When::Reload, meaning }
}

const fn fixed(path: &'static str, meaning: &'static str) -> Key {
    Key { path, when: When::Restart, meaning }
}

/// Every key of daemon.yml, in the order of the reference.
pub const DAEMON: &[Key] = &[
    live(
        "tick_interval",
        "Upper bound of one sleep of the scheduling loop; it wakes earlier when something is due.",
    ),
    live("graceful_timeout", "How long a stop waits for running cycles before it interrupts them."),
    fixed("pid_path", "The lock file of the root; its first line is the daemon's pid. Relative to the root."),
    live("mode", "Accepted for files of the reference; `daemon` is the only word and has no effect."),
    live("max_concurrent_cycles", "Most cycles that run at the same time."),
    live(
        "chronos.max_catch_up_per_minute",
        "Most missed occurrences that fire per minute, over all schedules.",
    ),
    live(
        "budget.daily_calls",
        "LLM calls a day. `null`: no limit. `daily_limit` is accepted as another name.",
    ),
    live("budget.daily_tokens", "Input and output tokens a day together. `null`: no limit."),
    live("budget.daily_usd", "US dollars a day. `null`: no limit."),
    fixed("budget.timezone", "The zone whose midnight begins a new day."),
    live("heartbeat.interval", "Time between two heartbeats."),
    live("store.retention_days", "Days that ended mandates stay in the store."),
    fixed("wal.dir", "Directory of the per-mandate logs. Relative to the root."),
    live(
        "wal.on_error",
        "What happens to a cycle whose log cannot be opened: it does not start, or it runs without.",
    ),
    live("wal.retention_days", "Days that archived logs stay."),
    fixed("attach.host", "Address the attach server listens on; loopback only."),
    fixed("attach.port", "Port the attach server listens on; 0 lets the system choose."),
    live(
        "sandbox.require",
        "The weakest sandbox in which a runner still starts; `kairos doctor` tells what this machine has.",
    ),
    live(
        "default_runner",
        "The runner of schedules and mandates that name none; by itself `cognitive`, else the first.",
    ),
    live(
        "runners.*.plugin",
        "Name of a plugin (`a-b` is the file `liba_b.so`), or a path when it holds a slash; by itself the runner's name.",
    ),
    live(
        "runners.*.isolation",
        "Where the runner's code runs. What is not available is refused, never replaced by something weaker.",
    ),
    live(
        "runners.*.deadline",
        "How long one cycle may take. Then it is asked to end, and ended after `stop_grace`.",
    ),
    live(
        "runners.*.stop_grace",
        "How long a cycle that was asked to end, at its deadline or by a cancel, has for it. Then its worker is killed; a thread of `in_process` cannot be and is left behind. A stop of the daemon waits for `graceful_timeout` instead.",
    ),
    live(
        "runners.*.memory",
        "Memory of each of its workers that can be written, such as `512MiB`. By itself 4GiB in `process` and 512MiB in `sandbox`; beyond it nothing more is given to the worker, which mostly dies of it. Nothing limits `in_process`.",
    ),
    live("runners.*.params", "Parameters for every mandate of the runner; those of the mandate win."),
    live(
        "runners.*.grants.read",
        "Files and directories that the runner can read in a sandbox, if its manifest asks for them: of the root, or elsewhere by an absolute path or `~/` for a runner that asks for `.`. Never with `..`, never `/`, never what lies in `.kairos`.",
    ),
    live("runners.*.grants.write", "As `read`, for what it can also change."),
    live(
        "commands.*.argv",
        "A program that runners may ask for, and its arguments. With a slash it is a path from the root, absolute or of the home directory (`~/`), wherever it starts; a bare name is looked up in the `PATH` of `env`. While it is not there, mandates wait.",
    ),
    live(
        "commands.*.preset",
        "How its output is read: `jsonl` is Kairos' protocol, `plain` exit code and text, the others are agents.",
    ),
    live(
        "commands.*.input",
        "What it is given: the mandate as JSON, the prompt as text. By itself `mandate` for `jsonl`, `nothing` for `plain`, else `prompt`.",
    ),
    live("commands.*.prompt", "How it gets that: on standard input, or as its last argument."),
    live("commands.*.cwd", "Where it starts, from the root."),
    live(
        "commands.*.env",
        "Its environment; by itself only `PATH`, and `HOME` and `TMPDIR` as a directory of its own for each run. A value may begin with `~/`. Not for secrets.",
    ),
    live("commands.*.inherit", "Variables it gets from the daemon's environment, `HOME` for example."),
    live(
        "commands.*.secrets",
        "Variables whose values are secret: `{NAME: {env: NAME}}`, `{file: PATH}` or `{credential: NAME}`. They are kept out of logs, records and its own output.",
    ),
    live(
        "commands.*.sandbox",
        "`off` runs it unconfined. A sandbox that the machine cannot give is refused.",
    ),
    live("commands.*.network", "Whether it may use the network."),
    live(
        "commands.*.read",
        "Files and directories it may read and run programs of, beside the system's own and what belongs to the program itself (its interpreter and packages): from the root, absolute, or of the home directory (`~/`). Never with `..`, never `/`, never the daemon's own.",
    ),
    live("commands.*.write", "Files and directories it may change."),
    live(
        "commands.*.timeout",
        "How long it may take; less when the runner's `deadline` leaves less. Then it is ended with all its children.",
    ),
    live("commands.*.grace", "Between asking it to end and killing it."),
    live("commands.*.max_output_bytes", "Most it may write, both outputs together; then it is ended."),
    live(
        "commands.*.keep_free_bytes",
        "Least that stays free on the file systems that it may write to: with less it waits, or is ended at once; 0 is no bound.",
    ),
    live(
        "commands.*.max_calls",
        "LLM calls to reserve for a run; by itself 50 for agents, else none. What a run does not state counts as reserved.",
    ),
    live("commands.*.max_tokens", "Tokens to reserve for a run, sent and received together."),
    live(
        "commands.*.max_cost_usd",
        "US dollars to reserve for a run. A run that is seen to pass its maximum is ended.",
    ),
    live(
        "commands.*.price.input_usd_per_mtok",
        "US dollars per million tokens sent, for agents that state no cost.",
    ),
    live("commands.*.price.output_usd_per_mtok", "US dollars per million tokens received."),
    live(
        "commands.*.retry",
        "When a run was cut short: a person decides, or it runs again because that is harmless.",
    ),
    live("commands.*.runners", "Runners that may ask for it; by itself those of the plugin `command`."),
    fixed(
        "plugins.watch",
        "A directory: a plugin file that appears in it is swapped in for the runners of its name. It may come and go, \
         and be a link that is switched. Relative to the root.",
    ),
    live(
        "swap.shadow_cycles",
        "Recorded cycles of the runner that a candidate is run on before it serves; 0: none.",
    ),
    live(
        "swap.tolerance",
        "Share of those cycles that may come out differently. A crash or a hang never may.",
    ),
    live("swap.shadow_deadline", "How long a candidate may take for one recorded cycle, and for its probe."),
    live("swap.canary_cycles", "Cycles that a new version is on trial for; 0: no trial."),
    live("swap.canary_time", "The trial ends well after this time at the latest."),
    live(
        "swap.canary_error_rate",
        "Share of the trial's cycles that may report an error. A panic, a death, a missed deadline or a bad report never may.",
    ),
    live(
        "swap.canary_cost_factor",
        "The trial fails when its cycles use so many times what the recorded ones used.",
    ),
    live(
        "swap.drain_timeout",
        "How long a replaced version's cycles are waited for, and a cycle boundary for handing over state.",
    ),
    live(
        "swap.max_leaked",
        "MiB of replaced versions that one daemon keeps mapped; beyond it swaps in process are refused.",
    ),
    live("llm.default", "The provider of requests that name none; by itself the first."),
    live("llm.providers.*.kind", "What the provider talks to. Needed."),
    live("llm.providers.*.base_url", "`anthropic`, `openai`: URL of the service; needed for `openai`."),
    live("llm.providers.*.model", "The model of requests that name none."),
    live(
        "llm.providers.*.api_key",
        "`anthropic`, `openai`: `{env: NAME}`, `{file: PATH}` or `{credential: NAME}`; never the key itself.",
    ),
    live("llm.providers.*.max_tokens", "Most tokens of a reply, for requests that name no figure."),
    live("llm.providers.*.price.input_usd_per_mtok", "US dollars per million tokens sent."),
    live("llm.providers.*.price.output_usd_per_mtok", "US dollars per million tokens received."),
    live("llm.providers.*.file", "`scripted`: the file with the replies. Relative to the root."),
    live("tools.mcpServers", "MCP servers by name, each with `command` and `args`, or with `url`."),
    live("tools.policy", "Rules about what tools may do, in order."),
];

/// Every key of an entry of schedules.yml. All of them count with the reload.
pub const SCHEDULE: &[Key] = &[
    live("name", "Unique; any text up to 10 KiB. Needed."),
    live(
        "cron",
        "Five fields (minute, hour, day, month, weekday), or six when the first is seconds, or `@daily` and the like. Needed.",
    ),
    live("timezone", "The IANA zone in which `cron` is read."),
    live("enabled", "`false`: the schedule is known but does not fire."),
    live("project_scope", "Mandates of one scope never run at the same time."),
    live("runner", "Names one of `runners`; by itself `default_runner`."),
    live(
        "missed_policy",
        "What happens to occurrences that were missed: `skip` and `catch_up_once` fire the latest, `catch_up_bounded` fires several.",
    ),
    live("max_catch_up_runs", "For `catch_up_bounded`: most runs of one catch-up."),
    live(
        "stale_after",
        "For `catch_up_bounded`: if the oldest missed occurrence is older, only the latest fires.",
    ),
    live("start_deadline", "Occurrences older than this never fire."),
    live(
        "concurrency",
        "What happens when an occurrence fires while its scope, or the schedule itself, is busy.",
    ),
    live("jitter", "Upper bound of a delay after the nominal time, the same for the same occurrence."),
    live(
        "dst",
        "`cron`: times in a gap move to its end, repeated times fire once. `literal`: lost, and twice.",
    ),
    live("on_budget", "When the day's budget is used up: wait, or count the occurrence as missed."),
    live("pause_after_failures", "Pause the schedule after so many failed mandates in a row."),
    live("mandate.goal", "What is to be reached; by itself the schedule's name."),
    live("mandate.max_cycles", "Cycles after which a mandate ends even if its runner wants more."),
    live("mandate.checkpoint_every", "Cycles between two looks by a person."),
    live(
        "mandate.risk_budget",
        "How much risk acts may carry, `low` or `medium`; a runner may know more words.",
    ),
    live("mandate.allowed_actions", "Narrows what a cycle may do."),
    live("mandate.observe_policies", "Narrows what a cycle may look at."),
    live("mandate.params", "Free parameters for the runner."),
];

/// When a change of this key counts. Unknown keys count as live: they belong to a map with free names.
#[must_use]
pub fn takes_effect(key: &str) -> When {
    DAEMON.iter().find(|known| matches(known.path, key)).map_or(When::Reload, |known| known.when)
}

/// True when a dotted path is one that the pattern stands for. Names with dots are in quotes.
#[must_use]
pub fn matches(pattern: &str, key: &str) -> bool {
    let mut parts = segments(key).into_iter();
    pattern.split('.').all(|want| parts.next().is_some_and(|part| want == "*" || want == part))
        && parts.next().is_none()
}

fn segments(key: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, byte) in key.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'.' if !quoted => {
                found.push(&key[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&key[start..]);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_free_names_also_with_dots_and_quotes() {
        assert!(matches("runners.*.plugin", "runners.quick.plugin"));
        assert!(matches("runners.*.plugin", r#"runners."a.b \" c".plugin"#));
        assert!(!matches("runners.*.plugin", "runners.a.b.plugin"));
        assert!(!matches("runners.*.plugin", "runners.a"));
        assert_eq!(takes_effect("attach.port"), When::Restart);
        assert_eq!(takes_effect("runners.x.deadline"), When::Reload);
    }
}
