//! Digests as image manifests and `sha256sum` write them.

use sha2::{Digest, Sha256};

/// `sha256:` and the digest.
pub(crate) fn sha256(content: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(content)))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
