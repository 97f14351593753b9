//! Requests as the servers of these tests see them.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;

/// A request; line and headers are in lower case.
pub struct Request {
    pub line: String,
    pub headers: String,
    pub body: Vec<u8>,
}

impl Request {
    /// Reads the next one of a connection.
    pub fn read(stream: &TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a head");
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_lowercase());
        }
        let length = lines.iter().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.expect("a length").parse().expect("a number")];
        reader.read_exact(&mut body).expect("a body");
        Self { line: lines.remove(0), headers: lines.join("\n"), body }
    }
}
