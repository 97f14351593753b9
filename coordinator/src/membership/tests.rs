//! Who is let in, who is fenced, and when.

use super::*;
use protocol::{PROGRAM_VERSION, PROTOCOL_VERSION};

const PATIENCE: Patience = Patience {
    lease: Duration::from_secs(5),
    task_deadline: Duration::from_secs(60),
    opening_deadline: Duration::from_secs(300),
    drain: Duration::from_secs(30),
};

fn members() -> Members {
    Members::new("run-a".to_owned(), 1, PATIENCE)
}

fn worker(member_id: &str, pid: u32) -> Applicant {
    Applicant {
        role: Role::RolloutWorker,
        member_id: member_id.to_owned(),
        run_id: String::new(),
        rank: 0,
        address: String::new(),
        process: process(pid),
    }
}

/// A process whose nonce is as different from others' as its id.
fn process(pid: u32) -> Process {
    protocol::process(u128::from(pid).to_le_bytes(), "here", pid)
}

fn again(applicant: Applicant) -> Applicant {
    Applicant { run_id: "run-a".to_owned(), ..applicant }
}

fn learner(member_id: &str, pid: u32) -> Applicant {
    Applicant { role: Role::Learner, address: "here:1".to_owned(), ..worker(member_id, pid) }
}

/// The launcher starts a process under a name, which joins.
fn replace(members: &mut Members, applicant: Applicant, now: Instant) -> Caller {
    members.await_process(&applicant.member_id);
    members.join(applicant, now).expect("its launcher started it")
}

#[test]
fn a_member_without_heartbeat_is_lost_and_fenced() {
    let (mut members, now) = (members(), Instant::now());
    let caller = members.join(worker("a", 1), now).expect("joined");
    assert!(members.expire(now + PATIENCE.lease).is_empty());
    let late = now + PATIENCE.lease + Duration::from_millis(1);
    assert_eq!(members.expire(late), ["a"]);
    assert!(matches!(members.admit(Some(&caller), late), Err(Refusal::Fenced { .. })));
    assert!(members.expire(late).is_empty(), "lost once");
}

#[test]
fn every_message_renews_the_lease() {
    let (mut members, now) = (members(), Instant::now());
    let caller = members.join(worker("a", 1), now).expect("joined");
    members.admit(Some(&caller), now + PATIENCE.lease).expect("a member");
    assert!(members.expire(now + PATIENCE.lease * 2).is_empty());
}

#[test]
fn an_earlier_incarnation_is_fenced() {
    let (mut members, now) = (members(), Instant::now());
    let old = members.join(worker("a", 1), now).expect("joined");
    let new = replace(&mut members, worker("a", 2), now);
    assert!(new.incarnation > old.incarnation);
    assert!(matches!(members.admit(Some(&old), now), Err(Refusal::Fenced { .. })));
    assert!(members.admit(Some(&new), now).is_ok());
}

#[test]
fn a_replaced_process_cannot_come_back_while_its_successor_lives() {
    let (mut members, now) = (members(), Instant::now());
    members.join(worker("a", 1), now).expect("joined");
    replace(&mut members, worker("a", 2), now);
    let refusal = members.join(again(worker("a", 1)), now).expect_err("replaced").to_string();
    assert!(refusal.contains("`a`, joined from here (process 2)"), "{refusal}");
    members.join(again(worker("a", 2)), now).expect("the successor may");
    assert!(members.end(&worker("a", 2), Presence::Lost(Loss::Exited)));
    members.join(again(worker("a", 1)), now).expect("the place is free");
}

#[test]
fn incarnations_grow_over_restarts_of_the_coordinator() {
    let now = Instant::now();
    let old = members().join(worker("a", 1), now).expect("joined");
    let mut reborn = Members::new("run-a".to_owned(), 2, PATIENCE);
    let new = reborn.join(again(worker("a", 1)), now).expect("joined");
    assert!(new.incarnation > old.incarnation);
}

