//! The frames that a daemon and its worker exchange: a length, a kind, an id and a payload.
//!
//! ```text
//! u32 LE: bytes that follow | u8: kind | u64 LE: id | payload (JSON, or bytes as the kind says)
//! ```
//!
//! Whatever arrives may be garbage: a plugin can write on any descriptor of its process. Nothing
//! here allocates by what a frame claims, only by what has come, and a stream that broke the rules
//! once is not read any further.

/// Most bytes of a payload. Fifty times the largest context window of a model as text would not
/// fit; what a runner hands over is a mandate, a request or a report. It bounds what one worker
/// can make the daemon hold.
pub const MAX_PAYLOAD: usize = 8 << 20;

/// Bytes before the payload.
pub const HEAD: usize = 4 + REST;

/// Bytes of kind and id, which the length counts.
const REST: usize = 1 + 8;

/// A buffer that has grown beyond this is given back when it is empty.
const KEEP: usize = 256 << 10;

/// The buffer that every stream begins with: several frames of the usual size.
const FIRST: usize = 8 << 10;

/// Least room to read into; below it the buffer is cleared up, or grows to twice its size.
const ROOM: usize = 4 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Daemon: be this runner. The first frame of a worker's life.
    Load = 1,
    /// Daemon: run a cycle; 8 bytes of deadline, then the mandate.
    Run = 2,
    /// Daemon: say whether you could work.
    Probe = 3,
    /// Daemon: give your state.
    Export = 4,
    /// Daemon: take over this state.
    Import = 5,
    /// Daemon: the result of a call.
    Answer = 6,
    /// Daemon: the error of a call.
    Refusal = 7,
    /// Daemon: one byte, whether the cycle should stop.
    Stopping = 8,
    /// Daemon, on the control socket: look whether you should stop.
    Nudge = 9,
    /// Daemon, on the control socket: no new cycle will come.
    Drain = 10,
    /// Worker: loaded. By then the plugin runs in it, so it says nothing of itself here.
    Ready = 33,
    /// Worker: cannot be loaded, and why.
    Unfit = 34,
    /// Worker: a call of the context; one byte of length, the method, the request.
    Call = 35,
    /// Worker: should I stop?
    Ask = 36,
    /// Worker: a line for the log.
    Log = 37,
    /// Worker: the result of what was asked for.
    Done = 38,
    /// Worker: the error of what was asked for.
    Failed = 39,
    /// Worker: how far it has confined itself. Sent once, before a byte of the plugin is mapped.
    Confined = 40,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 18] = [
        Self::Load,
        Self::Run,
        Self::Probe,
        Self::Export,
        Self::Import,
        Self::Answer,
        Self::Refusal,
        Self::Stopping,
        Self::Nudge,
        Self::Drain,
        Self::Ready,
        Self::Unfit,
        Self::Call,
        Self::Ask,
        Self::Log,
        Self::Done,
        Self::Failed,
        Self::Confined,
    ];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Ties an answer to its question.
    pub id: u64,
    /// The rest.
    pub payload: Vec<u8>,
}

/// Why a stream of frames cannot be read on, or a frame not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It claims, or has, more than [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes; at most {MAX_PAYLOAD} are taken")]
    TooLong(u64),
    /// It claims less than every frame has.
    #[error("a frame of {0} bytes, which is no frame")]
    TooShort(u32),
    /// Nothing of ours.
    #[error("a frame of the unknown kind {0}")]
    UnknownKind(u8),
    /// The stream ended inside of a frame.
    #[error("the stream ended in the middle of a frame")]
    Cut,
    /// A frame that does not belong there.
    #[error("a frame {0:?} that does not belong there")]
    OutOfPlace(Kind),
    /// A payload that its kind does not have.
    #[error("a frame {0:?} with an unreadable payload")]
    BadPayload(Kind),
}

/// A frame's bytes, the payload given in parts.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn encode(kind: Kind, id: u64, parts: &[&[u8]]) -> Result<Vec<u8>, FrameError> {
    let payload: usize = parts.iter().map(|part| part.len()).sum();
    if payload > MAX_PAYLOAD {
        return Err(FrameError::TooLong(payload as u64));
    }
    let length = u32::try_from(REST + payload).expect("the cap is far below 4 GiB");
    let mut bytes = Vec::with_capacity(HEAD + payload);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend_from_slice(&id.to_le_bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    Ok(bytes)
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes that have come, and room behind them.
    bytes: Vec<u8>,
    /// What of `bytes` has been given out already.
    from: usize,
    /// What of `bytes` has come.
    to: usize,
}

impl Decoder {
    /// Where the next bytes of the stream go; [`Decoder::came`] says how many did.
    pub fn room(&mut self) -> &mut [u8] {
        if self.is_empty() {
            (self.from, self.to) = (0, 0);
            if self.bytes.len() > KEEP {
                self.bytes.truncate(KEEP);
                self.bytes.shrink_to(KEEP);
            }
        }
        if self.bytes.len() - self.to < ROOM {
            self.bytes.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
            if self.bytes.len() - self.to < ROOM {
                self.bytes.resize(FIRST.max(2 * self.bytes.len()), 0);
            }
        }
        &mut self.bytes[self.to..]
    }

