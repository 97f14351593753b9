//! The servers of `tests/reward_servers` as real processes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::repository;

/// A running server; dropping it kills it.
pub struct ExampleServer {
    child: Child,
    pub url: String,
}

impl ExampleServer {
    /// Starts `NAME.py` with these arguments and waits until it listens.
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        let script = repository().join("tests/reward_servers").join(name).with_extension("py");
        let mut child = Command::new("python3")
            .arg("-B")
            .arg(script)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let mut url = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut url).expect("a line");
        assert!(url.starts_with("http://"), "{name} says {url:?}");
        Self { child, url: url.trim().to_owned() }
    }

    /// The port that it listens on.
    pub fn port(&self) -> &str {
        self.url.rsplit(':').next().expect("a port")
    }
}

impl Drop for ExampleServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
