//! The example does what it says and ends by itself.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// It needs two seconds for its two fires.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn example_prints_what_happened_and_ends_by_itself() {
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_embed")).stdout(Stdio::piped()).spawn().expect("it was built");
    #[allow(clippy::disallowed_methods, reason = "a test measures its own patience")]
    let begun = Instant::now();
    while child.try_wait().expect("it is ours").is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().expect("it is ours");
            panic!("it did not end by itself");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().expect("it has ended");
    let text = String::from_utf8(output.stdout).expect("it prints text");
    assert!(output.status.success(), "{text}");
    assert!(text.contains("queued by hand: hello\na cycle ran: hello\n"), "{text}");
    assert_eq!(text.lines().filter(|line| line.ends_with("Z-tidy-0")).count(), 2, "{text}");
    assert!(text.contains("spent today: 3 calls, 360 tokens in, 90 out\n"), "{text}");
    assert!(text.ends_with("stopped: stopped\n"), "{text}");
}
