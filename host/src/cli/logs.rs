//! `kairos logs`: the last lines of the log, and what comes after them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use serde_json::Value;

use super::Context;
use super::output::{Reader, cell, heard, printable};
use crate::exit::Failure;
use crate::telemetry::LOG_NAME;

/// Which lines.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on printing as lines come
    #[arg(short, long)]
    pub follow: bool,
    /// How many of the last lines
    #[arg(short, long, default_value_t = 50)]
    pub n: usize,
    /// Only lines about this mandate: what its runner, or the program that runs for it, says
    #[arg(long, value_name = "ID")]
    pub mandate: Option<String>,
}

/// Runs the command. Ends with the reader of stdout, or never when following.
///
/// # Errors
/// There is no log yet, or it cannot be read.
pub fn run(args: &LogsArgs, context: &Context) -> anyhow::Result<()> {
    let paths = context.paths()?;
    let path = paths.logs.join(LOG_NAME);
    let file = File::open(&path).map_err(|error| {
        Failure::not_found(format!("{}: {error}", path.display()))
            .remedy("the daemon writes it when it first runs")
    })?;
    let mut log =
        Follower { reader: BufReader::new(file), json: context.style.json, mandate: args.mandate.clone() };
    if log.last(args.n)? == Reader::There && args.follow { log.follow(&paths.logs, &path) } else { Ok(()) }
}

struct Follower {
    reader: BufReader<File>,
    json: bool,
    mandate: Option<String>,
}

impl Follower {
    fn last(&mut self, n: usize) -> anyhow::Result<Reader> {
        let mut last = VecDeque::with_capacity(n.min(4096));
        while let Some(text) = self.next_line()? {
            if !self.wants(&text) {
                continue;
            }
            if last.len() == n {
                last.pop_front();
            }
            last.push_back(text);
        }
        for text in last.iter().take(n) {
            if self.print(text)? == Reader::Gone {
                return Ok(Reader::Gone);
            }
        }
        Ok(Reader::There)
    }

    /// A whole line; the start of one that is still being written is left for the next time.
    fn next_line(&mut self) -> anyhow::Result<Option<String>> {
        let mut bytes = vec![];
        let read = self.reader.read_until(b'\n', &mut bytes)?;
        if bytes.last() == Some(&b'\n') {
            return Ok(Some(String::from_utf8_lossy(&bytes).trim_end().to_owned()));
        }
        self.reader.seek(SeekFrom::Current(-i64::try_from(read)?))?;
        Ok(None)
    }

    fn wants(&self, text: &str) -> bool {
        let Some(id) = &self.mandate else { return true };
        // Most lines need not be parsed to know.
        text.contains(id.as_str())
            && serde_json::from_str::<Value>(text).is_ok_and(|record| record["details"]["mandate"] == **id)
    }

    fn print(&self, text: &str) -> anyhow::Result<Reader> {
        heard(&if self.json { text.to_owned() } else { human(text) })
    }

    fn follow(&mut self, dir: &Path, path: &Path) -> anyhow::Result<()> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(
            &watch,
            dir,
            inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO,
        )?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        loop {
            while let Some(text) = self.next_line()? {
                if self.wants(&text) && self.print(&text)? == Reader::Gone {
                    return Ok(());
                }
            }
            if events.is_buffer_empty() && wait(&watch)? == Reader::Gone {
                return Ok(());
            }
            let event = events.next()?;
            // A new day has a new file: what the old one still holds was printed above.
            if event.events().intersects(inotify::ReadFlags::CREATE | inotify::ReadFlags::MOVED_TO)
                && let Ok(file) = File::open(path)
            {
                use std::os::unix::fs::MetadataExt;
                if file.metadata()?.ino() != self.reader.get_ref().metadata()?.ino() {
                    self.reader = BufReader::new(file);
                }
            }
        }
    }
}

/// Waits for an event, or for the end of who reads, who may leave long before the next line.
fn wait(watch: &OwnedFd) -> anyhow::Result<Reader> {
    let stdout = std::io::stdout();
    loop {
        let mut fds = [PollFd::new(watch, PollFlags::IN), PollFd::new(&stdout, PollFlags::empty())];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            ready => {
                ready?;
                let gone = fds[1].revents().intersects(PollFlags::ERR | PollFlags::HUP);
                return Ok(if gone { Reader::Gone } else { Reader::There });
            }
        }
    }
}

fn human(text: &str) -> String {
    let Ok(record) = serde_json::from_str::<Value>(text) else { return printable(text) };
    let mut out = format!(
        "{} {:<5} {}",
        cell(&record["ts"]),
        record["level"].as_str().unwrap_or("?").to_uppercase(),
        printable(&cell(&record["event"]))
    );
    for (key, value) in record["details"].as_object().into_iter().flatten() {
        out.push_str(&format!(" {key}={}", printable(&cell(value))));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_readable_line_and_garbage_stays_harmless() {
        let record = r#"{"ts":"2026-11-22T09:00:00Z","level":"warn","event":"daemon_budget_exceeded","source":"x","details":{"limit":3}}"#;
        assert_eq!(human(record), "2026-11-22T09:00:00Z WARN  daemon_budget_exceeded limit=3");
        assert_eq!(human("\u{1b}[2J"), "\\u{1b}[2J");
    }
}
