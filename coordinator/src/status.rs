//! `coordinator status` for people: how a living run is doing, or how one ended. Pure.

use crate::account::{clock, ending_text, held_out_text, seconds, totals_line};
use crate::advice;
use crate::results::HeldOutReward;
use crate::run_files::RunFiles;
use crate::run_record::RunEnding;
use crate::view::{CardView, EndedRun, LivingRun, MemberView, RunView, Stage};
use service::RunDirectory;
use std::collections::BTreeMap;

/// Held-out rewards that are shown of a long run: the first and the newest.
const SHOWN_HELD_OUT: usize = 10;
/// Notices that are shown of a run, the newest; the log has all.
const SHOWN_NOTICES: usize = 5;

/// All that is shown of a run; whatever others have told of it, a terminal obeys none of that.
pub fn text(view: &RunView) -> String {
    let mut lines = match &view.stage {
        Stage::Living(run) => living_text(run),
        Stage::Ended(run) => ended_text(run, &view.files.directory),
    };
    lines.extend(history_text(&view.held_out_rewards));
    lines.push(places_text(&view.files));
    service::visible(&lines.join("\n"))
}

fn ended_text(run: &EndedRun, directory: &RunDirectory) -> Vec<String> {
    let mut lines = vec![
        format!("run {}", run.run_id),
        format!("ended {} ago: {}", clock(run.ago), ending_text(&run.ended)),
    ];
    if let RunEnding::Failed { .. } = run.ended {
        lines.push(advice::once_mended(&advice::resume(directory.path())));
    }
    lines
}

fn living_text(run: &LivingRun) -> Vec<String> {
    let (overview, progress) = (&run.overview, &run.overview.progress);
    let left = match overview.seconds_left {
        Some(left) => format!("ETA {}", clock(seconds(left))),
        None if overview.workers == 0 => "no ETA without workers".to_owned(),
        None => "ETA not known yet".to_owned(),
    };
    let mut lines = vec![
        format!("run {} ({}) · {}", run.run_name, run.run_id, run.determinism),
        format!("{} · iteration {}/{} · {left}", progress.phase, progress.iteration, progress.iterations),
        totals_line(progress),
        format!(
            "{:.1} images/s · {:.0} NFE/s",
            overview.images_per_second, overview.network_evaluations_per_second
        ),
        format!(
            "tasks: {} waiting, {} running · workers wanted: {}",
            overview.tasks_waiting, overview.tasks_running, overview.workers_wanted
        ),
    ];
    lines.extend(metrics_text(&run.metrics_address));
    lines.extend(run.members.iter().map(member_text));
    lines.extend(kinds_text(&run.members));
    let older = run.notices.len().saturating_sub(SHOWN_NOTICES);
    lines.extend(run.notices.iter().skip(older).map(|notice| format!("note: {notice}")));
    lines
}

/// Where numbers of the run are; nothing where they are not shown.
fn metrics_text(address: &str) -> Option<String> {
    (!address.is_empty()).then(|| format!("metrics: http://{address}/metrics"))
}

/// On what kinds of device the members compute, as far as that is known.
fn kinds_text(members: &[MemberView]) -> Option<String> {
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for member in members.iter().filter(|member| member.is_living() && !member.device_kind.is_empty()) {
        kinds.entry(&member.device_kind).or_default().push(&member.member_id);
    }
    let of_kind = |(kind, members): (&&str, &Vec<&str>)| match members.as_slice() {
        [first, second, _, ..] => format!("{kind} ({first}, {second}, … {} in all)", members.len()),
        few => format!("{kind} ({})", few.join(", ")),
    };
    (!kinds.is_empty())
        .then(|| format!("devices: {}", kinds.iter().map(of_kind).collect::<Vec<_>>().join("; ")))
}

fn member_text(member: &MemberView) -> String {
    let card = member.card.as_ref().map(|card| format!(" · {}", card_text(card))).unwrap_or_default();
    let tasks: String = member.running.iter().map(|task| format!(" · {task}")).collect();
    let slow = member.speed.filter(|_| member.is_slow);
    let slow = slow.map(|speed| format!(" · slow: {:.0} % of the median speed", 100.0 * speed));
    let troubles: String = member.troubles.iter().map(|trouble| format!("\n    {trouble}")).collect();
    format!(
        "  {:<12} {:<8} pid {:<8} {:<7} heard {:.1} s ago · {} tasks · {:.0} % busy{slow}{card}{tasks}{troubles}",
        member.member_id,
        member.state,
        member.pid,
        member.device,
        member.seconds_since_heartbeat,
        member.tasks_done,
        100.0 * member.busy,
        slow = slow.unwrap_or_default(),
    )
}

