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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    use super::super::enclosure;
    use super::*;

    #[test]
    fn only_a_relay_s_own_words_say_what_it_did() {
        assert_eq!(treated("done 1 22 333"), Some(Treated { delayed: 1, lost: 22, damaged: 333 }));
        for other in ["", "done", "done 1 2", "done 1 2 x", "ready"] {
            assert_eq!(treated(other), None, "{other}");
        }
    }

    /// Sends to a host behind a relay until the relay has treated a packet as it should.
    fn meet(link: &mut Link, sender: &Host, weather: Weather, count: fn(Treated) -> u64) {
        link.set(weather).expect("the relay lives");
        let deadline = Instant::now() + Duration::from_secs(120);
        let mut n_treated = 0;
        while n_treated == 0 {
            assert!(Instant::now() < deadline, "{weather:?} met no packet");
            let send = || UdpSocket::bind("10.77.0.1:0")?.send_to(&[7; 200], "10.77.0.2:9");
            sender.run(send).join().expect("the host is there").expect("sent");
            std::thread::sleep(Duration::from_millis(50));
            n_treated += count(link.set(weather).expect("the relay lives"));
        }
    }

    fn all_weathers() -> Result<(), String> {
        let hosts = Hosts::make(2)?;
        let mut link = Link::between(&hosts, &hosts.get(1))?;
        let (sender, fair) = (hosts.get(0), Weather::default());
        let mut meet = |weather, count| meet(&mut link, &sender, weather, count);
        meet(Weather { cut_to: true, ..fair }, |treated| treated.lost);
        meet(Weather { delay_ms: 20, ..fair }, |treated| treated.delayed);
        meet(Weather { damage: 1.0, ..fair }, |treated| treated.damaged);
        meet(Weather { hidden_damage: 1.0, ..fair }, |treated| treated.damaged);
        link.set(fair)?;
        assert_eq!(link.set(fair)?, Treated::default(), "fair weather leaves packets alone");
        Ok(())
    }

    #[test]
    fn a_relay_tells_what_it_did_to_packets() {
        const NAME: &str = "chaos::link::tests::a_relay_tells_what_it_did_to_packets";
        if let Err(missing) = enclosure::test_inside(NAME, all_weathers) {
            eprintln!("skipped: {missing}");
        }
    }
}
