//! The living parts of the daemon: chronos, dispatch, heartbeat, mailbox, signals, lifecycle.

pub mod claims;