fn card_text(card: &CardView) -> String {
    let model = card.model.iter().cloned();
    let known: Vec<String> = model.chain(card.memory_bytes.map(|memory| memory.to_string())).collect();
    match known.is_empty() {
        true => format!("card {}", card.name),
        false => format!("card {} ({})", card.name, known.join(", ")),
    }
}

/// The held-out rewards so far, of a long run the first and the newest; nothing where there is none.
fn history_text(held_out: &[HeldOutReward]) -> Option<String> {
    let mut lines: Vec<String> = held_out
        .iter()
        .map(|evaluation| format!("  version {:<6} {}", evaluation.version, held_out_text(evaluation)))
        .collect();
    if lines.len() > SHOWN_HELD_OUT {
        let hidden = lines.len() - SHOWN_HELD_OUT;
        lines.splice(1..=hidden, [format!("  … {hidden} more …")]);
    }
    lines.insert(0, "held-out reward".to_owned());
    (!held_out.is_empty()).then(|| lines.join("\n"))
}

/// Where a run's files are, and what shows them.
fn places_text(files: &RunFiles) -> String {
    let places = files.places().map(|(name, place)| match name {
        "tensorboard" => ("curves", files.curves()),
        name => (name, place),
    });
    let lines = places.iter().map(|(name, place)| format!("  {name:<12} {place}"));
    std::iter::once("files".to_owned()).chain(lines).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cards::CardMemory;
    use crate::view::Overview;
    use crate::view::tests::{ended_run, held_out, living_run, view};

    fn living(run: LivingRun) -> RunView {
        view(Stage::Living(Box::new(run)))
    }

    #[test]
    fn a_living_run_shows_how_it_goes_and_has_gone_its_members_and_where_things_are() {
        let text = text(&living(living_run()));
        assert_eq!(text + "\n", include_str!("../tests/golden/living_run.txt"));
    }

    #[test]
    fn a_terminal_obeys_nothing_that_is_told_of_a_run() {
        let text = text(&living(LivingRun { notices: vec!["\u{1b}[2J".to_owned()], ..living_run() }));
        assert!(text.contains("note: \\u{1b}[2J"), "{text}");
    }

    #[test]
    fn a_card_is_shown_with_what_is_known_of_it() {
        let memory_bytes = Some(CardMemory { free: 5 << 30, total: 80 << 30 });
        let card = CardView { name: "0".to_owned(), model: Some("NVIDIA H200".to_owned()), memory_bytes };
        assert_eq!(card_text(&card), "card 0 (NVIDIA H200, 5.0 GiB of 80.0 GiB free)");
    }

    #[test]
    fn nothing_is_said_of_what_was_not_measured_yet() {
        let run = LivingRun { overview: Overview::default(), ..living_run() };
        let text = living_text(&LivingRun { members: Vec::new(), ..run }).join("\n");
        assert!(!text.contains("reward") && text.contains("no ETA without workers"), "{text}");
        let run = LivingRun { overview: Overview { workers: 1, ..Overview::default() }, ..living_run() };
        assert!(living_text(&run).join("\n").contains("ETA not known yet"));
    }

    #[test]
    fn of_a_long_run_the_first_and_the_newest_evaluations_are_shown() {
        let held_out_rewards = (0..30).map(|version| held_out(version, 0.25, 0.5)).collect();
        let text = text(&RunView { held_out_rewards, ..living(living_run()) });
        assert!(text.contains("version 0 ") && text.contains("  … 20 more …\n  version 21 "), "{text}");
        assert!(text.contains("version 29 ") && !text.contains("version 20 "), "{text}");
    }

    #[test]
    fn an_ended_run_says_how() {
        let shown = |ended: RunEnding| text(&view(Stage::Ended(EndedRun { ended, ..ended_run() })));
        assert_eq!(shown(ended_run().ended) + "\n", include_str!("../tests/golden/ended_run.txt"));
        let text = shown(RunEnding::Failed { reason: "a NaN".to_owned(), bad_input: false, summary: None });
        assert!(
            text.contains(
                "ended 1:05 ago: failed: a NaN\nonce what is wrong is mended, go on with `coordinator resume "
            ),
            "{text}"
        );
        let text = shown(RunEnding::Stopped { resume: "coordinator resume a".to_owned() });
        assert!(text.contains("stopped; go on with `coordinator resume a`\n"), "{text}");
    }
}
