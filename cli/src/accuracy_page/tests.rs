//! Whole pages of reports of every kind: what they say, and that they are sound.

use std::path::{Path, PathBuf};

use ft_formats::checkpoint::{Config, ExpertStorage, Projection, write_random_model};
use ft_formats::dtype::Dtype;
use ft_formats::report::{AdapterReport, ScaleSource, TensorReport};
use ft_formats::requantize::{ExpertTarget, Requantization};
use ft_quant::Codec;
use ft_quant::mxfp4::ScaleRule;

use super::*;

/// Elements of a matrix of every expert of gpt-oss-20b: gate_up and down.
const ELEMENTS: [u64; 2] = [530_841_600, 265_420_800];

/// A number in 0..1 that differs from tensor to tensor, always the same.
fn noise(layer: usize, projection: Projection, salt: u32) -> f64 {
    let seed = layer as f64 * 12.9898 + f64::from(projection == Projection::Down) * 78.233 + f64::from(salt) * 37.719;
    (seed.sin() * 43758.5453).rem_euclid(1.0)
}

/// A share of a count.
fn part(whole: u64, share: f64) -> u64 {
    (whole as f64 * share) as u64
}

/// Sums that come to `decibels`.
fn sums(elements: u64, decibels: f64) -> Accuracy {
    let signal = elements as f64 * 4e-4;
    let noise = signal / 10f64.powf(decibels / 10.0);
    Accuracy {
        elements,
        signal,
        noise,
        packed_signal: signal - noise,
        product: signal - noise,
        largest_error: 0.125,
        largest_value: 0.9375,
        ..Accuracy::default()
    }
}

fn tensors(layers: usize, accuracy: impl Fn(usize, Projection) -> Accuracy) -> Vec<TensorReport> {
    let of_layer = |layer| {
        Projection::ALL
            .map(|projection| TensorReport { weight: AdapterTarget::Experts { layer, projection }, accuracy: accuracy(layer, projection) })
    };
    (0..layers).flat_map(of_layer).collect()
}

fn elements(projection: Projection) -> u64 {
    ELEMENTS[usize::from(projection == Projection::Down)]
}

fn report(from: ExpertStorage, to: ExpertTarget, scales: ScaleSource, tensors: Vec<TensorReport>) -> ConversionReport {
    let size = |storage| if storage == ExpertStorage::Mxfp4 { 13_761_264_768 } else { 41_829_514_368 };
    ConversionReport {
        source: PathBuf::from("models/gpt-oss-20b-support-bf16"),
        target: PathBuf::from("releases/gpt-oss-20b-support"),
        adapter: None,
        from,
        to: to.storage(),
        packing: to.packing(),
        scales,
        tensors,
        source_bytes: size(from),
        target_bytes: size(to.storage()),
        seconds: 187.0,
    }
}

/// Gaussian weights, packed for the first time.
fn packed(layers: usize) -> ConversionReport {
    let accuracy = |layer, projection| {
        let elements = elements(projection);
        let blocks = elements / 32;
        let mut sums = sums(elements, 18.9 + 0.12 * noise(layer, projection, 0) - f64::from(layer == 0) * 0.8);
        sums.clipped = part(elements, 0.004 + 0.001 * noise(layer, projection, 1));
        sums.flushed = part(elements, 0.071 + 0.006 * noise(layer, projection, 2));
        sums.largest_codes[7] = part(blocks, 0.478 + 0.006 * noise(layer, projection, 3));
        sums.largest_codes[0] = 3 * u64::from(layer == 5);
        sums.largest_codes[6] = blocks - sums.largest_codes[7] - sums.largest_codes[0];
        sums
    };
    let to = ExpertTarget::Mxfp4(ScaleRule::Even.into());
    report(ExpertStorage::Float(Dtype::Bf16), to, ScaleSource::Values, tensors(layers, accuracy))
}

