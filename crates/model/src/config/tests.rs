use serde_json::json;

use super::*;

fn new_form() -> Value {
    json!({
        "model_type": "deepseek_v2", "vocab_size": 320, "hidden_size": 64,
        "intermediate_size": 160, "moe_intermediate_size": 32, "num_hidden_layers": 4,
        "first_k_dense_replace": 1, "num_attention_heads": 4, "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8, "v_head_dim": 16, "kv_lora_rank": 16, "q_lora_rank": null,
        "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000, "factor": 40, "beta_fast": 32,
            "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096
        }
    })
}

#[test]
fn both_forms_of_the_rotary_settings_mean_the_same() {
    let new = new_form();
    let mut old = new.clone();
    let object = old.as_object_mut().unwrap();
    let mut rope = object.remove("rope_parameters").unwrap();
    let rope_object = rope.as_object_mut().unwrap();
    rope_object.remove("rope_type");
    rope_object.remove("rope_theta");
    rope_object.insert("type".into(), "yarn".into());
    object.insert("rope_scaling".into(), rope);
    object.insert("rope_theta".into(), 10_000.into());
    assert_eq!(ModelConfig::from_json(&new).unwrap(), ModelConfig::from_json(&old).unwrap());
}

#[test]
fn what_the_port_does_not_compute_is_refused_by_name() {
    for (field, value) in [
        ("q_lora_rank", json!(16)),
        ("topk_method", json!("noaux_tc")),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("model_type", json!("llama")),
        ("hidden_size", json!(0)),
        ("num_experts_per_tok", json!(9)),
        ("qk_rope_head_dim", json!(7)),
        ("pad_token_id", json!(320)),
    ] {
        let mut json = new_form();
        json[field] = value;
        let error = ModelConfig::from_json(&json).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn routing_groups_must_divide_the_experts_and_hold_enough_of_them() {
    let of = |groups: Value, chosen: Value| {
        let mut json = new_form();
        json["topk_method"] = "group_limited_greedy".into();
        (json["n_group"], json["topk_group"]) = (groups, chosen);
        ModelConfig::from_json(&json).map(|config| config.method)
    };
    let expected = TopK::GroupLimited { groups: 4, chosen: 2 };
    assert_eq!(of(json!(4), json!(2)).unwrap(), expected);
    for (groups, chosen, field) in [
        (json!(3), json!(1), "n_group"),
        (json!(0), json!(1), "n_group"),
        (json!(-4), json!(1), "n_group"),
        (Value::Null, json!(1), "n_group"),
        (json!(4), json!(5), "topk_group"),
        (json!(4), json!(0), "topk_group"),
        // One group of one expert, and a token needs two.
        (json!(8), json!(1), "topk_group"),
    ] {
        let error = of(groups, chosen).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn the_attention_factor_of_deepseeks_settings_is_one() {
    let yarn = ModelConfig::from_json(&new_form()).unwrap().rope.yarn.unwrap();
    assert_eq!(yarn.attention_factor(), 1.0);
    // What transformers 5.23.0 reports as the attention's scale for heads of 24.
    let scale = yarn.attention_mscale().powi(2) / 24f64.sqrt();
    assert!((scale - 0.324_481_082_193_611_6).abs() < 1e-12);
}
