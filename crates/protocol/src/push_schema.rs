//! What a push holds: the tensors that the config and the model imply, by which it is checked before its bytes are here.

use crate::push_tensors::{self, HASH_BYTES, LONGEST_EXTRA_KEY, MOST_EXTRAS, embedding_part_of, extra_of};
use crate::{PushFault, is_printable};
use config::{TaskKind, TaskSpec};
use proto::{ElementType, PushHeader, TaskCost, TensorInfo};
use std::collections::BTreeMap;

/// Name of a prompt's embedding: the BLAKE3 digest of its tensors.
pub type Digest = [u8; 32];

/// More than any task takes, in seconds, and more than it counts: what a record could not hold or add up.
const MOST_SECONDS: f64 = 1e9;
const MOST_COUNTED: u64 = 1 << 40;
const TEXT: &str = "text";
const POOLED: &str = "pooled";
const TEXT_MASK: &str = "text_mask";

/// The sizes that the config and the model imply for every push.
#[derive(Clone, Debug, PartialEq)]
pub struct PushSchema {
    /// Shape of one image's latents.
    pub latent_shape: Vec<i64>,
    /// Features of a token of the text, and of the pooled text: 0 where the model takes none.
    pub embedding_widths: (i64, i64),
    /// The most tokens that a text has.
    pub most_tokens: i64,
    /// Pixels: height and width.
    pub image_size: (i64, i64),
    /// Branches per seed and step.
    pub n_branches: usize,
    /// Names of the rewards of training.
    pub training_rewards: Vec<String>,
    /// Names of the rewards of evaluations.
    pub evaluation_rewards: Vec<String>,
    /// Whether there is guidance, hence a negative prompt.
    pub is_guided: bool,
}

impl PushSchema {
    /// Names of the rewards that score the images of a kind of task.
    pub fn rewards(&self, kind: TaskKind) -> &[String] {
        match kind {
            TaskKind::Train => &self.training_rewards,
            TaskKind::Evaluate | TaskKind::Test => &self.evaluation_rewards,
        }
    }

    /// Elements of one image's latents.
    pub fn latent_len(&self) -> usize {
        self.latent_shape.iter().product::<i64>() as usize
    }

    /// The tensors that a push of `task` must announce, embeddings and `next_latents` aside.
    fn expected(&self, task: &TaskSpec, n_steps: usize) -> Vec<TensorInfo> {
        let (height, width) = self.image_size;
        let (scored, mut tensors) = match task.kind {
            TaskKind::Train => {
                let cells = [i64::from(task.n_seeds), n_steps as i64];
                let moves = [cells[0], cells[1], self.n_branches as i64];
                let latents = [&cells[..], &self.latent_shape].concat();
                let hashes = [&moves[..], &[HASH_BYTES as i64]].concat();
                let tensors = vec![
                    tensor_info(push_tensors::STATES, &latents, ElementType::F32),
                    tensor_info(push_tensors::MEANS, &latents, ElementType::F32),
                    tensor_info(push_tensors::LOG_PROBS, &moves, ElementType::F32),
                    tensor_info(push_tensors::NEXT_HASHES, &hashes, ElementType::U8),
                ];
                (moves.to_vec(), tensors)
            }
            TaskKind::Evaluate | TaskKind::Test => {
                let n_images = n_images(task);
                (
                    vec![n_images],
                    vec![tensor_info(push_tensors::IMAGES, &[n_images, height, width, 3], ElementType::U8)],
                )
            }
        };
        tensors.push(tensor_info(push_tensors::REWARDS, &scored, ElementType::F32));
        let scores = self.rewards(task.kind).iter().map(|name| push_tensors::score_name(name));
        tensors.extend(scores.map(|name| tensor_info(&name, &scored, ElementType::F32)));
        tensors
    }

    /// Bytes that the outcome of a task takes at most where it is held, embeddings and extras aside: what is sent, and next
    /// latents, which are rebuilt where they are not sent.
    pub fn outcome_bytes(&self, task: &TaskSpec, n_steps: usize) -> u64 {
        let sent: u64 = self.expected(task, n_steps).iter().map(n_bytes).sum();
        let is_training = task.kind == TaskKind::Train;
        let n_moves = u64::from(task.n_seeds) * (n_steps * self.n_branches) as u64;
        let next_latents = n_moves * self.latent_len() as u64 * size_of::<f32>() as u64;
        sent + if is_training { next_latents } else { 0 }
    }

