include!("link.rs");
