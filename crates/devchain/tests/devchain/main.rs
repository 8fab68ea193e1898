//! The development chain as ordinary clients meet it.

mod client;
mod faults;
mod hostile;
mod reading;
mod refused;
mod writing;
