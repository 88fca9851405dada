//! Memory of a run by what it is for, estimated from the tensors that exist at the same time.
//!
//! Letters: t tokens of a forward pass, n trained ones, d model width, h query heads, g key/value heads, k head width, e experts, a active
//! experts, f expert width, v vocabulary.

use ft_formats::checkpoint::{Config, ExpertStorage, Projection, tensor_specs};
use ft_formats::dtype::Dtype;
use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS};
use serde::Serialize;

use super::passes::Pass;
use crate::optimizer::state_bytes;
use crate::recipe::{Experts, Recipe, TrainingDtype};
use crate::torch::functions::{PIECE_BYTES, chunk_rows};

/// libtorch, the tokenizer, and on a CPU the matrix kernels that oneDNN makes for each shape it meets.
///
/// Source: what the nano model takes on a CPU beyond its other classes, measured after some hundred steps.
const LIBRARY_BYTES: u64 = 2_400_000_000;

/// Code and tables of CUDA, and the workspace of cuBLAS, on the device: an estimate, until it is measured.
const CONTEXT_BYTES: u64 = 800_000_000;

/// What is kept of the routing for each of a token's experts: the expert and, on a device, its row's (i64 both), and three i32 of the sort.
const ROUTING_BYTES: u64 = 28;

/// Sums of the queries' gradient that flash attention keeps in f32 where it has to be deterministic: as many as it takes to occupy 132
/// multiprocessors with 64 heads.
///
/// Source: `mha_varlen_bwd` in pytorch/pytorch 03b7c19d, `aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp`.
const QUERY_GRADIENT_SUMS: u64 = 3;

/// Where bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryPlace {
    /// On the CUDA device.
    Device,
    /// In the memory of the machine; all of it when it computes on its CPU.
    Host,
}

/// Bytes of one class of memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryClass {
    /// What it is.
    pub name: &'static str,
    /// Where it is.
    pub place: MemoryPlace,
    /// Estimated bytes.
    pub bytes: u64,
}

/// Memory at the largest moment of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Class by class; a class may be in both places.
    pub classes: Vec<MemoryClass>,
    /// Sum of those on the device; 0 on a CPU.
    pub device_bytes: u64,
    /// Sum of those on the host.
    pub host_bytes: u64,
}

impl Memory {
    fn new(classes: Vec<MemoryClass>) -> Self {
        let sum = |place| classes.iter().filter(|class| class.place == place).map(|class| class.bytes).sum();
        Self { device_bytes: sum(MemoryPlace::Device), host_bytes: sum(MemoryPlace::Host), classes }
    }
}

/// What decides how much memory a run takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Footprint<'a> {
    pub(super) config: &'a Config,
    /// How the checkpoint stores its experts.
    pub(super) storage: ExpertStorage,
    pub(super) recipe: &'a Recipe,
    /// Elements of every trained tensor.
    pub(super) leaves: &'a [u64],
    pub(super) pass: Pass,
    pub(super) is_on_device: bool,
}

