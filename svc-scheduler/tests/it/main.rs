//! The scheduler over real gRPC, between a fake chain service and a fake merger.
#![cfg(test)]

mod chain;
mod held;
mod jobs;
mod leading;
mod merge;
mod outages;
mod process;
mod record;
mod refused;
mod resync;
mod round;
mod rules;
mod subnet;
mod world;