/// Weights that came from MXFP4 and changed by 1% in all layers but the first third.
fn updated(layers: usize) -> ConversionReport {
    let accuracy = |layer, projection| {
        let elements = elements(projection);
        let blocks = elements / 32;
        let is_trained = layer >= layers / 3;
        let mut sums = sums(elements, 39.9 + 0.4 * noise(layer, projection, 0));
        sums.largest_codes[5] = part(blocks, 0.21);
        sums.largest_codes[7] = part(blocks, 0.26);
        sums.largest_codes[4] = part(blocks, 0.0004);
        sums.largest_codes[6] = blocks - sums.largest_codes[4..].iter().sum::<u64>();
        sums.compared_blocks = blocks;
        if is_trained {
            sums.changed_codes = part(elements, 0.021 + 0.012 * noise(layer, projection, 1));
            sums.changed_scales = part(blocks, 0.000_02 * noise(layer, projection, 2));
            sums.flushed = part(elements, 0.000_3 + 0.000_1 * noise(layer, projection, 3));
        } else {
            (sums.noise, sums.largest_error) = (0.0, 0.0);
            (sums.packed_signal, sums.product) = (sums.signal, sums.signal);
        }
        sums
    };
    let to = ExpertTarget::Mxfp4(ScaleRule::Hint.into());
    let scales = ScaleSource::Model(PathBuf::from("models/gpt-oss-20b"));
    report(ExpertStorage::Float(Dtype::Bf16), to, scales, tensors(layers, accuracy))
}

/// MXFP4 that was unpacked.
/// The same update by an adapter that changes the head as well, or nothing but attention.
fn merged(layers: usize, has_experts: bool) -> ConversionReport {
    let mut report = updated(layers);
    (report.from, report.source_bytes) = (ExpertStorage::Mxfp4, report.target_bytes);
    report.scales = ScaleSource::Model(report.source.clone());
    report.adapter = Some(AdapterReport {
        path: PathBuf::from("runs/support/adapter"),
        base_model: Some("openai/gpt-oss-20b".to_owned()),
        changed_tensors: 33,
        kept_tensors: 330,
        changed_experts: 512,
        kept_experts: 256,
    });
    let accuracy = sums(579_133_440, 57.0);
    if has_experts {
        report.tensors.push(TensorReport { weight: AdapterTarget::LmHead, accuracy });
    } else {
        report.tensors = vec![TensorReport { weight: AdapterTarget::Router { layer: 3 }, accuracy }];
    }
    report
}

fn unpacked(layers: usize) -> ConversionReport {
    let accuracy = |_, projection| {
        let mut sums = sums(elements(projection), 40.0);
        (sums.noise, sums.largest_error) = (0.0, 0.0);
        (sums.packed_signal, sums.product) = (sums.signal, sums.signal);
        sums.largest_codes[6..].fill(elements(projection) / 64);
        sums
    };
    report(ExpertStorage::Mxfp4, ExpertTarget::Bf16, ScaleSource::Values, tensors(layers, accuracy))
}

/// f32 that was rounded, which has no blocks.
fn rounded(layers: usize) -> ConversionReport {
    let accuracy = |layer, projection| Accuracy {
        flushed: u64::from(layer == 1),
        largest_error: 0.001_953_125,
        ..sums(elements(projection), 55.3 + noise(layer, projection, 0))
    };
    report(ExpertStorage::Float(Dtype::F32), ExpertTarget::Bf16, ScaleSource::Values, tensors(layers, accuracy))
}

/// Numbers at the ends of what there is.
fn extreme() -> ConversionReport {
    let kinds = [
        Accuracy { elements: u64::MAX / 4, signal: 1e300, noise: 1e-300, largest_error: 3.39e38, largest_value: 3.39e38, ..sums(1, 1.0) },
        Accuracy { signal: 1e-300, noise: 1e300, flushed: 1, ..sums(19_000_000_000, 1.0) },
        Accuracy { signal: 0.0, noise: 1e-40, packed_signal: 0.0, product: 0.0, ..sums(32, 1.0) },
        Accuracy { clipped: 7, flushed: 32, signal: 0.0, noise: 0.0, largest_value: 9e-41, ..sums(32, 1.0) },
        Accuracy {
            largest_codes: [0, 1, 0, 0, 0, 0, 0, u64::MAX / 64],
            compared_blocks: u64::MAX / 64,
            changed_scales: 1,
            ..sums(64, -3.0)
        },
        Accuracy { largest_error: f64::NAN, largest_value: f64::INFINITY, ..Accuracy::default() },
    ];
    let accuracy = |layer: usize, projection| kinds[layer * 2 + usize::from(projection == Projection::Down)];
    let mut report =
        report(ExpertStorage::Float(Dtype::F16), ExpertTarget::Mxfp4(ScaleRule::Hint.into()), ScaleSource::Values, tensors(3, accuracy));
    (report.seconds, report.source_bytes, report.target_bytes) = (f64::NAN, 0, u64::MAX);
    report
}

