//! The `[peer.reduction]` section of the configuration.

use serde::Deserialize;

/// How the gradients of a merge's members become one. All validators must have the same, or they
/// are left out as having another reduction.
#[derive(Debug, Clone, confique::Config)]
#[config(validate = Self::validate)]
pub struct Reduction {
    /// `mean`; `trimmed_mean`, without the largest and the smallest values of each parameter;
    /// `coordinate_median`; or `centered_clipping`, the mean of what lies near the median.
    #[config(default = "mean")]
    pub rule: Rule,

    /// Of a trimmed mean: share of the weight that is cut on either side. While members that lie
    /// have no more than that, the result stays among the others' values.
    #[config(default = 0.25, validate((0.0..0.5).contains(per_side), "must be 0 to below 0.5"))]
    pub per_side: f64,

    /// Of centered clipping: a gradient that lies farther from the center than this L2 distance counts
    /// as if it lay that far. Of the whole gradient. Must be set for that rule.
    #[config(validate(radius.is_finite() && *radius > 0.0, "must be above zero"))]
    pub radius: Option<f64>,

    /// Of centered clipping: how often the center is moved.
    #[config(default = 3, validate(*iterations >= 1 && *iterations <= 100, "must be 1 to 100"))]
    pub iterations: u32,

    /// A gradient whose L2 norm is larger is scaled down to this before anything else; left out, there
    /// is no bound.
    #[config(validate(max_norm.is_finite() && *max_norm > 0.0, "must be above zero"))]
    pub max_norm: Option<f64>,

    /// Whether gradients count by their validators' stakes. One without stake has no say then.
    #[config(default = false)]
    pub weigh_by_stake: bool,
}

/// How the members' values of one parameter become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Their mean.
    Mean,
    /// Their mean without the outermost.
    TrimmedMean,
    /// Their median.
    CoordinateMedian,
    /// Their mean, with whole gradients drawn near to the median.
    CenteredClipping,
}

impl Reduction {
    fn validate(&self) -> Result<(), &'static str> {
        match self.rule {
            Rule::CenteredClipping if self.radius.is_none() => {
                Err("`radius` must be set for `centered_clipping`")
            }
            Rule::Mean | Rule::TrimmedMean | Rule::CoordinateMedian | Rule::CenteredClipping => {
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::config::Config;

    fn load(text: &str) -> anyhow::Result<Reduction> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "[peer.reduction]\n{text}").unwrap();
        let config: Config = kit::config::load_with(Some(file.path()), "peer", |_| None)?;
        Ok(config.reduction)
    }

    #[test]
    fn the_mean_is_what_nobody_has_to_ask_for() {
        let reduction = load("").unwrap();
        assert_eq!((reduction.rule, reduction.per_side), (Rule::Mean, 0.25));
        assert!(reduction.max_norm.is_none() && !reduction.weigh_by_stake);
    }

    #[test]
    fn rules_are_named_in_snake_case() {
        for (text, rule) in [
            ("rule = \"trimmed_mean\"", Rule::TrimmedMean),
            ("rule = \"coordinate_median\"", Rule::CoordinateMedian),
            ("rule = \"centered_clipping\"\nradius = 0.5", Rule::CenteredClipping),
        ] {
            assert_eq!(load(text).unwrap().rule, rule);
        }
    }

    #[test]
    fn what_no_reduction_can_work_with_is_refused_by_its_key() {
        for (text, key) in [
            ("per_side = 0.5", "per_side"),
            ("per_side = -0.1", "per_side"),
            ("max_norm = 0.0", "max_norm"),
            ("max_norm = inf", "max_norm"),
            ("radius = nan", "radius"),
            ("iterations = 0", "iterations"),
            ("rule = \"centered_clipping\"", "radius"),
            ("rule = \"krum\"", "rule"),
        ] {
            let error = format!("{:#}", load(text).unwrap_err());
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
