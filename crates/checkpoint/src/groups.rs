//! Which routed experts belong to which expert group, and how experts' tensors are called.

use std::collections::{BTreeMap, BTreeSet};

use domain::ExpertGroup;
use serde::{Deserialize, Serialize};

/// Group to layer to its experts as `(local id, global id)`: the content of the groups' `expert_assignment.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExpertGroups(pub BTreeMap<ExpertGroup, BTreeMap<u32, Vec<(u32, u32)>>>);

impl ExpertGroups {
    /// The groups that hold this expert of this layer.
    pub(crate) fn holding(&self, layer: u32, expert: u32) -> BTreeSet<ExpertGroup> {
        let has = |layers: &BTreeMap<u32, Vec<(u32, u32)>>| {
            layers.get(&layer).is_some_and(|experts| experts.iter().any(|(_, e)| *e == expert))
        };
        self.0.iter().filter(|(_, layers)| has(layers)).map(|(group, _)| *group).collect()
    }
}

/// The three matrices of an expert in the hub's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HubPart {
    Gate,
    Up,
    Down,
}

/// The two matrices of an expert in the subnet's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SubnetPart {
    /// `[2I, H]`: gate rows first, then up rows.
    GateUp,
    /// `[H, I]`.
    Down,
}

impl SubnetPart {
    fn name(self) -> &'static str {
        match self {
            Self::GateUp => "gate_up_proj",
            Self::Down => "down_proj",
        }
    }
}

/// What a tensor's name says (protocol, section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    /// `…mlp.experts.K.gate_proj.weight`, `up_proj`, `down_proj`.
    Hub { stem: &'a str, expert: u32, part: HubPart },
    /// `…mlp.experts.gate_up_proj` `[E, 2I, H]`, `down_proj` `[E, H, I]`.
    Stacked { stem: &'a str, part: SubnetPart },
    /// `…mlp.experts.K.gate_up_proj`, `down_proj`.
    Subnet { layer: u32, expert: u32 },
    /// Every other tensor: a parameter that all groups share.
    Shared,
}

impl<'a> Name<'a> {
    pub(crate) fn parse(name: &'a str) -> Self {
        Self::of_expert(name).unwrap_or(Name::Shared)
    }

    fn of_expert(name: &'a str) -> Option<Self> {
        const MARK: &str = ".mlp.experts.";
        let (head, tail) = name.split_once(MARK)?;
        let stem = &name[..name.len() - tail.len()];
        let part = |text| match text {
            "gate_up_proj" => Some(SubnetPart::GateUp),
            "down_proj" => Some(SubnetPart::Down),
            _ => None,
        };
        if let Some(part) = part(tail) {
            return Some(Name::Stacked { stem, part });
        }
        let (expert, tail) = tail.split_once('.')?;
        let expert = canonical(expert)?;
        if part(tail).is_some() {
            let layer = canonical(head.rsplit('.').next()?)?;
            return Some(Name::Subnet { layer, expert });
        }
        let part = match tail {
            "gate_proj.weight" => HubPart::Gate,
            "up_proj.weight" => HubPart::Up,
            "down_proj.weight" => HubPart::Down,
            _ => return None,
        };
        Some(Name::Hub { stem, expert, part })
    }

    /// The name in the subnet's form.
    pub(crate) fn subnet(stem: &str, expert: u32, part: SubnetPart) -> String {
        format!("{stem}{expert}.{}", part.name())
    }
}

/// A number without sign or leading zeros, so that a tensor has one name only.
fn canonical(text: &str) -> Option<u32> {
    text.parse().ok().filter(|n: &u32| n.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_of_an_experts_name_are_told_apart() {
        let stem = "model.layers.3.mlp.experts.";
        let hub = Name::Hub { stem, expert: 7, part: HubPart::Up };
        assert_eq!(Name::parse("model.layers.3.mlp.experts.7.up_proj.weight"), hub);
        let stacked = Name::Stacked { stem, part: SubnetPart::GateUp };
        assert_eq!(Name::parse("model.layers.3.mlp.experts.gate_up_proj"), stacked);
        let subnet = Name::Subnet { layer: 3, expert: 7 };
        assert_eq!(Name::parse(&Name::subnet(stem, 7, SubnetPart::Down)), subnet);
        for shared in [
            "lm_head.weight",
            "model.layers.3.mlp.shared_experts.up_proj.weight",
            "model.layers.3.mlp.gate.weight",
            "model.layers.3.mlp.experts.07.down_proj",
        ] {
            assert_eq!(Name::parse(shared), Name::Shared);
        }
    }

    #[test]
    fn an_expert_may_be_in_several_groups_or_in_none() {
        let json = r#"{"0":{"1":[[0,2],[1,3]]},"1":{"1":[[0,3]],"2":[]}}"#;
        let groups: ExpertGroups = serde_json::from_str(json).unwrap();
        assert_eq!(groups.holding(1, 3), [ExpertGroup(0), ExpertGroup(1)].into());
        assert_eq!(groups.holding(1, 2), [ExpertGroup(0)].into());
        assert_eq!(groups.holding(2, 3), [].into());
        assert_eq!(serde_json::to_string(&groups).unwrap(), json);
    }
}
