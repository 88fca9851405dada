//! The machine that a run is planned for: this one, or one with a device of a given size.

use serde::Serialize;
use tch::Device;

use crate::torch::device;

/// What a machine offers to a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// The driver's name of the device, where there is one.
    pub device_name: Option<String>,
    /// Its peak, where it is known.
    pub peak: Option<Peak>,
    /// Free bytes of the device, where there is one.
    pub device_available_bytes: Option<u64>,
    /// Free bytes of the host, where they are known.
    pub host_available_bytes: Option<u64>,
    /// This is the machine that the program runs on, so that its disk counts.
    pub is_here: bool,
}

impl Machine {
    /// The one that the program runs on.
    #[must_use]
    pub fn here() -> Self {
        let device = device::best();
        let device_name = device::name(device);
        Self {
            device: match device {
                Device::Cuda(ordinal) => format!("cuda:{ordinal}"),
                _ => "cpu".to_owned(),
            },
            peak: device_name.as_deref().and_then(peak),
            device_name,
            device_available_bytes: device::memory(device).map(|memory| memory.free_bytes),
            host_available_bytes: device::available_memory_bytes(),
            is_here: true,
        }
    }

    /// Another, with a CUDA device of `device_bytes`, and with as much host memory and disk as it takes.
    #[must_use]
    pub fn with_device_memory(device_bytes: u64) -> Self {
        Self {
            device: "cuda:0".to_owned(),
            device_name: None,
            peak: None,
            device_available_bytes: Some(device_bytes),
            host_available_bytes: None,
            is_here: false,
        }
    }

    /// True for a machine that computes on its CPU.
    #[must_use]
    pub fn is_cpu(&self) -> bool {
        self.device == "cpu"
    }
}

/// What a device can do at best.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Peak {
    /// Short name of the device.
    pub name: &'static str,
    /// Dense bf16 operations with sums in f32, in a second.
    pub flops_per_second: f64,
}

/// (words that the driver's name has, words that it has not, peak). The first line that fits counts.
///
/// Source: NVIDIA's data sheets, half of the figures that they give "with sparsity": H100 Tensor Core GPU (SXM 1,979 TFLOP/s, PCIe 1,513,
/// NVL 1,671), H200 Tensor Core GPU (SXM 1,979, NVL 1,671), A100 Tensor Core GPU (312 dense), DGX B200 (4,500 for each GPU), L4 (242), L40S (733);
/// the GeForce ones dense, with f32 accumulation: Ada architecture whitepaper, appendix A (RTX 4090: 165.2), and Blackwell architecture
/// whitepaper, appendix A (RTX 5090: 209.5).
const PEAKS: [(&[&str], &[&str], Peak); 11] = [
    (&["H100", "PCIe"], &[], Peak { name: "H100 PCIe", flops_per_second: 756e12 }),
    (&["H100", "NVL"], &[], Peak { name: "H100 NVL", flops_per_second: 835e12 }),
    (&["H100"], &[], Peak { name: "H100", flops_per_second: 989e12 }),
    (&["H200", "NVL"], &[], Peak { name: "H200 NVL", flops_per_second: 835e12 }),
    (&["H200"], &[], Peak { name: "H200", flops_per_second: 989e12 }),
    (&["A100"], &[], Peak { name: "A100", flops_per_second: 312e12 }),
    (&["B200"], &[], Peak { name: "B200", flops_per_second: 2250e12 }),
    (&["L4"], &[], Peak { name: "L4", flops_per_second: 121e12 }),
    (&["L40S"], &[], Peak { name: "L40S", flops_per_second: 362e12 }),
    (&["RTX", "4090"], &["Laptop", "D"], Peak { name: "RTX 4090", flops_per_second: 165e12 }),
    (&["RTX", "5090"], &["Laptop", "D"], Peak { name: "RTX 5090", flops_per_second: 209e12 }),
];

/// The peak of the device that the driver calls `name`; `None` for one that is not known, and for a part of one (MIG).
#[must_use]
pub fn peak(name: &str) -> Option<Peak> {
    let words: Vec<&str> = name.split([' ', '-']).collect();
    if words.contains(&"MIG") {
        return None;
    }
    let fits = |(with, without): (&[&str], &[&str])| {
        with.iter().all(|word| words.contains(word)) && !without.iter().any(|word| words.contains(word))
    };
    PEAKS.iter().find(|(with, without, _)| fits((with, without))).map(|(_, _, peak)| *peak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_apart_by_the_words_of_their_names() {
        let found = |name| peak(name).map(|peak| peak.name);
        assert_eq!(found("NVIDIA H100 80GB HBM3"), Some("H100"));
        assert_eq!(found("NVIDIA H100 PCIe"), Some("H100 PCIe"));
        assert_eq!(found("NVIDIA H100 NVL"), Some("H100 NVL"));
        assert_eq!(found("NVIDIA H200"), Some("H200"));
        assert_eq!(found("NVIDIA A100-SXM4-80GB"), Some("A100"));
        assert_eq!(found("NVIDIA A100 80GB PCIe"), Some("A100"));
        assert_eq!(found("NVIDIA L4"), Some("L4"));
        assert_eq!(found("NVIDIA L40S"), Some("L40S"));
        assert_eq!(found("NVIDIA GeForce RTX 4090"), Some("RTX 4090"));
        for name in [
            "NVIDIA L40",
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA GeForce RTX 4090 D",
            "Tesla T4",
            "",
            "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        ] {
            assert_eq!(found(name), None, "{name}");
        }
    }
}
