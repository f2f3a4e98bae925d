//! API keys. Kept as HMAC-SHA-256 digests under a random per-process pepper and compared in constant time; the keys
//! themselves are forgotten as soon as they are read.

use std::sync::Arc;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

/// The shortest key that is accepted: 128 random bits in base64.
pub const MIN_KEY_LEN: usize = 22;
/// The longest.
pub const MAX_KEY_LEN: usize = 512;

/// A key file that cannot be used. Never carries a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A key is too short, too long, or holds characters that cannot travel in a header.
    #[error(
        "line {line}: a key must be {MIN_KEY_LEN} to {MAX_KEY_LEN} visible ASCII characters (for example from `openssl rand -hex 16`)"
    )]
    Malformed {
        /// Counts from 1.
        line: usize,
    },
    /// The same key twice.
    #[error("line {line}: the key occurs twice")]
    Duplicate {
        /// Counts from 1.
        line: usize,
    },
    /// No key at all; an empty file must not mean "open to everyone".
    #[error("no key in the key file")]
    Empty,
}

/// What a key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRole {
    /// The API.
    User,
    /// The API and the administrative routes.
    Admin,
}

/// Who is asking: decides what is allowed and which prefix-cache domain is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// No keys are configured.
    Open,
    /// The key with this index.
    Key {
        /// Its place in the file; also its name in the log.
        index: usize,
        /// What it opens.
        role: KeyRole,
    },
}

impl Caller {
    /// Whether the caller has shown an admin key.
    pub(crate) fn is_admin(self) -> bool {
        matches!(self, Caller::Key { role: KeyRole::Admin, .. })
    }
}

/// The configured keys.
#[derive(Clone)]
pub struct ApiKeys {
    pepper: [u8; 32],
    keys: Arc<[(KeyDigest, KeyRole)]>,
}

type KeyDigest = [u8; 32];

impl ApiKeys {
    /// No keys: every route is open.
    pub fn none() -> Self {
        ApiKeys { pepper: [0; 32], keys: Arc::from([]) }
    }

    /// Reads a key file: one key per line, `admin ` before a key that opens the administrative routes too; empty lines
    /// and lines that start with `#` are skipped.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut pepper = [0; 32];
        getrandom::fill(&mut pepper).expect("the operating system gives random bytes");
        let mut keys: Vec<(KeyDigest, KeyRole)> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, role) = match line.strip_prefix("admin ") {
                Some(key) => (key.trim(), KeyRole::Admin),
                None => (line, KeyRole::User),
            };
            let is_printable = key.bytes().all(|byte| byte.is_ascii_graphic());
            if !is_printable || !(MIN_KEY_LEN..=MAX_KEY_LEN).contains(&key.len()) {
                return Err(KeyError::Malformed { line: line_number });
            }
            let digest = digest(&pepper, key.as_bytes());
            if keys.iter().any(|(known, _)| bool::from(known.ct_eq(&digest))) {
                return Err(KeyError::Duplicate { line: line_number });
            }
            keys.push((digest, role));
        }
        if keys.is_empty() { Err(KeyError::Empty) } else { Ok(ApiKeys { pepper, keys: keys.into() }) }
    }

    /// Whether no key is configured.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key's owner, if the key is known. Looks at every key whatever it finds, so that the time tells nothing.
    pub(crate) fn find(&self, key: &[u8]) -> Option<Caller> {
        let digest = digest(&self.pepper, key);
        let mut found = None;
        for (index, (known, role)) in self.keys.iter().enumerate() {
            let is_equal: Choice = known.ct_eq(&digest);
            if bool::from(is_equal) {
                found = Some(Caller::Key { index, role: *role });
            }
        }
        found
    }
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKeys({} keys)", self.keys.len())
    }
}

fn digest(pepper: &[u8; 32], key: &[u8]) -> KeyDigest {
    let mut mac = Hmac::<Sha256>::new_from_slice(pepper).expect("HMAC takes a key of any length");
    mac.update(key);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "user-0123456789abcdef0123";
    const ADMIN: &str = "boss-0123456789abcdef0123";

    #[test]
    fn only_listed_keys_are_found_with_their_roles() {
        let keys = ApiKeys::parse(&format!("# team\n\n{USER}\nadmin {ADMIN}\n")).unwrap();
        assert_eq!(keys.find(USER.as_bytes()), Some(Caller::Key { index: 0, role: KeyRole::User }));
        assert_eq!(keys.find(ADMIN.as_bytes()), Some(Caller::Key { index: 1, role: KeyRole::Admin }));
        assert_eq!(keys.find(b""), None);
        assert_eq!(keys.find(&USER.as_bytes()[1..]), None);
        assert_eq!(keys.find(format!("admin {ADMIN}").as_bytes()), None);
    }

    #[test]
    fn weak_files_are_refused_without_repeating_a_key() {
        let error = |text: &str| ApiKeys::parse(text).unwrap_err();
        assert_eq!(error("# nothing\n"), KeyError::Empty);
        assert_eq!(error("short"), KeyError::Malformed { line: 1 });
        assert_eq!(error(&format!("{USER}\nadmin {USER}")), KeyError::Duplicate { line: 2 });
        assert!(!error("\n\u{e9}-secret-0123456789abcdef").to_string().contains("secret"));
    }

    #[test]
    fn debug_output_shows_no_digest() {
        assert_eq!(format!("{:?}", ApiKeys::parse(USER).unwrap()), "ApiKeys(1 keys)");
    }
}
