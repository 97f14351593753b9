//! Generates the wire types with protox, so that no system `protoc` is needed.

/// Messages that are also shown, or kept in files, as JSON.
const JSON_MESSAGES: [&str; 4] = ["Progress", "HeldOut", "Summary", "ScoreChange"];
/// Fields of those that JSON leaves out where they are absent.
const ABSENT_FIELDS: [&str; 5] =
    ["Progress.reward", "Progress.held_out", "Summary.before", "Summary.after", "Summary.best"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["common.proto", "coordinator.proto", "learner.proto", "reward.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let mut builder = tonic_prost_build::configure().bytes(".");
    for message in JSON_MESSAGES {
        builder = builder
            .message_attribute(message, "#[derive(serde::Serialize, serde::Deserialize)]")
            .message_attribute(message, "#[serde(default)]");
    }
    for field in ABSENT_FIELDS {
        builder = builder.field_attribute(field, "#[serde(skip_serializing_if = \"Option::is_none\")]");
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
