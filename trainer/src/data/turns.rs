//! Which parts of a conversation are trained together, in which context.
//!
//! A turn is a run of the assistant's messages with its tool calls and their results, up to the next message of the user
//! (or developer). At inference, while a turn is being written, its own analysis stands in the context, also between tool
//! calls; once an answer on `final` stands after it, it is gone from every later prompt (gpt-oss' chat template and
//! harmony's guide both drop it). So the context of a turn is: everything before it, less the analysis that has a `final`
//! message between it and the turn. An earlier turn that never came to an answer keeps its analysis, as it does at
//! inference.
//!
//! Turns whose context and own text hold no analysis see the same context in one sample as in many, and share one; every
//! other turn is a sample of its own, ending with its last assistant message, with weight on this turn alone. Whatever
//! stands after the last trained assistant message is cut: nothing would be learnt from it.

use std::ops::Range;

use ft_formats::harmony::{Channel, Message, Role};

use super::conversation::{Body, LoadedConversation};
use super::error::{DataError, NothingToTrain};
use super::options::{SampleOptions, Turns};
use super::sample::{Draft, Sample, SampleOrigin};

/// The samples of one conversation, at least one, each with at least one trained token.
///
/// Turns whose messages all have weight 0 make no sample.
///
/// # Errors
/// [`DataError::NothingToTrain`] when no sample has a trained token.
pub fn samples(conversation: &LoadedConversation, options: &SampleOptions) -> Result<Vec<Sample>, DataError> {
    Ok(drafts(conversation, options)?.drafts.into_iter().map(Draft::finish).collect())
}

/// Samples that may still be cut, and the number of those that were left out.
#[derive(Debug)]
pub(super) struct Drafts {
    pub(super) drafts: Vec<Draft>,
    /// Samples without a trained token.
    pub(super) untrained: usize,
}

pub(super) fn drafts(conversation: &LoadedConversation, options: &SampleOptions) -> Result<Drafts, DataError> {
    let place = &conversation.place;
    let nothing = |reason| DataError::NothingToTrain { place: place.clone(), reason };
    let (all, reason) = match &conversation.body {
        Body::Text(text) => (vec![Draft::text(text, SampleOrigin::new(place, None))], NothingToTrain::EmptyText),
        Body::Conversation { conversation, message_weights } => {
            let messages = &conversation.messages;
            let turns = turns(messages);
            if turns.is_empty() {
                return Err(nothing(NothingToTrain::NoAssistant));
            }
            let groups = groups(messages, &turns, options.turns);
            let has_several = groups.len() > 1;
            let drafts = groups.into_iter().map(|group| {
                let origin = SampleOrigin::new(place, has_several.then_some(group.end - 1));
                let trained = turns[group.start].start..turns[group.end - 1].end;
                Draft::conversation(in_context(messages, message_weights, &trained), &options.weights, origin)
            });
            (drafts.collect(), NothingToTrain::AllWeightsZero)
        }
    };
    let before = all.len();
    let drafts: Vec<Draft> = all.into_iter().filter(Draft::is_trained).collect();
    if drafts.is_empty() {
        return Err(nothing(reason));
    }
    Ok(Drafts { untrained: before - drafts.len(), drafts })
}

/// The turns of a conversation: from the first message of the run to behind its last assistant message.
fn turns(messages: &[Message]) -> Vec<Range<usize>> {
    let mut turns: Vec<Range<usize>> = Vec::new();
    let mut run_start = None;
    for (index, message) in messages.iter().enumerate() {
        match message.role {
            Role::System | Role::Developer | Role::User => run_start = None,
            Role::Tool => {
                run_start.get_or_insert(index);
            }
            Role::Assistant => {
                let start = *run_start.get_or_insert(index);
                match turns.last_mut().filter(|turn| turn.start == start) {
                    Some(turn) => turn.end = index + 1,
                    None => turns.push(start..index + 1),
                }
            }
        }
    }
    turns
}

/// Ranges of turns that are trained in one sample.
fn groups(messages: &[Message], turns: &[Range<usize>], which: Turns) -> Vec<Range<usize>> {
    let count = turns.len();
    match which {
        Turns::Last => std::iter::once(count - 1..count).collect(),
        Turns::Each => {
            let has_analysis = |turn: &Range<usize>| messages[turn.clone()].iter().any(is_analysis);
            let first = turns.iter().position(has_analysis).unwrap_or(count);
            let leading = std::iter::once(0..first).filter(|group| !group.is_empty());
            leading.chain((first..count).map(|turn| turn..turn + 1)).collect()
        }
    }
}

