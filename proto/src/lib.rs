//! The wire contract: the generated protobuf types, and their conversion to and from [`domain`].
//!
//! Packages are versioned: `chain::v1` is the protobuf package `connito.chain.v1`.

pub mod convert;

pub use convert::InvalidField;

macro_rules! package {
    ($(#[$doc:meta])* $name:ident $($lints:tt)*) => {
        $(#[$doc])*
        pub mod $name {
            /// Version 1.
            pub mod v1 {
                $($lints)*

                include!(concat!(env!("OUT_DIR"), "/connito.", stringify!($name), ".v1.rs"));
            }
        }
    };
}

macro_rules! service {
    ($(#[$doc:meta])* $name:ident) => {
        package!(
            $(#[$doc])*
            $name #![expect(clippy::allow_attributes, reason = "generated code")]
        );
    };
}

package!(
    /// Words that several services share.
    common
);
service!(
    /// The chain service.
    chain
);
service!(
    /// The scheduler.
    scheduler
);
service!(
    /// The evaluator.
    evaluator
);
service!(
    /// The gateway.
    gateway
);

/// Merging between validators.
pub mod peer {
    /// Version 1: what the scheduler asks its own peer service for.
    pub mod v1 {
        #![expect(clippy::allow_attributes, reason = "generated code")]

        include!(concat!(env!("OUT_DIR"), "/connito.peer.v1.rs"));
    }

    /// Version 2: what validators say to each other.
    pub mod v2 {
        #![expect(clippy::allow_attributes, reason = "generated code")]

        include!(concat!(env!("OUT_DIR"), "/connito.peer.v2.rs"));
    }
}

/// Every file of the contract, for gRPC server reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    fn is_declaration(line: &str) -> bool {
        let text = line.trim_start();
        let begins = |words: &[&str]| words.iter().any(|word| text.starts_with(word));
        let field = text.ends_with(';') && text.contains(" = ") && !begins(&["syntax", "option"]);
        begins(&["message ", "enum ", "service ", "rpc "]) || field
    }

    #[test]
    fn every_service_call_message_and_field_has_a_comment() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("connito");
        let mut bare = Vec::new();
        let mut seen = 0;
        for package in fs::read_dir(root).unwrap() {
            let versions = fs::read_dir(package.unwrap().path()).unwrap();
            let files = versions.flat_map(|version| fs::read_dir(version.unwrap().path()).unwrap());
            for file in files {
                let path = file.unwrap().path();
                let text = fs::read_to_string(&path).unwrap();
                let lines: Vec<&str> = text.lines().collect();
                for pair in lines.windows(2) {
                    if is_declaration(pair[1]) {
                        seen += 1;
                        if !pair[0].trim_start().starts_with("//") {
                            bare.push(format!("{}: {}", path.display(), pair[1]));
                        }
                    }
                }
            }
        }
        assert!(seen > 200, "only {seen} declarations were found");
        assert!(bare.is_empty(), "without a comment:\n{}", bare.join("\n"));
    }
}
