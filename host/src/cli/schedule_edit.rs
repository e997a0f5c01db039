//! `kairos schedule add|edit|remove`: changes of schedules.yml that keep its comments, shown before
//! they are made, and told to a running daemon.

use clap::Args;
use serde_json::{Map, Value, json};

use super::Context;
use super::mandate::params;
use super::output::{emit, printable, say};
use crate::config::SchedulesFile;
use crate::config::edit::{self, Change, EditError};
use crate::config::schedules::Around;
use crate::daemon::chronos;
use crate::exit::{Failure, code};
use crate::sys::zones::Zones;

/// Fires that a preview shows.
const PREVIEW: usize = 5;

/// What can be said of a schedule.
#[derive(Debug, Args)]
pub struct Fields {
    /// What its mandates are to reach
    #[arg(long)]
    pub goal: Option<String>,
    /// IANA time zone of the expression; UTC when absent
    #[arg(long, alias = "tz", value_name = "ZONE")]
    pub timezone: Option<String>,
    /// Mandates of one scope never run at the same time
    #[arg(long, value_name = "NAME")]
    pub scope: Option<String>,
    /// Which configured runner
    #[arg(long)]
    pub runner: Option<String>,
    /// What becomes of missed occurrences: skip, catch_up_once or catch_up_bounded
    #[arg(long, value_name = "POLICY")]
    pub missed_policy: Option<String>,
    /// What happens while one of it runs: queue, queue_one, reject, allow, allow_queued or replace
    #[arg(long, value_name = "POLICY")]
    pub concurrency: Option<String>,
    /// Largest delay after the nominal time, 30s for example
    #[arg(long, value_name = "DURATION")]
    pub jitter: Option<String>,
    /// Cycles after which a mandate ends
    #[arg(long, value_name = "N")]
    pub max_cycles: Option<u32>,
    /// A parameter for the runner; the value is JSON, else text. Repeatable
    #[arg(long = "param", value_name = "K=V")]
    pub params: Vec<String>,
    /// Any key of the file as K=V, `mandate.risk_budget=low` for example. Repeatable
    #[arg(long = "set", value_name = "K=V")]
    pub set: Vec<String>,
    /// Only show what would change
    #[arg(long)]
    pub dry_run: bool,
}

/// A new schedule.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// Its name
    pub name: String,
    /// Its cron expression: five fields, or six with seconds first
    pub cron: String,
    /// The rest
    #[command(flatten)]
    pub fields: Fields,
}

/// A change.
#[derive(Debug, Args)]
pub struct EditArgs {
    /// Its name
    pub name: String,
    /// Another cron expression; it never fires on the change itself
    #[arg(long)]
    pub cron: Option<String>,
    /// Switch it on or off
    #[arg(long, value_name = "BOOL")]
    pub enabled: Option<bool>,
    /// The rest
    #[command(flatten)]
    pub fields: Fields,
}

/// `schedule add`.
///
/// # Errors
/// The name is taken, the entry would be wrong, or the file cannot be changed.
pub async fn add(args: NewArgs, context: &Context) -> anyhow::Result<()> {
    let mut entry = Map::new();
    entry.insert("name".into(), args.name.clone().into());
    entry.insert("cron".into(), args.cron.into());
    for (key, value) in args.fields.keys()? {
        match key.split_once('.') {
            None => drop(entry.insert(key, value)),
            Some((outer, inner)) => {
                let map = entry.entry(outer).or_insert_with(|| json!({}));
                let map =
                    map.as_object_mut().ok_or_else(|| Failure::usage(format!("{outer} is no mapping")))?;
                map.insert(inner.to_owned(), value);
            }
        }
    }
    carry_out(&args.name, &Change::Add(entry), args.fields.dry_run, "added", context).await
}