impl Footprint<'_> {
    /// All classes.
    pub(super) fn memory(&self) -> Memory {
        use MemoryPlace::{Device, Host};
        let compute = if self.is_on_device { Device } else { Host };
        let trained: u64 = self.leaves.iter().sum();
        let (experts, other, embedding) = self.weights();
        let (saved, offloaded) = self.saved_activations();
        let adapters = if self.is_full() { 0 } else { trained * 4 };
        let expert_name = if self.is_packed() { "packed experts" } else { "experts" };
        let mut classes = Vec::new();
        let mut add = |name, place, bytes| classes.push(MemoryClass { name, place, bytes });
        add(expert_name, compute, experts);
        add("other weights", compute, other);
        add("adapters", compute, adapters);
        add("gradients", compute, trained * 4);
        add("optimizer", compute, state_bytes(self.recipe.optimizer.kind, self.leaves));
        add("saved activations", compute, saved);
        add("live activations", compute, self.live_activations());
        add("workspace", compute, self.workspace());
        add("logits", compute, self.logits());
        if self.is_on_device {
            add("libraries", Device, CONTEXT_BYTES);
            add("embedding", Host, embedding);
            add("saved activations", Host, offloaded);
        }
        add("libraries", Host, LIBRARY_BYTES);
        Memory::new(classes)
    }

    fn is_full(&self) -> bool {
        self.recipe.lora().is_none()
    }

    /// Experts stay in MXFP4: they are stored so, frozen, and not asked for in bf16.
    fn is_packed(&self) -> bool {
        self.storage == ExpertStorage::Mxfp4 && self.recipe.model.experts == Experts::Mxfp4 && !self.is_full()
    }

    /// Bytes of an element of the activations.
    fn element(&self) -> u64 {
        match self.recipe.training.dtype {
            TrainingDtype::Bf16 => 2,
            TrainingDtype::F32 => 4,
        }
    }

    /// Bytes of the experts' matrices, of all other weights beside them, and of the embedding where it is elsewhere.
    ///
    /// Trained weights are f32; frozen ones have the type of the activations, packed experts 17 bytes for 32 weights. A frozen embedding
    /// stays on the host of a device.
    fn weights(&self) -> (u64, u64, u64) {
        let element = if self.is_full() { 4 } else { self.element() };
        let layers = self.config.num_hidden_layers as u64;
        let matrices = layers * expert_matrices(self.config).iter().sum::<u64>();
        let experts = if self.is_packed() { layers * packed_bytes(self.config) } else { matrices * element };
        let embedding = self.config.vocab_size as u64 * self.config.hidden_size as u64;
        let elsewhere = if self.is_on_device && !self.is_full() { embedding } else { 0 };
        (experts, (parameters(self.config) - matrices - elsewhere) * element, elsewhere * element)
    }

    /// What a layer keeps for its gradient, in elements a token: norms and residuals (6 d), heads before and after rotation and as attention
    /// takes them (3 (h + 2 g) k), and for each active expert its input and output and those of the activation (2 d + 3 f).
    fn kept_by_layer(&self) -> u64 {
        let config = self.config;
        let heads = (config.query_size() + 2 * config.key_value_size()) as u64;
        let (active, width, inner) = (config.num_experts_per_token as u64, config.hidden_size as u64, config.intermediate_size as u64);
        6 * width + 3 * heads + active * (2 * width + 3 * inner)
    }

    /// What all layers keep from the forward pass to the backward pass: on the device, and moved to the host.
    ///
    /// Under `checkpoint_activations` their inputs, [t, d], and their routing: [`ROUTING_BYTES`] x t x a. Moved inputs leave two on the device,
    /// one in use and one on its way.
    ///
    /// Source: libtorch's allocator of pinned memory rounds up to a power of two (`ATen/core/CachingHostAllocator.h`, `allocate`).
    fn saved_activations(&self) -> (u64, u64) {
        let (tokens, layers) = (self.pass.tokens, self.config.num_hidden_layers as u64);
        if !self.recipe.training.checkpoint_activations {
            return (layers * tokens * self.kept_by_layer() * self.element(), 0);
        }
        let routing = layers * tokens * ROUTING_BYTES * self.config.num_experts_per_token as u64;
        let input = tokens * self.config.hidden_size as u64 * self.element();
        if self.offloads() { (2 * input + routing, layers * input.next_power_of_two()) } else { (layers * input + routing, 0) }
    }

    fn offloads(&self) -> bool {
        self.is_on_device && self.recipe.training.offload_activations && self.recipe.training.checkpoint_activations
    }

    /// What one layer has while its gradient is formed, and the embedding's and the last norm's outputs with their gradients (3 d).
    ///
    /// On a device the widest moment is the gradient of the experts, whose arrays each have a twin (a (2 d + 3 f)), or that of attention, which
    /// sums in f32. On a CPU the f32 that count are attention's and the gradients' of the products beside it (8 of width a f).
    fn live_activations(&self) -> u64 {
        let config = self.config;
        let (active, width, inner) = (config.num_experts_per_token as u64, config.hidden_size as u64, config.intermediate_size as u64);
        let of_experts = active * (2 * width + 3 * inner) * self.element();
        let temporaries = match self.is_on_device {
            true => of_experts.max(config.query_size() as u64 * 4 * QUERY_GRADIENT_SUMS),
            false => active * inner * 4 * 8,
        };
        let kept = if self.recipe.training.checkpoint_activations { self.kept_by_layer() } else { 0 };
        self.pass.tokens * ((kept + 3 * width) * self.element() + temporaries)
    }

    /// Weights in another form than they are held in, for as long as a product takes.
    ///
    /// Packed experts: unpacked to bf16, on a device at most [`PIECE_BYTES`], on a CPU one expert. Trained weights (f32): those of a
    /// layer in bf16, of every layer where all keep their graph, and in full training the gradient of the largest in both types.
    fn workspace(&self) -> u64 {
        let config = self.config;
        let matrices = expert_matrices(config);
        let largest = matrices.iter().copied().max().unwrap_or(0);
        let unpacked = match (self.is_packed(), self.is_on_device) {
            (false, _) => 0,
            (true, true) => (largest * 2).min(PIECE_BYTES.unsigned_abs()),
            (true, false) => largest / config.num_local_experts.max(1) as u64 * 2,
        };
        let trained: u64 = self.leaves.iter().sum();
        let ends = 2 * (config.vocab_size * config.hidden_size) as u64;
        let by_layers = if self.is_full() { trained.saturating_sub(ends) } else { trained };
        let layers = if self.recipe.training.checkpoint_activations { config.num_hidden_layers.max(1) as u64 } else { 1 };
        let casts = if self.element() == 4 { 0 } else { by_layers / layers * self.element() };
        let gradient = if self.is_full() { largest * if self.element() == 4 { 4 } else { 4 + self.element() } } else { 0 };
        unpacked + casts + gradient
    }

    /// A chunk of logits, and what stands beside it: the hidden states of the trained tokens with their gradient, in full training the head in
    /// the type of the activations and its gradient in both types.
    fn logits(&self) -> u64 {
        let (vocabulary, width, element) = (self.config.vocab_size as u64, self.config.hidden_size as u64, self.element());
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let rows = chunk_rows(signed(self.pass.trained_tokens), signed(vocabulary)).unsigned_abs();
        let chunk = rows * vocabulary * element;
        let head = match (self.is_full(), element) {
            (false, _) => 0,
            (true, 4) => vocabulary * width * 4,
            (true, _) => vocabulary * width * (2 * element + 4),
        };
        chunk + head + 2 * self.pass.trained_tokens * width * element
    }
}

/// Elements of the two matrices of all experts of a layer.
fn expert_matrices(config: &Config) -> [u64; 2] {
    Projection::ALL.map(|projection| {
        let [input, output] = projection.dims(config);
        config.num_local_experts as u64 * input as u64 * output as u64
    })
}

/// Bytes of the experts of a layer in MXFP4: blocks, and a scale for each.
fn packed_bytes(config: &Config) -> u64 {
    let bytes = |projection: Projection| {
        let [input, output] = projection.dims(config);
        (config.num_local_experts * output * input.div_ceil(BLOCK_ELEMENTS)) as u64 * (BLOCK_BYTES as u64 + 1)
    };
    Projection::ALL.map(bytes).iter().sum()
}

/// Elements of the model.
#[must_use]
pub fn parameters(config: &Config) -> u64 {
    tensor_specs(config, ExpertStorage::Float(Dtype::F32)).iter().map(|spec| spec.shape.iter().product::<usize>() as u64).sum()
}
