//! The benchmark of Leasehold; see `--help`.

fn main() -> leasehold_integration::Result<()> {
    leasehold_integration::bench::main()
}