#[test]
fn members_of_other_runs_are_refused() {
    let (mut members, now) = (members(), Instant::now());
    let stranger = Applicant { run_id: "run-b".to_owned(), ..worker("a", 1) };
    assert!(matches!(members.join(stranger, now), Err(Refusal::OtherRun { .. })));
    let caller = Caller { run_id: "run-b".to_owned(), member_id: "a".to_owned(), incarnation: 1 };
    assert!(matches!(members.admit(Some(&caller), now), Err(Refusal::OtherRun { .. })));
    assert!(matches!(members.admit(None, now), Err(Refusal::Malformed(_))));
}

#[test]
fn there_is_one_learner() {
    let (mut members, now) = (members(), Instant::now());
    members.join(learner("learner", 1), now).expect("joined");
    let told = members.join(learner("other", 2), now).expect_err("a second one").to_string();
    assert!(told.contains("the learner of this run is `learner`") && told.contains("process 1"), "{told}");
    replace(&mut members, learner("learner", 3), now);
    assert_eq!(members.learners().next().flatten().expect("a learner").applicant.process.pid, 3);
}

#[test]
fn a_worker_that_gets_nowhere_is_stuck() {
    let (mut members, now) = (members(), Instant::now());
    let caller = members.join(worker("a", 1), now).expect("joined");
    members.heartbeat(Some(&caller), false, now).expect("in time");
    assert!(members.heartbeat(Some(&caller), true, now).is_err());
    assert_eq!(members.get("a").expect("known").presence, Presence::Lost(Loss::Stuck));
    assert!(matches!(members.join(again(worker("a", 1)), now), Err(Refusal::Stuck { .. })));
    members.join(worker("a", 2), now).expect("its successor");
}

#[test]
fn presence_and_tasks_add_up_over_lives() {
    let (mut members, now) = (members(), Instant::now());
    members.join(worker("a", 1), now).expect("joined");
    members.count_task("a");
    let later = now + Duration::from_secs(4);
    replace(&mut members, worker("a", 2), later);
    let member = members.get("a").expect("known");
    assert_eq!(member.present(later + Duration::from_secs(2)), Duration::from_secs(6));
    assert_eq!(member.tasks_done, 1);
}

