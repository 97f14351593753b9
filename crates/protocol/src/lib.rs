//! The protocol between coordinator, learner and workers: its names, and its decisions as machines.
//!
//! Nothing here waits, sends, reads a clock or draws a random number: callers say what happened and what the time is, and
//! do what they are told. The services run these machines, and a simulator can run the same ones.

mod backoff;
mod causes;
pub mod cells;
mod errands;
mod in_hand;
mod intake;
mod member_link;
mod names;
mod printable;
mod process;
mod push_fault;
mod push_schema;
pub mod push_tensors;
mod recent_times;
mod relay;
mod retries;
mod task;

pub use backoff::Backoff;
pub use causes::with_causes;
pub use errands::{
    DELIVERY_PATIENCE, ErrandAction, ErrandEvent, Errands, Hand, Leaving, TaskEnd, TaskFailure,
};
pub use in_hand::InHand;
pub use intake::{HoldLimit, Intake, IntakeCounts, Taken, TaskSet, TaskStanding};
pub use member_link::{AfterCall, CallEnd, JoinEnd, JoinRefusal, MemberLink, MembershipLoss};
pub use names::{NameFault, TaskName, WeightsName, WeightsRole, kind_from_wire, kind_to_wire};
pub use printable::is_printable;
pub use process::{NONCE_BYTES, PROGRAM_VERSION, PROTOCOL_VERSION, process};
pub use push_fault::{PushFault, TensorForm};
pub use push_schema::{Digest, PushSchema};
pub use recent_times::{RecentTimes, lower_median};
pub use relay::{
    FAN_OUT, FEWEST_WORKERS, MOST_FAILED_SOURCES, MOST_HELD, RelayPlan, SearchStep, SourceAdvice,
    SourceSearch, SourceSought, WeightsSource, WeightsStream,
};
pub use retries::{
    Delivered, Failure, FetchFailure, Fetching, PushAction, PushError, PushEvent, Pushing, WeightsError,
};
pub use task::{Prompt, Task, TaskFault};
