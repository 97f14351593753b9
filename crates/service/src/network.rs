//! Addresses of this host: where to listen, and what to tell others to reach it by.

use config::{PortRange, host_and_ports};
use nix::ifaddrs::getifaddrs;
use protocol::with_causes;
use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted.
pub const BACKLOG: u32 = 1024;

/// Why a process cannot be reached as it was told to.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The text is no address of this host.
    #[error("`{text}` is no address, interface or subnet of this host, which has {}", shown(addresses))]
    NotHere {
        /// As given.
        text: String,
        /// What there is.
        addresses: Vec<(String, IpAddr)>,
    },
    /// It listens where others cannot reach it, or says so.
    #[error("{0}")]
    Unreachable(String),
    /// Nobody can listen there.
    #[error("cannot listen at {place}: {source}; {remedy}")]
    Listen {
        /// Where.
        place: String,
        /// Why not.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The system does not tell its addresses.
    #[error("the system does not tell this host's addresses: {0}")]
    System(#[source] io::Error),
}

impl NetworkError {
    /// Whether all ports asked for are somebody's already.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

/// Where a process listens: a number, interface or subnet, and its ports, as in `eth0:7100-7199` or `[::1]:0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// A number, interface or subnet.
    pub host: String,
    /// The ports that may be taken.
    pub ports: PortRange,
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        host_and_ports(text).map(|(host, ports)| Self { host, ports })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&joined(&self.host, &self.ports.to_string()))
    }
}

impl ListenAddress {
    /// The number that it stands for on this host.
    ///
    /// # Errors
    /// If it is none of this host's.
    pub fn resolve(&self) -> Result<IpAddr, NetworkError> {
        match self.host.parse() {
            Ok(number) => Ok(number),
            Err(_) => local(&self.host, &addresses()?),
        }
    }

    /// Listens at the first of its ports that is free.
    ///
    /// # Errors
    /// If none is, or this host has no such address.
    pub async fn bind(&self) -> Result<TcpListener, NetworkError> {
        self.first_free(|place| taken(place)?.listen(BACKLOG))
    }

    /// Takes the first of its ports that is free and does not listen yet: until then there is nobody to wait for.
    ///
    /// # Errors
    /// As [`ListenAddress::bind`].
    pub fn take(&self) -> Result<TcpSocket, NetworkError> {
        self.first_free(taken)
    }

    fn first_free<T>(&self, take: impl Fn(SocketAddr) -> io::Result<T>) -> Result<T, NetworkError> {
        let host = self.resolve()?;
        let mut last = None;
        for port in self.ports.ports() {
            match take((host, port).into()) {
                Ok(taken) => return Ok(taken),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = Some(error),
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                    return Err(NetworkError::NotHere { text: host.to_string(), addresses: addresses()? });
                }
                Err(source) => {
                    let remedy =
                        "choose an address of this host, or an interface or subnet, and a port above 1023";
                    return Err(NetworkError::Listen {
                        place: joined(&host.to_string(), &port.to_string()),
                        source,
                        remedy,
                    });
                }
            }
        }
        let source = last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into());
        let remedy = "choose another port or a wider range, 0 for any free one";
        Err(NetworkError::Listen {
            place: joined(&host.to_string(), &self.ports.to_string()),
            source,
            remedy,
        })
    }
}

fn taken(place: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if place.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(place)?;
    Ok(socket)
}

