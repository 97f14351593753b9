//! What a plan says of memory: the parts of each process, the cards that they fit, and what takes less.

use super::text_line::line;
use crate::{
    CARDS, ComputeDevice, HEADROOM, MemoryPart, MemoryPlace, MemoryPlan, ModelInspection, Remedy,
    RewardInspection, RunConfig, human_bytes, memory_plan, remedies, total_bytes,
};
use std::fmt;

/// Least bytes that are worth a line among the remedies.
const WORTH_TELLING: f64 = 100e6;

/// Writes all of it.
pub(super) fn write_memory(
    f: &mut fmt::Formatter<'_>,
    config: &RunConfig,
    model: &ModelInspection,
    rewards: &[RewardInspection],
) -> fmt::Result {
    let memory = memory_plan(config, model, rewards);
    let is_cpu = config.resources.device.is_cpu();
    write_process(f, "memory of the learner", &memory.learner, is_cpu)?;
    if !memory.embedding.is_empty() {
        write_process(
            f,
            "memory of each rollout worker that embeds prompts first",
            &memory.embedding,
            is_cpu,
        )?;
    }
    write_process(f, "memory of each rollout worker", &memory.worker, is_cpu)?;
    let mut on_card = config.clone();
    if is_cpu {
        on_card.resources.device = ComputeDevice::Cuda;
    }
    write_cards(f, &on_card, &memory_plan(&on_card, model, rewards), is_cpu)?;
    write_remedies(f, &on_card, model, rewards)
}

fn write_process(f: &mut fmt::Formatter<'_>, title: &str, parts: &[MemoryPart], is_cpu: bool) -> fmt::Result {
    writeln!(f, "{title}")?;
    for part in parts.iter().filter(|part| part.bytes > 0.0) {
        let is_apart = part.place == MemoryPlace::Host && !is_cpu;
        let remarks = [(is_apart, "host"), (part.is_estimate, "estimated")];
        let remarks: Vec<&str> = remarks.iter().filter(|(is_so, _)| *is_so).map(|(_, word)| *word).collect();
        line(f, &part.name, &human_bytes(part.bytes), &remarks.join(", "))?;
    }
    let (on_device, on_host) =
        (total_bytes(parts, MemoryPlace::Device), total_bytes(parts, MemoryPlace::Host));
    if is_cpu {
        return line(f, "in all", &human_bytes(on_device + on_host), "");
    }
    line(f, "on the GPU", &human_bytes(on_device), "")?;
    line(f, "in host memory", &human_bytes(on_host), "")
}

/// Bytes of a card that learner, worker and both take.
fn on_device(memory: &MemoryPlan) -> [f64; 3] {
    let (learner, worker) =
        (memory.learner_bytes(MemoryPlace::Device), memory.worker_bytes(MemoryPlace::Device));
    [learner, worker, learner + worker]
}

fn write_cards(
    f: &mut fmt::Formatter<'_>,
    config: &RunConfig,
    memory: &MemoryPlan,
    is_cpu: bool,
) -> fmt::Result {
    let condition = if is_cpu {
        format!(", with resources.device = \"{}\"", config.resources.device)
    } else {
        String::new()
    };
    let free = 100.0 * HEADROOM;
    writeln!(f, "cards that it fits, {free:.0} % of each left free and a GB read as 10^9 bytes{condition}")?;
    writeln!(f, "  (what is marked as estimated above, and so this, has never been measured on a card)")?;
    card_row(f, "", ["learner", "worker", "both on one"])?;
    for card in &CARDS {
        let fits = on_device(memory).map(|bytes| if card.takes(bytes) { "fits" } else { "no" });
        card_row(f, &card.to_string(), fits)?;
    }
    let needs = on_device(memory).map(|bytes| format!("{:.1} GB", bytes / 1e9));
    card_row(f, "takes", needs.each_ref().map(String::as_str))
}

fn card_row(f: &mut fmt::Formatter<'_>, name: &str, [learner, worker, both]: [&str; 3]) -> fmt::Result {
    writeln!(f, "  {name:<34} {learner:>10} {worker:>10} {both:>12}")
}

/// Says what takes less, unless the smallest card has room for everything.
fn write_remedies(
    f: &mut fmt::Formatter<'_>,
    config: &RunConfig,
    model: &ModelInspection,
    rewards: &[RewardInspection],
) -> fmt::Result {
    let [.., both] = on_device(&memory_plan(config, model, rewards));
    let (all, with_all) = remedies(config, model, rewards);
    let is_worth_telling = |remedy: &&Remedy| remedy.learner.max(remedy.worker) >= WORTH_TELLING;
    let told: Vec<&Remedy> = all.iter().filter(is_worth_telling).collect();
    if CARDS[0].takes(both) || told.is_empty() {
        return Ok(());
    }
    writeln!(f, "what takes less of a card")?;
    for remedy in told {
        let freed = [("learner", remedy.learner), ("worker", remedy.worker)];
        let freed = freed.iter().filter(|(_, bytes)| *bytes >= WORTH_TELLING);
        let freed: Vec<String> =
            freed.map(|(process, bytes)| format!("{process} −{}", human_bytes(*bytes))).collect();
        writeln!(f, "  {:<44} {}", remedy.setting, freed.join(", "))?;
    }
    let [learner, worker, both] = on_device(&with_all).map(human_bytes);
    writeln!(f, "  {:<44} learner {learner}, worker {worker}, both {both}", "with all of these")
}
