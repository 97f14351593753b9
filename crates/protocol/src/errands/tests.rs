//! Weights and images are the versions and tasks that they are of, deliveries likewise.

use super::*;
use crate::Backoff;
use config::TaskKind;

type Event = ErrandEvent<WeightsName, TaskName, TaskName>;
type Action = ErrandAction<WeightsName, TaskName, TaskName>;

fn name(index: u32) -> TaskName {
    TaskName { iteration: 3, kind: TaskKind::Train, index }
}

fn task(index: u32) -> proto::Task {
    let prompts = vec![proto::Prompt { index: 0, text: "a circle".to_owned(), metadata: String::new() }];
    proto::Task {
        id: Some(name(index).into()),
        version: 2,
        prompts,
        prompt_slot: 0,
        first_seed: 0,
        n_seeds: 1,
        learner_rank: 0,
    }
}

fn parsed(index: u32) -> Task {
    Task::try_from(task(index)).expect("a good task")
}

fn failure(reason: &str, blame: Blame) -> TaskFailure {
    TaskFailure { reason: reason.to_owned(), blame }
}

const PATIENT: Leaving = Leaving { patience: Duration::from_secs(60), notice: None };

fn killed_after(seconds: u64) -> Event {
    Event::Leave(Leaving { notice: Some(Duration::from_secs(seconds)), ..PATIENT })
}

fn given_back(index: u32) -> Action {
    ErrandAction::Tell(Hand::Sampling, name(index).into(), TaskEnd::GivenBack)
}

struct Worker {
    errands: Errands<TaskName>,
    now: Instant,
}

impl Worker {
    fn new() -> Self {
        let mut errands = Errands::default();
        assert_eq!(errands.begin::<WeightsName, TaskName>(), [ErrandAction::Ask(vec![])]);
        Self { errands, now: Instant::now() }
    }

    fn on(&mut self, event: Event) -> Vec<Action> {
        self.errands.on(event, self.now)
    }

    /// Has a task granted and drawn.
    fn draw(&mut self, index: u32) -> Vec<Action> {
        let weights = WeightsName::policy(2);
        assert_eq!(self.on(Event::Granted(Some(task(index)))), [ErrandAction::Fetch(name(index), weights)]);
        assert_eq!(self.on(Event::Fetched(Ok(weights))), [ErrandAction::Draw(parsed(index), weights)]);
        self.on(Event::Drawn(Ok(name(index))))
    }

    /// Gives each hand what follows from an event.
    fn hand_out(&mut self, event: Event, busy: &mut [Option<Action>; 2]) {
        for action in self.on(event) {
            let hand = action.hand() as usize;
            match action {
                Action::Abandon => busy[hand] = None,
                action => assert!(busy[hand].replace(action).is_none(), "a hand has two things to do"),
            }
        }
    }

    fn is_over(&self) -> bool {
        self.errands.is_over(self.now)
    }
}

#[test]
fn while_one_task_is_finished_the_next_is_sampled_and_no_third_is_asked_for() {
    let mut worker = Worker::new();
    assert_eq!(worker.draw(0), [ErrandAction::Score(name(0), name(0)), ErrandAction::Ask(vec![name(0)])]);
    assert_eq!(worker.draw(1), [], "the first is not finished");
    assert_eq!(worker.on(Event::Scored(Ok(name(0)))), [ErrandAction::Push(name(0), name(0))]);
    let told = ErrandAction::Tell(Hand::Finishing, name(0).into(), TaskEnd::Held);
    assert_eq!(worker.on(Event::Pushed(Ok(Delivered::Held))), [told]);
    assert_eq!(
        worker.on(Event::Told(Hand::Finishing)),
        [ErrandAction::Score(name(1), name(1)), ErrandAction::Ask(vec![name(1)])]
    );
}

