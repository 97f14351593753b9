//! Paths as people write them: what `~` and `$NAME` in them stand for, and how messages name a path.
//!
//! A path is expanded once, where a person's words enter. A variable that is not set stays as it was written, so that a
//! message about the path can name it.

use crate::scorers::CONNECTION_PATHS;
use crate::{RewardSection, RunConfig};
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Value;

/// Options of scorers that are paths; a language model's `model` is a name at its server.
const REWARD_PATH_OPTIONS: [&str; 4] = ["model", "processor", "predictor", "program"];

/// Where `~` and `$NAME` are looked up.
pub struct Lookup<'a> {
    /// The value of an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// The home directory of a user, or of whoever runs this process, by the system's database.
    pub home_of: &'a dyn Fn(Option<&str>) -> Option<String>,
}

/// Expands a path as Python's `os.path.expandvars(os.path.expanduser(path))` does.
pub fn expand(path: &str, lookup: &Lookup) -> String {
    expand_variables(&expand_user(path, lookup), lookup)
}

fn expand_user(path: &str, lookup: &Lookup) -> String {
    let Some(after_tilde) = path.strip_prefix('~') else { return path.to_owned() };
    let (user, rest) = after_tilde.split_at(after_tilde.find('/').unwrap_or(after_tilde.len()));
    let home = match user {
        "" => (lookup.variable)("HOME").or_else(|| (lookup.home_of)(None)),
        user => (lookup.home_of)(Some(user)),
    };
    match home.map(|home| format!("{}{rest}", home.trim_end_matches('/'))) {
        None => path.to_owned(),
        Some(root) if root.is_empty() => "/".to_owned(),
        Some(expanded) => expanded,
    }
}

fn expand_variables(path: &str, lookup: &Lookup) -> String {
    let (mut expanded, mut written) = (String::new(), 0);
    for (range, name) in references(path) {
        if let Some(value) = (lookup.variable)(name) {
            expanded.push_str(&path[written..range.start]);
            expanded.push_str(&value);
            written = range.end;
        }
    }
    expanded + &path[written..]
}

/// Where a text names variables, as `$NAME` or `${NAME}`, and their names.
fn references(text: &str) -> Vec<(Range<usize>, &str)> {
    let (mut found, mut from) = (Vec::new(), 0);
    while let Some(dollar) = text[from..].find('$').map(|position| from + position) {
        let rest = &text[dollar + 1..];
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, length) = match rest.strip_prefix('{') {
            Some(braced) => braced.find('}').map_or(("", 0), |end| (&braced[..end], end + 2)),
            None => {
                let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                (&rest[..end], end)
            }
        };
        from = dollar + 1 + length;
        if !name.is_empty() {
            found.push((dollar..from, name));
        }
    }
    found
}

/// A path for messages: with the folder that a relative one is meant from, and with the variables and users in it that
/// nobody knows.
pub fn place(path: &Path) -> String {
    let text = path.display().to_string();
    match unexpanded(path) {
        Some(reason) => format!("{text} ({reason})"),
        None if path.is_relative() => match std::env::current_dir() {
            Ok(folder) => format!("{text} (relative to {})", folder.display()),
            Err(_) => text,
        },
        None => text,
    }
}

/// Why a path that has been expanded still has a `$NAME` or `~` in it, if it does.
pub fn unexpanded(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    if let Some(user) = text.strip_prefix('~') {
        return Some(format!(
            "there is no home directory of `~{}`",
            user.split('/').next().unwrap_or_default()
        ));
    }
    let mut names: Vec<&str> = references(text).into_iter().map(|(_, name)| name).collect();
    names.dedup();
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [] => None,
        [name] => Some(format!("the environment variable {name} is not set")),
        names => Some(format!("the environment variables {} are not set", names.join(" and "))),
    }
}

impl RewardSection {
    /// Expands every option that is a path.
    pub fn expand_paths(&mut self, expand: impl Fn(&Path) -> PathBuf) {
        let is_judge = self.is_judge();
        let options = REWARD_PATH_OPTIONS.iter().filter(|_| !is_judge).chain(&CONNECTION_PATHS);
        for option in options.copied() {
            if let Some(Value::String(path)) = self.options.get_mut(option) {
                *path = expand(Path::new(path.as_str())).display().to_string();
            }
        }
    }
}

impl RunConfig {
    /// Expands every path of the config.
    pub fn expand_paths(&mut self, expand: impl Fn(&Path) -> PathBuf) {
        for (_, path) in self.path_keys() {
            *path = expand(path);
        }
        let rewards = self.rewards.iter_mut().chain(&mut self.evaluation_rewards);
        rewards.for_each(|reward| reward.expand_paths(&expand));
    }