    /// So many bytes have come into the room that was given.
    ///
    /// # Panics
    /// More than there was room for.
    pub fn came(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes.len() - self.to, "{bytes} bytes in less room");
        self.to += bytes;
    }

    /// Takes bytes that have come elsewhere.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.room();
            let fits = bytes.len().min(room.len());
            let (now, later) = bytes.split_at(fits);
            room[..fits].copy_from_slice(now);
            self.came(fits);
            bytes = later;
        }
    }

    /// The next whole frame, if it has come.
    ///
    /// # Errors
    /// What is no frame; there is no way on from it.
    pub fn take(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.bytes[self.from..self.to];
        let Some(head) = rest.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head);
        // Judged before anything else is waited for: a length that cannot be is the end.
        let after = usize::try_from(length).unwrap_or(usize::MAX);
        if after < REST {
            return Err(FrameError::TooShort(length));
        }
        if after > REST + MAX_PAYLOAD {
            return Err(FrameError::TooLong(u64::from(length)));
        }
        let Some(kind) = rest.get(4) else { return Ok(None) };
        let kind = Kind::of(*kind).ok_or(FrameError::UnknownKind(*kind))?;
        let Some(body) = rest.get(4..4 + after) else { return Ok(None) };
        let id = body[1..].first_chunk::<8>().expect("the length was checked");
        let frame = Frame { kind, id: u64::from_le_bytes(*id), payload: body[REST..].to_vec() };
        self.from += 4 + after;
        Ok(Some(frame))
    }

    /// True when nothing of a frame has come.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.from == self.to
    }
}

/// Payload of a [`Kind::Call`]: method and request.
#[must_use]
pub fn split_call(payload: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = payload.split_first()?;
    let (method, request) = rest.split_at_checked(usize::from(*length))?;
    Some((std::str::from_utf8(method).ok()?, request))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(decoder: &mut Decoder) -> Result<Vec<Frame>, FrameError> {
        let mut found = Vec::new();
        while let Some(frame) = decoder.take()? {
            found.push(frame);
        }
        Ok(found)
    }

    fn check_refused(bytes: &[u8], error: &FrameError) {
        let mut decoder = Decoder::default();
        decoder.feed(bytes);
        assert_eq!(decoder.take().as_ref(), Err(error), "{bytes:?}");
    }

    #[test]
    fn frames_come_back_however_the_stream_is_cut() {
        let frames: Vec<Frame> = Kind::ALL
            .into_iter()
            .zip([0_usize, 1, 7, 300, 70_000].into_iter().cycle())
            .enumerate()
            .map(|(id, (kind, size))| Frame { kind, id: id as u64, payload: vec![id as u8; size] })
            .collect();
        let stream: Vec<u8> = frames
            .iter()
            .flat_map(|frame| encode(frame.kind, frame.id, &[&frame.payload]).unwrap())
            .collect();
        for step in [1, 2, 3, 13, 1000, 65_536, stream.len()] {
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for piece in stream.chunks(step) {
                decoder.feed(piece);
                found.extend(all(&mut decoder).unwrap());
            }
            assert_eq!(found, frames, "in pieces of {step}");
            assert!(decoder.is_empty());
        }
    }

    #[test]
    fn a_buffer_grows_with_what_comes_and_shrinks_when_it_is_empty() {
        let mut decoder = Decoder::default();
        let large = encode(Kind::Done, 1, &[&vec![7; MAX_PAYLOAD]]).unwrap();
        for _ in 0..2 {
            decoder.feed(&large[..large.len() - 1]);
            assert_eq!(decoder.take(), Ok(None));
            assert!(decoder.bytes.len() <= 2 * large.len(), "{}", decoder.bytes.len());
            decoder.feed(&large[large.len() - 1..]);
            assert_eq!(decoder.take().unwrap().unwrap().payload.len(), MAX_PAYLOAD);
            assert_eq!(decoder.room().len(), KEEP);
            assert!(decoder.bytes.capacity() <= 2 * KEEP, "{}", decoder.bytes.capacity());
        }
        let small = encode(Kind::Done, 2, &[&[1; 100]]).unwrap();
        for _ in 0..10_000 {
            decoder.feed(&small);
            decoder.feed(&small[..50]);
            assert!(decoder.take().unwrap().is_some());
            decoder.feed(&small[50..]);
            assert!(decoder.take().unwrap().is_some());
        }
        assert_eq!(decoder.bytes.len(), KEEP, "what is taken makes room");
    }

    #[test]
    fn what_is_no_frame_is_refused_by_its_first_bytes() {
        check_refused(&[0xff; 4], &FrameError::TooLong(u64::from(u32::MAX)));
        check_refused(&[8, 0, 0, 0], &FrameError::TooShort(8));
        check_refused(&[9, 0, 0, 0, 99], &FrameError::UnknownKind(99));
        let long = u32::try_from(REST + MAX_PAYLOAD + 1).unwrap();
        check_refused(&long.to_le_bytes(), &FrameError::TooLong(u64::from(long)));
        assert_eq!(
            encode(Kind::Done, 1, &[&vec![0; MAX_PAYLOAD], &[0]]),
            Err(FrameError::TooLong(MAX_PAYLOAD as u64 + 1))
        );
    }

    #[test]
    fn a_claim_of_many_bytes_reserves_none() {
        let mut decoder = Decoder::default();
        decoder.feed(&u32::try_from(REST + MAX_PAYLOAD).unwrap().to_le_bytes());
        decoder.feed(&[Kind::Done as u8]);
        assert_eq!(decoder.take(), Ok(None));
        assert!(decoder.bytes.capacity() <= FIRST, "{}", decoder.bytes.capacity());
    }

    #[test]
    fn a_call_is_split_or_refused() {
        assert_eq!(split_call(b"\x03llm{}"), Some(("llm", b"{}".as_slice())));
        assert_eq!(split_call(b"\x03llm"), Some(("llm", b"".as_slice())));
        for bad in [b"".as_slice(), b"\x04llm", b"\x02\xff\xfe"] {
            assert_eq!(split_call(bad), None, "{bad:?}");
        }
    }
}
