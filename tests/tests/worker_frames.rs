//! Frames that something has changed on the way: a decoder and a living worker are fed thousands
//! of them, grown from a corpus of good ones. Neither may fall over, hang, or take memory by what a
//! frame claims.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and read the clock")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kairos_host::runner::manifest::PluginFile;
use kairos_host::runner::worker::frame::{Decoder, Kind, encode};
use kairos_plugin_api::Mandate;
use kairos_plugin_api::adapter::Setup;
use kairos_tests::{PATIENCE, kairos, plugin};
use serde_json::json;

/// A small generator, so that a failure can be run again by its seed.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        use std::hash::{BuildHasher, Hasher};
        let seed = std::collections::hash_map::RandomState::new().build_hasher().finish() | 1;
        println!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap()
    }
}

/// What a daemon says to a worker of the stub.
fn corpus() -> Vec<Vec<u8>> {
    let path = plugin("stub");
    let file = PluginFile::open(&path).unwrap();
    let load = json!({
        "path": path, "sha256": file.sha256, "manifest": file.manifest,
        "setup": Setup::new(json!({})), "confinement": null, "memory_bytes": 4_u64 << 30,
    });
    let mandate = serde_json::to_vec(&Mandate::new("m", "be tested").with_param("log", "hear me")).unwrap();
    let deadline = i64::MAX.to_le_bytes();
    vec![
        encode(Kind::Load, 0, &[&serde_json::to_vec(&load).unwrap()]).unwrap(),
        encode(Kind::Run, 1, &[&deadline, &mandate]).unwrap(),
        encode(Kind::Probe, 2, &[]).unwrap(),
        encode(Kind::Export, 3, &[]).unwrap(),
        encode(Kind::Import, 4, &[b"{\"schema\":\"a\",\"data\":{}}"]).unwrap(),
        encode(Kind::Answer, 5, &[b"{}"]).unwrap(),
    ]
}

/// Changes a stream a little: a byte, a cut, a piece twice, a length.
fn mutate(stream: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.below(3) {
        let at = dice.below(stream.len());
        match dice.below(5) {
            0 if !stream.is_empty() => stream[at] ^= 1 << dice.below(8),
            1 => stream.truncate(at),
            2 => {
                let piece = stream[at..(at + dice.below(40)).min(stream.len())].to_vec();
                stream.splice(at..at, piece);
            }
            3 if stream.len() >= 4 => {
                let length = [0, 8, 9, 70_000, 8 << 20, 9 << 20, u32::MAX][dice.below(7)];
                stream[..4].copy_from_slice(&length.to_le_bytes());
            }
            _ => stream.extend((0..dice.below(30)).map(|n| u8::try_from(n).unwrap())),
        }
    }
}

#[test]
fn a_decoder_takes_any_bytes_and_what_it_gives_is_what_came() {
    let (mut dice, corpus) = (Dice::new(), corpus());
    for _ in 0..20_000 {
        let mut stream: Vec<u8> =
            (0..=dice.below(4)).flat_map(|_| corpus[dice.below(corpus.len())].clone()).collect();
        mutate(&mut stream, &mut dice);
        let (mut decoder, mut again) = (Decoder::default(), Vec::new());
        let piece = 1 + dice.below(500);
        'stream: for piece in stream.chunks(piece) {
            decoder.feed(piece);
            loop {
                match decoder.take() {
                    Ok(Some(frame)) => again.extend(encode(frame.kind, frame.id, &[&frame.payload]).unwrap()),
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
        }
        assert!(stream.starts_with(&again), "frames are the bytes that came");
    }
}

/// A worker without a daemon.
struct Live {
    child: Child,
    data: UnixStream,
    control: UnixStream,
}

fn live() -> Live {
    let (data, its_data) = UnixStream::pair().unwrap();
    let (control, its_control) = UnixStream::pair().unwrap();
    let child = Command::new(kairos())
        .arg("worker")
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(its_data)))
        .stdout(Stdio::from(OwnedFd::from(its_control)))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Live { child, data, control }
}

#[test]
fn a_living_worker_answers_or_ends_whatever_it_is_sent() {
    let (mut dice, corpus) = (Dice::new(), corpus());
    for round in 0..60 {
        let mut worker = live();
        let mut stream = corpus[0].clone();
        if round % 2 == 0 {
            mutate(&mut stream, &mut dice);
        }
        for _ in 0..dice.below(5) {
            let mut frame = corpus[1 + dice.below(corpus.len() - 1)].clone();
            mutate(&mut frame, &mut dice);
            stream.extend(frame);
        }
        // It may have closed already, which is an answer.
        let _ = worker.data.write_all(&stream);
        let mut hint = encode(Kind::Nudge, 0, &[]).unwrap();
        mutate(&mut hint, &mut dice);
        let _ = worker.control.write_all(&hint);
        let _ = worker.data.shutdown(std::net::Shutdown::Write);
        worker.data.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut said, mut decoder) = (Vec::new(), Decoder::default());
        if let Err(error) = worker.data.read_to_end(&mut said) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it hangs in round {round}");
        }
        decoder.feed(&said);
        while decoder.take().expect("a worker says frames and nothing else").is_some() {}
        drop(worker.control);
        assert!(ends(&mut worker.child), "it is there for ever in round {round}");
    }
}

fn ends(child: &mut Child) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let wait = Timespec::try_from(Duration::from_secs(60)).unwrap();
    let ready = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&wait)).unwrap();
    let _ = child.kill();
    let _ = child.wait();
    ready > 0
}
