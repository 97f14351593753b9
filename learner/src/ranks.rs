//! The ranks of the learner: processes that share the tasks of an update and end with the same bits as one would.
//!
//! Every rank holds the whole policy. Each sums the gradients of its own shards, all add them in one order, and all make the
//! same update. What is known only here, scores that advantages are measured against and numbers for the metrics, is
//! exchanged exactly. The first rank alone evaluates, publishes, records and saves.
//!
//! 1. **The first rank says where the run is**: by iteration and updates. Whoever joins its group takes over its policy,
//!    unless it is there already; a rank that dies costs the others nothing but the time until another has its place.
//! 2. **Whenever the group is formed anew, what the group does next begins with the exchange of scores**, so that those who
//!    had done it and those who had not do the same things in the same order.
//! 3. **Nothing that a group does is kept unless all of it succeeded**: the update follows after that. Who made it when the
//!    first rank did not goes back to where that is.
//!
//! [`orders`] says which group there should be, [`group`] makes it, [`position`] is where its ranks are.

pub mod group;
pub mod orders;
pub mod position;
