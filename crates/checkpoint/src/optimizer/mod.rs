//! The outer optimizer: one step along the reduced pseudo-gradient makes the next global model.
//!
//! Parameters are stepped in float32 whatever the model is published in, and what float32 is more than published is kept,
//! with the momentum, in a file of the model's version.

mod outer;
mod state;
mod step;

pub use self::{
    outer::{OuterSgd, UnequalLengths},
    state::{OptimizerState, StateError},
    step::{OuterStep, StepError},
};
