//! What can be wrong with the numbers a caller hands in.

/// A setting or a value that the maths cannot work with; each variant says what it is and what to do about it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FlowError {
    /// The scheduler's own configuration file asks for something that is not implemented or makes no sense.
    #[error("scheduler setting `{setting}` is {value}, which is not supported; {remedy}")]
    Scheduler {
        /// Key in scheduler_config.json.
        setting: &'static str,
        /// Its value there.
        value: String,
        /// What to write instead.
        remedy: &'static str,
    },

    /// A trajectory needs a step to train and a last one that is never trained, and must fit into memory.
    #[error("there cannot be {steps} sampling steps; use 2 to {}", crate::schedule::MOST_STEPS)]
    NumberOfSteps {
        /// Number of steps asked for.
        steps: usize,
    },

    /// The noise levels do not fall from each step to the next.
    #[error(
        "the schedule of {steps} steps has noise level {sigma} at step {step}, after {previous}; \
         noise levels must fall: use fewer steps or check the scheduler's shift settings"
    )]
    NotDecreasing {
        /// Number of steps asked for.
        steps: usize,
        /// First step whose noise level is not below the one before.
        step: usize,
        /// Its noise level.
        sigma: f32,
        /// The noise level before it.
        previous: f32,
    },

    /// The noise level of a random step is out of its range.
    #[error("noise level {noise_level} does not suit the {rule} step; use a number {range}")]
    NoiseLevel {
        /// Name of the step rule.
        rule: &'static str,
        /// Value asked for.
        noise_level: f64,
        /// The range allowed, in words.
        range: &'static str,
    },

    /// A step index beyond the schedule.
    #[error("step {step} does not exist in a schedule of {steps} steps; steps count from 0")]
    NoSuchStep {
        /// Index asked for.
        step: usize,
        /// Number of steps of the schedule.
        steps: usize,
    },

    /// A reward that is NaN or infinite.
    #[error(
        "reward {value} of prompt slot {prompt_slot}, seed {seed_index}, trained step number {trained_step}, \
         branch {branch} is not finite; check the reward that produced it"
    )]
    NonFiniteReward {
        /// Prompt slot of the task.
        prompt_slot: u32,
        /// Seed index of the task.
        seed_index: u32,
        /// Position among the trained steps, from 0.
        trained_step: usize,
        /// Branch, from 0.
        branch: usize,
        /// As it was given.
        value: f32,
    },

    /// A seed does not come with one reward per trained step and branch.
    #[error(
        "prompt slot {prompt_slot}, seed {seed_index} has {got} rewards; \
         {expected} are expected (trained steps × branches)"
    )]
    RewardCount {
        /// Prompt slot of the task.
        prompt_slot: u32,
        /// Seed index of the task.
        seed_index: u32,
        /// Number of rewards received.
        got: usize,
        /// Number of rewards expected.
        expected: usize,
    },

    /// The same task was handed in twice.
    #[error("prompt slot {prompt_slot}, seed {seed_index} appears twice among the rewards; keep the first")]
    DuplicateSeed {
        /// Prompt slot of the task.
        prompt_slot: u32,
        /// Seed index of the task.
        seed_index: u32,
    },

    /// Rewards that are to be combined are not of the same seeds.
    #[error(
        "reward number {reward} (from 0) covers other seeds than the first; give every reward of every seed"
    )]
    UnevenRewards {
        /// Position of the reward among those combined.
        reward: usize,
    },

    /// A gradient that is NaN or infinite.
    #[error("gradient of `{parameter}` is not finite; lower the learning rate or check rewards and weights")]
    NonFiniteGradient {
        /// Name of the first such parameter.
        parameter: String,
    },

    /// Saved state does not fit the parameters it is loaded for.
    #[error("saved state does not fit: tensor `{tensor}` {problem}")]
    State {
        /// Name of the tensor.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
}
