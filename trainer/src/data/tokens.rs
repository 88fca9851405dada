//! Samples as columns of numbers: in memory, or mapped from the token cache.
//!
//! A sample's weights are kept as the runs of tokens that have one, since a conversation has few.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, FixedSizeListArray, LargeListArray, ListArray, RecordBatch, StructArray, UInt8Array,
    UInt32Array, UInt64Array,
};
use arrow::array::{Float32Array, GenericListArray, OffsetSizeTrait};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Float32Type, Schema, SchemaRef, UInt8Type, UInt32Type, UInt64Type};
use ft_formats::harmony::Channel;

use super::sample::{Sample, SampleOrigin, TrainedSpan, TrainedTokens};
use super::speakers::SpokenTokens;

/// Bytes of a digest: enough that no two conversations of any dataset share one by chance.
pub(super) const DIGEST_BYTES: usize = 16;
pub(super) type Digest = [u8; DIGEST_BYTES];

const CHANNELS: [Option<Channel>; 4] = [None, Some(Channel::Analysis), Some(Channel::Commentary), Some(Channel::Final)];

/// A sample, and what is known of the conversation that it was made from.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) sample: Sample,
    pub(super) spoken: SpokenTokens,
    /// Index of its file.
    pub(super) file: u32,
    /// Of the ids of all samples of the conversation, before any was cut.
    pub(super) conversation: Digest,
    /// Of the ids before the assistant first speaks.
    pub(super) prompt: Digest,
}

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

fn item(data_type: DataType) -> FieldRef {
    Arc::new(field("item", data_type))
}

fn span_fields() -> Fields {
    let number = |name| field(name, DataType::UInt32);
    Fields::from(vec![number("start"), number("end"), field("weight", DataType::Float32), field("channel", DataType::UInt8)])
}

/// The columns, a row for each sample.
pub(super) static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let digest = DataType::FixedSizeBinary(DIGEST_BYTES as i32);
    Arc::new(Schema::new(vec![
        field("ids", DataType::LargeList(item(DataType::UInt32))),
        field("trained", DataType::List(item(DataType::Struct(span_fields())))),
        field("spoken", DataType::FixedSizeList(item(DataType::UInt32), SpokenTokens::SPEAKERS as i32)),
        field("file", DataType::UInt32),
        field("line", DataType::UInt64),
        Field::new("turn", DataType::UInt32, true),
        field("conversation", digest.clone()),
        field("prompt", digest),
    ]))
});

/// `made` as rows.
pub(super) fn batch_of(made: &[Made]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let samples = || made.iter().map(|made| &made.sample);
    let spans = || samples().flat_map(|sample| sample.spans.iter().map(move |span| (sample, span)));
    let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let ids: UInt32Array = samples().flat_map(|sample| sample.ids.iter().copied()).collect::<Vec<u32>>().into();
    let starts: UInt32Array = spans().map(|(_, span)| narrow(span.tokens.start)).collect::<Vec<u32>>().into();
    let ends: UInt32Array = spans().map(|(_, span)| narrow(span.tokens.end)).collect::<Vec<u32>>().into();
    let weights: Float32Array = spans().map(|(sample, span)| sample.weights[span.tokens.start]).collect::<Vec<f32>>().into();
    let channels: UInt8Array = spans().map(|(_, span)| channel_code(span.channel)).collect::<Vec<u8>>().into();
    let fields: Vec<ArrayRef> = vec![Arc::new(starts), Arc::new(ends), Arc::new(weights), Arc::new(channels)];
    let spans = StructArray::try_new(span_fields(), fields, None)?;
    let spoken: UInt32Array = made.iter().flat_map(|made| made.spoken.counts().map(narrow)).collect::<Vec<u32>>().into();
    let lines: UInt64Array = samples().map(|sample| sample.origin.line as u64).collect::<Vec<u64>>().into();
    let turns: UInt32Array = samples().map(|sample| sample.origin.turn.map(narrow)).collect::<Vec<Option<u32>>>().into();
    let files: UInt32Array = made.iter().map(|made| made.file).collect::<Vec<u32>>().into();
    let digests = |of: fn(&Made) -> Digest| FixedSizeBinaryArray::try_from_iter(made.iter().map(of));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(list::<i64>(item(DataType::UInt32), samples().map(|sample| sample.ids.len()), Arc::new(ids))?),
        Arc::new(list::<i32>(item(DataType::Struct(span_fields())), samples().map(|sample| sample.spans.len()), Arc::new(spans))?),
        Arc::new(FixedSizeListArray::try_new(item(DataType::UInt32), SpokenTokens::SPEAKERS as i32, Arc::new(spoken), None)?),
        Arc::new(files),
        Arc::new(lines),
        Arc::new(turns),
        Arc::new(digests(|made| made.conversation)?),
        Arc::new(digests(|made| made.prompt)?),
    ];
    RecordBatch::try_new(Arc::clone(&SCHEMA), columns)
}

fn list<O: OffsetSizeTrait>(
    item: FieldRef,
    lengths: impl Iterator<Item = usize>,
    values: ArrayRef,
) -> Result<GenericListArray<O>, arrow::error::ArrowError> {
    GenericListArray::try_new(item, OffsetBuffer::from_lengths(lengths), values, None)
}

fn channel_code(channel: Option<Channel>) -> u8 {
    CHANNELS.iter().position(|known| *known == channel).map_or(0, |code| code as u8)
}

/// Rows of some samples, each column at hand.
#[derive(Debug)]
struct Block {
    ids: LargeListArray,
    all_ids: UInt32Array,
    trained: ListArray,
    starts: UInt32Array,
    ends: UInt32Array,
    weights: Float32Array,
    channels: UInt8Array,
    spoken: UInt32Array,
    files: UInt32Array,
    lines: UInt64Array,
    turns: UInt32Array,
    conversations: FixedSizeBinaryArray,
    prompts: FixedSizeBinaryArray,
}

