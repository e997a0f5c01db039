//! Seams: everything that makes a run differ from the last one (time, chance, files, zones, locks)
//! enters the host here, with its fake beside it.

pub mod clock;
pub mod descriptors;
pub mod entropy;
pub mod files;
pub mod guardian;
pub mod gz;
pub mod lock;
pub mod place;
pub mod priority;
pub mod processor_time;
pub mod sandbox;
pub mod sibling;
pub mod zones;
