//! The writer: what shares a commit, what fails alone, what stops everything.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use rusqlite::ffi;

use super::*;
use crate::store::sqlite::fail::Fail;

/// Holds the writer inside a transaction until the given thing is dropped, so that requests pile up.
fn hold(store: &SqliteStore) -> (Pending<()>, std::sync::mpsc::Sender<()>) {
    let (go, wait) = channel::<()>();
    let (inside, entered) = channel();
    let pending = store.run(move |_| {
        inside.send(()).unwrap();
        // Ends with an error when the sender is dropped, which is what is waited for.
        let _ = wait.recv_timeout(Duration::from_secs(20));
        Ok(())
    });
    entered.recv_timeout(Duration::from_secs(20)).unwrap();
    (pending, go)
}

#[test]
fn requests_that_wait_share_commits_and_one_failure_fails_alone() {
    on_both(|store| {
        let before = store.stats();
        let (held, go) = hold(store);
        // The first of its transaction, as the held one has used up the time of the one before.
        let gone = store.run(|txn| -> fail::Res<()> {
            txn.exec("INSERT INTO meta(key, value) VALUES('half', 1)", [])?;
            fail::conflict("no")
        });
        let good: Vec<_> = (0..40).map(|number| store.add(manual(&format!("m{number}")))).collect();
        let twice = store.add(manual("m7"));
        let more = store.add(manual("last"));
        drop(go);
        held.wait().unwrap();
        assert_eq!(gone.wait().unwrap_err().to_string(), "no");
        for added in good {
            assert!(added.wait().unwrap().created);
        }
        let half = store.look(|conn| txn::first(conn, "SELECT 1 FROM meta WHERE key='half'", [], |_| Ok(())));
        assert!(half.unwrap().is_none());
        assert!(matches!(twice.wait(), Err(Error::Conflict(_))));
        assert!(more.wait().unwrap().created);
        let after = store.stats();
        assert_eq!(after.requests - before.requests, 44);
        // A transaction takes no more in after some time, so a slow machine makes a few of them.
        assert!(after.commits - before.commits <= 10, "{} commits", after.commits - before.commits);
        assert_eq!(store.counts().unwrap().queued, 41);
    });
}

#[test]
fn a_failed_request_takes_back_all_it_did() {
    on_both(|store| {
        let failed = store.run(|txn| -> fail::Res<()> {
            txn.exec("INSERT INTO meta(key, value) VALUES('half', 1)", [])?;
            fail::conflict("no")
        });
        assert_eq!(failed.wait().unwrap_err().to_string(), "no");
        let broken = store.run(|txn| {
            txn.exec("INSERT INTO meta(key, value) VALUES('half', 1)", [])?;
            txn.exec("INSERT INTO meta(key, value) VALUES('half', 2)", [])
        });
        assert!(
            matches!(broken.wait(), Err(Error::Conflict(_))),
            "a constraint is the request's own trouble"
        );
        let left = store
            .look(|conn| txn::first(conn, "SELECT 1 FROM meta WHERE key='half'", [], |_| Ok(())))
            .unwrap();
        assert!(left.is_none());
        store.add_manual("m");
    });
}

#[test]
fn lazy_requests_keep_their_order_and_become_durable_by_themselves() {
    on_both(|store| {
        store.add_manual("m");
        let cycle = store.claim_one();
        let note = |seq| {
            let what = NoteKind::Answer { seq, name: "now".into(), value: json!(seq) };
            store.note(CycleNote {
                mandate: "m".into(),
                cycle: 1,
                attempt: cycle.mandate.attempt,
                now: at(1),
                what,
            })
        };
        let notes: Vec<_> = (1..=5).map(note).collect();
        for note in notes {
            note.wait().unwrap();
        }
        let sequence: Vec<_> = store.steps("m").unwrap().iter().map(|step| step.seq).collect();
        assert_eq!(sequence, [1, 2, 3, 4, 5]);
    });
}

#[test]
fn a_store_without_work_commits_nothing() {
    on_both(|store| {
        let before = store.stats().commits;
        let outcome = store.claim(claim(9)).wait().unwrap();
        assert!(outcome.claimed.is_empty() && outcome.blocked.is_none());
        assert_eq!(store.stats().commits, before);
    });
}

#[derive(Default)]
struct Heard(Mutex<Vec<Committed>>);

impl CommitSink for Heard {
    fn committed(&self, batch: Vec<Committed>) {
        self.0.lock().unwrap().extend(batch);
    }
}

#[test]
fn the_sink_hears_every_line_in_order_before_the_answer() {
    let heard = Arc::new(Heard::default());
    let store = SqliteStore::in_memory_with(Some(Arc::clone(&heard) as _)).unwrap();
    let bench = Bench { store, dir: None };
    bench.add_manual("m");
    let cycle = bench.claim_one();
    bench.begin_step(begin(&cycle, 1, calls(1), None)).wait().unwrap();
    bench.end(&cycle, CycleEnd::Done);
    let heard = std::mem::take(&mut *heard.0.lock().unwrap());
    let mut lines = Vec::new();
    for committed in &heard {
        if let Committed::Lines { mandate, lines: some } = committed {
            assert_eq!(mandate, "m");
            lines.extend(some.iter().cloned());
        }
    }
    let numbers: Vec<_> = lines.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let texts: Vec<_> = lines.into_iter().map(|(_, line)| line).collect();
    assert_eq!(texts, bench.wal_lines("m", 0).unwrap());
    assert_eq!(heard.last(), Some(&Committed::Ended { mandate: "m".into() }));
    let heads = bench.wal_heads(false).unwrap();
    assert_eq!((heads[0].ended, heads[0].seq), (true, texts.len() as u64));
    assert!(bench.wal_heads(true).unwrap().is_empty());
}

