//! The name that a misspelt one may stand for.

/// Names that other trainers use, and the key that does the same here.
const FOREIGN: [(&str, &str); 24] = [
    ("lr", "optimizer.learning_rate"),
    ("base_model", "model.path"),
    ("model_name_or_path", "model.path"),
    ("datasets", "dataset.train"),
    ("max_length", "dataset.max_tokens"),
    ("max_seq_length", "dataset.max_tokens"),
    ("max_seq_len", "dataset.max_tokens"),
    ("sequence_len", "dataset.max_tokens"),
    ("sample_packing", "dataset.packing"),
    ("val_set_size", "dataset.validation_fraction"),
    ("lora_r", "lora.rank"),
    ("r", "lora.rank"),
    ("lora_alpha", "lora.alpha"),
    ("target_modules", "lora.targets"),
    ("use_rslora", "lora.rslora"),
    ("max_grad_norm", "optimizer.max_gradient_norm"),
    ("grad_clip", "optimizer.max_gradient_norm"),
    ("warmup_ratio", "schedule.warmup_fraction"),
    ("num_train_epochs", "training.epochs"),
    ("max_steps", "training.steps"),
    ("batch_size", "training.batch_sequences"),
    ("gradient_accumulation_steps", "training.accumulation_steps"),
    ("gradient_checkpointing", "training.checkpoint_activations"),
    ("save_steps", "checkpoint.every_steps"),
];

/// The names that `found` may be a misspelling of: the closest ones, or none when no name is close.
pub(super) fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let found = found.to_lowercase();
    let distances: Vec<(usize, &str)> = known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&found, name), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .collect();
    let least = distances.iter().map(|(distance, _)| *distance).min();
    distances.into_iter().filter(|(distance, _)| Some(*distance) == least).map(|(_, name)| name.to_owned()).collect()
}

/// The key of this program for another one's name.
pub(super) fn foreign(found: &str) -> Option<&'static str> {
    FOREIGN.iter().find(|(name, _)| *name == found).map(|(_, key)| *key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_are_all_named_and_strangers_are_not() {
        assert_eq!(nearest("beta", ["beta1", "beta2", "kind"]), ["beta1", "beta2"]);
        assert_eq!(nearest("wsd", ["cosine", "linear"]), Vec::<String>::new());
        assert_eq!(nearest("Learning_Rate", ["learning_rate"]), ["learning_rate"]);
    }
}