impl Block {
    /// `None` when the batch does not have the columns of [`SCHEMA`].
    fn of(batch: &RecordBatch) -> Option<Block> {
        if batch.schema().fields() != SCHEMA.fields() {
            return None;
        }
        let column = |index: usize| batch.column(index);
        let numbers = |index: usize| column(index).as_primitive::<UInt32Type>().clone();
        let (ids, trained) = (column(0).as_list::<i64>().clone(), column(1).as_list::<i32>().clone());
        let spans = trained.values().as_struct().clone();
        Some(Block {
            all_ids: ids.values().as_primitive::<UInt32Type>().clone(),
            ids,
            starts: spans.column(0).as_primitive::<UInt32Type>().clone(),
            ends: spans.column(1).as_primitive::<UInt32Type>().clone(),
            weights: spans.column(2).as_primitive::<Float32Type>().clone(),
            channels: spans.column(3).as_primitive::<UInt8Type>().clone(),
            trained,
            spoken: column(2).as_fixed_size_list().values().as_primitive::<UInt32Type>().clone(),
            files: numbers(3),
            lines: column(4).as_primitive::<UInt64Type>().clone(),
            turns: numbers(5),
            conversations: column(6).as_fixed_size_binary().clone(),
            prompts: column(7).as_fixed_size_binary().clone(),
        })
    }

    fn ids(&self, row: usize) -> &[u32] {
        let offsets = self.ids.value_offsets();
        &self.all_ids.values()[offsets[row] as usize..offsets[row + 1] as usize]
    }

    /// (tokens, weight, channel) of each run of `row` with a weight.
    fn runs(&self, row: usize) -> impl Iterator<Item = (Range<usize>, f32, Option<Channel>)> {
        let offsets = self.trained.value_offsets();
        (offsets[row] as usize..offsets[row + 1] as usize).map(|run| {
            let tokens = self.starts.value(run) as usize..self.ends.value(run) as usize;
            let channel = CHANNELS.get(usize::from(self.channels.value(run))).copied().flatten();
            (tokens, self.weights.value(run), channel)
        })
    }
}

/// A file that samples come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    /// Index of the source that named it.
    pub(super) source: usize,
}

/// All samples of a dataset, by index.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    blocks: Vec<Block>,
    /// Index of each block's first sample, and the number of all samples at the end.
    starts: Vec<usize>,
    files: Vec<SourceFile>,
}

impl Tokens {
    /// The samples of `batches`, in order; `None` when a batch is not of [`SCHEMA`].
    pub(super) fn new(batches: &[RecordBatch], files: Vec<SourceFile>) -> Option<Tokens> {
        let mut starts = vec![0];
        let mut blocks = Vec::with_capacity(batches.len());
        for batch in batches {
            blocks.push(Block::of(batch)?);
            starts.push(starts.last().copied().unwrap_or(0) + batch.num_rows());
        }
        Some(Tokens { blocks, starts, files })
    }

    pub(super) fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    fn at(&self, index: usize) -> (&Block, usize) {
        let block = self.starts.partition_point(|start| *start <= index) - 1;
        (&self.blocks[block], index - self.starts[block])
    }

    pub(super) fn ids(&self, index: usize) -> &[u32] {
        let (block, row) = self.at(index);
        block.ids(row)
    }

    pub(super) fn trained(&self, index: usize) -> TrainedTokens {
        let (block, row) = self.at(index);
        let mut trained = TrainedTokens::default();
        block.runs(row).for_each(|(tokens, _, channel)| *trained.of_mut(channel) += tokens.len());
        trained
    }

    pub(super) fn spoken(&self, index: usize) -> SpokenTokens {
        let (block, row) = self.at(index);
        let counts = &block.spoken.values()[row * SpokenTokens::SPEAKERS..];
        SpokenTokens::of_counts(std::array::from_fn(|speaker| counts[speaker] as usize))
    }

    /// The file and line of a sample: samples of one conversation have the same, and follow one another.
    pub(super) fn row(&self, index: usize) -> (u32, u64) {
        let (block, row) = self.at(index);
        (block.files.value(row), block.lines.value(row))
    }

    pub(super) fn source(&self, index: usize) -> usize {
        self.files.get(self.row(index).0 as usize).map_or(0, |file| file.source)
    }

    pub(super) fn conversation(&self, index: usize) -> &[u8] {
        let (block, row) = self.at(index);
        block.conversations.value(row)
    }

    pub(super) fn prompt(&self, index: usize) -> &[u8] {
        let (block, row) = self.at(index);
        block.prompts.value(row)
    }

    pub(super) fn origin(&self, index: usize) -> SampleOrigin {
        let (block, row) = self.at(index);
        let file = self.files.get(block.files.value(row) as usize).map(|file| file.path.clone()).unwrap_or_default();
        let turn = block.turns.is_valid(row).then(|| block.turns.value(row) as usize);
        SampleOrigin { file, line: usize::try_from(block.lines.value(row)).unwrap_or(usize::MAX), turn }
    }

    pub(super) fn sample(&self, index: usize) -> Sample {
        let (block, row) = self.at(index);
        let ids = block.ids(row).to_vec();
        let mut weights = vec![0.0; ids.len()];
        let mut spans = Vec::new();
        for (tokens, weight, channel) in block.runs(row) {
            if let Some(run) = weights.get_mut(tokens.clone()) {
                run.fill(weight);
            }
            spans.push(TrainedSpan { tokens, channel });
        }
        Sample { ids, weights, origin: self.origin(index), trained: self.trained(index), spans }
    }
}
