//! What a fire does to schedules, occurrences and the queue.

use super::*;

#[test]
fn a_fire_moves_the_cursor_and_records_the_outcome() {
    on_both(|store| {
        let schedule = spec("daily", SchedulePolicy::default());
        store.adopt(vec![adopt("daily", 0)]).wait().unwrap();
        let mut evaluation = evaluation(&schedule, (0, 300), &[300]);
        evaluation.missed = vec![missed(60, 240, 4, "skip")];
        let outcome = store.fire(fire(301, vec![evaluation])).wait().unwrap();
        assert_eq!(outcome.fired.len(), 1);
        let state = store.schedule("daily").unwrap().unwrap();
        assert_eq!(
            (state.cursor, state.last_nominal, state.last_fired),
            (at(300), Some(at(300)), Some(at(301)))
        );
        let rows = store.occurrences("daily", 10).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (rows[0].outcome.as_str(), rows[0].mandate.as_deref()),
            ("fired", Some(&*outcome.fired[0].1))
        );
        assert_eq!((rows[1].reason.as_deref(), rows[1].count), (Some("skip"), 4));
        assert_eq!(store.occurrence("daily", at(120)).unwrap().count, 4);
        assert!(matches!(store.occurrence("daily", at(360)), Err(Error::NotFound { .. })));
    });
}
