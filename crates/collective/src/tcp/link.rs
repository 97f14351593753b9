//! The connection to one rank, which never blocks once the group is complete.

use crate::Peer;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::Connection;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

/// Bytes given to a socket or taken from it at once, so that many connections share a thread fairly.
const PIECE: usize = 1024 * 1024;
/// Bytes that TLS encrypts ahead of the socket.
const TLS_BUFFER: usize = 256 * 1024;

/// A connection to a rank.
pub(super) struct Link {
    pub peer: Peer,
    stream: TcpStream,
    tls: Option<Box<Connection>>,
}

impl Link {
    /// A connection whose handshakes are done.
    pub fn new(peer: Peer, stream: TcpStream, tls: Option<Connection>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let tls = tls.map(|mut connection| {
            connection.set_buffer_limit(Some(TLS_BUFFER));
            Box::new(connection)
        });
        Ok(Self { peer, stream, tls })
    }

    /// Another handle of the same socket.
    pub fn handle(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    /// Takes over some of the bytes to be sent; 0 if it cannot now.
    pub fn send_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        let Some(tls) = &mut self.tls else { return unless_blocked(self.stream.write(piece)) };
        let n_taken = tls.writer().write(piece)?;
        self.flush()?;
        Ok(n_taken)
    }

    /// Whether all bytes taken over are with the operating system, after another try.
    pub fn flush(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        while tls.wants_write() {
            if unless_blocked(tls.write_tls(&mut self.stream))? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether bytes that were taken over wait for the socket.
    pub fn has_unsent(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Why the connection broke, as the system tells once.
    pub fn failure(&self) -> io::Error {
        let told = self.stream.take_error().unwrap_or_else(Some);
        told.unwrap_or_else(|| io::Error::new(io::ErrorKind::ConnectionReset, "it reset the connection"))
    }

    /// Ends the connection at once: what was not sent yet is lost, and the other end sees an error.
    pub fn reset(self) {
        let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        // A socket that cannot be told so is closed in order, which the other end sees when it waits for this rank.
        let _ = setsockopt(&self.stream, sockopt::Linger, &at_once);
    }

    /// Receives some bytes; 0 if there are none now.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the rank has closed the connection.
    pub fn receive_some(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n_most = bytes.len().min(PIECE);
        let place = &mut bytes[..n_most];
        let Some(tls) = &mut self.tls else {
            return unless_blocked(self.stream.read(place).and_then(not_closed));
        };
        loop {
            match tls.reader().read(place) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other.and_then(not_closed),
            }
            if unless_blocked(tls.read_tls(&mut self.stream).and_then(not_closed))? == 0 {
                return Ok(0);
            }
            tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn not_closed(n_bytes: usize) -> io::Result<usize> {
    match n_bytes {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
        n_bytes => Ok(n_bytes),
    }
}

fn unless_blocked(moved: io::Result<usize>) -> io::Result<usize> {
    match moved {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}
