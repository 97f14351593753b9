//! What processes ask of the world is done, and messages find their way.

use crate::bug::Bug;
use crate::network::Fate;
use crate::process::ProcessId;
use crate::scenario::Host;
use crate::stage::{Act, Answer, CallId, Callee, Reply, Request, Wake};
use crate::world::{Actor, Event, Pending, World};
use std::time::Duration;
use tonic::Status;

/// What a caller hears whose connection broke.
pub(crate) fn broken() -> Status {
    Status::unavailable("the connection broke")
}

impl World {
    pub(crate) fn carry_out(&mut self, own: ProcessId, from: Host, act: Act) {
        match act {
            Act::Call(call, callee, request, deadline) => {
                if self.bug != Some(Bug::WaitsForever) {
                    self.agenda.after(deadline, Event::Wake(own, Wake::Deadline(call)));
                }
                self.send(call, (own, from), callee, request);
            }
            Act::HangUp(call) => {
                if let Some(pending) = self.calls.remove(&call)
                    && !self.network.is_cut(pending.from, pending.to, self.agenda.now())
                {
                    let pause = self.dice.millis(1, 50);
                    self.agenda.after(pause, Event::HangUp(call));
                }
            }
            Act::Reply(call, answer) => self.send_back(call, answer),
            Act::After(pause, wake) => self.agenda.after(pause, Event::Wake(own, wake)),
            Act::Exit(code) => self.end(own, Some(code)),
        }
    }

    fn host_of(&self, callee: Callee) -> Host {
        match callee {
            Callee::Coordinator => Host::Coordinator,
            Callee::Learner(_) => Host::Learner,
            // Nobody listens at a process that is gone, wherever it was.
            Callee::Worker(process) => {
                self.processes.get(&process).map_or(Host::Worker(0), |process| process.host)
            }
        }
    }

    fn send(&mut self, call: CallId, (caller, from): (ProcessId, Host), callee: Callee, request: Request) {
        let to = self.host_of(callee);
        self.calls.insert(call, Pending { caller, from, to, callee: None });
        let is_bulk = matches!(request, Request::Push { .. });
        if is_bulk && self.network.damages() {
            return self
                .agenda
                .after(Duration::from_millis(100), Event::Answer(call, Err(Status::data_loss("damaged"))));
        }
        match self.network.fate(from, to, self.agenda.now()) {
            Fate::Arrives(arrivals) => {
                for pause in arrivals {
                    self.agenda.after(pause, Event::Request(call, callee, Box::new(request.clone())));
                }
            }
            Fate::Vanishes => {}
            Fate::Breaks(pause) => {
                if self.dice.happens(500) {
                    self.agenda.after(pause, Event::Request(call, callee, Box::new(request)));
                }
                self.agenda.after(pause / 2, Event::Answer(call, Err(broken())));
            }
        }
    }

    pub(crate) fn request_arrives(&mut self, call: CallId, callee: Callee, request: Box<Request>) {
        let pending = self.calls.get(&call).copied();
        let process = match callee {
            Callee::Coordinator => self.coordinator,
            Callee::Learner(process) | Callee::Worker(process) => Some(process),
        };
        let process = process.filter(|process| self.processes.contains_key(process));
        let Some(process) = process else {
            return self.send_back(call, Err(Status::unavailable("nobody listens")));
        };
        if let Some(Pending { from, to, .. }) = pending
            && self.network.is_cut(from, to, self.agenda.now())
        {
            return;
        }
        if self.defer(process, || Event::Request(call, callee, request.clone())) {
            return;
        }
        if let Some(pending) = self.calls.get_mut(&call) {
            pending.callee = Some(process);
        }
        self.act(process, |actor, stage| match actor {
            Actor::Hub(hub) => hub.asked(call, *request, stage),
            Actor::Learner(learner) => learner.asked(call, *request, stage),
            Actor::Worker(worker) => worker.asked(call, &request, stage),
        });
    }

    pub(crate) fn send_back(&mut self, call: CallId, answer: Answer) {
        let Some(Pending { from, to, .. }) = self.calls.get(&call).copied() else { return };
        let is_damaged = matches!(answer, Ok(Reply::Weights(_))) && self.network.damages();
        let answer = if is_damaged { Err(Status::data_loss("damaged")) } else { answer };
        match self.network.fate(to, from, self.agenda.now()) {
            Fate::Arrives(arrivals) => self.agenda.after(arrivals[0], Event::Answer(call, answer)),
            Fate::Vanishes => {}
            Fate::Breaks(pause) => self.agenda.after(pause, Event::Answer(call, Err(broken()))),
        }
    }
}