    /// Checks everything that a header claims, so that only wanted bytes are received.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, header: &PushHeader, task: &TaskSpec, steps: &[u32]) -> Result<(), PushFault> {
        if header.version != task.version {
            return Err(PushFault::Version { got: header.version, wanted: task.version });
        }
        if let Some(cost) = &header.cost {
            check_cost(cost)?;
        }
        if task.kind == TaskKind::Train {
            self.check_training(header, steps)?;
        }
        let expected = self.expected(task, steps.len());
        for wanted in &expected {
            match header.tensors.iter().find(|info| info.name == wanted.name) {
                Some(info) if info == wanted => {}
                Some(info) => return Err(misfit(info, wanted)),
                None => return Err(PushFault::Missing(wanted.name.clone())),
            }
        }
        self.check_number_of_extras(header)?;
        for (position, info) in header.tensors.iter().enumerate() {
            if header.tensors[..position].iter().any(|earlier| earlier.name == info.name) {
                return Err(PushFault::Twice(info.name.clone()));
            }
            if !expected.contains(info) {
                self.check_optional(info, header, task, steps.len())?;
            }
        }
        self.check_embeddings(header)
    }

    fn check_training(&self, header: &PushHeader, steps: &[u32]) -> Result<(), PushFault> {
        if header.steps != steps {
            return Err(PushFault::Steps { got: header.steps.clone(), trained: steps.to_vec() });
        }
        let negative_length = if self.is_guided { size_of::<Digest>() } else { 0 };
        if header.conditioning.len() != size_of::<Digest>()
            || header.negative_conditioning.len() != negative_length
        {
            return Err(PushFault::Digest);
        }
        Ok(())
    }

    fn check_optional(
        &self,
        info: &TensorInfo,
        header: &PushHeader,
        task: &TaskSpec,
        n_steps: usize,
    ) -> Result<(), PushFault> {
        let is_training = task.kind == TaskKind::Train;
        if let Some((reward, key)) = extra_of(&info.name).filter(|_| !is_training) {
            return self.check_extra(info, reward, key, n_images(task));
        }
        if is_training && info.name == push_tensors::NEXT_LATENTS {
            let moves = [i64::from(task.n_seeds), n_steps as i64, self.n_branches as i64];
            let shape = [&moves[..], &self.latent_shape].concat();
            return match info.shape == shape && info.element_type() == ElementType::F32 {
                true => Ok(()),
                false => Err(PushFault::NextLatents(info.into())),
            };
        }
        let owners = [&header.conditioning, &header.negative_conditioning];
        let is_owned = |digest: &Digest| owners.iter().any(|owner| ***owner == *digest);
        match embedding_part_of(&info.name).filter(|(digest, _)| is_training && is_owned(digest)) {
            None => Err(PushFault::OfNoUse(info.name.clone())),
            Some((_, part)) if self.fits_embedding(part, info) => Ok(()),
            Some(_) => {
                let (text_width, pooled_width) = self.embedding_widths;
                Err(PushFault::Embedding {
                    tensor: info.name.clone(),
                    got: info.into(),
                    text_width,
                    pooled_width,
                    most_tokens: self.most_tokens,
                })
            }
        }
    }

    fn check_extra(
        &self,
        info: &TensorInfo,
        reward: &str,
        key: &str,
        n_images: i64,
    ) -> Result<(), PushFault> {
        if !self.evaluation_rewards.iter().any(|known| known == reward) {
            return Err(PushFault::ExtraOfNoReward);
        }
        if !key.chars().all(is_printable) {
            return Err(PushFault::ExtraUnprintable(reward.to_owned()));
        }
        if !(1..=LONGEST_EXTRA_KEY).contains(&key.len()) {
            return Err(PushFault::ExtraKey { reward: reward.to_owned(), n_bytes: key.len() });
        }
        let expected = tensor_info(&info.name, &[n_images], ElementType::F32);
        if *info == expected { Ok(()) } else { Err(misfit(info, &expected)) }
    }

    fn check_number_of_extras(&self, header: &PushHeader) -> Result<(), PushFault> {
        for reward in &self.evaluation_rewards {
            let of_reward =
                |info: &&TensorInfo| extra_of(&info.name).is_some_and(|(owner, _)| owner == reward);
            let n_extras = header.tensors.iter().filter(of_reward).count();
            if n_extras > MOST_EXTRAS {
                return Err(PushFault::Extras { reward: reward.clone(), n_extras });
            }
        }
        Ok(())
    }

    /// Whether the model can take a tensor of one embedding's; the network would panic at any other.
    fn fits_embedding(&self, part: &str, info: &TensorInfo) -> bool {
        let (text_width, pooled_width) = self.embedding_widths;
        let is_float = matches!(info.element_type(), ElementType::F32 | ElementType::Bf16);
        let are_tokens = |tokens: &i64| (1..=self.most_tokens).contains(tokens);
        match (part, info.shape.as_slice()) {
            (TEXT, [1, tokens, width]) => is_float && are_tokens(tokens) && *width == text_width,
            (POOLED, [1, width]) => is_float && *width == pooled_width,
            (TEXT_MASK, [1, tokens]) => info.element_type() == ElementType::I64 && are_tokens(tokens),
            _ => false,
        }
    }

    /// Checks that every embedding that comes along is whole, its tensors having been checked one by one.
    fn check_embeddings(&self, header: &PushHeader) -> Result<(), PushFault> {
        for owner in [&header.conditioning, &header.negative_conditioning] {
            let of_owner = header.tensors.iter().filter_map(|info| {
                embedding_part_of(&info.name)
                    .filter(|(digest, _)| **owner == *digest)
                    .map(|(_, part)| (part, info.shape.get(1)))
            });
            let parts: BTreeMap<&str, Option<&i64>> = of_owner.collect();
            let is_whole =
                parts.contains_key(TEXT) && parts.contains_key(POOLED) == (self.embedding_widths.1 > 0);
            if !parts.is_empty() && !is_whole {
                return Err(PushFault::PartOfEmbedding);
            }
            if parts.get(TEXT_MASK).is_some_and(|tokens| Some(tokens) != parts.get(TEXT)) {
                return Err(PushFault::MaskLength);
            }
        }
        Ok(())
    }
}

