//! The tree's sums that lie on several ranks, brought together slice by slice.

use super::plan::{TreePlan, TreeStep};
use super::subtree_sums::{SubtreeSums, add_to};
use crate::{Collective, CollectiveError};
use std::ops::Range;
use std::time::Instant;

/// Numbers that one rank sends another at once: 1 MiB.
const CHUNK: usize = 256 * 1024;

/// Where even slices of so many numbers begin and end: rank r's from `[r]` to `[r + 1]`.
pub fn even_bounds(length: usize, n_ranks: usize) -> Vec<usize> {
    let share = length / n_ranks;
    let rest = length % n_ranks;
    (0..=n_ranks).map(|rank| rank * share + rank.min(rest)).collect()
}

/// The sum over all shards, whole on every rank; zeros where all shards are empty.
///
/// # Errors
/// See [`CollectiveError`].
pub fn ordered_sum(
    group: &mut dyn Collective,
    plan: &TreePlan,
    sums: SubtreeSums,
    deadline: Instant,
) -> Result<Vec<f32>, CollectiveError> {
    let bounds = even_bounds(sums.length(), group.n_ranks());
    let mut sum = sum_own_slice(group, plan, sums, &bounds, deadline)?;
    let byte_bounds: Vec<usize> = bounds.iter().map(|bound| bound * size_of::<f32>()).collect();
    group.all_gather(bytemuck::cast_slice_mut(&mut sum), &byte_bounds, deadline)?;
    Ok(sum)
}

/// The sum over all shards, of which every rank gets its slice: rank r the numbers from `bounds[r]` to `bounds[r + 1]`.
///
/// # Errors
/// See [`CollectiveError`].
pub fn ordered_sum_of_slice(
    group: &mut dyn Collective,
    plan: &TreePlan,
    sums: SubtreeSums,
    bounds: &[usize],
    deadline: Instant,
) -> Result<Vec<f32>, CollectiveError> {
    let mut sum = sum_own_slice(group, plan, sums, bounds, deadline)?;
    sum.truncate(bounds[group.rank() + 1]);
    sum.drain(..bounds[group.rank()]);
    sum.shrink_to_fit();
    Ok(sum)
}

/// Numbers of all slices, of which only this rank's are the sum afterwards.
fn sum_own_slice(
    group: &mut dyn Collective,
    plan: &TreePlan,
    sums: SubtreeSums,
    bounds: &[usize],
    deadline: Instant,
) -> Result<Vec<f32>, CollectiveError> {
    check(group, plan, &sums, bounds)?;
    let length = sums.length();
    let mut own = sums.into_subtrees(plan)?;
    if own.is_empty() {
        own.push(vec![0.0; length]);
    }
    let longest = bounds.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    let mut received: Vec<Vec<f32>> = plan.subtrees().iter().map(|_| Vec::new()).collect();
    for start in (0..longest).step_by(CHUNK) {
        let chunks: Vec<Range<usize>> = bounds
            .windows(2)
            .map(|slice| (slice[0] + start).min(slice[1])..(slice[0] + start + CHUNK).min(slice[1]))
            .collect();
        exchange_chunks(group, plan, &own, &chunks, &mut received, deadline)?;
        join_chunk(group.rank(), plan, &mut own, &chunks[group.rank()], &mut received);
    }
    Ok(own.swap_remove(0))
}

fn check(
    group: &dyn Collective,
    plan: &TreePlan,
    sums: &SubtreeSums,
    bounds: &[usize],
) -> Result<(), CollectiveError> {
    let (rank, n_ranks) = (group.rank(), group.n_ranks());
    let problem = if plan.n_ranks() != n_ranks {
        format!("the tree is planned for {} ranks, and the group has {n_ranks}", plan.n_ranks())
    } else if sums.rank() != rank {
        format!("the sums are those of rank {}, and this is rank {rank}", sums.rank())
    } else if !are_bounds(bounds, n_ranks, sums.length()) {
        format!("{bounds:?} do not divide {} numbers among {n_ranks} ranks", sums.length())
    } else {
        return Ok(());
    };
    Err(CollectiveError::Argument(problem))
}

/// Whether these numbers divide the whole, in order and without a gap.
pub(crate) fn are_bounds(bounds: &[usize], n_ranks: usize, length: usize) -> bool {
    let ends = (bounds.first(), bounds.last());
    bounds.len() == n_ranks + 1 && ends == (Some(&0), Some(&length)) && bounds.is_sorted()
}

/// Sends every rank its chunk of this rank's subtrees, and receives its own chunk of all others: the first subtree of
/// every rank, then the second, and so on, so that nothing is copied together.
fn exchange_chunks(
    group: &mut dyn Collective,
    plan: &TreePlan,
    own: &[Vec<f32>],
    chunks: &[Range<usize>],
    received: &mut [Vec<f32>],
    deadline: Instant,
) -> Result<(), CollectiveError> {
    let rank = group.rank();
    let of_rank = |rank: usize| {
        let all = plan.subtrees().iter().enumerate();
        all.filter(move |(_, subtree)| subtree.rank == rank).map(|(idx, _)| idx)
    };
    let by_rank: Vec<Vec<usize>> = (0..group.n_ranks()).map(|rank| of_rank(rank).collect()).collect();
    let n_turns = by_rank.iter().map(Vec::len).max().unwrap_or(0);
    for turn in 0..n_turns {
        let sent = own.get(turn).filter(|_| turn < by_rank[rank].len());
        let to = |chunk: &Range<usize>| sent.map_or(&[][..], |sent| &sent[chunk.clone()]);
        let outgoing: Vec<&[u8]> = chunks.iter().map(|chunk| bytemuck::cast_slice(to(chunk))).collect();
        let mut places: Vec<Option<&mut Vec<f32>>> = received.iter_mut().map(Some).collect();
        let mut incoming: Vec<&mut [u8]> = Vec::new();
        for (from, subtrees) in by_rank.iter().enumerate() {
            let place = subtrees.get(turn).filter(|_| from != rank).and_then(|&idx| places[idx].take());
            incoming.push(match place {
                Some(place) => {
                    place.resize(chunks[rank].len(), 0.0);
                    bytemuck::cast_slice_mut(place)
                }
                None => &mut [],
            });
        }
        group.all_to_all(&outgoing, &mut incoming, deadline)?;
    }
    Ok(())
}

/// Adds one chunk of all subtrees in the tree's order, and lays the sum where the result will be.
fn join_chunk(
    rank: usize,
    plan: &TreePlan,
    own: &mut [Vec<f32>],
    chunk: &Range<usize>,
    received: &mut [Vec<f32>],
) {
    let mut own_chunks = own.iter_mut().map(|sum| &mut sum[chunk.clone()]);
    let mut pieces: Vec<Option<&mut [f32]>> = Vec::new();
    for (subtree, received) in plan.subtrees().iter().zip(&mut *received) {
        pieces.push(if subtree.rank == rank { own_chunks.next() } else { Some(received) });
    }
    let mut stack: Vec<&mut [f32]> = Vec::new();
    for step in plan.steps() {
        match *step {
            TreeStep::Lay(idx) => stack.extend(pieces[idx].take()),
            TreeStep::Add => {
                let upper = stack.pop();
                if let (Some(below), Some(upper)) = (stack.last_mut(), upper) {
                    add_to(below, upper);
                }
            }
        }
    }
    // The first subtree is the left side of every sum that it is in, so the whole is now where that was.
    if plan.subtrees().first().is_some_and(|first| first.rank != rank) {
        own[0][chunk.clone()].copy_from_slice(&received[0]);
    }
}