/// `schedule edit`.
///
/// # Errors
/// As [`add`]; exit 3 when there is none of that name.
pub async fn edit(args: EditArgs, context: &Context) -> anyhow::Result<()> {
    let mut set: Vec<(String, Option<Value>)> = vec![];
    if let Some(cron) = args.cron {
        set.push(("cron".into(), Some(cron.into())));
    }
    if let Some(enabled) = args.enabled {
        set.push(("enabled".into(), Some(enabled.into())));
    }
    set.extend(args.fields.keys()?.into_iter().map(|(key, value)| (key, Some(value))));
    if set.is_empty() {
        return Err(Failure::usage("nothing to change")
            .remedy("name what: --cron, --goal, --set K=V …")
            .into());
    }
    let change = Change::Edit { name: args.name.clone(), set };
    carry_out(&args.name, &change, args.fields.dry_run, "changed", context).await
}

/// `schedule remove`.
///
/// # Errors
/// As [`edit`].
pub async fn remove(name: &str, dry_run: bool, context: &Context) -> anyhow::Result<()> {
    carry_out(name, &Change::Remove(name.to_owned()), dry_run, "removed", context).await
}

impl Fields {
    fn keys(&self) -> Result<Vec<(String, Value)>, Failure> {
        let mut keys: Vec<(String, Value)> = vec![];
        let texts = [
            ("timezone", &self.timezone),
            ("project_scope", &self.scope),
            ("runner", &self.runner),
            ("missed_policy", &self.missed_policy),
            ("concurrency", &self.concurrency),
            ("jitter", &self.jitter),
            ("mandate.goal", &self.goal),
        ];
        for (key, value) in texts {
            if let Some(value) = value {
                keys.push((key.to_owned(), value.clone().into()));
            }
        }
        if let Some(cycles) = self.max_cycles {
            keys.push(("mandate.max_cycles".to_owned(), cycles.into()));
        }
        let params = params(&self.params)?;
        if !params.is_empty() {
            keys.push(("mandate.params".to_owned(), params.into()));
        }
        keys.extend(super::mandate::params(&self.set)?);
        Ok(keys)
    }
}

async fn carry_out(
    name: &str,
    change: &Change,
    dry_run: bool,
    done: &str,
    context: &Context,
) -> anyhow::Result<()> {
    let settings = context.settings()?;
    let (zones, runners) = (&settings.zones, settings.runner_names());
    let around = Around { zones, runners: &runners, now: Some(context.clock.now()) };
    let path = &settings.paths.schedules_yml;
    let planned = edit::preview(path, change, around).map_err(failure)?;
    let next = preview(&planned, name, zones, context);
    for at in &next {
        say(context.style, &format!("  fires {at}"));
    }
    if !dry_run {
        edit::edit_file(path, change, around).map_err(failure)?;
        // A daemon takes it over now; without one it does so when it starts.
        if let Some(daemon) = super::connect::daemon(context).await? {
            daemon.post("/v1/admin/reload", &json!({})).await?;
        }
    }
    let answer =
        json!({"schedule": name, "done": if dry_run { Value::Null } else { done.into() }, "next": next});
    emit(
        context.style,
        &answer,
        |_| {
            if dry_run { String::new() } else { format!("{} {done}", printable(name)) }
        },
    )
}

fn preview(file: &SchedulesFile, name: &str, zones: &Zones, context: &Context) -> Vec<String> {
    let spec = file.schedules.iter().find(|spec| &*spec.name == name);
    let upcoming = spec.and_then(|spec| chronos::preview(spec, zones, context.clock.now(), PREVIEW).ok());
    upcoming.into_iter().flatten().map(|fire| fire.local).collect()
}

fn failure(error: EditError) -> Failure {
    let message = error.to_string();
    match error {
        EditError::NotFound { .. } => Failure::not_found(message),
        EditError::Exists { .. } => {
            Failure::new(code::CONFLICT, "exists", message).remedy("use `kairos schedule edit`")
        }
        EditError::Unreadable(_) | EditError::Invalid { .. } => Failure::new(code::USAGE, "invalid", message),
        EditError::NotPossible { .. } => Failure::new(code::CONFLICT, "not_possible", message),
        EditError::File(_) => Failure::new(code::FAILED, "file", message),
    }
}
