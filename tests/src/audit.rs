//! Looks for what must never be: reads a root that no daemon owns and lists every broken promise.
//! It reads the store's tables and the log files, and shares no code with what wrote them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use anyhow::Result;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

/// What the test knows by itself.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Ids that the daemon acknowledged to a client.
    pub acknowledged: BTreeSet<String>,
    /// Usage a mandate of that goal ends with: calls, input, output. Exact.
    pub exact: BTreeMap<String, (i64, i64, i64)>,
    /// Usage it has at least, where a call in flight at a kill may be paid twice.
    pub at_least: BTreeMap<String, (i64, i64, i64)>,
    /// Cycles that a mandate of that goal takes.
    pub cycles: BTreeMap<String, i64>,
    /// Schedules that fire every so many seconds.
    pub periods: BTreeMap<String, i64>,
}

/// Every broken promise, in words; empty when all hold.
///
/// # Errors
/// The files cannot be read at all.
pub fn audit(dot: &Path, expected: &Expected) -> Result<Vec<String>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = Connection::open_with_flags(dot.join("state/store.db"), flags)?;
    let mut found = vec![];
    mandates(&db, expected, &mut found)?;
    ledger(&db, &mut found)?;
    occurrences(&db, expected, &mut found)?;
    logs(&db, &dot.join("wal"), &mut found)?;
    Ok(found)
}

fn mandates(db: &Connection, expected: &Expected, found: &mut Vec<String>) -> Result<()> {
    const ENDS: [&str; 5] = ["succeeded", "failed", "cancelled", "denied", "expired"];
    let mut known = BTreeSet::new();
    let mut statement = db.prepare("SELECT n, id, goal, state, ended IS NOT NULL FROM mandate")?;
    let rows: Vec<(i64, String, String, String, bool)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?
        .collect::<Result<_, _>>()?;
    for (n, id, goal, state, ended) in rows {
        if !ENDS.contains(&state.as_str()) || !ended {
            found.push(format!("{id}: no end state but {state:?}"));
        }
        if state != "succeeded" {
            found.push(format!("{id}: ended {state:?} though nothing it does can fail"));
        }
        cycles(db, n, &id, &goal, expected, found)?;
        known.insert(id);
    }
    for lost in expected.acknowledged.difference(&known) {
        found.push(format!("{lost}: acknowledged and not there"));
    }
    Ok(())
}

