//! Files that are not what they should be: refused, named, never replaced.

use std::path::PathBuf;

use super::*;
use crate::store::sqlite::schema::{Migration, VERSION, copy_name, migrate};

/// A closed store with one mandate in it.
fn closed() -> (tempfile::TempDir, PathBuf) {
    let Bench { store, dir } = on_file();
    let bench = Bench { store, dir: None };
    bench.add_manual("m");
    bench.close().wait().unwrap();
    let path = bench.path().unwrap().to_owned();
    (dir.unwrap(), path)
}

fn open_at(path: &Path) -> Result<SqliteStore> {
    SqliteStore::open(OpenOptions { path: path.to_owned(), sink: None })
}

#[test]
fn a_damaged_file_is_refused_by_name_with_a_remedy_and_left_alone() {
    type Damage = fn(&mut Vec<u8>);
    let cases: [(&str, Damage); 5] = [
        ("emptied", |bytes| bytes.clear()),
        ("cut in the first page", |bytes| bytes.truncate(50)),
        ("cut in half", |bytes| bytes.truncate(bytes.len() / 2)),
        ("overwritten", |bytes| bytes.fill(b'x')),
        ("zeroed", |bytes| bytes.fill(0)),
    ];
    for (name, damage) in cases {
        let (_dir, path) = closed();
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        for error in [open_at(&path).unwrap_err(), SqliteStore::read_only(&path).unwrap_err()] {
            let Error::Damaged { path: named, remedy, .. } = &error else { panic!("{name}: {error}") };
            assert_eq!(named, &path.display().to_string());
            assert!(remedy.contains("restore"), "{error}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{name}: the bad bytes stay");
    }
}

#[test]
fn a_log_without_its_file_is_damage_and_not_a_fresh_start() {
    let bench = on_file();
    bench.add_manual("m");
    let path = bench.path().unwrap().to_owned();
    drop(bench.store);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(open_at(&path), Err(Error::Damaged { .. })));
    assert!(!path.exists());
}

#[test]
fn a_full_check_finds_what_opening_does_not() {
    let (_dir, path) = closed();
    SqliteStore::full_check(&path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    // The last page belongs to a table or an index; its header is made nonsense.
    let last = bytes.len() - 4096;
    bytes[last..last + 16].fill(0xFF);
    std::fs::write(&path, &bytes).unwrap();
    let Err(Error::Damaged { detail, .. }) = SqliteStore::full_check(&path) else { panic!("it is damaged") };
    assert!(!detail.is_empty());
}

#[test]
fn a_file_of_another_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs(x)").unwrap();
    let Err(Error::Damaged { detail, .. }) = open_at(&path) else { panic!("it is not ours") };
    assert!(detail.contains("another program"), "{detail}");
}

#[test]
fn a_newer_schema_is_refused_untouched() {
    let (_dir, path) = closed();
    let conn = Connection::open(&path).unwrap();
    conn.pragma_update(None, "user_version", VERSION + 1).unwrap();
    drop(conn);
    for error in [open_at(&path).unwrap_err(), SqliteStore::read_only(&path).unwrap_err()] {
        assert!(
            matches!(error, Error::Newer { found, known, .. } if (found, known) == (VERSION + 1, VERSION))
        );
    }
}

#[test]
fn a_migration_copies_the_file_first_and_may_be_run_again() {
    let (_dir, path) = closed();
    let steps = [Migration {
        from: VERSION,
        sql: "ALTER TABLE meta ADD COLUMN note TEXT; UPDATE meta SET note='new';",
    }];
    let copy = copy_name(&path, VERSION);
    for _ in 0..2 {
        let mut conn = Connection::open(&path).unwrap();
        migrate(&mut conn, Some(&path), &steps, VERSION + 1).unwrap();
        assert_eq!(
            conn.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0)).unwrap(),
            VERSION + 1
        );
    }
    let old = SqliteStore::read_only(&copy).unwrap();
    assert_eq!(old.mandate("m").unwrap().state, MandateState::Queued);
    let broken = [Migration { from: VERSION + 1, sql: "UPDATE meta SET note='half'; NONSENSE;" }];
    let mut conn = Connection::open(&path).unwrap();
    migrate(&mut conn, Some(&path), &broken, VERSION + 2).unwrap_err();
    assert_eq!(conn.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0)).unwrap(), VERSION + 1);
}

