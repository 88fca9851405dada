//! How to run an export, in each runtime that can.

use super::{CardKind, fenced};

/// The section of the card; `name` and `base` are on one line.
pub(super) fn section(kind: &CardKind, name: &str, base: Option<&str>) -> String {
    let base = base.unwrap_or("openai/gpt-oss-20b");
    let runtimes = match kind {
        CardKind::Safetensors => vec![
            ("transformers", fenced("python", &transformers(name))),
            ("vLLM", fenced("sh", &format!("vllm serve {}", shell(&format!("./{name}"))))),
            ("llama.cpp, LM Studio, Ollama", {
                let export = format!("ft export {} OUT --to gguf", shell(&format!("./{name}")));
                format!("These take GGUF; `ft` writes it from this model.\n\n{}", fenced("sh", &export))
            }),
        ],
        CardKind::OpenAi => vec![(
            "gpt-oss",
            fenced("sh", &format!("pip install \"gpt-oss[torch]\"\npython -m gpt_oss.generate {}", shell(&format!("./{name}")))),
        )],
        CardKind::Gguf { file } => vec![
            ("llama.cpp", fenced("sh", &format!("llama-server -m {} --jinja -c 0", shell(file)))),
            ("LM Studio", fenced("sh", &format!("lms import {}", shell(file)))),
            ("Ollama", {
                let steps = format!(
                    "printf 'FROM %s\\n' {} > Modelfile\nollama create NAME -f Modelfile\nollama run NAME",
                    shell(&format!("./{file}"))
                );
                format!(
                    "With the Modelfile that `ft export --to ollama` writes; or, with Ollama's reading of the template in the file:\n\n{}",
                    fenced("sh", &steps)
                )
            }),
        ],
        CardKind::Ollama { file } => vec![
            ("Ollama", fenced("sh", "ollama create NAME -f Modelfile\nollama run NAME")),
            ("llama.cpp", fenced("sh", &format!("llama-server -m {} --jinja -c 0", shell(file)))),
            ("LM Studio", fenced("sh", &format!("lms import {}", shell(file)))),
        ],
        CardKind::GgufAdapter { file } => vec![
            ("llama.cpp", fenced("sh", &format!("llama-server -m BASE.gguf --lora {} --jinja -c 0", shell(file)))),
            ("Ollama", {
                let steps = format!("printf 'FROM gpt-oss:20b\\nADAPTER %s\\n' {} > Modelfile", shell(&format!("./{file}")));
                let steps = format!("{steps}\nollama create NAME -f Modelfile\nollama run NAME");
                format!("FROM names the model that the adapter was trained on.\n\n{}", fenced("sh", &steps))
            }),
        ],
        CardKind::PeftAdapter => vec![
            ("PEFT", fenced("python", &peft(name, base))),
            ("vLLM", {
                let serve = format!(
                    "vllm serve {} --enable-lora --max-lora-rank 64 --lora-modules adapter={}",
                    shell(base),
                    shell(&format!("./{name}"))
                );
                format!("The rank given must be at least the adapter's.\n\n{}", fenced("sh", &serve))
            }),
            ("llama.cpp, Ollama", {
                let export = format!("ft export {} OUT --to gguf-lora", shell(&format!("./{name}")));
                format!("These take a GGUF adapter; `ft` writes it from this one.\n\n{}", fenced("sh", &export))
            }),
        ],
    };
    let mut text = "\n## How to run it\n".to_owned();
    for (title, body) in runtimes {
        text += &format!("\n### {title}\n\n{body}");
    }
    text
}

fn transformers(name: &str) -> String {
    format!(
        "from transformers import pipeline\n\nmodel = pipeline(\"text-generation\", model={}, dtype=\"auto\", device_map=\"auto\")\n\
         messages = [{{\"role\": \"user\", \"content\": \"Hello\"}}]\nprint(model(messages, max_new_tokens=512)[0][\"generated_text\"][-1])",
        python(&format!("./{name}"))
    )
}

fn peft(name: &str, base: &str) -> String {
    let (name, base) = (python(&format!("./{name}")), python(base));
    format!(
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         base = AutoModelForCausalLM.from_pretrained({base}, dtype=\"auto\", device_map=\"auto\")\n\
         model = PeftModel.from_pretrained(base, {name})\ntokenizer = AutoTokenizer.from_pretrained({base})\n\
         messages = [{{\"role\": \"user\", \"content\": \"Hello\"}}]\n\
         inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors=\"pt\").to(model.device)\n\
         print(tokenizer.decode(model.generate(**inputs, max_new_tokens=512)[0]))"
    )
}

/// `text` as a word of the shell.
fn shell(text: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_./:+@".contains(character);
    if !text.is_empty() && text.chars().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// `text` as a string of Python.
fn python(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
