//! Two validators over real gRPC: one calls, the other has a desk with a small shelf behind it.

mod hostile;
mod keeper;
mod talk;
mod transfers;
