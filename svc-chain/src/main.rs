//! The chain service as a process of its own.

fn main() -> anyhow::Result<()> {
    kit::main("svc-chain", "chain", |config: &svc_chain::Config| config.admin_addr, svc_chain::run)
}
