//! The pages of `docs/` and the README: their commands run, their recipes and conversations are right, their links lead somewhere.
//!
//! A page is gone through from its top, in a folder of its own that holds a small random model under the name of the large one.
//! - `sh`: its commands run in bash and end with 0, or with the number that a comment `# exit code N` names.
//! - `sh ignore:REASON`: needs what a test does not have; its `ft` commands have verbs and options that exist.
//! - `toml`: a recipe that `ft plan` accepts. Without `[model]` it is a part of one. With `[output] name` it is saved as `NAME.toml`.
//! - `json`: conversations that `ft render` renders.
//! - `text`, `console` and `python` are read by people only.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use ft_tests::pages::{Block, Page};
use ft_tests::program::{built, ft, repository, run, succeed};
use ft_tests::scratch::Scratch;
use serde_json::Value;

/// The page that `ft recipes reference` writes; a test of the recipe reads its examples.
const GENERATED: &str = "recipe.md";

/// What makes a command quick on a small model, by its verb: options and their values.
const QUICKER: [(&str, &[(&str, &str)]); 5] = [
    (
        "train",
        &[
            ("--set", "training.steps=2"),
            ("--set", "training.dtype=f32"),
            ("--set", "training.accumulation_steps=1"),
            ("--set", "training.batch_sequences=1"),
            ("--set", "dataset.max_tokens=512"),
            ("--set", "dataset.train=[\"data/heldout.jsonl\"]"),
            ("--set", "dataset.validation_fraction=0"),
            ("--set", "sampling.prompts=[]"),
        ],
    ),
    ("generate", &[("--max-tokens", "3"), ("--dtype", "f32")]),
    ("chat", &[("--max-tokens", "3"), ("--dtype", "f32")]),
    ("eval", &[("--limit", "1")]),
    ("verify", &[("--data", "data/heldout.jsonl")]),
];
/// Exports that are only written, for time; their own tests read them back.
const UNVERIFIED_EXPORTS: [&str; 4] = ["--to gguf:", "--to ollama", "--to safetensors", "--to openai"];
/// Options of other programs that pages name.
const FOREIGN_OPTIONS: [&str; 2] = ["--jinja", "--lora"];

fn pages() -> Vec<Page> {
    let docs = repository().join("docs");
    let mut paths: Vec<_> = fs::read_dir(&docs).expect("docs").map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    paths.insert(0, repository().join("README.md"));
    paths.iter().map(|path| Page::read(path)).collect()
}

fn written() -> impl Iterator<Item = Page> {
    pages().into_iter().filter(|page| page.name() != GENERATED)
}

/// What every page starts with: a model, conversations and an adapter of an earlier run.
fn prepare() -> Scratch {
    let scratch = Scratch::new("docs");
    fs::create_dir(scratch.join("data")).expect("a folder");
    for name in ["coding.jsonl", "coding-tools.jsonl"] {
        fs::copy(repository().join("recipes/data").join(name), scratch.join("data").join(name)).expect("a dataset");
    }
    let coding = fs::read_to_string(scratch.join("data/coding.jsonl")).expect("a dataset");
    let mut lines: Vec<&str> = coding.lines().collect();
    lines.sort_by_key(|line| line.len());
    scratch.write("data/heldout.jsonl", lines[..2].join("\n"));
    fs::copy(repository().join("recipes/coding.toml"), scratch.join("coding.toml")).expect("a recipe");
    let toml = fs::read_to_string(scratch.join("coding.toml")).expect("a recipe").replace("recipes/data/", "data/");
    scratch.write("coding.toml", toml);
    bash(&scratch, "ft init models/gpt-oss-20b --preset nano --set num_hidden_layers=2").expect("a model");
    bash(&scratch, &quicker("ft train coding.toml")).expect("an adapter");
    scratch
}

/// A copy of what was prepared, without what the page makes by itself.
fn folder_of(page: &Page, prepared: &Scratch) -> Scratch {
    let scratch = Scratch::new(page.name());
    succeed(Command::new("cp").arg("-r").arg(prepared.join(".")).arg(&*scratch));
    let runs = |command: &str| page.blocks.iter().any(|block| block.lines.iter().any(|line| line.starts_with(command)));
    if runs("ft train coding.toml") {
        fs::remove_dir_all(scratch.join("runs")).expect("a run");
    }
    if runs("ft recipes copy coding") {
        fs::remove_file(scratch.join("coding.toml")).expect("a recipe");
        for name in ["coding.jsonl", "coding-tools.jsonl"] {
            fs::remove_file(scratch.join("data").join(name)).expect("a dataset");
        }
    }
    scratch
}

