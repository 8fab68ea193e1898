//! Where a model runs and in which types, in words of our own: callers need not know libtorch.

use std::{fmt, str::FromStr};

use serde::Deserialize;
use tch::Kind;

/// The device that holds a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A CUDA device, by number.
    Cuda(usize),
}

impl Device {
    /// Whether the device is there, with this libtorch, on this machine.
    pub fn is_available(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Cuda(n) => i64::try_from(n).is_ok_and(|n| n < tch::Cuda::device_count()),
        }
    }

    pub(crate) fn tch(self) -> tch::Device {
        match self {
            Self::Cpu => tch::Device::Cpu,
            Self::Cuda(n) => tch::Device::Cuda(n),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// A text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a device: `cpu` or `cuda:<number>`")]
pub struct ParseDeviceError(String);

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, ParseDeviceError> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            Some(("cuda", n)) => {
                n.parse().map(Self::Cuda).map_err(|_| ParseDeviceError(text.to_owned()))
            }
            None | Some(_) => Err(ParseDeviceError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = ParseDeviceError;

    fn try_from(text: String) -> Result<Self, ParseDeviceError> {
        text.parse()
    }
}

/// The type that parameters are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightType {
    /// 32 bits.
    #[default]
    Float32,
    /// 16 bits with the exponent of float32.
    BFloat16,
    /// 16 bits with more digits than bfloat16 and less reach: what is larger than 65504 is refused.
    Float16,
}

impl WeightType {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Float32 => Kind::Float,
            Self::BFloat16 => Kind::BFloat16,
            Self::Float16 => Kind::Half,
        }
    }
}

/// The type that matrix products are computed in, by casting both operands, as PyTorch's autocast
/// does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Autocast {
    /// bfloat16.
    BFloat16,
    /// float16.
    Float16,
}

impl Autocast {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::BFloat16 => Kind::BFloat16,
            Self::Float16 => Kind::Half,
        }
    }
}

/// How a model is loaded and run. The default is what the golden vectors were made with: the
/// processor, float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoadOptions {
    /// Where.
    pub device: Device,
    /// Type of the parameters.
    pub weights: WeightType,
    /// Type of the products, where it differs.
    pub autocast: Option<Autocast>,
    /// Multiply the attention scale by mscale², as DeepSeek's own code and transformers from 5.16
    /// on do. The deployed validator (5.4.0) does not.
    pub mscale_in_attention: bool,
}

/// Makes libtorch use this many threads of the processor, for the whole process; 0 leaves its
/// default, one per core. They spin: on shared cores more than one costs up to ten times the work.
/// Call it once, first thing.
pub fn use_threads(threads: u32) {
    if threads > 0 {
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    }
}

/// [`use_threads`] of 1: what tests and small models want.
pub fn single_threaded() {
    use_threads(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_survives_its_name_and_nonsense_is_refused() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(7)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for text in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "cpu:0"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
