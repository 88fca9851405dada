//! What a person reads when the recipe, the data or the files are wrong: the place, the next step, and nothing half-written.

use std::fs;
use std::path::{Path, PathBuf};

use ft_tests::conversations::{conversations, jsonl};
use ft_tests::program::{Said, ft, run, succeed};
use ft_tests::scratch::Scratch;

/// A folder with a model, data and a recipe that work; each case spoils one of them.
struct Project {
    scratch: Scratch,
}

/// What a message has to say, for one way of being wrong.
struct Case<'a> {
    name: &'a str,
    said: Said,
    /// Each of these stands in the message.
    says: &'a [&'a str],
}

impl Project {
    fn new() -> Self {
        let scratch = Scratch::new("errors");
        let sizes = [
            "hidden_size=32",
            "intermediate_size=32",
            "num_hidden_layers=2",
            "num_attention_heads=4",
            "num_key_value_heads=2",
            "head_dim=16",
            "num_local_experts=4",
            "num_experts_per_tok=2",
        ];
        let mut init = ft(["init", "--preset", "nano"]);
        succeed(init.arg(scratch.join("model")).args(sizes.iter().flat_map(|size| ["--set", size])));
        scratch.write("train.jsonl", jsonl(&conversations(8)));
        Self { scratch }
    }

    fn recipe(&self, name: &str, changes: &[(&str, &str)]) -> PathBuf {
        let mut text = format!(
            "[model]\npath = \"{folder}/model\"\n\n[dataset]\ntrain = [\"{folder}/train.jsonl\"]\n\n[lora]\nrank = 2\n\n\
             [optimizer]\nlearning_rate = 1e-3\n\n[training]\nsteps = 1\n\n[output]\ndirectory = \"{folder}/runs\"\nname = \"spoiled\"\n",
            folder = self.scratch.display()
        );
        for (old, new) in changes {
            assert!(text.contains(old), "{old}");
            text = text.replace(old, new);
        }
        self.scratch.write(name, text)
    }

    /// Trains on a recipe that differs from the working one by `changes`.
    fn train(&self, changes: &[(&str, &str)]) -> Said {
        run(ft(["train"]).arg(self.recipe("recipe.toml", changes)))
    }

    /// Trains on `lines` in place of the data.
    fn train_on(&self, lines: &str) -> Said {
        self.scratch.write("spoiled.jsonl", lines);
        self.train(&[("train.jsonl", "spoiled.jsonl")])
    }

    /// Trains on a copy of the model whose files `spoil` has been at.
    fn train_model(&self, spoil: impl Fn(&Path)) -> Said {
        let model = self.scratch.join("spoiled");
        let _ = fs::remove_dir_all(&model);
        fs::create_dir(&model).expect("a folder can be made");
        for entry in fs::read_dir(self.scratch.join("model")).expect("the model can be read") {
            let path = entry.expect("the model can be read").path();
            fs::copy(&path, model.join(path.file_name().expect("a name"))).expect("a file can be copied");
        }
        spoil(&model);
        self.train(&[("/model\"", "/spoiled\"")])
    }
}

impl Case<'_> {
    /// What is wrong with the message, if anything.
    fn complaint(&self) -> Option<String> {
        let Self { name, said, says } = self;
        let mut wrong = Vec::new();
        if said.code != Some(1) {
            wrong.push(format!("exit code {:?} instead of 1", said.code));
        }
        if !said.stderr.contains("error: ") {
            wrong.push("no `error: `".to_owned());
        }
        if !said.stderr.contains("hint: ") {
            wrong.push("no `hint: ` with the next step".to_owned());
        }
        if said.stderr.contains("panicked") {
            wrong.push("a panic".to_owned());
        }
        wrong.extend(says.iter().filter(|word| !said.stderr.contains(**word)).map(|word| format!("nothing about `{word}`")));
        (!wrong.is_empty()).then(|| format!("{name}: {}\n{}", wrong.join(", "), said.stderr))
    }
}

/// Cuts a file to part of its length.
fn truncate(path: &Path, keep: impl Fn(u64) -> u64) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("the shard can be opened");
    let length = file.metadata().expect("the shard has a length").len();
    file.set_len(keep(length)).expect("the shard can be cut");
}

fn edit(path: &Path, old: &str, new: &str) {
    let text = fs::read_to_string(path).expect("a text");
    assert!(text.contains(old), "{} does not hold {old}", path.display());
    fs::write(path, text.replace(old, new)).expect("a file can be written");
}

fn message(fields: &str) -> String {
    let good = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}"#;
    format!("{good}\n{{\"messages\": [{{\"role\": \"user\", \"content\": \"Hi\"}}, {fields}]}}\n")
}