/// What others are told to reach a listener by: `advertise` (a number, host name, interface or subnet) if it is not empty,
/// else where it listens; where that is everywhere, this host's address on the way to `peer`, or its only one.
///
/// # Errors
/// If that would be everywhere, a loopback for others, another host's where only this one listens, or is not known.
pub fn advertised(listening: IpAddr, advertise: &str, peer: Option<IpAddr>) -> Result<String, NetworkError> {
    let found = match advertise {
        "" if !listening.is_unspecified() => listening.to_string(),
        "" => {
            // Where only addresses of the one kind are listened at, one of the other is nobody's.
            let fits = |number: &IpAddr| listening.is_ipv6() || number.is_ipv4();
            match of_way(peer).filter(|number| !number.is_loopback() && fits(number)) {
                Some(number) => number.to_string(),
                None => {
                    only(&addresses()?.into_iter().filter(|(_, number)| fits(number)).collect::<Vec<_>>())?
                }
            }
        }
        text => of_text(text, &addresses()?),
    };
    let number: Option<IpAddr> = found.parse().ok();
    if number.is_some_and(|number| number.is_unspecified()) {
        return Err(NetworkError::Unreachable(format!("{found} is no address that others can reach; {SET}")));
    }
    if is_loopback(&found) && !listening.to_canonical().is_loopback() {
        return Err(NetworkError::Unreachable(format!(
            "{found} is every host's own loopback, and this process listens at {listening} for others, too; {SET}"
        )));
    }
    if !is_loopback(&found) && listening.to_canonical().is_loopback() {
        return Err(NetworkError::Unreachable(format!(
            "others would be told {found}, and this process listens at {listening}, where only its own host reaches it; leave it \
             empty, or {BIND}"
        )));
    }
    Ok(found)
}

/// What people or scrapers are told to reach a listener by, `host:port`. It is not worth an error: where `advertise` and the
/// way to `peer` tell nothing that others can reach, this host's name is told.
pub fn told_address(listener: &TcpListener, advertise: &str, peer: Option<IpAddr>) -> String {
    let Ok(bound) = listener.local_addr() else { return String::new() };
    // Another name for this host does not lead to its loopback.
    let advertise = if bound.ip().to_canonical().is_loopback() { "" } else { advertise };
    let host = advertised(bound.ip(), advertise, peer).unwrap_or_else(|_| crate::host_name());
    joined(&host, &bound.port().to_string())
}

const SET: &str =
    "set `network.advertise` (`--advertise`) to an address, host name, interface or subnet of this host";

const BIND: &str =
    "listen for others (`network.bind`, `--listen`) at an address, interface or subnet of this host";

