//! What others want to hear about a commit: the text of the write-ahead log that it made durable.
//! The projection into files is built on it; the store never waits for a file.

/// One mandate's share of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committed {
    /// Lines that are durable from now on, without their newlines, in order.
    Lines {
        /// Which mandate.
        mandate: String,
        /// Sequence number and line.
        lines: Vec<(u64, String)>,
    },
    /// The mandate has ended: no further line will come unless a person retries it.
    Ended {
        /// Which mandate.
        mandate: String,
    },
}

/// Hears of commits.
pub trait CommitSink: Send + Sync + 'static {
    /// Called on the writer thread after each commit that has something to tell, in the order of
    /// the commits and before the requests are answered. It should hand over and return: whatever
    /// it takes is added to every commit. It must not call the store.
    fn committed(&self, batch: Vec<Committed>);
}

/// Where the chain of a mandate's log stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalHead {
    /// Which mandate.
    pub mandate: String,
    /// True when it has ended.
    pub ended: bool,
    /// Sequence number of its last line; 0 before the first.
    pub seq: u64,
    /// Chained crc of its last line; 0 before the first.
    pub crc: u32,
}
