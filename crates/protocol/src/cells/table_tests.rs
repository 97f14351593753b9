//! The machines of a cell, event by event.

use super::*;
use std::time::Instant;

fn limits() -> CellLimits {
    let seconds = Duration::from_secs;
    CellLimits {
        gather: seconds(5),
        prepare: seconds(20),
        form: seconds(60),
        sync: seconds(120),
        end: seconds(15),
    }
}

/// A leader, and a clock that stands at seconds since the start.
struct Table {
    leader: CellLeader<&'static str>,
    start: Instant,
}

impl Table {
    fn new() -> Self {
        Self { leader: CellLeader::new(limits()), start: Instant::now() }
    }

    fn on(&mut self, second: u64, event: CellEvent<&'static str>) -> Vec<CellAction<&'static str>> {
        self.leader.on(event, self.start + Duration::from_secs(second))
    }

    fn join(&mut self, second: u64, member: &'static str) -> Vec<CellAction<&'static str>> {
        self.on(second, CellEvent::Joined { member, is_root: member == "root", newest_epoch: 0 })
    }

    /// Goes through an epoch until it is formed, within a second.
    fn form(&mut self, second: u64, epoch: u64, ranks: &[&'static str]) {
        for &member in ranks {
            self.on(second, CellEvent::Ready { member, epoch });
        }
        for &member in ranks {
            self.on(second, CellEvent::Formed { member, epoch });
        }
        for member in ranks {
            assert_eq!(self.leader.epoch_of(member), Some(epoch), "{member}");
        }
    }
}

fn end(epoch: u64, ranks: &[&'static str], reason: &str) -> [CellAction<&'static str>; 2] {
    let reason = reason.to_owned();
    [
        CellAction::End { epoch, ranks: ranks.to_vec(), reason: reason.clone() },
        CellAction::Announce(CellNotice::Ended { epoch, reason }),
    ]
}

#[test]
fn a_cell_forms_when_all_are_ready_and_works_when_all_have_formed() {
    let mut table = Table::new();
    let ranks = vec!["root", "a", "b"];
    assert_eq!(table.join(0, "a"), []);
    assert_eq!(table.join(1, "root"), []);
    assert_eq!(table.join(2, "b"), []);
    assert_eq!(table.on(6, CellEvent::Tick), [], "others may follow");
    assert_eq!(table.on(7, CellEvent::Tick), [CellAction::Prepare { epoch: 1, ranks: ranks.clone() }]);
    assert_eq!(table.on(8, CellEvent::Ready { member: "b", epoch: 1 }), []);
    assert_eq!(table.on(8, CellEvent::Ready { member: "b", epoch: 1 }), [], "said twice");
    assert_eq!(table.on(8, CellEvent::Ready { member: "a", epoch: 1 }), []);
    let form = CellAction::Form { epoch: 1, ranks };
    assert_eq!(table.on(9, CellEvent::Ready { member: "root", epoch: 1 }), [form]);
    assert_eq!(table.on(10, CellEvent::Formed { member: "a", epoch: 1 }), []);
    assert_eq!(table.on(10, CellEvent::Formed { member: "root", epoch: 1 }), []);
    assert_eq!(table.leader.epoch_of(&"a"), None, "one is missing");
    let notice = CellNotice::Formed { epoch: 1, n_ranks: 3 };
    assert_eq!(table.on(10, CellEvent::Formed { member: "b", epoch: 1 }), [CellAction::Announce(notice)]);
    assert_eq!(table.leader.epoch_of(&"a"), Some(1));
    assert_eq!(table.leader.next_deadline(), None);
}

#[test]
fn without_a_root_or_anybody_else_there_is_no_cell() {
    for member in ["a", "root"] {
        let mut table = Table::new();
        table.join(0, member);
        assert_eq!(table.on(100, CellEvent::Tick), []);
    }
}

#[test]
fn who_leaves_ends_the_epoch_and_the_next_waits_for_the_others_to_end_it() {
    let mut table = Table::new();
    ["root", "a", "b"].into_iter().for_each(|member| drop(table.join(0, member)));
    table.on(5, CellEvent::Tick);
    table.form(6, 1, &["root", "a", "b"]);
    assert_eq!(table.on(7, CellEvent::Left("a")), end(1, &["root", "b"], "a left"));
    assert_eq!(table.leader.epoch_of(&"b"), None);
    assert_eq!(table.on(8, CellEvent::Ended { member: "root", epoch: 1 }), []);
    let next = CellAction::Prepare { epoch: 2, ranks: vec!["root", "b"] };
    assert_eq!(table.on(9, CellEvent::Ended { member: "b", epoch: 1 }), [next]);
    // A third one that leaves is no failure of the cell either.
    table.form(10, 2, &["root", "b"]);
    table.on(11, CellEvent::Left("b"));
    assert_eq!(table.leader.fallen_back(), None);
}

#[test]
fn who_joins_waits_for_the_next_epoch_which_waits_for_the_synchronization() {
    let mut table = Table::new();
    ["root", "a"].into_iter().for_each(|member| drop(table.join(0, member)));
    table.on(5, CellEvent::Tick);
    table.form(6, 1, &["root", "a"]);
    table.on(7, CellEvent::SyncBegun(1));
    assert_eq!(table.join(8, "b"), []);
    assert_eq!(table.on(20, CellEvent::Tick), [], "weights are on their way");
    assert_eq!(table.leader.epoch_of(&"b"), None);
    assert_eq!(table.on(21, CellEvent::Synced(1)), end(1, &["root", "a"], "members joined"));
    table.on(22, CellEvent::Ended { member: "a", epoch: 1 });
    let next = CellAction::Prepare { epoch: 2, ranks: vec!["root", "a", "b"] };
    assert_eq!(table.on(22, CellEvent::Ended { member: "root", epoch: 1 }), [next]);
}

#[test]
fn who_never_answers_is_set_aside_and_the_second_failure_falls_back() {
    let mut table = Table::new();
    ["root", "a", "b"].into_iter().for_each(|member| drop(table.join(0, member)));
    table.on(5, CellEvent::Tick);
    table.on(6, CellEvent::Ready { member: "root", epoch: 1 });
    table.on(6, CellEvent::Ready { member: "b", epoch: 1 });
    let aside = "it did not prepare within 20 s in epoch 1".to_owned();
    let mut expected = vec![CellAction::SetAside { member: "a", reason: aside }];
    expected.extend(end(1, &["root", "b"], "a did not prepare within 20 s in epoch 1"));
    assert_eq!(table.on(25, CellEvent::Tick), expected);
    table.on(26, CellEvent::Ended { member: "root", epoch: 1 });
    let next = CellAction::Prepare { epoch: 2, ranks: vec!["root", "b"] };
    assert_eq!(table.on(26, CellEvent::Ended { member: "b", epoch: 1 }), [next]);
    let failed = CellEvent::Failed { member: "b", epoch: 2, reason: "versions differ".to_owned() };
    let actions = table.on(27, failed);
    let reason = "b: versions differ".to_owned();
    assert_eq!(actions.last(), Some(&CellAction::Announce(CellNotice::FallenBack { reason })));
    for member in ["root", "b"] {
        table.on(28, CellEvent::Ended { member, epoch: 2 });
    }
    table.join(29, "c");
    assert_eq!(table.on(1000, CellEvent::Tick), [], "it stays with gRPC");
    assert_eq!(table.leader.fallen_back(), Some("b: versions differ"));
}

#[test]
fn a_synchronization_forgives_earlier_failures_and_has_a_deadline_itself() {
    let mut table = Table::new();
    ["root", "a"].into_iter().for_each(|member| drop(table.join(0, member)));
    table.on(5, CellEvent::Tick);
    let failed = |epoch| CellEvent::Failed { member: "a", epoch, reason: "it broke".to_owned() };
    for epoch in 1..5 {
        table.form(6, epoch, &["root", "a"]);
        table.on(7, CellEvent::SyncBegun(epoch));
        table.on(8, CellEvent::Synced(epoch));
        table.on(9, failed(epoch));
        ["root", "a"].into_iter().for_each(|member| drop(table.on(10, CellEvent::Ended { member, epoch })));
        assert_eq!(table.leader.fallen_back(), None, "after epoch {epoch}");
    }
    table.form(20, 5, &["root", "a"]);
    table.on(21, CellEvent::SyncBegun(5));
    table.on(141, CellEvent::Tick);
    let why = "the cell did not bring the weights to all within 120 s in epoch 5";
    assert_eq!(table.leader.fallen_back(), Some(why));
}

#[test]
fn a_leader_that_starts_again_goes_on_after_the_epochs_of_its_members() {
    let mut table = Table::new();
    table.join(0, "root");
    table.on(0, CellEvent::Joined { member: "a", is_root: false, newest_epoch: 7 });
    let prepare = CellAction::Prepare { epoch: 8, ranks: vec!["root", "a"] };
    assert_eq!(table.on(5, CellEvent::Tick), [prepare]);
}

#[test]
fn a_member_is_in_one_epoch_at_most() {
    let now = Instant::now();
    let mut member = CellMember::new(limits());
    assert_eq!(member.on(MemberEvent::Prepare(1), now), [MemberAction::Open(1)]);
    assert_eq!(member.on(MemberEvent::Opened(1), now), [MemberAction::SayReady(1)]);
    assert_eq!(member.on(MemberEvent::Form(1), now), [MemberAction::Form(1)]);
    assert_eq!(member.on(MemberEvent::Formed(1), now), [MemberAction::SayFormed(1)]);
    assert_eq!(member.formed(), Some(1));
    assert_eq!(member.on(MemberEvent::Prepare(1), now), [], "heard again");
    assert_eq!(member.on(MemberEvent::Prepare(2), now), [MemberAction::Abort(1)], "the old one goes first");
    assert_eq!(member.on(MemberEvent::Form(2), now), [], "not before it is prepared");
    assert_eq!(member.on(MemberEvent::Gone(1), now), [MemberAction::SayEnded(1), MemberAction::Open(2)]);
    assert_eq!(member.on(MemberEvent::End(2), now), [MemberAction::Abort(2)]);
    assert_eq!(member.on(MemberEvent::Opened(2), now), [], "too late");
    assert_eq!(member.on(MemberEvent::Gone(2), now), [MemberAction::SayEnded(2)]);
    assert_eq!(member.on(MemberEvent::End(3), now), [MemberAction::SayEnded(3)]);
    assert_eq!(member.on(MemberEvent::Prepare(3), now), [], "its end overtook it");
    assert_eq!(member.newest_epoch(), 3);
}

#[test]
fn a_member_gives_up_by_itself_and_a_wedged_one_ends_its_process() {
    let start = Instant::now();
    let mut member = CellMember::new(limits());
    member.on(MemberEvent::Prepare(1), start);
    member.on(MemberEvent::Opened(1), start);
    let late = start + Duration::from_secs(35);
    assert_eq!(member.next_deadline(), Some(late));
    let reason = "it heard nothing of the coordinator within 35 s when it was ready".to_owned();
    let failed = MemberAction::SayFailed { epoch: 1, reason };
    assert_eq!(member.on(MemberEvent::Tick, late), [failed, MemberAction::Abort(1)]);
    let wedged = late + Duration::from_secs(15);
    let reason = "the communicator of epoch 1 could not be aborted within 15 s".to_owned();
    assert_eq!(member.on(MemberEvent::Tick, wedged), [MemberAction::EndProcess { reason }]);
}