/// What a process says that does not reach another where that one told it to.
pub fn unreachable(who: &str, address: &str, error: &(dyn Error + 'static)) -> String {
    let causes = with_causes(error);
    format!(
        "the {who} cannot be reached at {address} from {}: set `network.advertise` where it runs (`--advertise`), or have that \
         port let through: {causes}",
        crate::host_name()
    )
}

/// `host:port`, with brackets where they are due.
pub fn joined(host: &str, port: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// Whether a host, by name or number, is this one's loopback.
pub fn is_loopback(host: &str) -> bool {
    let number: Option<IpAddr> = host.parse().ok();
    let is_name = || host == "localhost" || host.ends_with(".localhost");
    number.map_or_else(is_name, |number| number.to_canonical().is_loopback())
}

/// The address that this host speaks to another from; nothing is sent.
pub fn of_way(peer: Option<IpAddr>) -> Option<IpAddr> {
    let peer = peer?;
    let own: SocketAddr = if peer.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(own).ok()?;
    socket.connect((peer, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Addresses of this host by the interfaces that have them.
fn addresses() -> Result<Vec<(String, IpAddr)>, NetworkError> {
    let found = getifaddrs().map_err(|errno| NetworkError::System(errno.into()))?;
    let number = |address: nix::ifaddrs::InterfaceAddress| {
        let storage = address.address?;
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        let number = v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))?;
        Some((address.interface_name, number))
    };
    Ok(found.filter_map(number).collect())
}

/// What a text stands for if it is an interface or a subnet; anything else is taken as it is, as a host name.
fn of_text(text: &str, addresses: &[(String, IpAddr)]) -> String {
    local(text, addresses).map_or_else(|_| text.to_owned(), |number| number.to_string())
}

fn local(text: &str, addresses: &[(String, IpAddr)]) -> Result<IpAddr, NetworkError> {
    let subnet = Subnet::parse(text);
    let fits = |(interface, number): &&(String, IpAddr)| match subnet {
        Some(subnet) => subnet.contains(*number),
        None => interface == text,
    };
    let mut found: Vec<IpAddr> = addresses.iter().filter(fits).map(|(_, number)| *number).collect();
    // One that needs no zone first, and of these the shorter kind.
    found.sort_by_key(|number| (is_link_local(*number), number.is_ipv6()));
    let not_here = || NetworkError::NotHere { text: text.to_owned(), addresses: addresses.to_vec() };
    found.first().copied().ok_or_else(not_here)
}

/// The one address that others may reach this host by.
fn only(addresses: &[(String, IpAddr)]) -> Result<String, NetworkError> {
    let others = addresses.iter().filter(|(_, number)| !number.is_loopback() && !is_link_local(*number));
    let others: Vec<_> = others.cloned().collect();
    match &others[..] {
        [(_, number)] => Ok(number.to_string()),
        [] => {
            Err(NetworkError::Unreachable(format!("this host has no address that others can reach; {SET}")))
        }
        several => Err(NetworkError::Unreachable(format!(
            "this host has several addresses, {}; {SET}",
            shown(several)
        ))),
    }
}

fn is_link_local(number: IpAddr) -> bool {
    match number {
        IpAddr::V4(number) => number.is_link_local(),
        IpAddr::V6(number) => number.is_unicast_link_local(),
    }
}

fn shown(addresses: &[(String, IpAddr)]) -> String {
    addresses
        .iter()
        .map(|(interface, number)| format!("{number} ({interface})"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `10.1.0.0/16`
#[derive(Clone, Copy)]
struct Subnet {
    base: u128,
    is_v4: bool,
    /// Bits of 128 that count.
    length: u32,
}

impl Subnet {
    fn parse(text: &str) -> Option<Self> {
        let (base, length) = text.split_once('/')?;
        let (base, length): (IpAddr, u32) = (base.parse().ok()?, length.parse().ok()?);
        let offset = if base.is_ipv4() { 96 } else { 0 };
        (length + offset <= 128).then(|| Self {
            base: bits(base),
            is_v4: base.is_ipv4(),
            length: length + offset,
        })
    }

    fn contains(self, number: IpAddr) -> bool {
        let differing = (bits(number) ^ self.base).checked_shr(128 - self.length).unwrap_or(0);
        number.is_ipv4() == self.is_v4 && differing == 0
    }
}

fn bits(number: IpAddr) -> u128 {
    match number {
        IpAddr::V4(number) => u128::from(number.to_bits()),
        IpAddr::V6(number) => number.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(addresses: &[(&str, &str)]) -> Vec<(String, IpAddr)> {
        let parsed = |(name, number): &(&str, &str)| ((*name).to_owned(), number.parse().expect("a number"));
        addresses.iter().map(parsed).collect()
    }

    #[test]
    fn an_interface_or_a_subnet_stands_for_its_address() {
        let here = host(&[
            ("lo", "127.0.0.1"),
            ("eth0", "fe80::1"),
            ("eth0", "fd00::7"),
            ("eth0", "10.1.2.3"),
            ("ib0", "192.168.7.9"),
        ]);
        for (text, number) in [
            ("eth0", "10.1.2.3"),
            ("ib0", "192.168.7.9"),
            ("10.1.0.0/16", "10.1.2.3"),
            ("192.168.0.0/16", "192.168.7.9"),
            ("fd00::/8", "fd00::7"),
            ("0.0.0.0/0", "127.0.0.1"),
            ("192.168.7.9/32", "192.168.7.9"),
        ] {
            assert_eq!(local(text, &here).expect("here").to_string(), number, "{text}");
        }
        for text in ["eth1", "10.2.0.0/16", "fd01::/16", "10.1.0.0/33"] {
            let told = local(text, &here).expect_err("elsewhere").to_string();
            assert!(
                told.contains(&format!("`{text}` is no address")) && told.contains("10.1.2.3 (eth0)"),
                "{told}"
            );
        }
        assert_eq!(of_text("node-1.cluster", &here), "node-1.cluster", "a name is looked up by who connects");
    }

    #[test]
    fn the_only_address_is_taken_and_several_are_asked_about() {
        assert_eq!(
            only(&host(&[("lo", "::1"), ("eth0", "fe80::1"), ("eth0", "10.0.0.2")])).expect("one"),
            "10.0.0.2"
        );
        let told = only(&host(&[("a", "10.0.0.2"), ("b", "10.0.1.2")])).expect_err("two").to_string();
        assert!(told.contains("10.0.0.2 (a), 10.0.1.2 (b)") && told.contains("network.advertise"), "{told}");
        assert!(only(&host(&[("lo", "127.0.0.1")])).expect_err("none").to_string().contains("no address"));
    }

    #[test]
    fn nobody_is_told_an_address_that_means_himself() {
        let number = |text: &str| text.parse::<IpAddr>().expect("a number");
        assert_eq!(advertised(number("127.0.0.1"), "", None).expect("one host"), "127.0.0.1");
        assert_eq!(advertised(number("10.0.0.2"), "", None).expect("reachable"), "10.0.0.2");
        assert_eq!(advertised(number("0.0.0.0"), "node-1", None).expect("a name"), "node-1");
        for (listening, advertise) in
            [("10.0.0.2", "127.0.0.1"), ("0.0.0.0", "localhost"), ("::", "::1"), ("::", "lo")]
        {
            let told = advertised(number(listening), advertise, None).expect_err("a loopback").to_string();
            assert!(told.contains("loopback") && told.contains("network.advertise"), "{told}");
        }
        assert!(advertised(number("10.0.0.2"), "0.0.0.0", None).is_err());
        assert_eq!(advertised(number("127.0.0.1"), "localhost", None).expect("one host"), "localhost");
        for advertise in ["10.0.0.2", "node-1"] {
            let told = advertised(number("127.0.0.1"), advertise, None).expect_err("unreachable").to_string();
            assert!(
                told.contains(&format!("would be told {advertise}")) && told.contains("network.bind"),
                "{told}"
            );
        }
    }

    #[test]
    fn places_to_listen_at_are_read_and_shown() {
        for text in ["127.0.0.1:0", "[::]:7100", "eth0:7100-7199", "10.0.0.0/8:7"] {
            assert_eq!(text.parse::<ListenAddress>().expect("well-formed").to_string(), text);
        }
        for odd in ["", "7100", ":7100", "a:b", "[::1:7"] {
            assert!(odd.parse::<ListenAddress>().is_err(), "{odd}");
        }
    }

    #[tokio::test]
    async fn the_first_free_port_of_a_range_is_taken() {
        let any = "127.0.0.1:0".parse::<ListenAddress>().expect("well-formed").bind().await.expect("free");
        let taken = any.local_addr().expect("bound").port();
        let range = format!("127.0.0.1:{}-{}", taken, taken.saturating_add(20));
        let next = range.parse::<ListenAddress>().expect("well-formed").bind().await.expect("one is free");
        assert!(next.local_addr().expect("bound").port() > taken);
        let full = format!("127.0.0.1:{taken}").parse::<ListenAddress>().expect("well-formed");
        let told = full.bind().await.expect_err("taken").to_string();
        assert!(
            told.contains(&format!("cannot listen at 127.0.0.1:{taken}")) && told.contains("wider range"),
            "{told}"
        );
        let elsewhere = "192.0.2.1:0".parse::<ListenAddress>().expect("well-formed");
        let told = elsewhere.bind().await.expect_err("not here").to_string();
        assert!(told.contains("`192.0.2.1` is no address") && told.contains("127.0.0.1 (lo)"), "{told}");
    }
}
