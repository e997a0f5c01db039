//! Why nothing speaks for a file: each reason with a code of its own, since each wants something
//! else done.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::list::ListError;
use crate::runner::remedies;

/// Why a file is not trusted.
#[derive(Clone, Debug)]
pub enum Doubt {
    /// Its sha256 is not listed and it has no signature.
    Unknown,
    /// Its signature file holds no signature.
    Unreadable,
    /// Its signature is right, and of a key that is not trusted, or not any more.
    Stranger {
        /// The public key, as hex.
        key: String,
    },
    /// File and signature do not belong together.
    Changed {
        /// The trusted key that signed something else; none when the signature names no such key.
        of: Option<String>,
    },
    /// The list cannot be used, so nothing on it counts.
    List(Arc<ListError>),
}

impl Doubt {
    /// The stable word.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "untrusted",
            Self::Unreadable => "signature_unreadable",
            Self::Stranger { .. } => "signer_unknown",
            Self::Changed { .. } => "signature_mismatch",
            Self::List(error) => error.code(),
        }
    }

    /// What to do about it, in one line.
    #[must_use]
    pub fn remedy(&self) -> Cow<'static, str> {
        Cow::Borrowed(remedies::of(self.code()))
    }

    /// True when the file was changed after a trusted key had signed it, or its signature was: such
    /// a file runs nowhere, not even confined.
    #[must_use]
    pub fn is_tampering(&self) -> bool {
        matches!(self, Self::Changed { of: Some(_) })
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("its sha256 is not listed and it has no signature"),
            Self::Unreadable => f.write_str("its sha256 is not listed and its .sig holds no signature"),
            Self::Stranger { key } => write!(f, "it is signed by the key {key}, which is not trusted"),
            Self::Changed { of: Some(name) } => {
                write!(f, "it was changed after {name:?} had signed it, or its .sig was")
            }
            Self::Changed { of: None } => {
                f.write_str("its .sig is of another file, or of a key that is not trusted")
            }
            Self::List(error) => write!(f, "nothing can be trusted: {error}"),
        }
    }
}

/// By what they say: a list's error is no value to compare.
impl PartialEq for Doubt {
    fn eq(&self, other: &Self) -> bool {
        self.code() == other.code() && self.to_string() == other.to_string()
    }
}

impl Eq for Doubt {}
