//! The network of one host by way of `tests/relay/relay.py`, which delays, loses, cuts or damages its packets.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::hosts::{Host, Hosts};
use crate::repository;

/// What happens to packets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weather {
    /// Mean delay in each direction, in milliseconds.
    pub delay_ms: u32,
    /// Share of packets that are lost.
    pub loss: f64,
    /// Whether nothing reaches the host.
    pub cut_to: bool,
    /// Whether nothing leaves the host.
    pub cut_from: bool,
    /// Share of packets of which one bit is turned.
    pub damage: f64,
    /// Likewise, with a checksum that fits.
    pub hidden_damage: f64,
}

/// Packets to which something was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Treated {
    /// Those that came late.
    pub delayed: u64,
    /// Those that did not come.
    pub lost: u64,
    /// Those of which a bit was turned.
    pub damaged: u64,
}

/// A host's only connection; ends with its relay.
pub struct Link {
    relay: Child,
    answers: BufReader<ChildStdout>,
}

impl Link {
    /// Puts a relay between a host and the switch.
    ///
    /// # Errors
    /// What this machine lacks for it, in words.
    pub fn between(hosts: &Hosts, host: &Host) -> Result<Self, String> {
        let (outer, inner) = (format!("outer{}", host.number()), format!("inner{}", host.number()));
        let mut command = Command::new("python3");
        command.arg(repository().join("tests/relay/relay.py")).args([&outer, &inner]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let started = hosts.on_switch(move || command.spawn()).join().map_err(|_| "no switch".to_owned())?;
        let mut relay = started.map_err(|error| format!("`python3` does not start: {error}"))?;
        let answers = BufReader::new(relay.stdout.take().ok_or("no pipe")?);
        let mut link = Self { relay, answers };
        match link.answer()?.as_str() {
            "ready" => {}
            _ => return Err(ENDED.to_owned()),
        }
        hosts.reconnect(host, &outer, &inner)?;
        Ok(link)
    }

    fn answer(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|error| error.to_string())?;
        Ok(line.trim().to_owned())
    }

    /// Has packets treated like that from now on; returns what was done to packets since the last time.
    ///
    /// # Errors
    /// If the relay has ended.
    pub fn set(&mut self, weather: Weather) -> Result<Treated, String> {
        let Weather { delay_ms, loss, cut_to, cut_from, damage, hidden_damage } = weather;
        let (to, from) = (u8::from(cut_to), u8::from(cut_from));
        let pipe = self.relay.stdin.as_mut().ok_or("no pipe")?;
        let sent = writeln!(pipe, "{delay_ms} {delay_ms} {loss} {to} {from} {damage} {hidden_damage}");
        sent.map_err(|error| format!("the relay ended: {error}"))?;
        treated(&self.answer()?).ok_or_else(|| ENDED.to_owned())
    }
}

const ENDED: &str = "the relay ended: it needs /dev/net/tun and CAP_NET_ADMIN";

fn treated(answer: &str) -> Option<Treated> {
    let mut words = answer.strip_prefix("done ")?.split(' ');
    let mut next = || words.next()?.parse().ok();
    Some(Treated { delayed: next()?, lost: next()?, damaged: next()? })
}

impl Drop for Link {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.relay.kill();
        let _ = self.relay.wait();
    }
}
