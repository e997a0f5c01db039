//! Ed25519 keys and signatures of plugins, and how they are written down.
//!
//! What is signed is [`DOMAIN`] followed by the 32 bytes of the file's sha256, so that a signature
//! of something else is never one of a plugin. `FILE.so.sig` holds one signature a line: 64 bytes
//! as hex or base64, and after a space the public key that it is of, which makes nobody trusted but
//! tells a changed file from an unknown signer. Without it the line is tried with every trusted
//! key. No error of this module repeats what it was given: it could be a secret.

use std::path::{Path, PathBuf};

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

use crate::sys::entropy::Entropy;

/// Goes before the digest that is signed.
pub const DOMAIN: &[u8] = b"kairos-plugin-signature-v1\0";

/// Starts a secret key's text, so that it is never taken for a public one.
const SECRET: &str = "kairos-plugin-secret-key-v1:";

/// Most lines of a signature file that are looked at.
const MAX_SIGNATURES: usize = 16;

/// What is wrong with a key or a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes as hex or base64, or no point of the curve.
    #[error("it is no public key: 32 bytes as hex or base64 are wanted")]
    NotPublic,
    /// The secret half of a pair, where the public one belongs.
    #[error("it is a secret key; give the public one, which `kairos plugin keygen` wrote beside it")]
    IsSecret,
    /// Not what `kairos plugin keygen` writes.
    #[error("it is no secret key of `kairos plugin keygen`")]
    NotSecret,
}

/// Where the signature of a file lies: `FILE.sig`.
#[must_use]
pub fn signature_file(plugin: &Path) -> PathBuf {
    let mut name = plugin.as_os_str().to_owned();
    name.push(".sig");
    PathBuf::from(name)
}

/// A new pair.
#[must_use]
pub fn generate(entropy: &dyn Entropy) -> SigningKey {
    let mut seed = [0_u8; 32];
    entropy.fill(&mut seed);
    SigningKey::from_bytes(&seed)
}

/// The text of a secret key file.
#[must_use]
pub fn secret_text(key: &SigningKey) -> String {
    format!("{SECRET}{}\n", hex::encode(key.as_bytes()))
}

/// The key of a secret key file.
///
/// # Errors
/// [`KeyError::NotSecret`].
pub fn secret_of(text: &str) -> Result<SigningKey, KeyError> {
    let body = text.trim().strip_prefix(SECRET).ok_or(KeyError::NotSecret)?;
    let seed: [u8; 32] = bytes(body).ok_or(KeyError::NotSecret)?;
    Ok(SigningKey::from_bytes(&seed))
}

/// The text of a public key.
#[must_use]
pub fn public_text(key: &VerifyingKey) -> String {
    hex::encode(key.as_bytes())
}

/// The public key in a text.
///
/// # Errors
/// [`KeyError::IsSecret`], [`KeyError::NotPublic`]. A weak key, which accepts forged signatures,
/// is none.
pub fn public_of(text: &str) -> Result<VerifyingKey, KeyError> {
    if text.trim().starts_with(SECRET) {
        return Err(KeyError::IsSecret);
    }
    let point: [u8; 32] = bytes(text).ok_or(KeyError::NotPublic)?;
    let key = VerifyingKey::from_bytes(&point).map_err(|_| KeyError::NotPublic)?;
    if key.is_weak() { Err(KeyError::NotPublic) } else { Ok(key) }
}

/// The text of a signature of the file with this content.
#[must_use]
pub fn sign(key: &SigningKey, content: &[u8]) -> String {
    let signature = key.sign(&message(&Sha256::digest(content)));
    format!("{} {}\n", hex::encode(signature.to_bytes()), public_text(&key.verifying_key()))
}

/// What a signature file says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a, K> {
    /// One of the keys signed it.
    By(&'a K),
    /// This key, which is none of them, signed it.
    Stranger(VerifyingKey),
    /// There is a signature, and it is not of this content; by the line's own word it is of that
    /// key, if of any.
    Changed(Option<&'a K>),
    /// There is no signature in it.
    Unreadable,
}

/// Judges the text of a signature file of the file of this sha256 (hex). Of several lines the one
/// that says most for the file counts.
#[must_use]
pub fn judge<'a, K>(
    text: &str,
    sha256: &str,
    keys: impl Iterator<Item = (&'a K, VerifyingKey)> + Clone,
) -> Verdict<'a, K> {
    let message = message(&hex::decode(sha256).unwrap_or_default());
    // Strict: one signature has one form, and weak keys sign nothing.
    let fits = |key: &VerifyingKey, signature: &Signature| key.verify_strict(&message, signature).is_ok();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(MAX_SIGNATURES);
    let (mut stranger, mut changed) = (None, None);
    for (signature, of) in lines.filter_map(signed) {
        if let Some((owner, _)) = keys.clone().find(|(_, key)| fits(key, &signature)) {
            return Verdict::By(owner);
        }
        match of {
            Some(key) if fits(&key, &signature) => stranger = stranger.or(Some(key)),
            _ => {
                let known = keys.clone().find(|(_, key)| Some(*key) == of).map(|(owner, _)| owner);
                changed = Some(changed.flatten().or(known));
            }
        }
    }
    match (changed, stranger) {
        // That a trusted key signed something else outweighs what anybody signs.
        (Some(Some(owner)), _) => Verdict::Changed(Some(owner)),
        (_, Some(key)) => Verdict::Stranger(key),
        (Some(None), None) => Verdict::Changed(None),
        (None, None) => Verdict::Unreadable,
    }
}