#[test]
fn however_a_task_ends_the_coordinator_is_told() {
    let weights = WeightsName::policy(2);
    let refused = || WeightsError::Refused { version: 2, problem: "why".to_owned() };
    let mut worker = Worker::new();
    worker.on(Event::Granted(Some(task(0))));
    let told = ErrandAction::Tell(
        Hand::Sampling,
        name(0).into(),
        TaskEnd::Failed(failure(&refused().to_string(), Blame::Worker)),
    );
    assert_eq!(worker.on(Event::Fetched(Err(refused()))), [told]);
    assert_eq!(worker.on(Event::Told(Hand::Sampling)), [ErrandAction::Ask(vec![])]);

    worker.on(Event::Granted(Some(task(1))));
    worker.on(Event::Fetched(Ok(weights)));
    let told =
        ErrandAction::Tell(Hand::Sampling, name(1).into(), TaskEnd::Failed(failure("astray", Blame::Task)));
    assert_eq!(worker.on(Event::Drawn(Err(failure("astray", Blame::Task)))), [told]);
    worker.on(Event::Told(Hand::Sampling));

    worker.draw(2);
    let told = ErrandAction::Tell(
        Hand::Finishing,
        name(2).into(),
        TaskEnd::Failed(failure("no score", Blame::Worker)),
    );
    assert_eq!(worker.on(Event::Scored(Err(failure("no score", Blame::Worker)))), [told]);
    worker.on(Event::Told(Hand::Finishing));

    worker.draw(3);
    worker.on(Event::Scored(Ok(name(3))));
    let error = PushError::Refused("steps".to_owned());
    let told = ErrandAction::Tell(
        Hand::Finishing,
        name(3).into(),
        TaskEnd::Failed(failure(&error.to_string(), Blame::Task)),
    );
    assert_eq!(worker.on(Event::Pushed(Err(error))), [told]);
}

#[test]
fn a_task_that_makes_no_sense_fails_and_one_without_a_name_is_passed_over() {
    let mut worker = Worker::new();
    let told = worker.on(Event::Granted(Some(proto::Task { n_seeds: 0, ..task(0) })));
    let [ErrandAction::Tell(Hand::Sampling, id, TaskEnd::Failed(failure))] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((*id, failure.blame), (name(0).into(), Blame::Task));
    assert_eq!(failure.reason, "malformed task: it has 0 seeds from 0 on");
    worker.on(Event::Told(Hand::Sampling));
    let nameless = proto::Task { id: None, ..task(0) };
    assert_eq!(worker.on(Event::Granted(Some(nameless))), [ErrandAction::Ask(vec![])]);
}

#[test]
fn a_worker_that_waits_leaves_at_once() {
    let mut worker = Worker::new();
    assert_eq!(worker.on(Event::Leave(PATIENT)), [ErrandAction::Abandon]);
    assert!(worker.is_over());

    let mut worker = Worker::new();
    worker.on(Event::Granted(Some(task(0))));
    assert_eq!(worker.on(Event::Leave(PATIENT)), [ErrandAction::Abandon]);
    assert!(worker.is_over(), "weights are not waited for");
}

#[test]
fn a_worker_that_leaves_delivers_what_it_draws_unless_that_takes_too_long() {
    let mut worker = Worker::new();
    worker.draw(0);
    worker.on(Event::Granted(Some(task(1))));
    worker.on(Event::Fetched(Ok(WeightsName::policy(2))));
    assert_eq!(worker.on(Event::Leave(PATIENT)), []);
    assert_eq!(worker.errands.ends_by(), None, "drawing takes as long as it takes");
    assert_eq!(worker.on(Event::Drawn(Ok(name(1)))), []);
    let end = worker.errands.ends_by().expect("only delivering is left");
    worker.now += Duration::from_secs(59);
    worker.on(Event::Scored(Ok(name(0))));
    worker.on(Event::Pushed(Ok(Delivered::NotWanted)));
    assert_eq!(worker.on(Event::Told(Hand::Finishing)), [ErrandAction::Score(name(1), name(1))]);
    assert_eq!(worker.errands.ends_by(), Some(end), "one deadline for all");
    assert!(!worker.is_over());
    worker.now = end;
    assert!(worker.is_over());
}

