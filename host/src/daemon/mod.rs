//! The living parts of the daemon: chronos, dispatch, heartbeat, mailbox, signals, lifecycle.

pub mod attach_server;
pub mod chronos;
pub mod claims;
pub mod dispatch;
pub mod engine;
pub mod heartbeat;
pub mod lifecycle;
pub mod mailbox;
pub mod service_manager;
pub mod signals;
pub mod swap;
pub mod vitals;
pub mod wallet;
pub mod work;