fn cycles(
    db: &Connection,
    n: i64,
    id: &str,
    goal: &str,
    expected: &Expected,
    found: &mut Vec<String>,
) -> Result<()> {
    let mut statement =
        db.prepare("SELECT cycle, count(*) FROM cycle WHERE mandate=?1 AND status='ok' GROUP BY cycle")?;
    let done: Vec<(i64, i64)> =
        statement.query_map([n], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    for (cycle, times) in &done {
        if *times != 1 {
            found.push(format!("{id}: cycle {cycle} was counted {times} times"));
        }
    }
    let wanted = expected.cycles.get(goal).copied().unwrap_or(1);
    if done.len() as i64 != wanted {
        found.push(format!("{id}: {} cycles ended ok, not {wanted}", done.len()));
    }
    let used: (i64, i64, i64) = db.query_row(
        "SELECT coalesce(sum(calls),0), coalesce(sum(input),0), coalesce(sum(output),0) FROM usage WHERE mandate=?1",
        [n],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    if let Some(exact) = expected.exact.get(goal)
        && used != *exact
    {
        found.push(format!("{id}: booked {used:?}, not {exact:?}"));
    }
    if let Some(least) = expected.at_least.get(goal)
        && (used.0 < least.0 || used.1 < least.1 || used.2 < least.2)
    {
        found.push(format!("{id}: booked {used:?}, less than {least:?}"));
    }
    let open: i64 =
        db.query_row("SELECT count(*) FROM usage WHERE mandate=?1 AND state='reserved'", [n], |row| {
            row.get(0)
        })?;
    if open != 0 {
        found.push(format!("{id}: {open} reservations were never settled"));
    }
    let repeated: i64 = db.query_row(
        "SELECT count(*) FROM (SELECT 1 FROM usage WHERE mandate=?1 AND seq IS NOT NULL AND state='settled'
         GROUP BY cycle, seq, attempt HAVING count(*) > 1)",
        [n],
        |row| row.get(0),
    )?;
    if repeated != 0 {
        found.push(format!("{id}: {repeated} calls were settled twice"));
    }
    Ok(())
}

fn ledger(db: &Connection, found: &mut Vec<String>) -> Result<()> {
    let mut statement = db.prepare(
        "SELECT l.day, l.calls, l.input, l.output, l.cost, l.r_calls,
           coalesce(sum(u.calls),0), coalesce(sum(u.input),0), coalesce(sum(u.output),0), coalesce(sum(u.cost),0)
         FROM ledger l LEFT JOIN usage u ON u.day=l.day AND u.state<>'reserved' GROUP BY l.day",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let day: String = row.get(0)?;
        let counted: [i64; 4] = [row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?];
        let summed: [i64; 4] = [row.get(6)?, row.get(7)?, row.get(8)?, row.get(9)?];
        if counted != summed {
            found.push(format!("ledger of {day}: {counted:?}, but its rows sum up to {summed:?}"));
        }
        if row.get::<_, i64>(5)? != 0 {
            found.push(format!("ledger of {day}: something is still reserved"));
        }
    }
    let without: i64 =
        db.query_row("SELECT count(*) FROM usage WHERE day NOT IN (SELECT day FROM ledger)", [], |row| {
            row.get(0)
        })?;
    if without != 0 {
        found.push(format!("{without} usage rows lie on a day that the ledger does not know"));
    }
    Ok(())
}

fn occurrences(db: &Connection, expected: &Expected, found: &mut Vec<String>) -> Result<()> {
    for (schedule, period) in &expected.periods {
        let mut statement = db.prepare(
            "SELECT o.first, o.last, o.count, o.outcome, o.mandate FROM occurrence o
             JOIN schedule s ON s.n=o.schedule WHERE s.name=?1 ORDER BY o.first",
        )?;
        let rows: Vec<(i64, i64, i64, String, Option<i64>)> = statement
            .query_map([schedule], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
            })?
            .collect::<Result<_, _>>()?;
        let step = period * 1_000_000;
        let mut next = None;
        for (first, last, count, outcome, mandate) in rows {
            if next.is_some_and(|next| next != first) {
                found.push(format!(
                    "{schedule}: after {next:?} comes {first}: an occurrence is lost or told twice"
                ));
            }
            if count != (last - first) / step + 1 {
                found.push(format!("{schedule}: a run from {first} to {last} counts {count}"));
            }
            if (outcome == "fired") != mandate.is_some() {
                found.push(format!("{schedule}: {outcome:?} at {first} with mandate {mandate:?}"));
            }
            next = Some(last + step);
        }
        let doubled: i64 = db.query_row(
            "SELECT count(*) FROM (SELECT 1 FROM mandate WHERE schedule=?1 AND origin='schedule'
             GROUP BY nominal HAVING count(*) > 1)",
            [schedule],
            |row| row.get(0),
        )?;
        if doubled != 0 {
            found.push(format!("{schedule}: {doubled} occurrences fired twice"));
        }
    }
    Ok(())
}

/// Every line of every log: valid JSON, numbered without a gap, its chain unbroken.
fn logs(db: &Connection, dir: &Path, found: &mut Vec<String>) -> Result<()> {
    let mut statement = db.prepare("SELECT id, seq, crc FROM mandate")?;
    let heads: BTreeMap<String, (i64, i64)> = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, (row.get(1)?, row.get(2)?))))?
        .collect::<Result<_, _>>()?;
    for (id, (seq, crc)) in heads {
        let plain = dir.join(format!("{id}.wal.jsonl"));
        let packed = dir.join(format!("{id}.wal.jsonl.gz"));
        let mut text = vec![];
        if plain.exists() {
            text = std::fs::read(&plain)?;
        } else if packed.exists() {
            flate2::read::GzDecoder::new(std::fs::File::open(&packed)?).read_to_end(&mut text)?;
        } else if seq > 0 {
            found.push(format!("{id}: {seq} lines committed and no log file"));
            continue;
        }
        match chain(&text) {
            Err(fault) => found.push(format!("{id}: log: {fault}")),
            Ok(head) if head != (seq, crc) => {
                found.push(format!("{id}: log ends at {head:?}, the store at {:?}", (seq, crc)));
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

fn chain(text: &[u8]) -> Result<(i64, i64), String> {
    const MARK: &[u8] = b",\"crc\":\"";
    let (mut seq, mut crc) = (0_i64, 0_u32);
    if !text.is_empty() && text.last() != Some(&b'\n') {
        return Err("torn tail".into());
    }
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let record: Value =
            serde_json::from_slice(line).map_err(|error| format!("line {}: {error}", seq + 1))?;
        let at = line.windows(MARK.len()).rposition(|window| window == MARK).ok_or("a line without seal")?;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&crc.to_le_bytes()), &line[..at]);
        seq += 1;
        if record["seq"] != seq {
            return Err(format!("line {seq} says it is {}", record["seq"]));
        }
        if record["crc"] != format!("{sum:08x}") {
            return Err(format!("line {seq}: its seal is broken"));
        }
        crc = sum;
    }
    Ok((seq, i64::from(crc)))
}
