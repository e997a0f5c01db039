//! The reading half of a store that stands before another one: it never lies, so it passes on. Shared
//! with the simulation of `kairos-tests`.

/// Every reading operation of `Store`, answered by the store in this field.
macro_rules! reads_pass_to {
    ($inner:ident) => {
        fn day(&self, day: &str) -> Result<DayTotals> {
            self.$inner.day(day)
        }
        fn schedules(&self) -> Result<Vec<ScheduleState>> {
            self.$inner.schedules()
        }
        fn schedule(&self, name: &str) -> Result<Option<ScheduleState>> {
            self.$inner.schedule(name)
        }
        fn settled_ahead(&self) -> Result<Vec<(String, DateTime<Utc>)>> {
            self.$inner.settled_ahead()
        }
        fn mandates(&self, filter: &MandateFilter) -> Result<Vec<MandateRow>> {
            self.$inner.mandates(filter)
        }
        fn mandate(&self, id: &str) -> Result<MandateRow> {
            self.$inner.mandate(id)
        }
        fn cycles(&self, id: &str) -> Result<Vec<CycleRow>> {
            self.$inner.cycles(id)
        }
        fn steps(&self, id: &str) -> Result<Vec<StepRow>> {
            self.$inner.steps(id)
        }
        fn occurrence(&self, schedule: &str, nominal: DateTime<Utc>) -> Result<OccurrenceRow> {
            self.$inner.occurrence(schedule, nominal)
        }
        fn occurrences(&self, schedule: &str, limit: usize) -> Result<Vec<OccurrenceRow>> {
            self.$inner.occurrences(schedule, limit)
        }
        fn wal_lines(&self, id: &str, from: u64) -> Result<Vec<String>> {
            self.$inner.wal_lines(id, from)
        }
        fn wal_heads(&self, open_only: bool) -> Result<Vec<WalHead>> {
            self.$inner.wal_heads(open_only)
        }
        fn counts(&self) -> Result<Counts> {
            self.$inner.counts()
        }
        fn events(&self, after: i64, limit: usize) -> Result<Vec<EventRow>> {
            self.$inner.events(after, limit)
        }
        fn stats(&self) -> StoreStats {
            self.$inner.stats()
        }
    };
}
pub(crate) use reads_pass_to;