/// Runs a line as a person would type it; what it said when it did not end as its comment says.
fn bash(folder: &Path, line: &str) -> Result<(), String> {
    let program = built("ft");
    let own = program.parent().expect("a folder").to_path_buf();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(own).chain(std::env::split_paths(&path));
    let mut command = Command::new("bash");
    command.args(["--norc", "-o", "pipefail", "-c", line]).current_dir(folder).stdin(Stdio::null());
    command.env("PATH", std::env::join_paths(folders).expect("a path")).env("HOME", folder).env("NO_COLOR", "1");
    command.env_remove("LD_LIBRARY_PATH").env_remove("XDG_CACHE_HOME").env_remove("HF_HOME");
    let said = run(&mut command);
    let expected = line.split_once("# exit code ").map_or(Some(0), |(_, rest)| rest.split([' ', ':', ',']).next()?.parse().ok());
    if said.code == expected || line.starts_with("ft doctor") && said.code == Some(1) {
        return Ok(());
    }
    Err(format!("`{line}` ended with {:?}\n{}\n{}", said.code, said.stdout, said.stderr))
}

/// The same line, its commands made quick.
fn quicker(line: &str) -> String {
    line.split(" | ").map(quicker_command).collect::<Vec<_>>().join(" | ")
}

fn quicker_command(command: &str) -> String {
    let Some((verb, rest)) = command.strip_prefix("ft ").and_then(|rest| rest.split_once(' ')) else {
        return command.to_owned();
    };
    let mut words = vec![format!("ft {verb}")];
    let mut rest = rest.to_owned();
    for (option, value) in QUICKER.iter().filter(|(of, _)| *of == verb).flat_map(|(_, options)| *options) {
        if *option != "--set"
            && let Some((before, after)) = rest.split_once(&format!("{option} "))
        {
            let after = after.split_once(' ').map_or("", |(_, after)| after);
            rest = format!("{before}{after}");
        }
        words.push(format!("{option}='{value}'"));
    }
    if verb == "export" && UNVERIFIED_EXPORTS.iter().any(|target| rest.contains(target)) {
        words.push("--no-verify".to_owned());
    }
    words.push(rest);
    words.join(" ")
}

/// A part of a recipe made whole.
fn whole_recipe(block: &Block) -> String {
    let mut text = block.lines.join("\n");
    if !text.contains("[model]") {
        text = format!("{text}\n\n[model]\npath = \"models/gpt-oss-20b\"\n");
    }
    let train = "train = [\"data/coding.jsonl\"]";
    if !text.contains("[dataset]") {
        text = format!("{text}\n[dataset]\n{train}\n");
    } else if !text.lines().any(|line| line.starts_with("train =")) {
        text = text.replace("[dataset]", &format!("[dataset]\n{train}"));
    }
    text
}

fn check_block(block: &Block, folder: &Scratch) -> Result<(), String> {
    match block.language.as_str() {
        "sh" => {
            for (line, command) in block.commands() {
                if let Some(target) = command.strip_prefix("make ") {
                    check_target(target).map_err(|error| format!("{line}: {error}"))?;
                } else {
                    bash(folder, &quicker(&command)).map_err(|error| format!("{line}: {error}"))?;
                }
            }
            Ok(())
        }
        "toml" => {
            let text = whole_recipe(block);
            let name = text.split_once("[output]").and_then(|(_, rest)| rest.split('"').nth(1)).map(str::to_owned);
            let name = format!("{}.toml", name.unwrap_or_else(|| "part-of-a-page".to_owned()));
            folder.write(&name, text);
            bash(folder, &format!("ft plan {name} --device-memory 900GB")).map_err(|error| format!("{}: {error}", block.line))
        }
        "json" => {
            let mut lines = String::new();
            for value in serde_json::Deserializer::from_str(&block.lines.join("\n")).into_iter::<Value>() {
                lines += &format!("{}\n", value.map_err(|error| format!("{}: {error}", block.line))?);
            }
            folder.write("conversations-of-a-page.jsonl", lines);
            bash(folder, "ft render conversations-of-a-page.jsonl --tokens --training").map_err(|error| format!("{}: {error}", block.line))
        }
        "text" | "console" | "python" => Ok(()),
        other if other.starts_with("sh ignore:needs-") => {
            let commands = block.commands();
            commands.iter().try_for_each(|(line, command)| check_words(command).map_err(|error| format!("{line}: {error}")))
        }
        other => Err(format!("{}: a block of `{other}` is not known to this test", block.line)),
    }
}

