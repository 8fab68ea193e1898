include!("../model/link.rs");