/// Every kind of report, by name.
fn reports() -> Vec<(&'static str, ConversionReport)> {
    vec![
        ("packed-24", packed(24)),
        ("packed-36", packed(36)),
        ("packed-1", packed(1)),
        ("updated-24", updated(24)),
        ("updated-2", updated(2)),
        ("unpacked-24", unpacked(24)),
        ("rounded-24", rounded(24)),
        ("merged-24", merged(24, true)),
        ("merged-router", merged(24, false)),
        ("extreme", extreme()),
        ("empty", packed(0)),
        ("deep", packed(1200)),
    ]
}

/// The names of the elements, in the order in which they begin; panics where they do not nest, or anything is not quoted or escaped.
///
/// Pages are written so that they are well-formed XML but for their first line.
fn checked_elements(page: &str) -> Vec<String> {
    let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap();
    let (mut open, mut elements): (Vec<&str>, Vec<String>) = (Vec::new(), Vec::new());
    while let Some(start) = rest.find('<') {
        check_text(&rest[..start]);
        let (tag, after) = rest[start + 1..].split_once('>').unwrap();
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
            continue;
        }
        let name = tag.split([' ', '/']).next().unwrap();
        assert!(!name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric()), "{tag}");
        check_attributes(tag[name.len()..].trim_end_matches('/'));
        elements.push(name.to_owned());
        if name == "style" || name == "script" {
            rest = &rest[rest.find(&format!("</{name}>")).unwrap()..];
        }
        if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert_eq!((open, rest.trim()), (vec![], ""));
    elements
}

fn check_attributes(text: &str) {
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").unwrap();
        assert!(name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-'), "{text}");
        let (value, after) = after.split_once('"').unwrap();
        check_text(value);
        assert!(after.is_empty() || after.starts_with(' '), "{text}");
        rest = after.trim_start();
    }
}

/// Every ampersand begins an entity.
fn check_text(text: &str) {
    for (start, _) in text.match_indices('&') {
        let (name, _) = text[start + 1..].split_once(';').unwrap();
        assert!(!name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '#'), "{name}");
    }
}

#[test]
fn every_page_is_well_formed_and_names_its_figures() {
    for (name, report) in reports() {
        let elements = checked_elements(&render(&report));
        let count = |element: &str| elements.iter().filter(|other| *other == element).count();
        assert_eq!([count("html"), count("main"), count("h1")], [1; 3], "{name}");
        assert_eq!((count("figure") > 0, count("figcaption")), (name != "merged-router", count("figure")), "{name}");
    }
}

#[test]
fn no_number_is_none() {
    for (name, report) in reports() {
        let page = render(&report);
        assert!(!page.contains("NaN") && !page.to_lowercase().contains("inf"), "{name}");
    }
}

#[test]
fn nothing_is_fetched() {
    for (name, report) in reports() {
        // Comments of the script begin like an address.
        let page = render(&report).replace("// ", "");
        for word in ["http:", "https:", "//", "src=", "href", "url(", "fetch(", "import", "font-face"] {
            assert!(!page.contains(word), "{name}: {word}");
        }
        assert!(page.contains("default-src 'none'"), "{name}");
    }
}

#[test]
fn names_cannot_mark_up() {
    let mut report = updated(2);
    let name = "a<script>alert(\"x\")</script>&'b";
    report.source = PathBuf::from(name);
    report.target = PathBuf::from("out").join(name.replace('/', "|"));
    report.scales = ScaleSource::Model(PathBuf::from(name));
    let page = render(&report);
    let elements = checked_elements(&page);
    assert_eq!(elements.iter().filter(|element| *element == "script").count(), 1);
    assert_eq!(page.matches("a&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#39;b").count(), 3);
}

#[test]
fn a_packed_model_is_summed_up() {
    let page = render(&packed(24));
    for text in [
        "<title>Accuracy of gpt-oss-20b-support</title>",
        "<code>models/gpt-oss-20b-support-bf16</code><br/>experts in bf16, 41.8 GB",
        "<code>releases/gpt-oss-20b-support</code><br/>experts in MXFP4, 13.8 GB, 32.9% of the source",
        "48 tensors with 19.1 B weights, from bf16 to MXFP4",
        "rule <code>even</code>",
        "chosen from the values alone",
        "<dd>3 min 07 s</dd>",
        "&nbsp;dB above the error; in the worst tensor, layer&nbsp;0 <code>",
        "<strong>0.125</strong> <span>of weights up to 0.9375</span>",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("Changed codes") && !page.contains(">exact</text>"));
    assert_eq!(page.matches("class=\"worst\"").count(), 2);
    // The worst stands in the first row.
    assert!(page.contains("<tbody>\n<tr class=\"worst\">"));
}

