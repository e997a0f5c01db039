//! The living parts of the daemon: chronos, dispatch, heartbeat, mailbox, signals, lifecycle.

pub mod attach_server;
pub mod claims;
pub mod dispatch;
pub mod heartbeat;
pub mod mailbox;
pub mod wallet;
