//! The arithmetic of a step.

/// Stochastic gradient descent with momentum in float32, as torch's `SGD` does it with `dampening` 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OuterSgd {
    pub lr: f32,
    pub momentum: f32,
    pub nesterov: bool,
}

/// Parameters, momentum and gradient of different lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{param} parameters, {velocity} of momentum and {gradient} of gradient")]
pub struct UnequalLengths {
    pub param: usize,
    pub velocity: usize,
    pub gradient: usize,
}

impl Default for OuterSgd {
    /// The deployed validator's: 0.7, 0.9, Nesterov.
    fn default() -> Self {
        Self { lr: 0.7, momentum: 0.9, nesterov: true }
    }
}

impl OuterSgd {
    /// One step in place over a tensor or a part of one. `velocity` is the momentum buffer, zeros before the first
    /// step. Element by element in a fixed order of operations, so that all validators get the same bits:
    ///
    /// ```text
    /// velocity  = velocity * momentum + gradient           two roundings
    /// direction = gradient + velocity * momentum           one rounding; the velocity where it is not Nesterov's
    /// param     = param - lr * direction                   one rounding
    /// ```
    ///
    /// Multiplications are fused with additions exactly where torch does it on processors of this decade, which makes the
    /// bits those of the deployed implementation (`outer_sgd.safetensors` of the vectors).
    pub fn step(
        &self,
        param: &mut [f32],
        velocity: &mut [f32],
        gradient: &[f32],
    ) -> Result<(), UnequalLengths> {
        if param.len() != gradient.len() || velocity.len() != gradient.len() {
            return Err(UnequalLengths {
                param: param.len(),
                velocity: velocity.len(),
                gradient: gradient.len(),
            });
        }
        for ((p, v), g) in param.iter_mut().zip(velocity).zip(gradient) {
            *v = *v * self.momentum + *g;
            let direction = if self.nesterov { v.mul_add(self.momentum, *g) } else { *v };
            *p = direction.mul_add(-self.lr, *p);
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
        assert_eq!(step, Err(UnequalLengths { param: 2, velocity: 2, gradient: 3 }));
    }

    #[test]
    fn without_nesterov_the_step_goes_along_the_velocity() {
        let sgd = OuterSgd { lr: 0.5, momentum: 0.5, nesterov: false };
        let (mut param, mut velocity) = ([1.0], [2.0]);
        sgd.step(&mut param, &mut velocity, &[1.0]).unwrap();
        assert_eq!((param, velocity), ([0.0], [2.0]));
    }
}