#[test]
fn an_update_is_compared_with_what_was_there() {
    let page = render(&updated(24));
    for text in [
        "16 of 48 tensors are exact.",
        "starting from the scales of <code>models/gpt-oss-20b</code>",
        "597,196,800 blocks with those of <code>models/gpt-oss-20b</code>",
        "<h3>Changed codes</h3>",
        "<h3>Changed scales</h3>",
        "No element was clipped.",
        ">exact</text>",
    ] {
        assert!(page.contains(text), "{text}");
    }
    // Gate_up and down of eight layers.
    assert_eq!(page.matches("class=\"exact\"").count(), 16);
}

#[test]
fn a_merge_tells_of_its_adapter_and_of_weights_beside_the_experts() {
    let page = render(&merged(24, true));
    for text in [
        "Accuracy of a merge",
        "<code>runs/support/adapter</code>, made for <code>openai/gpt-oss-20b</code>",
        "the adapter changes 33 of 363 tensors and 512 of 768 experts",
        "49 tensors with",
        "597,196,800 blocks with those of the source",
        "Experts by layer",
        "\">lm_head</th>",
    ] {
        assert!(page.contains(text), "{text}");
    }
    // The head has no blocks: it stands in one table only, and nothing of it was compared.
    assert_eq!(page.matches(">lm_head</th>").count(), 1);
    assert!(page.contains("<td data-order=\"0e0\">-</td>"));
    let page = render(&merged(24, false));
    assert!(page.contains(">layer 3 router <span") && !page.contains("<figure"), "{page}");
}

#[test]
fn what_is_exact_is_said_to_be() {
    let page = render(&unpacked(24));
    for text in [
        "Exact: every weight of the result has the value that it has in the source.",
        "Every tensor is exact.",
        "No element was flushed to zero.",
        "experts in bf16, 41.8 GB, 304% of the source",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("class=\"worst\"") && !page.contains("Changed codes"));
}

#[test]
fn what_has_no_blocks_speaks_of_none() {
    let page = render(&rounded(24));
    assert!(!page.contains("Largest code of the blocks") && !page.contains("<h3>Clipped</h3>") && !page.contains(">clipped</th>"));
    // Two elements of 19 billion.
    assert!(page.contains("<strong>1e-8%</strong> <span>2 elements</span>"));
}

#[test]
fn one_layer_is_a_point_without_a_line() {
    let page = render(&packed(1));
    assert!(page.contains("cx=\"50.000%\"") && !page.contains("<line x1=\"50"));
}

/// A small model there and back, with the numbers that such a conversion has.
fn converted(folder: &Path) -> [ConversionReport; 2] {
    let mut config = Config::nano();
    config.has_mxfp4_experts = false;
    let plain = folder.join("plain");
    write_random_model(&plain, &config, ExpertStorage::Float(Dtype::Bf16), 7, &mut |_, _| ()).unwrap();
    let convert = |source: &Path, name: &str, to| {
        let target = folder.join(name);
        let request = Requantization { source, target: &target, to, hints_from: None, max_shard_bytes: u64::MAX };
        let converted = request.run(&Codec::Cpu, &mut |_, _| ()).unwrap();
        let report = converted.report().clone();
        converted.publish().unwrap();
        report
    };
    let packed = convert(&plain, "packed", ExpertTarget::Mxfp4(ScaleRule::Even.into()));
    let again = convert(&packed.target, "again", ExpertTarget::Mxfp4(ScaleRule::Hint.into()));
    [packed, again]
}

#[test]
fn a_conversion_fills_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let pages = converted(folder.path()).map(|report| render(&report));
    pages.iter().for_each(|page| assert!(!checked_elements(page).is_empty()));
    let [packed, again] = pages;
    assert!(packed.contains("&nbsp;dB above the error"));
    for text in ["Exact: every weight", "with those of the source", "No code changed.", "No scale changed."] {
        assert!(again.contains(text), "{text}");
    }
}
