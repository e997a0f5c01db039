//! What keeps a store fit over the years: letting old things go, copies, and taking over what other
//! files tell. Nothing here is needed to run a mandate.

mod logs;
