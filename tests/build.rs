include!("../crates/model/link.rs");
