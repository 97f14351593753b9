//! Writes `train.jsonl`, `validation.jsonl` and `test.jsonl` into a directory, `assets/prompts` where none is given.

use std::path::PathBuf;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let directory = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "assets/prompts".to_owned()));
    std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let scenes::Split { train, validation, test } = scenes::split();
    for (name, prompts) in [("train.jsonl", train), ("validation.jsonl", validation), ("test.jsonl", test)] {
        let path = directory.join(name);
        std::fs::write(&path, scenes::to_jsonl(&prompts)?)
            .with_context(|| format!("writing {}", path.display()))?;
        println!("{}: {} prompts", path.display(), prompts.len());
    }
    Ok(())
}
