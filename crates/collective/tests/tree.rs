//! The ordered tree by itself: the same bits wherever the shards lie.

use collective::{SubtreeSums, TreePlan, TreeStep, even_bounds};

/// Numbers that look random: SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// From a hundredth to a hundred, of either sign: sums of these depend on their order.
    fn float(&mut self) -> f32 {
        let sign = if self.below(2) == 0 { 1.0 } else { -1.0 };
        sign * 10f32.powf((self.next() >> 40) as f32 / (1u64 << 24) as f32 * 4.0 - 2.0)
    }
}

/// The definition: halves first, left + right, what is empty left out.
fn by_definition(gradients: &[Option<Vec<f32>>]) -> Option<Vec<f32>> {
    if let [gradient] = gradients {
        return gradient.clone();
    }
    let (left, right) = gradients.split_at(gradients.len() / 2);
    match (by_definition(left), by_definition(right)) {
        (Some(left), Some(right)) => Some(left.iter().zip(right).map(|(left, right)| left + right).collect()),
        (left, right) => left.or(right),
    }
}

/// What the ranks' own sums come to, without a network: the number of sums held at once, and the whole sum.
fn by_plan(plan: &TreePlan, gradients: &[Option<Vec<f32>>]) -> (usize, Option<Vec<f32>>) {
    let mut most_held = 0;
    let mut of_ranks: Vec<Vec<Vec<f32>>> = Vec::new();
    for rank in 0..plan.n_ranks() {
        let mut sums = SubtreeSums::new(rank, 3);
        for (shard, gradient) in gradients.iter().enumerate() {
            if plan.rank_of(shard) == Some(rank) {
                // The one that is added is held beside what was there.
                most_held = most_held.max(sums.n_held() + 1);
                sums.add(plan, shard, gradient.clone().expect("a full shard")).expect("a shard of this rank");
            }
        }
        of_ranks.push(sums.into_subtrees(plan).expect("all shards"));
    }
    let mut of_ranks: Vec<_> = of_ranks.into_iter().map(Vec::into_iter).collect();
    let mut subtrees: Vec<Vec<f32>> =
        plan.subtrees().iter().map(|subtree| of_ranks[subtree.rank].next().expect("a sum")).collect();
    let mut stack: Vec<Vec<f32>> = Vec::new();
    let most_stacked = 1 + plan.n_shards().ilog2() as usize;
    for step in plan.steps() {
        match *step {
            TreeStep::Lay(idx) => stack.push(std::mem::take(&mut subtrees[idx])),
            TreeStep::Add => {
                let upper = stack.pop().expect("an upper sum");
                let below = stack.last_mut().expect("a sum below");
                below.iter_mut().zip(upper).for_each(|(below, upper)| *below += upper);
            }
        }
        assert!(stack.len() <= most_stacked, "{} sums on the stack", stack.len());
    }
    assert!(stack.len() <= 1, "one sum at the end");
    (most_held, stack.pop())
}

fn bits(sum: Option<Vec<f32>>) -> Option<Vec<u32>> {
    sum.map(|sum| sum.into_iter().map(f32::to_bits).collect())
}

#[test]
fn the_order_of_a_sum_shows_in_these_numbers() {
    let mut dice = Dice(1);
    let gradients: Vec<_> = (0..16).map(|_| Some(vec![dice.float(), dice.float(), dice.float()])).collect();
    let tree = bits(by_definition(&gradients)).expect("a sum");
    let one_by_one = gradients.iter().flatten().fold(vec![0.0; 3], |sum: Vec<f32>, gradient| {
        sum.iter().zip(gradient).map(|(sum, gradient)| sum + gradient).collect()
    });
    assert_ne!(bits(Some(one_by_one)), Some(tree), "a wrong order would not be seen");
}

#[test]
fn a_sum_is_the_same_for_every_number_of_ranks_and_some_empty_shards() {
    let mut dice = Dice(2);
    for n_shards in [1, 2, 4, 8, 16, 32] {
        for n_ranks in 1..=n_shards {
            for share_of_empty in [0, 1, 3] {
                let gradients: Vec<Option<Vec<f32>>> = (0..n_shards)
                    .map(|_| {
                        (dice.below(4) >= share_of_empty).then(|| (0..3).map(|_| dice.float()).collect())
                    })
                    .collect();
                let even = TreePlan::even(n_shards, n_ranks).expect("a plan");
                let plan = even.without(|shard| gradients[shard].is_none());
                let (_, sum) = by_plan(&plan, &gradients);
                assert_eq!(
                    bits(sum),
                    bits(by_definition(&gradients)),
                    "{n_shards} shards on {n_ranks} ranks"
                );
            }
        }
    }
}