/// A line's signature and the key that it names.
fn signed(line: &str) -> Option<(Signature, Option<VerifyingKey>)> {
    let mut words = line.split_ascii_whitespace();
    let signature = Signature::from_bytes(&bytes::<64>(words.next()?)?);
    let key = match words.next() {
        Some(word) => Some(public_of(word).ok()?),
        None => None,
    };
    words.next().is_none().then_some((signature, key))
}

fn message(digest: &[u8]) -> Vec<u8> {
    [DOMAIN, digest].concat()
}

/// `N` bytes as hex or as base64 with its padding.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.trim();
    let decoded = if text.len() == 2 * N { hex::decode(text).ok()? } else { base64(text)? };
    decoded.try_into().ok()
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let body = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - body.len() > 2 {
        return None;
    }
    let (mut out, mut held, mut bits) = (Vec::with_capacity(body.len()), 0_u32, 0_u32);
    for byte in body.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from(held >> bits & 0xff).ok()?);
        }
    }
    // Bits that are left over must be none, or one key would have many texts.
    (held & ((1 << bits) - 1) == 0).then_some(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::sys::entropy::SeededEntropy;

    #[test]
    fn a_signature_holds_for_its_file_and_its_key_only() {
        let ours = generate(&SeededEntropy::new(1));
        let other = generate(&SeededEntropy::new(2));
        let sha = |content: &[u8]| hex::encode(Sha256::digest(content));
        let keys = [("other", other.verifying_key()), ("ours", ours.verifying_key())];
        let who = |text: &str, content: &[u8]| {
            let verdict = judge(text, &sha(content), keys.iter().map(|(name, key)| (name, *key)));
            match verdict {
                Verdict::By(name) => (*name).to_owned(),
                Verdict::Changed(of) => format!("changed {}", of.unwrap_or(&"?")),
                Verdict::Stranger(_) => "stranger".to_owned(),
                Verdict::Unreadable => "unreadable".to_owned(),
            }
        };
        let text = sign(&ours, b"plugin");
        assert_eq!(who(&text, b"plugin"), "ours");
        assert_eq!(who(&text, b"plug1n"), "changed ours");
        assert_eq!(who(&format!("garbage\n\n{text}"), b"plugin"), "ours");
        // Without the key's name: the signature is tried with every key.
        let bare = text.split(' ').next().unwrap().to_owned();
        assert_eq!(who(&bare, b"plugin"), "ours");
        assert_eq!(who(&bare, b"plug1n"), "changed ?");
        let stranger = sign(&generate(&SeededEntropy::new(3)), b"plugin");
        assert_eq!(who(&stranger, b"plugin"), "stranger");
        assert_eq!(who(&stranger, b"plug1n"), "changed ?");
        assert_eq!(who(&format!("{stranger}{}", sign(&ours, b"plug1n")), b"plugin"), "changed ours");
        assert_eq!(who(&format!("{}{text}", sign(&ours, b"plug1n")), b"plugin"), "ours");
        for garbage in
            ["", "\n\n", "garbage", &bare[1..], &format!("{bare} key"), &format!("{} x", text.trim())]
        {
            assert_eq!(who(garbage.trim_end_matches('\n'), b"plugin"), "unreadable", "{garbage:?}");
        }
        // The same bytes, signed for another purpose.
        let purpose = hex::encode(ours.sign(&Sha256::digest(b"plugin")).to_bytes());
        assert_eq!(who(&purpose, b"plugin"), "changed ?");
        for at in 0..text.trim().len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let said = who(&String::from_utf8(changed).unwrap(), b"plugin");
            // A changed name of the key does not harm: the signature is still of a trusted one.
            assert!(said != "ours" || at > bare.len(), "at {at}: {said}");
        }
    }

    #[test]
    fn keys_are_read_as_hex_and_base64_and_never_mixed_up() {
        let key = generate(&SeededEntropy::new(3));
        let public = key.verifying_key();
        assert_eq!(public_of(&format!(" {}\n", public_text(&public))), Ok(public));
        let secret = secret_text(&key);
        assert_eq!(secret_of(&secret).map(|key| key.verifying_key()), Ok(public));
        assert_eq!(public_of(&secret), Err(KeyError::IsSecret));
        assert_eq!(secret_of(&public_text(&public)).err(), Some(KeyError::NotSecret));
        for text in ["", "zz", "AAAA", &"0".repeat(64), &"f".repeat(63), &"ü".repeat(32)] {
            assert_eq!(public_of(text), Err(KeyError::NotPublic), "{text:?}");
        }
    }

    #[test]
    fn base64_is_read_strictly() {
        assert_eq!(base64("aGVsbG8="), Some(b"hello".to_vec()));
        assert_eq!(base64("aGVsbG8h"), Some(b"hello!".to_vec()));
        assert_eq!(base64("+/+/"), Some(vec![0xfb, 0xff, 0xbf]));
        for text in ["aGVsbG8", "aGVsbG9=", "a===", "aG Vs", "aGVs=G8="] {
            assert_eq!(base64(text), None, "{text:?}");
        }
    }
}