/// The messages that inference would show up to the end of `trained`, with weight on `trained` alone.
fn in_context(messages: &[Message], weights: &[f32], trained: &Range<usize>) -> Vec<(Message, f32)> {
    let last_final =
        messages[..trained.start].iter().rposition(|message| message.role == Role::Assistant && message.channel == Some(Channel::Final));
    let is_gone = |index: usize| last_final.is_some_and(|last| index < last) && is_analysis(&messages[index]);
    (0..trained.end)
        .filter(|&index| !is_gone(index))
        .map(|index| (messages[index].clone(), if trained.contains(&index) { weights[index] } else { 0.0 }))
        .collect()
}

fn is_analysis(message: &Message) -> bool {
    message.role == Role::Assistant && message.channel == Some(Channel::Analysis)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::data::columns::Columns;
    use crate::data::conversation::read_row;
    use crate::data::error::Place;
    use crate::data::options::ChannelWeights;
    use crate::data::pieces::pieces;
    use crate::data::sample::{TrainedTokens, render_whole};

    fn load(line: &Value) -> LoadedConversation {
        read_row(Place { file: PathBuf::from("d.jsonl"), line: 7 }, line.clone(), &Columns::default()).unwrap()
    }

    /// The samples as text without the system message; what is trained stands in brackets.
    fn marked(messages: Value, options: SampleOptions) -> Vec<String> {
        let conversation = load(&json!({"messages": messages}));
        samples(&conversation, &options).unwrap().iter().map(mark).collect()
    }

    fn mark(sample: &Sample) -> String {
        let mut text = String::new();
        let mut is_trained = false;
        for piece in pieces(sample) {
            if (piece.weight != 0.0) != is_trained {
                is_trained = !is_trained;
                text.push(if is_trained { '[' } else { ']' });
            }
            text += &piece.text;
        }
        if is_trained {
            text.push(']');
        }
        let text = text.split_once("<|end|>").map_or(text.as_str(), |(_, rest)| rest);
        // Shorter, to be read: <|start|>user<|message|>Q<|end|> shows as {user:Q}.
        text.replace("<|start|>", "{").replace("<|message|>", ":").replace("<|channel|>", "/").replace("<|end|>", "}")
    }

    fn user(text: &str) -> Value {
        json!({"role": "user", "content": text})
    }

    fn answer(text: &str) -> Value {
        json!({"role": "assistant", "content": text})
    }

    fn thought(thinking: &str, text: &str) -> Value {
        json!({"role": "assistant", "thinking": thinking, "content": text})
    }

    #[test]
    fn the_opening_is_trained_only_where_the_model_goes_on() {
        assert_eq!(
            marked(json!([user("Q"), thought("T", "A")]), SampleOptions::default()),
            ["{user:Q}{assistant[/analysis:T}{assistant/final:A<|return|>]"]
        );
    }

    #[test]
    fn without_analysis_all_turns_share_a_sample() {
        assert_eq!(
            marked(json!([user("Q"), answer("A"), user("R"), answer("B"), user("S")]), SampleOptions::default()),
            ["{user:Q}{assistant[/final:A}]{user:R}{assistant[/final:B<|return|>]"]
        );
    }

    #[test]
    fn with_analysis_each_turn_sees_what_inference_shows() {
        assert_eq!(
            marked(json!([user("Q"), thought("T", "A"), user("R"), thought("U", "B")]), SampleOptions::default()),
            [
                "{user:Q}{assistant[/analysis:T}{assistant/final:A<|return|>]",
                "{user:Q}{assistant/final:A}{user:R}{assistant[/analysis:U}{assistant/final:B<|return|>]",
            ]
        );
    }

    #[test]
    fn a_turn_after_analysis_is_a_sample_also_without_its_own() {
        assert_eq!(
            marked(json!([user("Q"), thought("T", "A"), user("R"), answer("B")]), SampleOptions::default()),
            [
                "{user:Q}{assistant[/analysis:T}{assistant/final:A<|return|>]",
                "{user:Q}{assistant/final:A}{user:R}{assistant[/final:B<|return|>]",
            ]
        );
    }

    #[test]
    fn turns_before_the_first_analysis_share_a_sample() {
        let messages = json!([user("1"), answer("A"), user("2"), answer("B"), user("3"), thought("T", "C")]);
        assert_eq!(
            marked(messages, SampleOptions::default()),
            [
                "{user:1}{assistant[/final:A}]{user:2}{assistant[/final:B<|return|>]",
                "{user:1}{assistant/final:A}{user:2}{assistant/final:B}{user:3}{assistant[/analysis:T}{assistant/final:C\
                 <|return|>]",
            ]
        );
    }

    #[test]
    fn analysis_between_tool_calls_stays_within_its_turn() {
        let call = |thinking: &str| json!({"role": "assistant", "thinking": thinking, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]});
        let result = json!({"role": "tool", "content": "r"});
        let messages = json!([user("Q"), call("1"), result, call("2"), result, thought("3", "A"), user("R"), answer("B")]);
        let call = "{assistant to=functions.f/commentary <|constrain|>json:{}<|call|>";
        let trained_call = "{assistant to=functions.f/commentary <|constrain|>json:{}<|call|>]";
        let result = "{functions.f to=assistant/commentary:r}";
        let untrained = "{assistant/final:A}";
        assert_eq!(
            marked(messages, SampleOptions::default()),
            [
                format!(
                    "{{user:Q}}{{assistant[/analysis:1}}{trained_call}{result}{{assistant[/analysis:2}}{trained_call}{result}\
                     {{assistant[/analysis:3}}{{assistant/final:A<|return|>]"
                ),
                format!("{{user:Q}}{call}{result}{call}{result}{untrained}{{user:R}}{{assistant[/final:B<|return|>]"),
            ]
        );
    }

    #[test]
    fn calls_side_by_side_are_each_opened_by_the_prompt() {
        let call = |name: &str| json!({"id": name, "function": {"name": name, "arguments": "{}"}});
        let messages = json!([
            user("Q"),
            {"role": "assistant", "content": "Wait.", "tool_calls": [call("f"), call("g")]},
            {"role": "tool", "tool_call_id": "g", "content": "r"},
        ]);
        let tail = "/commentary <|constrain|>json:{}<|call|>]";
        assert_eq!(
            marked(messages, SampleOptions::default()),
            [format!("{{user:Q}}{{assistant[/commentary:Wait.}}{{assistant to=functions.f{tail}{{assistant[ to=functions.g{tail}")]
        );
    }

    #[test]
    fn a_turn_that_was_never_answered_keeps_its_analysis_in_the_context() {
        let messages = json!([
            user("Q"), {"role": "assistant", "channel": "analysis", "content": "T"},
            user("R"), thought("U", "A"), user("S"), answer("B"),
        ]);
        assert_eq!(
            marked(messages, SampleOptions::default()),
            [
                "{user:Q}{assistant[/analysis:T}]",
                "{user:Q}{assistant/analysis:T}{user:R}{assistant[/analysis:U}{assistant/final:A<|return|>]",
                "{user:Q}{user:R}{assistant/final:A}{user:S}{assistant[/final:B<|return|>]",
            ]
        );
    }

    #[test]
    fn the_last_turn_alone() {
        let options = SampleOptions { turns: Turns::Last, ..SampleOptions::default() };
        assert_eq!(
            marked(json!([user("Q"), thought("T", "A"), user("R"), thought("U", "B"), user("S")]), options),
            ["{user:Q}{assistant/final:A}{user:R}{assistant[/analysis:U}{assistant/final:B<|return|>]"]
        );
    }

    #[test]
    fn each_token_carries_its_channels_weight() {
        let weights = ChannelWeights { analysis: 0.25, commentary: 1.0, final_: 2.0 };
        let conversation = load(&json!({"messages": [user("Q"), thought("T", "A")]}));
        let sample = &samples(&conversation, &SampleOptions { weights, ..SampleOptions::default() }).unwrap()[0];
        let trained: Vec<f32> = sample.weights.iter().copied().filter(|weight| *weight != 0.0).collect();
        // <|channel|>analysis<|message|>T<|end|>, then <|start|>assistant<|channel|>final<|message|>A<|return|>
        assert_eq!(trained, [vec![0.25; 5], vec![2.0; 7]].concat());
        assert_eq!((sample.trained.analysis, sample.trained.final_), (5, 7));
    }

    #[test]
    fn a_masked_channel_leaves_the_others() {
        let weights = ChannelWeights { analysis: 0.0, ..ChannelWeights::default() };
        let options = SampleOptions { weights, ..SampleOptions::default() };
        assert_eq!(
            marked(json!([user("Q"), thought("T", "A")]), options),
            ["{user:Q}{assistant/analysis:T}[{assistant/final:A<|return|>]"]
        );
    }

    #[test]
    fn a_message_of_weight_0_is_context() {
        let messages = json!([
            user("Q"), {"role": "assistant", "content": "A", "weight": 0}, user("R"), {"role": "assistant", "content": "B", "weight": 1},
        ]);
        assert_eq!(marked(messages, SampleOptions::default()), ["{user:Q}{assistant/final:A}{user:R}{assistant[/final:B<|return|>]"]);
    }

    #[test]
    fn nothing_to_train_on_says_why() {
        let no_assistant = load(&json!({"messages": [user("Q")]}));
        let error = samples(&no_assistant, &SampleOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), "d.jsonl:7: nothing to train on: it has no assistant message");

        let weights = ChannelWeights { final_: 0.0, ..ChannelWeights::default() };
        let masked = load(&json!({"messages": [user("Q"), answer("A")]}));
        let error = samples(&masked, &SampleOptions { weights, ..SampleOptions::default() }).unwrap_err();
        assert_eq!(error.to_string(), "d.jsonl:7: nothing to train on: every assistant message in it has loss weight 0");

        let error = samples(&load(&json!({"text": ""})), &SampleOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), "d.jsonl:7: nothing to train on: its text is empty");
    }

    #[test]
    fn a_text_is_trained_from_its_second_token_to_its_end() {
        let sample = &samples(&load(&json!({"text": "one two three"})), &SampleOptions::default()).unwrap()[0];
        assert_eq!(sample.weights, [0.0, 1.0, 1.0, 1.0]);
        assert_eq!(sample.ids.last(), Some(&199_999));
        assert_eq!(sample.trained.text, 3);
    }

    #[test]
    fn samples_name_their_turn_when_there_are_several() {
        let one = load(&json!({"messages": [user("Q"), thought("T", "A")]}));
        assert_eq!(samples(&one, &SampleOptions::default()).unwrap()[0].origin.to_string(), "d.jsonl:7");
        let two = load(&json!({"messages": [user("Q"), thought("T", "A"), user("R"), answer("B")]}));
        assert_eq!(samples(&two, &SampleOptions::default()).unwrap()[1].origin.to_string(), "d.jsonl:7 (turn 2)");
    }

    /// JSON with the keys of conversations in the places of conversations, and in others.
    fn any_json() -> impl Strategy<Value = Value> {
        let names = prop::sample::select(vec![
            "messages",
            "conversations",
            "prompt",
            "completion",
            "role",
            "content",
            "channel",
            "thinking",
            "tool_calls",
            "function",
            "name",
            "arguments",
            "tools",
            "parameters",
            "type",
            "text",
            "from",
            "value",
            "oneOf",
            "properties",
            "recipient",
            "tool_call_id",
            "weight",
        ]);
        let words = prop::sample::select(vec![
            "user",
            "assistant",
            "tool",
            "system",
            "final",
            "analysis",
            "functions.f",
            "object",
            "text",
            "function",
            "gpt",
            "",
            "{}",
        ]);
        let leaf = prop_oneof![
            3 => words.prop_map(Value::from), 1 => any::<bool>().prop_map(Value::from), 1 => any::<f64>().prop_map(Value::from),
            1 => Just(Value::Null),
        ];
        leaf.prop_recursive(6, 60, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((names.clone(), inner), 0..6)
                    .prop_map(|entries| { Value::Object(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),) }),
            ]
        })
    }

    fn any_message() -> impl Strategy<Value = Value> {
        let text = "[a-z \\n\u{e9}\u{1f600}]{0,12}";
        prop_oneof![
            text.prop_map(|text| user(&text)),
            text.prop_map(|text| answer(&text)),
            (text, text).prop_map(|(thinking, text)| thought(&thinking, &text)),
            text.prop_map(|text| json!({"role": "assistant", "channel": "analysis", "content": text})),
            text.prop_map(|text| json!({"role": "assistant", "content": text, "tool_calls": [{"name": "f", "arguments": "{}"}]})),
            text.prop_map(|text| json!({"role": "tool", "name": "f", "content": text})),
            text.prop_map(|text| json!({"role": "developer", "content": text})),
        ]
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in any_json()) {
            let place = Place { file: PathBuf::from("d.jsonl"), line: 1 };
            if let Ok(conversation) = read_row(place, line, &Columns::default()) {
                let _ = samples(&conversation, &SampleOptions::default());
            }
        }

        #[test]
        fn every_assistant_message_is_trained_once(messages in prop::collection::vec(any_message(), 1..12)) {
            let conversation = load(&json!({"messages": messages}));
            let whole = render_whole(&conversation, &ChannelWeights::default());
            let Ok(samples) = samples(&conversation, &SampleOptions::default()) else {
                prop_assert_eq!(whole.trained.total(), 0);
                return Ok(());
            };
            let mut trained = TrainedTokens::default();
            for sample in &samples {
                prop_assert_eq!(sample.ids.len(), sample.weights.len());
                prop_assert_eq!(sample.weights[0], 0.0);
                prop_assert_ne!(sample.weights.last(), Some(&0.0), "what follows the last trained token is cut");
                trained += sample.trained;
            }
            prop_assert_eq!(trained, whole.trained);
        }
    }
}
