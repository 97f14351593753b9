//! Who is let in, who is fenced, and when.

use super::*;

const PATIENCE: Patience = Patience { lease: Duration::from_secs(5), task_deadline: Duration::from_secs(60) };

fn members() -> Members {
    Members::new("run-a".to_owned(), 1, PATIENCE)
}

fn worker(member_id: &str, pid: u32) -> Applicant {
    Applicant {
        role: Role::RolloutWorker,
        member_id: member_id.to_owned(),
        run_id: String::new(),
        address: String::new(),
        pid,
        host: "here".to_owned(),
    }
}

fn again(applicant: Applicant) -> Applicant {
    Applicant { run_id: "run-a".to_owned(), ..applicant }
}

fn learner(member_id: &str, pid: u32) -> Applicant {
    Applicant { role: Role::Learner, address: "here:1".to_owned(), ..worker(member_id, pid) }
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
    let new = members.join(worker("a", 2), now).expect("a new process takes over");
    assert!(new.incarnation > old.incarnation);
    assert!(matches!(members.admit(Some(&old), now), Err(Refusal::Fenced { .. })));
    assert!(members.admit(Some(&new), now).is_ok());
}

#[test]
fn a_replaced_process_cannot_come_back_while_its_successor_lives() {
    let (mut members, now) = (members(), Instant::now());
    members.join(worker("a", 1), now).expect("joined");
    members.join(worker("a", 2), now).expect("a new process takes over");
    let refusal = members.join(again(worker("a", 1)), now).expect_err("replaced");
    assert_eq!(refusal.to_string(), "member `a` is process 2 on here now");
    members.join(again(worker("a", 2)), now).expect("the successor may");
    assert!(members.end("a", 2, Presence::Lost(Loss::Exited)));
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
    assert!(matches!(members.join(learner("other", 2), now), Err(Refusal::Taken { .. })));
    members.join(learner("learner", 3), now).expect("its successor");
    assert_eq!(members.learner().expect("a learner").applicant.pid, 3);
}

#[test]
fn a_worker_that_gets_nowhere_is_stuck() {
    let (mut members, now) = (members(), Instant::now());
    let caller = members.join(worker("a", 1), now).expect("joined");
    members.heartbeat(Some(&caller), PATIENCE.task_deadline, now).expect("in time");
    let late = PATIENCE.task_deadline + Duration::from_secs(1);
    assert!(members.heartbeat(Some(&caller), late, now).is_err());
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
    members.join(worker("a", 2), later).expect("joined");
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