#[test]
fn a_broken_device_leaves_what_is_drawn_to_be_delivered_and_a_broken_scorer_nothing() {
    let mut worker = Worker::new();
    worker.draw(0);
    worker.on(Event::Granted(Some(task(1))));
    worker.on(Event::Fetched(Ok(WeightsName::policy(2))));
    assert_eq!(worker.on(Event::Broken(Hand::Sampling)), []);
    assert!(!worker.is_over());
    worker.on(Event::Scored(Ok(name(0))));
    worker.on(Event::Pushed(Ok(Delivered::Held)));
    assert_eq!(worker.on(Event::Told(Hand::Finishing)), []);
    assert!(worker.is_over());

    let mut worker = Worker::new();
    worker.draw(0);
    assert_eq!(worker.on(Event::Broken(Hand::Finishing)), [ErrandAction::Abandon]);
    assert!(worker.is_over());
}

#[test]
fn what_another_was_faster_with_is_dropped_unless_it_is_being_delivered() {
    let weights = WeightsName::policy(2);
    let mut worker = Worker::new();
    worker.on(Event::Granted(Some(task(0))));
    assert_eq!(worker.on(Event::NotNeeded(name(7))), [], "that is none of its tasks");
    let dropped = || [ErrandAction::Abandon, given_back(0)];
    assert_eq!(worker.on(Event::NotNeeded(name(0))), dropped(), "while weights are fetched");
    assert_eq!(worker.on(Event::NotNeeded(name(0))), [], "it is being told already");
    assert_eq!(worker.on(Event::Told(Hand::Sampling)), [ErrandAction::Ask(vec![])]);

    worker.on(Event::Granted(Some(task(0))));
    worker.on(Event::Fetched(Ok(weights)));
    assert_eq!(worker.on(Event::NotNeeded(name(0))), dropped(), "while it is drawn");
    worker.on(Event::Told(Hand::Sampling));

    worker.draw(1);
    assert_eq!(worker.draw(2), []);
    assert_eq!(worker.on(Event::NotNeeded(name(1))), [], "it is being scored");
    assert_eq!(worker.on(Event::NotNeeded(name(2))), [given_back(2)], "it waits to be scored");
    assert_eq!(worker.on(Event::Told(Hand::Sampling)), [ErrandAction::Ask(vec![name(1)])]);
}

#[test]
fn a_worker_that_is_killed_soon_gives_back_what_it_cannot_finish() {
    let weights = WeightsName::policy(2);
    // Takes 20 s for its first task, and has drawn the second for 5 s; another is being scored or not.
    for (notice, has_other, expected) in [
        (18, false, &[ErrandAction::Abandon, given_back(1)][..]),
        (19, false, &[]),
        (18, true, &[ErrandAction::Abandon, given_back(1)]),
        (300, true, &[]),
    ] {
        let mut worker = Worker::new();
        worker.draw(0);
        worker.now += Duration::from_secs(20);
        worker.on(Event::Scored(Ok(name(0))));
        worker.on(Event::Pushed(Ok(Delivered::Held)));
        worker.on(Event::Told(Hand::Finishing));
        if has_other {
            worker.draw(2);
        }
        worker.on(Event::Granted(Some(task(1))));
        worker.on(Event::Fetched(Ok(weights)));
        worker.now += Duration::from_secs(5);
        assert_eq!(worker.on(killed_after(notice)), expected, "{notice} s");
        let end = worker.now + Duration::from_secs(notice) - LAST_WORDS;
        assert_eq!(worker.errands.ends_by(), Some(end), "also while it draws");
        if !expected.is_empty() {
            worker.on(Event::Told(Hand::Sampling));
            assert_eq!(worker.is_over(), !has_other, "what is being scored is delivered if it can be");
        }
        worker.now = end;
        assert!(worker.is_over());
    }
}

#[test]
fn a_worker_that_does_not_know_how_long_tasks_take_tries_until_shortly_before_it_is_killed() {
    let mut worker = Worker::new();
    worker.on(Event::Granted(Some(task(0))));
    worker.on(Event::Fetched(Ok(WeightsName::policy(2))));
    assert_eq!(worker.on(killed_after(2)), []);
    assert!(!worker.is_over());
    worker.now += Duration::from_secs(1);
    assert!(worker.is_over(), "half of a short notice is left for its goodbye");
}

