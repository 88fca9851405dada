//! The tokenizer files that `ft init` writes, as transformers reads them.

use ft_tests::conversations::jsonl;
use ft_tests::program::{ft, peer, succeed};
use ft_tests::scratch::Scratch;
use serde_json::json;

/// Texts that tell tokenizers apart: contractions, digits, runs of blanks, line ends, scripts, emoji, combining marks.
const TEXTS: [&str; 12] = [
    "I'll say it's HE'LL, they'Re, wouldn't've",
    "1234567890 3.14159 0x7fff_ffff 1,000,000",
    "    indented\n\tfn main() {\n\n\n        println!(\"{}\");   \n}\r\n\r\n",
    "naïve café über straße ÀÉÎÕÜ İstanbul",
    "你好，世界。これはペンです。한국어 텍스트",
    "مرحبا بالعالم שלום עולם",
    "Здравствуй, мир; ΑΒΓ αβγ",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 🙂🙂🙂",
    "e\u{301}a\u{308} Z\u{351}\u{36b}\u{343} नमस्ते",
    "https://example.org/a?b=c&d=%20#e  user@example.org",
    "CamelCaseIdentifier snake_case_identifier SCREAMING_CASE kebab-case",
    "\u{a0}\u{2003}\u{200b}\u{feff}…—–“quotes”‘’\u{0}\u{1b}[0m",
];

#[test]
fn transformers_tokenises_as_ft_does() {
    let scratch = Scratch::new("tokenizer");
    let model = scratch.join("model");
    let sizes = ["hidden_size=32", "intermediate_size=32", "num_hidden_layers=1", "num_local_experts=2", "num_experts_per_tok=1"];
    succeed(ft(["init", "--preset", "nano"]).arg(&model).args(sizes.iter().flat_map(|size| ["--set", size])));
    let conversations: Vec<_> = TEXTS
        .iter()
        .map(|text| {
            json!({"messages": [
                {"role": "developer", "content": text},
                {"role": "user", "content": text},
                {"role": "assistant", "thinking": text, "content": text},
            ]})
        })
        .collect();
    let data = scratch.write("texts.jsonl", jsonl(&conversations));
    let rendered = scratch.write("rendered.json", succeed(ft(["render", "--tokens", "--json"]).arg(data)));
    succeed(peer("tokenizer.py", [&model, &rendered]).env("HF_HUB_OFFLINE", "1"));
}
