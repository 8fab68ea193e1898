fn main() -> anyhow::Result<()> {
    kit::main("svc-evaluator", "evaluator", svc_evaluator::Config::admin_addr, svc_evaluator::run)
}
