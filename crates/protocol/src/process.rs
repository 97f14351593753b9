//! What a process says of itself when it joins.

use proto::Process;

/// Of the `.proto` files; grows when an older process would misunderstand a newer one.
pub const PROTOCOL_VERSION: u32 = 1;
/// Of these programs, which have one version in common.
pub const PROGRAM_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Bytes of what tells processes apart.
pub const NONCE_BYTES: usize = 16;

/// A process of this program, which drew that nonce when it began; it serves no metrics, and
/// what it computes on is not known.
pub fn process(nonce: [u8; NONCE_BYTES], host: &str, pid: u32) -> Process {
    Process {
        nonce: nonce.to_vec().into(),
        protocol_version: PROTOCOL_VERSION,
        program_version: PROGRAM_VERSION.to_owned(),
        host: host.to_owned(),
        pid,
        metrics_address: String::new(),
        host_kind: String::new(),
        card_kind: String::new(),
    }
}