fn check_target(words: &str) -> Result<(), String> {
    let makefile = fs::read_to_string(repository().join("Makefile")).expect("a Makefile");
    let target = words.split(' ').next().unwrap_or(words);
    let is_there = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
    if is_there { Ok(()) } else { Err(format!("the Makefile has no `{target}`")) }
}

/// What `ft VERB --help` says, of every verb.
fn helps() -> BTreeMap<String, String> {
    let help = succeed(&mut ft(["--help"]));
    let commands = help.split_once("Commands:\n").expect("a list of commands").1;
    let listed = commands.lines().take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("     "));
    let verbs = listed.filter_map(|line| line.split_whitespace().next());
    verbs.map(|verb| (verb.to_owned(), succeed(&mut ft([verb, "--help"])))).collect()
}

/// The verb and the options of an `ft` command exist; what follows a pipe is another program's.
fn check_words(command: &str) -> Result<(), String> {
    let Some(rest) = command.strip_prefix("ft ") else {
        return Ok(());
    };
    let own = rest.split([';', '|', '#']).next().unwrap_or(rest);
    let mut words = own.split_whitespace();
    let verb = words.next().unwrap_or_default();
    if verb.starts_with('-') || verb.chars().all(char::is_uppercase) {
        return Ok(());
    }
    let said = run(&mut ft([verb, "--help"]));
    if said.code != Some(0) {
        return Err(format!("`ft` has no verb `{verb}`"));
    }
    for option in words.filter(|word| word.starts_with("--")).map(|word| word.split('=').next().unwrap_or(word)) {
        if !has_option(&said.stdout, option) {
            return Err(format!("`ft {verb}` has no `{option}`"));
        }
    }
    Ok(())
}

fn has_option(help: &str, option: &str) -> bool {
    help.split(|c: char| c.is_whitespace() || matches!(c, ',' | '[' | '`' | '.' | ':')).any(|word| word == option)
}

#[test]
fn what_a_page_tells_to_do_works_from_its_top_to_its_end() {
    let prepared = prepare();
    let mut wrong = Vec::new();
    for page in written() {
        let folder = folder_of(&page, &prepared);
        for block in &page.blocks {
            wrong.extend(check_block(block, &folder).err().map(|error| format!("{}:{error}", page.path.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut wrong = Vec::new();
    for page in pages() {
        for (line, link) in page.links().iter().filter(|(_, link)| !link.starts_with("http")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.path.clone() } else { page.path.with_file_name("").join(file) };
            let is_there = target.exists() && (anchor.is_empty() || Page::read(&target).anchors().iter().any(|known| known == anchor));
            if !is_there {
                wrong.push(format!("{}:{line}: {link}", page.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "these links lead nowhere:\n{}", wrong.join("\n"));
}

#[test]
fn the_index_names_every_page() {
    let index = Page::read(&repository().join("docs/README.md"));
    let links: Vec<String> = index.links().into_iter().map(|(_, link)| link).collect();
    for page in pages().iter().skip(1).filter(|page| page.name() != "README.md") {
        assert!(links.iter().any(|link| link == page.name()), "docs/README.md does not lead to {}", page.name());
    }
}

#[test]
fn every_verb_is_explained_and_every_option_in_the_text_exists() {
    let helps = helps();
    assert!(helps.len() > 15, "{:?}", helps.keys());
    let mut texts = String::new();
    let mut wrong = Vec::new();
    for page in written() {
        texts += &fs::read_to_string(&page.path).expect("a page");
        for (line, span) in page.code_spans() {
            let outcome = if span.starts_with("--") {
                let option = span.split([' ', '=']).next().unwrap_or(&span);
                let is_known = FOREIGN_OPTIONS.contains(&option) || helps.values().any(|help| has_option(help, option));
                if is_known { Ok(()) } else { Err(format!("no verb has `{option}`")) }
            } else {
                check_words(&span)
            };
            wrong.extend(outcome.err().map(|error| format!("{}:{line}: {error}", page.name())));
        }
    }
    let missing = helps.keys().filter(|verb| *verb != "help" && !texts.contains(&format!("ft {verb}")));
    wrong.extend(missing.map(|verb| format!("no page speaks of `ft {verb}`")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
