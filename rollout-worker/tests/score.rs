//! `score` as a real process.

use std::process::Command;

use scenes::RgbImage;

/// More than one batch of images whose prompts quote nothing, and one that does.
#[test]
fn prompts_without_quotes_are_scored_0_and_said_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let n_prompts = 70;
    let lines: String = (0..n_prompts).map(|number| format!("plain prompt {number}\n")).collect();
    std::fs::write(folder.path().join("prompts.txt"), lines).expect("written");
    let RgbImage { width, height, pixels } = RgbImage::filled(16, 16, [200; 3]);
    let image = image::RgbImage::from_raw(width as u32, height as u32, pixels).expect("a full buffer");
    std::fs::create_dir(folder.path().join("images")).expect("created");
    for number in 0..n_prompts {
        image.save(folder.path().join(format!("images/{number:04}.png"))).expect("written");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollout-worker"));
    command.args(["score", "--reward", "ocr", "--images", "images", "--prompts", "prompts.txt"]);
    let output = command.current_dir(folder.path()).output().expect("the binary starts");
    let [told, warned] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text"));
    assert!(output.status.success(), "{warned}");
    assert_eq!(told.matches(" 0.000000  plain prompt ").count(), n_prompts, "{told}");
    assert_eq!(warned.matches("has no words in double quotes").count(), 1, "{warned}");
    assert!(warned.contains("plain prompt 0"), "{warned}");
}
