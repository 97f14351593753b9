//! All targets.

mod hub;
mod run_files;
mod scrapers;
mod settings;
mod stored;
mod wire;

use crate::{MemoryBound, Target};

/// A tree of values takes much more than its text: of `[[],[],...` every two bytes are a value of 32 bytes or more.
const TREE: MemoryBound = MemoryBound { per_byte: 256, fixed: 4 << 20 };

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "pickle",
        examples: stored::pickles,
        check: stored::check_pickle,
        memory: MemoryBound { per_byte: 64, fixed: 4 << 20 },
    },
    Target {
        name: "records",
        examples: stored::records,
        check: stored::check_records,
        memory: MemoryBound::USUAL,
    },
    Target {
        name: "certificate",
        examples: stored::certificates,
        check: stored::check_certificate,
        memory: MemoryBound::USUAL,
    },
    Target {
        name: "run_config",
        examples: settings::run_configs,
        check: settings::check_run_config,
        memory: TREE,
    },
    Target {
        name: "imported_config",
        examples: settings::imported_configs,
        check: settings::check_imported_config,
        memory: TREE,
    },
    Target { name: "prompts", examples: settings::prompts, check: settings::check_prompts, memory: TREE },
    Target {
        name: "notations",
        examples: settings::notations,
        check: settings::check_notations,
        memory: MemoryBound::USUAL,
    },
    Target {
        name: "messages",
        examples: wire::messages,
        check: wire::check_messages,
        memory: MemoryBound::USUAL,
    },
    Target {
        name: "push_header",
        examples: wire::push_headers,
        check: wire::check_push_header,
        memory: MemoryBound { per_byte: 64, fixed: 4 << 20 },
    },
    Target {
        name: "chunks",
        examples: wire::chunk_streams,
        check: wire::check_chunks,
        memory: MemoryBound { per_byte: 64, fixed: 4 << 20 },
    },
    Target {
        name: "identity",
        examples: stored::identities,
        check: stored::check_identity,
        memory: MemoryBound::USUAL,
    },
    Target {
        name: "history",
        examples: run_files::histories,
        check: run_files::check_history,
        memory: MemoryBound::USUAL,
    },
    Target {
        name: "answers",
        examples: run_files::answers,
        check: run_files::check_answers,
        memory: MemoryBound::USUAL,
    },
    Target {
        name: "host_answers",
        examples: run_files::host_answers,
        check: run_files::check_host_answers,
        memory: MemoryBound::USUAL,
    },
    Target {
        name: "runs",
        examples: run_files::runs,
        check: run_files::check_runs,
        memory: MemoryBound::USUAL,
    },
    Target {
        name: "requests",
        examples: scrapers::requests,
        check: scrapers::check_request,
        memory: MemoryBound::USUAL,
    },
    Target { name: "hub", examples: hub::names, check: hub::check_name, memory: MemoryBound::USUAL },
];
