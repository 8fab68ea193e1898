//! End-to-end tests of a whole subnet, golden vectors, and the fences between the rooms. There is no
//! code here: see `tests/`.