#[test]
fn a_failed_request_s_lines_are_not_heard() {
    let heard = Arc::new(Heard::default());
    let bench =
        Bench { store: SqliteStore::in_memory_with(Some(Arc::clone(&heard) as _)).unwrap(), dir: None };
    bench.add_manual("m");
    let refused = bench.run(|txn| -> fail::Res<()> {
        claim::claim(txn, &claim(1))?;
        fail::conflict("no")
    });
    refused.wait().unwrap_err();
    assert!(heard.0.lock().unwrap().is_empty());
    assert_eq!(bench.state("m"), MandateState::Queued);
}

#[test]
fn a_full_disk_refuses_and_work_goes_on_when_there_is_room() {
    on_both(|store| {
        store.add_manual("before");
        let limit = |pages: Option<i64>| {
            store
                .run(move |txn| {
                    let now: i64 = txn.conn.query_row("PRAGMA page_count", [], |row| row.get(0))?;
                    let sql = format!("PRAGMA max_page_count={}", pages.unwrap_or(now));
                    Ok(txn.conn.query_row(&sql, [], |row| row.get::<_, i64>(0))?)
                })
                .wait()
                .unwrap();
        };
        limit(None);
        let big = NewMandate { goal: "x".repeat(100_000), ..manual("big") };
        assert!(matches!(store.add(big.clone()).wait(), Err(Error::Full { .. })));
        assert_eq!(store.counts().unwrap().queued, 1, "nothing is lost, nothing is half there");
        limit(Some(1_000_000));
        assert!(store.add(big).wait().unwrap().created);
        store.add_manual("after");
    });
}

#[test]
fn a_store_that_cannot_be_written_says_so_and_goes_on_when_it_can() {
    on_both(|store| {
        let only =
            |on: &'static str| store.look_as_writer(move |conn| conn.pragma_update(None, "query_only", on));
        only("ON");
        assert!(matches!(store.add(manual("m")).wait(), Err(Error::ReadOnly { .. })));
        only("OFF");
        store.add_manual("m");
    });
}

#[test]
fn after_a_failed_sync_nothing_more_is_acknowledged() {
    for code in
        [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_DIR_FSYNC, ffi::SQLITE_IOERR_READ, ffi::SQLITE_CORRUPT]
    {
        on_both(|store| {
            store.add_manual("before");
            let (held, go) = hold(store);
            // Eager ones that share the transaction with the failure, and ones behind it.
            let broken = store.run(move |_| -> fail::Res<()> {
                Err(Fail::Sql(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)))
            });
            let behind = store.add(manual("behind"));
            drop(go);
            // The held one may have been committed before.
            let _ = held.wait();
            for error in [broken.wait().unwrap_err(), behind.wait().unwrap_err()] {
                assert!(matches!(error, Error::SyncFailed { .. } | Error::Damaged { .. }), "{error}");
            }
            assert!(store.add(manual("later")).wait().is_err());
            assert!(store.settle_step(settle_of("before")).wait().is_err());
            assert!(store.close().wait().is_err(), "it must not be marked as closed in order");
            if let Some(path) = store.path() {
                assert!(!open::clean_mark(path).exists());
            }
        });
    }
}

fn settle_of(mandate: &str) -> SettleStep {
    SettleStep {
        mandate: mandate.into(),
        cycle: 1,
        attempt: 1,
        seq: 1,
        state: StepState::Done,
        result: json!(null),
        usage: None,
        recovered: false,
        now: at(1),
    }
}

#[test]
fn the_log_is_written_back_and_does_not_grow_without_end() {
    let bench = on_file();
    let log = open::sidecar(bench.path().unwrap(), "-wal");
    let mut largest = 0;
    for number in 0..40 {
        let goal = "x".repeat(1_000_000);
        bench.add(NewMandate { goal, ..manual(&format!("m{number}")) }).wait().unwrap();
        largest = largest.max(std::fs::metadata(&log).unwrap().len());
    }
    assert!(largest < 16 << 20, "the log has {largest} bytes after 40 MB of commits");
    bench.close().wait().unwrap();
    assert!(std::fs::metadata(&log).map_or(0, |log| log.len()) == 0, "a closed store has nothing in its log");
}

#[test]
fn answers_can_be_awaited() {
    let bench = on_file();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let added = runtime.block_on(async {
        let added = bench.add(manual("m")).await.unwrap();
        // Looking from inside a runtime must not block on it.
        assert_eq!(bench.counts().unwrap().queued, 1);
        added
    });
    assert!(added.created);
}

#[test]
fn a_crash_among_waiting_requests_leaves_what_was_committed_before_it() {
    on_both(|store| {
        let (held, go) = hold(store);
        let before: Vec<_> = (0..5).map(|number| store.add(manual(&format!("m{number}")))).collect();
        let crashed = std::thread::scope(|scope| {
            let crash = scope.spawn(|| store.crash(None));
            drop(go);
            crash.join().unwrap().unwrap()
        });
        held.wait().unwrap();
        let acknowledged = before.into_iter().filter_map(|added| added.wait().ok()).count();
        assert_eq!(acknowledged, 5, "they came before it");
        assert_eq!(crashed.counts().unwrap().queued, 5);
        assert!(crashed.was_unclean());
    });
}
