//! `kairos wal`: the write-ahead logs, read from their files.

use clap::Subcommand;
use serde_json::{Value, json};

use super::Context;
use super::output::{cell, emit, printable};
use super::progress::Progress;
use crate::exit::{Failure, code};
use crate::store::SqliteStore;
use crate::store::Store;
use crate::wal;

/// Write-ahead logs: one file a mandate.
#[derive(Debug, Subcommand)]
pub enum WalCommand {
    /// Print the log of a mandate, from its file or its archive
    Show {
        /// The mandate's id
        id: String,
    },
    /// Check every byte of the logs, and that they agree with the store
    Verify {
        /// Only of this mandate
        id: Option<String>,
    },
}

/// Runs the command. Reads files only, so it needs no daemon and disturbs none.
///
/// # Errors
/// There is no such log: exit 3. A log is not sound: exit 8.
pub fn run(command: WalCommand, context: &Context) -> anyhow::Result<()> {
    let settings = context.settings()?;
    let dir = settings.wal_dir();
    match command {
        WalCommand::Show { id } => {
            let lines = wal::show(&dir, &id).map_err(failure)?;
            emit(context.style, &serde_json::to_value(&lines)?, |lines| {
                lines.as_array().into_iter().flatten().map(human).collect()
            })
        }
        WalCommand::Verify { id } => {
            let store =
                settings.paths.store_db.exists().then(|| SqliteStore::read_only(&settings.paths.store_db));
            let store = store.transpose()?;
            let bar = Progress::new(context.style, "verifying");
            let report = wal::verify_dir(
                &dir,
                store.as_ref().map(|store| store as &dyn Store),
                id.as_deref(),
                &mut |done, total| bar.at(done, total),
            )
            .map_err(failure)?;
            drop(bar);
            let mut view = serde_json::to_value(&report)?;
            view["fine"] = report.is_fine().into();
            emit(context.style, &view, verdict)?;
            if report.is_fine() {
                return Ok(());
            }
            Err(Failure::new(code::STORE, "wal_damaged", "some logs are not sound")
                .remedy("start the daemon: it heals what the store still has and keeps the bad bytes aside")
                .into())
        }
    }
}

fn human(line: &Value) -> String {
    let record = &line["record"];
    let text = if record.is_null() { &line["text"] } else { record };
    let seq = if line["seq"].is_null() { &line["line"] } else { &line["seq"] };
    format!("{:>4} {:<8} {}\n", cell(seq), cell(&line["standing"]), printable(&cell(text)))
}

fn verdict(report: &Value) -> String {
    let mut text = format!(
        "{} logs, {} archives, {} lines sealed or read\n",
        cell(&report["files"]),
        cell(&report["archives"]),
        cell(&report["lines"])
    );
    for finding in report["findings"].as_array().into_iter().flatten() {
        let place = json!(finding["offset"]);
        text.push_str(&format!(
            "{}: {} (offset {}) {}\n",
            printable(&cell(&finding["path"])),
            cell(&finding["state"]),
            cell(&place),
            printable(&cell(&finding["detail"]))
        ));
    }
    text
}

fn failure(error: wal::Error) -> Failure {
    let message = error.to_string();
    match error {
        wal::Error::NotFound { .. } | wal::Error::UnsafeId { .. } => Failure::not_found(message),
        _ => Failure::new(code::FAILED, "wal", message),
    }
}