    fn path_keys(&mut self) -> [(&'static str, &mut PathBuf); 7] {
        [
            ("run.directory", &mut self.run.directory),
            ("model.path", &mut self.model.path),
            ("model.embedding_cache", &mut self.model.embedding_cache),
            ("adapter.start_from", &mut self.adapter.start_from),
            ("data.train", &mut self.data.train),
            ("data.validation", &mut self.data.validation),
            ("data.test", &mut self.data.test),
        ]
    }

    /// The paths of the config that have been expanded and still name what nobody knows, by their keys. Whether there is
    /// something of that very name is not looked at.
    pub fn unexpanded_paths(&self) -> Vec<(String, PathBuf)> {
        let mut config = self.clone();
        let keys = config.path_keys().map(|(key, path)| (key.to_owned(), path.clone()));
        let options = self.reward_paths().into_iter().chain(self.connection_paths());
        keys.into_iter().chain(options).filter(|(_, path)| unexpanded(path).is_some()).collect()
    }

    /// The files and folders that rewards are made of, by their keys, such as `rewards[0].model`.
    pub fn reward_paths(&self) -> Vec<(String, PathBuf)> {
        let made = self.all_rewards().filter(|(_, reward)| !reward.is_judge());
        made.flat_map(|(place, reward)| named_paths(&place, reward, &REWARD_PATH_OPTIONS)).collect()
    }

    /// The files by which servers of rewards are known and shown who asks, by their keys.
    pub fn connection_paths(&self) -> Vec<(String, PathBuf)> {
        let all = self.all_rewards();
        all.flat_map(|(place, reward)| named_paths(&place, reward, &CONNECTION_PATHS)).collect()
    }
}

/// Those of the options of a reward that are given, with their keys.
fn named_paths(place: &str, reward: &RewardSection, options: &[&str]) -> Vec<(String, PathBuf)> {
    let path = |option: &str| reward.options.get(option).and_then(Value::as_str);
    let given = options.iter().filter_map(|option| Some((format!("{place}.{option}"), path(option)?.into())));
    given.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    const VARIABLES: [(&str, &str); 6] = [
        ("HOME", "/home/ada/"),
        ("DATA", "/data"),
        ("EMPTY", ""),
        ("A_1", "x"),
        ("NEST", "$DATA"),
        ("TILDE", "~/t"),
    ];

    fn expanded(path: &str, home: Option<&str>) -> String {
        let variable = |name: &str| match name {
            "HOME" => home.map(str::to_owned),
            _ => VARIABLES.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
        };
        let home_of = |user: Option<&str>| match user {
            None => Some("/var/ada".to_owned()),
            Some("root") => Some("/root".to_owned()),
            Some(_) => None,
        };
        expand(path, &Lookup { variable: &variable, home_of: &home_of })
    }

    /// What Python 3.11 makes of these with the same variables.
    #[test]
    fn paths_are_expanded_as_python_does() {
        let cases = [
            ("~", "/home/ada"),
            ("~/x", "/home/ada/x"),
            ("~/", "/home/ada/"),
            ("~//x", "/home/ada//x"),
            ("~/$DATA", "/home/ada//data"),
            ("~root", "/root"),
            ("~root/x", "/root/x"),
            ("~nobody-there/x", "~nobody-there/x"),
            ("a~/x", "a~/x"),
            ("x/~", "x/~"),
            ("$DATA/p", "/data/p"),
            ("${DATA}/p", "/data/p"),
            ("${DATA}s", "/datas"),
            ("$DATAX/p", "$DATAX/p"),
            ("${DATAX}/p", "${DATAX}/p"),
            ("$DATA$A_1", "/datax"),
            ("${DATA}${NO}${A_1}", "/data${NO}x"),
            ("${NO}$DATA", "${NO}/data"),
            ("$", "$"),
            ("$$DATA", "$/data"),
            ("${}", "${}"),
            ("${DATA", "${DATA"),
            ("${DA TA}", "${DA TA}"),
            ("$1", "$1"),
            ("$é", "$é"),
            ("\\$DATA", "\\/data"),
            ("%DATA%", "%DATA%"),
            ("$EMPTY/p", "/p"),
            ("$NEST/p", "$DATA/p"),
            ("$TILDE/p", "~/t/p"),
            ("plain", "plain"),
            ("", ""),
        ];
        for (path, expected) in cases {
            assert_eq!(expanded(path, Some("/home/ada/")), expected, "{path}");
        }
        for home in ["", "/"] {
            assert_eq!(["~", "~/x"].map(|path| expanded(path, Some(home))), ["/", "/x"], "{home:?}");
        }
        assert_eq!(expanded("~/x", None), "/var/ada/x");
    }

    #[test]
    fn every_path_of_a_config_is_expanded() {
        let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
        let settings = [
            "run.directory=$D/a",
            "model.path=$D/b",
            "model.embedding_cache=$D/c",
            "adapter.start_from=$D/d",
            "data.train=$D/e",
            "data.test=$D/f",
        ]
        .map(str::to_owned);
        config = RunConfig::from_toml_with(&config.to_toml(), &settings).expect("valid");
        let mut network = RewardSection::new("hpsv3");
        network.options.insert("model".to_owned(), Value::String("$D/g".to_owned()));
        network.options.insert("processor".to_owned(), Value::String("$D/h".to_owned()));
        let mut judge = RewardSection::new("vlm_judge");
        judge.options.insert("model".to_owned(), Value::String("$D".to_owned()));
        judge.options.insert("tls_ca".to_owned(), Value::String("$D/i".to_owned()));
        (config.rewards, config.evaluation_rewards) = (vec![network.clone(), judge], vec![network]);
        config.expand_paths(|path| PathBuf::from(path.display().to_string().replace("$D", "/x")));
        let text = config.to_toml();
        let left: Vec<&str> = text.lines().filter(|line| line.contains("$D")).collect();
        assert_eq!(left, ["model = \"$D\""], "only the name of a judge's model is no path");
    }

    #[test]
    fn a_path_is_named_with_where_it_is_meant_from_and_what_is_not_set() {
        let folder = std::env::current_dir().expect("a folder").display().to_string();
        for (path, expected) in [
            ("/a/b", "/a/b".to_owned()),
            ("a/b", format!("a/b (relative to {folder})")),
            ("$DATA/b", "$DATA/b (the environment variable `DATA` is not set)".to_owned()),
            ("/a/${X}/$Y", "/a/${X}/$Y (the environment variables `X` and `Y` are not set)".to_owned()),
            ("~bob/b", "~bob/b (there is no home directory of `~bob`)".to_owned()),
            ("/a/$/${}", "/a/$/${}".to_owned()),
        ] {
            assert_eq!(place(Path::new(path)), expected);
        }
    }
}