fn n_images(task: &TaskSpec) -> i64 {
    task.prompts.len() as i64 * i64::from(task.n_seeds)
}

fn check_cost(cost: &TaskCost) -> Result<(), PushFault> {
    let seconds = [cost.sampling_seconds, cost.reward_seconds, cost.decoding_seconds];
    let counted = [cost.network_evaluations, cost.images];
    let is_possible = seconds.iter().all(|seconds| (0.0..=MOST_SECONDS).contains(seconds))
        && counted.iter().all(|count| *count <= MOST_COUNTED);
    if is_possible { Ok(()) } else { Err(PushFault::Cost(*cost)) }
}

fn misfit(info: &TensorInfo, expected: &TensorInfo) -> PushFault {
    PushFault::Form { tensor: info.name.clone(), got: info.into(), expected: expected.into() }
}

fn tensor_info(name: &str, shape: &[i64], element_type: ElementType) -> TensorInfo {
    TensorInfo { name: name.to_owned(), shape: shape.to_vec(), element_type: element_type.into() }
}

/// Bytes of a tensor of the schema's own, whose shape is possible.
fn n_bytes(info: &TensorInfo) -> u64 {
    let element = match info.element_type() {
        ElementType::F32 => 4,
        ElementType::Bf16 => 2,
        ElementType::I64 => 8,
        ElementType::U8 | ElementType::Unspecified => 1,
    };
    info.shape.iter().map(|size| *size as u64).product::<u64>() * element
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> PushSchema {
        PushSchema {
            latent_shape: vec![4, 2, 2],
            embedding_widths: (128, 64),
            most_tokens: 12,
            image_size: (16, 16),
            n_branches: 3,
            training_rewards: vec!["shapes".to_owned()],
            evaluation_rewards: vec!["shapes".to_owned(), "geneval".to_owned()],
            is_guided: true,
        }
    }

    fn train_task() -> TaskSpec {
        TaskSpec {
            kind: TaskKind::Train,
            iteration: 2,
            index: 0,
            version: 2,
            prompts: vec![7],
            prompt_slot: 0,
            first_seed: 0,
            n_seeds: 2,
        }
    }

    fn header(task: &TaskSpec) -> PushHeader {
        PushHeader {
            version: 2,
            tensors: schema().expected(task, 5),
            steps: vec![0, 1, 2, 3, 4],
            conditioning: vec![1; 32].into(),
            negative_conditioning: vec![2; 32].into(),
            ..PushHeader::default()
        }
    }

    #[test]
    fn the_memory_of_an_outcome_is_that_of_what_is_sent_and_rebuilt() {
        let (cells, moves, latent) = (2 * 5, 2 * 5 * 3, 4 * 2 * 2);
        let sent = 4 * (2 * cells * latent + moves) + 8 * moves + 4 * 2 * moves;
        let rebuilt = 4 * moves * latent;
        assert_eq!(schema().outcome_bytes(&train_task(), 5), sent + rebuilt);
        let images = TaskSpec { kind: TaskKind::Evaluate, prompts: vec![0, 1, 2], ..train_task() };
        let n_images = 6;
        assert_eq!(schema().outcome_bytes(&images, 0), n_images * (16 * 16 * 3 + 4 * 3));
    }

    fn refusal(change: impl FnOnce(&mut PushHeader)) -> String {
        let mut header = header(&train_task());
        change(&mut header);
        schema().check(&header, &train_task(), &[0, 1, 2, 3, 4]).unwrap_err().to_string()
    }

    fn embedding(digest: u8, part: &str, shape: &[i64]) -> TensorInfo {
        let name = push_tensors::embedding_part_name(&[digest; 32], part);
        TensorInfo { name, shape: shape.to_vec(), element_type: ElementType::F32.into() }
    }

    #[test]
    fn what_the_config_implies_is_accepted() {
        let mut full = header(&train_task());
        for digest in [1, 2] {
            full.tensors.push(embedding(digest, "text", &[1, 10, 128]));
            full.tensors.push(embedding(digest, "pooled", &[1, 64]));
        }
        let shape = vec![2, 5, 3, 4, 2, 2];
        full.tensors.push(TensorInfo {
            name: push_tensors::NEXT_LATENTS.to_owned(),
            shape,
            element_type: ElementType::F32.into(),
        });
        assert_eq!(schema().check(&full, &train_task(), &[0, 1, 2, 3, 4]), Ok(()));
        let evaluation = TaskSpec { kind: TaskKind::Evaluate, prompts: vec![0, 1, 2], ..train_task() };
        let header = PushHeader { steps: vec![], ..header(&evaluation) };
        assert_eq!(header.tensors[0].shape, [6, 16, 16, 3]);
        assert_eq!(schema().check(&header, &evaluation, &[]), Ok(()));
    }

    #[test]
    fn every_claim_that_does_not_fit_is_named() {
        assert!(refusal(|header| header.version = 1).contains("version 1"));
        assert!(refusal(|header| header.steps = vec![0]).contains("steps are [0]"));
        assert!(refusal(|header| header.conditioning = vec![1; 31].into()).contains("`conditioning`"));
        assert!(refusal(|header| header.tensors[0].shape[0] = 1 << 40).contains("tensor `states`"));
        assert!(refusal(|header| header.tensors[2].element_type = 2).contains("ELEMENT_TYPE_BF16"));
        let missing = refusal(|header| {
            header.tensors.remove(1);
        });
        assert!(missing.contains("`means` is missing"));
        assert!(refusal(|header| header.tensors.push(header.tensors[0].clone())).contains("twice"));
    }

    #[test]
    fn what_a_task_cannot_have_cost_is_refused() {
        let costs = [
            TaskCost { sampling_seconds: f64::NAN, ..TaskCost::default() },
            TaskCost { reward_seconds: -1.0, ..TaskCost::default() },
            TaskCost { decoding_seconds: f64::INFINITY, ..TaskCost::default() },
            TaskCost { images: u64::MAX, ..TaskCost::default() },
            TaskCost { network_evaluations: 1 << 41, ..TaskCost::default() },
        ];
        for cost in costs {
            assert!(refusal(|header| header.cost = Some(cost)).contains("no task costs"), "{cost:?}");
        }
    }

    fn evaluation() -> (TaskSpec, PushHeader) {
        let task = TaskSpec { kind: TaskKind::Evaluate, prompts: vec![0, 1, 2], ..train_task() };
        let header = PushHeader { version: 2, tensors: schema().expected(&task, 0), ..PushHeader::default() };
        (task, header)
    }

    fn extra(name: &str, shape: &[i64]) -> TensorInfo {
        TensorInfo { name: name.to_owned(), shape: shape.to_vec(), element_type: ElementType::F32.into() }
    }

    #[test]
    fn training_and_evaluation_are_scored_by_their_own_rewards() {
        let scores = |tensors: &[TensorInfo]| -> Vec<String> {
            tensors.iter().map(|info| info.name.clone()).filter(|name| name.starts_with("reward.")).collect()
        };
        assert_eq!(scores(&schema().expected(&train_task(), 5)), ["reward.shapes"]);
        let (task, mut header) = evaluation();
        assert_eq!(scores(&header.tensors), ["reward.shapes", "reward.geneval"]);
        header.tensors.retain(|info| info.name != "reward.geneval");
        assert_eq!(schema().check(&header, &task, &[]), Err(PushFault::Missing("reward.geneval".to_owned())));
    }

    #[test]
    fn extras_come_with_evaluations_within_bounds() {
        let push = |extras: &[TensorInfo]| {
            let (task, mut header) = evaluation();
            header.tensors.extend_from_slice(extras);
            schema().check(&header, &task, &[])
        };
        let many = |count: usize| -> Vec<TensorInfo> {
            (0..count).map(|number| extra(&format!("extra.geneval/{number}"), &[6])).collect()
        };
        assert_eq!(push(&many(64)), Ok(()));
        assert!(push(&many(65)).unwrap_err().to_string().contains("`geneval` has 65 extras; at most 64"));
        let key = |length: usize| extra(&format!("extra.shapes/{}", "k".repeat(length)), &[6]);
        assert_eq!(push(&[key(100)]), Ok(()));
        for length in [0, 101] {
            assert!(
                push(&[key(length)]).unwrap_err().to_string().contains(&format!("a key of {length} bytes"))
            );
        }
        assert!(push(&[extra("extra.shapes/a", &[5])]).unwrap_err().to_string().contains("[6] is expected"));
        assert!(
            push(&[extra("extra.other/a", &[6])])
                .unwrap_err()
                .to_string()
                .contains("no evaluation is scored by")
        );
        let training = refusal(|header| header.tensors.push(extra("extra.shapes/a", &[6])));
        assert!(training.contains("of no use here"), "{training}");
    }

    #[test]
    fn embeddings_that_the_network_would_panic_at_are_refused() {
        let refused = |tensors: &[(u8, &str, &[i64])]| {
            let tensors = tensors.iter().map(|(digest, part, shape)| embedding(*digest, part, shape));
            refusal(|header| header.tensors.extend(tensors))
        };
        assert!(refused(&[(9, "text", &[1, 10, 128])]).contains("of no use"));
        let misfits: [(&str, &[i64]); 12] = [
            ("text", &[1, 13, 128]),
            ("text", &[1, 1 << 30, 128]),
            ("text", &[1, i64::MAX, 128]),
            ("text_mask", &[1, 10]),
            ("text", &[1, 10, 127]),
            ("text", &[2, 10, 128]),
            ("text", &[1, 0, 128]),
            ("text", &[1, -10, 128]),
            ("text", &[10, 128]),
            ("pooled", &[1, 128]),
            ("text_mask", &[1, 1, 1]),
            ("more", &[1, 10, 128]),
        ];
        for (part, shape) in misfits {
            let refusal = refused(&[(1, part, shape)]);
            assert!(refusal.contains("does not fit the model"), "{part} {shape:?}: {refusal}");
        }
        assert!(refused(&[(1, "text", &[1, 10, 128])]).contains("without its `text` or `pooled`"));
        assert!(refused(&[(1, "pooled", &[1, 64])]).contains("without its `text` or `pooled`"));
        let whole: [(u8, &str, &[i64]); 2] = [(1, "text", &[1, 10, 128]), (1, "pooled", &[1, 64])];
        let refusal = refusal(|header| {
            header.tensors.extend(whole.map(|(digest, part, shape)| embedding(digest, part, shape)));
            let mask = embedding(1, "text_mask", &[1, 9]);
            header.tensors.push(TensorInfo { element_type: ElementType::I64.into(), ..mask });
        });
        assert!(refusal.contains("not as long"), "{refusal}");
    }
}
