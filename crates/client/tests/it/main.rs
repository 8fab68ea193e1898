//! The client against the real gateway on loopback, through connections that break.
#![cfg(test)]

#[expect(dead_code, reason = "the gateway's own tests use the rest of it")]
#[path = "../../../../svc-gateway/tests/it/common/mod.rs"]
mod common;
mod download;
mod form;
mod proxy;
mod receipt;
mod scene;
mod strange;
mod submit;
mod tus;
