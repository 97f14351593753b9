//! Hosts on one machine: network namespaces with addresses of their own, joined by a bridge that leads nowhere else.
//!
//! Needs root (`CAP_SYS_ADMIN` and `CAP_NET_ADMIN`) and `ip` of iproute2; whoever lacks one of them hears which.

use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};

/// Hosts that reach each other by `10.77.0.N` and `fd77::N`, N from 1; they are gone when this is dropped.
pub struct Hosts {
    switch: String,
    hosts: Vec<Host>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    number: usize,
}

impl Hosts {
    /// So many hosts.
    ///
    /// # Errors
    /// What this machine lacks to make them, in words.
    pub fn make(n: usize) -> Result<Self, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            return Err(
                "hosts are network namespaces, which only root makes: run this test as root".to_owned()
            );
        }
        let prefix = format!("tf{}x{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        // Made before anything is in it, so that what was made so far goes whatever fails.
        let mut made = Self { switch: format!("{prefix}s"), hosts: Vec::new() };
        ip(&["netns", "add", &made.switch])?;
        ip(&["-n", &made.switch, "link", "add", "switch", "type", "bridge"])?;
        ip(&["-n", &made.switch, "link", "set", "switch", "up"])?;
        for number in 1..=n {
            let host = Host { name: format!("{prefix}h{number}"), number };
            made.hosts.push(host.clone());
            made.plug_in(&host)?;
        }
        Ok(made)
    }

    fn plug_in(&self, host: &Host) -> Result<(), String> {
        let (switch, name, port) = (self.switch.as_str(), host.name.as_str(), format!("port{}", host.number));
        ip(&["netns", "add", name])?;
        ip(&["-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", switch])?;
        ip(&["-n", switch, "link", "set", &port, "master", "switch", "up"])?;
        host.take_addresses()
    }

    /// Runs something where all hosts are plugged in, as `Host::run` does.
    pub fn on_switch<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        inside(&self.switch, work)
    }

    /// Connects a host by other devices of the switch: `inner` becomes its own, under the same addresses, and `outer` the
    /// switch's port for it.
    ///
    /// # Errors
    /// If there are no such devices.
    pub fn reconnect(&self, host: &Host, outer: &str, inner: &str) -> Result<(), String> {
        ip(&["-n", &host.name, "link", "del", "eth0"])?;
        ip(&["-n", &self.switch, "link", "set", inner, "netns", &host.name, "name", "eth0"])?;
        ip(&["-n", &self.switch, "link", "set", outer, "master", "switch", "up"])?;
        host.take_addresses()
    }

    /// One of them, from 0.
    pub fn get(&self, index: usize) -> Host {
        self.hosts[index].clone()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let names = self.hosts.iter().map(|host| &host.name).chain([&self.switch]);
        names.for_each(|name| drop(ip(&["netns", "del", name])));
    }
}

impl Host {
    /// The last part of its addresses.
    pub fn number(&self) -> usize {
        self.number
    }

    fn take_addresses(&self) -> Result<(), String> {
        let name = self.name.as_str();
        ip(&["-n", name, "addr", "add", &format!("{}/24", self.address()), "dev", "eth0"])?;
        ip(&["-n", name, "addr", "add", &format!("{}/64", self.address_v6()), "dev", "eth0", "nodad"])?;
        for link in ["lo", "eth0"] {
            ip(&["-n", name, "link", "set", link, "up"])?;
        }
        Ok(())
    }

    /// Where others reach it.
    pub fn address(&self) -> IpAddr {
        IpAddr::from([10, 77, 0, self.number as u8])
    }

    /// The same in version 6.
    pub fn address_v6(&self) -> IpAddr {
        IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, self.number as u16])
    }

    /// Runs something on this host, on a thread whose sockets, and those of the threads it starts, are the host's.
    ///
    /// # Panics
    /// If the host is gone.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        inside(&self.name, work)
    }
}

fn inside<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let path = PathBuf::from("/run/netns").join(name);
    std::thread::spawn(move || {
        let namespace = File::open(&path).expect("the host is there");
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("a thread may enter it");
        work()
    })
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let command = format!("ip {}", arguments.join(" "));
    let output = Command::new("ip").args(arguments).output();
    let output = output.map_err(|error| format!("`ip` (iproute2) is missing or does not start: {error}"))?;
    let told = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(format!("`{command}` fails, as where CAP_SYS_ADMIN or CAP_NET_ADMIN is missing: {told}"))
        }
    }
}
