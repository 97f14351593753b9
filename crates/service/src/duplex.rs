//! What a connection is, whatever it is made of.

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection of either side, in plain text or not.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}
