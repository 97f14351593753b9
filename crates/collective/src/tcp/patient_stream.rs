//! A connection during its handshakes: it blocks, but not past a deadline, nor when nobody wants it any more.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How often it is looked whether the connection is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// A stream whose reads and writes end by a deadline.
pub(super) struct PatientStream<'a> {
    pub stream: TcpStream,
    pub deadline: Instant,
    /// Whether the handshake has become pointless.
    pub is_unwanted: &'a (dyn Fn() -> bool + Sync),
}

impl PatientStream<'_> {
    fn until_done(&mut self, mut step: impl FnMut(&mut TcpStream) -> io::Result<usize>) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(LOOK))?;
        self.stream.set_write_timeout(Some(LOOK))?;
        loop {
            match step(&mut self.stream) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if Instant::now() >= self.deadline || (self.is_unwanted)() {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

impl Read for PatientStream<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.until_done(|stream| stream.read(bytes))
    }
}

impl Write for PatientStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until_done(|stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
