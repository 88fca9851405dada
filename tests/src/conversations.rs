//! Conversations that a test trains on: short, each one sample, in more than one shape.

use serde_json::{Value, json};

/// `count` conversations, every one a single sample whatever `turns` says: either one turn with analysis, or several without.
#[must_use]
pub fn conversations(count: usize) -> Vec<Value> {
    (0..count)
        .map(|index| match index % 4 {
            0 => json!({"messages": [
                {"role": "user", "content": format!("What is {index} plus {index}?")},
                {"role": "assistant", "thinking": format!("Twice {index}."), "content": format!("It is {}.", 2 * index)},
            ]}),
            1 => json!({"reasoning": "low", "messages": [
                {"role": "system", "content": "Answer in one word."},
                {"role": "user", "content": format!("Is {index} odd? π, naïve, 你好")},
                {"role": "assistant", "channel": "analysis", "content": "Look at the last bit."},
                {"role": "assistant", "channel": "final", "content": if index % 2 == 1 { "Yes" } else { "No" }},
            ]}),
            2 => json!({"messages": [
                {"role": "user", "content": "Name a colour."},
                {"role": "assistant", "content": "Blue."},
                {"role": "user", "content": format!("And {index} more?")},
                {"role": "assistant", "content": "Red, green and yellow, to begin with."},
            ]}),
            _ => json!({"messages": [
                {"role": "user", "content": format!("fn f() -> u32 {{ {index} }}\nWhat does it return?")},
                {"role": "assistant", "content": format!("`{index}`, as a `u32`.")},
            ]}),
        })
        .collect()
}

/// As JSONL.
#[must_use]
pub fn jsonl(conversations: &[Value]) -> String {
    conversations.iter().map(|each| format!("{each}\n")).collect()
}