#[test]
fn weights_that_a_leaving_worker_no_longer_waits_for_free_their_task_while_it_delivers_another() {
    let mut worker = Worker::new();
    worker.draw(0);
    worker.on(Event::Granted(Some(task(1))));
    assert_eq!(worker.on(Event::Leave(PATIENT)), [ErrandAction::Abandon, given_back(1)]);
    worker.on(Event::Told(Hand::Sampling));
    assert!(!worker.is_over());
}

/// Whatever happens in whatever order, a hand is given one thing at a time, and every task is told of once.
#[test]
fn every_task_is_told_of_once_whatever_happens() {
    for seed in 0..2000_u64 {
        let mut random = Backoff::new(Duration::from_secs(1), Duration::from_secs(1), seed);
        let mut choose = |n: u64| random.next_pause().subsec_nanos() as u64 / 7 % n;
        let mut worker = Worker::new();
        let (mut busy, mut n_granted, mut told) = ([Some(Action::Ask(vec![])), None], 0, Vec::new());
        for _ in 0..60 {
            let hands: Vec<usize> = (0..2).filter(|hand| busy[*hand].is_some()).collect();
            let Some(hand) = hands.get(choose(hands.len().max(1) as u64) as usize) else { break };
            let fails = choose(4) == 0;
            if choose(10) == 0 {
                worker.hand_out(Event::NotNeeded(name(choose(1 + u64::from(n_granted)) as u32)), &mut busy);
                continue;
            }
            if choose(100) == 0 {
                worker.now += Duration::from_secs(1);
                let event = match choose(4) {
                    3 => killed_after(choose(30)),
                    0 => Event::Leave(PATIENT),
                    1 => Event::Broken(Hand::Sampling),
                    _ => Event::Broken(Hand::Finishing),
                };
                if let Event::Broken(hand) = event {
                    busy[hand as usize] = None;
                }
                worker.hand_out(event, &mut busy);
                continue;
            }
            let event = match busy[*hand].take().expect("it is busy") {
                Action::Ask(finishing) => {
                    assert!(finishing.len() <= 1);
                    n_granted += 1;
                    Event::Granted(Some(task(n_granted)))
                }
                Action::Fetch(_, weights) => match fails {
                    true => Event::Fetched(Err(WeightsError::Refused { version: 2, problem: String::new() })),
                    false => Event::Fetched(Ok(weights)),
                },
                Action::Draw(task, _) if fails => {
                    Event::Drawn(Err(failure(&task.name.to_string(), Blame::Task)))
                }
                Action::Draw(task, _) => Event::Drawn(Ok(task.name)),
                Action::Score(_, _) if fails => Event::Scored(Err(failure("no", Blame::Worker))),
                Action::Score(task, images) => {
                    assert_eq!(task, images);
                    Event::Scored(Ok(images))
                }
                Action::Push(..) => Event::Pushed(Ok(Delivered::Held)),
                Action::Tell(hand, id, _) => {
                    told.push(TaskName::try_from(&id).expect("a name").index);
                    Event::Told(hand)
                }
                Action::Abandon => unreachable!("nobody leaves"),
            };
            worker.hand_out(event, &mut busy);
        }
        let n_told = told.len();
        told.sort_unstable();
        told.dedup();
        assert_eq!(told.len(), n_told, "seed {seed}: told twice");
        // One that is sampled or drawn, and one that is finished.
        let most_in_hand = if worker.errands.is_leaving() { n_granted as usize } else { 2 };
        assert!(
            n_granted as usize - n_told <= most_in_hand,
            "seed {seed}: {n_granted} granted, {n_told} told of"
        );
        let is_busy = busy.iter().any(Option::is_some);
        assert!(is_busy || worker.is_over(), "seed {seed}: nothing is done and nothing will be");
    }
}
