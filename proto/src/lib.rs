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
service!(
    /// Merging between validators.
    peer
);

/// Every file of the contract, for gRPC server reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
