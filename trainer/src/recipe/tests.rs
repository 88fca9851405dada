use std::collections::BTreeSet;
use std::path::Path;

use ft_formats::Hint;

use super::*;
use crate::data::{Overlong, Turns};

const SMALLEST: &str = "[model]\npath = \"m\"\n\n[dataset]\ntrain = [\"d.jsonl\"]\n";

fn read(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
    let overrides: Vec<String> = overrides.iter().map(|&argument| argument.to_owned()).collect();
    Recipe::from_text(text, Path::new("r.toml"), &overrides)
}

/// The problems of a recipe that is wrong.
fn problems(text: &str, overrides: &[&str]) -> Vec<Problem> {
    match read(text, overrides) {
        Err(RecipeError::Invalid(problems)) => problems.list().to_vec(),
        other => panic!("{text}\n{overrides:?}\n{other:?}"),
    }
}

/// The one problem of the smallest recipe with `more` behind it: place, message and hint.
fn complaint(more: &str) -> (String, String) {
    let found = problems(&format!("{SMALLEST}{more}\n"), &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    (found[0].to_string(), found[0].hint().unwrap_or_default())
}

#[test]
fn the_smallest_recipe_has_the_defaults_of_the_contract() {
    let recipe = read(SMALLEST, &[]).unwrap();
    assert_eq!(recipe.model.experts, Experts::Mxfp4);
    assert_eq!((recipe.dataset.max_tokens, recipe.dataset.overlong, recipe.dataset.turns), (4096, Overlong::Error, Turns::Each));
    assert!(recipe.dataset.packing && recipe.dataset.shuffle && recipe.dataset.validation.is_empty());
    assert_eq!((recipe.loss.analysis, recipe.loss.commentary, recipe.loss.final_), (1.0, 1.0, 1.0));
    let lora = recipe.lora().unwrap();
    assert_eq!((lora.rank, lora.alpha, lora.rslora), (16, 32.0, false));
    assert_eq!((&lora.layers, &lora.targets[..]), (&Layers::All, &[LoraTarget::Attention, LoraTarget::Experts][..]));
    let optimizer = &recipe.optimizer;
    assert_eq!((optimizer.learning_rate, optimizer.beta1, optimizer.beta2, optimizer.epsilon), (2e-4, 0.9, 0.999, 1e-8));
    assert_eq!((optimizer.weight_decay, optimizer.max_gradient_norm), (0.0, 1.0));
    let schedule = &recipe.schedule;
    assert_eq!((schedule.kind, schedule.warmup_fraction, schedule.min_fraction), (ScheduleKind::Cosine, 0.03, 0.1));
    let training = &recipe.training;
    assert_eq!((training.epochs, training.steps, training.batch_sequences, training.accumulation_steps), (1.0, None, 4, 4));
    assert_eq!((training.seed, training.dtype, training.checkpoint_activations), (1, TrainingDtype::Bf16, true));
    assert!(training.deterministic && !training.offload_activations);
    assert_eq!((recipe.checkpoint.every_steps, recipe.checkpoint.keep), (100, 2));
    assert_eq!((recipe.evaluation.every_steps, recipe.sampling.every_steps), (100, 100));
    assert_eq!((recipe.output.directory.as_str(), recipe.output.name.as_str()), ("runs", "r"));
}

#[test]
fn the_number_in_the_name_of_an_optimizer_stands_apart() {
    let recipe = read(&format!("{SMALLEST}[optimizer]\nkind = \"adamw_8bit\"\n"), &[]).unwrap();
    assert_eq!(recipe.optimizer.kind, OptimizerKind::Adamw8bit);
    assert!(recipe.to_toml().contains("kind = \"adamw_8bit\""), "{}", recipe.to_toml());
    let (message, hint) = complaint("[optimizer]\nkind = \"adamw8bit\"");
    assert!(format!("{message} {hint}").contains("adamw_8bit"), "{message} {hint}");
}

#[test]
fn a_written_recipe_reads_back_the_same() {
    let all = "[loss]\nanalysis = 0.3\n[lora]\nlayers = [0, 2]\ntargets = [\"lm_head\"]\ninitial_adapter = \"a\"\n[training]\nsteps = 7\n\
               [sampling]\nprompts = [\"a \\\"b\\\"\\n\"]\n[optimizer]\nkind = \"adamw_8bit\"\nlearning_rate = 1e-5\n[output]\nname = \"x\"";
    for text in [SMALLEST.to_owned(), format!("{SMALLEST}{all}"), format!("{SMALLEST}[full]\n[training]\nepochs = 0.5")] {
        let recipe = read(&text, &[]).unwrap();
        assert_eq!(Recipe::from_text(&recipe.to_toml(), Path::new("recipe.toml"), &[]).unwrap(), recipe, "{}", recipe.to_toml());
    }
}

#[test]
fn full_training_has_no_low_rank_settings() {
    assert!(read(&format!("{SMALLEST}[full]\n"), &[]).unwrap().lora().is_none());
    let found = problems(&format!("{SMALLEST}[lora]\nrank = 4\n[full]\n"), &[]);
    assert!(found[0].to_string().starts_with("r.toml:8:2: `full` and `lora` exclude each other"), "{}", found[0]);
}

/// Every (table, key) of the contract.
fn contract() -> Vec<(String, String)> {
    let mut keys = Vec::new();
    let mut tables = vec![(String::new(), toml::Table::try_from(Recipe::complete()).unwrap())];
    while let Some((table, entries)) = tables.pop() {
        for (key, value) in entries {
            if let toml::Value::Table(inner) = value {
                tables.push((if table.is_empty() { key } else { format!("{table}.{key}") }, inner));
            } else {
                keys.push((table.clone(), key));
            }
        }
    }
    assert!(keys.len() > 45, "{keys:?}");
    keys
}

/// `name` with one letter left out, put in or replaced, or two neighbours exchanged, in every way.
fn misspellings(name: &str) -> BTreeSet<String> {
    const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz_";
    let letters: Vec<char> = name.chars().collect();
    let mut found = BTreeSet::new();
    for index in 0..=letters.len() {
        let (before, after) = letters.split_at(index);
        let with = |middle: &[char], left_out: usize| before.iter().chain(middle).chain(&after[left_out..]).collect::<String>();
        for letter in LETTERS.chars() {
            found.insert(with(&[letter], 0));
            if !after.is_empty() {
                found.insert(with(&[letter], 1));
            }
        }
        if !after.is_empty() {
            found.insert(with(&[], 1));
        }
        if let [first, second, ..] = *after {
            found.insert(with(&[second, first], 2));
        }
    }
    found.remove(name);
    found.remove("");
    found
}

/// Checks that in `text`, whose line `first_line` and those after it begin each with one of `wrong`, all of them are named with their places and
/// with `right`; gives how many of them could be nothing else.
fn check_misspellings(text: &str, first_line: usize, first_column: usize, wrong: &[String], right: &str) -> usize {
    let found = problems(text, &[]);
    let mut certain = 0;
    for (index, wrong) in wrong.iter().enumerate() {
        let problem = found
            .iter()
            .find(|problem| matches!(&problem.kind, ProblemKind::UnknownKey { key, .. } if key == wrong))
            .unwrap_or_else(|| panic!("{wrong} for {right}: {found:?}"));
        assert!(
            matches!(problem.place, Place::File { line, column, width, .. }
                if line == first_line + index && column == first_column && width == wrong.len()),
            "{problem:?}"
        );
        let ProblemKind::UnknownKey { nearest, .. } = &problem.kind else { unreachable!("it was found by its kind") };
        assert!(nearest.contains(&right.to_owned()), "{wrong} for {right}: {nearest:?}");
        assert!(problem.hint().unwrap().contains(&format!("`{right}`")), "{wrong} for {right}");
        certain += usize::from(nearest.len() == 1);
    }
    certain
}

#[test]
fn every_misspelt_key_is_named_with_its_place_and_the_right_one() {
    let keys = contract();
    let (mut tried, mut certain) = (0, 0);
    for (table, key) in &keys {
        let is_key = |name: &String| keys.iter().any(|(other_table, other)| other_table == table && other == name);
        let wrong: Vec<String> = misspellings(key).into_iter().filter(|name| !is_key(name)).collect();
        let text = format!("# a recipe\n[{table}]\n{}", wrong.iter().map(|wrong| format!("{wrong} = 1\n")).collect::<String>());
        certain += check_misspellings(&text, 3, 1, &wrong, key);
        tried += wrong.len();
    }
    assert!(tried > 20_000 && certain * 100 > tried * 97, "{certain} of {tried} have one suggestion only");
}

#[test]
fn every_misspelt_table_is_named_with_its_place_and_the_right_one() {
    let mut tried = 0;
    for path in schema::paths().into_iter().filter(|path| matches!(schema::value(path), toml::Value::Table(_))) {
        let (parent, table) = path.rsplit_once('.').map_or((String::new(), path.as_str()), |(parent, table)| (format!("{parent}."), table));
        let wrong: Vec<String> =
            misspellings(table).into_iter().filter(|wrong| !schema::paths().contains(&format!("{parent}{wrong}"))).collect();
        let text: String = wrong.iter().map(|wrong| format!("[{parent}{wrong}]\n")).collect();
        check_misspellings(&text, 1, 2 + parent.len(), &wrong, table);
        let overrides: Vec<String> = wrong.iter().map(|wrong| format!("{parent}{wrong}.steps=1")).collect();
        let found = problems(SMALLEST, &overrides.iter().map(String::as_str).collect::<Vec<_>>());
        for (argument, wrong) in overrides.iter().zip(&wrong) {
            let problem = found.iter().find(|problem| problem.place == Place::Override { argument: argument.clone() }).unwrap();
            assert!(problem.to_string().starts_with(&format!("--set {argument}: unknown key `{wrong}`")), "{problem}");
            assert!(problem.hint().unwrap().contains(&format!("`{table}`")), "{argument}: {:?}", problem.hint());
        }
        tried += wrong.len();
    }
    assert!(tried > 5000, "{tried}");
}

#[test]
fn every_misspelt_word_is_named_with_the_right_one() {
    let root = Recipe::json_schema();
    let mut tried = 0;
    for (table, key) in contract() {
        let path = format!("properties.{}.properties.{key}", table.replace('.', ".properties."));
        let schema = path.split('.').fold(&root, |schema, part| &schema[part]);
        let is_list = schema["type"] == "array";
        let words: Vec<&str> = [schema, &schema["items"]]
            .into_iter()
            .filter_map(|schema| schema["enum"].as_array())
            .flatten()
            .filter_map(|word| word.as_str())
            .collect();
        for right in &words {
            for wrong in misspellings(right).into_iter().filter(|wrong| !words.contains(&wrong.as_str())) {
                let value = if is_list { format!("[\"{wrong}\"]") } else { format!("\"{wrong}\"") };
                let found = problems(&format!("[{table}]\n{key} = {value}\n"), &[]);
                let names = |problem: &&Problem| matches!(&problem.kind, ProblemKind::UnknownChoice { found, nearest, .. } if *found == wrong && nearest.iter().any(|word| word == right));
                let problem = found.iter().find(names).unwrap_or_else(|| panic!("{wrong} for {right}: {found:?}"));
                assert!(matches!(problem.place, Place::File { line: 2, .. }), "{problem:?}");
                tried += 1;
            }
        }
    }
    assert!(tried > 5000, "{tried}");
}

#[test]
fn a_misspelt_table_is_one_problem_and_not_its_missing_keys_too() {
    let found = problems("[modle]\npath = \"m\"\n[dataset]\ntrain = [\"d\"]\n", &[]);
    assert_eq!(found.len(), 1, "{found:?}");
}

/// The files that are written from the code; `what` is the word of `ft recipes` that prints them.
fn check_current(file: &str, current: &str, what: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    let is_current = std::fs::read_to_string(&path).is_ok_and(|found| found == current);
    assert!(is_current, "{file} is not what the code says: `ft recipes {what} > {file}` writes it anew");
}

#[test]
fn the_schema_in_the_tree_is_current() {
    check_current("recipes/recipe.schema.json", &Recipe::json_schema_text(), "schema");
}

#[test]
fn the_reference_in_the_tree_is_current() {
    check_current("docs/recipe.md", &Recipe::reference(), "reference");
}

#[test]
fn every_wrong_type_is_named_with_its_place_and_an_example() {
    for (table, key) in contract() {
        for wrong in ["\"many\"", "3", "0.5", "true", "[[1]]", "{ a = 1 }", "1979-05-27"] {
            let path = format!("{table}.{key}");
            let text = format!("[{table}]\n{key} = {wrong}\n");
            let found = problems(&text, &[]);
            let Some(problem) = found.iter().find(|problem| matches!(&problem.kind, ProblemKind::WrongType { key, .. } if *key == path))
            else {
                continue;
            };
            assert!(matches!(problem.place, Place::File { line: 2, .. }), "{problem:?}");
            assert!(problem.hint().unwrap().contains(&format!("{key} = ")), "{problem}");
        }
        let complains = |wrong: &str| {
            let path = format!("{table}.{key}");
            let found = problems(&format!("[{table}]\n{key} = {wrong}\n"), &[]);
            found.iter().any(|problem| matches!(&problem.kind, ProblemKind::WrongType { key, .. } if *key == path))
        };
        assert!(complains("[[1]]") && complains("{ a = 1 }") && complains("1979-05-27"), "{table}.{key}");
    }
}

#[test]
fn problems_show_the_line_with_a_caret() {
    let (message, hint) = complaint("[optimizer]\nlearning_rat = 1e-3");
    assert_eq!(message, "r.toml:7:1: unknown key `learning_rat` in `[optimizer]`\n  |\n7 | learning_rat = 1e-3\n  | ^^^^^^^^^^^^");
    assert_eq!(hint, "did you mean `learning_rate`?");
    let (message, hint) = complaint("[training]\nsteps = \"many\"");
    assert_eq!(
        message,
        "r.toml:7:9: `training.steps` should be a whole number, not negative, found a text\n  |\n7 | steps = \"many\"\n  |         ^^^^^^"
    );
    assert_eq!(hint, "for example `steps = 500`");
}

#[test]
fn a_wrong_word_is_named_with_the_words_that_there_are() {
    let (message, hint) = complaint("[training]\ndtype = \"f23\"");
    assert!(message.starts_with("r.toml:7:9: `training.dtype` cannot be `f23`"), "{message}");
    assert_eq!(hint, "did you mean `f32`? it is one of \"bf16\", \"f32\"");
    let (message, hint) = complaint("[lora]\ntargets = [\"attention\", \"mlp\"]");
    assert!(message.starts_with("r.toml:7:25: `lora.targets` cannot be `mlp`"), "{message}");
    assert_eq!(hint, "it is one of \"attention\", \"experts\", \"router\", \"lm_head\"");
    for (table, key) in [("model", "experts"), ("dataset", "overlong"), ("dataset", "turns"), ("optimizer", "kind"), ("schedule", "kind")] {
        let found = problems(&format!("[{table}]\n{key} = \"wrong\"\n"), &[]);
        assert!(found.iter().any(|problem| matches!(&problem.kind, ProblemKind::UnknownChoice { allowed, .. } if !allowed.is_empty())));
    }
}

#[test]
fn values_out_of_range_are_refused() {
    let cases = [
        "[lora]\nrank = 0",
        "[lora]\nalpha = -1.0",
        "[lora]\nalpha = nan",
        "[lora]\ntargets = []",
        "[lora]\nlayers = []",
        "[optimizer]\nlearning_rate = -1e-3",
        "[optimizer]\nlearning_rate = inf",
        "[optimizer]\nbeta1 = 1.0",
        "[optimizer]\nepsilon = 0",
        "[optimizer]\nmax_gradient_norm = -1",
        "[schedule]\nwarmup_fraction = 1.5",
        "[schedule]\nmin_fraction = -0.1",
        "[loss]\nanalysis = -1",
        "[training]\nepochs = 0",
        "[training]\nsteps = 0",
        "[training]\nbatch_sequences = 0",
        "[training]\naccumulation_steps = 0",
        "[checkpoint]\nkeep = 0",
        "[sampling]\nprompts = [\" \"]",
        "[output]\nname = \"a/b\"",
        "[output]\nname = \"..\"",
        "[output]\ndirectory = \"\"",
    ];
    for case in cases {
        let (message, hint) = complaint(case);
        assert!(message.starts_with("r.toml:7:") && message.contains("should be"), "{message}");
        assert!(hint.starts_with("for example"), "{case}: {hint}");
    }
    let (message, hint) = complaint("[lora]\nrank = 0");
    assert!(message.contains("`lora.rank` should be 1 or more, found 0"), "{message}");
    assert_eq!(hint, "for example `rank = 16`");
    assert!(complaint("[training]\nseed = -1").0.contains("not negative"));
}

#[test]
fn what_this_version_cannot_do_is_an_error() {
    assert!(complaint("[quantization]\naware = true").0.contains("is not supported by this version"));
    assert!(read(&format!("{SMALLEST}[tracking]\ntensorboard = false\n[quantization]\naware = false\n"), &[]).is_ok());
}

#[test]
fn all_problems_come_at_once_in_order() {
    let found = problems("[model]\npth = \"m\"\n[lora]\nrank = 0\n[training]\nsteps = 1.5\nepochs = 1\n", &["output.nme=x"]);
    let messages: Vec<String> = found.iter().map(|problem| problem.to_string().lines().next().unwrap().to_owned()).collect();
    assert_eq!(
        messages,
        [
            "r.toml: missing key `dataset.train`",
            "r.toml:1:2: missing key `model.path`",
            "r.toml:2:1: unknown key `pth` in `[model]`",
            "r.toml:4:8: `lora.rank` should be 1 or more, found 0",
            "r.toml:6:9: `training.steps` should be a whole number, not negative, found a number with a fraction",
            "r.toml:7:1: `training.epochs` and `training.steps` exclude each other",
            "--set output.nme=x: unknown key `nme` in `[output]`",
        ]
    );
}

#[test]
fn overrides_replace_values_and_need_no_quotes() {
    let text = format!("{SMALLEST}[lora]\nrank = 4\n[training]\nepochs = 2\n");
    let overrides =
        ["lora.rank=8", "training.steps=10", "training.dtype=f32", "output.name=7", "dataset.train=x.jsonl", "schedule.warmup_fraction=0"];
    let recipe = read(&text, &overrides).unwrap();
    assert_eq!((recipe.lora().unwrap().rank, recipe.training.steps, recipe.training.dtype), (8, Some(10), TrainingDtype::F32));
    assert_eq!((recipe.output.name.as_str(), &recipe.dataset.train[..]), ("7", &["x.jsonl".to_owned()][..]));
    assert!(read(&text, &["full={}"]).unwrap().lora().is_none());
    assert_eq!(read(&text, &["dataset.train=[\"a\", \"b\"]"]).unwrap().dataset.train, ["a", "b"]);
}

#[test]
fn a_wrong_override_is_named_as_it_was_given() {
    for (argument, says, hints) in [
        ("optimizer.learning_rat=1", "--set optimizer.learning_rat=1: unknown key", "`learning_rate`"),
        ("rank=4", "unknown key `rank`", "`lora.rank`"),
        ("lora.rank", "an override is written", "--set"),
        ("lora.rank=many", "`lora.rank` should be a whole number", "rank = 16"),
        ("lora.rank=0", "--set lora.rank=0: `lora.rank` should be 1 or more", "rank = 16"),
        ("training.dtype=f23", "cannot be `f23`", "`f32`"),
        (".=1", "an override is written", "--set"),
    ] {
        let found = problems(SMALLEST, &[argument]);
        assert!(found[0].to_string().contains(says), "{}", found[0]);
        assert!(found[0].hint().unwrap().contains(hints), "{:?}", found[0].hint());
    }
}

#[test]
fn other_trainers_names_lead_to_ours() {
    assert_eq!(complaint("[optimizer]\nlr = 1e-3").1, "did you mean `optimizer.learning_rate`?");
    assert_eq!(complaint("[training]\nrank = 1").1, "did you mean `lora.rank`?");
    // Every name that the table leads to exists.
    let keys: Vec<String> = contract().into_iter().map(|(table, key)| format!("{table}.{key}")).collect();
    for name in ["lr", "base_model", "max_grad_norm", "save_steps", "lora_r", "val_set_size"] {
        assert!(keys.contains(&nearest::foreign(name).unwrap().to_owned()), "{name}");
    }
}

#[test]
fn broken_toml_is_shown_where_it_breaks() {
    let (message, hint) = complaint("[lora]\nrank = = 2");
    assert!(message.starts_with("r.toml:7:8: "), "{message}");
    assert!(hint.contains("TOML"));
    for text in ["", "\u{e4} = 1", "[", "a = \"\u{1f600}", "a = 1\na = 2", "[model]\npath = \"\\q\""] {
        assert!(matches!(read(text, &[]), Err(RecipeError::Invalid(_))), "{text}");
    }
}

#[test]
fn paths_are_found_beside_the_recipe() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("m")).unwrap();
    std::fs::write(folder.path().join("d.jsonl"), "").unwrap();
    let file = folder.path().join("mine.toml");
    std::fs::write(&file, "[model]\npath = \"m\"\n[dataset]\ntrain = [\"*.jsonl\", \"nowhere\"]\n").unwrap();
    let recipe = Recipe::from_file(&file, &[]).unwrap();
    assert_eq!(Path::new(&recipe.model.path), folder.path().join("m"));
    assert_eq!(Path::new(&recipe.dataset.train[0]), folder.path().join("*.jsonl"));
    assert_eq!(recipe.dataset.train[1], "nowhere");
    assert_eq!(recipe.output.name, "mine");
    assert!(matches!(Recipe::from_file(Path::new("nowhere.toml"), &[]), Err(RecipeError::Read { .. })));
}