#[test]
fn messages_name_the_place_and_the_next_step() {
    let project = Project::new();
    succeed(ft(["train"]).arg(project.recipe("works.toml", &[("spoiled", "works")])));

    let rate = "learning_rate = 1e-3";
    let truncated = "model.safetensors";
    let header = |model: &Path| {
        let path = model.join(truncated);
        let mut bytes = fs::read(&path).expect("a shard");
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(path, bytes).expect("a shard can be written");
    };
    let cases = [
        Case {
            name: "an unknown key in the recipe",
            said: project.train(&[(rate, "learning_rat = 1e-3")]),
            says: &["recipe.toml", "11", "learning_rat", "learning_rate", "^"],
        },
        Case {
            name: "an unknown table in the recipe",
            said: project.train(&[("[optimizer]", "[optimiser]")]),
            says: &["recipe.toml", "10", "optimizer"],
        },
        Case {
            name: "an unknown key in an override",
            said: run(ft(["train", "--set", "optimizer.learning_rat=1"]).arg(project.recipe("recipe.toml", &[]))),
            says: &["learning_rat", "learning_rate"],
        },
        Case { name: "a wrong type", said: project.train(&[("steps = 1", "steps = \"many\"")]), says: &["recipe.toml", "14", "steps"] },
        Case {
            name: "a wrong choice",
            said: project.train(&[("steps = 1", "steps = 1\ndtype = \"f23\"")]),
            says: &["recipe.toml", "15", "f23", "f32"],
        },
        Case { name: "a number out of range", said: project.train(&[("rank = 2", "rank = 0")]), says: &["recipe.toml", "8", "rank"] },
        Case { name: "TOML that is none", said: project.train(&[("rank = 2", "rank = = 2")]), says: &["recipe.toml", "8"] },
        Case {
            name: "a setting of a later version",
            said: project.train(&[("[output]", "[quantization]\naware = true\n\n[output]")]),
            says: &["quantization.aware", "not supported"],
        },
        Case { name: "a recipe that is not there", said: run(&mut ft(["train", "nowhere/recipe.toml"])), says: &["nowhere/recipe.toml"] },
        Case { name: "data that is not there", said: project.train(&[("train.jsonl", "absent.jsonl")]), says: &["absent.jsonl"] },
        Case { name: "a model that is not there", said: project.train(&[("/model\"", "/absent\"")]), says: &["/absent"] },
        Case { name: "a broken line", said: project.train_on("{\"messages\": []}\n{\"messages\": [\n"), says: &["spoiled.jsonl:"] },
        Case { name: "a broken second line", said: project.train_on(&message("{\"role\": }")), says: &["spoiled.jsonl:2"] },
        Case {
            name: "a role that does not exist",
            said: project.train_on(&message(r#"{"role": "asistant", "content": "Hello"}"#)),
            says: &["spoiled.jsonl:2", "asistant", "assistant"],
        },
        Case {
            name: "a channel that does not exist",
            said: project.train_on(&message(r#"{"role": "assistant", "channel": "finale", "content": "Hello"}"#)),
            says: &["spoiled.jsonl:2", "finale", "final"],
        },
        Case {
            name: "nothing to train on",
            said: project.train_on(&message(r#"{"role": "user", "content": "Anybody?"}"#)),
            says: &["spoiled.jsonl:2"],
        },
        Case {
            name: "nothing left by the weights",
            said: project.train(&[("[output]", "[loss]\nanalysis = 0.0\ncommentary = 0.0\nfinal = 0.0\n\n[output]")]),
            says: &["loss"],
        },
        Case {
            name: "a sample that is too long",
            said: project.train(&[("[lora]", "max_tokens = 16\n\n[lora]")]),
            says: &["train.jsonl:1", "16", "overlong"],
        },
        Case { name: "an empty file", said: project.train_on(""), says: &["spoiled.jsonl"] },
        Case {
            name: "a config that contradicts the tensors",
            said: project.train_model(|model| edit(&model.join("config.json"), "\"hidden_size\": 32", "\"hidden_size\": 64")),
            says: &["model.safetensors", "32", "64"],
        },
        Case {
            name: "a config that contradicts itself",
            said: project.train_model(|model| {
                edit(&model.join("config.json"), "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3");
            }),
            says: &["config.json", "num_key_value_heads"],
        },
        Case {
            name: "a config without a key",
            said: project.train_model(|model| edit(&model.join("config.json"), "\"head_dim\"", "\"head_dimension\"")),
            says: &["config.json", "head_dim"],
        },
        Case {
            name: "a shard cut short",
            said: project.train_model(|model| truncate(&model.join(truncated), |length| length - 1)),
            says: &["model.safetensors", "truncated"],
        },
        Case { name: "an empty shard", said: project.train_model(|model| truncate(&model.join(truncated), |_| 0)), says: &[truncated] },
        Case { name: "a header that lies about its length", said: project.train_model(header), says: &[truncated] },
        Case {
            name: "a tensor under another name",
            said: project.train_model(|model| {
                let path = model.join(truncated);
                let bytes = fs::read(&path).expect("a shard");
                let (old, new) = (b"model.layers.1.self_attn.sinks", b"model.layers.1.self_attn.zinks");
                let place = bytes.windows(old.len()).position(|window| window == old).expect("the tensor is there");
                let mut bytes = bytes;
                bytes[place..place + new.len()].copy_from_slice(new);
                fs::write(path, bytes).expect("a shard can be written");
            }),
            says: &["model.safetensors", "model.layers.1.self_attn.sinks"],
        },
        Case {
            name: "a folder that is in use",
            said: run(ft(["init", "--preset", "nano"]).arg(project.scratch.join("model"))),
            says: &["/model", "not empty"],
        },
        Case {
            name: "a config key that does not exist",
            said: run(ft(["init", "--preset", "nano", "--set", "hiden_size=32"]).arg(project.scratch.join("other"))),
            says: &["hiden_size", "hidden_size"],
        },
        Case {
            name: "a token that the vocabulary has not",
            said: run(ft(["logits"])
                .arg(project.scratch.join("model"))
                .arg("--tokens")
                .arg(project.scratch.write("tokens.json", "[1, 2, 201088]"))
                .arg("--output")
                .arg(project.scratch.join("logits.safetensors"))),
            says: &["tokens.json", "201088"],
        },
    ];
    let complaints: Vec<_> = cases.iter().filter_map(Case::complaint).collect();
    for left in ["runs/spoiled", "other", "logits.safetensors"] {
        assert!(!project.scratch.join(left).exists(), "{left} was left behind by a command that failed");
    }
    assert!(complaints.is_empty(), "{} of {} messages\n\n{}", complaints.len(), cases.len(), complaints.join("\n"));
}
