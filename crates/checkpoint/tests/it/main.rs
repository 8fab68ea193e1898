//! The crate from outside: golden vectors, hostile files, Python on the other side, and whole merges.

#[cfg(test)]
mod archive;
#[cfg(test)]
mod feedback;
#[cfg(test)]
mod fuzz_body;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod merge;
#[cfg(test)]
mod mutations;
#[cfg(test)]
mod publish;
#[cfg(test)]
mod python;
#[cfg(test)]
mod reduce;
#[cfg(test)]
mod setup;
#[cfg(test)]
mod step;
#[cfg(test)]
mod stream;
#[cfg(test)]
mod stream_body;
#[cfg(test)]
mod stream_early;
#[cfg(test)]
mod two_readings;
#[cfg(test)]
mod vectors;