#[test]
fn modes_that_durability_rests_on_are_set() {
    let bench = on_file();
    let (mode, level, automatic) = bench
        .run(|txn| {
            let ask = |sql: &str| -> fail::Res<String> {
                Ok(txn.conn.query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0)).map(
                    |value| match value {
                        rusqlite::types::Value::Text(text) => text,
                        other => format!("{other:?}"),
                    },
                )?)
            };
            Ok((ask("PRAGMA journal_mode")?, ask("PRAGMA synchronous")?, ask("PRAGMA wal_autocheckpoint")?))
        })
        .wait()
        .unwrap();
    assert_eq!((mode.as_str(), level.as_str(), automatic.as_str()), ("wal", "Integer(2)", "Integer(0)"));
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(bench.path().unwrap()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the store belongs to its owner alone");
}

#[test]
fn a_reader_looks_beside_the_daemon_and_after_it_and_cannot_write() {
    let bench = on_file();
    let path = bench.path().unwrap().to_owned();
    bench.add_manual("m");
    let reader = SqliteStore::read_only(&path).unwrap();
    assert_eq!(reader.mandate("m").unwrap().id, "m");
    bench.add_manual("n");
    assert_eq!(reader.counts().unwrap().queued, 2, "it sees what is committed since");
    assert!(matches!(reader.add(manual("x")).wait(), Err(Error::Closed)));
    bench.close().wait().unwrap();
    let after = SqliteStore::read_only(&path).unwrap();
    assert_eq!(after.mandates(&MandateFilter::default()).unwrap().len(), 2);
    let nowhere = SqliteStore::read_only(Path::new("/nowhere/store.db"));
    assert!(matches!(nowhere, Err(Error::NotFound { kind: "store", .. })));
}

#[test]
fn mandates_are_found_by_state_schedule_and_time() {
    on_both(|store| {
        let schedule = spec("s", SchedulePolicy::default());
        store.adopt(vec![adopt("s", 0)]).wait().unwrap();
        store.fire(fire(10, vec![evaluation(&schedule, (0, 10), &[10])])).wait().unwrap();
        for (id, second) in [("a", 20), ("b", 30), ("c", 40)] {
            store.add(NewMandate { now: at(second), ..manual(id) }).wait().unwrap();
        }
        store.command("b".into(), MandateCommand::Stop { note: None }, at(50)).wait().unwrap();
        let ids = |filter: MandateFilter| -> Vec<String> {
            store.mandates(&filter).unwrap().into_iter().map(|row| row.id).collect()
        };
        let any = MandateFilter::default;
        assert_eq!(ids(any()), ["c", "b", "a", "20261122T090010Z-s-0"], "newest first");
        assert_eq!(ids(MandateFilter { limit: 2, ..any() }), ["c", "b"]);
        assert_eq!(ids(MandateFilter { states: vec![MandateState::Cancelled], ..any() }), ["b"]);
        assert_eq!(ids(MandateFilter { states: vec![MandateState::Queued], limit: 1, ..any() }), ["c"]);
        assert_eq!(ids(MandateFilter { schedule: Some("s".into()), ..any() }), ["20261122T090010Z-s-0"]);
        assert_eq!(ids(MandateFilter { since: Some(at(20)), until: Some(at(40)), ..any() }), ["b", "a"]);
        assert!(matches!(store.mandate("gone"), Err(Error::NotFound { kind: "mandate", .. })));
    });
}
