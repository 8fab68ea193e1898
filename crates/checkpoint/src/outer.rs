//! The outer optimizer: one step on the averaged pseudo-gradient makes the next global model.

use crate::aggregate::AggregateError;

/// Stochastic gradient descent with momentum in float32, as torch's `SGD` does it with `dampening` 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OuterSgd {
    pub lr: f32,
    pub momentum: f32,
    pub nesterov: bool,
}

impl Default for OuterSgd {
    /// The deployed validator's: 0.7, 0.9, Nesterov.
    fn default() -> Self {
        Self { lr: 0.7, momentum: 0.9, nesterov: true }
    }
}

impl OuterSgd {
    /// One step in place over a tensor or a part of one. `velocity` is the momentum buffer, zeros before the first
    /// step. Element by element in a fixed order of operations, so that all validators get the same bits.
    pub fn step(
        &self,
        param: &mut [f32],
        velocity: &mut [f32],
        gradient: &[f32],
    ) -> Result<(), AggregateError> {
        if param.len() != gradient.len() || velocity.len() != gradient.len() {
            return Err(AggregateError::Length {
                param: param.len(),
                velocity: velocity.len(),
                gradient: gradient.len(),
            });
        }
        for ((p, v), g) in param.iter_mut().zip(velocity).zip(gradient) {
            *v = *v * self.momentum + *g;
            let direction = if self.nesterov { *g + *v * self.momentum } else { *v };
            *p -= self.lr * direction;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_different_lengths_are_refused() {
        let step = OuterSgd::default().step(&mut [0.0; 2], &mut [0.0; 2], &[0.0; 3]);
        assert!(matches!(step, Err(AggregateError::Length { gradient: 3, .. })));
    }

    #[test]
    fn without_nesterov_the_step_goes_along_the_velocity() {
        let sgd = OuterSgd { lr: 0.5, momentum: 0.5, nesterov: false };
        let (mut param, mut velocity) = ([1.0], [2.0]);
        sgd.step(&mut param, &mut velocity, &[1.0]).unwrap();
        assert_eq!((param, velocity), ([0.0], [2.0]));
    }
}
