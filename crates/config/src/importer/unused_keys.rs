//! Flow-Factory's keys that set nothing here, and why.

const LAUNCH: &str = "`coordinator up` starts the processes; how many sample is `resources.workers`";
const ENCODING: &str = "prompts are read as they are and encoded when they are sampled";
const PLACEMENT: &str = "where tensors live is not a setting here";
const LOGGING: &str = "every run writes metrics.jsonl and TensorBoard files";
const NOT_REMOTE: &str = "the scorer is not reached over a network";
const RETRIES: &str = "how often a server is asked again is not a setting here";
const TEXT_TO_IMAGE: &str = "only text-to-image models are trained here";

/// Keys and reasons; a key that is no key of Flow-Factory is not among them.
const REASONS: [(&str, &str); 41] = [
    ("launcher", LAUNCH),
    ("config_file", LAUNCH),
    ("num_processes", LAUNCH),
    ("main_process_port", LAUNCH),
    ("data.cache_dir", ENCODING),
    ("data.enable_preprocess", ENCODING),
    ("data.force_reprocess", ENCODING),
    ("data.preprocessing_batch_size", ENCODING),
    ("data.preprocess_parallelism", ENCODING),
    ("data.dataloader_num_workers", ENCODING),
    ("data.image_dir", TEXT_TO_IMAGE),
    ("data.video_dir", TEXT_TO_IMAGE),
    ("data.audio_dir", TEXT_TO_IMAGE),
    ("data.max_dataset_size", "all prompts of the file are used; shorten the file"),
    ("data.sampler_type", "which prompts are drawn is a function of `run.seed` and the iteration"),
    ("model.attn_backend", "libtorch chooses the attention kernel"),
    ("model.resume_path", "a run goes on by `coordinator resume RUN`"),
    ("model.resume_type", "a run goes on by `coordinator resume RUN`"),
    ("log.project", LOGGING),
    ("log.logging_backend", LOGGING),
    ("log.verbose", "`RUST_LOG` says how much is logged"),
    ("log.save_model_only", "checkpoints always hold all that a run needs to go on"),
    ("train.gradient_accumulation_steps", "follows from `training.updates_per_iteration`"),
    ("train.offload_samples_to_cpu", PLACEMENT),
    ("train.ema_device", PLACEMENT),
    ("train.ref_param_device", PLACEMENT),
    ("train.latent_storage_dtype", "latents are kept in float32, as they were fed to the network"),
    ("train.ema_decay_schedule", "the decay rises as (1 + s)/(10 + s) up to `ema.decay`, s being the update"),
    ("scheduler.seed", "every draw is a function of `run.seed`"),
    ("eval.seed", "every draw is a function of `run.seed`"),
    ("dtype", "the scorer computes in a type of its own"),
    ("device", PLACEMENT),
    ("batch_size", "the scorer takes images as they come"),
    ("async_reward", "images are always scored while others are sampled"),
    ("num_workers", "images are always scored while others are sampled"),
    ("server_url", NOT_REMOTE),
    ("timeout", NOT_REMOTE),
    ("api_base_url", NOT_REMOTE),
    ("vlm_model", NOT_REMOTE),
    ("retry_attempts", RETRIES),
    ("max_retries", RETRIES),
];

/// Why a key sets nothing here; for entries of `rewards` the key inside the entry.
pub(super) fn reason(key: &str) -> &'static str {
    let known = REASONS.iter().find(|(known, _)| *known == key);
    known.map_or("nothing here corresponds to it", |(_, reason)| reason)
}
