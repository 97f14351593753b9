//! Generates the wire types with protox, so that no system `protoc` is needed.

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["common.proto", "coordinator.proto", "learner.proto", "reward.proto", "trust.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let folder = std::env::var("OUT_DIR")?;
    std::fs::write(format!("{folder}/descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
