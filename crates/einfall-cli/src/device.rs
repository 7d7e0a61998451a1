//! `--device`: where a command runs, or what it plans for. Read here and nowhere else; [`host`](crate::host) opens it.
//!
//! ```
//! use einfall_cli::device::DeviceArg;
//!
//! assert_eq!("cuda:1".parse(), Ok(DeviceArg::Cuda(1)));
//! assert_eq!(DeviceArg::Cuda(0).to_string(), "cuda:0");
//! ```

use std::fmt;
use std::str::FromStr;

/// A device by its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceArg {
    /// `cpu`: the processor with its threads.
    #[default]
    Cpu,
    /// `cuda` or `cuda:1`: an NVIDIA GPU by its number.
    Cuda(usize),
    /// `cuda:h100`: a description of one, to plan for where there is none.
    H100,
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.chars().all(|c| c.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let device = match text.split_once(':') {
            None if text == "cpu" => Some(Self::Cpu),
            None if text == "cuda" => Some(Self::Cuda(0)),
            Some(("cuda", "h100")) => Some(Self::H100),
            Some(("cuda", gpu)) => number(gpu).map(Self::Cuda),
            _ => None,
        };
        device.ok_or_else(|| format!("there is no device `{text}`\nhint: one of cpu, cuda, cuda:1, cuda:h100"))
    }
}

impl fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::H100 => f.write_str("cuda:h100"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_a_closed_list() {
        for (text, device) in
            [("cpu", DeviceArg::Cpu), ("cuda:0", DeviceArg::Cuda(0)), ("cuda:12", DeviceArg::Cuda(12))]
        {
            assert_eq!((text.parse(), device.to_string().as_str()), (Ok(device), text));
        }
        assert_eq!(("cuda".parse(), "cuda:h100".parse()), (Ok(DeviceArg::Cuda(0)), Ok(DeviceArg::H100)));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:a100", "cpu:0", "cuda:99999999999999999999"] {
            assert!(wrong.parse::<DeviceArg>().unwrap_err().contains("hint: one of cpu, "), "{wrong}");
        }
    }
}
