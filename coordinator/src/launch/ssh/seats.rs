//! Which host each worker runs on, and on which card of it.

use crate::cards::worker_environment;
use config::{ComputeDevice, Determinism, HostSection, RunConfig};
use std::collections::BTreeMap;

/// The slots of all hosts of a run, in the order of the config: one host is filled before the next.
#[derive(Clone, Debug)]
pub(super) struct HostSeats {
    hosts: Vec<HostSection>,
    device: ComputeDevice,
    determinism: Determinism,
}

/// Where a worker runs.
#[derive(Clone, Debug)]
pub(super) struct HostSeat<'a> {
    /// The host.
    pub host: &'a HostSection,
    /// Its card there, if the run gives each worker one.
    pub card: Option<String>,
}

impl HostSeats {
    pub(super) fn of(config: &RunConfig) -> Self {
        let (device, determinism) = (config.resources.device, config.run.determinism);
        Self { hosts: config.hosts.clone(), device, determinism }
    }

    /// The seat of the worker at a position: the same in every life, however many there are.
    pub(super) fn seat(&self, mut position: usize) -> Option<HostSeat<'_>> {
        for host in &self.hosts {
            if position < host.slots.count() {
                let card = host.slots.card(position).filter(|_| self.device == ComputeDevice::Cuda);
                return Some(HostSeat { host, card });
            }
            position -= host.slots.count();
        }
        None
    }

    /// What the environment of a worker there has: what its card and the run's determinism ask for, and the host's own.
    pub(super) fn environment(&self, seat: &HostSeat<'_>) -> Vec<(String, String)> {
        let own = &seat.host.environment;
        let is_set = |name: &str| own.contains_key(name);
        let made = worker_environment(self.device, seat.card.as_deref(), self.determinism, is_set);
        let made = made.into_iter().map(|(name, value)| (name.to_owned(), value));
        let all: BTreeMap<String, String> = made.chain(own.clone()).collect();
        all.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::Slots;

    fn seats(device: ComputeDevice) -> HostSeats {
        let host = |address: &str, slots| HostSection {
            address: address.to_owned(),
            slots,
            programs: "".into(),
            environment: BTreeMap::from([("HF_HOME".to_owned(), "/data".to_owned())]),
        };
        let cards = Slots::Cards(vec!["3".to_owned(), "3".to_owned()]);
        let hosts = vec![host("a", Slots::Count(2)), host("b", cards)];
        HostSeats { hosts, device, determinism: Determinism::Strict }
    }

    #[test]
    fn one_host_is_filled_before_the_next_and_each_worker_has_its_card() {
        let seats = seats(ComputeDevice::Cuda);
        let told = (0..5).map(|position| {
            let seat = seats.seat(position)?;
            Some(format!("{} {}", seat.host.address, seat.card.unwrap_or_default()))
        });
        let expected = [Some("a 0"), Some("a 1"), Some("b 3"), Some("b 3"), None];
        assert_eq!(told.collect::<Vec<_>>(), expected.map(|seat| seat.map(str::to_owned)));
    }

    #[test]
    fn a_workers_environment_has_its_card_what_bits_need_and_the_hosts_own() {
        let environment = |device| {
            let seats = seats(device);
            let all = seats.environment(&seats.seat(1).expect("a slot"));
            all.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let on_card = environment(ComputeDevice::Cuda);
        for expected in [
            "CUDA_VISIBLE_DEVICES=1",
            "CUDA_DEVICE_ORDER=PCI_BUS_ID",
            "FLOW_RL_DETERMINISM=strict",
            "HF_HOME=/data",
        ] {
            assert!(on_card.iter().any(|variable| variable == expected), "{on_card:?}");
        }
        let on_cpu = environment(ComputeDevice::Cpu);
        assert_eq!(on_cpu, ["CUDA_VISIBLE_DEVICES=", "FLOW_RL_DETERMINISM=strict", "HF_HOME=/data"]);
    }
}