#[test]
fn a_sum_is_the_same_wherever_the_shards_lie() {
    for seed in 0..2000 {
        let mut dice = Dice(seed);
        let n_shards = 1 << dice.below(6);
        let n_ranks = 1 + dice.below(n_shards);
        let places: Vec<Option<usize>> =
            (0..n_shards).map(|_| (dice.below(5) > 0).then(|| dice.below(n_ranks))).collect();
        let gradients: Vec<_> =
            places.iter().map(|place| place.map(|_| (0..3).map(|_| dice.float()).collect())).collect();
        let plan = TreePlan::new(places, n_ranks).expect("a plan");
        let (_, sum) = by_plan(&plan, &gradients);
        assert_eq!(bits(sum), bits(by_definition(&gradients)), "seed {seed}");
    }
}

#[test]
fn even_shards_need_few_buffers_and_no_rank_is_idle() {
    for n_shards in (0..=10).map(|power| 1 << power) {
        let gradients = vec![Some(vec![1.0; 3]); n_shards];
        for n_ranks in (1..=n_shards).filter(|ranks| *ranks <= 33 || ranks % 37 == 0 || *ranks == n_shards) {
            let plan = TreePlan::even(n_shards, n_ranks).expect("a plan");
            let shards_of = |rank| (0..n_shards).filter(|&shard| plan.rank_of(shard) == Some(rank)).count();
            let counts: Vec<usize> = (0..n_ranks).map(shards_of).collect();
            let (least, most) = (counts.iter().min().expect("a rank"), counts.iter().max().expect("a rank"));
            assert!(*least >= 1 && most - least <= 1, "{n_shards} shards on {n_ranks} ranks: {counts:?}");
            let (most_held, sum) = by_plan(&plan, &gradients);
            assert_eq!(sum, Some(vec![n_shards as f32; 3]));
            // With more shards, small subtrees at the beginning of a rank's share wait beside its large one.
            let bound = n_shards.ilog2() as usize + if n_shards <= 64 { 1 } else { 3 };
            assert!(most_held <= bound, "{n_shards} shards on {n_ranks} ranks: {most_held} gradients held");
        }
    }
}

#[test]
fn what_makes_no_tree_is_refused_with_the_remedy() {
    let refused =
        |plan: Result<TreePlan, collective::CollectiveError>| plan.expect_err("refused").to_string();
    assert_eq!(
        refused(TreePlan::even(8, 9)),
        "9 ranks cannot share 8 shards; have 1 to 8 ranks, or more shards"
    );
    assert!(TreePlan::even(8, 0).is_err());
    assert_eq!(refused(TreePlan::even(6, 2)), "6 shards make no tree; their number must be a power of two");
    assert!(TreePlan::new(Vec::new(), 1).is_err());
    assert_eq!(
        refused(TreePlan::new(vec![Some(0), Some(2)], 2)),
        "a shard lies on rank 2, but there are only 2 ranks"
    );
}

#[test]
fn shards_of_others_out_of_order_missing_or_of_another_length_are_refused() {
    let plan = TreePlan::even(4, 2).expect("a plan");
    let mut sums = SubtreeSums::new(0, 2);
    let refused = |result: Result<(), collective::CollectiveError>| result.expect_err("refused").to_string();
    assert_eq!(refused(sums.add(&plan, 2, vec![0.0; 2])), "shard 2 does not lie on rank 0");
    assert_eq!(refused(sums.add(&plan, 9, vec![0.0; 2])), "shard 9 does not lie on rank 0");
    assert_eq!(refused(sums.add(&plan, 0, vec![0.0; 3])), "the gradient of shard 0 has 3 numbers, not 2");
    sums.add(&plan, 1, vec![0.0; 2]).expect("its shard");
    assert_eq!(refused(sums.add(&plan, 0, vec![0.0; 2])), "shard 0 comes after shard 1; add them in order");
    let missing = sums.into_subtrees(&plan).expect_err("shard 0 is missing");
    assert_eq!(missing.to_string(), "not all gradients of shards 0 to 1 were added");
}

#[test]
fn even_slices_cover_everything_once() {
    assert_eq!(even_bounds(10, 4), [0, 3, 6, 8, 10]);
    assert_eq!(even_bounds(0, 3), [0, 0, 0, 0]);
    assert_eq!(even_bounds(2, 3), [0, 1, 2, 2]);
}
