//! The `kairos` program.
fn main() {}
