//! The wire contract: the generated protobuf types, and their conversion to and from [`domain`].
//!
//! Packages are versioned: `chain::v1` is the protobuf package `connito.chain.v1`.

pub mod convert;

pub use convert::InvalidField;

macro_rules! package {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub mod $name {
            /// Version 1.
            pub mod v1 {
                #![expect(clippy::allow_attributes, reason = "generated code")]

                include!(concat!(env!("OUT_DIR"), "/connito.", stringify!($name), ".v1.rs"));
            }
        }
    };
}

package!(
    /// Words that several services share.
    common
);
package!(
    /// The chain service.
    chain
);
package!(
    /// The scheduler.
    scheduler
);
package!(
    /// The evaluator.
    evaluator
);
package!(
    /// The gateway.
    gateway
);
package!(
    /// Merging between validators.
    peer
);

/// Every file of the contract, for gRPC server reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
