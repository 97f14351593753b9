//! Thousands of random schedules: members die, hang, wedge and join, messages are late, lost and doubled, and the
//! coordinator starts again.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

const LIMITS: CellLimits = CellLimits {
    gather: Duration::from_millis(1000),
    prepare: Duration::from_millis(2000),
    form: Duration::from_millis(3000),
    sync: Duration::from_millis(4000),
    end: Duration::from_millis(2000),
};
/// When the faults are over, and when everything has to be settled after that.
const CALM: u64 = 40_000;
const SETTLED: u64 = CALM + 40_000;
/// From one look at the clock to the next.
const TICK: u64 = 100;

/// Numbers that look random: SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % n
    }

    fn happens(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

#[derive(Clone, Debug)]
enum Delivery {
    /// Of the coordinator that started so many times.
    ToLeader(u32, CellEvent<u32>),
    ToMember(u32, u32, MemberEvent),
    FromThread(u32, MemberEvent),
    Lost(u32),
    Start {
        is_root: bool,
    },
}

struct Node {
    machine: CellMember,
    is_root: bool,
    /// The epoch that the communicator's thread has something of, and whether it was told to form it.
    thread: Option<(u64, bool)>,
    is_hung: bool,
}

struct World {
    dice: Dice,
    start: Instant,
    now: u64,
    leader: CellLeader<u32>,
    n_leaders: u32,
    nodes: BTreeMap<u32, Node>,
    set_aside: BTreeSet<u32>,
    n_nodes: u32,
    queue: BTreeMap<(u64, u64), Delivery>,
    n_sent: u64,
    lost_per_mille: u64,
    n_formed: u64,
    n_fallbacks: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let lost_per_mille = [0, 0, 10, 100][dice.below(4) as usize];
        let mut world = Self {
            dice,
            start: Instant::now(),
            now: 0,
            leader: CellLeader::new(LIMITS),
            n_leaders: 0,
            nodes: BTreeMap::new(),
            set_aside: BTreeSet::new(),
            n_nodes: 0,
            queue: BTreeMap::new(),
            n_sent: 0,
            lost_per_mille,
            n_formed: 0,
            n_fallbacks: 0,
        };
        world.start_node(true);
        for _ in 0..1 + world.dice.below(4) {
            world.start_node(false);
        }
        world
    }

    fn is_calm(&self) -> bool {
        self.now >= CALM
    }

    fn time(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn after(&mut self, pause: u64, delivery: Delivery) {
        self.n_sent += 1;
        self.queue.insert((self.now + pause, self.n_sent), delivery);
    }

    /// Sends what may come late, twice or never.
    fn send(&mut self, delivery: Delivery) {
        let is_rough = !self.is_calm();
        if is_rough && self.dice.happens(self.lost_per_mille) {
            return;
        }
        if is_rough && self.dice.happens(50) {
            let pause = self.dice.below(1500);
            self.after(pause, delivery.clone());
        }
        let pause = if is_rough && self.dice.happens(30) { 1000 } else { 0 } + self.dice.below(200);
        self.after(pause, delivery);
    }

    fn start_node(&mut self, is_root: bool) {
        self.n_nodes += 1;
        let machine = CellMember::new(LIMITS);
        self.nodes.insert(self.n_nodes, Node { machine, is_root, thread: None, is_hung: false });
        self.lead(CellEvent::Joined { member: self.n_nodes, is_root, newest_epoch: 0 });
    }

    /// Ends a process, which another one follows.
    fn kill(&mut self, id: u32) {
        let Some(node) = self.nodes.remove(&id) else { return };
        let pause = self.dice.below(3000);
        self.after(pause, Delivery::Lost(id));
        let is_root = node.is_root;
        self.after(pause + 500, Delivery::Start { is_root });
    }

    fn lead(&mut self, event: CellEvent<u32>) {
        for action in self.leader.on(event, self.time()) {
            let told = |ranks: Vec<u32>, event: MemberEvent| {
                ranks.into_iter().map(|id| (id, event.clone())).collect::<Vec<_>>()
            };
            let messages = match action {
                CellAction::Prepare { epoch, ranks } => told(ranks, MemberEvent::Prepare(epoch)),
                CellAction::Form { epoch, ranks } => told(ranks, MemberEvent::Form(epoch)),
                CellAction::End { epoch, ranks, .. } => told(ranks, MemberEvent::End(epoch)),
                CellAction::SetAside { member, .. } => {
                    self.set_aside.insert(member);
                    self.kill(member);
                    self.after(500, Delivery::Lost(member));
                    Vec::new()
                }
                CellAction::Announce(notice) => {
                    self.n_formed += u64::from(matches!(notice, CellNotice::Formed { .. }));
                    self.n_fallbacks += u64::from(matches!(notice, CellNotice::FallenBack { .. }));
                    Vec::new()
                }
            };
            for (id, event) in messages {
                self.send(Delivery::ToMember(self.n_leaders, id, event));
            }
        }
    }

    fn member(&mut self, id: u32, event: MemberEvent) {
        let time = self.time();
        let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.is_hung) else { return };
        for action in node.machine.on(event, time) {
            let say = |event| Delivery::ToLeader(self.n_leaders, event);
            match action {
                MemberAction::Open(epoch) | MemberAction::Form(epoch) | MemberAction::Abort(epoch) => {
                    self.command_thread(id, epoch, &action);
                }
                MemberAction::SayReady(epoch) => self.send(say(CellEvent::Ready { member: id, epoch })),
                MemberAction::SayFormed(epoch) => self.send(say(CellEvent::Formed { member: id, epoch })),
                MemberAction::SayFailed { epoch, reason } => {
                    self.send(say(CellEvent::Failed { member: id, epoch, reason }));
                }
                MemberAction::SayEnded(epoch) => self.send(say(CellEvent::Ended { member: id, epoch })),
                MemberAction::EndProcess { .. } => return self.kill(id),
            }
        }
    }

    fn command_thread(&mut self, id: u32, epoch: u64, action: &MemberAction) {
        let node = self.nodes.get_mut(&id).expect("a node acts");
        let done = match action {
            MemberAction::Open(_) => {
                assert_eq!(node.thread, None, "member {id} opens epoch {epoch} beside another");
                node.thread = Some((epoch, false));
                MemberEvent::Opened(epoch)
            }
            MemberAction::Form(_) => {
                assert_eq!(node.thread, Some((epoch, false)), "member {id} forms what it did not open");
                node.thread = Some((epoch, true));
                MemberEvent::Formed(epoch)
            }
            _ => MemberEvent::Gone(epoch),
        };
        let is_rough = !self.is_calm();
        let pause = self.dice.below(800);
        if is_rough && self.dice.happens(15) {
            return;
        }
        let breaks = is_rough && self.dice.happens(20) && !matches!(done, MemberEvent::Gone(_));
        let broke = MemberEvent::Broke { epoch, reason: "it broke".to_owned() };
        self.after(pause, Delivery::FromThread(id, if breaks { broke } else { done }));
    }

    fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            // What a coordinator that is gone was told, or said, went with its connections.
            Delivery::ToLeader(of, event) if of == self.n_leaders => self.lead(event),
            Delivery::ToMember(of, id, event) if of == self.n_leaders => self.member(id, event),
            Delivery::ToLeader(..) | Delivery::ToMember(..) => {}
            Delivery::FromThread(id, event) => {
                if let (MemberEvent::Gone(_), Some(node)) = (&event, self.nodes.get_mut(&id)) {
                    node.thread = None;
                }
                self.member(id, event);
            }
            Delivery::Lost(id) => self.lead(CellEvent::Left(id)),
            Delivery::Start { is_root } => self.start_node(is_root),
        }
    }

    /// Something that happens by chance.
    fn misfortune(&mut self) {
        let ids: Vec<u32> = self.nodes.keys().copied().collect();
        let Some(&id) = ids.get(self.dice.below(ids.len().max(1) as u64) as usize) else { return };
        let epoch = self.leader.epoch_of(&id);
        match self.dice.below(100) {
            0..1 => self.kill(id),
            1..2 => {
                // Its lease ends, whatever it does.
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.is_hung = true;
                }
                self.kill(id);
            }
            2..3 if ids.len() < 7 => self.start_node(false),
            3..4 if self.dice.happens(200) => self.start_leader(),
            4..14 => epoch.into_iter().for_each(|epoch| self.lead(CellEvent::SyncBegun(epoch))),
            14..34 => epoch.into_iter().for_each(|epoch| self.lead(CellEvent::Synced(epoch))),
            34..35 => {
                let broke = |epoch| MemberEvent::Broke { epoch, reason: "the card fell off".to_owned() };
                epoch.into_iter().for_each(|epoch| self.member(id, broke(epoch)));
            }
            _ => {}
        }
    }

    /// The coordinator starts again and knows nothing but what members tell it.
    fn start_leader(&mut self) {
        self.n_leaders += 1;
        self.leader = CellLeader::new(LIMITS);
        let nodes = self.nodes.iter();
        let joined: Vec<_> = nodes
            .map(|(&member, node)| {
                let newest_epoch = node.machine.newest_epoch();
                CellEvent::Joined { member, is_root: node.is_root, newest_epoch }
            })
            .collect();
        joined.into_iter().for_each(|event| self.lead(event));
    }

    /// No two epochs are formed at once among those who are not given up.
    fn check(&self) {
        let trusted = self.nodes.iter().filter(|(id, _)| !self.set_aside.contains(id));
        let formed: BTreeSet<u64> = trusted
            .filter_map(|(_, node)| node.thread.filter(|thread| thread.1).map(|thread| thread.0))
            .collect();
        assert!(formed.len() <= 1, "epochs {formed:?} at once");
    }

    fn run(&mut self) {
        while self.now < SETTLED {
            let next_tick = self.now + TICK;
            while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= next_tick) {
                let ((at, _), delivery) = entry.remove_entry();
                self.now = self.now.max(at);
                self.deliver(delivery);
                self.check();
            }
            self.now = next_tick;
            if !self.is_calm() {
                self.misfortune();
            } else if let Some(epoch) = self.nodes.keys().find_map(|id| self.leader.epoch_of(id)) {
                // Weights that are on their way arrive.
                self.lead(CellEvent::Synced(epoch));
            }
            self.lead(CellEvent::Tick);
            let ids: Vec<u32> = self.nodes.keys().copied().collect();
            ids.into_iter().for_each(|id| self.member(id, MemberEvent::Tick));
            self.check();
        }
    }

    /// Everybody agrees: all in one epoch, or nobody in any.
    fn check_settled(&self) {
        let formed: BTreeSet<Option<u64>> = self.nodes.values().map(|node| node.machine.formed()).collect();
        let led: BTreeSet<Option<u64>> = self.nodes.keys().map(|id| self.leader.epoch_of(id)).collect();
        assert_eq!(formed, led, "the coordinator and its members disagree");
        assert_eq!(formed.len(), 1, "some are in the cell: {formed:?}");
        let is_possible = self.leader.fallen_back().is_none() && self.nodes.len() > 1;
        assert_eq!(formed.iter().all(Option::is_some), is_possible, "{:?}", self.leader);
    }
}

#[test]
fn every_schedule_ends_in_one_cell_for_all_or_none() {
    let (mut n_formed, mut n_fallbacks, mut n_cells) = (0, 0, 0);
    for seed in 0..3000 {
        let mut world = World::new(seed);
        let run = std::panic::AssertUnwindSafe(|| {
            world.run();
            world.check_settled();
        });
        assert!(std::panic::catch_unwind(run).is_ok(), "seed {seed}, see above");
        n_formed += world.n_formed;
        n_fallbacks += world.n_fallbacks;
        n_cells += u64::from(world.leader.fallen_back().is_none());
    }
    // The schedules go everywhere: cells form and fall back, and many are well at the end.
    assert!(n_formed > 6000 && n_fallbacks > 300 && n_cells > 300, "{n_formed} {n_fallbacks} {n_cells}");
}
