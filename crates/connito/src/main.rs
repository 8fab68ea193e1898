//! The `connito` command.

fn main() -> std::process::ExitCode {
    connito::main()
}
