//! What healing makes of files that were cut, damaged, lost or replaced.

use super::*;

/// Puts these bytes into the file of mandate `m`, heals, and checks that the file is as the store
/// has it and that a second healing finds nothing to do.
fn healed(fake: &Fake, bytes: Option<&[u8]>) -> (Option<Healed>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.wal.jsonl");
    if let Some(bytes) = bytes {
        fs::write(&path, bytes).unwrap();
    }
    let report = heal(dir.path(), fake, Utc::now()).unwrap();
    assert_eq!(report.failed, []);
    assert_eq!(fs::read(&path).unwrap(), fake.text("m"));
    let again = heal(dir.path(), fake, Utc::now()).unwrap();
    assert!(again.healed.is_empty(), "{:?}", again.healed);
    (report.healed.into_iter().next().map(|(_, healed)| healed), dir)
}

#[test]
fn every_changed_byte_is_healed_from_the_store_and_kept_aside() {
    let fake = Fake::default();
    fake.commit("m", 12);
    let good = fake.text("m");
    let last = good[..good.len() - 1].iter().rposition(|c| *c == b'\n').unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let (done, dir) = healed(&fake, Some(&bad));
        if at < last {
            assert!(matches!(done, Some(Healed::Rewritten { .. })), "offset {at}: {done:?}");
            assert_eq!(kept_pieces(dir.path(), ".corrupt-"), 1);
        } else {
            assert!(matches!(done, Some(Healed::Cut { .. })), "offset {at}: {done:?}");
            assert_eq!(kept_pieces(dir.path(), ".cut-"), 1);
        }
    }
    assert!(fake.reviewed().is_empty());
}

#[test]
fn every_cut_is_healed_and_nothing_is_appended_to_a_torn_line() {
    let fake = Fake::default();
    fake.commit("m", 12);
    let good = fake.text("m");
    for cut in 0..good.len() {
        let (done, dir) = healed(&fake, Some(&good[..cut]));
        let whole = cut == 0 || good[cut - 1] == b'\n';
        if whole {
            assert_eq!(done, Some(Healed::Appended), "cut {cut}");
        } else {
            assert!(matches!(done, Some(Healed::Cut { .. })), "cut {cut}: {done:?}");
            assert_eq!(kept_pieces(dir.path(), ".cut-"), 1);
        }
    }
}

#[test]
fn a_missing_file_is_written_whole_and_an_equal_one_left_alone() {
    let fake = Fake::default();
    fake.commit("m", 3);
    assert_eq!(healed(&fake, None).0, Some(Healed::Appended));
    assert_eq!(healed(&fake, Some(&fake.text("m"))).0, None);
}

#[test]
fn a_file_that_tells_more_or_another_story_sends_its_mandate_to_review() {
    let ahead = Fake::default();
    ahead.commit("m", 5);
    let longer = ahead.text("m");
    let rolled_back = Fake::default();
    rolled_back.commit("m", 3);
    let (done, dir) = healed(&rolled_back, Some(&longer));
    assert!(matches!(done, Some(Healed::Ahead { .. })));
    assert_eq!(rolled_back.reviewed(), ["m: wal_ahead_of_store"]);
    let kept = dir.path().join("m.wal.jsonl.ahead-1");
    assert_eq!(fs::read(kept).unwrap(), longer);

    let other = Fake::default();
    other.commit("x", 1);
    let mut logs = other.logs.lock().unwrap();
    let mut fields = Map::new();
    fields.insert("op".into(), json!("append"));
    let mut log = Log::default();
    log.lines.push(record::seal(&mut log.head, fields));
    logs.clear();
    logs.insert("m".into(), log);
    drop(logs);
    assert!(matches!(healed(&other, Some(&longer)).0, Some(Healed::Ahead { .. })));
    assert_eq!(other.reviewed().len(), 1);
}

#[test]
fn garbage_behind_a_whole_log_is_cut_and_no_reason_for_review() {
    let fake = Fake::default();
    fake.commit("m", 3);
    let torn = [fake.text("m"), b"{\"op\":\"transition\",\"st\0\xff".to_vec()].concat();
    assert!(matches!(healed(&fake, Some(&torn)).0, Some(Healed::Cut { .. })));
    assert!(fake.reviewed().is_empty());
}

#[test]
fn lines_of_the_reference_stay_in_front_and_are_healed_too() {
    let legacy = "{\"op\":\"plan_commit\",\"plan_id\":\"p\",\"ts\":\"t\"}\n{\"op\":\"plan_finalize\",\"plan_id\":\"p\"}";
    let fake = Fake::default();
    let mut log = Log {
        lines: vec![legacy.to_owned()],
        head: record::legacy_head(format!("{legacy}\n").as_bytes()),
        ..Log::default()
    };
    let mut fields = Map::new();
    fields.insert("op".into(), json!("append"));
    log.lines.push(record::seal(&mut log.head, fields));
    fake.logs.lock().unwrap().insert("m".into(), log);
    let good = fake.text("m");
    assert_eq!(record::verify(&good).legacy_lines, 2);
    assert_eq!(healed(&fake, Some(format!("{legacy}\n").as_bytes())).0, Some(Healed::Appended));
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        healed(&fake, Some(&bad));
    }
}

#[test]
fn one_log_that_cannot_be_healed_does_not_stop_the_others() {
    let fake = Fake::default();
    fake.commit("a", 2);
    fake.commit("m", 2);
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("a.wal.jsonl")).unwrap();
    fs::write(dir.path().join("stranger.wal.jsonl"), b"{\"op\":\"append\"}\n").unwrap();
    let report = heal(dir.path(), &fake, Utc::now()).unwrap();
    assert_eq!(report.failed.len(), 1);
    assert_eq!(report.failed[0].0, "a");
    assert_eq!(report.strangers, ["stranger"]);
    assert_eq!(fake.reviewed(), ["stranger: adopted"]);
    assert!(heal(dir.path(), &fake, Utc::now()).unwrap().strangers.is_empty());
    assert_eq!(fs::read(dir.path().join("m.wal.jsonl")).unwrap(), fake.text("m"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_are_healed(bytes in proptest::collection::vec(any::<u8>(), 0..600), lines in 1usize..4) {
        let fake = Fake::default();
        fake.commit("m", lines);
        healed(&fake, Some(&bytes));
    }

    #[test]
    fn any_mixture_of_good_and_bad_bytes_is_healed(
        edits in proptest::collection::vec((any::<u16>(), any::<u8>(), 0u8..3), 1..5)
    ) {
        let fake = Fake::default();
        fake.commit("m", 4);
        let mut bytes = fake.text("m");
        for (at, byte, how) in edits {
            let at = usize::from(at) % bytes.len().max(1);
            match how {
                0 if at < bytes.len() => bytes[at] = byte,
                1 => bytes.insert(at.min(bytes.len()), byte),
                _ => bytes.truncate(at),
            }
        }
        healed(&fake, Some(&bytes));
    }
}
