//! Gzip in memory, bounded: what unpacks to more than the caller expects is refused, not stored.

use std::io::{self, ErrorKind, Read, Write};

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

/// The bytes packed.
///
/// # Errors
/// Only when memory is short.
pub fn pack(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4 + 64), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// The bytes unpacked, at most `limit` of them.
///
/// # Errors
/// When they are no gzip, are cut short, fail their checksum, or hold more.
pub fn unpack(packed: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    GzDecoder::new(packed).take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it holds more than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_reads_back_and_damage_is_told() {
        let text = b"{\"op\":\"append\"}\n".repeat(100);
        let packed = pack(&text).unwrap();
        assert!(packed.len() < text.len());
        assert_eq!(unpack(&packed, 10_000).unwrap(), text);
        assert!(unpack(&packed, 100).is_err());
        for cut in [0, 5, packed.len() / 2, packed.len() - 1] {
            assert!(unpack(&packed[..cut], 10_000).is_err(), "cut {cut}");
        }
        let mut bad = packed.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 0xff;
        assert!(unpack(&bad, 10_000).is_err());
    }
}