#[test]
fn a_trouble_is_new_once_and_over_once() {
    let (mut members, now) = (members(), Instant::now());
    members.join(worker("a", 1), now).expect("joined");
    let mut note = |troubles: &[&str]| {
        members.note_troubles("a", troubles.iter().map(|trouble| (*trouble).to_owned()).collect())
    };
    let lists = |new: &[&str], over: &[&str]| {
        [new, over].map(|list| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    };
    for (troubles, [new, over]) in [
        (&["a"][..], lists(&["a"], &[])),
        (&["a", "b"], lists(&["b"], &[])),
        (&["b"], lists(&[], &["a"])),
        (&[], lists(&[], &["b"])),
    ] {
        assert_eq!(note(troubles), (new, over), "{troubles:?}");
    }
}

#[test]
fn a_name_belongs_to_one_role() {
    let (mut members, now) = (members(), Instant::now());
    let told = members.join(worker("learner", 7), now).expect_err("before the learner").to_string();
    assert!(told.contains("`learner` is that of a learner") && told.contains("--member-id"), "{told}");
    assert!(matches!(members.join(learner("worker-3", 7), now), Err(Refusal::OtherRole { .. })));
    members.join(learner("learner", 1), now).expect("joined");
    members.join(worker("a", 2), now).expect("joined");
    assert!(matches!(members.join(worker("learner", 7), now), Err(Refusal::OtherRole { .. })));
    assert!(members.end(&learner("learner", 1), Presence::Lost(Loss::Exited)));
    assert!(matches!(members.join(worker("learner", 7), now), Err(Refusal::OtherRole { .. })), "nor then");
    assert!(matches!(members.join(learner("a", 7), now), Err(Refusal::OtherRole { .. })));
    members.join(learner("learner", 3), now).expect("the next learner");
    assert_eq!(members.learners().next().flatten().expect("a learner").applicant.process.pid, 3);
}

#[test]
fn names_are_short_and_printable() {
    let (mut members, now) = (members(), Instant::now());
    let long = "a".repeat(101);
    for odd in ["", "a/b", "a b", "a\0", "a\u{1b}[2J", "a\n", "k\u{202e}", "ä", &long] {
        assert!(matches!(members.join(worker(odd, 1), now), Err(Refusal::Malformed(_))), "{odd:?}");
    }
    let addresses = ["here:1\n".to_owned(), "\u{1b}[2J".to_owned(), "a".repeat(7 << 20)];
    for address in addresses {
        let odd = Applicant { address, ..learner("learner", 1) };
        assert!(matches!(members.join(odd, now), Err(Refusal::Malformed(_))));
    }
    members.join(worker(&long[1..], 1), now).expect("long enough");
    members.join(worker("node-7.rack_2:gpu@3+x", 1), now).expect("what launchers write");
    let host = format!("\u{1b}{}", "h".repeat(1 << 20));
    let named = Process { host, ..process(1) };
    members.join(Applicant { process: named, ..worker("b", 1) }, now).expect("joined");
    let shown = &members.get("b").expect("known").applicant.process.host;
    assert!(shown.len() < 400 && !shown.contains('\u{1b}'), "{shown}");
}

#[test]
fn what_a_refusal_says_is_short() {
    let (mut members, now) = (members(), Instant::now());
    let giant = "\u{1b}x".repeat(1 << 20);
    let stranger = Applicant { run_id: giant.clone(), ..worker("a", 1) };
    let calls = [("run-a", giant.as_str()), (giant.as_str(), "a")];
    let caller = |(run_id, member_id): (&str, &str)| Caller {
        run_id: run_id.to_owned(),
        member_id: member_id.to_owned(),
        incarnation: u64::MAX,
    };
    let mut refusals = vec![members.join(stranger, now).expect_err("another run")];
    refusals.extend(calls.map(|call| members.admit(Some(&caller(call)), now).expect_err("no member")));
    for refusal in refusals {
        let told = refusal.to_string();
        assert!(told.len() < 1500 && !told.contains('\u{1b}'), "{} bytes", told.len());
    }
}

#[test]
fn whoever_comes_and_goes_memory_is_bounded_and_the_numbers_hold() {
    let (mut members, now) = (members(), Instant::now());
    members.join(learner("learner", 1), now).expect("joined");
    members.join(worker("steady", 1), now).expect("joined");
    let mut n_forgotten = 0;
    for number in 0..5_000_u32 {
        let now = now + Duration::from_millis(number.into());
        let caller = members.join(worker(&format!("passing-{number}"), number), now).expect("joined");
        match number % 3 {
            0 => drop(members.leave(Some(&caller), now).expect("left")),
            1 => assert!(members.end(&worker(&caller.member_id, number), Presence::Lost(Loss::Exited))),
            _ => {
                members.drain(&caller.member_id);
                members.heartbeat(Some(&caller), true, now).expect_err("stuck");
            }
        }
        if number % 100 == 0 {
            n_forgotten += members.forget_the_long_gone(now).len();
        }
        assert!(members.iter().count() <= 2 + MOST_GONE + 100);
        assert_eq!((members.n_workers(), members.n_taking_tasks()), (1, 1));
    }
    assert!(members.get("passing-4999").is_some() && members.get("passing-0").is_none());
    assert!(
        members.learners().all(|learner| learner.is_some()) && members.get("steady").is_some(),
        "who is there stays"
    );
    let later = now + REMEMBERED + Duration::from_secs(10);
    n_forgotten += members.forget_the_long_gone(later).len();
    assert_eq!((members.iter().count(), n_forgotten), (2, 5_000));
}

#[test]
fn there_is_an_end_to_members() {
    let (mut members, now) = (members(), Instant::now());
    for number in 0..MOST_LIVING {
        members.join(worker(&format!("w{number}"), 1), now).expect("room");
    }
    assert_eq!(members.join(worker("one-more", 1), now), Err(Refusal::Full));
    replace(&mut members, worker("w7", 2), now);
    members.drain("w8");
    assert_eq!(members.n_taking_tasks(), MOST_LIVING - 1);
    members.expire(now + PATIENCE.lease * 2);
    assert_eq!((members.n_workers(), members.n_taking_tasks()), (0, 0));
    members.join(worker("one-more", 1), now).expect("room again");
}

#[test]
fn processes_are_told_apart_by_their_nonces_alone() {
    let (mut members, now) = (members(), Instant::now());
    members.join(worker("a", 1), now).expect("joined");
    // A container that is started again: the same id on a host of the same name.
    let restarted =
        Applicant { process: Process { nonce: vec![7; 16].into(), ..process(1) }, ..worker("a", 1) };
    for other in [again(restarted.clone()), restarted.clone()] {
        let refused = members.join(other, now).expect_err("the first one lives");
        assert!(matches!(refused, Refusal::Taken { .. }), "{refused}");
    }
    members.join(worker("a", 1), now).expect("it is the same process, whose reply was lost");
    replace(&mut members, restarted, now);
    members.join(again(worker("a", 1)), now).expect_err("it was replaced");
}

#[test]
fn of_two_living_processes_with_one_name_the_first_stays_and_the_second_is_told() {
    let (mut members, now) = (members(), Instant::now());
    let first = members.join(worker("a", 1), now).expect("joined");
    let told = members.join(worker("a", 2), now).expect_err("the first one lives").to_string();
    let words = ["joined from here (process 1) and lives", "give each its own `--member-id`"];
    assert!(words.iter().all(|words| told.contains(words)), "{told}");
    members.admit(Some(&first), now).expect("nothing has changed for the first");
}

#[test]
fn a_process_that_follows_a_dead_one_gets_in_with_the_end_of_its_lease_or_as_soon_as_the_death_is_known() {
    let (mut members, now) = (members(), Instant::now());
    members.join(worker("a", 1), now).expect("joined");
    members.join(worker("a", 2), now + PATIENCE.lease).expect_err("the lease is current");
    let late = now + PATIENCE.lease + Duration::from_millis(1);
    assert_eq!(members.expire(late), ["a"]);
    let second = members.join(worker("a", 2), late).expect("the lease has ended");
    members.leave(Some(&second), late).expect("left");
    members.join(worker("a", 3), late).expect("it has left");
    assert!(members.end(&worker("a", 3), Presence::Lost(Loss::Exited)));
    members.join(worker("a", 4), late).expect("it was seen to end");
}

#[test]
fn what_the_launcher_starts_gets_its_place_once_whoever_has_come_meanwhile() {
    let (mut members, now) = (members(), Instant::now());
    let stranger = members.join(worker("worker-0", 7), now).expect("the place was free");
    members.await_process("worker-0");
    let refused = members.join(again(worker("worker-0", 8)), now).expect_err("it is not new");
    assert!(matches!(refused, Refusal::Taken { .. }), "{refused}");
    members.join(worker("worker-0", 1), now).expect("its launcher started it");
    assert!(matches!(members.admit(Some(&stranger), now), Err(Refusal::Fenced { .. })));
    members.join(again(worker("worker-0", 7)), now).expect_err("the stranger's place is gone");
    members.has_come("worker-0");
    members.join(worker("worker-0", 9), now).expect_err("one process was started");
}

#[test]
fn whoever_comes_before_what_the_launcher_started_does_not_take_its_place() {
    let (mut members, now) = (members(), Instant::now());
    members.await_process("learner");
    // One that an earlier coordinator started and that it did not live to note.
    for orphan in [again(learner("learner", 7)), learner("learner", 8)] {
        members.join(orphan, now).expect("nobody has the place yet");
        members.join(learner("learner", 1), now).expect("its launcher started it");
    }
}

#[test]
fn another_build_or_protocol_is_refused_with_both_versions() {
    let (mut members, now) = (members(), Instant::now());
    for odd in [
        Process { program_version: "0.0.0".to_owned(), ..process(1) },
        Process { protocol_version: 2, ..process(1) },
        Process { program_version: "\u{1b}[2J".repeat(1 << 20), ..process(1) },
    ] {
        let refused = members.join(Applicant { process: odd, ..worker("a", 1) }, now).expect_err("refused");
        let told = refused.to_string();
        assert!(told.contains(&format!("version {PROGRAM_VERSION} and speaks {PROTOCOL_VERSION}")), "{told}");
        assert!(told.len() < 500 && !told.contains('\u{1b}'), "{told}");
    }
    for odd in [
        Applicant { process: Process { nonce: Vec::new().into(), ..process(1) }, ..worker("a", 1) },
        Applicant { process: Process { metrics_address: "\n".to_owned(), ..process(1) }, ..worker("a", 1) },
    ] {
        let refused = members.join(odd, now).expect_err("refused");
        assert!(matches!(refused, Refusal::Malformed(_)), "{refused}");
    }
}

#[test]
fn each_rank_of_the_learner_has_one_place_and_there_is_none_beyond_the_last() {
    let now = Instant::now();
    let mut members = members().with_learners(2);
    let rank = |rank, member_id: &str, pid| Applicant { rank, ..learner(member_id, pid) };
    let refused = members.join(rank(2, "learner-2", 1), now).expect_err("there are two");
    assert!(refused.to_string().contains("joins as rank 2 of the learner, which has 2"), "{refused}");
    members.join(rank(0, "learner", 1), now).expect("joined");
    assert_eq!(members.learners().map(|member| member.is_some()).collect::<Vec<_>>(), [true, false]);
    members.join(rank(1, "learner-1", 2), now).expect("joined beside it");
    let refused = members.join(rank(1, "another", 3), now).expect_err("that rank has its process");
    assert!(matches!(refused, Refusal::OtherLearner { .. }), "{refused}");
    let pids: Vec<u32> = members.learners().flatten().map(|member| member.applicant.process.pid).collect();
    assert_eq!(pids, [1, 2]);
}

#[test]
fn each_kind_of_work_may_stand_still_for_its_own_time() {
    let computing = Duration::from_secs(20);
    let standstill = |(work, seconds): (Work, f64)| Standstill { work: work.into(), seconds };
    for (told, hung) in [
        (&[][..], None),
        (&[(Work::Opening, 300.0), (Work::Computing, 20.0), (Work::Waiting, 60.0)], None),
        (&[(Work::Opening, 301.0)], Some((Work::Opening, 300))),
        (&[(Work::Waiting, 60.0), (Work::Computing, 20.5)], Some((Work::Computing, 20))),
        (&[(Work::Waiting, 61.0)], Some((Work::Waiting, 60))),
        (&[(Work::Unspecified, 61.0)], Some((Work::Unspecified, 60))),
        (&[(Work::Computing, f64::NAN), (Work::Opening, -7.0)], None),
    ] {
        let told: Vec<Standstill> = told.iter().copied().map(standstill).collect();
        let hang = PATIENCE.hang(&told, computing);
        let found = hang.map(|hang| (hang.work, hang.deadline.as_secs()));
        assert_eq!(found, hung, "{told:?}");
        assert!(hang.is_none_or(|hang| hang.to_string().contains("-deadline`")), "the remedy is named");
    }
}
